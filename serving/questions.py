"""Where an endpoint chooses frames by the question (`video.choice`), it puts the user's last text into the urls of the videos.

A url that brings its question (#ask=QUESTION, %-escaped) keeps it: evaluations name videos as training did.
"""

from __future__ import annotations

import re
from typing import Any

from serving.replies import Refusal
from vidalign.types import FrameSpec
from vidalign.video.naming import fragment_of, split, stated, visual_of

SHOWN = 60  # characters of a url in a message


def choose_by_question(messages: list[dict[str, Any]], spec: FrameSpec, plain_prompt: str) -> None:
    """Put the question into each video's url that has none. Raises `Refusal` where there is none, or where it would change nothing."""
    videos = [part["video_url"] for parts in map(_parts, messages) for part in parts if part["type"] == "video_url"]
    needed = spec.choice is not None and spec.choice.needs_question
    if not needed:
        for video in videos:
            if visual_of(video["url"]).asked:
                raise Refusal(
                    400,
                    "a video's url ends in ask=…, and this endpoint does not choose frames by a question (video.choice); leave it out",
                )
        return
    question = question_of(messages, plain_prompt)
    for video in videos:
        if visual_of(video["url"]).asked:
            continue
        if not question:
            raise Refusal(
                400,
                f"this endpoint chooses frames by the last text of the user, which is empty; write the question, or end the url "
                f"{video['url'][:SHOWN]} in #ask=QUESTION",
            )
        video["url"] = _with_question(video["url"], question)


def _with_question(url: str, question: str) -> str:
    base, fragment = split(re.sub(r"^(?i:file):/(?!/)", "file:///", url))  # file:/path, in which no fragment is read
    asked = fragment_of(None, 0.0, None, stated(question))
    return f"{base}#{fragment}&{asked}" if fragment else f"{base}#{asked}"


def question_of(messages: list[dict[str, Any]], plain_prompt: str) -> str:
    """The question of the last message of the user, without the prompt of training around it."""
    last = next((message for message in reversed(messages) if message["role"] == "user"), None)
    text = "" if last is None else "\n".join(part["text"] for part in _parts(last) if part["type"] == "text").strip()
    before, _, after = plain_prompt.partition("{question}")
    found = re.fullmatch(re.escape(before.strip()) + r"\s*(.*?)\s*" + re.escape(after.strip()), text, re.DOTALL)
    return found[1] if found else text


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content or [])
