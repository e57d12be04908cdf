"""A data file may be of many kinds: each gives the same rows, and what is not clear is one sentence."""

import csv
import gzip
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading
from typing import ClassVar

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from json_server import Quiet

from pipelines.cli import main
from vidalign.data import hub
from vidalign.data.reading import read_rows
from vidalign.data.source import read_source
from vidalign.data.tables import csv_cells
from vidalign.data.validate import validate
from vidalign.errors import DataError, RowError

ROWS = [
    {"id": "007", "video": "v.mp4", "question": "Which, left or\nright?", "answer": "left", "options": ["left", "right"]},
    {
        "id": "b",
        "video": "w.mp4",
        "question": "Where?",
        "answer": "12",
        "chosen": "[12]",
        "rejected": "7",
        "chosen_score": 4.5,
    },
]


def table(rows=ROWS) -> pa.Table:
    columns = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in columns})


def write_csv(path: pathlib.Path, rows, delimiter=",") -> None:
    header, cells = csv_cells(rows)
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *cells])


def write_stream(path: pathlib.Path, made: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, made.schema) as writer:
        writer.write_table(made)


def make(kind: str, folder: pathlib.Path) -> str:
    """ROWS as `kind` in a folder: the name under which they are a data file."""
    path = folder / kind
    if kind == "d.jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    elif kind == "d.json":
        path.write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
    elif kind in ("d.csv", "d.tsv"):
        write_csv(path, ROWS, "," if kind == "d.csv" else "\t")
    elif kind == "d.parquet":
        pq.write_table(table(), path)
    elif kind == "d.feather":
        pyarrow.feather.write_feather(table(), str(path))
    elif kind == "d.arrow":
        write_stream(path, table())
    elif kind in ("shards", "train-*.parquet"):
        if kind == "shards":
            folder = path
            folder.mkdir()
        for number in (0, 1):
            pq.write_table(table().slice(number, 1), folder / f"train-0000{number}-of-00002.parquet")
    elif kind in ("saved", "dict"):
        data = datasets.Dataset(table())
        (data if kind == "saved" else datasets.DatasetDict({"train": data})).save_to_disk(str(path))
        (path / ("train" if kind == "dict" else "") / "cache-1.arrow").write_bytes(b"a cache of datasets")
    return str(path)


KINDS = [
    "d.jsonl",
    "d.json",
    "d.csv",
    "d.tsv",
    "d.parquet",
    "d.feather",
    "d.arrow",
    "shards",
    "train-*.parquet",
    "saved",
    "dict",
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, kind):
    name = make(kind, tmp_path)
    rows = read_rows(name)
    assert [row.example.id for row in rows] == ["007", "b"]
    assert rows[0].example.options == ("left", "right")
    assert rows[0].example.question == "Which, left or\nright?"
    assert (rows[1].row.chosen, rows[1].row.chosen_score) == ("[12]", 4.5)
    root = tmp_path / kind if kind in ("shards", "saved", "dict") else tmp_path
    assert rows[0].example.video == str(root / "v.mp4")
    (root / "v.mp4").write_bytes(b"v")
    (root / "w.mp4").write_bytes(b"w")
    report = validate([name])
    assert not report.errors
    assert report.splits[0].num_rows == 2


def test_places_name_the_line_or_the_row(tmp_path):
    assert [where for where, _ in read_source(make("d.csv", tmp_path))] == [f"{tmp_path}/d.csv:2", f"{tmp_path}/d.csv:4"]
    assert [where.split("/")[-1] for where, _ in read_source(make("shards", tmp_path))] == [
        "train-00000-of-00002.parquet: row 1",
        "train-00001-of-00002.parquet: row 1",
    ]


def test_media_columns_of_datasets_are_paths(tmp_path):
    media = [{"path": "v.mp4", "bytes": None}, {"path": "w.mp4", "bytes": b"whole file"}]
    pq.write_table(table([{**row, "video": video} for row, video in zip(ROWS, media, strict=True)]), tmp_path / "d.parquet")
    (_, first), (_, second) = read_source(tmp_path / "d.parquet")
    assert first["video"] == "v.mp4"
    assert second["video"] == media[1]
    with pytest.raises(RowError, match="row 2: video: "):
        read_rows(tmp_path / "d.parquet")


def test_a_long_text_is_read_from_every_kind_of_file(tmp_path):
    question = "q" * 200_000
    (tmp_path / "d.csv").write_text(f"id,video,question,answer\na,v.mp4,{question},A\n")
    [(_, row)] = read_source(tmp_path / "d.csv")
    assert row["question"] == question


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("id".encode("utf-16"), "d.jsonl:1: row: is text in UTF-16; save the file as UTF-8"),
        ("{}".encode("utf-16-be"), "d.jsonl:1: row: is text in UTF-16; save the file as UTF-8"),
        ("{}".encode("utf-16-le"), "d.jsonl:1: row: is text in UTF-16; save the file as UTF-8"),
        (gzip.compress(b"{}", mtime=0), "d.jsonl:1: row: is compressed; unpack the file first"),
        (b"\x28\xb5\x2f\xfd\x04", "d.jsonl:1: row: is compressed; unpack the file first"),
        ("{'é'".encode("latin-1"), "d.jsonl:1: row: is not valid UTF-8"),
        (
            b'{"video": {"path": "v.mp4"}}',
            "video: must be a path, or a list of the paths of frames, got {'path': 'v.mp4'}",
        ),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(tmp_path, content, says):
    (tmp_path / "d.jsonl").write_bytes(content)
    with pytest.raises((DataError, RowError)) as caught:
        read_rows(tmp_path / "d.jsonl")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("files", "name", "says"),
    [
        ({}, "none.csv", r"no data file at .*none\.csv; give JSONL, JSON, Parquet"),
        ({"d.jsonl.gz": "x"}, "d.jsonl.gz", "d.jsonl.gz is compressed; unpack it first"),
        ({}, "none-*.parquet", r"no data file at .*none-\*\.parquet"),
        ({}, "", "holds no data file"),
        (
            {"train.jsonl": "", "test.jsonl": ""},
            "",
            r"holds files of several names \(test.jsonl, train.jsonl\).*name the file",
        ),
        ({"train-0.csv": "", "test-0.csv": ""}, "", "holds files of several names"),
        ({"dataset_dict.json": '{"splits": ["a", "b"]}'}, "", "holds the splits a, b; name one of them"),
        ({"dataset_dict.json": "{"}, "", "dataset_dict.json is not valid JSON"),
        ({"state.json": '{"_data_files": [{"filename": "x.arrow"}]}'}, "", "is not complete: no file .*x.arrow"),
        ({"state.json": '{"_data_files": [], "_indices_data_files": [1]}'}, "", "flatten_indices"),
        ({"d.arrow": "no table"}, "d.arrow", "d.arrow cannot be read as Arrow"),
        ({"d.feather": "ARROW1 no table"}, "d.feather", "d.feather cannot be read as Arrow"),
        ({"d.csv": "id,id\n"}, "d.csv", "d.csv:1: the header must name every column once"),
        ({"d.csv": 'id,video\n"a,b\n'}, "d.csv", "d.csv:2 cannot be read as CSV"),
        ({"d.csv": "id,video\na\n"}, "d.csv", "d.csv:2: row: has 1 cells, but the header has 2"),
        ({"d.csv": "id,options\na,[left\n"}, "d.csv", r"d.csv:2: options: is not JSON, got '\[left'"),
        ({"d.csv": "id,options\na," + "[" * 100_000 + "\n"}, "d.csv", "d.csv:2: options: is not JSON"),
        ({"d.csv": "id,video\n"}, "d.csv", "d.csv: file: holds no rows"),
        ({"rounds/0/x": ""}, "", "is a run without pairs yet"),
        (
            {"rounds/0/pairs/pairs.parquet": "", "rounds/10/pairs/pairs.parquet": ""},
            "",
            r"a run of 2 rounds.*rounds/10/pairs",
        ),
    ],
)
def test_what_cannot_be_read_is_one_sentence_in_every_command(tmp_path, capsys, files, name, says):
    for file, text in files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    source, out = str(tmp_path / name) if name else str(tmp_path), str(tmp_path.parent / "out.jsonl")
    with pytest.raises(DataError, match=says) as caught:
        read_rows(source)
    for command in (
        ["validate", source],
        ["export", "--to", "trl", source, "--out", out],
        ["convert", source, "--out", out],
    ):
        assert main(["data", *command]) == 2, command
        assert str(caught.value) in capsys.readouterr().err, command


# --- the hub ---


def test_names_of_the_hub(monkeypatch):
    asked = []

    def load(path, config, *, split, revision):
        asked.append((path, config, split, revision))
        data = datasets.Dataset(table())
        return data if split else datasets.DatasetDict({"train": data} | ({"test": data} if config else {}))

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert [row["id"] for _, row in read_source("hf:me/videos/train")] == ["007", "b"]
    assert [where for where, _ in read_source("hf:me/videos")] == ["hf:me/videos: row 1", "hf:me/videos: row 2"]
    assert len(list(read_source("hf:me/videos@v1.0:small/test"))) == 2
    assert asked == [
        ("me/videos", None, "train", None),
        ("me/videos", None, None, None),
        ("me/videos", "small", "test", "v1.0"),
    ]
    with pytest.raises(DataError, match="has the splits train, test; name one of them, such as hf:me/videos:small/train"):
        list(read_source("hf:me/videos:small"))
    with pytest.raises(DataError, match=r"does not have the form hf:org/name\[@revision\]"):
        list(read_source("hf:videos"))


def test_a_local_folder_is_never_taken_for_a_data_set_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me/videos").mkdir(parents=True)
    with pytest.raises(DataError, match="there is a local me/videos here"):
        list(read_source("hf:me/videos/train"))


class SmallHub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as `datasets` asks for one data set, me/videos."""

    FILES: ClassVar = {
        "data/train.jsonl": json.dumps(ROWS[1]).encode(),
        "data/test.jsonl": b"".join(json.dumps(ROWS[1] | {"id": name}).encode() + b"\n" for name in ("007", "b")),
        "README.md": b"---\nconfigs:\n- config_name: small\n  data_files:\n  - {split: train, path: data/train.jsonl}\n"
        b"  - {split: test, path: data/test.jsonl}\n---\n",
    }
    SHA = "a" * 40

    def log_message(self, *_):
        pass

    def do_GET(self):
        api, files, path = "/api/datasets/me/videos", "/datasets/me/videos/resolve/", self.path.split("?")[0]
        name = path.removeprefix(files).partition("/")[2]
        if path.startswith(f"{api}/tree/"):
            listed = [
                {"type": "file", "path": file, "size": len(text), "oid": "0" * 40} for file, text in self.FILES.items()
            ]
            self.reply(json.dumps([file for file in listed if file["path"].startswith("data/")]).encode())
        elif path.startswith(api):
            self.reply(
                json.dumps(
                    {"id": "me/videos", "sha": self.SHA, "siblings": [{"rfilename": file} for file in self.FILES]}
                ).encode()
            )
        elif path.startswith(files) and name in self.FILES:
            self.reply(self.FILES[name])
        else:
            self.reply(b"", 404)

    do_HEAD = do_GET

    def reply(self, body: bytes, status: int = 200):
        self.send_response(status)
        headers = {"Content-Length": len(body), "ETag": f'"{hash(body) % 10**9}"', "X-Repo-Commit": self.SHA}
        for name, value in {**headers, **({"X-Error-Code": "EntryNotFound"} if status == 404 else {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.mark.heavy  # of the network's kind: two processes that import `datasets`
def test_a_hub_is_read_and_then_its_cache(tmp_path):
    server = Quiet(("127.0.0.1", 0), SmallHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = (
        "import sys; from vidalign.data.source import read_source\n"
        "for name in sys.argv[1:]: print([row['id'] for _, row in read_source(name)])"
    )
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path)}

    def read(**more: str) -> str:
        command = [sys.executable, "-c", code, "hf:me/videos/train", "hf:me/videos:small/test"]
        return subprocess.check_output(command, env=environment | more, text=True)

    assert read() == "['b']\n['007', 'b']\n"
    server.shutdown()
    assert read(HF_DATASETS_OFFLINE="1", HF_HUB_OFFLINE="1") == "['b']\n['007', 'b']\n"


def test_a_hub_that_cannot_be_had_is_one_sentence(monkeypatch, capsys):
    def fail(*_, **__):
        raise ConnectionError("Couldn't reach 'me/videos'\non the Hub") from OSError("no route")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    assert main(["data", "validate", "hf:me/videos/train"]) == 2
    said = capsys.readouterr().err
    assert "hf:me/videos/train cannot be read from the hub (ConnectionError: Couldn't reach 'me/videos' on the Hub, " in said
    assert "because of OSError: no route)" in said
    assert "datasets.load_dataset('me/videos', split=…).save_to_disk(FOLDER)" in said
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs the package datasets.*pip install 'datasets>=4'"):
        list(hub.read_hub("hf:me/videos/train"))
