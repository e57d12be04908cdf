"""The nouns of vidalign: frozen records that cross processes and files. This module imports nothing heavy.

Every record turns into a plain dict (`to_row`) and back (`from_row`); JSONL and Parquet files use the same names.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from typing import Any, ClassVar, Literal, Self, TypeAlias

Backend: TypeAlias = Literal["pyav", "decord"]  # what decodes videos, see vidalign.video.readers
DEFAULT_BACKEND: Backend = "pyav"

QUARANTINE_REASONS = (
    "missing",  # no file at the uri
    "unreadable",  # the file exists but cannot be opened (permissions, a folder without fps)
    "zero_byte",
    "not_a_video",  # no decoder recognises the container
    "no_video_stream",  # for example an audio file
    "truncated",  # the container opens, but frames that its index promises cannot be decoded
    "too_few_frames",  # fewer frames than FrameSpec.min_frames
    "too_long",  # longer, or of more pixels, than FrameSpec.max_duration_s and max_pixels_decoded allow, or than its frames carry
    "unfit",  # the model's processor takes no frames of this size or number
    "out_of_bounds",  # the row's clip begins or ends outside of the video
    "timeout",  # not decoded within the deadline; the decoding process was killed
    "crashed",  # the decoding process died
)


class Record:
    """Conversion between a frozen dataclass and the plain dict that is stored."""

    def to_row(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        return cls(**{name: _plain(value) for name, value in row.items() if name in names})


def _plain(value: Any) -> Any:
    """Turn what Parquet gives back (NumPy arrays and scalars) into lists and Python scalars."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return tuple(_plain(item) for item in value)
    return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameSpec(Record):
    """One sampling contract for rollouts, training, evaluation and serving.

    Exactly one of `num_frames` (uniform over the whole video) and `fps` (frames per second of video, at most `max_frames`)
    is set. Size: `height` and `width` together resize exactly; `max_pixels` keeps the aspect ratio and shrinks to at most
    that many pixels per frame; without any of the three, the video keeps its own size. A video with fewer than `min_frames`
    decodable frames is quarantined. A `num_frames` larger than the video's frame count repeats indices and is never an error.

    `snap_to_keyframes` moves each frame to the nearest keyframe at or before it, so that nothing else is decoded. Where two
    different frames would move to the same keyframe, or a frame has no keyframe before it, the video is sampled as if the option
    were off (`vidalign.video.decoding.snapped`).

    What a file claims is bounded before it is believed: a video of more than `max_duration_s` seconds is quarantined, and one
    whose frames take more than `max_pixels_decoded` pixels to hold, sampled and resized, or while a decoder works
    (`vidalign.video.bounds`).
    """

    num_frames: int | None = 8
    fps: float | None = None
    max_frames: int = 128
    min_frames: int = 2
    height: int | None = None
    width: int | None = None
    max_pixels: int | None = None
    snap_to_keyframes: bool = False
    max_duration_s: float = 21_600.0
    max_pixels_decoded: int = 2**30

    def to_row(self) -> dict[str, Any]:
        row = super().to_row()
        for name in ("snap_to_keyframes", "max_duration_s", "max_pixels_decoded"):
            if row[name] == getattr(FrameSpec, name):
                del row[name]  # at their defaults they leave the keys of frames and runs as they were before they existed
        return row

    def key(self) -> str:
        """Short stable hash; half of the frame cache's key."""
        return stable_hash(self.to_row())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn(Record):
    """One message of a conversation before its question."""

    role: Literal["user", "assistant"]
    content: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """What a prompt holds beside its question: a system text, earlier turns, and the names of what it shows.

    Where a video or image stands is said by `<video>` and `<image>` in the texts of the user, in order; without them, all videos
    and then all images come before the first of these texts (`vidalign.prompts.messages`). Names: `vidalign.video.naming`.
    """

    videos: tuple[str, ...]
    images: tuple[str, ...] = ()
    system: str = ""
    turns: tuple[Turn, ...] = ()

    @property
    def visuals(self) -> tuple[str, ...]:
        """The names of all videos, then of all images."""
        return self.videos + self.images

    @property
    def is_plain(self) -> bool:
        """Whether it is one video and nothing else."""
        return len(self.videos) == 1 and not (self.images or self.system or self.turns)


class Asked(Record):
    """A record of a question in its context. Fields that are empty are not stored: rows and hashes are as they were before them."""

    video: str
    videos: tuple[str, ...]
    images: tuple[str, ...]
    system: str
    turns: tuple[Turn, ...]
    _OMITTED: ClassVar[tuple[str, ...]] = ("videos", "images", "system", "turns")

    @property
    def context(self) -> Context:
        """Everything that the prompt holds beside the question."""
        videos = self.videos or ((self.video,) if self.video else ())
        return Context(videos=videos, images=self.images, system=self.system, turns=self.turns)

    def to_row(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_row().items() if value or name not in self._OMITTED}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        given = {name: value for name, value in row.items() if value is not None or name not in cls._OMITTED}
        if "turns" in given:
            given["turns"] = [Turn.from_row(turn) for turn in given["turns"]]
        return super().from_row(given)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example(Asked):
    """One data row: a question on a video and its ground-truth answer.

    `video` names the first video, and `videos` all of them where there are several; "" and () where there are only images.
    `system` and `turns` are the conversation before the question.

    `options` is non-empty for multiple choice, in order; `answer` then is the full text of the right reply. `caption` describes
    the whole video in words, for a judge that cannot see it. `answer_type` says of which kind the answer is, where the row says so
    (`vidalign.data.answers.ANSWER_TYPES`).
    """

    id: str
    video: str
    question: str
    answer: str
    options: tuple[str, ...] = ()
    category: str = ""
    caption: str = ""
    answer_type: str = ""
    videos: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    system: str = ""
    turns: tuple[Turn, ...] = ()
    _OMITTED: ClassVar[tuple[str, ...]] = ("answer_type", *Asked._OMITTED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Response(Record):
    """One output of a policy, with what is needed to reproduce and to score it.

    `kind`: "hinted" (first turn, saw the ground truth), "unhinted" (first turn without it), "reflected" (a later turn),
    "augmented" (no hint, augmented video), "plain" (no hint, clean video), "perturbed" (no hint, perturbed video),
    "replayed" (the ground truth with one segment generated anew), "truth" (the ground truth itself, not sampled), "differences" and
    "rewritten" (RRPO's two steps from a wrong response), "caption" (of the video).

    `log_probs` are natural-log probabilities of `token_ids` under the policy, before temperature and top-p. `reward` is the
    average log-likelihood per token of the text under the policy given the clean video and the question *without* hints;
    `trust` in [0, 1] says how far the text agrees with the ground truth.
    """

    example_id: str
    kind: str
    candidate: int
    turn: int
    text: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    policy_version: str
    seed: int
    temperature: float
    top_p: float
    finish_reason: str
    reward: float = math.nan
    trust: float = math.nan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgement(Record):
    """A judge's score of one response, with the judge's identity pinned."""

    example_id: str
    response: str
    score: float
    explanation: str
    judge: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferencePair(Asked):
    """Two responses to one prompt, the first preferred. The prompt's fields are those of its example.

    `chosen_marks` and `rejected_marks` are (start, end) character spans of key phrases, empty if the recipe marks none.
    `chosen_win_rate` and `rejected_win_rate` are estimated probabilities that the side beats a response of the policy to the same
    prompt (`vidalign.statistics.win_rates`); NaN if unknown.
    `provenance` is a JSON object: recipe, rule, policy version, seed, and where each side came from.
    """

    id: str
    example_id: str
    video: str
    question: str
    answer: str
    chosen: str
    rejected: str
    category: str = ""
    chosen_marks: tuple[tuple[int, int], ...] = ()
    rejected_marks: tuple[tuple[int, int], ...] = ()
    chosen_reward: float = math.nan
    rejected_reward: float = math.nan
    chosen_trust: float = math.nan
    rejected_trust: float = math.nan
    chosen_win_rate: float = math.nan
    rejected_win_rate: float = math.nan
    provenance: str = "{}"

    def content(self) -> dict[str, Any]:
        """Its row without provenance, for hashes. Unknown win rates are left out, as in runs from before they existed."""
        row = self.to_row() | {"provenance": ""}
        return {name: value for name, value in row.items() if not (name.endswith("_win_rate") and math.isnan(value))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuarantineRow(Record):
    """A video that was not used, and why. `reason` is one of `QUARANTINE_REASONS`."""

    uri: str
    reason: str
    message: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyVersion(Record):
    """A complete Hugging Face checkpoint folder. `version` is a content hash of its weights and config."""

    version: str
    path: str
    parent: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalAnswer(Record):
    """The answer of one served model to one held-out question. `model_id` is "base", "aligned" or "blind"."""

    example_id: str
    category: str
    video: str
    question: str
    answer: str
    text: str
    correct: bool
    model_id: str
    policy_version: str
    latency_s: float


def stable_hash(value: Any, length: int = 16) -> str:
    """Hex digest of a JSON-serialisable value, equal across processes and machines."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]
