"""A value model: a policy's backbone with one linear output in place of its output layer. One number for each response token."""

from __future__ import annotations

import pathlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vidalign import mirror
from vidalign.errors import ModelError
from vidalign.model.logps import at_least_float32
from vidalign.model.policy import ResponseScorer
from vidalign.model.tensor_cache import read_tensors, write_tensors
from vidalign.model.weights import unwrapped

FILE = "value_head.safetensors"


class ValueHead(nn.Module):
    """hidden [N, D] ─► values [N] in float32; all of them 0 at first."""

    def __init__(self, width: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(1, dtype=dtype))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        weight, bias = at_least_float32(self.weight), at_least_float32(self.bias)
        return F.linear(hidden.to(weight.dtype), weight[None], bias)[:, 0]


class ValueScorer(ResponseScorer):
    """A `ResponseScorer` that returns a value for each response token where that returns its log-prob.

    The value of a token is of the state before it: of the prompt and the response's earlier tokens. The output layer is not used, and
    frozen unless it is the input embeddings too.
    """

    def __init__(self, model: nn.Module, **options: Any) -> None:
        """`options`: see `ResponseScorer`. Without `compares`, `float32_head` and `squares`, which are of the output layer."""
        super().__init__(model, **options)
        output = self._head()
        if output.weight is not unwrapped(model).get_input_embeddings().weight:
            output.requires_grad_(False)
        dtype = next(iter(output.parameters())).dtype
        self.value_head = ValueHead(int(output.weight.shape[-1]), dtype)

    def score(self, hidden: torch.Tensor, tokens: torch.Tensor, min_calls: int = 0) -> torch.Tensor:
        """Values [N] float32 of the states [N, D] that predict tokens [N]."""
        return self.value_head(hidden)


def write_head(head: ValueHead, folder: pathlib.Path) -> None:
    """Write a head's weights beside its model's folder. Every value is whole on the rank that calls this."""
    write_tensors(folder / FILE, dict(head.named_parameters()))


def read_head(head: ValueHead, folder: pathlib.Path) -> None:
    """Give a head the weights that `write_head` wrote. Raises `ModelError` where they are not there, or of another width."""
    path = mirror.fetched(folder / FILE)
    if not path.is_file():
        raise ModelError(f"{path} is not there; delete that folder, and the round's value model is trained again")
    tensors = read_tensors(path)
    if tensors["weight"].shape != head.weight.shape:
        raise ModelError(
            f"{path} is of a model {len(tensors['weight'])} wide, and this one is {len(head.weight)} wide; delete that folder, and "
            "the round's value model is trained again"
        )
    head.load_state_dict(tensors)
