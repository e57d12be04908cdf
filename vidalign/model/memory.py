"""Bytes of activations and engines, computed from a model on the meta device. Loads no weights.

Model states are in `vidalign.model.training_memory`. Activations are an estimate: what autograd would keep for a token is counted
by running the language model on the meta device, layer for layer as transformers computes it, and scaled to the tokens of a forward
pass.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from vidalign.model.logps import CHUNK_SIZE

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PROBE_TOKENS = 64  # a multiple of the chunks of linear attention
WIDTHS = 30  # of a layer's hidden state that autograd keeps for a token, where a model cannot be asked; Qwen2.5-VL keeps 29
LOGITS_COPIES = 4  # of a chunk of float32 logits: themselves, their exponentials, their gradient, and one on the way
VISION_COPIES = 12  # widths of a patch's hidden state that a frozen tower holds at once: a layer's q, k, v, and MLP


@dataclasses.dataclass(frozen=True, kw_only=True)
class Activations:
    """What a forward and backward pass holds beside model states, in bytes. An estimate.

    Attributes:
        per_token: kept for the backward pass by all layers of the language model, for one token.
        per_layer: of one layer.
        num_layers, width, vocabulary: of the language model.
        vision_width, vision_layers, patches_per_token: of the vision tower; 0 where that is not known.
        size: bytes of a number.
    """

    per_token: int
    per_layer: int
    num_layers: int
    width: int
    vocabulary: int
    vision_width: int
    vision_layers: int
    patches_per_token: int
    size: int

    def training(self, num_tokens: int, num_vision_tokens: int, *, checkpointing: bool, trains_vision: bool = False) -> int:
        """Bytes at the peak of a forward and backward pass over so many tokens.

        With gradient checkpointing each layer keeps its input, and one layer at a time is computed again. A frozen vision tower keeps
        nothing.
        """
        kept = self.num_layers * self.width * self.size + self.per_layer if checkpointing else self.per_token
        vision = self._vision(num_vision_tokens)
        if trains_vision:
            vision *= 1 if checkpointing else WIDTHS * self.vision_layers // VISION_COPIES
        return num_tokens * kept + self._logits(num_tokens) + vision

    def inference(self, num_tokens: int, num_vision_tokens: int) -> int:
        """Bytes at the peak of a forward pass that keeps nothing."""
        return num_tokens * self.per_layer + self._logits(num_tokens) + self._vision(num_vision_tokens)

    def _logits(self, num_tokens: int) -> int:
        return min(num_tokens, CHUNK_SIZE) * self.vocabulary * 4 * LOGITS_COPIES

    def _vision(self, num_tokens: int) -> int:
        return num_tokens * self.patches_per_token * self.vision_width * self.size * VISION_COPIES


def activations(model: Any, dtype: str) -> Activations:
    """Count what the language model of an outline (`vidalign.model.loading.outline`, made in this dtype) keeps for a token."""
    from vidalign.model import families

    config = model.config
    text, vision = config.get_text_config(), getattr(config, "vision_config", None)
    decoder = families.decoder(model)
    layers, size = int(text.num_hidden_layers), BYTES[dtype]
    try:
        # Attention on the meta device keeps its [T, T] weights, which fused kernels do not: they are what grows with the square.
        one, two = (_saved_bytes(decoder, text.hidden_size, times * PROBE_TOKENS) for times in (1, 2))
        per_token = (4 * one - two) // (2 * PROBE_TOKENS)
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError):  # some models look into their tensors
        per_token = WIDTHS * layers * text.hidden_size * size
    return Activations(
        per_token=per_token,
        per_layer=per_token // layers,
        num_layers=layers,
        width=text.hidden_size,
        vocabulary=model.get_output_embeddings().weight.shape[0],
        vision_width=_first(vision, "embed_dim", "hidden_size"),
        vision_layers=_first(vision, "depth", "num_hidden_layers"),
        patches_per_token=(getattr(vision, "spatial_merge_size", None) or 1) ** 2,
        size=size,
    )


def _first(config: Any, *names: str) -> int:
    return next((getattr(config, name) for name in names if getattr(config, name, None)), 0)


def _saved_bytes(decoder: Any, width: int, num_tokens: int) -> int:
    """Bytes of the tensors that autograd keeps of a forward pass, each once and without parameters."""
    import torch

    parameter = next(decoder.parameters())
    own = {tensor.untyped_storage()._cdata for tensor in (*decoder.parameters(), *decoder.buffers())}
    kept: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that no later one gets its address
        return tensor

    flags = [each.requires_grad for each in decoder.parameters()]
    decoder.requires_grad_(True)
    inputs = torch.zeros((1, num_tokens, width), dtype=parameter.dtype, device=parameter.device, requires_grad=True)
    mask = inputs.new_zeros((1, 1, num_tokens, num_tokens)).detach()  # one that is made is not looked into
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = decoder(inputs_embeds=inputs, attention_mask=mask, use_cache=False)
            total = sum(storage.nbytes() for storage in kept.values())
            del output
    finally:
        for each, flag in zip(decoder.parameters(), flags, strict=True):
            each.requires_grad_(flag)
    return total


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineMemory:
    """Bytes per device of one vLLM engine: its share of the weights, and the key-value cache of one sequence."""

    weights: int
    kv_per_sequence: int


def engine_memory(
    num_parameters: int, model_config: Any, *, dtype: str, num_devices: int, max_model_len: int
) -> EngineMemory:
    """Memory of an engine whose tensor parallelism divides weights and key-value heads. `model_config`: as transformers reads it.

    Layers with a window keep no more than that; layers without a cache that grows (linear attention) count as nothing.
    """
    text = model_config.get_text_config()
    heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    window = getattr(text, "sliding_window", None) or max_model_len
    length = {"full_attention": max_model_len, "sliding_attention": min(window, max_model_len)}
    tokens = sum(length.get(kind, 0) for kind in kinds)
    per_device = max(1, math.ceil(kv_heads / num_devices))
    return EngineMemory(
        weights=math.ceil(num_parameters * BYTES[dtype] / num_devices),
        kv_per_sequence=2 * tokens * per_device * head_dim * BYTES[dtype],
    )
