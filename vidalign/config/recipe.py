"""What the recipe sections of a configuration have in common. See `vidalign.config.recipes`."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import pydantic

from vidalign import prompts
from vidalign.config.degrading import ClipPairsConfig
from vidalign.config.judging import check_scorer
from vidalign.config.linting import LintConfig
from vidalign.config.section import Section
from vidalign.config.texts import check_spelling, plain_text


class RecipeSection(Section):
    """What all recipes share: the prompt without hints, which training, scoring and evaluation use too, and how options are shown.

    A row's `options` are put after its question by `options_prompt`, one per line, with letters or as their texts alone, unless the
    question lists them already.
    """

    PAIRING: ClassVar[frozenset[str]] = frozenset(
        {"lint", "clip_pairs"}
    )  # options that affect the pairs but not the responses
    LATER: ClassVar[frozenset[str]] = frozenset({"clip_pairs"})
    # What they change is in the questions themselves, which stages hash with the data.
    NEUTRAL: ClassVar[frozenset[str]] = frozenset({"options_prompt", "options_style"})

    name: str
    """The recipe: leanpo, rrpo, hound, group, verified, reagent, given, or `package.module:attribute`."""
    plain_prompt: str = prompts.PLAIN
    """Template of the prompt without hints, which training and evaluation use."""
    lint: LintConfig = LintConfig()  # type: ignore[call-arg]
    """Artefacts that are looked for in pairs."""
    clip_pairs: ClipPairsConfig | None = None
    """Pairs of one response with two clips, alone or beside the pairs of two responses; null makes none."""
    options_prompt: str = prompts.OPTIONS
    """Template that puts a row's options after its question."""
    options_style: prompts.OptionsStyle = "letters"
    """Show options with letters, or as their texts alone."""

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
            if template is not None:
                check_spelling(key, template, prompts.FIELDS)
        return self


class SamplingSection(RecipeSection):
    """How many responses a recipe samples, and how; and how far each agrees with the ground truth.

    `trust` null: by the rules of the answer's kind, and where they cannot tell, no pair depends on it. "exact": right or wrong. "f1":
    right, or overlap of words. "judge": what no rule can tell is scored by `judge`. `package.module:attribute`: a scorer of your own.
    """

    LATER: ClassVar[frozenset[str]] = RecipeSection.LATER | {"trust"}

    num_candidates: int = pydantic.Field(4, ge=1)
    """Responses that are sampled for each side of an example."""
    temperature: float = pydantic.Field(1.0, ge=0, allow_inf_nan=False)
    """Temperature of sampling."""
    top_p: float = pydantic.Field(0.9, gt=0, le=1)
    """Nucleus of sampling."""
    max_new_tokens: int = pydantic.Field(256, ge=1)
    """Most tokens of a response."""
    trust: str | None = None
    """How far a response agrees with the ground truth where no rule can tell: exact, f1, judge, or
    `package.module:attribute`.
    """

    @pydantic.field_validator("trust")
    @classmethod
    def _is_a_scorer(cls, name: str | None) -> str | None:
        check_scorer(name, "recipe.trust")
        return name

    @pydantic.model_validator(mode="after")
    def _has_a_judge(self) -> Self:
        if self.trust == "judge" and getattr(self, "judge", None) is None:
            raise ValueError(
                "trust=judge needs recipe.judge, a model that judges (kind, model); or set trust to null, exact or f1"
            )
        return self
