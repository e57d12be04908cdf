"""LoRA: which layers get adapters, and a model that has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from vidalign.config.training import TrainConfig
from vidalign.errors import ConfigError
from vidalign.model import families


def adapter_targets(model: nn.Module, wanted: Sequence[str] | None = None) -> dict[str, nn.Linear]:
    """The linear layers of the language model by name, without its output layer; those whose last part is `wanted`, or all.

    Raises:
        ModelError: the vision tower cannot be told apart (`vidalign.model.families.parts`).
        ConfigError: no layer has one of the wanted names.
    """
    families.parts(model)
    head = model.get_output_embeddings()  # type: ignore[operator]
    inside = set(families.decoder(model).modules())
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module in inside and module is not head
    }
    if wanted is None:
        return found
    by_last: dict[str, dict[str, nn.Linear]] = {}
    for name, module in found.items():
        by_last.setdefault(name.rpartition(".")[2], {})[name] = module
    if unknown := [name for name in wanted if name not in by_last]:
        raise ConfigError(
            f"train.lora.targets names {', '.join(unknown)}, which no linear layer of the language model is called; choose of "
            f"{', '.join(sorted(by_last))}"
        )
    return {name: module for last in wanted for name, module in by_last[last].items()}


def add_adapter(model: nn.Module, config: TrainConfig) -> nn.Module:
    """Wrap the language model's linear layers with LoRA (peft); all other weights are frozen."""
    import peft

    assert config.lora is not None
    lora = peft.LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=list(adapter_targets(model, config.lora.targets)),
        bias="none",
    )
    # peft 0.21 takes the names of linear layers beside experts for those of experts, and moves their adapters onto the experts. It
    # goes by the type of the model.
    config_of_model: Any = model.config
    config_of_model.model_type = ""
    try:
        return peft.get_peft_model(model, lora)  # type: ignore[arg-type]
    finally:
        del config_of_model.model_type
