"""One rank of a training on CPUs, as a process: the learner and DeepSpeed without Ray.

    python tests/gloo_ranks.py JOBS RANK COUNT PORT OUT

JOBS is a JSON file {name: {"job": a `TrainJob`'s dict, "chunk_size": …, "export": …, "stop_after": steps, "resume": a checkpoint}}.
Rank 0 writes to OUT, after each job, {name: {"losses", "measured", "peak_bytes", "checkpoint"}}: the last of one that was stopped.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import pathlib
import socket
import subprocess
import sys
from typing import Any

TIMEOUT_S = 60.0  # for one collective: ranks that disagree wait for one another
SCRIPT = pathlib.Path(__file__)


def run(jobs: dict[str, dict[str, Any]], folder: pathlib.Path, *, count: int, timeout_s: float = 400) -> dict[str, Any]:
    """What rank 0 of `count` ranks wrote. An `AssertionError` with a rank's last words where one failed or did not end."""
    folder.mkdir(parents=True)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[1]), str(SCRIPT.parent)]),
        "TORCH_DISTRIBUTED_DEBUG": "DETAIL",  # names the collectives that do not match
        "DS_ACCELERATOR": "cpu",
    }
    ranks, logs = [], [folder / f"rank{rank}.log" for rank in range(count)]
    for rank, log in enumerate(logs):
        arguments = [str(folder / "jobs.json"), str(rank), str(count), str(port), str(folder / "out.json")]
        with log.open("w") as file:
            ranks.append(
                subprocess.Popen([sys.executable, str(SCRIPT), *arguments], env=environment, stdout=file, stderr=file)
            )
    try:
        codes = [rank.wait(timeout_s) for rank in ranks]
    except subprocess.TimeoutExpired:
        codes = ["did not end"]
    finally:
        for rank in ranks:
            rank.kill()
    assert codes == [0] * count, "\n".join([str(codes), *(log.read_text()[-2500:] for log in logs)])
    return json.loads((folder / "out.json").read_text())


def main(jobs: str, rank: str, count: str, port: str, out: str) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ |= {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=TIMEOUT_S))
    made = {}
    for name, settings in json.loads(pathlib.Path(jobs).read_text()).items():
        print(name, flush=True)
        made[name] = train(**settings)
        if rank == "0":
            pathlib.Path(out).write_text(json.dumps(made))
    dist.barrier()


def train(
    job: dict[str, Any],
    *,
    chunk_size: int,
    export: dict[str, Any] | None = None,
    stop_after: int = -1,
    resume: str = "",
    whole: bool = False,
) -> dict[str, Any]:
    """Train to the end or so many steps, measured before and after, and export where that is asked for.

    `whole`: as Ray Train would run it, to the export.
    """
    import torch

    from actors import learner, rank, sharding
    from actors.train_job import TrainJob
    from vidalign.model.policy import load_policy

    learner.Rank = functools.partial(rank.Rank, chunk_size=chunk_size)  # type: ignore[misc]
    sharded = os.environ["RANK"] != "0" and job["train"]["zero_stage"] == 3
    sharding.load_policy = refused if sharded else load_policy
    one = learner.Learner(TrainJob.from_dict(job), device=torch.device("cpu"))
    if resume:
        from ray.train import Checkpoint

        one.restore(Checkpoint(resume))
    if whole:
        one.run(lambda *arguments, **options: None)
        return {"measured": [one.monitor.measure(one.step_index)]}
    measured = [one.monitor.measure(one.step_index)]
    losses = []
    while one.step_index < len(one.order) and len(losses) != stop_after:
        losses.append(one.step(one.order[one.step_index])[0])
        one.step_index += 1
    measured.append(one.monitor.measure(one.step_index))
    one.renderer.close()
    made: dict[str, Any] = {"losses": losses, "measured": measured}
    if stop_after >= 0:
        one.checkpoint(lambda *arguments, checkpoint, **options: made.update(checkpoint=checkpoint and checkpoint.path))
    if export is not None:
        made["peak_bytes"] = exported(one, export)
    return made


def refused(*_: Any) -> Any:
    """In place of what reads a model: of sharded ranks only the first does."""
    raise AssertionError("this rank read the whole model")


def exported(one: Any, options: dict[str, Any]) -> dict[str, int]:
    """Export to `folder`, and to `whole` what `save_pretrained` writes of the model when all of it is gathered at once.

    Returns the most bytes that were whole at one time: "device" of gathered parameters, "host" of copies that wait for their shard.
    """
    import deepspeed
    import safetensors.torch

    from vidalign.model import weights
    from vidalign.model.checkpoint import export_policy

    gathered, save_file, on_host = deepspeed.zero.GatheredParameters, safetensors.torch.save_file, weights.on_host
    now, peak = {"device": 0, "host": 0}, {"device": 0, "host": 0}

    def count(where: str, num_bytes: int) -> None:
        now[where] += num_bytes
        peak[where] = max(peak[where], now[where])

    class Counting(gathered):  # type: ignore[misc, valid-type]
        def __init__(self, params: Any, **options: Any) -> None:
            super().__init__(params, **options)
            self.num_bytes = sum(param.ds_numel * param.element_size() for param in params if hasattr(param, "ds_numel"))

        def __enter__(self) -> None:
            super().__enter__()
            count("device", self.num_bytes)

        def __exit__(self, *error: Any) -> None:
            super().__exit__(*error)
            count("device", -self.num_bytes)

    def copied(tensor: Any) -> Any:
        count("host", tensor.nbytes)
        return on_host(tensor)

    def saved(tensors: Any, *arguments: Any, **settings: Any) -> None:
        save_file(tensors, *arguments, **settings)
        count("host", -sum(tensor.nbytes for tensor in tensors.values()))

    deepspeed.zero.GatheredParameters, safetensors.torch.save_file, weights.on_host = Counting, saved, copied
    job, model, stage = one.job, one.rank.model, one.job.train.zero_stage
    export_policy(
        model,
        pathlib.Path(options["folder"]),
        base=job.policy_path,
        parent="",
        frame_spec=job.frame_spec,
        prompt=job.plain_prompt,
        zero_stage=stage,
        keep_adapter=job.train.lora is not None,
        max_shard_bytes=options["max_shard_bytes"],
    )
    deepspeed.zero.GatheredParameters, safetensors.torch.save_file, weights.on_host = gathered, save_file, on_host
    assert now == {"device": 0, "host": 0}, now
    with gathered(list(model.parameters()), enabled=stage == 3):
        if one.rank.index == 0:
            merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
            merged.save_pretrained(options["whole"], max_shard_size=options["max_shard_bytes"])
    return peak


if __name__ == "__main__":
    main(*sys.argv[1:])
