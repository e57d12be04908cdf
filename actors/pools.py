"""How many actors of a Ray Data pool there are, and whether they come and go."""

from __future__ import annotations

from typing import Any


def pool(num: int, num_pieces: int, fewest: int | None = None, *, at_once: int = 1) -> Any:
    """Ray Data's strategy of `num` actors, but no more than there are pieces of work.

    Args:
        fewest: the work begins with so many; more come while pieces wait and there is room for them, and go when they are idle.
        at_once: pieces that each works on at the same time.
    """
    import ray.data

    most = max(1, min(num, num_pieces))
    low = most if fewest is None else min(fewest, most)
    threads = {"enable_true_multi_threading": True, "max_concurrent_calls_per_actor": at_once} if at_once > 1 else {}
    return ray.data.ActorPoolStrategy(min_size=low, max_size=most, **threads)
