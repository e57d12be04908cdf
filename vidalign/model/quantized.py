"""The linear layers of a frozen language model in 4 bits under an adapter (QLoRA, arXiv 2305.14314; `train.lora.quantize`).

    weights on disk ─► one tensor at a time to the device ─► 4 bits (nf4, scales quantized too)    load_quantized
    adapter         ─► added to weights that are read from disk again, in their own type            merged

Embeddings, output layer, norms, vision tower and projector keep their type, and so does the adapter. An export merges the adapter into
the weights as they were before they were rounded to 4 bits.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from torch import nn

from vidalign.config.run import ModelConfig
from vidalign.config.training import TrainConfig
from vidalign.errors import ConfigError
from vidalign.model import loading
from vidalign.model.adapters import adapter_targets
from vidalign.model.policy import corrected
from vidalign.model.weights import unwrapped


def check(train: TrainConfig) -> None:
    """Raises `ConfigError` where 4 bits are asked for and bitsandbytes is not on this machine."""
    if train.lora is not None and train.lora.quantize is not None and not is_installed():
        raise ConfigError(
            f"train.lora.quantize={train.lora.quantize} needs the package bitsandbytes, which is not installed; run `pip install "
            "bitsandbytes` on every node, or set train.lora.quantize to null"
        )


@functools.cache
def is_installed() -> bool:
    """Whether bitsandbytes is here."""
    return importlib.util.find_spec("bitsandbytes") is not None


def load_quantized(config: ModelConfig, path: str, device: torch.device) -> nn.Module:
    """`vidalign.model.policy.load_policy` with the language model's linear layers in 4 bits, on the device.

    Raises:
        ModelError: see `vidalign.model.loading`.
    """
    from transformers import BitsAndBytesConfig

    dtype = getattr(torch, config.dtype)
    outline = loading.outline(path, trust_remote_code=config.trust_remote_code, weights=False)
    inside = adapter_targets(outline)
    whole = [name for name, module in outline.named_modules() if isinstance(module, nn.Linear) and name not in inside]
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=whole,
    )
    model = loading.load(
        path,
        dtype,
        trust_remote_code=config.trust_remote_code,
        quantization_config=quantization,
        device_map={"": device},
    )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # After a forward pass without gradients some CPUs keep the weights in a form through which no gradient goes back.
            module.support_avx512bf16_for_cpu = False
    return corrected(model, config)


def is_quantized(model: Any) -> bool:
    """Whether a model, perhaps with an adapter around it, came from `load_quantized`."""
    return bool(getattr(unwrapped(model), "is_loaded_in_4bit", False))


@torch.no_grad()
def merged(model: Any, path: str, *, trust_remote_code: bool = False) -> nn.Module:
    """A model read from disk in the type in which `model` computes, with the adapter of `model` merged into its weights.

    It is whole in this process's host memory.
    """
    base = unwrapped(model)
    made = loading.load(path, base.get_output_embeddings().weight.dtype, trust_remote_code=trust_remote_code)
    for name, layer in base.named_modules():
        for adapter in getattr(layer, "active_adapters", ()) if hasattr(layer, "lora_A") else ():
            if adapter in layer.lora_A:
                weight: Any = made.get_submodule(name).weight
                weight += layer.get_delta_weight(adapter).to(weight.device, weight.dtype)
    return made
