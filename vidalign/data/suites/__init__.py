"""Published suites of questions on videos: one module each, found by name, and `find_suite`.

`vidalign evaluate --suite NAME --data FOLDER` asks them; docs/evaluation.md lists files, prompts, rules and their sources.
"""

from collections.abc import Mapping

from vidalign.data.suites import (
    long_video_bench,
    mlvu,
    mvbench,
    next_qa,
    open_qa,
    tempcompass,
    video_hallucer,
    video_mme,
    vidhalluc,
)
from vidalign.data.suites.base import Suite
from vidalign.errors import ConfigError
from vidalign.plugins import resolve

SUITES: Mapping[str, Suite] = {
    suite.name: suite
    for suite in (
        video_mme.SUITE,
        mvbench.MVBENCH_SUITE,
        tempcompass.SUITE,
        mvbench.TVBENCH_SUITE,
        video_hallucer.SUITE,
        vidhalluc.SUITE,
        long_video_bench.SUITE,
        mlvu.SUITE,
        next_qa.SUITE,
        open_qa.MSVD,
        open_qa.MSRVTT,
        open_qa.TGIF,
    )
}


def find_suite(name: str) -> Suite:
    """The suite called `name`, or the one at "package.module:attribute". Raises `ConfigError`."""
    suite = resolve(name, SUITES, what="suite")
    if not isinstance(suite, Suite):
        raise ConfigError(f"suite {name!r} is a {type(suite).__name__}; it must be a vidalign.data.suites.base.Suite")
    return suite
