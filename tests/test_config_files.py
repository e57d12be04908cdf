"""A configuration file that is not one, and options under names that other programs have: one sentence with the way out."""

import copy
import pathlib

import pytest
import yaml

from vidalign.config.explaining import OTHER_NAMES, all_keys, find_keys
from vidalign.config.loading import load_config, parse_config
from vidalign.config.run import RunConfig
from vidalign.errors import ConfigError

GOOD = "run_dir: runs/x\nmodel: {path: m}\ndata: {train: t.jsonl}\n"
BASE = yaml.safe_load(GOOD)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "c.yaml"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ((GOOD + "# é\n").encode("latin-1"), "not text in UTF-8 but in another encoding (line 4 has the byte 0xe9); save it"),
        (GOOD.encode("utf-16"), "is not text in UTF-8 but in UTF-16; save it as UTF-8"),
        ((GOOD + "seed: 1\nrounds: 2\nseed: 2\n").encode(), "the key seed stands twice in one section, in lines 4 and 6; keep one"),
        ((GOOD + "train: {batch_size: 8, batch_size: 16}\n").encode(), "the key batch_size stands twice in one section, in line 4"),
        ((GOOD + "train: &t {deepspeed: *t}\n").encode(), "nested deeper than 20 levels"),
        ((GOOD + "train: {deepspeed: " + "[" * 3000 + "]" * 3000 + "}\n").encode(), "nested deeper than 20 levels"),
        ((GOOD + "seed: 2026-01-01\n").encode(), "seed='2026-01-01', which YAML reads as a date; put it in quotes"),
        ((GOOD + "train: {learning_rate: .inf}\n").encode(), "has train.learning_rate=inf, which must be a finite number"),
        ((GOOD + "train: {batch_size: true}\n").encode(), "train.batch_size: must be a number, got true"),
        ((GOOD + "recipe: {name: group, rewards: {accuracy: true}}\n").encode(), "must be a number, got true"),
        ((GOOD + "recipe: {name: group, length_range: [true, 512]}\n").encode(), "must be a number, got true"),
        ((GOOD + "train: {batch_size: 010}\n").encode(), "line 4, column 21: 010 is read as 8; write that, or what is meant"),
        ((GOOD + "video: {deadline_s: 3:00}\n").encode(), "line 4, column 21: 3:00 is read as 180; write that"),
        ((GOOD + "video: {deadline_s: 3:00.5}\n").encode(), "3:00.5 is read as 180.5; write that"),
        ((GOOD + "1: 2\n").encode(), "a key that is no text: 1"),
        ((GOOD + "rounds: 2\n  x: 1\n").encode(), "is not valid YAML: line 5, column 4: "),
        ((GOOD + 'seed: "\\ud800"\n').encode(), "with characters that no text or path may have"),
        (b"", "must hold a mapping of sections (model, data, ...), got nothing"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_configuration(file, content, says):
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert says in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_leave_the_mapping_that_they_change_as_it_was():
    raw = yaml.safe_load(GOOD)
    before = copy.deepcopy(raw)
    parse_config(raw, ["data.limit=3", "train.batch_size=4"])
    assert raw == before


def test_a_billion_laughs(file):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    file.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"to more than 100,000 values"):
        load_config(file)


def test_a_merge_may_be_overridden_and_what_two_sections_share_is_changed_in_one(file):
    file.write_text(
        GOOD + "rollout: {engine_args: &a {x: 1}}\nserve: {engine_args: *a}\ntrain: {deepspeed: {<<: *a, x: 2}}\n"
    )
    config = load_config(file, ["serve.engine_args.x=3"])
    assert (config.rollout.engine_args["x"], config.serve.engine_args["x"], config.train.deepspeed["x"]) == (1, 3, 2)


def test_a_section_of_which_every_line_is_a_comment_is_left_out(file):
    file.write_text(GOOD + "train:\n  # learning_rate: 1e-6\nrecipe:\n")
    assert load_config(file) == parse_config(dict(BASE))
    assert parse_config({**BASE, "train": {"lora": None}}).train.lora is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"recipe": "leanpo"}, "write recipe.name=leanpo, or in YAML recipe: {name: leanpo}"),
        ({"objective": "dpo"}, "write objective.name=dpo"),
        ({"recipe": [1]}, "recipe=[1]: must hold options"),
        ({"recipe": {"name": ["a:b"]}}, "is not a recipe; choose one of"),
        ({"train": "fast"}, "train='fast': must hold options"),
        ({"cluster": {"node_types": {"w": {"cpus": 3}}}}, "did you mean cluster.node_types.w.num_cpus?"),
        ({"cluster": {"node_types": {"num_cpus": {"xyz": 3}}}}, "known keys: num_cpus, num_gpus, max_nodes"),
        ({"train": {"lr": 1}}, "unknown key train.lr; did you mean train.learning_rate?"),
        ({"lr": 1}, "did you mean train.learning_rate?"),
        ({"output_dir": "x"}, "did you mean run_dir?"),
        ({"train": {"temperature": 1}}, "did you mean recipe.temperature?"),
        ({"recipe": {"name": "given", "temperature": 1}}, "unknown key recipe.temperature; known keys: name,"),
        (
            {"recipe": {"plain_prompt": "{question} {previuos}"}},
            "{previuos}, which nothing fills in; did you mean {previous}?",
        ),
        ({"run_dir": " "}, "run_dir: must name something"),
        ({"run_dir": "~no-such-user/x"}, "names the home folder of a user that this machine does not have"),
        ({"run_dir": "a" * 300}, "longer than a path or a name in it may be"),
        ({"seed": 2**32}, "seed=4294967296: input should be less than"),
        ({"train": {f"x{n}": 1 for n in range(9)}}, "; and 4 more"),
    ],
)
def test_values_and_names_that_do_not_fit(change, says):
    with pytest.raises(ConfigError) as caught:
        parse_config({**BASE, **change})
    assert says in str(caught.value)


def test_the_home_folder_is_written_out_in_every_path():
    home = str(pathlib.Path.home())
    config = parse_config({
        "run_dir": "~/r", "model": {"path": "~/m"}, "data": {"train": "~/t", "eval": "~/e", "probe": "~/p", "video_root": "~"},
        "video": {"cache_dir": "~/c"}, "train": {"cache_dir": "~/c"}, "serve": {"media_root": "~/v"},
    })  # fmt: skip
    found = [config.run_dir, config.model.path, *config.data.model_dump(exclude_none=True).values(), config.video.cache_dir]
    assert all(path.startswith(home) for path in [*found, config.train.cache_dir, config.serve.media_root])
    assert parse_config({**BASE, "run_dir": "a~b"}).run_dir == "a~b"


def test_every_name_of_another_trainer_leads_to_an_option():
    keys = set(all_keys(RunConfig))
    assert set(OTHER_NAMES.values()) <= keys
    assert not set(OTHER_NAMES) & {key for key in keys if "." not in key}
    assert find_keys(RunConfig, "learning-rate") == ["train.learning_rate"]
    assert find_keys(RunConfig, "train.learning_rate") == ["train.learning_rate"]
    assert find_keys(RunConfig, "no_such_thing") == []
