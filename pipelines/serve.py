"""`vidalign serve MODEL_DIR|RUN`: one checkpoint folder, or a run's base and aligned policies, behind an OpenAI endpoint."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cluster import interrupts
from cluster.plan import further_versions, plan_serve
from cluster.resources import ClusterResources, ServePlan
from cluster.session import connect, local_resources
from pipelines import progress
from pipelines.run_videos import example_url, with_media_root
from serving.adapters import adapters_of
from serving.app import NO_KEY, Endpoint, build_app, endpoint
from serving.checks import check_address, check_files
from serving.spec import EndpointSpec
from serving.versions import POLICY
from vidalign import files, mirror, prompts
from vidalign.config.loading import load_config, parse_section
from vidalign.config.run import RunConfig
from vidalign.config.served import ServingConfig
from vidalign.errors import ConfigError, ModelError
from vidalign.files import RunFolder
from vidalign.model.checkpoint import CARD, policy_version, read_card
from vidalign.model.folder import model_folder
from vidalign.types import FrameSpec, PolicyVersion

if TYPE_CHECKING:
    from ray.serve import Application

DECIDED_BY_SERVE = {  # override → what decides it where the cluster starts Ray Serve
    "serve.host": "http_options.host of Serve's configuration",
    "serve.port": "http_options.port of Serve's configuration",
    "serve.start_timeout_s": "nothing: Serve goes on trying",
    "cluster.address": "nothing: it is the cluster that runs Ray Serve",
    "cluster.num_cpus": "num-cpus where that node's Ray is started",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """What to serve: model id → policy, with which configuration, notes for the user, and adapters (id → folder) without an engine."""

    models: dict[str, PolicyVersion]
    config: ServingConfig
    frame_spec: FrameSpec
    notes: tuple[str, ...] = ()
    plain_prompt: str = prompts.PLAIN
    adapters: Mapping[str, str] = dataclasses.field(default_factory=dict)


def run(target: str, overrides: Sequence[str] = (), *, verbose: bool = False) -> None:
    """Serve `target` until Ctrl-C (or SIGTERM), printing how to ask it.

    Args:
        target: a checkpoint folder (config.json and safetensors), or a run folder (config.yaml).
        overrides: `section.key=value` of the sections model, video, serve and cluster.
        verbose: show what Ray and its workers print.

    Raises:
        ConfigError, ModelError, ClusterError: see `find_target` and `serving.app.endpoint`.
    """
    found = find_target(target, overrides)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    serving = found.config.model_copy(update={"serve": with_media_root(target, found.config.serve)})
    found = dataclasses.replace(found, config=serving)
    config = found.config
    check_address(config.serve)
    print(f"starting {' and '.join(found.models)} …", file=sys.stderr)

    with (
        connect(config.cluster, num_cpus_needed=num_cpus_needed(found), verbose=verbose) as resources,
        endpoint(spec_of(found, resources), say=progress.note) as running,
    ):
        with interrupts.until_signal():
            print(describe(running) + how_to_promote(target, running), flush=True)
            threading.Event().wait()
        print("stopping", file=sys.stderr)


def num_cpus_needed(found: Target) -> Callable[[], int]:
    """What a Ray that is started for this endpoint must offer, found out where one is."""
    return lambda: _plan(found, local_resources(found.config.cluster)).num_cpus_needed


def _plan(found: Target, resources: ClusterResources) -> ServePlan:
    serve = found.config.serve
    further = further_versions(serve, resources, len(found.models))
    if found.adapters:
        further = serve.further_versions or 0  # an adapter needs no room
    return plan_serve(serve, resources, len(found.models) - len(found.adapters), further=further)


def only(found: Target, name: str) -> Target:
    """The target with one of its models, in an engine of its own."""
    return dataclasses.replace(found, models={name: found.models[name]}, adapters={})


def application(args: Mapping[str, Any]) -> Application:
    """What `vidalign serve` serves, for clusters that start Ray Serve themselves: `serve deploy` and KubeRay's RayService.

    Ray Serve calls it on a node of the cluster, and its own options decide the address, the port and the time to start.

    Args:
        args: `target` as `vidalign serve` takes it, and `overrides`, a list of `section.key=value`.

    Raises:
        ConfigError: `args` holds anything else or no target, or an override of what Ray Serve's own options decide.
        ModelError, ClusterError: see `find_target`, and a folder is not a checkpoint or the cluster too small.
    """
    unknown = sorted(args.keys() - {"target", "overrides"})
    if unknown or "target" not in args:
        wrong = f"has {', '.join(unknown)}" if unknown else "has no target"
        raise ConfigError(f"args of the application {wrong}; it takes target and overrides, a list of section.key=value")
    overrides = [str(override) for override in args.get("overrides", [])]
    for override in overrides:
        name = override.partition("=")[0]
        if name in DECIDED_BY_SERVE:
            raise ConfigError(
                f"override {override!r} makes no difference where Ray Serve is started by the cluster; leave it out, and set "
                f"{DECIDED_BY_SERVE[name]}"
            )
    found = find_target(str(args["target"]), overrides)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    check_files(found.models, found.config.serve)
    with connect(found.config.cluster) as resources:
        return build_app(spec_of(found, resources))


def spec_of(found: Target, resources: ClusterResources) -> EndpointSpec:
    """The endpoint of what is to be served, on a cluster with these resources."""
    config = found.config
    return EndpointSpec(
        models=found.models,
        model=config.model,
        serve=config.serve,
        plan=_plan(found, resources),
        adapters=found.adapters,
        frame_spec=found.frame_spec,
        decoder=config.video.backend,
        deadline_s=config.video.deadline_s,
        num_decoders=config.video.most_decoders,
        plain_prompt=found.plain_prompt,
        wait_for_nodes_s=config.cluster.wait_for_nodes_s,
    )


def find_target(target: str, overrides: Sequence[str] = ()) -> Target:
    """Tell a run folder from a checkpoint folder and read what is needed to serve it.

    Raises:
        ModelError: `target` is neither.
        ConfigError: an override or the run's config.yaml breaks a rule, or an override changes what serving does not use.
    """
    folder = pathlib.Path(mirror.opened(target, "serve"))
    if (folder / "config.yaml").is_file():
        return _run_target(folder, overrides)
    if (folder / "config.json").is_file():
        return _checkpoint_target(folder, overrides)
    what = "is not a folder" if not folder.is_dir() else "holds neither"
    raise ModelError(
        f"vidalign serve takes a run folder (with config.yaml) or a checkpoint folder (with config.json), but {target} {what}"
    )


def _run_target(folder: pathlib.Path, overrides: Sequence[str]) -> Target:
    refuse_unused(overrides, [*ServingConfig.model_fields, "rounds"])
    config = load_config(folder / "config.yaml", overrides)
    models, notes = models_of(RunFolder(folder.absolute()), config)
    if not models:
        raise ModelError(f"{folder} has neither its base model ({config.model.path}) nor an exported policy to serve")
    serving = ServingConfig(model=config.model, video=config.video, serve=config.serve, cluster=config.cluster)
    adapters = adapters_of(models, str(folder)) if config.serve.adapters else {}
    spec, plain = config.video.frame_spec(), config.recipe.plain_prompt
    return Target(models=models, config=serving, frame_spec=spec, notes=notes, plain_prompt=plain, adapters=adapters)


def models_of(run: RunFolder, config: RunConfig) -> tuple[dict[str, PolicyVersion], tuple[str, ...]]:
    """A run's base and the policy that its last finished round exported, as far as they are there, and notes on what is not."""
    models, notes = {}, []
    base = config.model.path
    try:
        model_folder(base)
    except ModelError:
        notes.append(
            f"the base model {base} is not there, so only the aligned policy is served (set model.path=… to add it)"
        )
    else:
        models["base"] = policy_version(base)
    exported = [run.stage("model", index) for index in range(config.rounds)]
    finished = [model for model in exported if read_card(model) is not None]
    if finished:
        mirror.refresh(finished[-1], everything=True)
        models["aligned"] = _exported(finished[-1])
    else:
        notes.append("no round of this run has exported a model yet, so only the base is served")
    return models, tuple(notes)


def _checkpoint_target(folder: pathlib.Path, overrides: Sequence[str]) -> Target:
    """A folder on its own has no run configuration: its card and config.json give the defaults."""
    card, notes = read_card(folder), []
    raw: dict[str, Any] = {"model": _model_defaults(folder)}
    if card is not None:
        raw["video"] = dict(card["frame_spec"])
    refuse_unused(overrides, list(ServingConfig.model_fields))
    config = parse_section(ServingConfig, raw, overrides, source=f"serving {folder}")
    if config.serve.adapters:
        raise ConfigError(
            f"serve.adapters is for a run with a base and a policy, and {folder} is one checkpoint; leave it out"
        )
    frame_spec = config.video.frame_spec()
    if card is None:
        notes.append(
            f"{folder} has no {CARD}, so frames are sampled by the defaults ({_words(frame_spec)}); "
            "set video.num_frames=…, video.height=… as the model was trained"
        )
    policy = _exported(folder) if card is not None else policy_version(folder)
    return Target(models={folder.resolve().name: policy}, config=config, frame_spec=frame_spec, notes=tuple(notes))


def refuse_unused(overrides: Sequence[str], used: Sequence[str], *, what: str = "serving") -> None:
    """Raises `ConfigError` for an override of something that a run has and that makes no difference to `what`."""
    for override in overrides:
        name = override.partition("=")[0].partition(".")[0]
        if name in RunConfig.model_fields and name not in used:
            raise ConfigError(
                f"override {override!r}: {what} does not use {name}, only {', '.join(used[:-1])} and {used[-1]}; leave it out"
            )


def _model_defaults(folder: pathlib.Path) -> dict[str, Any]:
    """The dtype that the checkpoint is stored in, and a context that it has."""
    stored = files.read_object(folder / "config.json")
    text = stored.get("text_config", stored)
    model: dict[str, Any] = {"path": str(folder)}
    dtype = stored.get("dtype") or stored.get("torch_dtype") or text.get("dtype")
    if dtype in ("float32", "bfloat16", "float16"):
        model["dtype"] = dtype
    longest = text.get("max_position_embeddings")
    if longest is None and stored.get("model_type") and not stored.get("auto_map"):  # what is left out is at its default
        from vidalign.model.estimate import position_limit
        from vidalign.model.loading import read_config

        longest = position_limit(read_config(str(folder)))
    if isinstance(longest, int):
        model["max_model_len"] = min(longest, 4096)
    return model


def _exported(folder: pathlib.Path) -> PolicyVersion:
    card = read_card(folder)
    assert card is not None, folder
    return PolicyVersion(version=card["version"], path=str(folder.absolute()), parent=card.get("parent", ""))


def describe(running: Endpoint) -> str:
    """How to ask a running endpoint: address, models, a curl line and a Python snippet."""
    model_id = running.model_ids[-1]
    versions = "\n".join(f"  {name:<12} policy {version}" for name, version in running.versions.items())
    root = f"file: urls below {running.media_root}" if running.media_root else "no file: urls (set serve.media_root=FOLDER)"
    video = example_url(running.media_root)
    needs_key = running.api_key != NO_KEY
    header = " -H 'Authorization: Bearer KEY'" if needs_key else ""
    return f"""
serving at {running.base_url}   (Ctrl-C stops it)
{versions}
  videos: data: urls, {root}

curl {running.base_url}/chat/completions -H 'Content-Type: application/json'{header} -d '{{"model": "{model_id}", "messages": [
  {{"role": "user", "content": [{{"type": "video_url", "video_url": {{"url": "{video}"}}}},
                              {{"type": "text", "text": "What happens?"}}]}}]}}'

from openai import OpenAI
client = OpenAI(base_url="{running.base_url}", api_key="{"KEY" if needs_key else NO_KEY}")
reply = client.chat.completions.create(model="{model_id}", messages=[{{"role": "user", "content": [
    {{"type": "video_url", "video_url": {{"url": "{video}"}}}}, {{"type": "text", "text": "What happens?"}}]}}])
print(reply.choices[0].message.content, reply.system_fingerprint)  # the text, and the version of the policy that wrote it
"""


def how_to_promote(target: str, running: Endpoint) -> str:
    """How another version comes in, where the endpoint can have one. Ray must be connected."""
    import ray

    if POLICY not in running.versions or len(running.versions) == 1:
        return ""
    return f"\nanother version: vidalign promote {target}:ROUND --to {ray.get_runtime_context().gcs_address}\n"


def _words(spec: FrameSpec) -> str:
    rate = f"{spec.num_frames} frames" if spec.num_frames is not None else f"{spec.fps:g} frames a second"
    return f"{rate}, {'own size' if spec.height is None else f'{spec.height}x{spec.width}'}"
