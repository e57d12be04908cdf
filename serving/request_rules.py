"""From a request's JSON to what its engine gets, or a `Refusal`; nothing is ignored and nothing is waited for.

JSON ── schema ── how much it asks for ── whose frame sampling ── frames as one video ── prompt of training ── chat rules ── engine
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from serving.chat_rules import ChatRules
from serving.frames import ANY
from serving.questions import choose_by_question
from serving.replies import Refusal
from serving.schema import BODIES, Sampling, mistake
from serving.sizes import check_size
from vidalign import prompts
from vidalign.config.serving import LimitsConfig
from vidalign.types import FrameSpec

MAX_TOKENS_HEADER, FRAMES_HEADER = "x-max-tokens", "x-frame-spec"
SAMPLINGS = ("media_io_kwargs", "mm_processor_kwargs", "fps", "num_frames")
FRAMES = "data:video/jpeg;base64,"
OF_ONE_ROLE = {"tool_calls": "assistant", "refusal": "assistant", "reasoning_content": "assistant", "tool_call_id": "tool"}
_TIME = re.compile(r"<\d+(\.\d+)? seconds>")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served:
    """A served policy, as the checks of its requests and /v1/models need it.

    `media` says how many videos and images a prompt may have; `frames_fps` is `serve.media.frames_fps`.
    """

    version: str
    parent: str = ""
    rules: ChatRules = dataclasses.field(default_factory=ChatRules)
    frame_spec: FrameSpec
    media: Mapping[str, int]
    max_model_len: int
    plain_prompt: str = prompts.PLAIN
    client_sampling: str = "refuse"
    frames_fps: float | None = None

    def card(self, model_id: str, created: int) -> dict[str, Any]:
        """What /v1/models says of it."""
        metadata = {
            "policy_version": self.version,
            "parent": self.parent,
            "frame_spec": self.frame_spec.to_row(),
            "plain_prompt": self.plain_prompt,
            "max_model_len": self.max_model_len,
            "client_sampling": self.client_sampling,
        }
        return {"id": model_id, "object": "model", "created": created, "owned_by": "vidalign", "metadata": metadata}


@dataclasses.dataclass(kw_only=True)
class Asked:
    """A request that may be answered: the JSON for the engine, the replies it asks for, and headers of its answer.

    `wanted_tokens` is how long a reply the client asked for.
    """

    model_id: str
    body: dict[str, Any]
    num_sequences: int
    headers: dict[str, str]
    wanted_tokens: int | None = None


def check(path: str, body: Any, models: Mapping[str, Served], limits: LimitsConfig) -> Asked:
    """What a request's engine gets. Raises `Refusal`."""
    if message := mistake(BODIES[path], body):
        raise Refusal(400, message)
    assert isinstance(body, dict)
    model_id = _model_id(body, models)
    served = models[model_id]
    body = {name: value for name, value in body.items() if value is not None} | {"model": model_id}
    check_size(body, served.max_model_len)
    asked = Asked(model_id=model_id, body=body, num_sequences=_num_sequences(body, limits), headers={})
    _set_max_tokens(asked, min(limits.max_tokens or served.max_model_len, served.max_model_len), limits)
    if path.endswith("chat/completions"):
        _check_chat(asked, served)
    if body.get("n", 1) > 1 and body.get("temperature") == 0:
        body |= {
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        }  # the most likely token each time, n times: vLLM takes no n at 0
    for name in Sampling.OURS:
        body.pop(name, None)
    return asked


def _model_id(body: dict[str, Any], models: Mapping[str, Served]) -> str:
    names = ", ".join(models)
    model_id = body.get("model")
    if model_id is None and len(models) > 1:
        raise Refusal(400, f"model is required, because this endpoint has several: {names}")
    if model_id is not None and model_id not in models:
        raise Refusal(404, f"there is no model {model_id[:80]!r}; this endpoint has {names}")
    return model_id if model_id is not None else next(iter(models))


def _num_sequences(body: dict[str, Any], limits: LimitsConfig) -> int:
    prompt = body.get("prompt")
    num_prompts = len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
    num = num_prompts * body.get("n", 1)
    if num > limits.max_sequences_per_request:
        raise Refusal(
            400,
            f"n={body.get('n', 1)} for {num_prompts} prompt{'s' * (num_prompts > 1)} asks for {num} replies, and this endpoint "
            f"gives at most {limits.max_sequences_per_request} a request (serve.limits.max_sequences_per_request)",
        )
    return num


def _set_max_tokens(asked: Asked, most: int, limits: LimitsConfig) -> None:
    """Lower what is beyond the context, or beyond the operator's limit, and say so."""
    name = "max_completion_tokens" if asked.body.get("max_completion_tokens") is not None else "max_tokens"
    wanted = asked.wanted_tokens = asked.body.get(name)
    if wanted is not None and wanted > most:
        asked.body[name] = most
        asked.headers[MAX_TOKENS_HEADER] = str(most)
    elif wanted is None and limits.max_tokens is not None:
        asked.body[name] = most
    if asked.body.get("min_tokens", 0) > asked.body.get(name, most):
        raise Refusal(
            400,
            f"min_tokens={asked.body['min_tokens']} is above {name}={asked.body.get(name, most)}; lower it or raise the other",
        )


def _check_chat(asked: Asked, served: Served) -> None:
    body = asked.body
    for number, message in enumerate(body["messages"]):
        if message.get("content") is None and message["role"] != "assistant":
            raise Refusal(400, f"messages[{number}].content is required of role {message['role']}")
        for name, role in OF_ONE_ROLE.items():
            if message.get(name) is not None and message["role"] != role:
                raise Refusal(400, f"messages[{number}].{name} is of role {role} only, and would be ignored; leave it out")
    sampling = _sampling(body, served)
    if served.frames_fps is not None:
        for message in body["messages"]:
            if isinstance(message.get("content"), list):
                message["content"] = joined(message["content"], served.frames_fps, served.media.get("image", 0))
    counts = {kind: _count(body["messages"], f"{kind}_url") for kind in ("video", "image")}
    for kind, count in counts.items():
        if count > served.media.get(kind, 0):
            way = "; serve.media.frames_fps takes a run of images as the frames of one video" if kind == "image" else ""
            raise Refusal(
                400,
                f"the prompt has {count} {kind}{'s' * (count > 1)}, and this endpoint takes {served.media.get(kind, 0)} "
                f"(serve.engine_args.limit_mm_per_prompt){way}",
            )
    if any(counts.values()):
        asked.headers[FRAMES_HEADER] = json.dumps(sampling.to_row())
    choose_by_question(body["messages"], served.frame_spec, served.plain_prompt)
    if body.get("prompt_mode") == "plain":
        _in_plain_prompt(body["messages"], served.plain_prompt)
    if refusal := served.rules.refusal(body):
        raise Refusal(400, refusal)
    served.rules.apply(body)


def _count(messages: list[dict[str, Any]], kind: str) -> int:
    return sum(
        part["type"] == kind
        for message in messages
        if isinstance(message.get("content"), list)
        for part in message["content"]
    )


def _sampling(body: dict[str, Any], served: Served) -> FrameSpec:
    """The frame sampling of a request, which is the endpoint's unless it may have its own. Takes the options out of the body."""
    own = served.frame_spec
    given = {name: body.pop(name) for name in SAMPLINGS if body.get(name)}
    if not given:
        return own
    if served.client_sampling == "refuse":
        raise Refusal(
            400,
            f"{next(iter(given))} is not accepted: this endpoint samples frames as the model was trained (see metadata.frame_spec in "
            "/v1/models); leave it out, or start the endpoint with serve.client_sampling=same or allow",
        )
    wanted = {name: value for name, value in given.items() if name in ("fps", "num_frames")}
    for name in ("media_io_kwargs", "mm_processor_kwargs"):
        options = dict(given.get(name) or {})
        if name == "media_io_kwargs":
            video = options.pop("video", {})
            options = {**options, **(video if isinstance(video, dict) else {"video": video})}
        for key, value in options.items():
            if key not in ("fps", "num_frames"):
                raise Refusal(400, f"{name}: of a request's own sampling, only fps and num_frames are taken, got {key}")
            if value not in (None, ANY):
                wanted[key] = value
    for key, value in wanted.items():
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 < value < 10**6
            or (key == "num_frames" and value != int(value))
        ):
            raise Refusal(400, f"{key} must be a number above 0, got {str(value)[:40]}")
    same = all(getattr(own, key) == value for key, value in wanted.items())
    if same:
        return own
    if served.client_sampling == "same":
        shown = ", ".join(f"{key}={value:g}" for key, value in wanted.items())
        raise Refusal(
            400,
            f"{shown} is another sampling than this endpoint's ({own.to_row()}); leave it out, or start the endpoint with "
            "serve.client_sampling=allow",
        )
    if own.choice is not None:
        raise Refusal(
            400,
            "this endpoint chooses frames by the question (video.choice), and takes no request's own sampling; leave it out",
        )
    if len(wanted) == 2:
        raise Refusal(400, "of num_frames and fps only one can be given")
    return _allowed(body, wanted, own)


def _allowed(body: dict[str, Any], wanted: dict[str, Any], own: FrameSpec) -> FrameSpec:
    most = own.num_frames if own.num_frames is not None and own.num_frames > own.max_frames else own.max_frames
    if wanted.get("num_frames", 0) > most:
        raise Refusal(400, f"num_frames={wanted['num_frames']} is above this endpoint's video.max_frames={most}")
    number = int(wanted["num_frames"]) if "num_frames" in wanted else None
    body["media_io_kwargs"] = {"video": {"num_frames": ANY if number is None else number, "fps": wanted.get("fps")}}
    return dataclasses.replace(own, num_frames=number, fps=wanted.get("fps"))


def joined(parts: list[dict[str, Any]], fps: float, max_images: int) -> list[dict[str, Any]]:
    """Parts in which a run of more images than a prompt may have is one video of that many frames a second.

    Clients that write the time of each frame before it (<1.5 seconds>) do what the model's processor does for a video.
    """
    made: list[dict[str, Any]] = []
    run: list[dict[str, Any]] = []
    for part in [*parts, {"type": "end"}]:
        if part["type"] == "image_url" or (part["type"] == "text" and _TIME.fullmatch(part["text"])):
            run.append(part)
            continue
        images = [each for each in run if each["type"] == "image_url"]
        if len(images) > max(1, max_images):
            made.append({"type": "video_url", "video_url": {"url": _as_video(images, fps)}})
        else:
            made += run
        run = []
        made.append(part)
    return made[:-1]


def _as_video(run: list[dict[str, Any]], fps: float) -> str:
    frames = []
    for part in run:
        url = part["image_url"]["url"]
        head, comma, data = url.partition(",")
        if not comma or not head.lower().startswith("data:") or not head.endswith(";base64"):
            raise Refusal(400, f"the frames of a video are sent as data:image/…;base64 urls, got {url[:40]!r}")
        frames.append(data)
    return f"{FRAMES}{','.join(frames)}#fps={fps:g}"


def _in_plain_prompt(messages: list[dict[str, Any]], template: str) -> None:
    """Put the last question into the prompt of training."""
    last = next((message for message in reversed(messages) if message["role"] == "user"), None)
    texts = (
        []
        if last is None
        else [last]
        if isinstance(last["content"], str)
        else [p for p in last["content"] if p["type"] == "text"]
    )
    if len(texts) != 1:
        raise Refusal(
            400, f'prompt_mode "plain" puts one text of the last user message into the prompt of training, got {len(texts)}'
        )
    key = "text" if "text" in texts[0] else "content"
    texts[0][key] = prompts.substitute(template, question=texts[0][key])
