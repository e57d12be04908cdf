"""Which models a suite's questions go to: those of a run or of a checkpoint, which are served for it, or of a running endpoint."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import openai

from pipelines.serve import Target, find_target, models_of, refuse_unused
from serving.app import NO_KEY, Endpoint
from vidalign import mirror
from vidalign.config.cluster import ClusterConfig
from vidalign.config.loading import load_config, parse_section
from vidalign.config.run import EvaluateConfig, RunConfig
from vidalign.config.section import Section
from vidalign.config.served import ServingConfig
from vidalign.errors import ClusterError, ConfigError, ModelError
from vidalign.files import RunFolder
from vidalign.types import FrameSpec

KEY_VARIABLE = "VIDALIGN_API_KEY"
USED = ("evaluate", "cluster")  # sections that matter in every case
OWN_RULE = ("scorer", "threshold", "min_score", "blind")  # what a suite decides itself


class AskingConfig(Section):
    """What a suite needs where no run says it."""

    evaluate: EvaluateConfig = EvaluateConfig()  # type: ignore[call-arg]
    cluster: ClusterConfig = ClusterConfig()  # type: ignore[call-arg]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AskedModels:
    """The models that are asked, and how.

    Attributes:
        versions: model id → policy version; "" where the endpoint does not say it.
        folder: where the results of suites go.
        frame_spec: how their frames are sampled; None where the endpoint does not say it.
        serving: what is to be served for it; None where `running` is there already.
        run: where they are those of a run whose folder gets the results, its configuration.
    """

    versions: Mapping[str, str]
    folder: pathlib.Path
    evaluate: EvaluateConfig
    cluster: ClusterConfig
    frame_spec: FrameSpec | None
    serving: Target | None = None
    running: Endpoint | None = None
    notes: tuple[str, ...] = ()
    run: tuple[RunFolder, RunConfig] | None = None


def of_target(target: str, overrides: Sequence[str] = (), *, out: str | None = None) -> AskedModels:
    """The models of a run folder, of a config file's run, or of a checkpoint folder.

    Raises:
        ConfigError, ModelError: there is no such run or checkpoint, or it has no model to ask.
    """
    _refuse_scoring(overrides)
    path = pathlib.Path(mirror.opened(target))
    if not path.is_file() and not (path / "config.yaml").is_file():
        return _of_checkpoint(target, overrides, out)
    refuse_unused(overrides, [*ServingConfig.model_fields, "evaluate", "rounds"], what="a suite")
    config = load_config(path if path.is_file() else path / "config.yaml", overrides)
    run = RunFolder.at(config.run_dir if path.is_file() else str(path))
    mirror.refresh(run.root)
    models, notes = models_of(run, config)
    if not models:
        raise ModelError(f"{target} has neither its base model ({config.model.path}) nor an exported policy to ask")
    serving = ServingConfig(model=config.model, video=config.video, serve=config.serve, cluster=config.cluster)
    return AskedModels(
        versions={name: policy.version for name, policy in models.items()},
        folder=pathlib.Path(out) if out else _suites_of(run, config),
        evaluate=config.evaluate,
        cluster=config.cluster,
        frame_spec=config.video.frame_spec(),
        serving=Target(models=models, config=serving, frame_spec=config.video.frame_spec()),
        notes=notes,
        run=None if out else (run, config),
    )


def _refuse_scoring(overrides: Sequence[str]) -> None:
    """Raises `ConfigError` for an override of how the run's own evaluation is scored, which a suite never is."""
    for override in overrides:
        if (name := override.partition("=")[0]) in [f"evaluate.{option}" for option in OWN_RULE]:
            raise ConfigError(
                f"override {override!r}: a suite is scored by its own rule, which {name} does not change; leave it out"
            )


def _suites_of(run: RunFolder, config: RunConfig) -> pathlib.Path:
    """Beside the evaluation of the last round that exported a policy."""
    exported = [index for index in range(config.rounds) if run.stage("model", index).is_dir()]
    return run.stage("suites", exported[-1] if exported else config.rounds - 1)


def _of_checkpoint(target: str, overrides: Sequence[str], out: str | None) -> AskedModels:
    own = [item for item in overrides if item.partition(".")[0] in USED]
    found = find_target(target, [item for item in overrides if item.partition(".")[0] != "evaluate"])
    config = parse_section(AskingConfig, {}, own, source=f"asking {target}")
    return AskedModels(
        versions={name: policy.version for name, policy in found.models.items()},
        folder=pathlib.Path(out or "runs/suites"),
        evaluate=config.evaluate,
        cluster=found.config.cluster,
        frame_spec=found.frame_spec,
        serving=found,
        notes=found.notes,
    )


def of_endpoint(
    url: str,
    model_ids: Sequence[str] = (),
    overrides: Sequence[str] = (),
    *,
    media_root: str | None = None,
    out: str | None = None,
) -> AskedModels:
    """The models of a running endpoint: those named, or all of them in its order, each as the version that is promoted.

    Args:
        media_root: the folder below which the endpoint reads file: urls; other videos are sent with each question.

    Raises:
        ClusterError: the endpoint does not answer.
        ConfigError: it has no such model, or an override concerns what is decided by the endpoint.
    """
    _refuse_scoring(overrides)
    refuse_unused(overrides, list(USED), what="a suite at a running endpoint")
    config = parse_section(AskingConfig, {}, overrides, source=f"asking {url}")
    cards = _cards(url)
    unknown = [name for name in model_ids if name not in cards]
    if unknown:
        raise ConfigError(f"{url} has no model {unknown[0]!r}; it has {', '.join(cards)}")
    by_default = [name for name, card in cards.items() if not card.get("version_of")]  # a version is asked where it is named
    asked = {name: cards[name] for name in model_ids or by_default}
    versions = {name: str(card.get("policy_version") or "") for name, card in asked.items()}
    return AskedModels(
        versions=versions,
        folder=pathlib.Path(out or "runs/suites"),
        evaluate=config.evaluate,
        cluster=config.cluster,
        frame_spec=_common_frames(asked.values()),
        running=Endpoint(base_url=url, versions=versions, media_root=media_root, api_key=key_of_environment()),
        notes=()
        if all(versions.values())
        else (f"{url} does not name policy versions, so a change of model is not noticed",),
    )


def key_of_environment() -> str:
    """The key of an endpoint that another process started; one without keys takes any."""
    return os.environ.get(KEY_VARIABLE, NO_KEY)


def _cards(url: str) -> dict[str, dict[str, Any]]:
    """What an endpoint says of each of its models beside its id: vidalign's names "policy_version" and "frame_spec"."""
    try:
        models = openai.OpenAI(base_url=url, api_key=key_of_environment(), timeout=30, max_retries=1).models.list().data
    except openai.OpenAIError as error:
        raise ClusterError(
            f"no OpenAI endpoint answers at {url} ({' '.join(str(error).split())[:200]}); give its address up to /v1, such as "
            "http://127.0.0.1:8000/v1"
        ) from error
    if not models:
        raise ConfigError(f"{url} serves no model")
    return {model.id: dict((model.model_extra or {}).get("metadata") or {}) for model in models}


def _common_frames(cards: Iterable[Mapping[str, Any]]) -> FrameSpec | None:
    """How all of the models sample frames, where all say it and say the same."""
    specs = [card.get("frame_spec") for card in cards]
    if not specs or not isinstance(specs[0], dict) or any(spec != specs[0] for spec in specs):
        return None
    return FrameSpec.from_row(specs[0])
