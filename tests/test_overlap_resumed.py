"""A run of overlapping rounds that is cut off anywhere continues to what the undisturbed one made, whatever it overlapped with."""

import dataclasses
import itertools
import pathlib
import threading

import pytest

from pipelines.overlap import overlapped
from pipelines.stages.base import Stage, manifest, once
from pipelines.stages.staleness import responder
from vidalign import files
from vidalign.types import PolicyVersion, stable_hash

NUM_ROUNDS = 4


class Killed(BaseException):
    """As SIGKILL, as far as a test can do that in its own process."""


class Steps:
    """Counts the steps of all stages; from number `last` on, every step is the end."""

    def __init__(self, last=None):
        self._counter, self._last, self._lock = itertools.count(), last, threading.Lock()

    def one(self):
        with self._lock:
            if self._last is not None and next(self._counter) >= self._last:
                raise Killed


@dataclasses.dataclass
class Made(Stage):
    """A stage whose result is a hash of what it is made from, in parts that are kept."""

    folder: pathlib.Path
    source: dict
    steps: Steps
    earlier = None
    name = "made"

    def inputs(self):
        return self.source

    def run(self):
        for part in range(3):
            path = self.folder / f"{part}.json"
            self.steps.one()
            if not path.is_file():
                files.write_json(path, stable_hash([self.source, part]))
        self.steps.one()
        return {"version": stable_hash([files.read_json(self.folder / f"{part}.json") for part in range(3)])}


def run(root, staleness, steps, *, overlap=True):
    """The version of the last policy."""

    def policy(index):
        if index == 0:
            return PolicyVersion(version="base", path="m")
        folder = root / f"{index - 1}/train"
        return PolicyVersion(version=manifest(folder)["version"], path="m") if (folder / "manifest.json").is_file() else None

    def respond(index):
        folder = root / f"{index}/responses"
        asked = policy(responder(index, staleness, folder, policy))
        assert asked is not None, "the policy that makes the responses is there when they are made"
        once(Made(folder, {"policy": asked.version, "round": index}, steps))

    def train(index):
        started = policy(index)
        made = manifest(root / f"{index}/responses")["version"]
        once(Made(root / f"{index}/train", {"policy": started.version, "responses": made}, steps))

    if overlap:
        overlapped(NUM_ROUNDS, staleness, respond, train)
    else:
        for index in range(NUM_ROUNDS):
            respond(index)
            train(index)
    return policy(NUM_ROUNDS).version


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return {age: run(tmp_path_factory.mktemp("undisturbed"), age, Steps(), overlap=age > 0) for age in range(3)}


def test_the_age_of_responses_makes_a_difference(expected):
    assert len(set(expected.values())) == 3


@pytest.mark.parametrize("staleness", [1, 2])
def test_it_is_the_same_without_overlap(staleness, expected, tmp_path):
    assert run(tmp_path, staleness, Steps(), overlap=False) == expected[staleness]


@pytest.mark.parametrize("last", range(0, 8 * NUM_ROUNDS, 3))
@pytest.mark.parametrize("staleness", [1, 2])
def test_it_continues_from_wherever_it_was_cut_off(staleness, last, expected, tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, staleness, Steps(last))
    with pytest.raises(Killed):
        run(tmp_path, staleness, Steps(0))  # and again before it did anything
    assert run(tmp_path, staleness, Steps(), overlap=bool(last % 2)) == expected[staleness]
