"""The part of docs/performance.md that bench/gpu.py writes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench import rollout_engine_page as load_page
from bench.turns import Ratio

GIB = 2**30
TITLE = "## One GPU"
INTRODUCTION = (
    "Written by `vidalign bench gpu`. Models have random weights at the shapes of Qwen2.5-VL-3B and -7B, videos are noise: {shown}. "
    "One process a part; medians where a part repeats."
)
SHOWN = "16 frames of 448x448 pixels, 2,048 vision tokens, responses of about 160 and 80 tokens, 8 pairs a step"


def page(found: dict[str, Any]) -> str:
    """The Markdown part: what each part measured, and what failed or was left out."""
    parts = found["parts"]
    lines = [TITLE, "", INTRODUCTION.format(shown="tiny ones here" if found.get("quick") else SHOWN), ""]
    for name, write in SECTIONS.items():
        rows = {key: row for key, row in parts.items() if key == name or key.startswith(f"{name}: ")}
        results = {key.removeprefix(f"{name}: "): row["result"] for key, row in rows.items() if "result" in row}
        if results:
            lines += [*write(results, parts), ""]
        lines += [f"- {key} failed: {_line(row['failed'])}" for key, row in rows.items() if "failed" in row]
        lines += [f"- {key} was left out: {row['left_out']}" for key, row in rows.items() if "left_out" in row]
        if any("result" not in row for row in rows.values()):
            lines.append("")
    for note in found.get("notes", ()):  # what a measurement cannot say by itself
        lines += [note, ""]
    return "\n".join(lines)


def _line(text: str) -> str:
    return "`" + " ".join(text.replace("`", "'").split())[-400:] + "`"


def _facts(results: dict[str, Any], _: dict[str, Any]) -> Iterator[str]:
    made = results["facts"]
    versions = made["versions"]
    named = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "transformers", "deepspeed", "vllm", "ray") if name in versions
    )
    yield (
        f"Device: **{made['name']}**"
        + (f", {made['memory'] / GIB:.0f} GiB, driver {made['driver']}, CUDA {versions['cuda']}" if "memory" in made else "")
        + f"; {named}. It copies {made['copied_bytes_a_second'] / 1e12:.2f} TB/s and multiplies bfloat16 matrices at "
        f"{made['matmul_flops'] / 1e12:.0f} TFLOP/s."
    )


def _numbers(results: dict[str, Any], _: dict[str, Any]) -> Iterator[str]:
    made = results["numbers"]
    yield (
        f"Log-probs of {made['num_tokens']} response tokens of the built-in model, and the gradients of all its parameters, "
        "against the CPU's in float32 with separate sequences:"
    )
    yield ""
    yield "| on the device | largest difference of a log-prob | relative difference of the gradients |"
    yield "|---|---|---|"
    for name, row in made["variants"].items():
        yield f"| {name} | {row['logp']:.1e} nats | {row['gradient']:.1e} |"


def _vision(results: dict[str, Any], _: dict[str, Any]) -> Iterator[str]:
    made = results["vision"]
    first, *others = made["ways"].items()
    kernel = "flash_attn's kernel" if made["flash_attn"] else "PyTorch's own varlen kernel"
    yield (
        f"Qwen2.5-VL's vision tower on {made['num_frames']} frames of {made['side']}x{made['side']}: "
        f"{first[1]['seconds'] * 1000:.0f} ms with {first[0]}; "
        + "; ".join(
            f"`model.vision_attention={name}` {row['seconds'] * 1000:.0f} ms ({first[1]['seconds'] / row['seconds']:.1f}x, features "
            f"{row['difference']:.0e} apart)"
            for name, row in others
        )
        + f". On a GPU in half precision `auto` takes {kernel} here."
    )


def _step(results: dict[str, Any], _: dict[str, Any]) -> Iterator[str]:
    made = results["step"]
    size = made["size"]
    yield (
        f"One training step of {made['num_pairs']} pairs, {made['ratio']} prompt tokens to one of the response ({size['response']}); "
        f"text model {size['hidden']} wide, {size['num_layers']} layers, {size['vocabulary']:,} tokens; packed rows against the other "
        "ways of the section above:"
    )
    yield ""
    yield "| against | speed-up | limit |"
    yield "|---|---|---|"
    for name, row in made["speedup"].items():
        limit = made["limit"][name]
        yield f"| {name} | {Ratio(**row)} | {f'{limit:.2f}x' if limit else ''} |"


def _training(results: dict[str, Any], parts: dict[str, Any]) -> Iterator[str]:
    speed = parts.get("facts", {}).get("result", {}).get("matmul_flops")
    yield (
        "Training steps of the learner with DeepSpeed, one rank. *Said* is what `--dry-run` says that a device holds. The share "
        "of the matrix speed counts the language model's necessary operations alone, without attention, vision tower and what "
        "checkpointing computes again:"
    )
    yield ""
    yield "| case | a step | rendering alone | tokens a second | of the matrix speed | peak memory | said | start |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, row in results.items():
        share = f"{row['flops'] / row['step_s'] / speed:.0%}" if speed else ""
        said = sum(row["predicted"].values())
        yield (
            f"| {name} | {row['step_s']:.2f} s | {rendering(row)} | {row['num_tokens'] / row['step_s']:,.0f} | {share} | "
            f"{row['peak'] / GIB:.1f} GiB | {said / GIB:.1f} GiB ({said / row['peak'] - 1:+.0%}) | {row['start_s']:.0f} s |"
        )
    kept = {name: row for name, row in results.items() if "export_s" in row}
    if kept:
        yield ""
        yield "| case | checkpoint | export | device memory that the export adds |"
        yield "|---|---|---|---|"
    for name, row in kept.items():
        more = f"{row['export_more'] / GIB:.2f} GiB" if "export_more" in row else ""
        checkpoint = (
            f"{row['checkpoint_bytes'] / GIB:.1f} GiB in {row['checkpoint_s']:.0f} s"
            if "checkpoint_s" in row
            else "not made"
        )
        yield (f"| {name} | {checkpoint} | {row['export_bytes'] / GIB:.1f} GiB in {row['export_s']:.0f} s | {more} |")


def rendering(row: dict[str, Any]) -> str:
    return f"{row['render_s']:.2f} s" if "render_s" in row else ""


def _engine(results: dict[str, Any], _: dict[str, Any]) -> Iterator[str]:
    compared = {name: row for name, row in results.items() if "largest" in row}
    if compared:
        yield "vLLM's log-probs of its own replies against those that training computes for the same tokens, and starts:"
        yield ""
        yield "| model | start | largest difference | mean | tokens |"
        yield "|---|---|---|---|---|"
    for name, row in compared.items():
        yield f"| {name} | {row['start_s']:.0f} s | {row['largest']:.1e} nats | {row['mean']:.1e} nats | {row['num_tokens']} |"
    for row in (row for row in results.values() if "busy" in row):
        named = {**row, "model": f"{row['model']}, {row['dtype']}"}
        weights = row["weights"]
        yield from ("", "Rollouts as in *One engine in a rollout* below:", "")
        yield from load_page.busy_table([named])
        yield ""
        yield from load_page.score_table([named])
        yield ""
        yield (
            f"Scores with the prompt from the cache and anew differ by at most {row['score']['difference']:.1g} nats. That engine, "
            f"with what vLLM compiles by default, starts in {weights['start_s']:.0f} s; weights reloaded in place take "
            f"{max(weights['reload_s']):.1f} s, move scores by {weights['moved']:.2g} nats and, with the first weights again, "
            f"leave {weights['returned']:.1g}."
        )


def _align(results: dict[str, Any], _: dict[str, Any]) -> Iterator[str]:
    made = results["align"]
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in made["stages_s"].items())
    accuracy = made["accuracy"]
    right = ", ".join(f"{name} {100 * accuracy[name]:.0f} %" for name in ("base", "aligned") if name in accuracy)
    yield (
        f"A whole `vidalign align` of the built-in model with rollout, training and serving on the GPU: {stages}; "
        f"{made['pairs']['kept']} pairs; of the answers to {accuracy['num_examples']} held-out questions are right: {right}."
    )


def _serve(results: dict[str, Any], _: dict[str, Any]) -> Iterator[str]:
    made = results["serve"]
    policies = "; ".join(
        f"{name} answered one at a time in {1000 * row['alone_s']:.0f} ms (median), {made['at_once']} at once at "
        f"{row['requests_a_second']:.0f} a second, and gave an OpenAI client {row['same']} of {row['questions']} replies of the "
        "evaluation again"
        for name, row in made["policies"].items()
    )
    yield (
        f"`vidalign serve` of that run, base and aligned on one GPU, was ready in {made['start_s']:.0f} s. To requests with a video "
        f"and {made['tokens']} tokens of reply, {policies}."
    )


SECTIONS = {
    "facts": _facts,
    "numbers": _numbers,
    "vision": _vision,
    "step": _step,
    "training": _training,
    "engine": _engine,
    "align": _align,
    "serve": _serve,
}
