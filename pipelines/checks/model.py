"""Is a model folder one that can be trained and served? Reads its small files and headers; starts no engine."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.engines import require_plugin, takes_video
from vidalign.config.judging import JudgeConfig
from vidalign.config.run import ModelConfig
from vidalign.errors import ModelError
from vidalign.files import read_object
from vidalign.model import loading, rendering, weight_checks
from vidalign.model.checkpoint import generation_faults
from vidalign.model.engine_rules import engine_rules
from vidalign.model.estimate import check_patches, read_vision_cost
from vidalign.model.families import FAMILIES, GENERAL
from vidalign.model.folder import missing_package, model_folder, read_headers, weight_files
from vidalign.model.head import check_logits
from vidalign.model.turns import turns_of
from vidalign.storage import is_uri

MAX_SCANNED_S = 60.0  # of reading weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What the folder says. `config` is its config.json as transformers reads it; `outline` is the model on the meta device."""

    folder: pathlib.Path
    config: Any
    processor: Any
    outline: Any
    lines: list[str]
    warnings: list[str]


def inspect(
    config: ModelConfig, *, ask_vllm: bool = True, fetch: bool = True, engine_args: Mapping[str, Any] = {}
) -> ModelFacts:
    """Check config.json, weights, processor and chat template of `model.path`.

    Args:
        ask_vllm: also ask vLLM whether it serves the architecture with videos, which costs the seconds of importing it.
        fetch: fetch the weights of a hub's model that are not on this machine; otherwise they are not checked.
        engine_args: of the rollout's engines.

    Raises:
        ModelError: no folder, an architecture that cannot be trained or served, no or pickled or incomplete weights or others than
            the architecture's, no processor, no chat template or one that cannot be used (`vidalign.model.turns`), no video
            input, another model's tokenizer, or a vLLM that would not load our plugin.
    """
    folder = model_folder(config.path, weights=fetch)
    architecture = _architecture(folder, trust_remote_code=config.trust_remote_code, key="model.trust_remote_code")
    there = fetch or pathlib.Path(config.path).expanduser().is_dir() or _has_weights(folder)
    outline = loading.outline(str(folder), trust_remote_code=config.trust_remote_code, dtype=config.dtype, weights=there)
    processor = rendering.load_processor(str(folder), trust_remote_code=config.trust_remote_code)
    check_logits(outline.config)
    check_patches(folder, read_vision_cost(folder), outline.config)
    weight_checks.check_vocabulary(str(folder), outline, processor.tokenizer)
    engine_rules(
        processor, outline.config, dtype=config.dtype, max_model_len=config.max_model_len, on_cpu=False, limits={"video": 1}
    )  # it refuses what an engine cannot be told
    require_plugin()
    if ask_vllm:
        check_architecture(architecture, folder, trust_remote_code=config.trust_remote_code, engine_args=engine_args)
    parameters = dict(outline.named_parameters())
    total = sum(parameter.numel() for parameter in parameters.values())
    lines = [f"{architecture}, {total:,} parameters in {len(parameters):,} tensors ({folder})"]
    lines.append(f"processor {type(processor).__name__}, vocabulary of {len(processor.tokenizer):,}")
    lines += turns_of(processor).notes
    warnings = generation_faults(folder)
    if there:
        seen, size = weight_checks.check_stored_numbers(folder, seconds=MAX_SCANNED_S)
        if seen < 0.99 * size:
            lines.append(
                f"looked for NaN and infinity in {seen / size:.0%} of the weights in {MAX_SCANNED_S:g} s; training looks at all"
            )
    else:
        warnings.append(
            f"the weights of {config.path} are not on this machine; the run fetches them, and they are not checked here"
        )
    return ModelFacts(
        folder=folder, config=outline.config, processor=processor, outline=outline, lines=lines, warnings=warnings
    )


def _has_weights(folder: pathlib.Path) -> bool:
    try:
        return bool(weight_files(folder))
    except ModelError:
        return False


def _architecture(folder: pathlib.Path, *, trust_remote_code: bool, key: str) -> str:
    """The architecture that config.json names. Raises `ModelError` where there is none, or one that is not run. `key`: to trust it."""
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                f"{folder} holds an adapter alone; merge it into its base, and let model.path name the merged model"
            )
        raise ModelError(f"{folder} has no config.json; model.path must name a complete Hugging Face model folder")
    raw = read_object(folder / "config.json")
    named = raw.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else None
    if not isinstance(architecture, str):
        raise ModelError(
            f'{folder}/config.json names no architecture; add the list "architectures", as save_pretrained does'
        )
    if why := FAMILIES.get(raw.get("model_type", ""), GENERAL).not_served:
        raise ModelError(
            f"{folder} is a {architecture}: {why}; use a model of another family, such as those in docs/models.md"
        )
    if raw.get("auto_map") and not trust_remote_code:
        raise ModelError(
            f"{folder} brings its own Python code (auto_map in config.json), which is not run unless you trust it; read the code "
            f"and set {key}=true, or use a stock architecture"
        )
    return architecture


def check_judge(judge: JudgeConfig, key: str, *, ask_vllm: bool = True) -> None:
    """Checks the model of a judge in an engine as `inspect` does a policy, as far as an engine uses it.

    `key`: where the config has the judge. `ask_vllm`: see `inspect`.

    Raises:
        ModelError: no folder, an architecture that vLLM does not serve, or not with videos where the judge sees them, no or broken
            weights, no chat template, or no processor where the judge sees videos.
    """
    if judge.kind != "vllm":
        return
    remote = bool(judge.engine_args.get("trust_remote_code", False))
    way_out = f"set {key}.model to a model's folder, or {key}.kind to openai for a model at an endpoint"
    if is_uri(judge.model):
        raise ModelError(f"{key}.model={judge.model!r}: a judge's model is not read from a store yet; {way_out}")
    try:
        folder = model_folder(judge.model, weights=False)
        architecture = _architecture(folder, trust_remote_code=remote, key=f"{key}.engine_args.trust_remote_code")
        if pathlib.Path(judge.model).expanduser().is_dir():
            read_headers(weight_files(folder))
        if judge.sees_video:
            processor, config = (
                rendering.load_processor(str(folder), trust_remote_code=remote),
                loading.read_config(str(folder)),
            )
            turns_of(processor)
            engine_rules(
                processor, config, dtype=judge.dtype, max_model_len=judge.max_model_len, on_cpu=False, limits={"video": 1}
            )
        else:
            _check_texts(folder, judge.engine_args, trust_remote_code=remote)
        if ask_vllm:
            check_architecture(
                architecture,
                folder,
                trust_remote_code=remote,
                video=judge.sees_video,
                engine_args=judge.engine_args,
            )
    except ModelError as error:
        raise ModelError(f"{key}.model={judge.model!r}: {error}; {way_out}") from error


def _check_texts(folder: pathlib.Path, engine_args: Mapping[str, Any], *, trust_remote_code: bool) -> None:
    """Raises `ModelError` for a judge of texts without a tokenizer or a chat template, unless vLLM is told of others."""
    if engine_args.keys() & {"tokenizer", "tokenizer_mode"} or (folder / "tekken.json").is_file():
        return
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except ImportError as error:
        raise ModelError(missing_package(str(folder), error)) from error
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{folder} has no tokenizer that transformers can load: {' '.join(str(error).split())[:300]}"
        ) from error
    if not tokenizer.chat_template and not (folder / "chat_template.json").is_file():
        raise ModelError(f"{folder} has no chat template; add chat_template.jinja to the model folder")


@contextlib.contextmanager
def _quiet_environment() -> Iterator[None]:
    """vLLM logs little, and what it sets in the environment, which the workers of a run inherit, does not stay."""
    before = dict(os.environ)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]


@_quiet_environment()
def check_architecture(
    architecture: str,
    folder: pathlib.Path,
    *,
    trust_remote_code: bool = False,
    video: bool = True,
    engine_args: Mapping[str, Any] = {},
) -> None:
    """Raises `ModelError` when vLLM does not serve the architecture or, where `video` is wanted, takes no videos for it.

    `engine_args`: of the engine, where they say how vLLM reads the config. A quantized model is only looked up: whether its
    quantization works depends on the machine of its engine.
    """
    import vllm
    from vllm.config import ModelConfig as Served
    from vllm.plugins import load_general_plugins

    load_general_plugins()  # which bring architectures of their own
    known = sorted(vllm.ModelRegistry.get_supported_archs())
    near = difflib.get_close_matches(architecture, known, n=1)
    hint = f"the nearest that it serves is {near[0]}" if near else f"it serves {len(known)} architectures"
    unknown = ModelError(
        f"{folder} is a {architecture}, which vLLM {vllm.__version__} does not serve; {hint}; use a model of a supported "
        "family, for example Qwen2.5-VL, Qwen3-VL or LLaVA-OneVision"
    )
    if "quantization" in engine_args or read_object(folder / "config.json").get("quantization_config"):
        if architecture not in known:
            raise unknown
        return
    read = {
        name: engine_args[name]
        for name in ("hf_overrides", "model_impl", "tokenizer", "tokenizer_mode")
        if name in engine_args
    }
    try:
        served = Served(model=str(folder), trust_remote_code=trust_remote_code, **read)
    except (ValueError, OSError, KeyError) as error:
        if architecture not in known:
            raise unknown from error
        raise ModelError(f"vLLM cannot serve {folder}: {' '.join(str(error).split())[:600]}") from error
    if video:
        takes_video(served, str(folder))
