"""vidalign aligns video language models with preferences that they generate themselves.

The names in `__all__` are the public API and are stable. Each is imported when it is first used, so `import vidalign` loads
neither NumPy nor torch:

    load_config(path, overrides)                  a checked configuration
    align(config)                                 the whole job: rollouts, pairs, training, evaluation, report
    decode(path, num_frames=8) or (path, fps=2)   the sampled frames of one video
    judge_reply(reply, question=…, answer=…)      whether a reply is right
    objectives                                    the losses, by name
    Engine                                        what a recipe asks: a protocol
    errors                                        what is raised for what a user can fix

This package is the library beneath ``cluster``, ``actors``, ``pipelines`` and ``serving``: it starts no Ray cluster and
speaks no HTTP. ``vidalign.types``, ``vidalign.config.run`` and ``vidalign.data.reading`` import without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from vidalign import errors as errors
    from vidalign.config.loading import load_config as load_config
    from vidalign.config.run import RunConfig
    from vidalign.data.api import judge_reply as judge_reply
    from vidalign.learning import objectives as objectives
    from vidalign.recipes.engine import Engine as Engine
    from vidalign.video.api import decode as decode

    # Declared, not imported: even for type checkers, this package imports nothing from the layers above it.
    def align(config: RunConfig, stages: Sequence[str] = ..., *, verbose: bool = False) -> dict[str, Any]: ...


__version__ = "0.1.0"
__all__ = ["Engine", "align", "decode", "errors", "judge_reply", "load_config", "objectives"]

# Where each public name lives. `align` is in a layer above this package, which imports only what is below it. A string that is
# looked up on request keeps the library importable without Ray and still gives users a single entry point.
_PLACES = {
    "Engine": "vidalign.recipes.engine:Engine",
    "align": "pipelines.align:align",
    "decode": "vidalign.video.api:decode",
    "errors": "vidalign.errors",
    "judge_reply": "vidalign.data.api:judge_reply",
    "load_config": "vidalign.config.loading:load_config",
    "objectives": "vidalign.learning.objectives",
}

if not TYPE_CHECKING:  # a type checker would conclude that the module has every name

    def __getattr__(name: str) -> object:
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, _, attribute = _PLACES[name].partition(":")
        if name == "align":
            importlib.import_module("vidalign.hidden").refuse_hidden_packages()
        found = importlib.import_module(module)
        value = globals()[name] = getattr(found, attribute) if attribute else found
        return value


def __dir__() -> list[str]:
    return sorted(globals().keys() | set(__all__))
