"""Frames that a question calls for: the choice by itself, and that the question reaches every place that decodes."""

import dataclasses
import json
import os
import pathlib

import numpy as np
import pydantic
import pytest

import vidalign
from pipelines.inputs import read_inputs
from serving.frames import spec_of
from serving.questions import choose_by_question
from serving.replies import Refusal
from serving.video_loader import media_io_kwargs
from vidalign.config.choosing import ChoiceConfig
from vidalign.config.run import DataConfig, VideoConfig
from vidalign.errors import ConfigError, DataError
from vidalign.records import FrameChoice
from vidalign.types import FrameSpec
from vidalign.video import decoding, frame_choice, planning, relevance, visuals
from vidalign.video.decode_child import ChildDecoder
from vidalign.video.frame_cache import load_clip
from vidalign.video.naming import Visual, asked_about, name_of, short, visual_of, without_question

VIDEOS = pathlib.Path(__file__).parent / "videos"
BASE = VIDEOS / "base.mp4"  # 48 frames, which have their numbers drawn on them
LATE = "frame_relevance:late"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Also by the processes that decode."""
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(filter(None, [str(pathlib.Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    )


# The choice


def oracle(s, e, keep, most):
    """The published loop, written out with lists; what is the same for all frames is left out, see the module."""

    def scaled(values):
        low, high = min(values), max(values)
        return [(value - low) / (high - low) if high > low else 0.0 for value in values]

    n = len(e)
    if n <= keep:
        return list(range(n))
    factors = [list(values) for values in (s, e) if values is not None and max(values) > min(values)]
    if not factors:
        return None

    def product(at):
        parts = [scaled([values[i] for i in at]) for values in factors]
        return [float(np.prod([part[k] for part in parts])) for k in range(len(at))]

    left = list(range(n))
    for m in range(10):
        if not left:
            break
        score = scaled(product(left))
        still = [i for i, value in zip(left, score, strict=True) if value > 0.03 * 1.01**m]
        if still == left:
            break
        left = still
    overall = product(range(n))
    ranked = sorted(range(n), key=lambda i: (-overall[i], frame_choice.spread(n)[i]))
    if len(left) < keep:
        left = sorted({*left, *ranked[:keep]})
    return sorted([i for i in ranked if i in left][:most])


@pytest.mark.parametrize("seed", range(40))
def test_the_choice_is_the_published_loop(seed):
    draw = np.random.default_rng(seed)
    count, keep = int(draw.integers(2, 130)), int(draw.integers(1, 33))
    most = int(draw.integers(keep, 129))
    s = [draw.normal(size=count), draw.integers(0, 2, count).astype(float), None, np.full(count, 0.3)][seed % 4]
    e = [draw.uniform(0, 8, count), np.zeros(count), np.repeat([1.0, 5.0], count)[:count]][seed // 4 % 3]
    wanted = oracle(s, e, keep, most)
    found = frame_choice.chosen(s, e, keep=keep, most=most)
    if wanted is not None:
        assert found == wanted
    assert found == sorted(set(found))
    assert min(count, keep) <= len(found) <= max(most, min(count, keep))


def test_frames_that_are_all_alike_are_spread_over_the_video():
    found = frame_choice.chosen(np.zeros(64), np.zeros(64), keep=8, most=8)
    assert found == [0, 8, 16, 24, 32, 40, 48, 56]
    assert frame_choice.minmax(np.full(4, 7.0)).tolist() == [0.0] * 4, "and no NaN"


def test_every_pass_drops_the_worst():
    """10 passes on numbers far above the threshold drop one each."""
    e = np.linspace(1, 2, 100) ** 0.1 + np.linspace(0, 1, 100) * 10
    left = frame_choice.passed([e], 100)
    dropped = [int(np.floor(0.03 * 1.01**m * 100)) for m in range(10)]
    assert 100 - len(left) >= 10
    assert len(left) > 100 - 2 * sum(dropped)


def test_entropy_counts_bits():
    frames = np.zeros((4, 16, 16, 3), np.uint8)
    frames[1, :8] = 255
    frames[2] = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    frames[3, ..., 0] = np.arange(256).reshape(16, 16)
    assert frame_choice.entropies(frames) == pytest.approx([0.0, 1.0, 8.0, 8 / 3])


def test_a_planted_frame_is_kept():
    draw = np.random.default_rng(0)
    frames = draw.integers(0, 256, (128, 24, 24, 3), np.uint8)
    frames[77, 4:20, 4:20] = (250, 10, 10)
    red = [(np.abs(frame.astype(int) - (250, 10, 10)).sum(-1) < 30).mean() for frame in frames]
    entropy = frame_choice.entropies(frames)
    assert 77 in frame_choice.chosen(red, np.where(np.arange(128) == 77, entropy.mean(), entropy), keep=32, most=32)
    shuffled = draw.permutation(red)
    assert 77 not in frame_choice.chosen(shuffled, np.where(np.arange(128) == 77, 0, entropy), keep=32, most=32)


# The specification


def test_an_even_choice_leaves_every_key_as_it_was():
    plain = VideoConfig(num_frames=8).frame_spec()
    assert plain == FrameSpec(num_frames=8)
    assert "choice" not in plain.to_row()
    assert plain.key() == "f9e6873dd831c397", "as files of finished runs are named"
    assert "choice" not in VideoConfig(num_frames=8).recorded()


def test_a_choice_is_part_of_the_specification_and_comes_back_from_rows():
    choice = {"kind": "relevance", "pool": 64, "keep": 8, "relevance": LATE}
    config = VideoConfig(num_frames=8, choice=choice)
    spec = config.frame_spec()
    assert spec.choice == FrameChoice(pool=64, keep=8, relevance=LATE)
    assert spec.key() != FrameSpec(num_frames=8).key()
    assert spec.key() != dataclasses.replace(spec, choice=dataclasses.replace(spec.choice, relevance="none")).key()
    row = json.loads(json.dumps(spec.to_row()))
    assert FrameSpec.from_row(row) == spec
    assert VideoConfig.model_validate(row).frame_spec() == spec, "as the card of a served checkpoint has it"
    options = dict(media_io_kwargs(spec)["video"])
    assert (
        spec_of(options.pop("num_frames"), **{k: v for k, v in options.items() if k not in ("video_backend", "decoder")})
        == spec
    )


@pytest.mark.parametrize(
    ("video", "why"),
    [
        ({"choice": {"kind": "relevance"}}, "keep <= num_frames <= pool"),
        ({"num_frames": 200, "choice": {"kind": "relevance"}}, "keep <= num_frames <= pool"),
        ({"num_frames": None, "fps": 1, "choice": {"kind": "relevance"}}, "fps must be null"),
        ({"choice": {"pool": 64}}, "set kind to relevance"),
        ({"choice": {"relevance": "clip"}}, "set kind to relevance"),
        ({"choice": {"kind": "relevance", "relevance": "hf://x"}}, "fetch the model first"),
        ({"choice": {"kind": "relevance", "relevance": " "}}, "must name something"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(video, why):
    with pytest.raises(pydantic.ValidationError, match=why):
        VideoConfig.model_validate(video)


def test_a_relevance_must_be_there_and_be_callable(tmp_path):
    with pytest.raises(pydantic.ValidationError, match="no attribute"):
        ChoiceConfig(kind="relevance", relevance="frame_relevance:nobody")
    with pytest.raises(pydantic.ValidationError, match="cannot be called"):
        ChoiceConfig(kind="relevance", relevance="frame_relevance:NUMBER")
    with pytest.raises(ConfigError, match=r"no config\.json"):
        relevance.check(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="type bert"):
        relevance.check(str(tmp_path))


# Names


@pytest.mark.parametrize(
    "name",
    [
        "/videos/a.mp4",
        "https://host/a.mp4",
        "file:///a%23b.mp4#t=1,2.5",
        "file:///frames#fps=2",
        'frames:["file:///1.png", "file:///2.png"]#fps=2&t=0.5',
    ],
)
def test_a_question_is_part_of_a_name(name):
    question = "What is red & moves <video>  at 50 %?\n#1, ä"
    asked = asked_about(name, question)
    assert visual_of(asked).asked == "What is red & moves at 50 %? #1, ä"
    assert visual_of(asked) == dataclasses.replace(visual_of(asked_about(asked, "")), asked=visual_of(asked).asked)
    assert name_of(visual_of(asked)) == asked
    assert asked_about(asked, question) == asked
    assert visual_of(asked_about(asked, "Else?")).asked == "Else?"
    assert "ask=" not in short(asked)
    assert asked_about(name, "") == without_question(name) == without_question(asked) == name
    path = visual_of(name)
    assert dataclasses.replace(visual_of(asked), asked="", uris=()) == dataclasses.replace(path, uris=())


def test_images_are_not_asked_about():
    image = name_of(Visual(kind="image", uris=("/a.png",)))
    assert asked_about(image, "What?") == image


# Decoding


def spec_with(**choice):
    return FrameSpec(num_frames=8, choice=FrameChoice(**{"pool": 48, "keep": 8, "relevance": LATE, **choice}))


def test_frames_depend_on_the_question_and_so_does_their_file(tmp_path):
    spec = spec_with()
    decoder = ChildDecoder(spec, str(tmp_path))
    first, last, even = (
        decoder.decode(asked_about(str(BASE), "What comes first?")),
        decoder.decode(asked_about(str(BASE), "What comes last?")),
        decoder.decode(str(BASE), FrameSpec(num_frames=8)),
    )
    decoder.close()
    assert len({first.frames_path, last.frames_path, even.frames_path}) == 3
    early, later = (load_clip(done.frames_path) for done in (first, last))
    assert len(early.indices) == len(later.indices) == 8
    assert max(early.indices) < min(later.indices)
    assert list(early.indices) == sorted(early.indices)
    whole = decoding.decode(BASE, FrameSpec(num_frames=48))
    assert np.array_equal(early.frames, whole.frames[list(early.indices)]), "the frames are those of their numbers"


def test_a_place_without_a_question_is_refused_and_never_shown_even_frames(tmp_path):
    decoder = ChildDecoder(spec_with(), str(tmp_path))
    with pytest.raises(DataError, match="chosen by a question"):
        decoder.decode(str(BASE))
    with pytest.raises(DataError, match=r"video\.choice\.kind is uniform"):
        decoder.decode(asked_about(str(BASE), "What?"), FrameSpec(num_frames=8))
    decoder.close()
    for decode in (
        decoding.decode,
        decoding.frame_times_s,
        lambda path, spec: decoding.decode_bytes(path.read_bytes(), spec),
    ):
        with pytest.raises(ConfigError, match="chooses frames by the question"):
            decode(BASE, spec_with())


def test_the_one_call_from_python_chooses_too():
    choice = FrameChoice(pool=48, keep=4, relevance=LATE)
    clip = vidalign.decode(BASE, num_frames=4, choice=choice, question="What comes last?")
    assert (
        clip.indices
        == visuals.decode(asked_about(str(BASE), "What comes last?"), FrameSpec(num_frames=4, choice=choice)).indices
    )
    for options in ({"choice": choice}, {"question": "What?"}, {"choice": FrameChoice(keep=4), "question": "What?"}):
        with pytest.raises(ConfigError, match="leave the question out"):
            vidalign.decode(BASE, num_frames=4, **options)


def test_entropy_alone_needs_no_question():
    clip = visuals.decode(BASE, spec_with(relevance="none"))
    whole = decoding.decode(BASE, FrameSpec(num_frames=48))
    assert list(clip.indices) == frame_choice.chosen(None, frame_choice.entropies(whole.frames), keep=8, most=8)
    short_one = visuals.decode(BASE, spec_with(relevance="none", keep=60, pool=100))
    assert short_one.indices == tuple(range(48)), "all frames of a video that has no more, each once"


def test_all_frames_together_stay_within_their_pixels():
    spec = dataclasses.replace(spec_with(relevance="none"), total_pixels=8 * 1000)
    clip = visuals.decode(BASE, spec)
    assert clip.frames.shape[:3] == decoding.decode(BASE, dataclasses.replace(spec, choice=None)).frames.shape[:3]


@pytest.mark.parametrize(("name", "why"), [("broken", "ZeroDivisionError"), ("short_of_one", "one finite number")])
def test_a_function_that_fails_is_no_fault_of_the_video(tmp_path, name, why):
    decoder = ChildDecoder(spec_with(relevance=f"frame_relevance:{name}"), str(tmp_path))
    with pytest.raises(DataError, match=why):
        decoder.decode(asked_about(str(BASE), "What?"))
    decoder.close()


def test_a_dry_run_counts_the_most_that_may_be_shown():
    assert len(planning.planned(asked_about(str(BASE), "What?"), spec_with(keep=4)).indices) == 8


# Rows


def test_rows_bring_their_question_with_their_videos(tmp_path):
    rows = [
        {"id": "a", "video": str(BASE), "question": "Which?", "answer": "red", "options": ["red", "blue"]},
        {"id": "b", "video": asked_about(str(BASE), "Of another run?"), "question": "How?", "answer": "so"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(train=str(tmp_path / "rows.jsonl"))
    asked = read_inputs(data, choice=FrameChoice(relevance=LATE))
    assert [visual_of(row.example.video).asked for row in asked.train] == ["Which? A. red B. blue", "How?"]
    assert not asked.missing
    for choice in (None, FrameChoice(relevance="none")):
        assert [visual_of(row.example.video).asked for row in read_inputs(data, choice=choice).train] == ["", ""]


# The endpoint


def message(text, url="data:video/mp4;base64,AAAA"):
    return {"role": "user", "content": [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": text}]}


def urls(messages):
    return [message["content"][0]["video_url"]["url"] for message in messages if message["role"] == "user"]


def test_the_last_question_goes_into_the_urls_of_a_request():
    messages = [
        message("First?", "file:/a.mp4"),
        {"role": "assistant", "content": "Yes."},
        message("Answer: What now?\nBriefly."),
    ]
    choose_by_question(messages, spec_with(), "Answer: {question}\nBriefly.")
    assert urls(messages) == ["file:///a.mp4#ask=What%20now%3F", "data:video/mp4;base64,AAAA#ask=What%20now%3F"]
    own = [message("What?", "https://h/a.mp4#t=1,2&ask=Mine%3F"), message("And now?", "https://h/a.mp4#t=1,2")]
    choose_by_question(own, spec_with(), "{question}")
    assert urls(own) == ["https://h/a.mp4#t=1,2&ask=Mine%3F", "https://h/a.mp4#t=1,2&ask=And%20now%3F"]


def test_the_endpoint_refuses_what_it_could_not_do():
    with pytest.raises(Refusal, match="which is empty"):
        choose_by_question([message("  ")], spec_with(), "{question}")
    for spec in (FrameSpec(num_frames=8), spec_with(relevance="none")):
        messages = [message("What?")]
        choose_by_question(messages, spec, "{question}")
        assert urls(messages) == ["data:video/mp4;base64,AAAA"]
        with pytest.raises(Refusal, match="does not choose frames by a question"):
            choose_by_question([message("What?", "https://h/a.mp4#ask=Mine")], spec, "{question}")


# Models


def tiny_towers(folder, kind):
    """A CLIP or SigLIP of random weights with its processors."""
    import tokenizers
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        **sizes,
        "vocab_size": 64,
        "max_position_embeddings": 12,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    configs = {"clip": transformers.CLIPConfig, "siglip": transformers.SiglipConfig}
    config = configs[kind](text_config=text, vision_config=vision, **({"projection_dim": 8} if kind == "clip" else {}))
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    words = {word: at for at, word in enumerate(["<s>", "</s>", "<unk>", "what", "is", "red", "blue", "?"])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.normalizer = tokenizers.normalizers.Lowercase()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )
    made.save_pretrained(folder)
    shape = {"crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 32}} if kind == "clip" else {}
    images = transformers.CLIPImageProcessor if kind == "clip" else transformers.SiglipImageProcessor
    images(**(shape or {"size": {"height": 32, "width": 32}})).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_model_in_a_folder_says_what_its_own_class_says(tmp_path, kind):
    import torch
    import transformers

    folder = tiny_towers(tmp_path / kind, kind)
    frames = np.random.default_rng(0).integers(0, 256, (20, 40, 48, 3), np.uint8)
    choice = FrameChoice(relevance=str(folder), keep=4, pool=20)
    found = relevance.relevances(choice, frames, "What is red?", "v")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    images = transformers.AutoImageProcessor.from_pretrained(folder)(list(frames), return_tensors="pt")
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        "What is red?", padding="max_length", max_length=12, return_tensors="pt"
    )
    names = ("input_ids", "attention_mask") if kind == "clip" else ("input_ids",)
    with torch.inference_mode():
        out = model(**images, **{name: tokens[name] for name in names})
        logits = out.logits_per_text[0]
        wanted = (logits - getattr(model, "logit_bias", 0)) / model.logit_scale.exp()
    assert found == pytest.approx(wanted.numpy(), abs=2e-5)
    again = relevance.relevances(choice, frames, "What is blue?", "v")
    assert not np.allclose(found, again)
    assert len(relevance.relevances(choice, frames, "what " * 50, "v")) == 20, "a long question is cut"


def test_a_model_counts_by_its_content_and_must_be_whole(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tiny_towers(tmp_path / "clip", "clip")
    before = relevance.identity(str(folder))
    relevance.identity.cache_clear()
    weights = load_file(folder / "model.safetensors")
    weights["logit_scale"] = weights["logit_scale"] + 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert relevance.identity(str(folder)) != before
    relevance.identity.cache_clear()
    weights.pop("visual_projection.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="they would be random"):
        relevance.opened(str(folder))
