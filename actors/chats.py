"""How a judge is talked to: an OpenAI-compatible endpoint, a text or video model in vLLM, or a function of the user's own.

Each function opens one and returns (a chat, the model's name). A chat takes conversations and gives the next reply to each, greedily.
The first message of a conversation may name videos and images; `frames` says where the decoded clip of each is.
"""

from __future__ import annotations

import base64
import functools
import io
import mimetypes
import os
import pathlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cluster.engines import enter_actor_environment, judge_options
from cluster.proxies import reach_directly
from vidalign.config.judging import JudgeConfig
from vidalign.errors import ConfigError, DataError, ModelError
from vidalign.model.folder import model_folder
from vidalign.plugins import resolve
from vidalign.recipes.judging import Chat, Messages
from vidalign.video.naming import local_path, short, visual_of, without_question


def open_chat(config: JudgeConfig, frames: Mapping[str, str], limits: Mapping[str, int], key: str) -> tuple[Chat, str]:
    """The chat of a judge and its model's name.

    `limits`: how many videos and images a prompt shows at most. `key`: the option that holds the config, for messages.
    """
    if config.kind == "openai":
        return openai_chat(config, frames, key)
    if config.is_own:
        return own_chat(config, key), config.model
    config = located(config)
    return seeing_chat(config, frames, limits, key) if config.sees_video else vllm_chat(config, key)


def located(config: JudgeConfig) -> JudgeConfig:
    """The judge with its model's folder on this machine, which may be written with ~ or as a hub's name, in place of its name.

    Raises:
        ModelError: there is no such folder, or the hub cannot be reached or does not have it.
    """
    return config.model_copy(update={"model": str(model_folder(config.model))})


def openai_chat(config: JudgeConfig, frames: Mapping[str, str], key: str) -> tuple[Chat, str]:
    """A chat with an OpenAI-compatible endpoint, `concurrency` requests at a time, and the model's name.

    Raises:
        ConfigError: by the chat, if the endpoint cannot be reached, refuses the key, or does not have the model.
    """
    import openai

    api_key = os.environ.get(config.api_key_env) or "none"
    reach_directly()
    client = openai.OpenAI(
        base_url=config.base_url, api_key=api_key, timeout=config.timeout_s, max_retries=config.max_retries
    )
    images = functools.lru_cache(maxsize=2 * config.concurrency)(jpegs)

    def parts(message: dict[str, Any]) -> dict[str, Any]:
        if "videos" not in message:
            return dict(message)
        names = [*message["videos"], *message["images"]]
        if config.sees == "video":
            urls = [(f"{kind}_url", data_url(name, key)) for kind in ("video", "image") for name in message[f"{kind}s"]]
        else:
            urls = [("image_url", url) for name in names for url in images(frames[name])]
        shown = [{"type": kind, kind: {"url": url}} for kind, url in urls]
        return {"role": message["role"], "content": [*shown, {"type": "text", "text": message["content"]}]}

    def reply(messages: Messages) -> str:
        sent: list[Any] = [parts(message) for message in messages]
        try:
            answer = client.chat.completions.create(
                model=config.model, messages=sent, temperature=0.0, max_tokens=config.max_new_tokens
            )
        except openai.OpenAIError as error:
            raise ConfigError(
                f"the judge {config.model} at {config.base_url} did not answer: {' '.join(str(error).split())[:300]}. Check "
                f"{key}.base_url and {key}.model, and that {config.api_key_env} holds its key; then run the same "
                "command again: the judgements made so far are kept"
            ) from error
        return answer.choices[0].message.content or ""

    def chat(conversations: Sequence[Messages]) -> list[str]:
        with ThreadPoolExecutor(config.concurrency) as pool:
            return list(pool.map(reply, conversations))

    return chat, config.model


def own_chat(config: JudgeConfig, key: str) -> Chat:
    """The chat that a function of the user's own opens.

    Raises:
        ConfigError: by the chat, if it returns something else than one text a conversation.
    """
    theirs: Any = resolve(config.kind, {}, what=f"{key}.kind")(config)

    def chat(conversations: Sequence[Messages]) -> list[str]:
        replies = theirs([[_without_questions(message) for message in messages] for messages in conversations])
        texts = isinstance(replies, list | tuple) and all(isinstance(reply, str) for reply in replies)
        if not texts or len(replies) != len(conversations):
            raise ConfigError(
                f"{key}.kind={config.kind} answered {len(conversations)} conversations with {str(replies)[:200]!r}; a chat returns a "
                "list with one text for each"
            )
        return list(replies)

    return chat


def _without_questions(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with its videos as rows name them, without the questions that choose their frames."""
    videos = [without_question(name) for name in message.get("videos", ())]
    return {**message, "videos": videos} if "videos" in message else dict(message)


def vllm_chat(config: JudgeConfig, key: str) -> tuple[Chat, str]:
    """A chat with a model folder in a vLLM engine of this process, and its content hash.

    Raises:
        ModelError: vLLM cannot serve the folder or, by the chat, refuses a prompt.
    """
    from vidalign.model.checkpoint import policy_version

    enter_actor_environment(config.num_gpus)
    import vllm
    from vllm.exceptions import VLLMValidationError

    try:
        engine = vllm.LLM(model=config.model, **judge_options(config))
    except (ValueError, RuntimeError, OSError, KeyError) as error:
        raise ModelError(f"vLLM cannot serve the judge {config.model}: {' '.join(str(error).split())[:600]}") from error
    params = vllm.SamplingParams(temperature=0.0, max_tokens=config.max_new_tokens)

    def chat(conversations: Sequence[Messages]) -> list[str]:
        try:
            outputs = engine.chat(list(conversations), params, use_tqdm=False)  # type: ignore[arg-type]
        except (VLLMValidationError, ValueError) as error:
            raise ModelError(
                f"vLLM refused a judge's prompt at {key}.max_model_len={config.max_model_len:,}: "
                f"{' '.join(str(error).split())[:400]}. Raise {key}.max_model_len, or lower {key}.max_response_chars"
            ) from error
        return [output.outputs[0].text for output in outputs]

    return chat, policy_version(config.model).version


def seeing_chat(config: JudgeConfig, frames: Mapping[str, str], limits: Mapping[str, int], key: str) -> tuple[Chat, str]:
    """A chat with a video model's folder in a vLLM engine of this process, and its content hash. It sees the clips of `frames`.

    The engine takes one message a request, so what a judge is reminded of follows its earlier reply in that message.

    Raises:
        ModelError: vLLM cannot serve the folder or, by the chat, refuses a prompt.
    """
    from actors.engine import VllmEngine
    from vidalign.config.run import ModelConfig
    from vidalign.model.checkpoint import policy_version
    from vidalign.recipes.engine import Request
    from vidalign.records import Context
    from vidalign.video.frame_cache import load_clip
    from vidalign.video.scene import Shown, shown

    version = policy_version(config.model).version
    remote = bool(config.engine_args.get("trust_remote_code", False))
    model = ModelConfig(path=config.model, dtype=config.dtype, max_model_len=config.max_model_len, trust_remote_code=remote)
    own = dict(config.engine_args)
    engine = VllmEngine(model, config.model, num_gpus=config.num_gpus, seed=0, engine_args=own, limits=limits)
    names = {"videos", "images"}

    def chat(conversations: Sequence[Messages]) -> list[str]:
        seen = {frames[name] for messages in conversations for kind in names for name in messages[0][kind]}
        clips = {path: load_clip(pathlib.Path(path)) for path in seen}

        def what(message: Mapping[str, Any]) -> Shown:
            context = Context(videos=tuple(message["videos"]), images=tuple(message["images"]))
            return shown(context, tuple(clips[frames[name]] for name in context.visuals))

        requests = [
            Request(
                prompt=in_one_message(messages),
                clip=what(messages[0]),
                seed=0,
                temperature=0.0,
                top_p=1.0,
                max_new_tokens=config.max_new_tokens,
            )
            for messages in conversations
        ]
        try:
            return [completion.text for completion in engine.generate(requests)]
        except ModelError as error:
            raise ModelError(f"the judge of {key}: {error}") from error

    return chat, version


def in_one_message(messages: Messages) -> str:
    """A conversation as one text of the user: its texts in order, and who wrote what the judge itself wrote."""
    said = [
        message["content"] if message["role"] == "user" else f"Your reply was:\n{message['content']}" for message in messages
    ]
    return "\n\n".join(said)


def jpegs(clip_path: str) -> tuple[str, ...]:
    """The frames of a decoded clip as data urls of JPEG images, in order."""
    import PIL.Image

    from vidalign.video.frame_cache import load_clip

    urls = []
    for frame in load_clip(pathlib.Path(clip_path)).frames:
        buffer = io.BytesIO()
        PIL.Image.fromarray(frame).save(buffer, "JPEG", quality=95)
        urls.append(f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}")
    return tuple(urls)


def data_url(name: str, key: str) -> str:
    """A local video or image file as a data url; a url of another machine as it is.

    Raises:
        DataError: the file cannot be read, or the name is that of a part of a video or of frames, which an endpoint would not know.
    """
    visual = visual_of(name)
    if visual.kind not in ("video", "image") or visual.is_part:
        raise DataError(
            f"{short(name)} is a part of a video or frames in files, which {key}.sees=video cannot show an endpoint; set {key}.sees "
            "to frames"
        )
    path = local_path(visual.uris[0])
    if path is None:
        return visual.uris[0]
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read for the judge: {error.strerror}; restore the file, then run again"
        ) from error
    kind = mimetypes.guess_type(path)[0] or ("image/jpeg" if visual.kind == "image" else "video/mp4")
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
