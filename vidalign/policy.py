"""The policy as a torch module: load, freeze, adapt, and per-token log-probs of responses."""

from __future__ import annotations

import pathlib
from typing import Any

import torch
from torch import nn

from vidalign.config import ModelConfig, TrainConfig
from vidalign.errors import ModelError
from vidalign.logps import token_logps
from vidalign.positions import correct_positions
from vidalign.rendering import IGNORED

# Names that stock Hugging Face video models give the two parts beside the language model.
VISION_TOWERS = ("visual", "vision_tower", "vision_model")
PROJECTORS = ("merger", "multi_modal_projector", "connector", "deepstack_merger_list")


def load_policy(config: ModelConfig, path: str | None = None) -> nn.Module:
    """Load a video language model from safetensors in the configured dtype.

    Raises:
        ModelError: the folder is missing, holds no safetensors, or no stock architecture fits it.
    """
    from transformers import AutoModelForImageTextToText

    path = path or config.path
    folder = pathlib.Path(path)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise ModelError(f"{path} holds no *.safetensors weights; pickled weights are not loaded, convert them first")
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            path,
            dtype=getattr(torch, config.dtype),
            trust_remote_code=config.trust_remote_code,
            use_safetensors=True,
            attn_implementation="sdpa",
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path} cannot be loaded as a video language model: {' '.join(str(error).split())}") from error
    correct_positions(model)
    return model


def set_trainable(model: nn.Module, *, vision_tower: bool, projector: bool) -> None:
    """Freeze or free the vision tower and the projector by name; everything else is trained.

    Raises:
        ModelError: no part of the model has a known vision tower's name, so freezing would silently do nothing.
    """
    found = False
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if any(part in PROJECTORS for part in parts):
            found, trainable = True, projector
        elif any(part in VISION_TOWERS for part in parts):
            found, trainable = True, vision_tower
        else:
            trainable = True
        parameter.requires_grad_(trainable)
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no part named {', '.join(VISION_TOWERS)}, so its vision tower cannot be frozen; "
            "set train.train_vision_tower=true and train.train_projector=true to train all of it"
        )


def add_adapter(model: nn.Module, config: TrainConfig) -> nn.Module:
    """Wrap the language model's linear layers with LoRA (peft); all other weights are frozen."""
    import peft

    assert config.lora is not None
    outside = {*VISION_TOWERS, *PROJECTORS, "lm_head"}
    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not outside.intersection(name.split("."))
    ]
    lora = peft.LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=targets,
        bias="none",
    )
    return peft.get_peft_model(model, lora)  # type: ignore[arg-type]


class ResponseScorer(nn.Module):
    """The module that DeepSpeed wraps: a batch of prompt + response rows in, log-probs of the response tokens out.

    Logits are computed at response positions only and in chunks, so [T, V] never exists whole.
    """

    def __init__(self, model: nn.Module, *, chunk_size: int = 1024) -> None:
        super().__init__()
        self.model = model
        self.chunk_size = chunk_size

    def forward(self, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """Takes the two fields of a `Batch`. Returns log-probs [R, T] float32, 0 off the response; T the padded length."""
        base = self._unwrapped()
        backbone = getattr(base, base.base_model_prefix)
        hidden = backbone(**inputs, use_cache=False).last_hidden_state  # [R, T, D]
        mask = labels != IGNORED
        values = token_logps(hidden[mask], base.get_output_embeddings(), labels[mask], chunk_size=self.chunk_size)  # [N]
        return torch.zeros(labels.shape, dtype=torch.float32, device=values.device).masked_scatter(mask, values)

    def _unwrapped(self) -> Any:
        get_base = getattr(self.model, "get_base_model", None)
        return get_base() if get_base is not None else self.model
