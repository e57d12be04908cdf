"""`vidalign.recipes.engine.Engine` in vLLM: one policy that samples replies to videos and scores given replies."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from actors.engine_loop import EngineLoop
from cluster.engines import ONE_VIDEO, enter_actor_environment, generator_options, takes_video
from vidalign.config.run import ModelConfig
from vidalign.errors import ModelError
from vidalign.recipes.engine import SPECIAL_TOKEN, Completion, Request
from vidalign.special_tokens import SpecialTokens
from vidalign.video.clip import Clip
from vidalign.video.scene import Scene, Shown, scene_of


class VllmEngine:
    """A vLLM engine in this process, for videos that are already decoded and sampled: no processor samples the frames again.

    A prompt is rendered once, however many replies it gets, and a clip is hashed once. vLLM's own caches do the rest: they hold
    what prompts have in common at their beginning (with most chat templates, the video) and the processed video.

    `path` is the model folder, `llm` is vLLM's own engine. `limits`: how many videos and images a prompt has at most.

    Raises:
        ModelError: vLLM cannot serve the model folder.
    """

    def __init__(
        self,
        model: ModelConfig,
        path: str,
        *,
        num_gpus: int,
        seed: int,
        engine_args: dict[str, Any] | None = None,
        limits: Mapping[str, int] = ONE_VIDEO,
    ) -> None:
        enter_actor_environment(num_gpus)
        import vllm

        from vidalign.model.engine_rules import engine_rules, with_head_dtype
        from vidalign.model.loading import read_config
        from vidalign.model.rendering import cached_processor
        from vidalign.model.turns import turns_of

        self.path = path
        self.max_model_len = model.max_model_len
        self._hashes: weakref.WeakKeyDictionary[Clip, str] = weakref.WeakKeyDictionary()
        self._grids: dict[str, tuple[Any, Any]] = {}  # hash of a clip → its grid, and the seconds that a step of it takes
        self._processor = cached_processor(path, model.trust_remote_code)
        self._tokenizing = threading.Lock()  # a tokenizer may be changed by what uses it
        self._turns = turns_of(self._processor)
        self._compared = False
        config = read_config(path, trust_remote_code=model.trust_remote_code)
        rules = engine_rules(
            self._processor,
            config,
            dtype=model.dtype,
            max_model_len=model.max_model_len,
            on_cpu=num_gpus == 0,
            limits=limits,
        )
        own = {**rules, **(engine_args or {})}
        if own.get("hf_overrides"):
            own["hf_overrides"] = with_head_dtype(own["hf_overrides"], config)
        options = generator_options(model, num_gpus, seed=seed, limits=limits, engine_args=own)
        try:
            self._loop = EngineLoop(functools.partial(vllm.LLM, model=path, **options))
        except Exception as error:  # a model that vLLM cannot load fails in whatever way its code meets first
            raise ModelError(f"vLLM cannot serve {path}: {' '.join(str(error).split())[:600]}") from error
        takes_video(self.llm.llm_engine.model_config, path)

    @property
    def llm(self) -> Any:
        """vLLM's own engine, which belongs to a thread of its own while a call is under way."""
        return self._loop.llm

    def take_seconds(self) -> dict[str, float]:
        """The engine's seconds of "waiting" for prompts and of "working" since this was called before."""
        return self._loop.take_seconds()

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Sample one reply to each request, in the order of `requests`."""
        params = [self.sampling(request) for request in requests]
        inputs = [_Input(shown=request.clip, prompt=request.prompt, prefix=request.prefix) for request in requests]
        return [completion_of(output.outputs[0], self._turns.special) for output in self._run(inputs, params)]

    def sampling(self, request: Request) -> Any:
        """vLLM's parameters for a reply to a request."""
        import vllm
        from vllm.sampling_params import RequestOutputKind

        return vllm.SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            max_tokens=request.max_new_tokens,
            seed=request.seed,
            stop_token_ids=[self._turns.end[-1]],
            logprobs=0,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def score(self, rows: Sequence[tuple[str, Shown, str]], *, anew: bool = False) -> list[tuple[float, ...]]:
        """Log-probs (nats) of given replies, including their end-of-turn token, for rows (prompt, clip, reply).

        vLLM has log-probs only of tokens that it computes, so by default it computes all of them anew. Only those of the reply are
        wanted here: the prompt may come from the cache, and a video with many replies is computed once. `anew`: compute it for each.
        """
        from vidalign.model.rendering import response_ids

        with self._tokenizing:
            replies = [response_ids(self._processor, reply) for _, _, reply in rows]
        inputs = [
            _Input(shown=shown, prompt=prompt, reply_ids=tuple(ids))
            for (prompt, shown, _), ids in zip(rows, replies, strict=True)
        ]
        outputs = self._run(inputs, [_scoring(anew=anew)] * len(inputs))
        again = [place for place, output in enumerate(outputs) if lacks_scores(output, len(replies[place]))]
        fresh = self._run([inputs[place] for place in again], [_scoring(anew=True)] * len(again))
        for place, output in zip(again, fresh, strict=True):
            outputs[place] = output
        scores = []
        for output, reply in zip(outputs, replies, strict=True):
            steps = output.prompt_logprobs[-len(reply) :]
            scores.append(tuple(step[token].logprob for token, step in zip(reply, steps, strict=True)))
        return scores

    def num_tokens(self, text: str) -> int:
        """The number of tokens of a text alone, without any that a template adds."""
        with self._tokenizing:
            return len(self._processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def counters(self) -> dict[str, float]:
        """vLLM's counters by name, such as vllm:prefix_cache_hits (tokens). Needs the engine argument disable_log_stats=False."""
        return {metric.name: metric.value for metric in self.llm.get_metrics() if hasattr(metric, "value")}

    def reset_caches(self) -> None:
        """Empty vLLM's caches of prompts, processed videos and video features, so that a measurement starts cold."""
        self.llm.reset_prefix_cache()
        self.llm.llm_engine.reset_mm_cache()
        self.llm.llm_engine.reset_encoder_cache()

    def _run(self, inputs: list[_Input], params: list[Any]) -> list[Any]:
        """`LLM.generate` for prompts that may be equal: each distinct one is rendered once."""
        from vllm.exceptions import VLLMValidationError

        render = self._renderer()

        def rendered(one: _Input, max_new_tokens: int) -> Any:
            made = render(one)
            if not (self._compared or one.prefix or one.reply_ids):
                self._compare(one, made)
            self._check_positions(scene_of(one.shown), made, max_new_tokens)
            return made

        prompts = [functools.partial(rendered, one, chosen.max_tokens) for one, chosen in zip(inputs, params, strict=True)]
        try:
            return self._loop.run(prompts, params)
        except (VLLMValidationError, ValueError) as error:
            raise ModelError(
                f"vLLM refused a prompt at max_model_len={self.max_model_len:,}: {' '.join(str(error).split())[:400]}. "
                "Lower video.num_frames, the frame size or recipe.max_new_tokens, or raise model.max_model_len"
            ) from error

    def _compare(self, one: _Input, made: Any) -> None:
        """Raise `ModelError` if vLLM generates from another prompt than training sees. Done once, for the first plain prompt."""
        from vidalign.model.rendering import difference, render_prompt

        ids = made["prompt_token_ids"]
        visual = [False] * len(ids)
        for place in (place for places in made["mm_placeholders"].values() for place in places):
            embedded = [True] * place.length if place.is_embed is None else place.is_embed.tolist()
            visual[place.offset : place.offset + place.length] = embedded
        with self._tokenizing:
            trained = render_prompt(self._processor, one.prompt, one.shown).tokens["input_ids"].tolist()
        if found := difference(self._processor, trained, ids, visual):
            raise ModelError(
                f"training would not see the prompts that {self.path} replies to in vLLM: {found}. docs/models.md lists the families "
                "of which both see the same"
            )
        if one.prefix or one.reply_ids:  # then this rendering is not sent, but vLLM would take its videos for sent
            self.llm.llm_engine.reset_mm_cache()
        self._compared = True

    def _check_positions(self, scene: Scene, rendered: Any, max_new_tokens: int) -> None:
        """Raise `ModelError` for a rendered prompt whose positions run out of vLLM's table. Only videos count time."""
        from vidalign.model.positions import check_positions

        processed = rendered.get("mm_kwargs", {}).get("video") or []
        for clip, video in zip(scene.videos, processed, strict=False):
            if video is not None:  # vLLM leaves out what it has processed before
                data = video.get_data()
                self._grids[self._hash(clip)] = data.get("video_grid_thw"), data.get("second_per_grid_ts")
        known = [self._grids.get(self._hash(clip), (None, None)) for clip in scene.videos]
        timed = [(grid, seconds) for grid, seconds in known if grid is not None]
        check_positions(
            self.llm.llm_engine.model_config.hf_config,
            num_tokens=len(rendered["prompt_token_ids"]),
            max_new_tokens=max_new_tokens,
            grids=[grid.flatten().tolist() for grid, _ in timed],
            seconds_per_grid=None
            if any(seconds is None for _, seconds in timed)
            else [float(seconds) for _, seconds in timed],
        )

    def _hash(self, clip: Clip) -> str:
        """The hash of a clip, computed once per clip; vLLM would compute it for every prompt."""
        if clip not in self._hashes:
            content = hashlib.blake2b(clip.frames.data, digest_size=16)
            content.update(repr((clip.frames.shape, clip.metadata())).encode())
            self._hashes[clip] = content.hexdigest()
        return self._hashes[clip]

    def _renderer(self) -> Callable[[_Input], Any]:
        """A function that turns our input into vLLM's, once for equal inputs: clips are equal by identity, texts by content."""
        from vidalign.model.rendering import image, prompt_ids

        ids_of = functools.cache(functools.partial(prompt_ids, self._processor))

        @functools.cache
        def render(one: _Input) -> Any:
            scene = scene_of(one.shown)
            with self._tokenizing:
                ids = ids_of(one.prompt, one.prefix, scene.context)
            data: dict[str, list[Any]] = {}
            uuids: dict[str, list[str]] = {}
            if scene.videos:
                data["video"] = [(clip.frames, clip.metadata()) for clip in scene.videos]
                uuids["video"] = [self._hash(clip) for clip in scene.videos]
            if scene.images:
                data["image"] = [image(clip) for clip in scene.images]
                uuids["image"] = [f"image-{self._hash(clip)}" for clip in scene.images]
            tokens = [*ids, *one.reply_ids]  # text would be given a second bos
            prompt = {"prompt_token_ids": tokens, "multi_modal_data": data, "multi_modal_uuids": uuids}
            [rendered] = self.llm.renderer.render_cmpl([prompt])
            return rendered

        return render


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Input:
    """A prompt for the engine. `prefix` is the beginning of the reply as text; `reply_ids` is a whole reply to be scored."""

    shown: Shown
    prompt: str
    prefix: str = ""
    reply_ids: tuple[int, ...] = ()


def _scoring(*, anew: bool) -> Any:
    """vLLM's parameters for log-probs of a prompt's last tokens; `anew`: none of it comes from the cache of prompts."""
    import vllm
    from vllm.sampling_params import RequestOutputKind

    return vllm.SamplingParams(
        max_tokens=1,
        temperature=0.0,
        prompt_logprobs=0,
        detokenize=False,  # what vLLM reports of cached tokens is not even a token
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_reading_prefix_cache=anew,
    )


def lacks_scores(output: Any, length: int) -> bool:
    """Whether a log-prob of a prompt's last `length` tokens is missing, that of their first comes from the token before.

    A beginning of the reply was in the cache, because this reply or one that begins alike was seen before; or the request made way for
    others between two parts of its prompt, of which vLLM then forgets the first.
    """
    steps = output.prompt_logprobs[-length:]
    cached = (output.num_cached_tokens or 0) >= len(output.prompt_token_ids) - length
    return cached or len(steps) < length or steps[0] is None


def completion_of(reply: Any, special: SpecialTokens) -> Completion:
    """vLLM's reply as a `Completion`. What spells out special tokens is taken out of its text, and its finish reason says so."""
    steps = zip(reply.token_ids, reply.logprobs, strict=True)
    spelled = bool(special.found(reply.text))
    return Completion(
        text=special.without(reply.text) if spelled else reply.text,
        token_ids=tuple(reply.token_ids),
        log_probs=tuple(step[token].logprob for token, step in steps),
        finish_reason=SPECIAL_TOKEN if spelled else str(reply.finish_reason),
    )
