"""From final hidden states to logits: the output layer, and what a model does to its logits after it.

The output layer in float32 (`train.float32_head`) gives logits of a bfloat16 model without rounding them to three digits. In
bfloat16 a logit of 20 has steps of 0.125, which moves single log-probs by up to 0.03 nats. Inputs and weights stay what they are;
products and sums are float32. The weight is converted a block of the vocabulary at a time, so that no float32 copy of it exists.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vidalign.errors import ModelError
from vidalign.model.families import family_of
from vidalign.model.logps import at_least_float32

BLOCK = 16_384  # rows of the vocabulary that are float32 at a time
NEVER = -1e30  # the logit of a token that is never said: finite, so that a KL is a number


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


# --- after the output layer ---

SCALES = ("logits_scaling", "logit_scale", "output_multiplier")  # which some models multiply with and others divide by


@dataclasses.dataclass(frozen=True)
class Finish:
    """What comes after the output layer: `softcap` c makes c tanh(logit / c) of a logit; `suppressed` tokens are never said."""

    softcap: float | None = None
    suppressed: tuple[int, ...] = ()

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits [N, V] in float32 (float64 stays)."""
        logits = at_least_float32(logits)
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        if self.suppressed:
            never = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
            never[list(self.suppressed)] = True
            logits = logits.masked_fill(never, NEVER)
        return logits


def finish_of(model: Any) -> Finish:
    """What a model's own forward pass, and vLLM, do to its logits.

    Raises:
        ModelError: something that is not known here.
    """
    text = model.config.get_text_config()
    check_logits(model.config)
    suppressed = ()
    if family_of(model).suppresses:
        suppressed = tuple(getattr(getattr(model, "generation_config", None), "suppress_tokens", None) or ())
    return Finish(softcap=getattr(text, "final_logit_softcapping", None), suppressed=suppressed)


def check_logits(config: Any) -> None:
    """Raises `ModelError` for a config whose logits are not those of the output layer in a way that is not known here."""
    text = config.get_text_config()
    for name in SCALES:
        if getattr(text, name, None) not in (None, 1):
            raise ModelError(
                f"a {config.model_type} scales its logits ({name}={getattr(text, name)} in the text part of config.json), which "
                "training here does not; use a model of another family, such as those in docs/models.md"
            )


def finished_logits(head: nn.Module, finish: Finish) -> Callable[[Tensor], Tensor] | nn.Module:
    """The output layer and what comes after it, as one function of hidden states [N, D]; the layer alone where nothing does."""
    return head if finish == Finish() else lambda rows: finish(head(rows))
