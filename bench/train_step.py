"""Time one training step (forward, loss, backward) on pairs: prompt shared and rows packed, against what trainers do otherwise.

    vidalign bench train [--rounds 5 --threads 2 --device cpu --dtype float32]

    packed       prompt, chosen, rejected of all pairs in one row without padding         (ours)
    masked       the same row under one mask of [T, T]                                    (another way to do it)
    two          a row a response
    two + live   the same, and a forward of a live reference model                        (how DPO is usually trained)
    TRL's way    the same, with logits of every token, prompt and video included          (what trl.DPOTrainer computes)
    three        chosen, rejected and the ground truth, a row each                        (how LeanPO's authors train)

All but TRL's way take logits at response positions only, and all the same loss, so the ratios are those of the sequences alone.
All pairs of a step have the same length: padding, which costs the others more, is left out. The variants take turns in one
process; printed are medians of the ratios within a turn, with minimum and maximum, and the limit by the text model's token count.
Peak memory is that of a process of its own for each variant. Writes bench/results/train_step.json and its part of
docs/performance.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from bench import processes
from bench.memory import resident
from bench.pages import PERFORMANCE, add_arguments, publish
from bench.train_step_page import AGAINST, MEMORY_RATIO, RATIOS, RESPONSE, page
from bench.turns import Ratio, speedup, take_turns
from vidalign.learning.objectives import build
from vidalign.model import shared_prefix
from vidalign.model.batch import IGNORED, Batch, Prompt, collate, collate_packed
from vidalign.model.logps import PairLogps, RowLogps
from vidalign.model.policy import ResponseScorer
from vidalign.model.positions import correct_positions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """Of the text model, and of a response in tokens."""

    response: int
    vocabulary: int
    hidden: int
    intermediate: int
    num_layers: int


LARGE = Size(response=RESPONSE, vocabulary=8192, hidden=512, intermediate=1792, num_layers=9)  # 38M parameters
SMALL = Size(response=4, vocabulary=512, hidden=64, intermediate=128, num_layers=1)


def make_model(size: Size, device: torch.device, dtype: torch.dtype) -> Qwen2_5_VLForConditionalGeneration:
    """A random Qwen2.5-VL of one size; its vision tower is not run here."""
    half = size.hidden // 16  # of a head, of which there are eight
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": size.vocabulary,
            "hidden_size": size.hidden,
            "intermediate_size": size.intermediate,
            "num_hidden_layers": size.num_layers,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "max_position_embeddings": 8192,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8],
            },
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 0,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": size.hidden,
        },
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


def make_batches(num_pairs: int, ratio: int, size: Size, number: Callable[[Prompt], torch.Tensor]) -> dict[str, Batch]:
    """The same pairs in each form; `ratio`: prompt tokens a response token."""
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> torch.Tensor:
        return torch.randint(10, size.vocabulary, (count,), generator=generator)

    rows = []
    for _ in range(num_pairs):
        ids = draw(ratio * size.response)
        prompt = Prompt(tokens={"input_ids": ids, "mm_token_type_ids": torch.zeros_like(ids)}, vision={})
        prompt = dataclasses.replace(prompt, positions=number(prompt))
        rows.append((prompt, *(draw(size.response).tolist() for _ in range(3))))
    two = [(prompt, response[side]) for side in (0, 1) for prompt, *response in rows]
    packed = collate_packed([(prompt, (chosen, rejected)) for prompt, chosen, rejected, _ in rows])
    return {
        "packed": packed,
        "masked": under_a_mask(packed),
        "two": collate(two, pad_id=0),
        "three": collate([*two, *((prompt, truth) for prompt, _, _, truth in rows)], pad_id=0),
    }


def under_a_mask(batch: Batch) -> Batch:
    """The packed row with a mask in place of attention by pieces."""
    owners = []  # of each token: its prompt, and its response or 0
    for number, group in enumerate(batch.inputs["groups"]):
        owners += [(number, 0)] * group.prompt
        for side, length in enumerate(group.responses, start=1):
            owners += [(number, side)] * length
    owner = torch.tensor(owners)
    same_group = owner[:, None, 0] == owner[None, :, 0]
    seen = same_group & ((owner[:, None, 1] == owner[None, :, 1]) | (owner[None, :, 1] == 0))
    inputs = {name: value for name, value in batch.inputs.items() if name != "groups"}
    return dataclasses.replace(batch, inputs={**inputs, "attention_mask": seen.tril()[None, None]})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to make a step. `form`: of the batch; `live`: the reference is a second model; `all_logits`: of every token."""

    form: str
    objective: str = "leanpo"
    live: bool = False
    all_logits: bool = False


VARIANTS = {
    "packed": Variant(form="packed"),
    "masked": Variant(form="masked"),
    "two": Variant(form="two"),
    "three": Variant(form="three"),
    "packed, cached reference": Variant(form="packed", objective="dpo"),
    "two + live": Variant(form="two", objective="dpo", live=True),
    "TRL's way": Variant(form="two", objective="dpo", live=True, all_logits=True),
}
# A row's forward and backward are three forwards' work; the reference's forward is one.
ROWS = {"masked": 0.0, "two": 2.0, "three": 3.0, "two + live": 2 + 2 / 3, "TRL's way": 2 + 2 / 3}


def step(variant: Variant, scorer: ResponseScorer, live: ResponseScorer | None, batch: Batch, num_pairs: int) -> float:
    """One forward and backward; returns the loss. A reference from the cache costs nothing here."""
    logps_of = everywhere if variant.all_logits else at_responses
    pairs = pair_logps(logps_of(scorer, batch), batch, num_pairs)
    reference = None
    if variant.live:
        assert live is not None
        with torch.no_grad():
            reference = pair_logps(logps_of(live, batch), batch, num_pairs)
    elif variant.objective == "dpo":
        reference = dataclasses.replace(pairs, chosen=pairs.chosen.detach(), rejected=pairs.rejected.detach())
    value = build(variant.objective, {})(pairs, reference).value
    value.backward()
    scorer.zero_grad(set_to_none=True)
    return value.item()


def at_responses(scorer: ResponseScorer, batch: Batch) -> torch.Tensor:
    return scorer(batch.inputs, batch.labels, None, batch.sources)[0]


def everywhere(scorer: ResponseScorer, batch: Batch) -> torch.Tensor:
    """[R, T] from whole logits [R, T, V]."""
    logits = scorer.model(**batch.inputs, use_cache=False).logits.float()
    logps = logits.gather(-1, batch.labels.clamp(min=0)[..., None])[..., 0] - logits.logsumexp(-1)
    return torch.where(batch.labels == IGNORED, 0.0, logps)


def pair_logps(logps: torch.Tensor, batch: Batch, num_pairs: int) -> PairLogps:
    """The first two rows of each pair; the truth that "three" has beside them is left out."""
    rows = slice(0, 2 * num_pairs)
    return PairLogps.from_rows(RowLogps(logps=logps[rows], mask=batch.labels[rows] != IGNORED), num_pairs=num_pairs)


def measure(
    ratio: int, rounds: int, size: Size, device: torch.device, dtype: torch.dtype, *, num_pairs: int | None = None
) -> dict[str, Any]:
    """Seconds of each variant, and ratios of each other one's to ours. The models have the same weights."""
    num_pairs = num_pairs or RATIOS[ratio]
    packed = ResponseScorer(make_model(size, device, dtype), packed=True)
    padded = ResponseScorer(make_model(size, device, dtype))
    live = ResponseScorer(make_model(size, device, dtype)).eval()
    made = make_batches(num_pairs, ratio, size, shared_prefix.numbering(packed.model))
    batches = {name: batch.to(device, dtype) for name, batch in made.items()}

    def once(variant: Variant) -> float:
        loss = step(variant, packed if variant.form == "packed" else padded, live, batches[variant.form], num_pairs)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return loss

    variants = {name: functools.partial(once, variant) for name, variant in VARIANTS.items()}
    losses = {name: run() for name, run in variants.items()}
    if dtype == torch.float32:
        assert abs(losses["packed"] - losses["two"]) < 1e-3, losses
    seconds = take_turns(variants, rounds)
    return {
        "ratio": ratio,
        "num_pairs": num_pairs,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "speedup": {name: dataclasses.asdict(speedup(seconds, ours, name)) for name, ours in AGAINST.items()},
        "limit": {name: rows * (ratio + 1) / (ratio + 2) for name, rows in ROWS.items()},
    }


def peak_mib(name: str, size: Size) -> float:
    """Peak resident memory of this process over that before the models were made, after two steps of one variant."""
    before, variant = resident("VmRSS"), VARIANTS[name]
    device, num_pairs = torch.device("cpu"), RATIOS[MEMORY_RATIO]
    scorer = ResponseScorer(make_model(size, device, torch.float32), packed=variant.form == "packed")
    live = ResponseScorer(make_model(size, device, torch.float32)).eval() if variant.live else None
    batch = make_batches(num_pairs, MEMORY_RATIO, size, shared_prefix.numbering(scorer.model))[variant.form]
    for _ in range(2):
        step(variant, scorer, live, batch, num_pairs)
    return (resident("VmHWM") - before) / 2**20


def memory(threads: int) -> dict[str, float]:
    """Peak of each variant, each in a fresh process."""
    command = ("bench.train_step", "--threads", threads, "--peak-of")
    return {name: processes.result_of(*command, name) for name in VARIANTS if name != "masked"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    add_arguments(parser, quick="one turn of a smaller model, no memory")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak_of:
        processes.tell(peak_mib(arguments.peak_of, LARGE))
        return
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    size, rounds = (SMALL, 1) if arguments.quick else (LARGE, arguments.rounds)
    rows = []
    for ratio in RATIOS:
        rows.append(measure(ratio, rounds, size, device, dtype))
        print(ratio, {name: str(Ratio(**values)) for name, values in rows[-1]["speedup"].items()}, flush=True)
    text_model = make_model(size, device, dtype).model.language_model
    found = {
        "device": str(device),
        "threads": arguments.threads,
        "dtype": arguments.dtype,
        "rounds": rounds,
        "num_response_tokens": size.response,
        "num_parameters": sum(p.numel() for p in text_model.parameters()),
        "vocabulary": text_model.config.vocab_size,
        "rows": rows,
        "peak_mib": memory(arguments.threads) if device.type == "cpu" and not arguments.quick else {},
    }
    publish(arguments, PERFORMANCE, "train_step", found, page(found))


if __name__ == "__main__":
    main()
