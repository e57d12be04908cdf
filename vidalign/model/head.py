"""The output layer in float32: logits of a bfloat16 model without rounding them to three digits (`train.float32_head`).

In bfloat16 a logit of 20 has steps of 0.125, which moves single log-probs by up to 0.03 nats. Inputs and weights stay what they are;
products and sums are float32. The weight is converted a block of the vocabulary at a time, so that no float32 copy of it exists.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 16_384  # rows of the vocabulary that are float32 at a time


class _Float32Linear(torch.autograd.Function):
    """rows [N, D] times weight [V, D], as float32 [N, V]; gradients of weight and rows in their own types."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight)
        wide = rows.float()
        return torch.cat([wide @ block.float().T for block in weight.split(BLOCK)], dim=-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (grad,) = grads
        rows, weight = ctx.saved_tensors
        for_rows = for_weight = None
        if ctx.needs_input_grad[0]:
            for_rows = torch.zeros_like(rows, dtype=torch.float32)
            for part, block in zip(grad.split(BLOCK, dim=-1), weight.split(BLOCK), strict=True):
                for_rows.addmm_(part, block.float())
            for_rows = for_rows.to(rows.dtype)
        if ctx.needs_input_grad[1]:
            wide = rows.float()
            for_weight = torch.cat([(part.T @ wide).to(weight.dtype) for part in grad.split(BLOCK, dim=-1)])
        return for_rows, for_weight


def compute_in_float32(head: nn.Module) -> None:
    """Let an output layer give float32 logits [N, V] for hidden states [N, D] of any type. Its weight keeps its type.

    The layer is still called as a module, so that what gathers a partitioned weight before the call does so.
    """
    assert isinstance(head, nn.Linear), type(head)
    if head.weight.dtype != torch.float32:
        head.forward = types.MethodType(_forward, head)  # type: ignore[method-assign]


def _forward(head: nn.Linear, rows: Tensor) -> Tensor:
    flat = rows.flatten(0, -2)
    logits = _Float32Linear.apply(flat, head.weight).unflatten(0, rows.shape[:-1])
    return logits if head.bias is None else logits + head.bias.float()
