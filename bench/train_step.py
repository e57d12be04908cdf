"""Time one training step (forward, loss, backward) on a pair: prompt shared, against what trainers do otherwise.

    python -m bench.train_step [--rounds 5 --threads 2 --device cpu --dtype float32]

    shared       one sequence a pair: prompt, chosen, rejected                         (ours)
    two          one sequence a response
    two + live   the same, and a forward of a live reference model                     (how DPO is usually trained)
    three        chosen, rejected and the ground truth, a sequence each                (how LeanPO's authors train)

All take logits at response positions only and the same loss, so the ratios are those of the sequences alone. The variants take
turns in one process (A B C D A B C D …); printed are medians of the ratios within a turn, with their minimum and maximum, and
the limit by the text model's token count. Writes bench/results/train_step.json and its part of
docs/performance.md.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import time
from collections.abc import Callable

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from bench.pages import PERFORMANCE, write_part
from pipelines.summary import versions
from vidalign import files
from vidalign.logps import PairLogps
from vidalign.objectives import build
from vidalign.policy import ResponseScorer
from vidalign.positions import correct_positions
from vidalign.rendering import IGNORED, Batch, Prompt, collate, collate_pairs

RATIOS = (4, 16, 64)  # prompt tokens a response token
RESPONSE = 12  # tokens
NUM_PAIRS = 2
RESULTS = pathlib.Path("bench/results/train_step.json")


def make_model(device: torch.device, dtype: torch.dtype) -> Qwen2_5_VLForConditionalGeneration:
    """A random Qwen2.5-VL whose text model has 38M parameters; its vision tower is not run here."""
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 8192,
            "hidden_size": 512,
            "intermediate_size": 1792,
            "num_hidden_layers": 9,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "max_position_embeddings": 8192,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]},
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 0,
        },
        vision_config={"depth": 1, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 512},
        image_token_id=2,
        video_token_id=3,
        vision_start_token_id=4,
        vision_end_token_id=5,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config).to(device, dtype)
    model.model.visual.requires_grad_(False)
    correct_positions(model)
    return model


def make_batches(num_prompt_tokens: int) -> dict[str, Batch]:
    """The same pairs in each form."""
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> torch.Tensor:
        return torch.randint(10, 8000, (count,), generator=generator)

    rows = []
    for _ in range(NUM_PAIRS):
        ids = draw(num_prompt_tokens)
        prompt = Prompt(tokens={"input_ids": ids, "mm_token_type_ids": torch.zeros_like(ids)}, vision={})
        rows.append((prompt, *(draw(RESPONSE).tolist() for _ in range(3))))
    two = [(prompt, response[side]) for side in (0, 1) for prompt, *response in rows]
    return {
        "shared": collate_pairs([(prompt, chosen, rejected) for prompt, chosen, rejected, _ in rows], pad_id=0),
        "two": collate(two, pad_id=0),
        "three": collate([*two, *((prompt, truth) for prompt, _, _, truth in rows)], pad_id=0),
    }


def step(scorer: ResponseScorer, batch: Batch, reference: ResponseScorer | None, objective: str) -> float:
    """One forward and backward; returns the loss."""
    logps, _ = scorer(batch.inputs, batch.labels, None, batch.sources)
    pairs = pair_logps(logps, batch)
    frozen = None
    if reference is not None:
        with torch.no_grad():
            frozen = pair_logps(reference(batch.inputs, batch.labels, None, batch.sources)[0], batch)
    elif objective == "dpo":
        frozen = pair_logps(logps.detach(), batch)  # from the cache: costs nothing here
    value = build(objective, {})(pairs, frozen).value
    value.backward()
    scorer.zero_grad(set_to_none=True)
    return float(value)


def pair_logps(logps: torch.Tensor, batch: Batch) -> PairLogps:
    mask = batch.labels != IGNORED
    chosen, rejected = slice(0, NUM_PAIRS), slice(NUM_PAIRS, 2 * NUM_PAIRS)
    return PairLogps(chosen=logps[chosen], rejected=logps[rejected], chosen_mask=mask[chosen], rejected_mask=mask[rejected])


def measure(scorer: ResponseScorer, reference: ResponseScorer, ratio: int, rounds: int, device: torch.device) -> dict:
    """Ratios of each other variant's time to that of `shared`, over `rounds` turns after one that does not count."""
    batches = {name: batch.to(device, torch.float32) for name, batch in make_batches(ratio * RESPONSE).items()}
    variants: dict[str, Callable[[], float]] = {
        "shared": lambda: step(scorer, batches["shared"], None, "leanpo"),
        "two": lambda: step(scorer, batches["two"], None, "leanpo"),
        "three": lambda: step(scorer, batches["three"], None, "leanpo"),
        "shared, cached reference": lambda: step(scorer, batches["shared"], None, "dpo"),
        "two + live": lambda: step(scorer, batches["two"], reference, "dpo"),
    }
    losses = {name: run() for name, run in variants.items()}
    assert abs(losses["shared"] - losses["two"]) < 1e-3, losses
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            began = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - began)
    prompt = ratio * RESPONSE
    ours = prompt + 2 * RESPONSE
    limits = {
        "two": 2 * (prompt + RESPONSE) / ours,
        "three": 3 * (prompt + RESPONSE) / ours,
        # A forward is a third of a step.
        "two + live": (2 + 2 / 3) * (prompt + RESPONSE) / ours,
    }
    against = {"two": "shared", "three": "shared", "two + live": "shared, cached reference"}
    return {
        "ratio": ratio,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "speedup": {
            name: [slow / fast for slow, fast in zip(seconds[name], seconds[base], strict=True)]
            for name, base in against.items()
        },
        "limit": limits,
    }


def page(found: dict) -> str:
    """The Markdown part: one row a ratio and variant."""
    rows = []
    for row in found["rows"]:
        for name, ratios in row["speedup"].items():
            median, limit = statistics.median(ratios), row["limit"][name]
            rows.append(
                f"| {row['ratio']}:1 | {name} | {median:.2f}x ({min(ratios):.2f} to {max(ratios):.2f}) | {limit:.2f}x | "
                f"{median / limit:.0%} |"
            )
    return "\n".join(
        [
            "## Training step",
            "",
            f"Written by `python -m bench.train_step` on {found['device']}, {found['threads']} threads, {found['dtype']}; text model "
            f"of {found['num_parameters'] / 1e6:.0f}M parameters, {NUM_PAIRS} pairs, {RESPONSE} tokens a response, medians of "
            f"{found['rounds']} turns (minimum to maximum). One sequence a pair, with the prompt computed once, against: *two*, "
            "one sequence a response; *three*, the ground truth as a third; *two + live*, a live reference model beside it, while "
            "ours reads the reference from its cache. The limit counts the text model's tokens.",
            "",
            "| prompt : response | against | speed-up of a shared prompt | limit | reached |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"torch {versions()['torch']}, transformers {versions()['transformers']}. Only run on CPUs.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    model = make_model(device, getattr(torch, arguments.dtype))
    scorer, reference = (
        ResponseScorer(model).train(),
        ResponseScorer(make_model(device, getattr(torch, arguments.dtype))).eval(),
    )
    rows = []
    for ratio in RATIOS:
        rows.append(measure(scorer, reference, ratio, arguments.rounds, device))
        print({name: round(statistics.median(values), 2) for name, values in rows[-1]["speedup"].items()}, flush=True)
    found = {
        "device": str(device),
        "threads": arguments.threads,
        "dtype": arguments.dtype,
        "rounds": arguments.rounds,
        "num_parameters": sum(p.numel() for p in model.model.language_model.parameters()),
        "rows": rows,
    }
    files.write_json(RESULTS, found)
    write_part(PERFORMANCE, "train_step.md", page(found))


if __name__ == "__main__":
    main()
