"""An endpoint whose driver was killed: Ray Serve is detached from drivers, so it would serve on, and hold its GPUs and its port.

An endpoint's application is named after its driver's job, and those of the versions of its policy after it (NAME@VERSION). Where Ray
says that this job is dead, the endpoint is taken down: by its caretaker within seconds, or, where that has gone too, by the next
command that serves. `ray job stop` kills a driver three seconds after SIGTERM, and Serve takes longer to shut down.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Collection, Iterator

from cluster import own_ray
from serving import table_store

PREFIX = "vidalign-"
CONTROLLER = "SERVE_CONTROLLER_ACTOR"
CLEAR_TIMEOUT_S = 90.0
LOOK_EVERY_S = 1.0
NAMESPACE = "vidalign"


def application_name() -> str:
    """The name of the application of this driver's endpoint. Ray must be connected."""
    import ray

    return PREFIX + ray.get_runtime_context().get_job_id()


def left_behind(names: Collection[str], dead: Collection[str]) -> list[str]:
    """The applications among `names` whose driver was one of the `dead` jobs."""
    return [name for name in names if name.startswith(PREFIX) and name.removeprefix(PREFIX).partition("@")[0] in dead]


def clear_leftovers() -> list[str]:
    """Take down the endpoints of dead drivers on the connected cluster, if one is. Returns the names of their applications."""
    import ray

    if not ray.is_initialized():
        return []
    dead = _dead_jobs()
    if not _began_serve(dead):
        return []
    # In a process of its own: Ray Serve reads its options from the environment when it is imported, and this driver's come later.
    return ray.get(ray.remote(num_cpus=0)(_clear).remote(dead), timeout=CLEAR_TIMEOUT_S)


@contextlib.contextmanager
def cared_for() -> Iterator[None]:
    """A block in which an endpoint is taken down should its driver, this process, be killed; on a cluster that outlives it."""
    import ray

    if own_ray.processes_of_node():
        yield
        return
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    context, name = ray.get_runtime_context(), f"caretaker of {application_name()}"
    beside = NodeAffinitySchedulingStrategy(context.get_node_id(), soft=True)  # it keeps no other node from being given up
    options = {"name": name, "namespace": NAMESPACE, "lifetime": "detached", "num_cpus": 0, "max_restarts": -1}
    made = ray.remote(_Caretaker).options(**options, scheduling_strategy=beside)
    actor = made.remote(context.get_job_id(), name)
    try:
        yield
    finally:
        ray.kill(actor)


class _Caretaker:
    """An actor that outlives its driver, and then takes down what that served, and ends."""

    def __init__(self, job: str, name: str) -> None:
        threading.Thread(target=self._care, args=(job, name), daemon=True, name="caretaker").start()

    def _care(self, job: str, name: str) -> None:
        import ray

        while job not in _dead_jobs():
            time.sleep(LOOK_EVERY_S)
        try:
            if _began_serve([job]):  # nobody else's, who may have come meanwhile
                _clear([job])
        finally:
            ray.kill(ray.get_actor(name, namespace=NAMESPACE))


def _dead_jobs() -> list[str]:
    import ray._private.state

    return sorted(job["JobID"] for job in ray._private.state.state.job_table() if job["IsDead"])


def _began_serve(jobs: Collection[str]) -> bool:
    """Whether Ray Serve runs, and one of these jobs has started it."""
    import ray._private.state

    alive = ray._private.state.state.actor_table(None, None, "ALIVE").values()
    return any(actor["Name"] == CONTROLLER and actor["JobID"] in jobs for actor in alive)


def _clear(dead: Collection[str]) -> list[str]:
    from ray import serve

    applications = serve.status().applications
    found = left_behind(applications, dead)
    if len(found) == len(applications):  # also where its driver was killed before it had one
        serve.shutdown()
    else:
        for name in found:
            serve.delete(name)
    for name in found:
        table_store.forget(name)
    return found
