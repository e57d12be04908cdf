"""Is a model folder one that can be trained and served? Reads its small files and headers; starts no engine."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import pathlib
from typing import Any

from vidalign.config.judging import JudgeConfig
from vidalign.config.run import ModelConfig
from vidalign.errors import ModelError
from vidalign.files import read_json
from vidalign.model import estimate, rendering
from vidalign.model.turns import turns_of

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What the folder says. `processor` is None and `shapes` empty when the model is a hub name that is not on this machine."""

    folder: pathlib.Path
    config: dict[str, Any]
    processor: Any
    shapes: dict[str, tuple[int, ...]]
    lines: list[str]
    warnings: list[str]


def inspect(config: ModelConfig, *, ask_vllm: bool = True) -> ModelFacts:
    """Check config.json, weights, processor and chat template of `model.path`.

    Raises:
        ModelError: no folder, an architecture that vLLM does not serve, no or pickled or incomplete weights, no processor, no
            chat template, no video input; a chat template that cannot be used (`vidalign.model.turns`).
    """
    folder = find_folder(config.path)
    if folder is None:
        warning = (
            f"model.path={config.path} is not on this machine; it will be fetched from the hub, and is not checked here"
        )
        return ModelFacts(
            folder=pathlib.Path(config.path), config={}, processor=None, shapes={}, lines=[], warnings=[warning]
        )
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json; model.path must name a complete Hugging Face model folder")
    raw = read_json(folder / "config.json")
    architecture = (raw.get("architectures") or [None])[0]
    if architecture is None:
        raise ModelError(
            f'{folder}/config.json names no architecture; add the list "architectures", as save_pretrained does'
        )
    check_weights(folder)
    if ask_vllm:
        check_architecture(architecture, folder)
    if raw.get("auto_map") and not config.trust_remote_code:
        raise ModelError(
            f"{folder} brings its own Python code (auto_map in config.json), which is not run unless you trust it; read the code "
            "and set model.trust_remote_code=true, or use a stock architecture"
        )
    processor = rendering.load_processor(str(folder), trust_remote_code=config.trust_remote_code)
    shapes = estimate.read_parameter_shapes(folder)
    total = sum(math.prod(shape) for shape in shapes.values())
    lines = [f"{architecture}, {total:,} parameters in {len(shapes):,} tensors ({folder})"]
    lines.append(f"processor {type(processor).__name__}, vocabulary of {len(processor.tokenizer):,}")
    lines += turns_of(processor).notes
    return ModelFacts(folder=folder, config=raw, processor=processor, shapes=shapes, lines=lines, warnings=[])


def find_folder(path: str) -> pathlib.Path | None:
    """The local folder of a path or of a hub name in the local cache; None for a hub name that is not there.

    Raises:
        ModelError: `path` looks like a path and is no folder.
    """
    folder = pathlib.Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ModelError(f"model.path={path} is a file; give the folder that holds it")
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise ModelError(f"no model folder at {path}; model.path names a Hugging Face folder or a hub name like owner/model")
    import huggingface_hub
    import huggingface_hub.errors

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(path, local_files_only=True))
    except (huggingface_hub.errors.LocalEntryNotFoundError, OSError, ValueError):
        return None


def check_judge(judge: JudgeConfig, key: str) -> None:
    """Raises `ModelError` for a judge in an engine whose model folder is not there; `key` is where the config has it."""
    if judge.kind == "vllm" and not (pathlib.Path(judge.model) / "config.json").is_file():
        raise ModelError(
            f"{key}.model={judge.model!r} is no model folder (no config.json there); set it to a folder on this machine, or set "
            f"{key}.kind to openai for a model at an endpoint"
        )


def check_weights(folder: pathlib.Path) -> None:
    """Safetensors, all shards of them. Raises `ModelError`; pickled weights can run code when loaded and are refused."""
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
        if pickled:
            raise ModelError(
                f"{folder} holds only pickled weights ({pickled[0]}), which can run code when loaded; convert them with "
                "save_pretrained(..., safe_serialization=True) in a place that you trust"
            )
        raise ModelError(
            f"{folder} holds no *.safetensors weights; model.path must name a complete Hugging Face model folder"
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        wanted = sorted(set(read_json(index)["weight_map"].values()))
        absent = [name for name in wanted if not (folder / name).is_file()]
        if absent:
            raise ModelError(
                f"{folder} lacks {len(absent)} of its {len(wanted)} weight files, first {absent[0]}; download the rest"
            )


def check_architecture(architecture: str, folder: pathlib.Path) -> None:
    """Raises `ModelError` when vLLM's registry does not know the architecture."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    import vllm

    known = sorted(vllm.ModelRegistry.get_supported_archs())
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=1)
        hint = f"the nearest that it serves is {near[0]}" if near else f"it serves {len(known)} architectures"
        raise ModelError(
            f"{folder} is a {architecture}, which vLLM {vllm.__version__} does not serve; {hint}; use a model of a supported "
            "family, for example Qwen2.5-VL, Qwen3-VL or LLaVA-OneVision"
        )
