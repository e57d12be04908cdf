"""The nouns of vidalign: frozen records that cross processes and files. This module imports nothing heavy.
Every record turns into a plain dict (`to_row`) and back (`from_row`); JSONL and Parquet files use the same names.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from typing import Any, ClassVar, Literal, Self, TypeAlias

from vidalign.records import Context, FrameChoice, Prompted, Record, Turn

Backend: TypeAlias = Literal["pyav", "decord"]  # what decodes videos, see vidalign.video.readers
DEFAULT_BACKEND: Backend = "pyav"
DEADLINE_S = 180.0  # for a video to be decoded: an hour of 1280x720 at one frame a second takes 75 s of a slow CPU
MODEL_IDS = ("base", "aligned", "blind")  # whose answers an evaluation holds; blind: the base, with noise for videos


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameSpec(Record):
    """One sampling contract for rollouts, training, evaluation and serving.

    Exactly one of `num_frames` (uniform over the whole video) and `fps` (frames per second of video, at most `max_frames`)
    is set. Size: `height` and `width` together resize exactly; `max_pixels` keeps the aspect ratio and shrinks to at most
    that many pixels per frame, and `total_pixels` to at most that many for all frames together; without any of these, the video
    keeps its own size. A video with fewer than `min_frames` decodable frames is quarantined. A `num_frames` larger than the
    video's frame count repeats indices and is never an error.

    `snap_to_keyframes` moves each frame to the nearest keyframe at or before it, so that nothing else is decoded. Where two
    different frames would move to the same keyframe, or a frame has no keyframe before it, the video is sampled as if the option
    were off (`vidalign.video.decoding.snapped`).

    `square_pixels` makes pixels square, as players do, and `hdr_to_sdr` makes SDR of HDR; without them, frames are as stored.

    What a file claims is bounded before it is believed: a video of more than `max_duration_s` seconds is quarantined, and one
    whose frames take more than `max_pixels_decoded` pixels to hold, sampled and resized, or while a decoder works
    (`vidalign.video.bounds`).

    `choice` None spreads the frames evenly. Otherwise they are chosen by the question, and `num_frames` is the most that are shown.
    """

    num_frames: int | None = 8
    fps: float | None = None
    max_frames: int = 128
    min_frames: int = 2
    height: int | None = None
    width: int | None = None
    max_pixels: int | None = None
    total_pixels: int | None = None
    snap_to_keyframes: bool = False
    square_pixels: bool = True
    hdr_to_sdr: bool = True
    max_duration_s: float = 21_600.0
    max_pixels_decoded: int = 2**30
    choice: FrameChoice | None = None

    def to_row(self) -> dict[str, Any]:
        row = super().to_row()
        for name in (
            "total_pixels",
            "snap_to_keyframes",
            "square_pixels",
            "hdr_to_sdr",
            "max_duration_s",
            "max_pixels_decoded",
            "choice",
        ):
            if row[name] == getattr(FrameSpec, name):
                del row[name]  # at their defaults they leave the keys of frames and runs as they were before they existed
        return row

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        choice = row.get("choice")
        return super().from_row({**row, "choice": FrameChoice.from_row(choice) if isinstance(choice, dict) else choice})

    def key(self) -> str:
        """Short stable hash; half of the frame cache's key."""
        return stable_hash(self.to_row())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example(Prompted):
    """One data row: a question on a video and its ground-truth answer.

    `video` names the first video, and `videos` all of them where there are several; "" and () where there are only images.
    `system` and `turns` are the conversation before the question.

    `options` is non-empty for multiple choice, in order; `answer` then is the full text of the right reply. `caption` describes
    the whole video in words, for a judge that cannot see it. `answer_type` says of which kind the answer is, where the row says so
    (`vidalign.data.answers.ANSWER_TYPES`). `rejected_video` names another clip, with which the same response is the worse one: of a
    pair over videos that the data brings; "" where it brings none.
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
    rejected_video: str = ""
    OMITTED: ClassVar[tuple[str, ...]] = ("answer_type", "rejected_video", *Prompted.OMITTED)

    @property
    def decoded(self) -> tuple[str, ...]:
        """The names of everything that is decoded for it: what its prompt shows, and its other clip."""
        return (*self.context.visuals, *filter(None, [self.rejected_video]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Response(Record):
    """One output of a policy, with what is needed to reproduce and to score it.

    `kind`: "hinted" (first turn, saw the ground truth), "unhinted" (first turn without it), "reflected" (a later turn),
    "augmented" (no hint, augmented video), "plain" (no hint, clean video), "perturbed" (no hint, perturbed video),
    "shuffled" (no hint, frames in any order), "replayed" (the ground truth with one segment generated anew), "truth" (the ground
    truth itself, not sampled), "differences" and "rewritten" (RRPO's two steps from a wrong response), "bridged" (a wrong response,
    corrected), "conservative", "neutral" and "aggressive" (ReAgent-V's reflections), "report" (a critic's, of the response of the same
    candidate and turn), "caption" (of the video).

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
class PreferencePair(Prompted):
    """Two responses to one prompt, the first preferred. The prompt's fields are those of its example.

    `chosen_marks` and `rejected_marks` are (start, end) character spans of key phrases, empty if the recipe marks none.
    `chosen_win_rate` and `rejected_win_rate` are estimated probabilities that the side beats a response of the policy to the same
    prompt (`vidalign.statistics.win_rates`); NaN if unknown.
    `provenance` is a JSON object: recipe, rule, policy version, seed, and where each side came from.
    `rejected_videos` is of a pair over videos alone, whose two responses are one: the names of the clips that are shown in place of
    the videos on the rejected side.
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
    videos: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    system: str = ""
    turns: tuple[Turn, ...] = ()
    rejected_videos: tuple[str, ...] = ()
    OMITTED: ClassVar[tuple[str, ...]] = ("rejected_videos", *Prompted.OMITTED)

    @property
    def rejected_context(self) -> Context:
        """What the prompt of the rejected side holds beside the question."""
        return dataclasses.replace(self.context, videos=self.rejected_videos or self.context.videos)

    def content(self) -> dict[str, Any]:
        """Its row without provenance, for hashes. Unknown win rates are left out, as in runs from before they existed."""
        row = self.to_row() | {"provenance": ""}
        return {name: value for name, value in row.items() if not (name.endswith("_win_rate") and math.isnan(value))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResponseGroup(Prompted):
    """A policy's own responses to one prompt and their rewards: place n of each list is that of candidate n.

    `rewards` are NaN for responses that are not learned from, for the reason in `left_out` ("" for the others). `parts` is a JSON
    object of what the rewards add up, {name: [value or null]}. `tokens` is a hash of the token ids, which the round's responses hold.
    """

    id: str
    example_id: str
    video: str
    question: str
    answer: str
    texts: tuple[str, ...]
    rewards: tuple[float, ...]
    left_out: tuple[str, ...]
    policy_version: str
    tokens: str
    category: str = ""
    parts: str = "{}"
    videos: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    system: str = ""
    turns: tuple[Turn, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuarantineRow(Record):
    """A video or image that was not used, and why. `reason` is one of `vidalign.errors.QUARANTINE_REASONS`."""

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
class EvalAnswer(Prompted):
    """The answer of one served model to one held-out question. `model_id` is "base", "aligned" or "blind".

    `correct` is None where no scorer could tell. `scorer` says which one did ("rules", "exact", "f1", "judge" or your own), `kind`
    is the answer's kind, `score` the scorer's value (1-5 of a judge, else in [0, 1]), `f1` the overlap of words with a short or free
    ground truth, `judge` the judge and the version of its prompt.
    """

    example_id: str
    category: str
    video: str
    question: str
    answer: str
    text: str
    correct: bool | None
    model_id: str
    policy_version: str
    latency_s: float
    videos: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    system: str = ""
    turns: tuple[Turn, ...] = ()
    kind: str = ""
    scorer: str = ""
    score: float | None = None
    f1: float | None = None
    judge: str = ""
    explanation: str = ""


def stable_hash(value: Any, length: int = 16) -> str:
    """Hex digest of a JSON-serialisable value, equal across processes and machines."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]
