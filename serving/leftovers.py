"""An endpoint whose driver was killed: Ray Serve is detached from drivers, so it would serve on, and hold its GPUs and its port.

An endpoint's application is named after its driver's job, and those of the versions of its policy after it (NAME@VERSION). Where Ray
says that this job is dead, the endpoint is taken down.
"""

from __future__ import annotations

from collections.abc import Collection

from serving import table_store

PREFIX = "vidalign-"
CONTROLLER = "SERVE_CONTROLLER_ACTOR"
CLEAR_TIMEOUT_S = 90.0


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
    import ray._private.state

    if not ray.is_initialized():
        return []
    state = ray._private.state.state
    dead = sorted(job["JobID"] for job in state.job_table() if job["IsDead"])
    alive = state.actor_table(None, None, "ALIVE").values()
    if not any(actor["Name"] == CONTROLLER and actor["JobID"] in dead for actor in alive):
        return []
    # In a process of its own: Ray Serve reads its options from the environment when it is imported, and this driver's come later.
    return ray.get(ray.remote(num_cpus=0)(_clear).remote(dead), timeout=CLEAR_TIMEOUT_S)


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
