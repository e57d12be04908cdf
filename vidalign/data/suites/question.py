"""One question of a suite, as its own rows have it: what is shown, what is asked, and what its rule needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vidalign.types import Example
from vidalign.video.naming import Visual, name_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteQuestion:
    """One question of a suite.

    Attributes:
        prompt: everything that is said to the model beside the video.
        task: the part of the suite that it belongs to; one of `Suite.tasks` where these are not empty.
        keys: what scores are broken down by, such as {"duration": "short"}.
        group: questions of one group count together, such as a basic question and its hallucinated twin; "" for none.
        facts: what the suite's rule needs beside the answer, as JSON values.
        fps: set for a folder of frames: how many of them there are for one second.
        start_s, end_s: the part of the video that is asked about, in seconds.
        where: "file: row n", for messages.
    """

    id: str
    video: str
    prompt: str
    answer: str
    task: str = ""
    options: tuple[str, ...] = ()
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    group: str = ""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fps: float | None = None
    start_s: float = 0.0
    end_s: float | None = None
    where: str = ""

    @property
    def shown(self) -> str:
        """The name of what is shown: the video, its part, or its folder of frames."""
        return name_of(
            Visual(
                kind="video" if self.fps is None else "folder",
                uris=(self.video,),
                fps=self.fps,
                start_s=self.start_s,
                end_s=self.end_s,
            )
        )

    def example(self) -> Example:
        """The question as evaluation asks it: the prompt is the whole text."""
        return Example(id=self.id, video=self.shown, question=self.prompt, answer=self.answer, category=self.task)
