"""The reference that is computed before training equals a second model that would live beside the policy."""

import dataclasses
import json
import pathlib

import pytest
import torch
from test_augment import make_clip

from actors.reference import Reference, kept_paths
from vidalign import files
from vidalign.config.run import ModelConfig
from vidalign.config.training import TrainConfig
from vidalign.learning.batch_source import BatchSource
from vidalign.learning.sequences import pair_group
from vidalign.model.adapters import add_adapter
from vidalign.model.batch import IGNORED
from vidalign.model.policy import ResponseScorer, load_policy, set_trainable
from vidalign.model.rendering import cached_processor
from vidalign.model.tensor_cache import TensorCache, missing, read_tensors
from vidalign.recipes.phrases import differing_marks
from vidalign.records import Turn
from vidalign.types import FrameSpec, PreferencePair
from vidalign.video.frame_cache import FrameCache

TOLERANCE = 1e-5
TEXTS = [
    ("A red circle moves left.", "A blue circle moves up."),
    ("left", "The circle moves right."),
    ("No.", "Yes, there is."),
]


@pytest.fixture(scope="module")
def prepared(request, tmp_path_factory):
    """(model config, folder with pairs.parquet and frames.json): three pairs on two videos of different lengths."""
    folder = tmp_path_factory.mktemp("pairs")
    model = ModelConfig(path=str(request.config.rootpath / "examples/shapes/model"), dtype="float32", max_model_len=512)
    frames = {}
    for name, num_frames in (("a", 8), ("b", 4)):
        clip = make_clip(num_frames, 56, 56, seed=num_frames)
        frames[name] = str(FrameCache(folder / "frames").put(name * 4, FrameSpec(), clip))
    pairs = []
    for number, (chosen, rejected) in enumerate(TEXTS):
        marks = differing_marks(chosen, rejected)
        pairs.append(
            PreferencePair(
                id=f"p{number}",
                example_id=f"e{number}",
                video="ab"[number % 2],
                question="Describe the video.",
                answer=chosen,
                chosen=chosen,
                rejected=rejected,
                chosen_marks=marks[0],
                rejected_marks=marks[1],
            )
        )
    files.write_table(folder / "pairs.parquet", pairs)
    files.write_json(folder / "frames.json", frames)
    return model, folder


@pytest.fixture(scope="module")
def source(prepared):
    model, folder = prepared
    return BatchSource(
        frames=files.read_json(folder / "frames.json"),
        processor=cached_processor(model.path),
        plain_prompt="{question}",
        max_model_len=512,
    )


@pytest.fixture(scope="module")
def pairs(prepared):
    return files.read_table(prepared[1] / "pairs.parquet", PreferencePair)


@pytest.fixture(scope="module")
def groups(pairs):
    return [pair_group(pair) for pair in pairs]


@pytest.fixture(scope="module")
def computed(prepared):
    """What the actor leaves on disk for all pairs, two a batch: {pair id: tensors}."""
    model, folder = prepared
    kept = {f"p{number}": str(folder / "kept" / f"{number}.safetensors") for number in range(3)}
    files.write_json(folder / "kept.json", kept)
    actor = Reference(
        model=model.model_dump(mode="json"),
        path=model.path,
        pairs=str(folder / "pairs.parquet"),
        frames=str(folder / "frames.json"),
        plain_prompt="{question}",
        use_gpu=False,
        kept=str(folder / "kept.json"),
        parts=["hidden", "features"],
    )
    assert [actor({"index": indices})["done"] for indices in ([0, 1], [2])] == [[2], [1]]
    return {pair_id: read_tensors(path) for pair_id, path in kept.items()}


def live_logits(model, batch):
    """[R, T, V] of a second model that runs on the same batch."""
    with torch.no_grad():
        return model(**batch.inputs, use_cache=False).logits.float()


def test_log_probs_are_those_of_a_live_second_model(prepared, source, groups, computed):
    batch = source.batch(groups)
    logps = live_logits(load_policy(prepared[0]).eval(), batch).log_softmax(-1)
    mask = batch.labels != IGNORED
    live = logps.gather(-1, batch.labels.clamp(min=0)[..., None])[..., 0]
    for number in range(3):
        for side, row in (("chosen", number), ("rejected", number + 3)):
            torch.testing.assert_close(computed[f"p{number}"][side], live[row][mask[row]], atol=TOLERANCE, rtol=0)


def test_features_are_the_means_of_the_hidden_states(computed):
    for tensors in computed.values():
        torch.testing.assert_close(tensors["features"][0], tensors["hidden"].mean(0))
        assert not torch.equal(tensors["features"][0], tensors["features"][1])


def test_files_are_kept_by_all_that_they_depend_on(source, pairs, tmp_path):
    settings = {"policy_version": "abc", "dtype": "float32", "plain_prompt": "{question}", "parts": ["hidden"]}

    def paths(pairs=pairs, frames=source.frames, **changed):
        return kept_paths(TensorCache(tmp_path), pairs, frames, **{**settings, **changed})

    first = paths()
    pair, clip = pairs[0], pathlib.Path(source.frames[pairs[0].video]).name
    said = {"question": pair.question, "chosen": pair.chosen, "rejected": pair.rejected}
    asked = {"policy": "abc", "dtype": "float32", "prompt": "{question}", "clip": clip, **said, "parts": ["hidden"]}
    assert first[pair.id] == str(TensorCache(tmp_path).path(asked)), "what finished runs have kept stays theirs"
    assert len(set(first.values())) == 3
    assert paths() == first
    renamed = [dataclasses.replace(pair, id=f"other-{pair.id}", example_id="x") for pair in pairs]
    assert set(paths(renamed).values()) == set(first.values())  # ids say nothing of the contents
    for changed in (
        {"policy_version": "abd"},
        {"dtype": "bfloat16"},
        {"plain_prompt": "Q: {question}"},
        {"parts": []},
        {"turns": {"turns": [[2], "", "<think>"]}},
        {"frames": {name: f"{path}.other" for name, path in source.frames.items()}},
        {"pairs": [dataclasses.replace(pair, chosen=f"{pair.chosen} ") for pair in pairs]},
        {"pairs": [dataclasses.replace(pair, rejected=f"{pair.rejected} ") for pair in pairs]},
        {"pairs": [dataclasses.replace(pair, question="Why?") for pair in pairs]},
        {"pairs": [dataclasses.replace(pair, system="Be brief.") for pair in pairs]},
        {"pairs": [dataclasses.replace(pair, turns=(Turn(role="user", content="Hm?"),)) for pair in pairs]},
        {"pairs": [dataclasses.replace(pair, videos=(pair.video, pair.video)) for pair in pairs]},
    ):
        assert not set(paths(**changed).values()) & set(first.values()), changed
    assert missing(first) == {"p0", "p1", "p2"}
    files.write_text_atomic(pathlib.Path(first["p1"]), "")
    assert missing(first) == {"p0", "p2"}


@pytest.mark.parametrize("lora", [False, True])
def test_kl_from_kept_hidden_states_is_that_of_a_live_second_model(prepared, source, groups, computed, lora):
    """The policy moves after the scorer was made, as in training; also its output layer, where that is trained."""
    model = load_policy(prepared[0])
    if lora:
        model = add_adapter(model, TrainConfig(lora={"rank": 4, "alpha": 8}))
    else:
        set_trainable(model, vision_tower=False, projector=False)
    scorer = ResponseScorer(model, compares=True, chunk_size=3).eval()
    assert (scorer.reference_head is None) == lora
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in scorer.model.parameters():
            if parameter.requires_grad:
                parameter += (0.1 if lora else 0.02) * torch.randn(parameter.shape, generator=generator)
    batch = source.batch(groups)
    hidden = torch.cat([computed[f"p{number}"]["hidden"] for number in range(3)])
    with torch.no_grad():
        logps, kl, _ = scorer(batch.inputs, batch.labels, hidden)
    reference = live_logits(load_policy(prepared[0]).eval(), batch).log_softmax(-1)
    moved = live_logits(scorer.model, batch).log_softmax(-1)
    per_token = (reference.exp() * (reference - moved)).sum(-1)
    per_token[batch.labels == IGNORED] = 0.0
    expected = per_token.sum(-1)
    assert expected[:3].min() > 1e-3  # the policy has moved
    torch.testing.assert_close(kl[:3], expected[:3], atol=TOLERANCE, rtol=1e-4)
    assert not kl[3:].any()
    live = moved.gather(-1, batch.labels.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(logps[batch.labels != IGNORED], live[batch.labels != IGNORED], atol=TOLERANCE, rtol=0)


def test_kl_to_itself_is_zero(prepared, source, groups, computed):
    scorer = ResponseScorer(load_policy(prepared[0]), compares=True).eval()
    batch = source.batch(groups[:1])
    with torch.no_grad():
        _, kl, _ = scorer(batch.inputs, batch.labels, computed["p0"]["hidden"])
    assert abs(float(kl[0])) < TOLERANCE


def test_phrase_ids_lie_on_the_words_that_differ(source, groups):
    phrases = source.phrases(groups[:1])
    tokenizer = source.processor.tokenizer
    for response, ids in zip(groups[0].responses, phrases, strict=True):
        text, tokens = response.text, source.tokens(response)
        assert len(ids) == len(tokens)
        marked = [tokenizer.decode([t for t, k in zip(tokens, ids, strict=True) if k == n]).strip(" .") for n in (1, 2)]
        assert marked == (["red", "left"] if "red" in text else ["blue", "up"])


def test_marks_survive_the_table(pairs):
    pair = pairs[0]
    assert pair == dataclasses.replace(pair, chosen_marks=differing_marks(*TEXTS[0])[0])
    assert json.loads(pair.provenance) == {}
