"""The data of the comparison: videos, decoded frames, and the pairs of every recipe and seed, made once and kept.

<root>/data/                     videos and questions of four splits
<root>/frames/, frames.json      decoded frames, and where each video's are
<root>/pairs/RECIPE/SEED/        pairs.parquet and facts.json
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from actors.engine import VllmEngine
from actors.judge import Judge
from bench.quality.arms import BASE, Task
from examples.shapes import rule_judge
from pipelines.stages.judge import judgements_of
from pipelines.stages.pairs import reward_trust_correlation
from vidalign import files, recipes
from vidalign.config.judging import JudgeConfig
from vidalign.data.reading import DataRow, read_rows
from vidalign.model.checkpoint import policy_version
from vidalign.recipes.engine import Engine
from vidalign.recipes.judging import JudgeTask
from vidalign.recipes.pairing import make_pairs
from vidalign.types import Example, Judgement, PreferencePair, Response
from vidalign.video import decoding
from vidalign.video.frame_cache import FrameCache, load_clip

CHUNK = 80  # examples that one call of a recipe answers together


@dataclasses.dataclass(frozen=True)
class Data:
    """Everything that runs read; `frames` maps a video's uri to its decoded clip on disk."""

    task: Task
    root: pathlib.Path
    rows: Mapping[str, Sequence[DataRow]]
    frames: Mapping[str, str]

    def examples(self, split: str) -> list[Example]:
        return [row.example for row in self.rows[split]]

    def pairs(self, recipe: str, seed: int) -> list[PreferencePair]:
        return files.read_table(self.root / "pairs" / recipe / str(seed) / "pairs.parquet", PreferencePair)

    def plain_answers(self) -> list[str]:
        """The base's greedy answers to the training questions, once it has been measured on them."""
        return files.read_json(base_folder(self.root, "train") / "result.json")["replies"]

    def facts(self, recipe: str, seed: int) -> dict[str, Any]:
        return files.read_json(self.root / "pairs" / recipe / str(seed) / "facts.json")


def base_folder(root: pathlib.Path, split: str) -> pathlib.Path:
    """Where the figures of the base on a split are."""
    return root / "runs" / BASE / split


def prepare(task: Task, root: pathlib.Path) -> Data:
    """Make a task's videos and frames, or find them made."""
    num_questions, spec = task.sizes, task.spec
    folder, index = root / "data", root / "frames.json"
    if not index.is_file():
        task.make_videos(folder, dict(num_questions))
    rows = {split: read_rows(folder / f"{split}.jsonl") for split in num_questions}
    if not index.is_file():
        cache, frames = FrameCache(root / "frames"), {}
        for uri in dict.fromkeys(row.example.video for split in rows.values() for row in split):
            path = pathlib.Path(uri)
            frames[uri] = str(cache.put(decoding.content_hash(path), spec, decoding.decode(path, spec)))
        files.write_json(index, frames)
    return Data(task, root, rows, files.read_json(index))


def make_all_pairs(data: Data, seeds: Sequence[int], recipes: Sequence[str]) -> None:
    """Roll out every recipe with every seed that is not on disk, all through one engine."""
    todo = [
        (recipe, seed)
        for seed in seeds
        for recipe in recipes
        if not (data.root / "pairs" / recipe / str(seed) / "facts.json").is_file()
    ]
    if not todo:
        return
    model = data.task.model
    engine = VllmEngine(model, model.path, num_gpus=0, seed=0)
    version = policy_version(model.path).version
    for recipe, seed in todo:
        pairs, facts = make_pairs_of(data, engine, recipe, seed, version)
        print(f"pairs {recipe} seed {seed}: {len(pairs)} kept, {facts['dropped']}", flush=True)


def make_pairs_of(
    data: Data, engine: Engine, name: str, seed: int, version: str
) -> tuple[list[PreferencePair], dict[str, Any]]:
    """Roll out one of the task's recipes with one seed; keep its pairs, and what is to be said of them."""
    began, folder = time.process_time(), data.root / "pairs" / name / str(seed)
    rows, recipe = data.rows["train"], recipes.build(data.task.recipes[name])
    examples = data.examples("train")
    responses: list[Response] = []
    for start in range(0, len(examples), CHUNK):
        chunk = examples[start : start + CHUNK]
        clips = [load_clip(data.frames[example.video]) for example in chunk]
        responses += recipe.respond(engine, chunk, clips, policy_version=version, seed=seed)
    judgements: list[Judgement] = []
    facts: dict[str, Any] = {}
    if (task := recipe.judge_rows(examples, responses)) is not None:
        assert recipe.judge is not None
        judged = ask_rules(recipe.judge, task, folder / "judgements", data.task.judge)
        judgements, facts["judge"] = judgements_of(judged, task, recipe, examples)
    if (task := recipe.rewrite(examples, responses, judgements)) is not None:
        assert recipe.judge is not None
        responses += recipe.rewritten(ask_rules(recipe.judge, task, folder / "rewrites", data.task.judge))
    pairs, dropped = make_pairs(rows, responses, recipe, judgements, decoded=data.frames, seed=seed)
    facts |= {
        "kept": len(pairs),
        "dropped": dropped,
        "reward_trust_correlation": reward_trust_correlation(responses, recipe),
        "seconds": time.process_time() - began,
    }
    files.write_table(folder / "pairs.parquet", pairs)
    files.write_json(folder / "facts.json", facts)
    return pairs, facts


def ask_rules(judge: JudgeConfig, task: JudgeTask, parts: pathlib.Path, rules: Callable[[str], str]) -> list[dict[str, Any]]:
    """What the judge makes of its rows, where rules behind a real endpoint answer for it; all of them can be judged."""
    with running_judge(rules) as url:
        asked = judge.model_copy(update={"base_url": url})
        actor = Judge(asked.model_dump(), str(parts), task.work)
        actor({"part": 0, "rows": f"[{','.join(task.rows)}]"})
    return files.read_json(files.part_path(parts, 0))


@contextlib.contextmanager
def running_judge(rules: Callable[[str], str]) -> Iterator[str]:
    """The base url of a judge by `rules`, which answers in a thread of this process."""
    server = rule_judge.serve(reply=rules)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
