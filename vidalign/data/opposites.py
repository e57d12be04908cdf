"""Words of which one rules the others out: colours, directions, shapes and the like, as stems."""

from __future__ import annotations

from collections.abc import Iterable, Set

from vidalign.data.words import stem


def _groups(*lists: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(map(stem, names.split())) for names in lists)


CLASSES = _groups(
    "red blue green yellow orange purple pink brown black white grey gray cyan magenta violet",
    "anyone empty",
    "anybody empty",
    "people empty",
    "left right up down",
    "circle square triangle cross rectangle star ring oval diamond hexagon pentagon cube sphere cylinder cone",
    "first second third fourth fifth last",
    "indoor outdoor",
    "open close",
    "win lose",
    "push pull",
    "increase decrease",
    "before after",
    "day night morning evening",
    "monday tuesday wednesday thursday friday saturday sunday",
    "左 右 上 下",
    "红 蓝 绿 黄 黑 白 紫",
)
# Only of what a question with yes or no asks: a short answer may say the one and mean no denial of the other.
_ASKED = _groups(
    "open opened closed shut", "on off", "inside outside", "indoors outdoors", "clockwise counterclockwise anticlockwise",
    "increase decrease", "increases decreases", "faster slower", "fast slow", "bigger smaller", "big small", "larger smaller",
    "taller shorter", "empty full", "wet dry", "same different", "enters leaves", "enter leave", "appears disappears",
    "man woman", "boy girl", "male female", "young old", "true false", "hot cold", "light dark", "alone together", "alive dead",
    "anyone empty", "anybody empty", "people empty", "left right up down", "above below", "start end",
    "moving still stationary", "sitting standing lying",
    "开 关", "大 小", "男 女", "里 外", "快 慢",
)  # fmt: skip
PROPERTIES = frozenset().union(*CLASSES, *_ASKED)


def opposed(said: str, asked: Iterable[str]) -> str | None:
    """The word of a question that a word rules out; None where there is none, or where the question has the word too."""
    words: Set[str] = set(asked)
    if said in words:
        return None
    for group in (*CLASSES, *_ASKED):
        if said in group and len(found := words & group) == 1:
            return next(iter(found))
    return None
