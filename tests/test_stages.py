"""A stage is claimed, run, finished, and skipped ever after; a changed option is named, with its old and new value."""

import dataclasses
import json

import pytest

from pipelines.stages.base import Stage, changes, check, flat, identity, identity_v1, manifest, once
from vidalign import files
from vidalign.config.training import TrainConfig
from vidalign.errors import ConfigError, DataError
from vidalign.types import stable_hash


@dataclasses.dataclass
class Adding(Stage):
    """Adds up numbers; `dies_after` numbers it is killed, as far as a test can do that."""

    folder: object
    numbers: tuple = (1, 2)
    label: str = "sum"
    batch: int = 1
    needed: tuple = ()
    runs: int = 0
    dies: bool = False
    earlier = None

    name = "adding"

    @property
    def needs(self):
        return self.needed

    def inputs(self):
        return {"sum": {"numbers": list(self.numbers), "label": self.label}}

    def layout(self):
        return {"batch": self.batch}

    def inputs_v1(self):
        return [list(self.numbers), self.label]

    def run(self):
        self.runs += 1
        if self.dies:
            raise RuntimeError("killed")
        return {"total": sum(self.numbers)}


def test_a_finished_stage_is_not_run_again(tmp_path):
    stage = Adding(tmp_path / "s")
    assert once(stage)["total"] == once(stage)["total"] == 3
    assert stage.runs == 1
    stored = manifest(tmp_path / "s")
    assert (stored["format"], stored["stage"]) == (2, "adding")
    assert stored["inputs"] == {"sum.numbers": [1, 2], "sum.label": "sum"}


def test_an_option_that_partial_results_no_longer_depend_on_may_differ_from_that_of_an_older_folder(tmp_path):
    begun = Adding(tmp_path / "s", dies=True, batch=4)
    with pytest.raises(RuntimeError):
        once(begun)
    with pytest.raises(ConfigError, match="batch was 4 and is now 8"):
        once(Adding(tmp_path / "s", batch=8))

    class Younger(Adding):
        once_in_layout = frozenset({"batch"})

        def layout(self):
            return {}

    assert once(Younger(tmp_path / "s"))["total"] == 3


def test_a_changed_option_is_named_with_its_old_and_new_value(tmp_path):
    once(Adding(tmp_path / "s"))
    with pytest.raises(ConfigError) as caught:
        once(Adding(tmp_path / "s", label="total"))
    assert str(caught.value) == (
        f"{tmp_path / 's'} was finished with another configuration: sum.label was 'sum' and is now 'total'; set it back, "
        "choose a new run_dir, or delete that folder to make it again"
    )


def test_how_partial_results_are_laid_out_matters_until_the_stage_is_finished(tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        once(Adding(tmp_path / "s", dies=True))
    assert not check(Adding(tmp_path / "s"))
    with pytest.raises(ConfigError, match="was begun with another configuration: batch was 1 and is now 2"):
        once(Adding(tmp_path / "s", batch=2))
    with pytest.raises(ConfigError, match=r"sum.numbers was \[1, 2\] and is now \[5\]"):
        once(Adding(tmp_path / "s", numbers=(5,)))
    once(Adding(tmp_path / "s"))
    assert once(Adding(tmp_path / "s", batch=2))["total"] == 3


def test_a_stage_needs_the_ones_before_it(tmp_path):
    first = Adding(tmp_path / "first")
    second = Adding(tmp_path / "second", needed=(tmp_path / "first",))
    with pytest.raises(DataError, match="first"):
        once(second)
    once(first)
    assert once(second)["total"] == 3
    assert identity(tmp_path / "first") == stable_hash(flat(first.inputs()))


def write_format_1(folder, stage, *, finished=True):
    value = stable_hash(stage.inputs_v1())
    files.write_json(folder / ("manifest.json" if finished else "begun.json"), {"inputs": value} if finished else value)


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_format_1_goes_on_or_says_which_option_differs(tmp_path, finished):
    folder = tmp_path / "s"
    write_format_1(folder, Adding(folder), finished=finished)
    changed = Adding(folder, label="total")
    with pytest.raises(ConfigError, match="or other data"):  # what it was made from is not known any more
        check(changed)
    changed.earlier = lambda: Adding(folder)  # it is, from the configuration in the run's folder
    with pytest.raises(ConfigError, match=r"sum\.label was 'sum' and is now 'total'"):
        check(changed)
    same_meaning = Adding(folder, numbers=(1, 2))
    same_meaning.inputs_v1 = lambda: "an option that changes no result was in the old hash"
    same_meaning.earlier = lambda: Adding(folder)
    assert check(same_meaning) is finished
    if finished:
        assert identity_v1(folder) == stable_hash(Adding(folder).inputs_v1())
        assert identity(folder) == stable_hash(flat(Adding(folder).inputs()))


def test_values_are_compared_as_they_are_stored():
    assert changes(json.loads(json.dumps(flat({"a": {"b": (1, 2)}}))), flat({"a": {"b": [1, 2]}})) == []
    assert changes({"a": 1}, {"b": None}) == ["a was 1 and is now not there", "b was not there and is now None"]


def test_options_that_change_no_result_are_not_among_the_inputs():
    one, other = (
        TrainConfig(log_every=log_every, num_workers=num_workers, max_failures=3, cache_dir=cache_dir)
        for log_every, num_workers, cache_dir in ((1, 1, None), (9, 2, "/cache"))
    )
    assert one.deciding() == other.deciding()
    assert one.deciding() != TrainConfig(learning_rate=1e-3).deciding()
    assert TrainConfig(lora={"rank": 4}).deciding()["lora"]["rank"] == 4
    assert TrainConfig.model_fields.keys() >= TrainConfig.NEUTRAL
