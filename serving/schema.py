"""What a request may hold: one table for the checks and for /openapi.json. A key that is not here is refused by its name.

Values that are here and right reach vLLM unchanged.
"""

from __future__ import annotations

import re
import reprlib
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import Discriminator, Field, Tag

ROLES = ("system", "developer", "user", "assistant", "tool")
LARGEST = 2**63 - 1
Count = Annotated[int, Field(ge=1, le=10**6)]
MANY, FEW = Field(max_length=10_000, fail_fast=True), Field(max_length=1000, fail_fast=True)
FORMS = ("response_format", "structured_outputs", "tools")  # what a reply has to look like
Share = Annotated[float, Field(ge=0, le=1)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Strict(pydantic.BaseModel):
    """A JSON object whose keys are all known."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class VideoUrl(Strict):
    """Where a video is read from."""

    url: str


class ImageUrl(Strict):
    """Where an image is read from. `detail` changes nothing: images have the endpoint's size."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class TextPart(Strict):
    type: Literal["text"]
    text: str


class VideoPart(Strict):
    type: Literal["video_url"]
    video_url: VideoUrl


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | VideoPart | ImagePart, Field(discriminator="type")]


def _kind(content: Any) -> str:
    return "text" if isinstance(content, str) else "parts"


Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[Part], MANY, Tag("parts")],
    Discriminator(_kind),
]


class FunctionCall(Strict):
    """What was called: `arguments` is an object as text, as a model writes it."""

    name: str
    arguments: str


class ToolCall(Strict):
    """A call of an earlier reply. `index` is of streams, and clients that put one together send it back."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], FEW] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None


class StreamOptions(Strict):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Sampling(Strict):
    """What chat requests and completions have in common."""

    OURS: ClassVar[frozenset[str]] = frozenset({"prompt_mode", "fps", "num_frames"})  # what vLLM does not know

    model: str | None = None
    n: Count | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=0, le=LARGEST)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=LARGEST)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Share | None = None
    seed: Annotated[int, Field(ge=-LARGEST - 1, le=LARGEST)] | None = None
    stop: str | Annotated[list[str], FEW] | None = None
    stop_token_ids: Annotated[list[TokenId], FEW] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=10_000)] | None = None
    allowed_token_ids: Annotated[list[TokenId], Field(fail_fast=True)] | None = None
    bad_words: Annotated[list[str], FEW] | None = None
    logprob_token_ids: Annotated[list[TokenId], FEW] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    return_tokens_as_token_ids: bool | None = None
    return_token_ids: bool | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    # OpenAI's own notes about a request, which change no answer.
    user: str | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class ChatBody(Sampling):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000, fail_fast=True)]
    prompt_mode: Literal["plain"] | None = None
    max_completion_tokens: Annotated[int, Field(ge=0, le=LARGEST)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[dict[str, Any]], FEW] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    documents: Annotated[list[dict[str, str]], FEW] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    echo: bool | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool | None = None
    media_io_kwargs: dict[str, Any] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    fps: Annotated[float, Field(gt=0)] | None = None
    num_frames: Count | None = None


class CompletionBody(Sampling):
    """The body of POST /v1/completions: a prompt as it is, without a chat template, and without media."""

    prompt: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[str], Field(min_length=1, fail_fast=True)]
        | Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
        | Annotated[list[Annotated[list[TokenId], Field(fail_fast=True)]], Field(min_length=1, fail_fast=True)]
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None


BODIES: dict[str, type[Sampling]] = {"/v1/chat/completions": ChatBody, "/v1/completions": CompletionBody}


def mistake(kind: type[pydantic.BaseModel], body: Any) -> str | None:
    """What is wrong with a request's JSON, in one sentence; None if nothing is."""
    try:
        kind.model_validate(body)
    except pydantic.ValidationError as error:
        return _sentence(kind, error.errors(include_url=False)[0])
    return None


def _sentence(kind: type[pydantic.BaseModel], item: Any) -> str:
    place = _place(item["loc"])
    if item["type"] == "extra_forbidden":
        if place.endswith("uuid"):
            return f"{place} is not taken: what a video or an image is known by is the endpoint's own; leave it out"
        return f"{place} is not taken by this endpoint, so it would be ignored; leave it out"
    if item["type"] == "missing":
        return f"{place} is required"
    if item["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return f"{place}.type must be one of text, video_url, image_url, got {_shown((item['input'] or {}).get('type'))}"
    if item["type"] in ("model_type", "model_attributes_type", "dict_type") and not place:
        return f"the body must be a JSON object, got {_shown(item['input'])}"
    message = str(item["msg"])
    return f"{place}: {message[:1].lower()}{message[1:]}, got {_shown(item['input'])}"


_SHORT = reprlib.Repr()
_SHORT.maxother = _SHORT.maxlong = 61


def _place(location: tuple[Any, ...]) -> str:
    """messages[0].content[1].url, without the names of pydantic's alternatives."""
    place, before = "", ""
    for part in location:
        text = str(part)
        alternative = before == "content" and text in ("text", "parts")
        alternative = alternative or (
            place.endswith("]") and text in ("text", "video_url", "image_url") and before.isdigit()
        )
        alternative = alternative or "[" in text
        if isinstance(part, int):
            place += f"[{part}]"
        elif not alternative:
            place += f".{text}" if place else text
        before = text
    return _without_alternatives(place)


def _without_alternatives(place: str) -> str:
    head = re.split(r"[.\[]", place)[0]
    return head if head in ("prompt", "stop", "tool_choice") else place


def _shown(value: Any) -> str:
    text = " ".join((repr(value[:61]) if isinstance(value, str) else _SHORT.repr(value)).split())
    return text if len(text) <= 60 else f"{text[:60]}…"
