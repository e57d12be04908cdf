"""Checkpoints: when they are due, and what of those that were cut off."""

import json
import types

import pytest
import torch

from actors.checkpoints import SNAPSHOT, Checkpoints, is_whole, leave_out_torn
from actors.metrics_log import whole_rows
from vidalign.config.training import TrainConfig


def kept(folder, steps, cut=()):
    """Checkpoints of these steps and Ray Train's list of them, with those of `cut` cut off."""
    names = [f"step-{step:06d}-1" for step in steps]
    for step, name in zip(steps, names, strict=True):
        path = folder / name / "state" / "mp_rank_00_model_states.pt"
        path.parent.mkdir(parents=True)
        torch.save({"w": torch.ones(100)}, path)
        if step in cut:
            path.write_bytes(path.read_bytes()[:400])
    results = [
        {"version": 0, "checkpoint_dir_name": name, "metrics": {"step": step}}
        for step, name in zip(steps, names, strict=True)
    ]
    row = {"checkpoint_results": results, "checkpoint_report_indices": list(range(len(steps)))}
    (folder / SNAPSHOT).write_text(json.dumps({**row, "latest_checkpoint_result": results[-1], "ray_version": "x"}))
    return names


@pytest.mark.parametrize(("steps", "cut", "left"), [((2, 4), (), (2, 4)), ((2, 4), (4,), (2,)), ((2, 4), (2,), (4,))])
def test_a_checkpoint_that_was_cut_off_is_left_out(tmp_path, steps, cut, left):
    names, said = kept(tmp_path, steps, cut), []
    assert [is_whole(tmp_path / name) for name in names] == [step not in cut for step in steps]
    leave_out_torn(tmp_path, said.append)
    listed = json.loads((tmp_path / SNAPSHOT).read_text())
    assert [row["metrics"]["step"] for row in listed["checkpoint_results"]] == list(left)
    assert listed["checkpoint_report_indices"] == [steps.index(step) for step in left]
    assert listed["latest_checkpoint_result"]["metrics"]["step"] == left[-1]
    assert listed["ray_version"] == "x"
    assert len(said) == bool(cut)
    leave_out_torn(tmp_path, said.append)
    assert len(said) == bool(cut), "said once"


@pytest.mark.parametrize("what", ["every file", "folder gone", "list"])
def test_where_none_is_whole_the_training_begins_anew(tmp_path, what):
    [name], said = kept(tmp_path, [4], [4] if what == "every file" else []), []
    if what == "folder gone":
        (tmp_path / name).rename(tmp_path / "elsewhere")
    if what == "list":
        (tmp_path / SNAPSHOT).write_text((tmp_path / SNAPSHOT).read_text()[:50])
    leave_out_torn(tmp_path, said.append)
    assert not (tmp_path / SNAPSHOT).exists()
    assert "begins anew" in said[0]
    leave_out_torn(tmp_path, said.append)
    assert len(said) == 1


def test_a_notice_that_a_machine_goes_is_answered_by_one_checkpoint():
    rank = types.SimpleNamespace(is_first=True, largest=int)
    checkpoints = Checkpoints(rank, TrainConfig(checkpoint_every=10), None)
    asked = [
        checkpoints.are_due(step, notice) for step, notice in ((1, None), (2, ("n1",)), (3, ("n1",)), (4, ("n1", "n2")))
    ]
    assert asked == [False, True, False, True]
    assert checkpoints.are_due(10)


def test_of_a_row_that_was_cut_off_nothing_is_taken():
    assert whole_rows('{"step": 0}\n{"step": 1}\n{"ste') == [{"step": 0}, {"step": 1}]
    assert whole_rows("") == []
