"""A pool of [fewest, most] actors grows on a real Ray while pieces of work wait."""

import os
import time

import pandas as pd
import pytest

from actors.pools import pool


def slow():
    """A piece of work of half a second, by one process. A class of a test's own function: workers cannot import tests."""

    class Slow:
        def __call__(self, row):
            time.sleep(0.5)
            return {"piece": row["piece"], "process": os.getpid()}

    return Slow


@pytest.mark.heavy
def test_a_pool_grows_while_work_waits(local_ray):
    import ray.data

    blocks = [pd.DataFrame({"piece": [number]}) for number in range(40)]
    made = ray.data.from_blocks(blocks).map(slow(), compute=pool(3, len(blocks), 1, at_once=2), num_cpus=1).take_all()
    assert sorted(row["piece"] for row in made) == list(range(40))
    assert len({row["process"] for row in made}) in {2, 3}
