"""A vLLM engine as a Ray Data actor: examples with decoded clips in, scored responses out.

    rows {example, frames_path} ─► Generator(engine) ─ recipe.respond(engine, examples, clips) ─► rows of Responses

The engine lives in the actor's process; frames are read from the cache there. What a recipe asks is a function handed to
the actor, so that this file knows engines and not methods.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from vidalign import files
from vidalign.config.run import ModelConfig
from vidalign.errors import ModelError
from vidalign.recipes.engine import Completion, Request, Respond
from vidalign.types import Example, Response
from vidalign.video.clip import Clip
from vidalign.video.frame_cache import load_clip

CPU_BLOCK_SIZE = 32  # tokens; the CPU attention kernels take multiples of it


class VllmEngine:
    """vLLM for videos already decoded and sampled: no processor samples the frames again.

    A prompt is rendered once, however many replies it gets, and a clip is hashed once. vLLM's own caches do the rest:
    what prompts share from their beginning (the video, for most chat templates) and the processed video.

    Raises:
        ModelError: vLLM cannot serve the model folder.
    """

    def __init__(
        self, model: ModelConfig, path: str, *, num_gpus: int, seed: int, engine_args: dict[str, Any] | None = None
    ) -> None:
        for name, value in engine_environment(num_gpus).items():
            os.environ.setdefault(name, value)
        import vllm

        from vidalign.model.rendering import load_processor

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
            # vLLM's 128 leaves short prompts without a whole block, and only whole blocks are found in the prefix cache.
            options["block_size"] = CPU_BLOCK_SIZE
        if num_gpus > 1:
            options["tensor_parallel_size"] = num_gpus
        self.path = path
        self.max_model_len = model.max_model_len
        self._hashes: weakref.WeakKeyDictionary[Clip, str] = weakref.WeakKeyDictionary()
        self._processor = load_processor(path, trust_remote_code=model.trust_remote_code)
        try:
            self._llm = vllm.LLM(model=path, **{**options, **(engine_args or {})})
        except (ValueError, RuntimeError, OSError, KeyError) as error:
            raise ModelError(f"vLLM cannot serve {path}: {' '.join(str(error).split())[:600]}") from error

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Sample every request; the result is in the order of `requests`, one list of `num_responses` each."""
        import vllm
        from vllm.sampling_params import RequestOutputKind

        params = [
            vllm.SamplingParams(
                n=request.num_responses,
                temperature=request.temperature,
                top_p=request.top_p,
                max_tokens=request.max_new_tokens,
                seed=request.seed,
                logprobs=0,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            for request in requests
        ]
        inputs = [_Input(clip=request.clip, prompt=request.prompt, prefix=request.prefix) for request in requests]
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
        from vllm.sampling_params import RequestOutputKind

        from vidalign.model.rendering import response_ids

        replies = [response_ids(self._processor, reply) for _, _, reply in rows]
        inputs = [
            _Input(clip=clip, prompt=prompt, reply_ids=tuple(ids))
            for (prompt, clip, _), ids in zip(rows, replies, strict=True)
        ]
        lengths = [len(ids) for ids in replies]
        # vLLM reads no prefix cache for prompt log-probs, so a score costs its whole prompt; the processed video is cached.
        params = vllm.SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY
        )
        scores = []
        for output, length in zip(self._run(inputs, [params] * len(inputs)), lengths, strict=True):
            ids = output.prompt_token_ids[-length:]
            steps = output.prompt_logprobs[-length:]
            scores.append(tuple(step[token].logprob for token, step in zip(ids, steps, strict=True)))
        return scores

    def num_tokens(self, text: str) -> int:
        """Tokens of a text by itself, without any that a template adds."""
        return len(self._processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def counters(self) -> dict[str, float]:
        """vLLM's counters by name, such as vllm:prefix_cache_hits (tokens). Needs the engine argument disable_log_stats=False."""
        return {metric.name: metric.value for metric in self._llm.get_metrics() if hasattr(metric, "value")}

    def _run(self, inputs: list[_Input], params: list[Any]) -> list[Any]:
        """`LLM.generate` for prompts that may be equal: each distinct one is rendered once."""
        from vllm.exceptions import VLLMValidationError

        engine = self._llm.llm_engine
        render = self._renderer()
        added: list[str] = []
        try:
            for one, chosen in zip(inputs, params, strict=True):
                added.append(engine.add_request(str(next(self._llm.request_counter)), render(one), chosen))
            return self._llm.wait_for_completion(use_tqdm=False)
        except (VLLMValidationError, ValueError) as error:
            engine.abort_request(added, internal=True)
            raise ModelError(
                f"vLLM refused a prompt at max_model_len={self.max_model_len:,}: {' '.join(str(error).split())[:400]}. "
                "Lower video.num_frames, the frame size or recipe.max_new_tokens, or raise model.max_model_len"
            ) from error

    def _hash(self, clip: Clip) -> str:
        """The hash of a clip, computed once while it lives; vLLM would compute one for every prompt."""
        if clip not in self._hashes:
            content = hashlib.blake2b(clip.frames.data, digest_size=16)
            content.update(repr((clip.frames.shape, clip.metadata())).encode())
            self._hashes[clip] = content.hexdigest()
        return self._hashes[clip]

    def _renderer(self) -> Callable[[_Input], Any]:
        """What makes vLLM's input of ours, once for equal ones: clips are equal by identity, texts by content."""
        from vidalign.model.rendering import prompt_text

        text_of = functools.cache(functools.partial(prompt_text, self._processor))

        @functools.cache
        def render(one: _Input) -> Any:
            text = text_of(one.prompt) + one.prefix
            prompt: dict[str, Any] = {"prompt": text}
            if one.reply_ids:
                ids = self._processor.tokenizer(text, add_special_tokens=False)["input_ids"]
                prompt = {"prompt_token_ids": [*ids, *one.reply_ids]}
            video = {
                "multi_modal_data": {"video": [(one.clip.frames, one.clip.metadata())]},
                "multi_modal_uuids": {"video": [self._hash(one.clip)]},
            }
            [rendered] = self._llm.renderer.render_cmpl([{**prompt, **video}])
            return rendered

        return render


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Input:
    """A prompt for the engine: `prefix` begins the reply as text, `reply_ids` are a whole reply to be scored."""

    clip: Clip
    prompt: str
    prefix: str = ""
    reply_ids: tuple[int, ...] = ()


def engine_environment(num_gpus: int) -> dict[str, str]:
    """Environment that an engine's process needs before vLLM is imported."""
    shared = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}
    if num_gpus:
        return shared
    # The model runs eagerly; all that would be compiled is a helper of the log-probs, which delays the first token by 2 s.
    return {**shared, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1"}


class Generator:
    """Ray Data actor: one chunk of examples a call; its responses are on disk before it returns.

    A chunk is finished when its JSON file, written last, exists. The engine starts while the first videos are decoded, in the
    thread that then does all of its work; the first chunk waits for it and raises its errors, which so reach the driver as
    they are. `engine_s` in that file says how long the chunk waited for the engine to start, how long the engine had waited
    for the chunk (after the one before it), and how long it worked on it.
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
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._engine = self._thread.submit(
            VllmEngine, ModelConfig(**model), path, num_gpus=num_gpus, seed=seed, engine_args=engine_args
        )
        self._respond = respond
        self._parts = pathlib.Path(parts)
        self._free_since: float | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Batch columns: chunk (int, constant), example (JSON of an Example), and those of `vidalign.video.decode_child.DecodedVideo`."""
        began = time.monotonic()
        waited = 0.0 if self._free_since is None else began - self._free_since
        engine = self._engine.result()
        started = time.monotonic()
        chunk = int(batch["chunk"][0])
        usable = [
            (Example.from_row(json.loads(row)), load_clip(frames))
            for row, frames in zip(batch["example"], batch["frames_path"], strict=True)
            if frames
        ]
        responses: list[Response] = []
        if usable:
            examples, clips = [example for example, _ in usable], [clip for _, clip in usable]
            responses = self._thread.submit(self._respond, engine, examples, clips).result()
        files.write_table(part_path(self._parts, chunk).with_suffix(".parquet"), responses)
        decoded = [
            {"video": str(video), "frames_path": str(frames), "reason": str(reason), "message": str(message)}
            for video, frames, reason, message in zip(
                batch["video"], batch["frames_path"], batch["reason"], batch["message"], strict=True
            )
        ]
        self._free_since = time.monotonic()
        seconds = {"waiting": waited, "starting": started - began, "working": self._free_since - started}
        files.write_json(
            part_path(self._parts, chunk),
            {"decoded": decoded, "num_responses": len(responses), "engine_s": {k: round(v, 3) for k, v in seconds.items()}},
        )
        return {"chunk": [chunk], "num_examples": [len(decoded)]}


def part_path(parts: pathlib.Path, chunk: int) -> pathlib.Path:
    """The JSON file that says a chunk is finished; its responses are beside it in the .parquet file of the same name."""
    return parts / f"{chunk:06d}.json"
