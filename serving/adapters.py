"""LoRA adapters over one engine: versions of a policy that a run kept as adapters need no engine each (`serve.adapters`).

    version "aligned@V" ── the base's deployment ── loaded there by the first request that needs it ── vLLM, by its name "aligned@V"

Base and adapter must be what was trained, so an adapter over another policy, or one whose replies would end elsewhere, is refused.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from serving.versions import BASE, POLICY
from vidalign import files
from vidalign.errors import ModelError
from vidalign.model.checkpoint import ADAPTER, GENERATION
from vidalign.types import PolicyVersion

SCOPE = "vidalign.adapter"  # in the scope of a request: the name and the folder of its adapter
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM takes as the highest
AT_ONCE, KEPT = 2, 8  # adapters in one batch, such as the promoted one and one on trial; and in host memory


def adapter_of(policy: PolicyVersion, base: PolicyVersion) -> str:
    """The folder of the adapter that a policy was exported with. Raises `ModelError` where it is not to be served over `base`."""
    folder = pathlib.Path(policy.path) / ADAPTER
    alone = "leave serve.adapters out, which serves the policy with an engine of its own"
    if not (folder / "adapter_config.json").is_file() or not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(f"{policy.path} was exported without its adapter; train with train.lora.export=both, or {alone}")
    if policy.parent != base.version:
        raise ModelError(
            f"the adapter of {policy.path} was trained over {policy.parent or 'a policy that is not known'}, and the base is "
            f"{base.version}; name the round that was trained from the base, or {alone}"
        )
    ends = {path: _ends(pathlib.Path(path)) for path in (base.path, policy.path)}
    if len(set(ends.values())) > 1:
        said = " and ".join(f"{path} at {', '.join(map(str, sorted(ids)))}" for path, ids in ends.items())
        raise ModelError(f"replies of {said} (eos_token_id of {GENERATION}), so one engine cannot give both; {alone}")
    return str(folder.absolute())


def adapters_of(models: Mapping[str, PolicyVersion], where: str) -> dict[str, str]:
    """What of a run is served over its base's engine. Raises `ModelError` where there is no base, or nothing to serve over it."""
    if BASE not in models or POLICY not in models:
        missing = "base model" if BASE not in models else "exported policy"
        raise ModelError(f"serve.adapters needs a base and a policy, and {where} has no {missing}; leave it out")
    return {POLICY: adapter_of(models[POLICY], models[BASE])}


def _ends(folder: pathlib.Path) -> frozenset[int]:
    """The token ids that end a reply."""
    path = folder / GENERATION
    found = files.read_object(path).get("eos_token_id") if path.is_file() else None
    return frozenset(found if isinstance(found, list) else [] if found is None else [found])


def rank_of(folder: str) -> int:
    """The rank of an adapter. Raises `ModelError`."""
    rank = files.read_object(pathlib.Path(folder) / "adapter_config.json").get("r")
    if not isinstance(rank, int) or rank > RANKS[-1]:
        raise ModelError(f"the adapter {folder} has rank {rank}, and vLLM takes up to {RANKS[-1]}; leave serve.adapters out")
    return rank


def engine_options(adapters: Mapping[str, str]) -> dict[str, Any]:
    """vLLM's options of an engine that serves these adapters (model id → folder), and later ones of no higher rank."""
    rank = max(map(rank_of, adapters.values()))
    highest = next(each for each in RANKS if each >= rank)
    return {"enable_lora": True, "max_lora_rank": highest, "max_loras": AT_ONCE, "max_cpu_loras": KEPT}
