"""How much each frame has to do with a question: by a CLIP or SigLIP model in a folder, or by a function of the user's own.

Models are computed where videos are decoded: on the CPU, in float32, in the process of the decoder, which keeps them. Of a function
or a model also its content counts in the names of what is kept (`identity`).
"""

from __future__ import annotations

import collections
import functools
import hashlib
import pathlib
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from vidalign.errors import ConfigError, DataError
from vidalign.plugins import resolve
from vidalign.records import FrameChoice
from vidalign.types import FrameSpec, stable_hash

Relevance: TypeAlias = Callable[[np.ndarray, str], Any]  # frames uint8 [F, H, W, 3], question -> [F]
BATCH, KEPT = 16, 8  # frames, videos
KEY = "video.choice.relevance"


def relevances(choice: FrameChoice, frames: np.ndarray, question: str, name: str) -> np.ndarray | None:
    """Float64 [F] for uint8 [F, H, W, 3]; None where nothing says it. `name`: of the video, for messages.

    Raises:
        ConfigError: as `opened`.
        DataError: the user's function fails, or does not give a finite number for each frame.
    """
    if not choice.needs_question:
        return None
    relevance = opened(choice.relevance)
    try:
        found = np.asarray(relevance(frames, question), np.float64)
    except MemoryError:
        raise  # of the node
    except Exception as error:  # what a function of the user's own raises is no fault of the video
        raise DataError(
            f"{KEY}={choice.relevance} failed on {name}: {type(error).__name__}: {error}; correct it, then run again"
        ) from error
    if found.shape != (len(frames),) or not np.isfinite(found).all():
        said = f"shape {list(found.shape)}" if found.shape != (len(frames),) else "numbers that are not finite"
        raise DataError(
            f"{KEY}={choice.relevance} must give one finite number for each of the {len(frames)} frames of {name}, got {said}"
        )
    return found


@functools.cache
def opened(relevance: str) -> Relevance:
    """What `video.choice.relevance` names, kept by this process.

    Raises:
        ConfigError: there is no such function, or the folder holds no CLIP or SigLIP model that can be used.
    """
    if ":" in relevance:
        return resolve(relevance, {}, what=KEY)
    check(relevance)
    return TwoTowers(pathlib.Path(relevance))


def check(relevance: str) -> None:
    """Raises `ConfigError` for a folder that is not there, or holds something else than a CLIP or SigLIP model. Loads no weights."""
    if relevance == "none" or ":" in relevance:
        return
    folder = pathlib.Path(relevance).expanduser()
    way_out = "name the folder of a CLIP or SigLIP model with safetensors weights, none, or package.module:attribute"
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{KEY}={relevance}: there is no config.json in that folder; {way_out}")
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(f"{KEY}={relevance} has no *.safetensors; {way_out}")
    from transformers import AutoConfig

    try:
        kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{KEY}={relevance}: {' '.join(str(error).split())[:200]}; {way_out}") from error
    if kind not in ("clip", "siglip", "siglip2"):
        raise ConfigError(f"{KEY}={relevance} holds a model of type {kind}; {way_out}")


@functools.cache
def identity(relevance: str) -> str:
    """A hash of a model's files, or of the file that defines a function; "" where nothing but its name is known.

    Raises:
        ConfigError: as `check`, or a file cannot be read.
    """
    if relevance == "none":
        return ""
    if ":" in relevance:
        resolve(relevance, {}, what=KEY)
        defined = sys.modules[relevance.partition(":")[0]].__file__
        return stable_hash(hashlib.sha256(pathlib.Path(defined).read_bytes()).hexdigest()) if defined else ""
    check(relevance)
    folder, digests = pathlib.Path(relevance).expanduser(), []
    try:
        for path in sorted([*folder.glob("*.json"), *folder.glob("*.txt"), *folder.glob("*.safetensors")]):
            with path.open("rb") as file:
                digests.append([path.name, hashlib.file_digest(file, "sha256").hexdigest()])
    except OSError as error:
        raise ConfigError(f"{KEY}={relevance} cannot be read: {error.strerror}; make its files readable") from error
    return stable_hash(digests)


def decided_by(spec: FrameSpec) -> dict[str, str]:
    """What a stage records of the model or function that chooses frames; nothing where none does."""
    found = identity_of(spec)
    return {KEY: found} if found else {}


def identity_of(spec: FrameSpec) -> str:
    """What decides which frames are taken beside the FrameSpec and the video's name; "" where nothing does."""
    return "" if spec.choice is None else identity(spec.choice.relevance)


class TwoTowers:
    """A CLIP or SigLIP model: the cosine of a frame's and a question's features. A question that is too long is cut."""

    def __init__(self, folder: pathlib.Path) -> None:
        """Raises `ConfigError` for a folder without all weights or without a processor."""
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        folder = folder.expanduser()
        try:
            self._model, found = AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype="float32"
            )
            self._images = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{KEY}={folder} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
        lost = sorted([*found["missing_keys"], *(str(key) for key in found["mismatched_keys"])])
        if lost:
            raise ConfigError(
                f"{KEY}={folder} lacks {len(lost):,} of the model's weights, first {lost[0]}; they would be random. Copy all of it"
            )
        self._model.eval()
        self._kept: collections.OrderedDict[bytes, Any] = collections.OrderedDict()  # features of the last videos

    def __call__(self, frames: np.ndarray, question: str) -> np.ndarray:
        import torch

        limit = self._model.config.text_config.max_position_embeddings
        tokens = dict(
            self._tokenizer(question, padding="max_length", truncation=True, max_length=limit, return_tensors="pt")
        )
        tokens.pop("token_type_ids", None)
        if self._model.config.model_type != "clip":
            tokens.pop("attention_mask", None)  # SigLIP was trained to read its padding
        with torch.inference_mode():
            asked = _unit(self._model.get_text_features(**tokens))
            return (self._images_of(frames) @ asked[0]).double().numpy()

    def _images_of(self, frames: np.ndarray) -> Any:
        """Unit features [F, D] of these frames; several questions in a row on one video compute them once."""
        import torch

        key = hashlib.sha256(repr(frames.shape).encode() + frames.tobytes()).digest()
        if key not in self._kept:
            batches = [list(frames[at : at + BATCH]) for at in range(0, len(frames), BATCH)]
            inputs = [
                self._images(images=batch, return_tensors="pt", input_data_format="channels_last") for batch in batches
            ]
            self._kept[key] = torch.cat([_unit(self._model.get_image_features(**each)) for each in inputs])
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return self._kept[key]


def _unit(features: Any) -> Any:
    """Features [B, D] of a tower, each of length 1. Newer versions of transformers wrap them."""
    pooled = features if hasattr(features, "norm") else features.pooler_output
    return pooled / pooled.norm(dim=-1, keepdim=True)
