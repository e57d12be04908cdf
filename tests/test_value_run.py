"""A value model by the learner on gloo ranks, read again by the actor that says what tokens are worth; and a whole run."""

import json

import gloo_ranks
import pytest
import yaml
from conftest import vidalign
from test_augment import make_clip
from test_zero3 import CHUNK_SIZE, job

from actors.token_values import TokenValues
from actors.train_job import TrainJob
from vidalign import files
from vidalign.data.reading import read_examples
from vidalign.learning.value import accuracy_of
from vidalign.model.rendering import cached_processor, response_ids
from vidalign.model.tensor_cache import read_tensors
from vidalign.types import FrameSpec, PreferencePair, Response, ResponseGroup
from vidalign.video.frame_cache import FrameCache

pytestmark = pytest.mark.heavy
LAM = 0.95
GOOD, BAD = ("red red", "red red red red", "red"), ("red blue", "red red blue blue", "blue", "red blue red red red")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model_path):
    """Twelve pairs on one video, chosen without the word blue and rejected with it; and as groups of two of the same responses."""
    folder = tmp_path_factory.mktemp("value")
    clip = make_clip(8, 56, 56, seed=1)
    files.write_json(folder / "frames.json", {"a": str(FrameCache(folder / "frames").put("aaaa", FrameSpec(), clip))})
    pairs = [
        PreferencePair(
            id=f"p{number}", example_id=f"e{number}", video="a", question="Describe the video.", answer="red", chosen=GOOD[number % 3],
            rejected=BAD[number % 4],
        )
        for number in range(12)
    ]  # fmt: skip
    files.write_table(folder / "pairs.parquet", pairs)
    files.write_table(folder / "probe.parquet", [])
    processor, groups, replies = cached_processor(model_path), [], []
    for pair in pairs:
        said = {"example_id": pair.example_id, "policy_version": "v"}
        for candidate, text in enumerate((pair.chosen, pair.rejected)):
            ids = tuple(response_ids(processor, text))
            replies.append(
                Response(
                    **said, kind="plain", candidate=candidate, turn=0, text=text, token_ids=ids, log_probs=(-1.0,) * len(ids), seed=0,
                    temperature=1.0, top_p=1.0, finish_reason="stop",
                )
            )  # fmt: skip
        groups.append(
            ResponseGroup(
                **said, id=pair.id, video="a", question=pair.question, answer="red", texts=("", ""), rewards=(0.0, 0.0),
                left_out=("", ""), tokens=pair.id,
            )
        )  # fmt: skip
    files.write_table(folder / "groups.parquet", groups)
    files.write_table(folder / "responses.parquet", replies)
    return folder


def value_job(folder, model_path, stage, **train):
    made = job(folder, model_path, objective="value", **train)
    own = {"stage": str(stage), "export": str(stage / "model"), "reference": "", "heldout": str(folder / "pairs.parquet")}
    return {"job": made | own, "chunk_size": CHUNK_SIZE}


def test_a_value_model_learns_which_word_is_wrong_and_is_read_back_as_it_was_trained(folder, model_path, tmp_path):
    first = value_job(folder, model_path, tmp_path / "first", batch_size=12, micro_batch_size=4)
    learned = value_job(
        folder, model_path, tmp_path / "lora", learning_rate=5e-3, num_epochs=12, batch_size=12, micro_batch_size=6,
        lora={"rank": 8, "alpha": 32},
    )  # fmt: skip
    found = gloo_ranks.run({"first": first, "learned": learned | {"whole": True}}, tmp_path / "one", count=1)
    pairs = files.read_table(folder / "pairs.parquet", PreferencePair)
    processor = cached_processor(model_path)
    lengths = [len(response_ids(processor, text)) for pair in pairs for text in (pair.chosen, pair.rejected)]
    expected = sum(LAM ** (2 * later) / 2 for length in lengths for later in range(length)) / sum(lengths)
    assert found["first"]["losses"] == pytest.approx([expected], rel=1e-5), "of a head that says 0 of everything"
    assert found["first"]["measured"][0]["accuracy"] == 0.5
    assert found["learned"]["measured"][0]["accuracy"] == 1
    heldout = files.read_json(tmp_path / "lora/heldout.json")
    assert accuracy_of(*zip(*heldout.values(), strict=True)) == 1

    kept = {pair.id: str(tmp_path / "values" / f"{pair.id}.safetensors") for pair in pairs}
    files.write_json(tmp_path / "values.json", kept)
    rolled = {"pairs": str(folder / "groups.parquet"), "responses": str(folder / "responses.parquet"), "heldout": ""}
    taken = TrainJob.from_dict(job(folder, model_path, objective="dvpo") | rolled)
    actor = TokenValues(taken.to_dict(), value=str(tmp_path / "lora"), kept=str(tmp_path / "values.json"), use_gpu=False)
    for first_index in range(0, 12, 6):
        actor({"index": list(range(first_index, first_index + 6))})
    blue = response_ids(processor, "red blue")[1]
    for pair in pairs:
        made = read_tensors(kept[pair.id])
        assert [float(made[f"member_{side}"][-1]) for side in (0, 1)] == pytest.approx(heldout[pair.id], abs=1e-4)
        values, ids = made["member_1"], response_ids(processor, pair.rejected)
        place = ids.index(blue) if blue in ids else 0  # a first word is another token
        after = values[place + 1]
        assert after < values[place] - 0.3, "its value falls at the wrong word"


@pytest.mark.long
def test_a_value_model_is_the_same_however_it_is_cut_and_shared(folder, model_path, tmp_path):
    """One rank with whole steps, one with a pair a forward pass and separate sequences, two ranks at two ZeRO stages."""

    def made(where, **train):
        return value_job(folder, model_path, tmp_path / where, **{"batch_size": 6, "learning_rate": 1e-3, **train})

    one = {
        "whole": made("whole", zero_stage=0, micro_batch_size=6),
        "cut": made("cut", zero_stage=2, shared_prefix=False),
    }
    two = {
        "two": made("two", zero_stage=2, num_workers=2),
        "sharded": made("sharded", zero_stage=3, num_workers=2, tokens_per_micro_batch=100),
        "shared": made("shared", zero_stage=2, num_workers=2, sequence_parallel=2),
    }
    found = gloo_ranks.run(one, tmp_path / "one", count=1)
    found |= gloo_ranks.run(two | {"exported": two["sharded"] | {"whole": True}}, tmp_path / "both", count=2)
    expected = found["whole"]
    assert len(expected["losses"]) == 2
    for name in ("cut", *two):
        assert found[name]["losses"] == pytest.approx(expected["losses"], abs=1e-3), name
        assert found[name]["measured"][1]["margin"] == pytest.approx(expected["measured"][1]["margin"], abs=2e-2), name
    head = read_tensors(tmp_path / "sharded/value_head.safetensors")
    assert head["weight"].ndim == 1
    assert head["weight"].abs().max() > 0, "it is whole, and not what one rank holds of it"


@pytest.mark.long
def test_a_run_from_pairs_to_a_policy_by_a_value_model(small_config, shapes, tmp_path):
    """Rows with pairs, a value model of them, and two rounds on one reply a prompt; the second command computes nothing again."""
    rows = [json.loads(line) for line in (shapes / "train.jsonl").read_text().splitlines()]
    answers = [example.answer for example in read_examples(shapes / "train.jsonl")]
    for row, answer in zip(rows, answers, strict=True):
        row |= {"chosen": answer, "rejected": next(other for other in answers if other != answer)}
        row["video"] = str(shapes / row["video"])
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:24]))
    raw = yaml.safe_load(small_config.read_text())
    raw["data"].pop("eval")
    raw |= {
        "run_dir": str(tmp_path / "run"),
        "cluster": {"address": "local"},
        "recipe": {"name": "given"},
        "objective": {"name": "value", "params": {"min_accuracy": 0, "heldout": 0.3}},
        "rounds": [
            {},
            {
                "repeat": 2,
                "recipe": {"name": "group", "num_candidates": 1, "num_prompts": 8, "rewards": {}, "max_new_tokens": 24},
                "objective": {"name": "dvpo"},
            },
        ],
    }
    raw["data"]["train"] = str(tmp_path / "pairs.jsonl")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    done = vidalign("align", str(path))
    assert done.returncode == 0, done.stderr[-4000:]
    run = tmp_path / "run"
    facts = json.loads((run / "rounds/0/value/manifest.json").read_text())
    assert facts["num_pairs"] + facts["num_heldout"] <= 24
    assert not (run / "rounds/0/model").exists(), "no policy is trained in a round of a value model"
    versions = [json.loads((run / f"rounds/{index}/train/manifest.json").read_text())["policy"] for index in (1, 2)]
    card = json.loads((run / "rounds/1/model/vidalign.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    assert card["parent"] == summary["policy"]["base"]
    assert summary["policy"]["aligned"] == versions[1] != versions[0]
    assert summary["groups"]["mean_reward"] is None
    for index in (1, 2):
        kept = files.read_places(run / f"rounds/{index}/values/files.json")
        groups = files.read_table(run / f"rounds/{index}/pairs/groups.parquet", ResponseGroup)
        replies = files.read_table(run / f"rounds/{index}/responses/responses.parquet", Response)
        tokens = {reply.example_id: reply.token_ids for reply in replies}
        for group in groups:
            assert read_tensors(kept[group.id])["member_0"].shape == (len(tokens[group.example_id]),)
    assert "without rewards" in (run / "report/index.html").read_text()

    again = vidalign("align", str(path))
    assert again.returncode == 0
    assert "nothing is left to do" in again.stdout + again.stderr
