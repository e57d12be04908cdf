"""The endpoints of an evaluation: one with all of its models or, where the plan says so, one for each, after the one before."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection
from typing import TypeVar

from pipelines import progress
from serving.app import Endpoint, endpoint
from serving.spec import EndpointSpec
from vidalign.config.run import EvaluateConfig

T = TypeVar("T")


def at_each(spec: EndpointSpec, wanted: Collection[str], ask: Callable[[Endpoint], T]) -> list[T]:
    """Call `ask` with each endpoint while it runs.

    Args:
        spec: `spec.plan.in_turn` decides how many endpoints there are.
        wanted: the models that have anything left to answer. Where an endpoint has none of them it is not started, and `ask` gets
            one that only says which policies it would have.

    Raises:
        ModelError, ClusterError: as `serving.app.endpoint` does.
    """
    groups = [{name: policy} for name, policy in spec.models.items()] if spec.plan.in_turn else [spec.models]
    found = []
    for models in groups:
        if not set(wanted) & set(models):
            versions = {name: policy.version for name, policy in models.items()}
            found.append(ask(Endpoint(base_url="", versions=versions, media_root=spec.serve.media_root)))
            continue
        what = f"start {next(iter(models))}" if spec.plan.in_turn else "start endpoint"
        with contextlib.ExitStack() as stack:
            with progress.waiting(what) as on_wait:
                made = endpoint(dataclasses.replace(spec, models=models), on_wait=on_wait, say=progress.note)
                running = stack.enter_context(made)
            found.append(ask(running))
    return found


def at_its_pace(config: EvaluateConfig, spec: EndpointSpec) -> EvaluateConfig:
    """`evaluate` with as many requests in flight as all replicas of a model take together."""
    return config.model_copy(update={"concurrency": config.concurrency * spec.plan.max_replicas})
