"""Videos held out that look like videos of training, found in the frames that a run has decoded anyway."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Mapping, Sequence

from vidalign.data.decodable import alike
from vidalign.storage import AT_ONCE
from vidalign.types import Example
from vidalign.video.frame_cache import load_signature
from vidalign.video.naming import short


def lookalike_warning(
    frames: Mapping[str, str], train: Sequence[Example], held: Sequence[Example], *, split: str
) -> str | None:
    """A sentence if videos of `held`, the split data.`split`, look like videos of training; None if none does.

    Reads the signatures beside the decoded frames, and decodes nothing. Frames that an earlier version decoded have none.

    Args:
        frames: the decoded clip of each video.
    """
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:  # clips may be in a store
        seen = [
            {
                video: found
                for video, found in zip(shown, pool.map(lambda video: load_signature(frames[video]), shown), strict=True)
                if found is not None
            }
            for shown in (_shown(held, frames), _shown(train, frames))
        ]
    pairs = alike(*seen)
    if not pairs:
        return None
    video, other = pairs[0]
    count = len({video for video, _ in pairs})
    alikes = f"{count:,} of {len(seen[0]):,} videos of data.{split} look like videos of data.train"
    return (
        f"{alikes}, first {short(video)} like {short(other)}; if they are copies, what is measured on them has been trained on "
        "(`vidalign data validate --decode` lists all)"
    )


def _shown(examples: Sequence[Example], frames: Mapping[str, str]) -> list[str]:
    """The distinct videos and images of examples that have a clip."""
    names = dict.fromkeys(name for example in examples for name in example.context.visuals)
    return [name for name in names if name in frames]
