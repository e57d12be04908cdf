"""What differs between model architectures: a table with one row per family, by the `model_type` of the folder's config.json.

A family without a row works by the general rule: the model itself says which of its parameters are language model, vision tower
and projector, each response is its own sequence, and vision features are computed anew in every forward pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from vidalign.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn

Part: TypeAlias = Literal["language_model", "vision_tower", "projector"]


def one_per_video(features: torch.Tensor) -> Any:
    """Video embeddings [T, D] for a model that joins a tuple of videos."""
    return (features,)


def one_batch(features: torch.Tensor) -> Any:
    """Video embeddings [T, D] for a model that flattens videos of equal length [B, T, D]."""
    return features[None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture.

    Attributes:
        towers: modules of the backbone that are vision towers but that the model's own `get_encoder` does not name.
        projectors: modules inside a vision tower that belong to the projector.
        packs: a packed row was tested to give the log-probs of separate sequences (`vidalign.model.shared_prefix`).
        takes_features: how its forward takes the embeddings [T, D] of all videos of a batch, end to end, in place of pixels. None
            if a video's embeddings are more than one tensor, or if this was never tested (`vidalign.model.vision_features`).
        mrope: its positions follow `vidalign.model.positions`, where transformers differs.
        processors: its processor classes, by name, where something else than the general rule holds for them.
        video_axis: the axis of a processor's `pixel_values_videos` along which the videos of a batch lie end to end.
        stated: what its text_config must say, (name, value), because vLLM asks for it or takes something else for granted, while
            transformers always goes by this value.
        not_served: why vLLM 0.32 does not read its checkpoints, as a clause; empty if it does.
        videos_as_images: vLLM gives the frames of its videos to the image processor, and loads the vision tower only for images.
        one_tower_call: its forward loses the number of frames of each video on the way to the vision tower, and needs no such
            number as long as all videos of a batch are computed in one call (`vidalign.model.videos`).
        calls_per_frame: its forward calls modules once for each frame, and so on each rank as often as its batch has frames.
        suppresses: vLLM never says the tokens that generation_config.json names in suppress_tokens.
        mixes: prompts of several videos and images were tested to be the same in vLLM and transformers.
        windows: its vision tower attends window by window, or frame by frame, and was tested to do so for many of them in one call
            (`vidalign.model.vision_attention`).
        counted_processors: processors whose vision tokens follow the closed form of `vidalign.model.estimate.VisionCost`.
    """

    towers: tuple[str, ...] = ()
    projectors: tuple[str, ...] = ()
    packs: bool = False
    takes_features: Callable[[torch.Tensor], Any] | None = None
    mrope: bool = False
    processors: tuple[str, ...] = ()
    video_axis: int = 0
    stated: tuple[tuple[str, Any], ...] = ()
    not_served: str = ""
    videos_as_images: bool = False
    one_tower_call: bool = False
    calls_per_frame: bool = False
    suppresses: bool = False
    mixes: bool = False
    windows: bool = False
    counted_processors: tuple[str, ...] = ()


GENERAL = Family()

FAMILIES: dict[str, Family] = {
    "qwen2_vl": Family(
        projectors=("merger",),
        packs=True,
        takes_features=one_per_video,
        mrope=True,
        mixes=True,
        windows=True,
        counted_processors=("Qwen2VLVideoProcessor", "Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast"),
    ),
    # Its processors are those of Qwen2-VL.
    "qwen2_5_vl": Family(
        projectors=("merger",), packs=True, takes_features=one_per_video, mrope=True, mixes=True, windows=True
    ),
    "qwen3_vl": Family(projectors=("merger", "deepstack_merger_list"), packs=True, windows=True),
    "qwen3_vl_moe": Family(
        projectors=("merger", "deepstack_merger_list"), packs=True, windows=True, stated=(("norm_topk_prob", True),)
    ),
    "qwen3_5": Family(projectors=("merger",), windows=True),
    "qwen3_5_moe": Family(projectors=("merger",)),
    "llava_onevision": Family(packs=True, takes_features=one_batch),
    "llava_next_video": Family(packs=True, takes_features=one_per_video),
    "internvl": Family(packs=True),
    "video_llava": Family(towers=("video_tower",)),  # in addition to image_tower, which the model names
    "glm4v": Family(projectors=("merger",), packs=True, windows=True, stated=(("attention_bias", True),)),
    "glm4v_moe": Family(projectors=("merger",), packs=True, windows=True, stated=(("use_qk_norm", False),)),
    "glm46v": Family(projectors=("merger",)),
    "glm5_next": Family(projectors=("merger",)),
    "glmga": Family(projectors=("merger",)),
    "gemma4": Family(one_tower_call=True, suppresses=True),
    "minicpmv4_6": Family(
        processors=("MiniCPMV4_6Processor",), video_axis=-1, videos_as_images=True, calls_per_frame=True, windows=True
    ),
    "ernie4_5_vl_moe": Family(
        packs=True,
        windows=True,
        not_served="vLLM 0.32 reads an older layout of its config.json, which transformers 5 does not read",
    ),
    "cosmos3_omni": Family(projectors=("merger", "deepstack_merger_list")),
    "exaone4_5": Family(projectors=("merger",)),
    "hyperclovax_vision_v2": Family(projectors=("merger",)),
}


def family_of(model: Any) -> Family:
    """The table's row for a model, or the general rule."""
    return FAMILIES.get(model.config.model_type, GENERAL)


def family_of_processor(processor: Any) -> Family:
    """The row that names a processor's class, or the general rule."""
    name = type(processor).__name__
    return next((family for family in FAMILIES.values() if name in family.processors), GENERAL)


def parts(model: Any) -> dict[str, Part]:
    """Which part of the model each of its parameters belongs to, in the order of `named_parameters`.

    The language model is the model's own decoder with its input and output embeddings. The vision tower is what the model names as
    its encoder of videos and images, without the projectors that the family's row names inside it. The projector is the rest.

    Raises:
        ModelError: the vision tower cannot be told apart from the language model.
    """
    language = _parameters([decoder(model), model.get_input_embeddings(), model.get_output_embeddings()])
    towers = vision_towers(model)
    tower = _parameters(towers)
    if not tower or tower & language:  # get_encoder and get_decoder give the whole model if they find no such part
        raise ModelError(
            f"{type(model).__name__} has no vision tower that can be told apart from its language model; set "
            "train.train_vision_tower=true and train.train_projector=true, without train.lora, to train all of it"
        )
    tower -= _parameters(inside.get_submodule(name) for inside in towers for name in family_of(model).projectors)
    return {name: _part(id(parameter), language, tower) for name, parameter in model.named_parameters()}


def decoder(model: Any) -> nn.Module:
    """The language model, without its output layer."""
    return model.get_decoder()


def vision_towers(model: Any) -> list[nn.Module]:
    """The modules that see pixels; empty if the model does not tell them apart."""
    found = [getattr(model.base_model, name) for name in family_of(model).towers]
    for modality in ("video", "image"):
        encoder = model.get_encoder(modality)
        if encoder is not None and encoder is not model and not any(encoder is known for known in found):
            found.append(encoder)
    return found


def _parameters(modules: Iterable[nn.Module | None]) -> set[int]:
    return {id(parameter) for module in modules if module is not None for parameter in module.parameters()}


def _part(parameter: int, language: set[int], tower: set[int]) -> Part:
    if parameter in language:
        return "language_model"
    return "vision_tower" if parameter in tower else "projector"
