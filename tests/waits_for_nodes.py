"""Waits for nodes that never come, on a Ray of two small nodes: prints, as one line of JSON, how each of those that are named ended.

A process of its own: a wait that does not end is ended with it.
"""

import contextlib
import json
import pathlib
import sys
import tempfile
import threading
import time

from actors.decoder import decoded_videos
from cluster import interrupts, waiting
from pipelines.stages.train import MAX_RANK_STARTS, fit_again
from serving.leftovers import application_name
from serving.readiness import wait_until_ready
from vidalign.errors import VidalignError
from vidalign.types import FrameSpec

LIMIT_S = 4.0
ELASTIC_LIMIT_S = 45.0  # more than Ray Train takes to see that a node is gone
waiting.LOOK_EVERY_S = 0.5
VIDEO = str(pathlib.Path(__file__).parent / "videos" / "base.mp4")


def ended(work, *, in_command: bool = True, limit_s: float = LIMIT_S) -> dict:
    """{"seconds", "error"}: how a piece of work ended that may wait, in a command or in a program that uses the library."""
    began = time.monotonic()
    try:
        with (
            interrupts.handled() if in_command else contextlib.nullcontext(),
            interrupts.stoppable() as stop,
            waiting.placement_watched(limit_s, say=lambda text: None, stop=stop),
        ):
            work()
    except VidalignError as error:
        return {"seconds": time.monotonic() - began, "error": str(error)}
    return {"seconds": time.monotonic() - began, "error": ""}


def decode() -> None:
    with tempfile.TemporaryDirectory() as cache:
        list(decoded_videos([VIDEO], FrameSpec(num_frames=2), cache, num_cpus=64))


def serve() -> None:
    from ray import serve as ray_serve

    @ray_serve.deployment(placement_group_bundles=[{"CPU": 64}], ray_actor_options={"num_cpus": 1})
    class Large:
        def __call__(self) -> str:
            return ""

    try:
        ray_serve.run_many([ray_serve.RunTarget(Large.bind(), name=application_name())], wait_for_applications_running=False)
        wait_until_ready(
            [application_name()],
            "http://127.0.0.1:9/v1",
            ["x"],
            started_at=time.monotonic(),
            timeout_s=1.0,
            wait_for_nodes_s=LIMIT_S,
            on_wait=None,
            say=lambda text: None,
        )
    finally:
        ray_serve.shutdown()


def train(cluster, node, fewest: int = 2) -> None:
    """Two ranks on two nodes, one of which goes. One rank alone has nothing to do."""
    import ray.train
    from ray.train.torch import TorchTrainer

    with tempfile.TemporaryDirectory() as folder:
        began = pathlib.Path(folder) / "began"

        def loop(config: dict) -> None:
            if ray.train.get_context().get_world_size() == 2:
                pathlib.Path(config["began"]).touch()
                time.sleep(300)

        trainer = TorchTrainer(
            loop,
            train_loop_config={"began": str(began)},
            scaling_config=ray.train.ScalingConfig(
                num_workers=2 if fewest == 2 else (fewest, 2), resources_per_worker={"CPU": 2}
            ),
            run_config=ray.train.RunConfig(
                name="x",
                storage_path=folder,
                failure_config=ray.train.FailureConfig(max_failures=3, controller_failure_limit=MAX_RANK_STARTS),
            ),
        )

        def lose() -> None:
            while not began.is_file():
                time.sleep(0.1)
            cluster.remove_node(node)

        threading.Thread(target=lose, daemon=True).start()
        with waiting.ranks_asked_for_anew(fewest < 2):
            fit_again(lambda: interrupts.beside(trainer.fit), print)
        assert began.is_file(), "there were never two ranks"


def main() -> None:
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    node = cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    waits = {
        "decode": lambda: ended(decode),
        "library": lambda: ended(decode, in_command=False),
        "serve": lambda: ended(serve),
        "train": lambda: ended(lambda: train(cluster, node)),
        "elastic": lambda: ended(lambda: train(cluster, node, fewest=1), limit_s=ELASTIC_LIMIT_S),
    }
    found = {name: waits[name]() for name in sys.argv[1:]}
    ray.shutdown()
    cluster.shutdown()
    print(json.dumps(found), flush=True)
    interrupts.leave(0)


if __name__ == "__main__":
    sys.exit(main())
