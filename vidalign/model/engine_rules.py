"""What vLLM 0.32 must be told so that it treats a model's videos as the model's own processor and transformers do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vidalign.errors import ModelError
from vidalign.model.families import FAMILIES, GENERAL

NORMALIZING = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
CPU_SEQUENCES = 16  # at once, where a whole prompt of each must fit into one step


def engine_rules(
    processor: Any, config: Any, *, dtype: str, max_model_len: int, on_cpu: bool, limits: Mapping[str, int]
) -> dict[str, Any]:
    """Keyword arguments of `vllm.LLM` for this processor and Hugging Face config; none for most models.

    `limits`: how many videos and images a prompt has at most.

    - vLLM normalizes the pixels of some families in the vision tower, by the numbers of the *image* processor; where those of the
      video processor differ, the processor does it (in float32, which takes four times the memory on the way to the device).
    - Frames are sampled once, by one FrameSpec; not every family in vLLM passes that on to a processor that would sample again.
    - Some families' videos go through the image processor, and through a tower that is loaded only where prompts may have images.
    - State-space layers (Qwen3.5's linear attention) need chunked prefill. On a CPU, where a prompt must not be split (its seeded
      generator cannot be rewound), so few prompts run at once that none is.
    """
    if on_cpu:
        check_on_cpu(config, dtype)
    rules: dict[str, Any] = {}
    family, text = FAMILIES.get(config.model_type, GENERAL), config.get_text_config()
    for name, value in family.stated:
        if getattr(text, name, None) != value:
            raise ModelError(
                f"vLLM would compute other numbers than training: the text_config of a {config.model_type} must say {name}={value}, "
                f"not {getattr(text, name, None)}; correct it in the model folder's config.json"
            )
    images = getattr(processor, "image_processor", None)
    as_images = family.videos_as_images
    if images is not None and normalization(images) != normalization(processor.video_processor):
        if as_images:
            raise ModelError(
                f"vLLM normalizes a video of {type(processor).__name__} as it does images, by {normalization(images)}, but its video "
                f"processor by {normalization(processor.video_processor)}; give both the same {', '.join(NORMALIZING)}"
            )
        rules["mm_device_do_normalize"] = False
    if getattr(processor.video_processor, "do_sample_frames", False):
        rules["mm_processor_kwargs"] = {"do_sample_frames": False}
    if as_images:
        rules["limit_mm_per_prompt"] = {**limits, "image": max(1, limits.get("image", 0))}
    layers = set(getattr(text, "layer_types", None) or ())
    if on_cpu and "linear_attention" in layers:
        rules["enable_chunked_prefill"] = True
        rules["max_num_seqs"] = CPU_SEQUENCES
        rules["max_num_batched_tokens"] = CPU_SEQUENCES * max_model_len
    return rules


def check_on_cpu(config: Any, dtype: str) -> None:
    """Raises `ModelError` for what vLLM's engines compute on GPUs alone, or on CPUs not in this type."""
    text = config.get_text_config()
    if "linear_attention" in (getattr(text, "layer_types", None) or ()) and dtype != "bfloat16":
        raise ModelError(
            f"vLLM's kernel for the linear attention of a {config.model_type} takes only bfloat16 on CPUs, and the engine was to "
            f"compute in {dtype}; set model.dtype=bfloat16, or give the engines GPUs"
        )
    if getattr(text, "use_bidirectional_attention", None):
        raise ModelError(
            f"frames of a {config.model_type} attend to what follows them (use_bidirectional_attention="
            f"{text.use_bidirectional_attention} in its config.json), which vLLM leaves out on CPUs; give the engines GPUs"
        )


def with_head_dtype(overrides: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """`hf_overrides` of an engine, in which a `head_dtype` also reaches the language model.

    vLLM makes the language model of most families from the text part of the config alone, and reads the type of its logits there.
    """
    if "head_dtype" not in overrides:
        return dict(overrides)
    text = config.get_text_config()
    made = dict(overrides)
    for name, part in vars(config).items():
        if part is text:
            made[name] = {"head_dtype": overrides["head_dtype"], **(overrides.get(name) or {})}
    return made


def normalization(processor: Any) -> list[Any]:
    """What an image or video processor does to the values of pixels."""
    found = [getattr(processor, name, None) for name in NORMALIZING]
    return [list(value) if isinstance(value, list | tuple) else value for value in found]
