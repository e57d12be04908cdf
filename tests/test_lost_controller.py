"""A training whose controller is killed goes on, on a Ray that has room for its ranks alone."""

import contextlib
import pathlib
import threading
import time

import psutil
import pytest

from cluster import interrupts
from cluster.waiting import placement_watched
from pipelines.stages.train import fit_again


def kill_controller(began: pathlib.Path) -> None:
    while not began.is_file():
        time.sleep(0.1)
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "ray::TrainController" in " ".join(process.cmdline()):
                process.kill()


@pytest.mark.heavy
@pytest.mark.long
def test_a_training_goes_on_in_the_room_of_the_controller_that_was_killed(local_ray, tmp_path):
    import ray.train
    from ray.train.torch import TorchTrainer

    began, told = tmp_path / "began", []

    def loop(config: dict[str, str]) -> None:
        path = pathlib.Path(config["began"])
        if not path.is_file():
            path.touch()
            time.sleep(100)

    trainer = TorchTrainer(
        loop,
        train_loop_config={"began": str(began)},
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": local_ray.num_cpus}),
        run_config=ray.train.RunConfig(name="x", storage_path=str(tmp_path)),
    )
    threading.Thread(target=kill_controller, args=(began,), daemon=True).start()
    with interrupts.stoppable() as stop, placement_watched(30, say=told.append, stop=stop):
        fit_again(lambda: interrupts.beside(trainer.fit), told.append)
    assert "the training's controller died" in told[0]
