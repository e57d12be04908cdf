"""The recipe sections of a configuration: how responses are made, judged, paired and filtered. See `vidalign.config.run`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

import pydantic

from vidalign import prompts
from vidalign.config.section import Section
from vidalign.errors import ConfigError
from vidalign.plugins import resolve
from vidalign.special_tokens import KNOWN_ONLY, MEDIA, why


def plain_text(template: str) -> str:
    """A prompt's template as it is. Raises `ValueError` for one that holds special tokens, or a tag for the video."""
    if found := KNOWN_ONLY.found(template) or MEDIA.findall(template):
        raise ValueError(
            f"{why(found)}; write the plain text: the model's chat template adds its own tokens, and puts the video before the text"
        )
    return template


class AugmentConfig(Section):
    """How the video of a rejected response is degraded. Defaults: LeanPO, arXiv 2506.05260."""

    crop_scale: tuple[float, float] = (0.08, 0.3)
    brightness: float = pydantic.Field(0.4, ge=0)
    contrast: float = pydantic.Field(0.4, ge=0)
    saturation: float = pydantic.Field(0.2, ge=0)
    hue: float = pydantic.Field(0.1, ge=0, le=0.5)
    jitter_probability: float = pydantic.Field(0.8, ge=0, le=1)
    grayscale_probability: float = pydantic.Field(0.2, ge=0, le=1)
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_probability: float = pydantic.Field(0.5, ge=0, le=1)
    flip_probability: float = pydantic.Field(0.5, ge=0, le=1)
    num_frames: int = pydantic.Field(2, ge=2)

    @pydantic.model_validator(mode="after")
    def _ranges(self) -> AugmentConfig:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale is [low, high] with 0 < low <= high <= 1 (shares of the area), got {[low, high]}")
        low, high = self.blur_sigma
        if not 0 <= low <= high:
            raise ValueError(f"blur_sigma is [low, high] with 0 <= low <= high (pixels), got {[low, high]}")
        return self


class JudgeConfig(Section):
    """The text model that scores responses 1-5 at temperature 0 (`actors/judge.py`).

    kind "vllm": `model` is a model folder, in an engine of its own with `num_gpus`, `dtype`, `max_model_len`. kind "openai":
    `model` is a name at the OpenAI-compatible endpoint `base_url`, whose key is in the environment variable `api_key_env`.
    """

    NEUTRAL: ClassVar[frozenset[str]] = frozenset({"api_key_env", "concurrency", "timeout_s", "max_retries", "num_gpus"})

    kind: Literal["openai", "vllm"]
    model: str
    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = pydantic.Field(16, ge=1)
    timeout_s: float = pydantic.Field(120.0, gt=0)
    max_retries: int = pydantic.Field(4, ge=0)
    num_gpus: int = pydantic.Field(1, ge=0)
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    max_model_len: int = pydantic.Field(4096, ge=16)
    engine_args: dict[str, Any] = {}
    prompt: str = prompts.JUDGE
    max_response_chars: int = pydantic.Field(2000, ge=1)
    max_new_tokens: int = pydantic.Field(256, ge=1)

    _no_special_tokens = pydantic.field_validator("prompt")(plain_text)

    @pydantic.model_validator(mode="after")
    def _can_be_asked(self) -> JudgeConfig:
        if self.kind == "openai" and not self.base_url:
            raise ValueError("kind=openai needs base_url, for example http://127.0.0.1:8000/v1; or set kind=vllm")
        if missing := prompts.missing_fields(self.prompt):
            raise ValueError(f"prompt must contain {', '.join(f'{{{name}}}' for name in missing)}, got {self.prompt[:80]!r}")
        return self


class PerturbConfig(Section):
    """How a video is perturbed to make RRPO's policy answer wrongly (arXiv 2504.12083).

    One square masks the centre of every frame, and frames change places: all of them ("global"), or only within `num_segments`
    equal parts ("local").
    """

    mask_area: tuple[float, float] | None = (0.25, 0.5)
    shuffle: Literal["none", "local", "global"] = "local"
    num_segments: int = pydantic.Field(4, ge=1)

    @pydantic.model_validator(mode="after")
    def _does_something(self) -> PerturbConfig:
        if self.mask_area is not None:
            low, high = self.mask_area
            if not 0 < low <= high < 1:
                raise ValueError(
                    f"mask_area is [low, high] with 0 < low <= high < 1 (shares of the area), got {[low, high]}"
                )
        elif self.shuffle == "none":
            raise ValueError("mask_area=null and shuffle=none leave the video unchanged; set at least one of the two")
        return self


class LintConfig(Section):
    """What counts as an artefact in pairs (`vidalign/recipes/lint.py`), and which pairs are dropped for it.

    By default artefacts are only reported.
    """

    word_ratio: float = pydantic.Field(5.0, gt=1)
    min_count: int = pydantic.Field(8, ge=1)
    max_longer_share: float = pydantic.Field(0.75, ge=0.5, le=1)
    drop_tell_tales: bool = False
    max_length_ratio: float | None = pydantic.Field(None, ge=1)
    max_duplicates: int | None = pydantic.Field(None, ge=1)


class RecipeSection(Section):
    """What all recipes share: the prompt without hints, which training, scoring and evaluation use too, and how options are shown.

    A row's `options` are put after its question by `options_prompt`, one per line, with letters or as their texts alone, unless the
    question lists them already.
    """

    PAIRING: ClassVar[frozenset[str]] = frozenset({"lint"})  # options that affect the pairs but not the responses
    # What they change is in the questions themselves, which stages hash with the data.
    NEUTRAL: ClassVar[frozenset[str]] = frozenset({"options_prompt", "options_style"})

    name: str
    plain_prompt: str = prompts.PLAIN
    lint: LintConfig = LintConfig()  # type: ignore[call-arg]
    options_prompt: str = prompts.OPTIONS
    options_style: prompts.OptionsStyle = "letters"

    @pydantic.field_validator("*")
    @classmethod
    def _no_special_tokens(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        return plain_text(value) if isinstance(value, str) and str(info.field_name).endswith("_prompt") else value

    @pydantic.model_validator(mode="after")
    def _placeholders(self) -> Self:
        for key, names in prompts.PLACEHOLDERS.items():
            template = getattr(self, key, None)
            for name in names:
                if template is not None and name not in template:
                    raise ValueError(f"{key} must contain {name}, got {template!r}")
        return self


class SamplingSection(RecipeSection):
    """How many responses a recipe samples, and how."""

    num_candidates: int = pydantic.Field(4, ge=1)
    temperature: float = pydantic.Field(1.0, ge=0)
    top_p: float = pydantic.Field(0.9, gt=0, le=1)
    max_new_tokens: int = pydantic.Field(256, ge=1)


class LeanpoRecipe(SamplingSection):
    """LeanPO: hints and reflection for the chosen side, augmented videos for the rejected one. Defaults: arXiv 2506.05260.

    Without `hints`, the first turn uses `plain_prompt` like everything else: the paper's ablation. `negatives` "replayed" takes
    ground truths with one segment resampled by the policy (`vidalign/recipes/replay.py`) and keeps up to `replay_buffer` of them
    for later rounds; "both" lets them compete with the augmented ones.
    """

    PAIRING: ClassVar[frozenset[str]] = frozenset({"pair_rule", "min_trust_gap", "replay_buffer", "lint"})

    name: Literal["leanpo"] = "leanpo"
    hints: bool = True
    num_turns: int = pydantic.Field(2, ge=1)
    rejected_top_p: float = pydantic.Field(1.0, gt=0, le=1)
    negatives: Literal["augmented", "replayed", "both"] = "augmented"
    replay_max_tokens: int = pydantic.Field(256, ge=1)
    replay_buffer: int = pydantic.Field(2000, ge=1)
    pair_rule: Literal["best_vs_worst", "hinted_vs_augmented"] = "best_vs_worst"
    min_trust_gap: float = pydantic.Field(0.1, ge=0, le=1)
    hint_prompt: str = prompts.HINT
    reflect_prompt: str = prompts.REFLECT
    augment: AugmentConfig = AugmentConfig()


class RrpoRecipe(SamplingSection):
    """RRPO: wrong responses to a perturbed video against the ground truth, differing in marked phrases (arXiv 2504.12083).

    A response is wrong by its trust (at most `max_trust`) or by the judge's score (below `threshold`). `rewrite` "none" takes the
    wrong response unchanged; "policy" and "judge" have that model list what the response gets wrong and swap only that into the
    ground truth, and a rewrite that differs anywhere else is dropped.
    """

    PAIRING: ClassVar[frozenset[str]] = frozenset({"wrong_by", "threshold", "judge", "lint"})

    name: Literal["rrpo"] = "rrpo"
    perturb: PerturbConfig = PerturbConfig()  # type: ignore[call-arg]
    wrong_by: Literal["trust", "judge"] = "trust"
    max_trust: float = pydantic.Field(0.999, ge=0, lt=1)
    threshold: float = pydantic.Field(3.0, gt=1, le=5)
    rewrite: Literal["none", "policy", "judge"] = "none"
    differences_prompt: str = prompts.DIFFERENCES
    rewrite_prompt: str = prompts.REWRITE
    judge: JudgeConfig | None = None

    @pydantic.model_validator(mode="after")
    def _judge_is_there_and_asked(self) -> RrpoRecipe:
        if "judge" in (self.wrong_by, self.rewrite) and self.judge is None:
            raise ValueError(
                f"wrong_by={self.wrong_by} and rewrite={self.rewrite} need recipe.judge, a text model (kind, model); "
                "or set wrong_by to trust and rewrite to policy or none"
            )
        if "judge" not in (self.wrong_by, self.rewrite) and self.judge is not None:
            raise ValueError(
                "recipe.judge is set but nothing uses it; set wrong_by or rewrite to judge, or remove recipe.judge"
            )
        if self.wrong_by == "judge" and self.rewrite == "policy":
            raise ValueError(
                "wrong_by=judge decides after the policy's rollout, too late for rewrite=policy; set rewrite to judge or none"
            )
        return self


class HoundRecipe(SamplingSection):
    """LLaVA-Hound: the policy's own samples, scored 1-5 by a judge that reads a caption in place of the video (arXiv 2404.01258).

    Captions come from the data rows ("data": field `caption`) or from the policy ("policy"). The chosen response scores at
    least `threshold`, the rejected one scores less, and the two are at least `min_score_gap` apart.
    """

    PAIRING: ClassVar[frozenset[str]] = frozenset({"judge", "threshold", "min_score_gap", "lint"})

    name: Literal["hound"] = "hound"
    top_p: float = pydantic.Field(0.95, gt=0, le=1)
    captions: Literal["data", "policy"] = "data"
    caption_prompt: str = prompts.CAPTION
    threshold: float = pydantic.Field(3.0, gt=1, le=5)
    min_score_gap: float = pydantic.Field(1.0, gt=0, le=4)
    judge: JudgeConfig


class GivenRecipe(RecipeSection):
    """No rollout: data.train already holds pairs (rows with chosen and rejected), or examples for objective sft."""

    name: Literal["given"] = "given"


RECIPES: dict[str, type[RecipeSection]] = {
    "leanpo": LeanpoRecipe,
    "rrpo": RrpoRecipe,
    "hound": HoundRecipe,
    "given": GivenRecipe,
}
ELSEWHERE = "elsewhere"  # tag of a recipe that is named as package.module:attribute


def section_of(name: str) -> type[RecipeSection]:
    """The section class of a recipe, by its name in `RECIPES` or as "package.module:attribute".

    Raises:
        ConfigError: there is no such recipe, or the attribute is not a recipe.
    """
    if name in RECIPES:
        return RECIPES[name]
    kind = resolve(name, RECIPES, what="recipe.name")
    section = getattr(kind, "Config", None)
    if not (isinstance(section, type) and issubclass(section, RecipeSection)):
        raise ConfigError(
            f"recipe.name={name!r} is not a recipe; name a subclass of vidalign.recipes.base.Recipe whose Config is a "
            "subclass of vidalign.config.recipes.RecipeSection"
        )
    return section


def _elsewhere(value: Any) -> RecipeSection:
    return section_of(value["name"]).model_validate(value) if isinstance(value, dict) else value


def _tag(value: Any) -> str:
    name = value.get("name", "leanpo") if isinstance(value, dict) else value.name
    return ELSEWHERE if ":" in str(name) else name


RecipeConfig = Annotated[
    Annotated[LeanpoRecipe, pydantic.Tag("leanpo")]
    | Annotated[RrpoRecipe, pydantic.Tag("rrpo")]
    | Annotated[HoundRecipe, pydantic.Tag("hound")]
    | Annotated[GivenRecipe, pydantic.Tag("given")]
    | Annotated[pydantic.SerializeAsAny[RecipeSection], pydantic.BeforeValidator(_elsewhere), pydantic.Tag(ELSEWHERE)],
    pydantic.Discriminator(_tag),
]
