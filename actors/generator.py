"""A vLLM engine as a Ray Data actor: examples with decoded clips in, scored responses out.

    rows {example, frames_path} ─► Generator(engine) ─ recipe.respond(engine, examples, clips) ─► rows of Responses

The engine lives in the actor's process; frames are read from the cache there. What a recipe asks is a function handed to
the actor, so that this file knows engines and not methods.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

from vidalign import files
from vidalign.config import ModelConfig
from vidalign.errors import ModelError
from vidalign.frame_cache import load_clip
from vidalign.types import Example, Response
from vidalign.video import Clip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt to sample `num_responses` replies to. `prompt` is the user's text, before the chat template.

    `prefix` is how the reply begins: it is continued and is not part of the completion.
    """

    prompt: str
    clip: Clip
    seed: int
    temperature: float
    top_p: float
    max_new_tokens: int
    num_responses: int = 1
    prefix: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
    """One sampled reply. `log_probs` are the model's own, before temperature and top-p."""

    text: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: str
    prompt_token_ids: tuple[int, ...]


class Engine:
    """vLLM for videos already decoded and sampled: no processor samples the frames again.

    Raises:
        ModelError: vLLM cannot serve the model folder.
    """

    def __init__(
        self, model: ModelConfig, path: str, *, num_gpus: int, seed: int, engine_args: dict[str, Any] | None = None
    ) -> None:
        for name, value in engine_environment(num_gpus).items():
            os.environ.setdefault(name, value)
        import vllm

        from vidalign.rendering import load_processor

        options: dict[str, Any] = {
            "dtype": model.dtype,
            "max_model_len": model.max_model_len,
            "trust_remote_code": model.trust_remote_code,
            "limit_mm_per_prompt": {"video": 1, "image": 0},
            "seed": seed,
            "enforce_eager": num_gpus == 0,
            "disable_log_stats": True,
        }
        if num_gpus == 0:
            # A prompt split over two steps rewinds its seeded generator, which torch's CPU generator cannot do.
            options |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(model.max_model_len, 4096)}
        if num_gpus > 1:
            options["tensor_parallel_size"] = num_gpus
        self.path = path
        self.max_model_len = model.max_model_len
        self._processor = load_processor(path, trust_remote_code=model.trust_remote_code)
        try:
            self._llm = vllm.LLM(model=path, **{**options, **(engine_args or {})})
        except (ValueError, RuntimeError, OSError, KeyError) as error:
            raise ModelError(f"vLLM cannot serve {path}: {' '.join(str(error).split())[:600]}") from error

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Sample every request; the result is in the order of `requests`, one list of `num_responses` each."""
        import vllm

        from vidalign.rendering import prompt_text

        params = [
            vllm.SamplingParams(
                n=request.num_responses,
                temperature=request.temperature,
                top_p=request.top_p,
                max_tokens=request.max_new_tokens,
                seed=request.seed,
                logprobs=0,
            )
            for request in requests
        ]
        inputs = [
            {
                "prompt": prompt_text(self._processor, request.prompt) + request.prefix,
                "multi_modal_data": {"video": [(request.clip.frames, request.clip.metadata())]},
            }
            for request in requests
        ]
        return [
            [
                Completion(
                    text=part.text,
                    token_ids=tuple(part.token_ids),
                    log_probs=tuple(step[token].logprob for token, step in zip(part.token_ids, part.logprobs, strict=True)),
                    finish_reason=str(part.finish_reason),
                    prompt_token_ids=tuple(output.prompt_token_ids or ()),
                )
                for part in sorted(output.outputs, key=lambda part: part.index)
            ]
            for output in self._run(inputs, params)
        ]

    def score(self, rows: Sequence[tuple[str, Clip, str]]) -> list[tuple[float, ...]]:
        """Log-probs of given replies, their end-of-turn token included, for rows (prompt, clip, reply)."""
        import vllm

        from vidalign.rendering import prompt_text, response_ids

        tokenizer = self._processor.tokenizer
        inputs, lengths = [], []
        for prompt, clip, reply in rows:
            reply_ids = response_ids(self._processor, reply)
            prompt_ids = tokenizer(prompt_text(self._processor, prompt), add_special_tokens=False)["input_ids"]
            lengths.append(len(reply_ids))
            inputs.append(
                {
                    "prompt_token_ids": [*prompt_ids, *reply_ids],
                    "multi_modal_data": {"video": [(clip.frames, clip.metadata())]},
                }
            )
        params = vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        scores = []
        for output, length in zip(self._run(inputs, params), lengths, strict=True):
            ids = output.prompt_token_ids[-length:]
            steps = output.prompt_logprobs[-length:]
            scores.append(tuple(step[token].logprob for token, step in zip(ids, steps, strict=True)))
        return scores

    def num_tokens(self, text: str) -> int:
        """Tokens of a text by itself, without any that a template adds."""
        return len(self._processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _run(self, inputs: list[Any], params: Any) -> list[Any]:
        from vllm.exceptions import VLLMValidationError

        try:
            return self._llm.generate(inputs, params, use_tqdm=False)
        except (VLLMValidationError, ValueError) as error:
            raise ModelError(
                f"vLLM refused a prompt at max_model_len={self.max_model_len:,}: {' '.join(str(error).split())[:400]}. "
                "Lower video.num_frames, the frame size or recipe.max_new_tokens, or raise model.max_model_len"
            ) from error


def engine_environment(num_gpus: int) -> dict[str, str]:
    """Environment that an engine's process needs before vLLM is imported."""
    shared = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}
    if num_gpus:
        return shared
    return {**shared, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


class Respond(Protocol):
    """What a recipe does with an engine: sample and score every response to a chunk of examples."""

    def __call__(self, engine: Engine, examples: list[Example], clips: list[Clip]) -> list[Response]: ...


class Generator:
    """Ray Data actor: one chunk of examples a call; its responses are on disk before it returns.

    A chunk is finished when its JSON file, written last, exists. The engine starts with the first chunk, so that its errors
    reach the driver as they are.
    """

    def __init__(
        self,
        model: dict[str, Any],
        path: str,
        num_gpus: int,
        seed: int,
        engine_args: dict[str, Any],
        respond: Respond,
        parts: str,
    ) -> None:
        self._start = lambda: Engine(ModelConfig(**model), path, num_gpus=num_gpus, seed=seed, engine_args=engine_args)
        self._engine: Engine | None = None
        self._respond = respond
        self._parts = pathlib.Path(parts)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Batch columns: chunk (int, constant), example (JSON of an Example), and those of `vidalign.decode_child.DecodedVideo`."""
        if self._engine is None:
            self._engine = self._start()
        chunk = int(batch["chunk"][0])
        usable = [
            (Example.from_row(json.loads(row)), load_clip(frames))
            for row, frames in zip(batch["example"], batch["frames_path"], strict=True)
            if frames
        ]
        responses = self._respond(self._engine, [e for e, _ in usable], [c for _, c in usable]) if usable else []
        files.write_table(part_path(self._parts, chunk).with_suffix(".parquet"), responses)
        decoded = [
            {"video": str(video), "frames_path": str(frames), "reason": str(reason), "message": str(message)}
            for video, frames, reason, message in zip(
                batch["video"], batch["frames_path"], batch["reason"], batch["message"], strict=True
            )
        ]
        files.write_json(part_path(self._parts, chunk), {"decoded": decoded, "num_responses": len(responses)})
        return {"chunk": [chunk], "num_examples": [len(decoded)]}


def part_path(parts: pathlib.Path, chunk: int) -> pathlib.Path:
    """The JSON file that says a chunk is finished; its responses are beside it in the .parquet file of the same name."""
    return parts / f"{chunk:06d}.json"
