"""Who says whether a reply is right: the names of scorers, and the model that judges where no rule can.

A scorer is a name of `SCORERS`, or `package.module:attribute` for one of your own (`vidalign.data.scorers`).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import pydantic

from vidalign import prompts
from vidalign.config.section import Section
from vidalign.config.texts import check_spelling, plain_text
from vidalign.errors import ConfigError
from vidalign.plugins import resolve

SCORERS = ("exact", "f1", "judge")
JUDGES = ("openai", "vllm", "policy")


def check_scorer(name: str | None, key: str) -> None:
    """Raises `ConfigError` for a scorer that does not exist or cannot be called. `key`: the option that names it."""
    if name is None or name in SCORERS:
        return
    if not callable(resolve(name, dict.fromkeys(SCORERS), what=key)):
        raise ConfigError(f"{key}={name!r} cannot be called; name a function (reply, example) -> score in [0, 1], or None")


class JudgeConfig(Section):
    """The model that scores responses 1-5 at temperature 0 (`actors/judge.py`).

    kind "vllm": `model` is a model folder, in an engine of its own with `num_gpus`, `dtype`, `max_model_len`. kind "openai":
    `model` is a name at the OpenAI-compatible endpoint `base_url`, whose key is in the environment variable `api_key_env`. kind
    "policy": the policy itself, as the round (or, in evaluation, the run) starts with it. `package.module:attribute`: a judge of your
    own, a function of this section that returns a chat: conversations -> the next reply to each (`vidalign.recipes.judging.Chat`).

    `sees`: what the judge is shown beside the texts. "caption": a caption in place of the video. "video": the video; an endpoint
    gets it as one `video_url`, an engine gets the frames that the policy sees, a judge of your own gets its name. "frames": an
    endpoint gets those frames as images.
    """

    NEUTRAL: ClassVar[frozenset[str]] = frozenset({"api_key_env", "concurrency", "timeout_s", "max_retries", "num_gpus"})
    LATER: ClassVar[frozenset[str]] = frozenset({"sees"})

    kind: str
    """An engine of its own (vllm), an OpenAI endpoint (openai), the policy itself (policy), or `package.module:attribute`."""
    model: str = ""
    """Folder of the judge's model, or its name at the endpoint."""
    sees: Literal["caption", "video", "frames"] = "caption"
    """What the judge is shown beside the texts."""
    base_url: str | None = None
    """Address of the endpoint."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the endpoint's key."""
    concurrency: int = pydantic.Field(16, ge=1)
    """Requests in flight."""
    timeout_s: float = pydantic.Field(120.0, gt=0)
    """How long one reply may take."""
    max_retries: int = pydantic.Field(4, ge=0)
    """How often a request is tried again."""
    num_gpus: int = pydantic.Field(1, ge=0)
    """GPUs of the judge's engine."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Type of the judge's weights."""
    max_model_len: int = pydantic.Field(4096, ge=16)
    """The judge's longest context in tokens."""
    engine_args: dict[str, Any] = {}
    """Arguments of `vllm.LLM`, passed as they are."""
    prompt: str = prompts.JUDGE
    """Template of what the judge is asked."""
    max_response_chars: int = pydantic.Field(2000, ge=1)
    """Longer responses are cut for the judge, in characters: their end, or that of the reasoning before their answer."""
    max_new_tokens: int = pydantic.Field(256, ge=1)
    """Most tokens of its reply."""

    _no_special_tokens = pydantic.field_validator("prompt")(plain_text)

    @pydantic.field_validator("kind")
    @classmethod
    def _is_a_judge(cls, name: str) -> str:
        if name not in JUDGES and not callable(resolve(name, dict.fromkeys(JUDGES), what="judge.kind")):
            raise ConfigError(f"judge.kind={name!r} cannot be called; name a function (judge's section) -> chat")
        return name

    @pydantic.model_validator(mode="before")
    @classmethod
    def _prompt_of_what_it_sees(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("sees", "caption") != "caption" and "prompt" not in values:
            return {**values, "prompt": prompts.JUDGE_SEEING}
        return values

    @pydantic.model_validator(mode="after")
    def _can_be_asked(self) -> JudgeConfig:
        if self.kind == "openai" and not self.base_url:
            raise ValueError("kind=openai needs base_url, for example http://127.0.0.1:8000/v1; or set kind=vllm")
        if not self.is_own and (self.kind == "policy") == bool(self.model):
            raise ValueError(
                f"kind={self.kind} with model={self.model!r}: kinds openai and vllm need a model, and kind=policy names none, "
                "because the policy judges; set model, or change kind"
            )
        if self.kind == "policy" and self.sees != "video":
            raise ValueError(f"kind=policy judges by the video; set sees to video instead of {self.sees}")
        if self.kind == "vllm" and self.sees == "frames":
            raise ValueError("kind=vllm takes the frames as a video; set sees to video instead of frames")
        if self.is_own and self.sees == "frames":
            raise ValueError(
                f"kind={self.kind} is given the names of videos, not their frames; set sees to video or caption"
            )
        needed = [name for name in prompts.missing_fields(self.prompt) if name != "caption" or not self.sees_video]
        if needed:
            raise ValueError(f"prompt must contain {', '.join(f'{{{name}}}' for name in needed)}, got {self.prompt[:80]!r}")
        check_spelling("prompt", self.prompt, prompts.JUDGE_FIELDS)
        return self

    @property
    def is_own(self) -> bool:
        """Whether it is a judge of the user's own, named by its place."""
        return ":" in self.kind

    @property
    def sees_video(self) -> bool:
        """Whether the judge is shown the video or its frames."""
        return self.sees != "caption"

    @property
    def needs_frames(self) -> bool:
        """Whether the frames that the policy sees must be there for this judge; others read the video themselves."""
        return self.sees == "frames" or (self.sees_video and self.kind in ("vllm", "policy"))

    @property
    def reads_caption(self) -> bool:
        """Whether the prompt quotes a caption."""
        return "{caption}" in self.prompt


class ScoringSection(Section):
    """Who says which answers are right.

    `scorer` (`vidalign.data.scorers`): null by the rules of the answer's kind, "exact", "f1", "judge", or `package.module:attribute`.
    What it cannot tell goes to `judge`, if there is one, and is otherwise counted apart. An answer is right from `min_score` in
    [0, 1] on, and by the judge from `threshold` on, of 1-5. The judge also scores replies to suites' questions that only a judge can.
    """

    scorer: str | None = None
    """Who says what is right: null (rules), exact, f1, judge, or `package.module:attribute`."""
    judge: JudgeConfig | None = None
    """The model that scores what rules cannot."""
    threshold: float = pydantic.Field(3.0, gt=1, le=5)
    """An answer is right from this score of the judge on, of 1 to 5."""
    min_score: float = pydantic.Field(0.5, gt=0, le=1)
    """An answer is right from this score in [0, 1] on."""

    @pydantic.field_validator("scorer")
    @classmethod
    def _is_a_scorer(cls, name: str | None) -> str | None:
        check_scorer(name, "evaluate.scorer")
        return name

    @pydantic.model_validator(mode="after")
    def _scoring_fits(self) -> Self:
        fields = ScoringSection.model_fields
        if self.scorer == "judge" and self.judge is None:
            raise ValueError(
                "scorer=judge needs evaluate.judge, a model that judges (kind, model); or set scorer to null or f1"
            )
        if self.judge is not None and self.scorer in ("exact", "f1"):
            raise ValueError(
                f"evaluate.judge is set but scorer={self.scorer} leaves it nothing to judge; set scorer to null (the judge scores "
                "what no rule can) or to judge (it scores everything), or remove evaluate.judge"
            )
        if self.judge is None and self.threshold != fields["threshold"].default:
            raise ValueError(
                f"threshold={self.threshold:g} is a judge's score, and there is no evaluate.judge; set it, or leave threshold out"
            )
        if self.scorer in (None, "exact", "judge") and self.min_score != fields["min_score"].default:
            raise ValueError(
                f"min_score={self.min_score:g} is for scores between right and wrong, which scorer={self.scorer or 'null'} does not "
                "give; set scorer to f1 or to one of your own, or leave min_score out"
            )
        return self
