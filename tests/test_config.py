"""The configuration: every mistake is one sentence that names the key."""

import dataclasses
import pathlib

import pytest
import yaml

from vidalign.config.loading import dump_config, load_config, parse_config, parse_section
from vidalign.config.recipes import RECIPES
from vidalign.config.run import VideoConfig
from vidalign.config.served import ServingConfig
from vidalign.errors import ConfigError
from vidalign.learning import objectives
from vidalign.types import FrameSpec

BASE = {"run_dir": "runs/x", "model": {"path": "m"}, "data": {"train": "t.jsonl"}}


def test_dumped_config_loads_to_the_same_config():
    config = parse_config({**BASE, "train": {"lora": {"rank": 8}}, "objective": {"params": {"beta": 1.5}}})
    assert parse_config(yaml.safe_load(dump_config(config))) == config


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"train": {"learning_rat": 1}}, "did you mean train.learning_rate?"),
        ({"trian": {}}, "did you mean train?"),
        ({"train": {"lora": {"rnk": 1}}}, "did you mean train.lora.rank?"),
        ({"train": {"batch_size": 3, "micro_batch_size": 2}}, "set batch_size to 2"),
        ({"video": {"fps": 2.0}}, "set the other to null"),
        ({"video": {"height": 56}}, "height and width go together"),
        ({"recipe": {"hint_prompt": "{question}"}}, "must contain {answer}"),
        ({"recipe": {"top_p": 1.5}}, "recipe.top_p=1.5"),
        ({"recipe": {"name": "leanpoo"}}, "recipe.name='leanpoo' is not a recipe; choose one of leanpo, rrpo, hound, given"),
        ({"recipe": {"num_candidate": 2}}, "did you mean recipe.num_candidates?"),
        ({"recipe": {"name": "rrpo", "perturb": {"shufle": "local"}}}, "did you mean recipe.perturb.shuffle?"),
        ({"recipe": {"name": "rrpo", "num_turns": 2}}, "unknown key recipe.num_turns"),
        ({"recipe": {"name": "hound"}}, "recipe.judge is required"),
        ({"recipe": {"name": "given", "perturb": {}}}, "known keys: name, plain_prompt, lint"),
        ({"train": {"learning_rate": "abc"}}, "train.learning_rate='abc'"),
        ({"train": {"learning_rate": 1e999}}, "train.learning_rate=inf"),
        ({"train": {"weight_decay": float("inf")}}, "train.weight_decay=inf"),
        ({"video": {"fps": float("inf"), "num_frames": None}}, "video.fps=inf"),
        ({"recipe": {"temperature": float("inf")}}, "recipe.temperature=inf"),
        ({"recipe": {"augment": {"contrast": float("inf")}}}, "recipe.augment.contrast=inf"),
        ({"train": {"zero_stage": 4}}, "train.zero_stage=4"),
        (
            {"train": {"num_workers": 0}},
            "train.num_workers: must be a whole number from 1 on, or [fewest, most], got 0; set it to 1",
        ),
        ({"train": {"num_workers": [4, 2]}}, "got [4, 2]; set it to [2, 4]"),
        (
            {"train": {"num_workers": "two"}},
            "train.num_workers: must be a whole number, or two of them as [fewest, most], got 'two'",
        ),
        (
            {"video": {"num_decoders": [0, 4]}},
            "video.num_decoders: must be a whole number from 1 on, or [fewest, most], got [0, 4]",
        ),
        ({"rollout": {"num_engines": "2"}}, "rollout.num_engines: must be a whole number, or two of them"),
        ({"train": {"num_workers": [1, 2, 3]}}, "[fewest, most], got [1, 2, 3]"),
        ({"train": {"num_workers": [2, 4], "sequence_parallel": 2}}, "set num_workers to 4, or sequence_parallel to 1"),
        (
            {
                "train": {
                    "num_workers": [2, 4],
                    "deepspeed": {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}},
                }
            },
            "set num_workers to 4, or offload to the device cpu",
        ),
    ],
)
def test_a_mistake_names_its_key_and_the_way_out(change, says):
    with pytest.raises(ConfigError) as caught:
        parse_config({**BASE, **change})
    assert says in str(caught.value)


@pytest.mark.parametrize("name", ["leanpo", "rrpo", "given"])
def test_a_recipe_is_chosen_by_name_and_has_its_own_keys(name):
    config = parse_config({**BASE, "recipe": {"name": name}})
    assert type(config.recipe) is RECIPES[name]
    assert parse_config(yaml.safe_load(dump_config(config))) == config


def test_required_keys():
    with pytest.raises(ConfigError, match=r"model is required"):
        parse_config({"run_dir": "x", "data": {"train": "t"}})


def test_overrides(tmp_path: pathlib.Path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(BASE))
    config = load_config(path, ["train.learning_rate=1e-6", "data.limit=3", "train.lora={rank: 4}", "seed=7"])
    assert config.train.learning_rate == 1e-6
    assert config.data.limit == 3
    assert config.train.lora is not None
    assert config.train.lora.rank == 4
    assert config.seed == 7
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        load_config(path, ["train.learning_rate"])
    with pytest.raises(ConfigError, match="holds a value, not a section"):
        load_config(path, ["run_dir.x=1"])


@pytest.mark.parametrize("value", ["/data/a run #1/x", "/a dir ü 視 #1%20 {x}/run", "#1", "a\t#"])
def test_an_override_has_no_comments(value):
    """As YAML it would be cut there, and another folder be taken without a word."""
    raw = {"run_dir": "r", "model": {"path": "m"}, "data": {"train": "t"}}
    assert parse_config(raw, [f"run_dir={value}"]).run_dir == value.strip()
    assert parse_config(raw, ['run_dir="a #b"', "data.limit=3"]).run_dir == "a #b"


def test_the_config_of_a_run_is_of_the_folder_that_it_is_in(tmp_path: pathlib.Path):
    text = f"run_dir: {tmp_path}/old\nmodel: {{path: m}}\ndata: {{train: t.jsonl}}\n"
    for name in ("align.yaml", "config.yaml"):
        (tmp_path / name).write_text(text)
        assert load_config(tmp_path / name).run_dir == f"{tmp_path}/old", "no run is in this folder"
    (tmp_path / "rounds").mkdir()
    assert load_config(tmp_path / "align.yaml").run_dir == f"{tmp_path}/old"
    assert load_config(tmp_path / "config.yaml").run_dir == str(tmp_path)
    assert load_config(tmp_path).run_dir == str(tmp_path)
    assert load_config(tmp_path, ["run_dir=other"]).run_dir == "other"


def test_missing_and_malformed_files(tmp_path: pathlib.Path):
    with pytest.raises(ConfigError, match="no config file at"):
        load_config(tmp_path / "none.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [1")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(bad)
    bad.write_text("- 1")
    with pytest.raises(ConfigError, match="mapping of sections"):
        load_config(bad)


def test_the_video_section_and_frame_spec_agree_on_names_and_defaults():
    for field in dataclasses.fields(FrameSpec):
        if field.name != "choice":  # which is a section, that says none by default
            assert VideoConfig.model_fields[field.name].default == field.default, field.name
    assert VideoConfig().frame_spec() == FrameSpec()
    assert FrameSpec().choice is None
    by_size = {"num_frames": None, "fps": 2.0, "max_frames": 7, "min_frames": 3, "height": 28, "width": 56}
    by_area = {
        "num_frames": 3,
        "max_pixels": 1000,
        "snap_to_keyframes": True,
        "total_pixels": 100_000,
        "square_pixels": False,
        "hdr_to_sdr": False,
        "max_duration_s": 9.0,
        "max_pixels_decoded": 10**6,
    }
    for values in (by_size, by_area):
        assert parse_config({**BASE, "video": values}).video.frame_spec() == FrameSpec(**values)
    assert by_size.keys() | by_area.keys() | {"choice"} == {field.name for field in dataclasses.fields(FrameSpec)}


@pytest.mark.parametrize(
    "path", sorted(pathlib.Path(__file__).parents[1].glob("configs/*.yaml")), ids=lambda path: path.stem
)
def test_every_shipped_config_loads_and_its_objective_can_be_built(path):
    config = load_config(path)
    assert config.run_dir == f"runs/{path.stem}"
    objectives.build(config.objective.name, config.objective.params)


def test_a_part_of_a_run_is_explained_like_a_whole_one():
    raw = {"model": {"path": "m"}}
    found = parse_section(ServingConfig, dict(raw), ["serve.port=9001", "video.fps=2", "video.num_frames=null"])
    assert (found.serve.port, found.video.fps) == (9001, 2.0)
    with pytest.raises(ConfigError, match=r"^serving x: unknown key serve\.prot; did you mean serve\.port\?$"):
        parse_section(ServingConfig, dict(raw), ["serve.prot=1"], source="serving x")
    with pytest.raises(ConfigError, match=r"unknown key recipe; known keys: model, video, serve, cluster$"):
        parse_section(ServingConfig, {**raw, "recipe": {"name": "leanpo"}})
    with pytest.raises(ConfigError, match=r"model\.path is required"):
        parse_section(ServingConfig, {"model": {}})
