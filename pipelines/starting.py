"""`vidalign init`: a commented configuration for a model and a data file, after looking at both."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import math
import pathlib
import sys
from typing import Any

from vidalign import files
from vidalign.errors import ConfigError, ModelError

SMALL = 100_000_000  # parameters of models that are trained at other rates
LARGE = 4_000_000_000  # from here on, one GPU does not hold what training needs
CAPTIONED = 0.9  # share of rows with a caption from which a judge can go by captions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Looked:
    """What a model's folder and a data file say."""

    model: str
    family: str
    num_parameters: int
    dtype: str
    context: int
    video: dict[str, Any]
    num_rows: int
    num_pairs: int
    num_captions: int
    num_videos: int
    missing: tuple[str, ...]
    categories: tuple[str, ...]
    num_gpus: int


def add_parser(commands: Any) -> None:
    """Add the command to the parsers of `vidalign`."""
    text = "write a commented configuration for a model and a data file, after looking at both"
    command = commands.add_parser("init", help=text, description=text)
    command.add_argument("--model", required=True, metavar="FOLDER", help="a Hugging Face model folder")
    command.add_argument(
        "--data", required=True, metavar="FILE", help="rows {id, video, question, answer}, or pairs (docs/data.md)"
    )
    command.add_argument("--eval", metavar="FILE", help="held-out rows, on other videos")
    command.add_argument("--probe", metavar="FILE", help="rows whose ground truth's likelihood is watched, on other videos")
    command.add_argument(
        "--video-root", metavar="FOLDER", help="what relative videos are relative to (default: the file's folder)"
    )
    command.add_argument(
        "--out", default="align.yaml", metavar="FILE", help="the configuration to write (default: align.yaml)"
    )
    command.add_argument("--run-dir", metavar="FOLDER", help="where the run goes (default: runs/ and the name of --out)")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from vidalign.config.loading import load_config

    out = pathlib.Path(arguments.out)
    if out.exists():
        raise ConfigError(f"--out {out} is there already; name another file, or remove it")
    if out.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--out {out} is to be YAML; let its name end in .yaml")
    found = look(arguments.model, arguments.data, video_root=arguments.video_root)
    splits = {"train": arguments.data, "eval": arguments.eval, "probe": arguments.probe, "video_root": arguments.video_root}
    text = written(found, splits, run_dir=arguments.run_dir or f"runs/{out.stem}")
    files.write_text_atomic(out, text)
    try:
        load_config(out)
    except ConfigError:
        out.unlink()
        raise
    print("\n".join(described(found, splits)), file=sys.stderr)
    print(f"{out} is written. Check it against data, model and memory, then start it:\n")
    print(f"  vidalign align {out} --dry-run\n  vidalign align {out}")
    return 0


def look(model: str, data: str, *, video_root: str | None = None) -> Looked:
    """Read a model's folder (not its weights) and a data file.

    Raises:
        ModelError: the folder is no model.
        DataError: the file is no data, or a row breaks a rule.
    """
    from vidalign.data.reading import read_rows
    from vidalign.data.rows import PreferenceRow
    from vidalign.data.shown import missing_file
    from vidalign.model.checkpoint import read_card
    from vidalign.model.folder import model_folder, stored_shapes

    folder = model_folder(model)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json; --model names a complete Hugging Face model folder")
    stored = files.read_object(folder / "config.json")
    text = stored.get("text_config") or stored
    shapes = stored_shapes(folder)
    rows = read_rows(data, video_root=video_root)
    videos = {name for row in rows for name in row.example.context.visuals}
    card = read_card(folder)
    dtype = stored.get("dtype") or stored.get("torch_dtype") or text.get("dtype")
    longest = text.get("max_position_embeddings")
    return Looked(
        model=model,
        family=str(stored.get("model_type", "unknown")),
        num_parameters=sum(math.prod(shape) for shape in shapes.values()),
        dtype=dtype if dtype in ("float32", "float16", "bfloat16") else "bfloat16",
        context=min(longest, 8192) if isinstance(longest, int) else 4096,
        video=_sampling(card),
        num_rows=len(rows),
        num_pairs=sum(isinstance(row.row, PreferenceRow) or row.pair is not None for row in rows),
        num_captions=sum(bool(row.example.caption) for row in rows),
        num_videos=len(videos),
        missing=tuple(sorted(name for name in videos if missing_file(name) is not None)),
        categories=tuple(
            name for name, _ in collections.Counter(row.example.category for row in rows).most_common() if name
        ),
        num_gpus=len(list(pathlib.Path("/dev").glob("nvidia[0-9]*"))),
    )


def _sampling(card: Any) -> dict[str, Any]:
    """The frames that the model was trained on, where its card says so."""
    if card is None:
        return {"num_frames": 16, "max_pixels": 200704}
    names = ("num_frames", "fps", "height", "width", "max_pixels", "choice")
    return {name: value for name, value in card["frame_spec"].items() if name in names and value is not None}


def described(found: Looked, splits: dict[str, str | None]) -> list[str]:
    """What was seen, in lines."""
    kinds = [f"{found.num_pairs:,} of them pairs"] if found.num_pairs else []
    kinds += [f"{found.num_captions:,} with captions"] if found.num_captions else []
    lines = [
        f"model: {found.family}, {found.num_parameters:,} parameters, stored as {found.dtype}",
        f"data: {', '.join([f'{found.num_rows:,} rows on {found.num_videos:,} videos', *kinds])}",
        f"machine: {found.num_gpus} GPUs" if found.num_gpus else "machine: no GPU, so everything runs on the CPU",
    ]
    if found.missing:
        lines.append(
            f"note: {len(found.missing):,} videos are not there, first {found.missing[0]}; set data.video_root, or they are left out"
        )
    if not splits["eval"]:
        lines.append("note: without --eval there is no evaluation, and nothing says whether the model became better")
    return lines


def written(found: Looked, splits: dict[str, str | None], *, run_dir: str) -> str:
    """The configuration with its comments."""
    recipe = _recipe(found)
    lines = [
        f"# {found.family} of {found.num_parameters:,} parameters, {found.num_rows:,} rows. All options: docs/options.md",
        f"run_dir: {_yaml(run_dir)}",
        "model:",
        f"  path: {_yaml(found.model)}",
        f"  dtype: {found.dtype:<18} # as the weights are stored",
        f"  max_model_len: {found.context:<10} # tokens of a prompt with its video, and its reply",
        "data:",
        *(f"  {name}: {_yaml(value)}" for name, value in splits.items() if value),
        *(
            []
            if splits["eval"]
            else ["  # eval: heldout.jsonl     # held-out rows on other videos: without them there is no evaluation"]
        ),
        *(
            []
            if splits["probe"]
            else ["  # probe: probe.jsonl      # rows on other videos, whose ground truth's likelihood is watched"]
        ),
        "video:                      # the same frames in rollouts, training, evaluation and serving",
        *(f"  {name}: {json.dumps(value)}" for name, value in found.video.items()),
        *recipe,
        *_training(found),
        *_engines(found),
    ]
    return "\n".join(lines) + "\n"


def _recipe(found: Looked) -> list[str]:
    if found.num_pairs:
        return [
            "recipe:",
            "  name: given               # the rows are pairs already (chosen, rejected); no responses are generated",
            "objective:",
            "  name: dpo                 # or leanpo, rrpo, simpo …: vidalign/learning/objectives, docs/methods.md",
        ]
    lines = [
        "recipe:",
        "  name: leanpo              # responses with hints and reflection against those to degraded videos; or rrpo, hound, given",
        "  num_candidates: 4         # responses of each side, of which the best and the worst are paired",
        "  max_new_tokens: 256       # of one response; those that are cut off are not learned from",
        "  # trust: f1               # how far a response agrees with the ground truth where no rule can tell: f1, judge, or your own",
    ]
    if found.num_captions >= CAPTIONED * found.num_rows:
        lines.append(
            "  # rows have captions: `name: hound` with `judge:` would score responses by them (configs/hound-dpo-7b.yaml)"
        )
    return [*lines, "objective:", "  name: leanpo              # or dpo, simpo, rrpo, sft …: docs/methods.md"]


def _training(found: Looked) -> list[str]:
    small, large = found.num_parameters < SMALL, found.num_parameters >= LARGE
    workers = max(1, found.num_gpus)
    batch = max(workers, 16 // workers * workers)
    return [
        "train:",
        f"  learning_rate: {'1e-4' if small else '5e-7'}       # {'a small model' if small else 'the papers, for 7B models'}",
        "  num_epochs: 1",
        f"  batch_size: {batch:<13} # pairs of one optimizer step, over all workers",
        "  micro_batch_size: 1       # pairs of one forward pass of one worker; more is faster where memory allows it",
        f"  num_workers: {workers:<12} # {'one a GPU' if found.num_gpus else 'processes that train'}",
        f"  zero_stage: {3 if large else 2:<13} # 3 divides the weights over the workers too",
        f"  gradient_checkpointing: {str(not small).lower():<5} # less memory for a third more time",
        *([] if small else ["  # lora: {rank: 128, alpha: 256}   # trains adapters: a fraction of the memory"]),
    ]


def _engines(found: Looked) -> list[str]:
    if not found.num_gpus:
        return []
    return ["rollout:", "  gpus_per_engine: 1        # more for a model that one GPU does not hold"]


def _yaml(text: str) -> str:
    """A text as YAML, in quotes only where it needs them."""
    import yaml

    return yaml.safe_dump(text, allow_unicode=True, width=10**6).strip().removesuffix("...").strip()
