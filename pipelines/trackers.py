"""Experiment trackers behind one interface: TensorBoard, Weights & Biases, MLflow and trackio.

Where each keeps its runs and with which key it is reached is said to it in its own way, by its environment variables or its login;
where nothing is said, W&B and TensorBoard write into the run's folder, and trackio and MLflow into their own places.
"""

from __future__ import annotations

import contextvars
import importlib.util
import json
import netrc
import os
import pathlib
import re
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from vidalign.errors import ConfigError

PROJECT = "vidalign"
MLFLOW_VALUE = 500  # characters of a parameter's value that every MLflow store takes


class Tracker(Protocol):
    """One tracker, opened for one run. `id` is what it knows the run by when it is opened for the next time."""

    id: str
    takes_curves: ClassVar[bool]

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Figures of one step; steps only go up."""
        ...

    def finish(self, values: Mapping[str, float], paths: Sequence[pathlib.Path]) -> None:
        """Figures of the whole run that are new, and files that belong to it; there may be none."""
        ...

    def close(self) -> None:
        """Send what is left. The run can be opened again."""
        ...


def flat(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """{"train": {"seed": 1}} as {"train.seed": 1}; lists stay as they are."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{above}{key}.") if isinstance(value, Mapping) and value else {f"{above}{key}": value}
    return found


class TensorBoard:
    """`tensorboard --logdir RUN`. The curves of training are written by training itself, step by step."""

    package: ClassVar[str] = "tensorboard"
    takes_curves: ClassVar[bool] = False

    def __init__(self, folder: pathlib.Path, name: str, own_id: str, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.id = own_id
        self._board = SummaryWriter(str(folder / "tensorboard"))
        self._board.add_text("config", f"```json\n{json.dumps(config, indent=2)}\n```")

    def log(self, values: Mapping[str, float], step: int) -> None:
        raise NotImplementedError("training writes its own curves")

    def finish(self, values: Mapping[str, float], paths: Sequence[pathlib.Path]) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, 0)
        if paths:
            self._board.add_text("files", "\n".join(f"- {path.absolute()}" for path in paths))

    def close(self) -> None:
        self._board.close()


class Wandb:
    """Weights & Biases; with WANDB_MODE=offline below the run's folder, for `wandb sync`."""

    package: ClassVar[str] = "wandb"
    takes_curves: ClassVar[bool] = True

    def __init__(self, folder: pathlib.Path, name: str, own_id: str, config: Mapping[str, Any]) -> None:
        import wandb

        self.id = own_id
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=os.environ.get("WANDB_DIR", str(folder)),
            id=own_id,
            name=name,
            resume="allow",
            config=dict(config),
            # The console belongs to this command, and what its machine does is the cluster's business.
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True, disable_git=True),
        )

    @staticmethod
    def check() -> None:
        """Raises `ConfigError` where nothing says with which key to log in: W&B would ask for one in the middle of a run."""
        if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun") or os.environ.get("WANDB_API_KEY"):
            return
        host = urllib.parse.urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
        try:
            known = netrc.netrc().authenticators(host)
        except (OSError, netrc.NetrcParseError):
            known = None
        if known is None:
            raise ConfigError(
                f"track has wandb, and no key for {host} is known; run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline"
            )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, values: Mapping[str, float], paths: Sequence[pathlib.Path]) -> None:
        import wandb

        self._run.summary.update(dict(values))
        if not paths:
            return
        kept = wandb.Artifact(f"run-{self.id}", type="report")
        for path in paths:
            kept.add_file(str(path))
        self._run.log_artifact(kept)

    def close(self) -> None:
        self._run.finish()


OTHER = re.compile(r"[^\w\-./ :]")  # what MLflow does not take in a name, such as a category's


class MLflow:
    """MLflow, at MLFLOW_TRACKING_URI or its own default; the experiment is MLFLOW_EXPERIMENT_NAME or "vidalign"."""

    package: ClassVar[str] = "mlflow"
    takes_curves: ClassVar[bool] = True

    def __init__(self, folder: pathlib.Path, name: str, own_id: str, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric, Param

        self._metric = Metric
        self._client = self.client()
        if own_id.startswith("new-"):
            experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            found = self._client.get_experiment_by_name(experiment)
            where = found.experiment_id if found else self._client.create_experiment(experiment)
            self.id = self._client.create_run(where, run_name=name).info.run_id
            params = [Param(key, str(value)[:MLFLOW_VALUE]) for key, value in flat(config).items()]
            for start in range(0, len(params), 100):  # as many as a server takes at once
                self._client.log_batch(self.id, params=params[start : start + 100])
        else:
            self.id = own_id
            self._client.update_run(own_id, status="RUNNING")

    @staticmethod
    def client() -> Any:
        """MLflow's client of the store that its environment names."""
        import mlflow

        return mlflow.MlflowClient()

    @staticmethod
    def check() -> None:
        """Raises `ConfigError` where MLflow has no store that it can write."""
        from mlflow.exceptions import MlflowException

        try:
            MLflow.client()
        except (MlflowException, ImportError) as error:
            raise ConfigError(
                f"track has mlflow, whose store cannot be used ({' '.join(str(error).split())[:300]}); set MLFLOW_TRACKING_URI to a "
                "server or a database, or install the whole of it: pip install mlflow"
            ) from error

    def log(self, values: Mapping[str, float], step: int) -> None:
        now = time.time_ns() // 1_000_000
        metrics = [self._metric(OTHER.sub("_", name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def finish(self, values: Mapping[str, float], paths: Sequence[pathlib.Path]) -> None:
        self.log(values, 0)
        for path in paths:
            self._client.log_artifact(self.id, str(path))

    def close(self) -> None:
        self._client.set_terminated(self.id)


class Trackio:
    """trackio, below TRACKIO_DIR or in its own cache, or in the Space TRACKIO_SPACE_ID; `trackio show` shows it."""

    package: ClassVar[str] = "trackio"
    takes_curves: ClassVar[bool] = True

    def __init__(self, folder: pathlib.Path, name: str, own_id: str, config: Mapping[str, Any]) -> None:
        import trackio

        self.id = own_id
        # In a context of its own: what its `atexit` ends and prints there is for scripts that forget to.
        self._run = contextvars.copy_context().run(
            trackio.init,
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{name}-{own_id[-6:]}",  # it knows runs by their names
            space_id=os.environ.get("TRACKIO_SPACE_ID"),
            resume="allow",
            config=flat(config),
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, values: Mapping[str, float], paths: Sequence[pathlib.Path]) -> None:
        import trackio

        self._run.log(dict(values))
        if not paths:
            return
        kept = trackio.Artifact(f"run-{self.id}", type="report")
        for path in paths:
            kept.add_file(str(path))
        self._run.log_artifact(kept)

    def close(self) -> None:
        self._run.finish()


TRACKERS: Mapping[str, Any] = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": MLflow, "trackio": Trackio}


def check_trackers(names: Sequence[str]) -> None:
    """Raises `ConfigError` for a tracker whose package is not installed, or that cannot be reached as it is set up here."""
    for name in names:
        kind = TRACKERS[name]
        if importlib.util.find_spec(kind.package) is None:
            raise ConfigError(
                f"track has {name}, whose package is not installed; run `pip install {kind.package}`, or leave it out"
            )
        if hasattr(kind, "check"):
            kind.check()
