"""A value model on the built-in policy without an engine: scores, what is frozen, how pairs are ranked, kept token values."""

import dataclasses
import pathlib
import types

import pytest
import torch
from test_monitor import ModelAlone
from test_reference import groups, pairs, prepared, source  # noqa: F401 (fixtures)

from actors.monitor import HELDOUT, ValueMonitor
from actors.token_values import TokenValues
from actors.train_job import TrainJob
from pipelines.stages import token_values
from vidalign import files
from vidalign.config.run import ObjectiveConfig
from vidalign.config.training import TrainConfig
from vidalign.errors import ModelError
from vidalign.files import RunFolder
from vidalign.learning import objectives
from vidalign.learning.views import ValueView, view_of
from vidalign.model import shared_prefix
from vidalign.model.batch import IGNORED
from vidalign.model.logps import RowLogps
from vidalign.model.policy import load_policy, prepare_training
from vidalign.model.rendering import response_ids
from vidalign.model.tensor_cache import read_tensors
from vidalign.model.value_head import ValueHead, ValueScorer, read_head, write_head
from vidalign.types import FrameSpec, PolicyVersion, Response, ResponseGroup


def scorer_of(config, *, packed=False, **train):
    """A value model whose head says something."""
    torch.manual_seed(3)
    model = prepare_training(load_policy(config), TrainConfig(**train))
    scorer = ValueScorer(model, packed=packed)
    torch.nn.init.normal_(scorer.value_head.weight, std=0.02)
    return scorer


def scored(scorer, batch):
    values, *_ = scorer(batch.inputs, batch.labels, None, batch.sources)
    return RowLogps(logps=values, mask=batch.labels != IGNORED)


def test_a_value_is_of_the_state_before_its_token(prepared, source, groups):  # noqa: F811
    """Changing a response's token changes the values after it, and none up to it."""
    scorer = scorer_of(prepared[0]).eval()
    [group] = groups[:1]
    ids = source.tokens(group.responses[0])
    changed = [
        dataclasses.replace(group.responses[0], text="", token_ids=each, marks=())
        for each in (ids, (*ids[:2], ids[0] + 1, *ids[3:]))
    ]
    with torch.no_grad():
        rows = scored(scorer, source.batch([dataclasses.replace(group, responses=tuple(changed))]))
    one, other = (rows.logps[row][rows.mask[row]] for row in (0, 1))
    assert len(one) == len(ids)
    torch.testing.assert_close(one[:3], other[:3], atol=1e-5, rtol=1e-5)
    assert (one[3:] - other[3:]).abs().min() > 1e-4


def test_packed_rows_have_the_values_of_separate_ones(prepared, source, groups):  # noqa: F811
    apart, together = scorer_of(prepared[0]).eval(), scorer_of(prepared[0], packed=True).eval()
    numbered = dataclasses.replace(source, number=shared_prefix.numbering(together.model))
    with torch.no_grad():
        one, other = scored(apart, source.batch(groups)), scored(together, numbered.batch(groups))
    torch.testing.assert_close(one.logps[one.mask], other.logps[other.mask], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4}])
def test_head_and_backbone_learn_and_the_output_layer_does_not(prepared, source, groups, lora):  # noqa: F811
    scorer = scorer_of(prepared[0], lora=lora)
    objective = objectives.build("value", {})
    view = view_of(objective)(objective=objective, source=source, kept=None)
    assert isinstance(view, ValueView)
    rows = scored(scorer, source.batch(groups))
    made = view.policy(rows, groups)
    assert made.outcomes.tolist() == [1.0] * 3 + [-1.0] * 3
    loss = objective(made, view.reference(rows, groups), **view.denominators(groups))
    assert float(loss.value) == pytest.approx(float(objective(made).value), rel=1e-6), "the denominator is all their tokens"
    loss.value.backward()
    moved = {name for name, value in scorer.named_parameters() if value.grad is not None and value.grad.abs().max() > 0}
    assert {"value_head.weight", "value_head.bias"} <= moved
    inside = {name for name in moved if name.startswith("model.")}
    assert inside
    assert all("lora_" in name for name in inside) == (lora is not None)
    output = scorer.model.get_output_embeddings().weight
    tied = output is scorer.model.get_input_embeddings().weight
    assert output.requires_grad == (tied and lora is None)


def test_pairs_are_ranked_on_all_ranks_and_written(prepared, source, groups, tmp_path):  # noqa: F811
    scorer = scorer_of(prepared[0]).eval()
    with torch.no_grad():
        rows = scored(scorer, source.batch(groups))
    ends = [float(values[kept][-1]) for values, kept in zip(rows.logps, rows.mask, strict=True)]
    alone = ModelAlone(scorer)
    alone.is_first = True
    monitor = ValueMonitor(alone, source, pairs=groups, size=2)
    figures = monitor.measure(0)
    assert figures["accuracy"] == sum(won > lost for won, lost in zip(ends[:3], ends[3:], strict=True)) / 3
    assert figures["chosen_value"] == pytest.approx(sum(ends[:3]) / 3, abs=1e-4)
    monitor.write(tmp_path)
    kept = files.read_json(tmp_path / HELDOUT)
    assert list(kept) == [group.id for group in groups]
    assert [side for pair in kept.values() for side in pair] == pytest.approx(
        [value for pair in zip(ends[:3], ends[3:], strict=True) for value in pair], abs=1e-4
    )


@pytest.fixture
def stage(prepared, pairs, source, tmp_path):  # noqa: F811
    """What a training stage has that takes token values, and its job, on groups of two of the pairs' responses."""
    config, folder = prepared
    replies, made = [], []
    for pair in pairs:
        said = {"example_id": pair.example_id, "policy_version": "v"}
        for candidate, text in enumerate((pair.chosen, pair.rejected)):
            ids = tuple(response_ids(source.processor, text))
            replies.append(
                Response(
                    **said, kind="plain", candidate=candidate, turn=0, text=text, token_ids=ids, log_probs=(-1.0,) * len(ids), seed=0,
                    temperature=1.0, top_p=1.0, finish_reason="stop",
                )
            )  # fmt: skip
        made.append(
            ResponseGroup(
                **said, id=pair.id, video=pair.video, question=pair.question, answer="", texts=("", ""), rewards=(0.0, 0.0),
                left_out=("", ""), tokens=pair.id,
            )
        )  # fmt: skip
    files.write_table(tmp_path / "groups.parquet", made)
    files.write_table(tmp_path / "responses.parquet", replies)
    files.write_table(tmp_path / "probe.parquet", [])
    job = TrainJob(
        model=config, policy_path=config.path, policy_version="v", train=TrainConfig(), objective=ObjectiveConfig(name="dvpo"),
        plain_prompt="{question}", frame_spec=FrameSpec(), seed=0, pairs=str(tmp_path / "groups.parquet"),
        frames=str(folder / "frames.json"), probe=str(tmp_path / "probe.parquet"), reference="", stage="", export="",
        responses=str(tmp_path / "responses.parquet"),
    )  # fmt: skip
    like = types.SimpleNamespace(
        run_folder=RunFolder.open(str(tmp_path / "run")),
        cache=tmp_path / "cache",
        round_index=1,
        model=config,
        plain_prompt="{question}",
        policy=PolicyVersion(version="v", path=config.path),
        frames=folder / "frames.json",
    )
    value = tmp_path / "value"
    scorer = scorer_of(config).eval()
    write_head(scorer.value_head, value)
    (value / "model").symlink_to(pathlib.Path(config.path).resolve(), target_is_directory=True)
    files.write_json(value / "manifest.json", {"value": "v1"})
    return like, made, job, value, scorer


def test_token_values_are_computed_once_and_found_again_by_what_they_are_made_from(
    stage,
    source,  # noqa: F811
    groups,  # noqa: F811
    monkeypatch,
):
    like, made, job, value, scorer = stage
    asked = []

    def here(stage, indices, job, value, index_path):
        asked.append(indices)
        actor = TokenValues(job.to_dict(), value=str(value), kept=str(index_path), use_gpu=False)
        done = [actor({"index": [index]}) for index in indices]
        return types.SimpleNamespace(iter_rows=lambda: [{"done": row["done"][0]} for row in done])

    monkeypatch.setattr(token_values, "_stream", here)
    kept = files.read_places(token_values.value_files(like, made, job, value))
    assert asked == [[0, 1, 2]]
    with torch.no_grad():
        rows = scored(scorer, source.batch(groups))
    for place, pair in enumerate(groups):
        tensors = read_tensors(kept[pair.id])
        for side in (0, 1):
            row = place + 3 * side
            torch.testing.assert_close(tensors[f"member_{side}"], rows.logps[row][rows.mask[row]], atol=1e-4, rtol=1e-4)
    assert files.read_places(token_values.value_files(like, made, job, value)) == kept
    assert asked == [[0, 1, 2]], "nothing is computed again"
    other = [*made[:2], dataclasses.replace(made[2], tokens="other tokens")]
    assert files.read_places(token_values.value_files(like, other, job, value))["p2"] != kept["p2"]
    assert asked == [[0, 1, 2], [2]]
    files.write_json(value / "manifest.json", {"value": "v2"})
    assert not set(files.read_places(token_values.value_files(like, made, job, value)).values()) & set(kept.values())
    assert asked == [[0, 1, 2], [2], [0, 1, 2]], "another value model says something else"


def test_a_head_that_is_not_there_or_of_another_width_is_said(tmp_path):
    with pytest.raises(ModelError, match="is not there; delete that folder"):
        read_head(ValueHead(3), tmp_path)
    write_head(ValueHead(4), tmp_path)
    with pytest.raises(ModelError, match="is of a model 4 wide, and this one is 3 wide"):
        read_head(ValueHead(3), tmp_path)
