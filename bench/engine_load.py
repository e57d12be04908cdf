"""One engine under the load of rollouts, in a process without Ray: how busy it is kept, what scores cost, what new weights cost.

    flow      an example a thread and two chunks in flight, as `actors.generator` asks: no reply is waited for but one's own
    barrier   a chunk at a time, each turn of all its examples before the next, and each score computes its prompt anew

`measure` takes any model folder and any videos: replies have as many tokens as a log-normal distribution says, and what counts as
their text are random words, so that random weights will do. The numbers of a reply follow from its seed, so both forms do the same.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from actors.engine import VllmEngine
from bench.turns import results_in_turns, seconds_of
from vidalign.config.recipes import LeanpoRecipe
from vidalign.config.run import ModelConfig
from vidalign.recipes.engine import Completion, Request
from vidalign.recipes.leanpo import Leanpo
from vidalign.types import Example, Response
from vidalign.video.clip import Clip
from vidalign.video.scene import Shown

WORDS = ("red", "blue", "green", "left", "right", "circle", "square", "moves")
FEWEST, MOST = 10, 300  # tokens of a reply
SCORED = 12  # replies of one prompt
NUDGE = 0.05  # of the spread of a parameter's values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """How much is asked. Replies have `median_tokens` by their median, and log-normal lengths between `FEWEST` and `MOST`."""

    num_examples: int = 128
    chunk: int = 32
    num_candidates: int = 2
    num_frames: int = 8
    side: int = 56
    median_tokens: int = 40
    sigma: float = 0.9

    def num_tokens(self, seed: int) -> int:
        """The length of the reply with this seed."""
        drawn = np.random.default_rng(seed).lognormal(np.log(self.median_tokens), self.sigma)
        return int(np.clip(drawn, FEWEST, MOST))

    def clips(self) -> list[Clip]:
        """A video of noise for each example."""
        return [self._clip(number) for number in range(self.num_examples)]

    def _clip(self, number: int) -> Clip:
        count = self.num_frames
        frames = np.random.default_rng(number).integers(0, 256, (count, self.side, self.side, 3), np.uint8)
        return Clip(frames=frames, fps=2.0, total_num_frames=count, duration_s=count / 2, indices=tuple(range(count)))

    def respond(self) -> Callable[..., list[Response]]:
        """Hinted candidates, one turn of reflection, candidates on augmented videos, and the scores of all."""
        section = LeanpoRecipe(num_candidates=self.num_candidates, num_turns=2, max_new_tokens=MOST)
        return functools.partial(Leanpo(section).respond, policy_version="bench", seed=0)


class LoadedEngine(VllmEngine):
    """Its replies are as long as `load` says."""

    def __init__(self, model: ModelConfig, load: Load, *, num_gpus: int, **engine_args: Any) -> None:
        super().__init__(model, model.path, num_gpus=num_gpus, seed=0, engine_args=engine_args)
        self.load = load

    def sampling(self, request: Request) -> Any:
        params = super().sampling(request)
        params.max_tokens = self.load.num_tokens(request.seed)
        params.ignore_eos, params.stop_token_ids = True, []
        return params

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        replies = super().generate(requests)
        return [
            dataclasses.replace(reply, text=words(len(reply.token_ids), request.seed))
            for request, reply in zip(requests, replies, strict=True)
        ]


class Clocks:
    """Seconds since this was made: of the clock, and of the processor, by all threads of this process."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def taken(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self._began[0], "cpu_s": time.process_time() - self._began[1]}


class Anew:
    """An engine that computes the prompt of each score anew, as vLLM does by itself."""

    def __init__(self, engine: VllmEngine) -> None:
        self.generate, self.num_tokens = engine.generate, engine.num_tokens
        self.score = functools.partial(engine.score, anew=True)


def words(count: int, seed: int) -> str:
    """A text of so many words."""
    return " ".join(np.random.default_rng(seed).choice(WORDS, count))


def measure(
    model: ModelConfig,
    other: str,
    *,
    num_gpus: int,
    load: Load,
    scored: Load | None = None,
    rounds: int = 3,
    compare: bool = False,
    **engine_args: Any,
) -> dict[str, Any]:
    """Everything in one engine: {"load", "busy", "score", "weights"}, see `keep_busy`, `score` and `new_weights`.

    Args:
        other: a folder with other weights of the same shapes.
        num_gpus: 0 for a CPU. engine_args: of `vllm.LLM`.
        scored: the video whose replies are scored, if it is not like those of `load`.
        compare: also start an engine with the other weights, beside the first one, and compare what both say.
    """
    began = time.perf_counter()
    engine = LoadedEngine(model, load, num_gpus=num_gpus, **engine_args)
    started = time.perf_counter() - began
    found = {
        "load": dataclasses.asdict(load),
        "busy": keep_busy(engine, rounds=rounds),
        "score": score(engine, scored or load, rounds=rounds),
        "weights": {"start_s": started, **new_weights(engine, load, other)},
    }
    reloaded = found["weights"].pop("other_scores")
    if compare:
        began = time.perf_counter()
        fresh = LoadedEngine(model.model_copy(update={"path": other}), load, num_gpus=num_gpus, **engine_args)
        found["weights"] |= {
            "second_start_s": time.perf_counter() - began,
            "to_started": apart(reloaded, scores_of(fresh, load)),
        }
    return found


def keep_busy(engine: LoadedEngine, *, rounds: int) -> dict[str, Any]:
    """Both forms in turns: {form: [{seconds, cpu_s, num_replies, num_tokens, working_s, waiting_s} of each turn]}."""
    load, clips = engine.load, engine.load.clips()
    examples = [
        Example(id=str(number), video=f"{number}.mp4", question="What moves?", answer="A red circle moves left.")
        for number in range(load.num_examples)
    ]

    def run(form: Callable[..., list[Response]], count: int) -> dict[str, Any]:
        engine.reset_caches()
        engine.take_seconds()
        clocks = Clocks()
        made = form(engine, examples[:count], clips[:count])
        taken, spent = clocks.taken(), engine.take_seconds()
        return {
            **taken,
            "num_replies": len(made),
            "num_tokens": sum(len(response.token_ids) for response in made),
            "working_s": spent["working"],
            "waiting_s": spent["waiting"],
        }

    forms = {"flow": flow, "barrier": barrier}
    for form in forms.values():  # what is compiled at the first call does not count
        run(form, min(4, load.num_examples))
    whole = {name: functools.partial(run, form, load.num_examples) for name, form in forms.items()}
    return results_in_turns(whole, rounds, warm_up=0)


def flow(engine: LoadedEngine, examples: Sequence[Example], clips: Sequence[Shown]) -> list[Response]:
    """As `actors.generator.Generator` is called by Ray Data, two chunks at a time."""
    respond, size = engine.load.respond(), engine.load.chunk
    with concurrent.futures.ThreadPoolExecutor(size) as answering, concurrent.futures.ThreadPoolExecutor(2) as calls:

        def call(start: int) -> list[Response]:
            shown = zip(examples[start : start + size], clips[start : start + size], strict=True)
            answers = [answering.submit(respond, engine, [example], [clip]) for example, clip in shown]
            return [response for answer in answers for response in answer.result()]

        return [response for made in calls.map(call, range(0, len(examples), size)) for response in made]


def barrier(engine: LoadedEngine, examples: Sequence[Example], clips: Sequence[Shown]) -> list[Response]:
    """A chunk is asked as a whole, and the next one once it is done."""
    respond, size = engine.load.respond(), engine.load.chunk
    made: list[Response] = []
    for start in range(0, len(examples), size):
        made += respond(Anew(engine), examples[start : start + size], clips[start : start + size])
    return made


def score(engine: VllmEngine, load: Load, *, rounds: int) -> dict[str, Any]:
    """The scores of "one" reply and of "all" `SCORED` replies to one video, the prompt from the cache; and "all_anew"."""
    [clip] = dataclasses.replace(load, num_examples=1).clips()
    rows = [("What moves?", clip, words(load.median_tokens, seed)) for seed in range(SCORED)]

    def asked(count: int, *, anew: bool) -> dict[str, float]:
        engine.reset_caches()
        clocks = Clocks()
        engine.score(rows[:count], anew=anew)
        return clocks.taken()

    variants = {
        "one": functools.partial(asked, 1, anew=False),
        "all": functools.partial(asked, SCORED, anew=False),
        "all_anew": functools.partial(asked, SCORED, anew=True),
    }
    turns = results_in_turns(variants, max(3, rounds))
    engine.reset_caches()
    cached, anew = engine.score(rows), engine.score(rows, anew=True)
    difference = max(apart(one, two) for one, two in zip(cached, anew, strict=True))
    shown = {"num_frames": load.num_frames, "side": load.side, "num_tokens": len(cached[0])}
    return {**shown, "num_replies": SCORED, "turns": turns, "difference": difference}


def new_weights(engine: VllmEngine, load: Load, other: str) -> dict[str, Any]:
    """Give the engine the weights of `other` in place, and then its own again.

    {"reload_s", "moved" and "returned": the largest differences of a score to the first ones, "other_scores"}
    """
    first = scores_of(engine, load)
    there = seconds_of(functools.partial(reload, engine, other))
    changed = scores_of(engine, load)
    back = seconds_of(functools.partial(reload, engine, engine.path))
    returned = scores_of(engine, load)
    return {
        "reload_s": [there, back],
        "moved": apart(first, changed),
        "returned": apart(first, returned),
        "other_scores": changed,
    }


def scores_of(engine: VllmEngine, load: Load) -> list[float]:
    """Log-probs of fixed replies to a few videos, all of them computed now."""
    clips = dataclasses.replace(load, num_examples=4).clips()
    rows = [("What moves?", clip, words(load.median_tokens, seed)) for seed, clip in enumerate(clips)]
    return [value for row in engine.score(rows, anew=True) for value in row]


def apart(one: Sequence[float], two: Sequence[float]) -> float:
    """The largest difference, in nats."""
    return max(abs(a - b) for a, b in zip(one, two, strict=True))


def reload(engine: VllmEngine, path: str) -> None:
    """Load a folder's weights into a running engine that nothing is asked of, and forget what the old ones computed."""
    engine.llm.collective_rpc("reload_weights", kwargs={"weights_path": path})
    engine.reset_caches()


def busy_share(row: dict[str, Any]) -> float:
    """The share of the time, from the first prompt asked to the last reply, in which the engine worked."""
    return row["working_s"] / row["seconds"]


def nudged(path: str, folder: pathlib.Path) -> str:
    """A model's folder in which some weights, those of its smallest file, are a little different, as after a round of training."""
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    for each in pathlib.Path(path).absolute().iterdir():
        (folder / each.name).symlink_to(each)
    smallest = min(folder.glob("*.safetensors"), key=lambda file: file.stat().st_size)
    tensors, generator = load_file(smallest), torch.Generator().manual_seed(1)
    for name, tensor in tensors.items():
        if tensor.numel() > 1:
            noise = torch.randn(tensor.shape, generator=generator)
            tensors[name] = (tensor.float() + NUDGE * tensor.float().std() * noise).to(tensor.dtype)
    smallest.unlink()
    save_file(tensors, smallest, {"format": "pt"})
    return str(folder)
