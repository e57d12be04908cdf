"""The process that compiles the form of a reply, separate so that it can be killed: some take very long, and nothing stops that.

    parent ── one JSON line ──> child        first {"tokenizer", "whitespace"}, then forms: {"kind", "spec", "parse_s", "compile_s"}
           <── one word a line ──            "ready", then of each form "done", "refused" (vLLM says why) or "memory"

A form that takes more processor time than it may ends the child: the kernel counts it (SIGPROF), whatever the compiler is doing.
This module imports xgrammar and nothing of Ray or vLLM.
"""

from __future__ import annotations

import json
import pathlib
import resource
import signal
import sys
from typing import Any

from serving.haproxy import end_with_parent

MOST_BYTES = 4 * 2**30  # of memory beyond what the compiler itself takes
WALL = 20.0  # times its processor time a form may take where the machine is busy


def main() -> None:
    """Compile what comes on standard input."""
    end_with_parent()
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    settings = json.loads(sys.stdin.readline())
    import xgrammar

    info = xgrammar.TokenizerInfo.deserialize_json(settings["tokenizer"])
    compiler = xgrammar.GrammarCompiler(info, max_threads=8, cache_enabled=False)
    taken = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MOST_BYTES, taken + MOST_BYTES))
    _say("ready")
    for line in sys.stdin:
        _say(_outcome(xgrammar.Grammar, compiler, json.loads(line), whitespace=settings["whitespace"]))


def _outcome(grammar: Any, compiler: Any, form: dict[str, Any], *, whitespace: bool) -> str:
    kind, spec = form["kind"], form["spec"]
    separators = None if whitespace else (",", ":")
    parse, compile_form = {
        "json": (
            grammar.from_json_schema,
            lambda schema: compiler.compile_json_schema(schema, any_whitespace=whitespace, separators=separators),
        ),
        "regex": (grammar.from_regex, compiler.compile_regex),
        "grammar": (grammar.from_ebnf, compiler.compile_grammar),
        "lark": (grammar.from_lark, compiler.compile_lark),
        "structural_tag": (grammar.from_structural_tag, compiler.compile_structural_tag),
    }[kind]
    try:
        for step, limit_s in ((parse, form["parse_s"]), (compile_form, form["compile_s"])):
            signal.setitimer(signal.ITIMER_PROF, limit_s)
            signal.setitimer(signal.ITIMER_REAL, WALL * limit_s)
            step(spec)
    except MemoryError:
        return "memory"
    except Exception:  # of many kinds; vLLM meets it too, and has words for it
        return "refused"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "done"


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
