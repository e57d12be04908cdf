"""vLLM's linear attention on CPUs in float32, by the function of transformers: its own kernels take only bfloat16.

With this one operator exchanged, everything else that vLLM computes of such a model can be compared in float32.
"""

from __future__ import annotations

import typing
from typing import Any

import torch
from torch.nn import functional


def allow_float32(monkeypatch: Any) -> None:
    """Let vLLM in this process take linear attention in float32; in bfloat16 its own kernels compute as before.

    Must be called before the first model with such layers is made, which registers the operator for good.
    """
    monkeypatch.setattr("vidalign.model.engine_rules.check_on_cpu", lambda config, dtype: None)
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention as theirs

    kernel = theirs.cpu_gdn_attention_core
    if getattr(kernel, "takes_float32", False):
        return

    def core(
        mixed_qkv: torch.Tensor,
        b: torch.Tensor,
        a: torch.Tensor,
        core_attn_out: torch.Tensor,
        layer_name: theirs.LayerNameType,
    ) -> None:
        if mixed_qkv.dtype == torch.bfloat16:
            return kernel(mixed_qkv, b, a, core_attn_out, layer_name)
        context = theirs.get_forward_context()
        layer: Any = context.no_compile_layers[theirs._resolve_layer_name(layer_name)]
        if context.attn_metadata is not None:
            _compute(layer, context.attn_metadata[layer.prefix], mixed_qkv, b, a, core_attn_out)
        return None

    core.__annotations__ = {**typing.get_type_hints(kernel), "return": None}  # from which the operator's schema is made
    core.takes_float32 = True  # type: ignore[attr-defined]
    theirs.cpu_gdn_attention_core = core


def _compute(layer: Any, batch: Any, mixed_qkv: torch.Tensor, b: torch.Tensor, a: torch.Tensor, out: torch.Tensor) -> None:
    """One sequence after the other: its convolution and its recurrence, from the states that the cache holds and into them."""
    from transformers.models.qwen3_5.modeling_qwen3_5 import torch_chunk_gated_delta_rule
    from vllm.model_executor.layers.mamba.mamba_utils import is_conv_state_dim_first

    convolved, state = layer.kv_cache[0], layer.kv_cache[1]
    convolved = convolved if is_conv_state_dim_first() else convolved.transpose(-1, -2)  # [slots, channels, width - 1]
    state = state.view(len(state), state.shape[1], state.shape[3], state.shape[2])
    decay = -layer.A_log.float().exp() * functional.softplus(a.float() + layer.dt_bias)
    starts, slots = batch.non_spec_query_start_loc.tolist(), batch.non_spec_state_indices_tensor.tolist()
    for number in range(batch.num_decodes + batch.num_prefills):
        part, slot = slice(starts[number], starts[number + 1]), slots[number]
        if number >= batch.num_decodes and not batch.has_initial_state[number]:
            convolved[slot], state[slot] = 0, 0
        inputs = torch.cat([convolved[slot], mixed_qkv[part].T], dim=-1)
        convolved[slot] = inputs[:, -convolved.shape[-1] :]
        mixed = functional.conv1d(inputs[None], layer.conv1d.weight, layer.conv1d.bias, groups=len(inputs))
        query, key, value = layer.rearrange_mixed_qkv(functional.silu(mixed)[0].T.contiguous())
        repeats = value.shape[-2] // key.shape[-2]
        made, last = torch_chunk_gated_delta_rule(
            query.repeat_interleave(repeats, dim=-2),
            key.repeat_interleave(repeats, dim=-2),
            value,
            g=decay[None, part],
            beta=b[None, part].sigmoid(),
            initial_state=state[None, slot].clone(),
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )
        state[slot] = last[0]
        out[part] = made[0]
