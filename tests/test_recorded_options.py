"""What finished stages recorded of their options stays what it was, however many options there are by now."""

import json
import pathlib

import pytest

from vidalign.config import degrading, judging, recipes, run, training

# The recorded options of each section when records began to name them. A new one goes into LATER or NEUTRAL of its section, not here.
FIRST = json.loads(pathlib.Path(__file__).with_name("recorded_options.json").read_text())


def section(name):
    return next(getattr(module, name) for module in (run, training, recipes, judging, degrading) if hasattr(module, name))


@pytest.mark.parametrize("name", FIRST)
def test_an_option_that_a_record_cannot_have_is_not_in_one_at_its_default(name):
    made = section(name).model_construct()
    assert set(type(made).model_fields) - made.NEUTRAL - made.LATER == set(FIRST[name])


def test_a_younger_option_is_recorded_once_it_is_set():
    plain, changed = training.TrainConfig(), training.TrainConfig(deepspeed={"prescale_gradients": True})
    assert "deepspeed" not in plain.deciding()
    assert "deepspeed" not in plain.recorded()
    assert changed.deciding()["deepspeed"] == changed.recorded()["deepspeed"] == {"prescale_gradients": True}
    adapted = training.TrainConfig(lora=training.LoraConfig(targets=["q_proj"]))
    assert adapted.deciding()["lora"] == {"rank": 128, "alpha": 256, "dropout": 0.0, "targets": ["q_proj"]}
    assert training.TrainConfig(lora={}).recorded()["lora"] == {"rank": 128, "alpha": 256, "dropout": 0.0}


def test_what_changes_no_result_is_recorded_only_where_all_is_asked_for():
    assert "log_every" not in training.TrainConfig().deciding()
    assert training.TrainConfig().recorded(include={"log_every", "seed"}) == {"log_every": 5}
    assert "log_every" not in training.TrainConfig().recorded(exclude={"log_every"})
