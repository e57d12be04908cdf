"""How a run is kept on disk: atomic writes, Parquet tables, and the names inside a run folder.

config.yaml · frames/ · rounds/0/{responses,pairs,quarantine,train,model,eval}/ · report/index.html · summary.json · plan.json · lease/
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, TypeVar

from vidalign import mirror
from vidalign.errors import ConfigError, DataError
from vidalign.records import Record
from vidalign.storage import is_uri
from vidalign.stored import folder_of, shown

RecordT = TypeVar("RecordT", bound=Record)


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths inside one run: of a folder that every node of the cluster sees, or of this node's mirror of a run in a store."""

    root: pathlib.Path

    @classmethod
    def open(cls, run_dir: str) -> RunFolder:
        """The folder, made unless it is there. Raises `ConfigError` as `at` does, and where it cannot be made."""
        folder = cls.at(run_dir)
        try:
            folder.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"run_dir={run_dir} cannot be made ({error.strerror}); choose another folder") from error
        return folder

    @classmethod
    def at(cls, run_dir: str) -> RunFolder:
        """The folder, which need not be there. Raises `ConfigError` for a uri that is mistyped."""
        return cls(folder_of(run_dir) if is_uri(run_dir) else pathlib.Path(run_dir).absolute())

    @property
    def name(self) -> str:
        """The last part of its path, or of its uri."""
        return shown(self.root).rpartition("/")[2]

    def __str__(self) -> str:
        return shown(self.root)

    @property
    def config(self) -> pathlib.Path:
        return self.root / "config.yaml"

    @property
    def plan(self) -> pathlib.Path:
        """Who got which CPUs and GPUs in the last command that ran a stage."""
        return self.root / "plan.json"

    @property
    def frames(self) -> pathlib.Path:
        return self.root / "frames"

    @property
    def report(self) -> pathlib.Path:
        return self.root / "report"

    @property
    def summary(self) -> pathlib.Path:
        return self.root / "summary.json"

    def stage(self, name: str, round_index: int = 0) -> pathlib.Path:
        """Folder of one stage of one round: responses, pairs, quarantine, reference, train, model or eval."""
        return self.root / "rounds" / str(round_index) / name


def write_text_atomic(path: pathlib.Path, text: str) -> None:
    """Write so that a reader sees the old file or the new one, never half of it."""
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: pathlib.Path, *parts: bytes | memoryview, durable: bool = True) -> None:
    """Write parts one after another, as atomically as `write_text_atomic`.

    With `durable` False, this does not wait for the disk: after a power failure the file may be torn, so its reader must be
    able to tell.
    """
    with _replacing(path, durable=durable) as file:
        file.writelines(parts)


@contextlib.contextmanager
def _replacing(path: pathlib.Path, *, durable: bool = True) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` once all of it is written, and is in the store that `path` is kept in, if it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        error.filename = str(path)  # nobody knows the other name
        raise
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        with mirror.kept(path, temporary):
            os.replace(temporary, path)
    except BaseException as error:
        pathlib.Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # as of a disk that is full: which one?
            error.filename = str(path)
        raise


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write a value as JSON, atomically. NaN and infinities become null, since JSON has neither."""
    write_text_atomic(path, json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def part_path(parts: pathlib.Path, number: int) -> pathlib.Path:
    """The JSON file that says a part of a stage is finished; what else the part has stands beside it under the same stem."""
    return parts / f"{number:06d}.json"


def is_part_whole(parts: pathlib.Path, number: int, *, has_table: bool = False) -> bool:
    """Whether a part is finished and its files are whole: a power failure may leave some that are cut off.

    `has_table`: a part has a table beside its JSON file.
    """
    path = part_path(parts, number)
    try:
        read_json(path)
        if has_table:
            import pyarrow.parquet as pq

            pq.read_metadata(path.with_suffix(".parquet"))  # which stands at the end of the file
    except (DataError, OSError, ValueError):
        return False
    return True


def run_of(path: pathlib.Path) -> pathlib.Path:
    """The root of the run that holds a file of a stage; of any other file, its folder."""
    return next((folder.parent for folder in path.parents if folder.name == "rounds"), path.parent)


def kept_place(root: pathlib.Path, place: str) -> str:
    """How a run keeps the path of a file: relative to its root where it is inside, so that a run may be moved or copied."""
    path = pathlib.PurePath(place)
    return path.relative_to(root).as_posix() if place and path.is_relative_to(root) else place


def found_places(root: pathlib.Path, kept: Mapping[str, str]) -> dict[str, str]:
    """The paths of files from how the run at `root` keeps them.

    Earlier runs keep whole paths, also of their own decoded frames, <run>/frames/xx/name. Those are found where the run is now.
    """
    own = root / "frames"
    paths = {key: root / text for key, text in kept.items() if text}
    folders = {path.parents[1] for path in paths.values() if len(path.parts) > 3} - {own}
    moved = {folder for folder in folders if folder.name == own.name and not folder.is_dir()} if own.is_dir() else set()
    return {
        **kept,
        **{
            key: str(own.joinpath(*path.parts[-2:]) if len(path.parts) > 3 and path.parents[1] in moved else path)
            for key, path in paths.items()
        },
    }


def write_places(path: pathlib.Path, places: Mapping[str, str]) -> None:
    """Write {key: path of a file} as JSON in a stage's folder, see `kept_place`."""
    root = run_of(path)
    write_json(path, {key: kept_place(root, place) for key, place in places.items()})


def read_places(path: pathlib.Path) -> dict[str, str]:
    """Read what `write_places` wrote. Raises `DataError` as `read_json` does."""
    return found_places(run_of(path), read_json(path))


def read_json(path: pathlib.Path) -> Any:
    """Raises `DataError` when the file is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"no file {path}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not valid JSON: it is not text in UTF-8") from error
    except RecursionError as error:
        raise DataError(f"{path} is not valid JSON: it is nested without end") from error


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """`read_json` of a file that holds an object. Raises `DataError` for one that holds anything else."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise DataError(f"{path} must hold a JSON object, got {type(found).__name__}; download it again")
    return found


def read_jsonl(path: pathlib.Path) -> list[Any]:
    """The JSON values of a file with one per line; blank lines are skipped."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def write_table(path: pathlib.Path, records: Iterable[Record]) -> None:
    """Write records as one Parquet file, atomically. An empty table has no columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [record.to_row() for record in records]
    columns = dict.fromkeys(name for row in rows for name in row)  # pyarrow would take those of the first row
    table = pa.Table.from_pylist([{name: row.get(name) for name in columns} for row in rows])
    with _replacing(path) as file:
        pq.write_table(table, file)


def join_tables(
    paths: Sequence[pathlib.Path], path: pathlib.Path, *, only: tuple[str, Collection[str]] | None = None
) -> None:
    """Write the rows of several tables of the same kind of record as one table, atomically, with one in memory at a time.

    `only`: a column, and the values in it of the rows that are taken; None takes all.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    # A column that is empty in one table has no type there.
    schema = pa.unify_schemas([pq.read_schema(part) for part in paths], promote_options="permissive")
    with _replacing(path) as file, pq.ParquetWriter(file, schema) as writer:
        for part in paths:
            table = pq.read_table(part)
            if only is not None and table.num_rows:
                table = table.filter(pc.field(only[0]).isin(list(only[1])))
            if table.num_rows:
                writer.write_table(table.cast(schema))


def read_table(path: pathlib.Path, record: type[RecordT], *, without: Collection[str] = ()) -> list[RecordT]:
    """Read what `write_table` or `join_tables` wrote. Lists named in `without` are not read and are empty in the records."""
    import pyarrow.parquet as pq

    empty = dict.fromkeys(without, ())
    with pq.ParquetFile(path) as file:
        columns = [name for name in file.schema_arrow.names if name not in empty]
        batches = file.iter_batches(batch_size=1024, columns=columns)
        return [record.from_row(row | empty) for batch in batches for row in batch.to_pylist()]
