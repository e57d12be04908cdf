"""What finished stages recorded of their options stays what it was, however many options there are by now."""

import pytest

from vidalign.config import recipes, run

# The recorded options of each section when records began to name them. A new option goes into LATER (or NEUTRAL) of its section, not here.
FIRST = {
    "AugmentConfig": "blur_probability blur_sigma brightness contrast crop_scale flip_probability grayscale_probability hue jitter_probability num_frames saturation",
    "EvaluateConfig": "blind max_new_tokens",
    "GivenRecipe": "lint name plain_prompt",
    "HoundRecipe": "caption_prompt captions judge lint max_new_tokens min_score_gap name num_candidates plain_prompt temperature threshold top_p",
    "JudgeConfig": "base_url dtype engine_args kind max_model_len max_new_tokens max_response_chars model prompt",
    "LeanpoRecipe": "augment hint_prompt hints lint max_new_tokens min_trust_gap name negatives num_candidates num_turns pair_rule plain_prompt reflect_prompt rejected_top_p replay_buffer replay_max_tokens temperature top_p",
    "LintConfig": "drop_tell_tales max_duplicates max_length_ratio max_longer_share min_count word_ratio",
    "LoraConfig": "alpha dropout rank",
    "ModelConfig": "dtype max_model_len path trust_remote_code",
    "ObjectiveConfig": "name params",
    "PerturbConfig": "mask_area num_segments shuffle",
    "RrpoRecipe": "differences_prompt judge lint max_new_tokens max_trust name num_candidates perturb plain_prompt rewrite rewrite_prompt temperature threshold top_p wrong_by",
    "TrainConfig": "batch_size learning_rate lora max_grad_norm num_epochs schedule train_projector train_vision_tower uncertainty warmup_ratio weight_decay",
    "UncertaintyConfig": "drop_disagreeing dropout max_smoothing num_passes",
}


def section(name):
    return getattr(run, name, None) or getattr(recipes, name)


@pytest.mark.parametrize("name", FIRST)
def test_an_option_that_a_record_cannot_have_is_not_in_one_at_its_default(name):
    made = section(name).model_construct()
    assert set(type(made).model_fields) - made.NEUTRAL - made.LATER == set(FIRST[name].split())


def test_a_younger_option_is_recorded_once_it_is_set():
    plain, changed = run.TrainConfig(), run.TrainConfig(deepspeed={"prescale_gradients": True})
    assert "deepspeed" not in plain.deciding()
    assert "deepspeed" not in plain.recorded()
    assert changed.deciding()["deepspeed"] == changed.recorded()["deepspeed"] == {"prescale_gradients": True}
    adapted = run.TrainConfig(lora=run.LoraConfig(targets=["q_proj"]))
    assert adapted.deciding()["lora"] == {"rank": 128, "alpha": 256, "dropout": 0.0, "targets": ["q_proj"]}
    assert run.TrainConfig(lora={}).recorded()["lora"] == {"rank": 128, "alpha": 256, "dropout": 0.0}


def test_what_changes_no_result_is_recorded_only_where_all_is_asked_for():
    assert "log_every" not in run.TrainConfig().deciding()
    assert run.TrainConfig().recorded(include={"log_every", "seed"}) == {"log_every": 5}
    assert "log_every" not in run.TrainConfig().recorded(exclude={"log_every"})
