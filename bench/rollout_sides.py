"""The sides of `bench.rollout` that run in one process: ours and bare vLLM on one engine, and Hugging Face."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from actors.engine import VllmEngine
from bench.built_in import MAX_NEW_TOKENS, MODEL
from bench.rollout_recipe import TEMPERATURE, TOP_P, hint, reflect, winners
from bench.turns import take_turns
from vidalign.config.run import ModelConfig
from vidalign.model.policy import load_policy
from vidalign.model.rendering import load_processor, prompt_text
from vidalign.recipes.sampling import request_seed
from vidalign.types import Example, FrameSpec
from vidalign.video.clip import Clip
from vidalign.video.decoding import decode

HF_BATCH = 64  # sequences


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


class Ours:
    """The recipe on `VllmEngine`."""

    def __init__(self, engine: VllmEngine, examples: list[Example], clips: list[Clip]) -> None:
        self.engine, self.examples, self.clips = engine, examples, clips

    def __call__(self, num_candidates: int) -> int:
        self.engine.reset_caches()
        recipe = winners(num_candidates)
        found = recipe.respond(self.engine, self.examples, self.clips, policy_version="bench", seed=0)
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
            return vllm.SamplingParams(
                n=n, temperature=TEMPERATURE, top_p=TOP_P, max_tokens=MAX_NEW_TOKENS, seed=seed, logprobs=0
            )

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
                    temperature=TEMPERATURE,
                    top_p=TOP_P,
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


def in_process(
    rounds: int,
    counts: list[int],
    examples: list[Example],
    settings: Sequence[Setting],
    larger: ModelConfig,
    *,
    warm_up: int = 1,
) -> dict[str, Any]:
    """Seconds of ours, bare and Hugging Face by setting and number of candidates, and what starting took."""
    models = {"built-in": MODEL, "36M": larger}
    starts: dict[str, float] = {}
    rows = []
    computed = CountedTokens()
    engine: VllmEngine | None = None
    for setting in settings:
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
        sides: dict[str, Callable[[int], int]] = {
            "ours": Ours(engine, asked, clips),
            "bare": Bare(engine, asked, clips),
            "hugging_face": hugging_face,
        }
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
            asked_of = {name: functools.partial(ask, name, side, row, computed) for name, side in sides.items()}
            seconds = take_turns(asked_of, rounds, warm_up=warm_up)
            rows.append({**row, "seconds": seconds})
            shown = ", ".join(f"{name} {statistics.median(values):.2f} s" for name, values in seconds.items())
            print(f"{setting}, n={count}: {shown}; tokens {row['tokens']}, computed {row['text_tokens']}", flush=True)
    return {"start_s": starts, "rows": rows}
