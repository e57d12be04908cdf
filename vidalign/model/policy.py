"""The policy as a torch module: load, freeze, adapt, and per-token log-probs of responses."""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from typing import Any

import torch
from torch import nn

from vidalign.config.run import ModelConfig
from vidalign.config.training import TrainConfig
from vidalign.model import families, sequence_parallel, shared_prefix, vision_features
from vidalign.model.adapters import add_adapter
from vidalign.model.batch import IGNORED
from vidalign.model.head import compute_in_float32, finish_of, finished_logits
from vidalign.model.loading import explained, load, read_config, trainable_class
from vidalign.model.logps import (
    CHUNK_SIZE,
    at_least_float32,
    forward_kl,
    log_sum_squares,
    num_chunks,
    pad_to_mask,
    token_logps,
)
from vidalign.model.positions import correct_positions
from vidalign.model.sequence_parallel import Shards
from vidalign.model.videos import correct_videos
from vidalign.model.vision_attention import attend_by_windows
from vidalign.model.weights import unwrapped


def load_policy(config: ModelConfig, path: str | None = None) -> nn.Module:
    """Load a video language model from safetensors in the configured dtype. Raises `ModelError`, see `vidalign.model.loading`."""
    path = path or config.path
    return corrected(load(path, getattr(torch, config.dtype), trust_remote_code=config.trust_remote_code), config)


def outline_policy(config: ModelConfig, path: str | None = None) -> nn.Module:
    """What `load_policy` returns, with parameters on the meta device and with buffers; for ranks that are sent the weights.

    Raises:
        ModelError: see `load_policy`.
    """
    import accelerate
    from transformers import GenerationConfig

    path = path or config.path
    read = read_config(path, trust_remote_code=config.trust_remote_code)
    with explained(path), accelerate.init_empty_weights(include_buffers=False):
        model = trainable_class(path, read)._from_config(
            read, dtype=getattr(torch, config.dtype), attn_implementation="sdpa"
        )
    model.tie_weights()
    with contextlib.suppress(OSError):  # from_pretrained reads it too, where there is one
        model.generation_config = GenerationConfig.from_pretrained(path)
    return corrected(model, config)


def corrected(model: nn.Module, config: ModelConfig) -> nn.Module:
    """A model of transformers that numbers its tokens, takes its videos and attends to them as this project has it."""
    if torch.cuda.is_available():
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # newer releases have another name for it
            # By default cuDNN rounds what it convolves to 10 bits, in float32 as well: patch embeddings, and nothing else here.
            torch.backends.cudnn.allow_tf32 = False
    correct_positions(model)
    correct_videos(model)
    attend_by_windows(model, config.vision_attention)
    return model


def set_trainable(model: nn.Module, *, vision_tower: bool, projector: bool) -> None:
    """Make the language model and its embeddings trainable, and train or freeze the other two parts.

    Raises:
        ModelError: a part is to be frozen, but the vision tower cannot be told apart (`vidalign.model.families.parts`).
    """
    if vision_tower and projector:
        model.requires_grad_(True)
        return
    trained = {"language_model": True, "vision_tower": vision_tower, "projector": projector}
    part_of = families.parts(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained[part_of[name]])


def prepare_training(model: nn.Module, config: TrainConfig) -> nn.Module:
    """Freeze, adapt and checkpoint a model as `train` says; a vision tower that is frozen whole keeps nothing for gradients."""
    if config.lora is not None:
        model = add_adapter(model, config)
    else:
        set_trainable(model, vision_tower=config.train_vision_tower, projector=config.train_projector)
    for tower in families.vision_towers(unwrapped(model)):
        if not any(parameter.requires_grad for parameter in tower.parameters()):
            tower.forward = torch.no_grad()(tower.forward)
    if config.gradient_checkpointing:
        _checkpoint_activations(model)
    return model


def _checkpoint_activations(model: Any) -> None:
    """Activations of the layers are computed again in the backward pass.

    transformers lets the inputs of all embeddings require gradients, the vision tower's among them, which makes a frozen tower
    run twice and take part in the backward pass. Only a language model behind frozen embeddings needs that.
    """
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.disable_input_require_grads()
    embeddings = model.get_input_embeddings()
    if not any(parameter.requires_grad for parameter in embeddings.parameters()):
        embeddings.register_forward_hook(lambda module, inputs, output: output.requires_grad_(True))


class ResponseScorer(nn.Module):
    """The module that DeepSpeed wraps: a batch of prompt + response rows in, log-probs of the response tokens out.

    Logits are computed only at response positions and in chunks, so [T, V] never exists as a whole.

    Args:
        packed: whether all batches will be packed rows (`vidalign.model.shared_prefix`).
        compares: keep what a full-vocabulary KL to the present weights needs: a frozen copy of the output layer, unless that is
            frozen anyway (LoRA). The rest of the reference is its final hidden states, computed before training.
        float32_head: see `vidalign.model.head`.
        squares: also return `log_sum_squares` of the response tokens, which costs one more product with the output layer.
        shards: the ranks that share each packed row; then all of them call this at the same time, with the same batch.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        packed: bool = False,
        compares: bool = False,
        float32_head: bool = False,
        squares: bool = False,
        chunk_size: int = CHUNK_SIZE,
        shards: Shards | None = None,
    ) -> None:
        super().__init__()
        self.model, self.shards, self.squares = model, shards, squares
        if float32_head:
            compute_in_float32(self._head())
        self._finished = functools.partial(finished_logits, finish=finish_of(unwrapped(self.model)))
        if shards is not None:
            assert packed, "only packed rows are divided"
            sequence_parallel.enable(unwrapped(self.model), shards)
        elif packed:
            shared_prefix.enable(unwrapped(self.model))
        self.chunk_size = chunk_size
        self.reference_head: nn.Module | None = None
        if compares and any(parameter.requires_grad for parameter in self._head().parameters()):
            self.reference_head = copy.deepcopy(self._head()).requires_grad_(False)

    def forward(
        self,
        inputs: dict[str, Any],
        labels: torch.Tensor,
        reference_hidden: torch.Tensor | None = None,
        sources: torch.Tensor | None = None,
        min_calls: tuple[int, int] = (0, 0),
    ) -> tuple[Any, ...]:
        """Log-probs of the responses and, if `reference_hidden` is given, KL(reference || policy) of the first rows.

        Args:
            inputs, labels, sources: the fields of a `Batch` of R responses, labels padded to T.
            reference_hidden: [N, D] the reference's `hidden` of the first rows (the chosen ones), as many as it covers.
            min_calls: the output layer is called at least so often for the log-probs and for the KL, see `num_calls`.

        Returns:
            [R, T] float32 log-probs, 0 outside the response; the KL [R] in nats, summed over each response's tokens and 0 for
            rows that `reference_hidden` does not cover, or None without it; and the final hidden states [N, D], see `hidden`.
            With `squares`, also `log_sum_squares` [R, T].
        """
        if self.shards is not None:
            assert sources is not None
            return self._forward_share(self.shards, inputs, labels, reference_hidden, sources, min_calls)
        mask = labels != IGNORED
        hidden = self.hidden(inputs, labels, sources)
        logps = pad_to_mask(self.score(hidden, labels[mask], min_calls[0]), mask)
        squares = [pad_to_mask(self._squares(hidden, min_calls[0]), mask)] if self.squares else []
        if reference_hidden is None:
            return logps, None, hidden, *squares
        count = len(reference_hidden)
        kl = self._kl(hidden[:count], reference_hidden, min_calls[1])
        uncovered = kl.new_zeros(len(hidden) - count)
        return logps, pad_to_mask(torch.cat([kl, uncovered]), mask).sum(-1), hidden, *squares

    def _forward_share(
        self,
        shards: Shards,
        inputs: dict[str, Any],
        labels: torch.Tensor,
        reference_hidden: torch.Tensor | None,
        sources: torch.Tensor,
        min_calls: tuple[int, int],
    ) -> tuple[Any, ...]:
        """What `forward` returns, computed by each rank for the response tokens in its share of the row. Collective."""
        mask = labels != IGNORED
        states = self._states(inputs)[0]  # [T of a share, D]
        places = sources[mask] - shards.index * len(states)
        is_own = (places >= 0) & (places < len(states))
        hidden = states[places[is_own]]
        logps = self.score(hidden, labels[mask][is_own], min_calls[0])
        logps = pad_to_mask(shards.joined(logps, is_own, states), mask)
        all_hidden = shards.joined(hidden.detach(), is_own, states.detach())
        squares = []
        if self.squares:
            own = self._squares(hidden, min_calls[0])
            squares = [pad_to_mask(shards.joined(own, is_own, states.detach()), mask)]
        if reference_hidden is None:
            return logps, None, all_hidden, *squares
        covered = is_own[: len(reference_hidden)]
        kl = self._kl(hidden[: int(covered.sum())], reference_hidden[covered], min_calls[1])
        kl = shards.joined(kl, covered, states)
        uncovered = kl.new_zeros(len(is_own) - len(covered))
        return logps, pad_to_mask(torch.cat([kl, uncovered]), mask).sum(-1), all_hidden, *squares

    def _squares(self, hidden: torch.Tensor, min_calls: int) -> torch.Tensor:
        return log_sum_squares(hidden, self._finished(self._head()), chunk_size=self.chunk_size, min_calls=min_calls)

    def _kl(self, hidden: torch.Tensor, reference_hidden: torch.Tensor, min_calls: int) -> torch.Tensor:
        return forward_kl(
            hidden,
            reference_hidden,
            self._finished(self._head()),
            self._finished(self._head() if self.reference_head is None else self.reference_head),
            chunk_size=self.chunk_size,
            min_calls=min_calls,
        )

    def num_calls(self, labels: torch.Tensor, reference_hidden: torch.Tensor | None = None) -> tuple[int, int]:
        """How often `forward` calls the output layer for these labels' log-probs, and for the KL.

        Under ZeRO stage 3 each call gathers the layer from all ranks, so all must make as many as the busiest of them.
        """
        num_tokens = int((labels != IGNORED).sum())
        for_kl = 0 if reference_hidden is None else num_chunks(len(reference_hidden), self.chunk_size)
        return num_chunks(num_tokens, self.chunk_size), for_kl

    def hidden(self, inputs: dict[str, Any], labels: torch.Tensor, sources: torch.Tensor | None = None) -> torch.Tensor:
        """Final hidden states [N, D] at the positions that predict response tokens, response after response."""
        states = self._states(inputs)
        mask = labels != IGNORED
        return states[mask] if sources is None else states.flatten(0, 1)[sources[mask]]

    def _states(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Final hidden states [sequences, T, D]."""
        base = unwrapped(self.model)
        if vision_features.NAME in inputs:
            inputs = vision_features.model_inputs(inputs, families.family_of(base))
        return base.base_model(**inputs, use_cache=False).last_hidden_state

    def score(self, hidden: torch.Tensor, tokens: torch.Tensor, min_calls: int = 0) -> torch.Tensor:
        """Log-probs [N] float32 of tokens [N] under final hidden states [N, D]."""
        return token_logps(hidden, self._finished(self._head()), tokens, chunk_size=self.chunk_size, min_calls=min_calls)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the model makes of final hidden states [N, D]: logits [N, V] in float32."""
        return at_least_float32(self._finished(self._head())(hidden))

    def _head(self) -> nn.Module:
        return unwrapped(self.model).get_output_embeddings()
