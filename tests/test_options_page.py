"""Every option says what it is, and docs/options.md says the same."""

import pytest
from conftest import ROOT

from pipelines.cli import main
from pipelines.options import chapters, page, wanted
from vidalign.config.explaining import all_keys
from vidalign.config.run import RunConfig
from vidalign.errors import ConfigError


def test_every_option_has_a_text_below_it():
    options = [option for _, each in chapters() for option in each]
    assert [option.key for option in options if len(option.text) < 8 or not option.text.endswith(".")] == []
    sections = {"model", "data", "video", "recipe", "rollout", "objective", "train", "serve", "evaluate", "cluster", "steps"}
    assert {option.key for option in options} == set(all_keys(RunConfig)) - sections


def test_the_page_is_what_the_code_says():
    written = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert written == page(), "run `vidalign options --markdown > docs/options.md`"


def test_an_option_is_shown_with_its_values_default_unit_and_text(capsys):
    assert main(["options", "train.learning_rate"]) == 0
    assert capsys.readouterr().out == "train.learning_rate  (number > 0, default 5e-07)\n    Highest learning rate.\n"
    rows = {option.key: option for option in wanted(None)}
    assert rows["run_dir"].default == ""
    assert rows["video.deadline_s"].unit == "s"
    assert rows["train.zero_stage"].kind == "whole number ≥ 0 ≤ 3"
    assert rows["model.dtype"].kind == "float32, bfloat16, float16"
    assert (rows["train.lora"].kind, rows["train.lora"].default, rows["recipe.lint"].default) == (
        "options, or null",
        "null",
        "its own",
    )
    assert (rows["train.log_every"].decides, rows["train.batch_size"].decides) == (False, True)
    assert rows["video.num_frames"].since == "0.1.0"


def test_an_option_is_found_by_another_name_and_a_section_by_its_own():
    assert [option.key for option in wanted("lr")] == ["train.learning_rate"]
    assert {option.key for option in wanted("train.lora")} >= {"train.lora", "train.lora.rank"}
    with pytest.raises(ConfigError, match="there is no option nonsense"):
        wanted("nonsense")
    assert main(["options", "train", "--markdown"]) == 2
