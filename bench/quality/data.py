"""The data of the comparison: videos, decoded frames, and the pairs of every recipe and seed, made once and kept.

<root>/data/                     videos and questions of four splits
<root>/frames/, frames.json      decoded frames, and where each video's are
<root>/pairs/RECIPE/SEED/        pairs.parquet and facts.json
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from actors.engine import VllmEngine
from actors.judge import openai_chat
from bench.quality.arms import RECIPES, SIZES
from examples.shapes import make_videos, rule_judge
from pipelines.stages.judge import judge_inputs
from vidalign import files
from vidalign.config.recipes import HoundRecipe
from vidalign.config.run import ModelConfig
from vidalign.data.reading import read_examples
from vidalign.model.checkpoint import policy_version
from vidalign.recipes import RECIPES as RESPOND
from vidalign.recipes import judging
from vidalign.recipes.engine import Engine
from vidalign.recipes.judging import agreement
from vidalign.recipes.pairing import make_pairs
from vidalign.statistics import rank_correlation
from vidalign.types import Example, FrameSpec, Judgement, PreferencePair, Response
from vidalign.video import decoding
from vidalign.video.frame_cache import FrameCache, load_clip

SPEC = FrameSpec(num_frames=8, height=56, width=56)
MODEL = ModelConfig(path="examples/shapes/model", dtype="float32", max_model_len=512)
CHUNK = 80  # examples that one call of a recipe answers together


@dataclasses.dataclass(frozen=True)
class Data:
    """Everything that runs read; `frames` maps a video's uri to its decoded clip on disk."""

    root: pathlib.Path
    examples: dict[str, list[Example]]
    frames: dict[str, str]

    def pairs(self, recipe: str, seed: int) -> list[PreferencePair]:
        return files.read_table(self.root / "pairs" / recipe / str(seed) / "pairs.parquet", PreferencePair)

    def facts(self, recipe: str, seed: int) -> dict[str, Any]:
        return files.read_json(self.root / "pairs" / recipe / str(seed) / "facts.json")


def prepare(root: pathlib.Path) -> Data:
    """Make videos, questions and frames, or find them made."""
    folder, index = root / "data", root / "frames.json"
    if not index.is_file():
        make_videos.make(folder, SIZES)
    examples = {split: read_examples(folder / f"{split}.jsonl") for split in SIZES}
    if not index.is_file():
        cache, frames = FrameCache(root / "frames"), {}
        for uri in dict.fromkeys(example.video for rows in examples.values() for example in rows):
            path = pathlib.Path(uri)
            frames[uri] = str(cache.put(decoding.content_hash(path), SPEC, decoding.decode(path, SPEC)))
        files.write_json(index, frames)
    return Data(root, examples, files.read_json(index))


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
    engine = VllmEngine(MODEL, MODEL.path, num_gpus=0, seed=0)
    version = policy_version(MODEL.path).version
    for recipe, seed in todo:
        began = time.monotonic()
        pairs, facts = _roll_out(engine, data.examples["train"], data.frames, recipe, seed, version)
        folder = data.root / "pairs" / recipe / str(seed)
        files.write_table(folder / "pairs.parquet", pairs)
        files.write_json(folder / "facts.json", {**facts, "seconds": time.monotonic() - began})
        print(f"pairs {recipe} seed {seed}: {len(pairs)} kept, {facts['dropped']}", flush=True)


def _roll_out(
    engine: Engine, examples: list[Example], frames: dict[str, str], recipe: str, seed: int, version: str
) -> tuple[list[PreferencePair], dict[str, Any]]:
    config: Any = RECIPES[recipe]
    responses: list[Response] = []
    for start in range(0, len(examples), CHUNK):
        chunk = examples[start : start + CHUNK]
        clips = [load_clip(frames[example.video]) for example in chunk]
        responses += RESPOND[config.name](engine, chunk, clips, recipe=config, policy_version=version, seed=seed)
    judgements: list[Judgement] = []
    facts: dict[str, Any] = {}
    if isinstance(config, HoundRecipe):
        judgements = _judge(config, examples, responses)
        facts["agreement"] = agreement(judgements, responses, config.threshold)
    pairs, dropped = make_pairs(examples, responses, config, judgements)
    scored = [r for r in responses if r.reward == r.reward and r.kind not in ("truth", "caption")]
    facts |= {
        "kept": len(pairs),
        "dropped": dropped,
        "reward_trust_correlation": rank_correlation([r.reward for r in scored], [r.trust for r in scored]),
    }
    return pairs, facts


def _judge(config: HoundRecipe, examples: Sequence[Example], responses: Sequence[Response]) -> list[Judgement]:
    """Every distinct response, by rules behind a real endpoint; all of them can be judged."""
    with _running_judge() as url:
        judge = config.judge.model_copy(update={"base_url": url})
        chat, model = openai_chat(judge)
        name = f"openai:{model}:{judging.prompt_version(judge.prompt)}"
        rows = [json.loads(row) for row in judge_inputs(config, examples, responses)]
        return [Judgement.from_row(row) for row in judging.judge_rows(rows, judge, chat, name)]


@contextlib.contextmanager
def _running_judge() -> Iterator[str]:
    server = rule_judge.serve()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
