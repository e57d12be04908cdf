"""A training that goes on with another number of ranks: the same batches, and the losses of one that was never stopped."""

import gloo_ranks
import pytest
from test_zero3 import CHUNK_SIZE, VARIANTS, job
from test_zero3 import folder as pairs_folder

from actors.resharding import UNIVERSAL, num_shards

folder = pairs_folder  # the pairs of the tests of ZeRO stage 3
EPOCHS = 4  # of eight pairs in batches of four: eight steps
STOP = 4
CASES = {
    "stage 0": {"zero_stage": 0},
    "stage 1": {"zero_stage": 1},
    "stage 2": {"zero_stage": 2},
    "stage 2, lora": {"zero_stage": 2, "lora": VARIANTS["lora"]["lora"]},
    "stage 3": {"zero_stage": 3},
    "stage 3, budget": {"zero_stage": 3, "tokens_per_micro_batch": 100},
}


@pytest.mark.heavy
@pytest.mark.long
def test_two_ranks_are_followed_by_three_and_by_one_with_the_same_losses(folder, model_path, tmp_path):
    def settings(case, **more):
        train = {"num_epochs": EPOCHS, "schedule": "cosine", "warmup_ratio": 0.1, **CASES[case]}
        made = job(folder, model_path, objective="dpo", **train) | {"checkpoints": str(tmp_path / "checkpoints" / case)}
        return {"job": made, "chunk_size": CHUNK_SIZE, **more}

    whole = gloo_ranks.run({name: settings(name) for name in CASES}, tmp_path / "whole", count=1)
    first = gloo_ranks.run({name: settings(name, stop_after=STOP) for name in CASES}, tmp_path / "first", count=2)
    for number in (3, 1):  # three do not divide a batch of four
        rest = {name: settings(name, resume=first[name]["checkpoint"]) for name in CASES}
        then = gloo_ranks.run(rest, tmp_path / f"then {number}", count=number)
        for name in CASES:
            losses = first[name]["losses"] + then[name]["losses"]
            assert losses == pytest.approx(whole[name]["losses"], abs=1e-4), (name, number)
            assert len(losses) == 2 * EPOCHS
            for key, value in whole[name]["measured"][-1].items():
                assert then[name]["measured"][-1][key] == pytest.approx(value, abs=1e-4), (name, number, key)
    assert not list(tmp_path.glob(f"checkpoints/*/*/*{UNIVERSAL}*")), "what was made to be read by others is left"


def test_the_ranks_that_wrote_a_checkpoint_are_counted(tmp_path):
    assert num_shards(tmp_path) == 0
    for rank in range(3):
        (tmp_path / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
        (tmp_path / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt").touch()
    assert num_shards(tmp_path) == 3
