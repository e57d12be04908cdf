"""What a run refuses before it starts, its dry run refuses in the same words. A dry run leaves nothing behind."""

import contextlib
import dataclasses
import json
import pathlib
import shutil
import socket
import tempfile

import numpy as np
import pytest
import tiny_families
from conftest import free_port, write_video

from cluster.described import Machines
from cluster.resources import ClusterResources
from pipelines import align
from pipelines.check import check, this_machine
from pipelines.checks import model as check_model
from pipelines.checks import places as check_places
from pipelines.checks.context import probe_videos
from pipelines.cli import main
from vidalign.config.loading import dump_config, parse_config
from vidalign.config.run import VideoConfig
from vidalign.errors import DataError, ModelError, VidalignError, VideoError
from vidalign.model import rendering
from vidalign.model.clip_check import ClipCheck, black, measure_tokens, quarantined
from vidalign.types import FrameSpec
from vidalign.video.decoding import decode, planned
from vidalign.video.frame_cache import FrameCache

TWO_CORES = Machines(resources=ClusterResources(num_cpus=2))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return lambda name: tiny_families.checkpoint(name, root)


def write_clip(path, shade, *, size=(64, 64), count=8, fps=4):
    return write_video(path, [np.full((*size, 3), (shade + 9 * index) % 256, np.uint8) for index in range(count)], fps=fps)


@pytest.fixture
def raw(tmp_path, folders):
    write_clip(tmp_path / "a.mp4", 10)
    write_clip(tmp_path / "b.mp4", 90)
    for name, video in (("train", "a.mp4"), ("eval", "b.mp4")):
        row = {"id": name, "video": video, "question": "What moves?", "answer": "A circle."}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    port = free_port()
    return {
        "run_dir": str(tmp_path / "run"),
        "model": {"path": str(folders("qwen2_5_vl")), "dtype": "float32", "max_model_len": 1024},
        "data": {"train": str(tmp_path / "train.jsonl"), "eval": str(tmp_path / "eval.jsonl")},
        "recipe": {"max_new_tokens": 24},
        "evaluate": {"max_new_tokens": 24},
        "serve": {"port": port},
    }


@pytest.fixture
def connected(monkeypatch):
    """A cluster that is entered and gives two CPUs; nothing runs on it. A vLLM that is asked, and does not know all models."""

    @contextlib.contextmanager
    def connect(*_, **__):
        yield TWO_CORES.resources

    def answer(architecture, folder, *, video=True, **_):
        if "Nothing" in architecture:
            raise ModelError(f"vLLM serves no {architecture} {'with videos' if video else 'for texts'}")

    monkeypatch.setattr(align, "connect", connect)
    monkeypatch.setattr(check_model, "check_architecture", answer)
    monkeypatch.setattr(align, "once", lambda stage: pytest.fail("a stage was started"))


def refusals(raw):
    """What the dry run says, and what the run says."""
    config, said = parse_config(raw), []
    for begin in (lambda: check(config, machines=TWO_CORES), lambda: align.align(config)):
        with pytest.raises(VidalignError) as caught:
            begin()
        said.append(str(caught.value))
    return said


def break_objective(raw, tmp_path):
    raw["objective"] = {"name": "leanpo", "params": {"bta": 1}}
    return "did you mean beta?"


def break_run_dir(raw, tmp_path):
    raw["run_dir"] = "s3:/bucket/run"
    return "run_dir=s3:/bucket/run is no uri without two slashes"


def put_run_dir_below_a_file(raw, tmp_path):
    (tmp_path / "file").touch()
    raw["run_dir"] = str(tmp_path / "file" / "run")
    return "is a file; choose another folder"


def break_cache(raw, tmp_path):
    (tmp_path / "cache").touch()
    raw["video"] = {"cache_dir": str(tmp_path / "cache")}
    return "video.cache_dir="


def break_media_root(raw, tmp_path):
    raw["serve"]["media_root"] = str(tmp_path / "nowhere")
    return "serve.media_root="


def break_data(raw, tmp_path):
    shutil.copy(tmp_path / "a.mp4", tmp_path / "b.mp4")
    return "copies of one file"


def break_recipe(raw, tmp_path):
    raw["recipe"] = {"name": "hound", "judge": {"kind": "openai", "model": "m", "base_url": "http://127.0.0.1:1/v1"}}
    return "caption"


def break_model_path(raw, tmp_path):
    raw["model"]["path"] = "./nothing"
    return "no model folder at ./nothing"


def break_weights(raw, tmp_path):
    import safetensors.torch

    folder = shutil.copytree(raw["model"]["path"], tmp_path / "broken")
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    raw["model"]["path"] = str(folder)
    return "set tie_word_embeddings to true"


def of_another_architecture(folder, copy):
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "architectures": ["Qwen9VLForNothing"]}))
    return str(copy)


def take_what_vllm_does_not_serve(raw, tmp_path):
    raw["model"]["path"] = of_another_architecture(raw["model"]["path"], tmp_path / "other")
    return "vLLM serves no Qwen9VLForNothing with videos"


def compute_linear_attention_in_float32_on_cpus(raw, tmp_path):
    raw["model"]["path"] = str(tmp_path / "qwen3_5")
    tiny_families.WRITERS["qwen3_5"](tmp_path / "qwen3_5")
    return "set model.dtype=bfloat16, or give the engines GPUs"


def shard_what_calls_modules_for_each_frame(raw, tmp_path):
    raw["model"] |= {"path": str(tmp_path / "minicpm"), "dtype": "bfloat16"}
    raw["train"] = {"zero_stage": 3, "num_workers": 2}
    tiny_families.WRITERS["minicpmv4_6"](tmp_path / "minicpm")
    return "lower train.zero_stage to 2, or train.num_workers to 1"


def judge_by(raw, model, **changes):
    raw["evaluate"]["judge"] = {"kind": "vllm", "model": str(model), **changes}
    return "evaluate.judge.model="


def judge_by_what_is_not_there(raw, tmp_path):
    return f"{judge_by(raw, tmp_path / 'none')}'{tmp_path / 'none'}'"


def judge_by_what_vllm_does_not_serve(raw, tmp_path):
    judge_by(raw, of_another_architecture(raw["model"]["path"], tmp_path / "judge"))
    return "vLLM serves no Qwen9VLForNothing for texts; set evaluate.judge.model"


def judge_by_what_vllm_does_not_serve_with_videos(raw, tmp_path):
    judge_by(raw, of_another_architecture(raw["model"]["path"], tmp_path / "judge"), sees="video")
    return "vLLM serves no Qwen9VLForNothing with videos; set evaluate.judge.model"


def judge_by_code_that_is_not_trusted(raw, tmp_path):
    folder = shutil.copytree(raw["model"]["path"], tmp_path / "judge")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "code.Model"}}))
    judge_by(raw, folder)
    return "set evaluate.judge.engine_args.trust_remote_code=true"


def judge_without_weights(raw, tmp_path):
    folder = shutil.copytree(raw["model"]["path"], tmp_path / "judge")
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs")
    judge_by(raw, folder)
    return "is not a complete safetensors file"


def judge_without_a_chat_template(raw, tmp_path):
    folder = shutil.copytree(raw["model"]["path"], tmp_path / "judge")
    (folder / "chat_template.jinja").unlink()
    judge_by(raw, folder)
    return "has no chat template"


def judge_with_videos_without_a_processor(raw, tmp_path):
    folder = shutil.copytree(raw["model"]["path"], tmp_path / "judge")
    for file in folder.glob("*processor_config.json"):
        file.unlink()
    judge_by(raw, folder, sees="video")
    return "evaluate.judge.model="


def shorten_context(raw, tmp_path):
    raw["model"]["max_model_len"] = 64
    return "max_model_len=64"


def ask_for_cached_features(raw, folders):
    raw["train"] = {"cache_vision_features": True}
    raw["model"]["path"] = str(folders / "qwen3")
    tiny_families.WRITERS["qwen3_vl"](folders / "qwen3")
    return "train.cache_vision_features works only for"


def ask_for_flash_attention(raw, tmp_path):
    raw["model"] |= {"vision_attention": "flash_attn", "dtype": "bfloat16"}
    return "model.vision_attention=flash_attn needs a GPU"


def ask_for_too_much(raw, tmp_path):
    raw["train"] = {"num_workers": 64, "batch_size": 64}
    return "num_workers=64 needs 64 CPUs"


def begin_with_another_seed(raw, tmp_path):
    folder = pathlib.Path(raw["run_dir"]) / "rounds" / "0" / "responses"
    folder.mkdir(parents=True)
    begun = {"format": 2, "stage": "rollout", "inputs": {"seed": 7}, "layout": {}}
    (folder / "begun.json").write_text(json.dumps(begun))
    return "seed was 7 and is now 0"


BREAKS = (
    break_objective,
    break_run_dir,
    put_run_dir_below_a_file,
    break_cache,
    break_media_root,
    break_data,
    break_recipe,
    break_model_path,
    break_weights,
    take_what_vllm_does_not_serve,
    compute_linear_attention_in_float32_on_cpus,
    shard_what_calls_modules_for_each_frame,
    judge_by_what_is_not_there,
    judge_by_what_vllm_does_not_serve,
    judge_by_what_vllm_does_not_serve_with_videos,
    judge_by_code_that_is_not_trusted,
    judge_without_weights,
    judge_without_a_chat_template,
    judge_with_videos_without_a_processor,
    shorten_context,
    ask_for_cached_features,
    ask_for_flash_attention,
    ask_for_too_much,
    begin_with_another_seed,
)


@pytest.mark.parametrize("break_it", BREAKS)
def test_both_refuse_in_the_same_words(raw, tmp_path, connected, break_it):
    expected = break_it(raw, tmp_path)
    dry, real = refusals(raw)
    assert dry == real
    assert expected in dry
    assert "\n" not in dry


def test_a_judge_of_texts_or_of_videos_that_is_there(raw, connected):
    for sees in ("caption", "video"):
        judge_by(raw, raw["model"]["path"], sees=sees)
        check(parse_config(raw), machines=TWO_CORES)


def test_a_port_that_is_taken(raw, connected):
    with socket.create_server(("127.0.0.1", 0)) as server:
        raw["serve"]["port"] = server.getsockname()[1]
        dry, real = refusals(raw)
        assert dry == real
        assert "choose another port with serve.port" in dry
        del raw["data"]["eval"]  # nothing is served then
        check(parse_config(raw), machines=TWO_CORES, ask_vllm=False)


def test_disks_that_are_full(raw, connected, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(check_places.shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    dry, real = refusals(raw)
    assert dry == real
    assert "run_dir=" in dry
    assert "1.0 MiB left; lower train.num_checkpoints_kept" in dry
    # Checkpoints are written where they are kept, so that a small temporary folder hinders nothing.
    monkeypatch.setattr(
        check_places.shutil,
        "disk_usage",
        lambda path: usage._replace(free=2**20 if str(path) == tempfile.gettempdir() else 2**50),
    )
    check(parse_config(raw), machines=TWO_CORES, ask_vllm=False)


def test_a_dry_run_leaves_nothing_and_reads_what_its_stages_read(raw, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    report = check(parse_config(raw), machines=TWO_CORES, ask_vllm=False)
    assert [line.partition(":")[0] for line in report.data] == ["train", "eval", "videos"]
    with pytest.raises(DataError, match="holds no trained policy of round 0"):  # as the command itself would say
        check(parse_config(raw), ("evaluate",), machines=TWO_CORES, ask_vllm=False)
    report = check(parse_config(raw), ("evaluate",), machines=dataclasses.replace(TWO_CORES, here=False), ask_vllm=False)
    assert [line.partition(":")[0] for line in report.data] == ["eval", "videos"]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_on_a_described_cluster_from_the_command_line(raw, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pipelines.checks.model.check_architecture", lambda *a, **k: None)
    raw["train"] = {"num_workers": 8, "zero_stage": 3, "batch_size": 16}
    (tmp_path / "align.yaml").write_text(dump_config(parse_config(raw)))
    config = str(tmp_path / "align.yaml")
    assert main(["align", config, "--dry-run"]) == 2
    assert "num_workers=8 needs 8" in capsys.readouterr().err
    assert main(["align", config, "--dry-run", "--on", "8x80"]) == 0
    out = capsys.readouterr().out
    assert "cluster: 64 CPUs and 8 GPUs on 1 node(s)" in out
    assert "training: each GPU holds" in out
    assert "planned for 1 node with 8 GPUs of 80 GB each, and 8 CPUs a GPU" in out
    assert main(["align", config, "--on", "8x80"]) == 2
    assert "add --dry-run" in capsys.readouterr().err


def test_a_cluster_that_grows_is_planned_as_grown(raw, monkeypatch):
    monkeypatch.setattr("pipelines.check.local_resources", lambda config: ClusterResources(num_cpus=64))
    raw["cluster"] = {"max_num_gpus": 8, "max_num_cpus": 64}
    raw["train"] = {"num_workers": 8, "zero_stage": 3, "batch_size": 16}
    found = this_machine(parse_config(raw))
    assert found.resources.total_gpus == 8
    assert found.gpu_memory is None
    report = check(parse_config(raw), ask_vllm=False)
    assert "engines: 8 x (4 CPU, 1 GPU)" in report.resources
    assert any("grows to 8 GPUs, whose memory is not known here" in warning for warning in report.warnings)


# --- videos that a model does not take ---


def test_a_single_frame_where_a_processor_takes_none(raw, folders):
    raw["video"] = {"num_frames": 1, "min_frames": 1}
    check(parse_config(raw), machines=TWO_CORES, ask_vllm=False)  # Qwen2.5-VL repeats the frame
    raw["model"]["path"] = str(folders("glm4v"))
    with pytest.raises(
        VidalignError, match=r"video.num_frames=1, but this model's processor takes no such videos .*to 2 or more"
    ):
        check(parse_config(raw), machines=TWO_CORES, ask_vllm=False)


def test_a_strip_is_quarantined_and_odd_sizes_are_not(raw, folders, tmp_path):
    takes = ClipCheck(str(folders("qwen2_5_vl")), max_model_len=1024)
    for height, width in ((1, 1), (2, 3), (7, 5), (33, 201), (13, 2000)):
        takes("v", 8, height, width, 2.0)
    with pytest.raises(
        VideoError, match=r"v: this model's processor takes no 8 frames of 4050x2 \(.*200.*set video.height"
    ) as caught:
        takes("v", 8, 2, 4050, 2.0)
    assert caught.value.reason == "unfit"
    write_clip(tmp_path / "strip.mp4", 5, size=(2, 2024))
    row = {"id": "strip", "video": "strip.mp4", "question": "What moves?", "answer": "A circle."}
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    report = check(parse_config(raw), machines=TWO_CORES, ask_vllm=False)
    assert any("1 of the videos looked at will be quarantined" in warning for warning in report.warnings)


def test_decoded_clips_that_a_model_does_not_take(folders, tmp_path):
    cache = FrameCache(tmp_path / "frames")
    spec = FrameSpec(num_frames=4)
    paths = {}
    for name, size in (("good", (64, 64)), ("strip", (2, 2024))):
        video = write_clip(tmp_path / f"{name}.mp4", 5, size=size)
        paths[name] = str(cache.put(name, spec, decode(video, spec)))
    rows = [{"video": name, "frames_path": path, "reason": "", "message": ""} for name, path in paths.items()]
    rows.append({"video": "gone", "frames_path": "", "reason": "missing", "message": "no file"})
    made = quarantined(rows, ClipCheck(str(folders("qwen2_5_vl")), max_model_len=1024))
    assert [row["reason"] for row in made] == ["", "unfit", "missing"]
    assert [bool(row["frames_path"]) for row in made] == [True, False, False]


def test_a_video_beyond_the_models_positions(folders):
    """4 x 1,024 positions at 4 a second, less a prompt of 1,000 tokens: 774 s."""
    takes = ClipCheck(str(folders("qwen2_5_vl")), max_model_len=1000)
    takes("v", 8, 64, 64, 773.0)
    says = r"v is 775 s long, and this model counts time in positions, .* enough for 774 s"
    with pytest.raises(VideoError, match=says) as caught:
        takes("v", 8, 64, 64, 775.0)
    assert caught.value.reason == "too_long"
    ClipCheck(str(folders("llava_onevision")), max_model_len=1000)("v", 8, 64, 64, 10**6)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_onevision", "glm4v"])
def test_a_video_that_leaves_no_room_for_the_prompt(name, folders):
    """The dry run looks at some of the videos; a larger one among the others costs itself and not the run."""
    processor = rendering.load_processor(str(folders(name)))
    tokens = measure_tokens(processor, black(16, 96, 64))
    text = 40
    fits = ClipCheck(str(folders(name)), max_model_len=tokens + text, reserved_tokens=text)
    fits("v", 16, 96, 64, 16.0)
    with pytest.raises(
        VideoError, match=rf"v: 16 frames of 64x96 need {tokens + text} tokens .*model.max_model_len is {tokens + text - 1};"
    ):
        ClipCheck(str(folders(name)), max_model_len=tokens + text - 1, reserved_tokens=text)("v", 16, 96, 64, 16.0)
    ClipCheck(str(folders(name)), max_model_len=8)("v", 16, 96, 64, 1.0)  # what an endpoint answers by itself


# --- tokens ---


@pytest.mark.parametrize("name", ["qwen3_vl", "glm4v"])
def test_tokens_are_counted_at_the_videos_own_times(name, folders, tmp_path):
    """These write the time of each frame into the prompt: it has more digits in a long video."""
    video = write_clip(tmp_path / "long.mp4", 3, count=240, fps=2)
    spec = FrameSpec(num_frames=8)
    processor = rendering.load_processor(str(folders(name)))
    clip = decode(video, spec)
    assert planned(video, spec).indices == clip.indices
    assert planned(video, spec).metadata() == clip.metadata()
    [(_, shown)], refused = probe_videos([str(video)], spec, lambda *_: None)
    assert not refused
    counted = measure_tokens(processor, shown)
    rendered = rendering.render_prompt(processor, "What moves?", clip)
    text = len(rendering.prompt_ids(processor, "What moves?")) - 1
    assert counted + text == rendered.length
    short = measure_tokens(processor, planned(write_clip(tmp_path / "short.mp4", 3), spec))
    assert counted > short


@pytest.mark.parametrize(
    ("video", "says"),
    [
        ({}, None),
        ({"height": 56, "width": 56}, "7.2 MiB in run_dir, of at most 8"),
        ({"max_pixels": 1000, "num_frames": None, "fps": 2, "max_frames": 10}, "2.9 MiB in run_dir, of at most 10"),
        ({"total_pixels": 5000, "max_pixels": 1000, "cache_dir": "c"}, "1.4 MiB in video.cache_dir, of at most 8"),
        ({"total_pixels": 100_000}, "28.6 MiB in run_dir, of at most 8"),
    ],
)
def test_what_decoded_frames_take_is_said_where_options_bound_it(video, says):
    found = check_places.frames_lines(VideoConfig(**video), 100)
    assert found == ([f"frames: up to {says} frames a video"] if says else [])
