"""The demo's job with several seeds, from rollout to held-out accuracy over HTTP; writes its part of docs/results.md.

    python -m bench.seeds [--seeds 0 1 2 3 4] [--config examples/shapes/align.yaml] [section.key=value ...]

Each seed is a run of its own in runs/seeds/SEED: its own responses, pairs and training order. All aligned models and the base
then answer the held-out questions behind one endpoint. Stages that are finished are not run again, so the script can be
stopped and continued.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import statistics

from bench.intervals import interval
from bench.pages import RESULTS, Output, add_arguments
from cluster.plan import plan, plan_serve
from cluster.resources import ClusterResources
from cluster.session import connect, local_resources
from pipelines import progress
from pipelines.align import align
from pipelines.asking import evaluate
from pipelines.inputs import read_inputs
from pipelines.rounds import aligned_policy
from pipelines.stages.evaluate import common_folder
from pipelines.summary import versions
from serving.app import endpoint
from serving.spec import EndpointSpec
from vidalign.config.loading import load_config
from vidalign.config.run import RunConfig
from vidalign.files import RunFolder
from vidalign.model.checkpoint import policy_version
from vidalign.statistics import accuracy_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--config", default="examples/shapes/align.yaml")
    parser.add_argument("--root", default="runs/seeds")
    parser.add_argument("overrides", nargs="*")
    add_arguments(parser)
    arguments = parser.parse_args()
    root = pathlib.Path(arguments.root)
    configs = {
        seed: load_config(arguments.config, [*arguments.overrides, f"seed={seed}", f"run_dir={root / str(seed)}"])
        for seed in arguments.seeds
    }
    first = next(iter(configs.values()))
    needed = plan(
        local_resources(first.cluster),
        rollout=first.rollout,
        train=first.train,
        serve=first.serve,
        num_decoders=first.video.num_decoders,
        num_served=len(configs) + 1,
    ).num_cpus_needed
    with connect(first.cluster, num_cpus_needed=needed) as resources:
        summaries = {seed: align(config, ("rollout", "train")) for seed, config in configs.items()}
        tables = answer(configs, root, resources)
    (arguments.out or Output()).write_part(RESULTS, "seeds", page(first, summaries, tables))


def answer(configs: dict[int, RunConfig], root: pathlib.Path, resources: ClusterResources) -> dict[str, dict]:
    """Accuracy tables of base, blind and the aligned model of each seed, all through one endpoint."""
    config = next(iter(configs.values()))
    examples = read_inputs(config.data, config.recipe, choice=config.video.choice.frame_choice(), splits=("eval",)).eval
    models = {"base": policy_version(config.model.path)}
    for seed, other in configs.items():
        models[f"seed-{seed}"] = aligned_policy(RunFolder.open(other.run_dir), other.rounds - 1)
    serve = config.serve.model_copy(update={"media_root": config.serve.media_root or common_folder(examples)})
    stage = root / "eval"
    spec = EndpointSpec(
        models=models,
        model=config.model,
        serve=serve,
        plan=plan_serve(serve, resources, len(models)),
        frame_spec=config.video.frame_spec(),
    )
    with progress.waiting("start endpoint") as on_wait, endpoint(spec, on_wait=on_wait) as running:
        done = {}
        for model_id, blind in [*((name, False) for name in models), ("base", True)]:
            done["blind" if blind else model_id] = evaluate(
                examples,
                running,
                model_id=model_id,
                stage=stage,
                config=config.evaluate,
                prompt=config.recipe.plain_prompt,
                blind=blind,
            ).answers
    return {name: accuracy_table(answers) for name, answers in done.items()}


def page(config: RunConfig, summaries: dict[int, dict], tables: dict[str, dict]) -> str:
    """The Markdown page."""
    base, blind = tables["base"], tables["blind"]
    aligned = {seed: tables[f"seed-{seed}"] for seed in summaries}
    gains = [100 * (table["accuracy"] - base["accuracy"]) for table in aligned.values()]
    lines = [
        "## The demo's job",
        "",
        f"Written by `python -m bench.seeds`. {len(gains)} runs of the demo's job ({config.objective.name}, "
        f"{config.train.num_epochs} epochs, learning rate {config.train.learning_rate:g}), each with its own seed for sampling, pairs "
        f"and order of training. {base['total']} held-out questions on videos that no run trained on, asked over HTTP, greedy, "
        "each answer judged by its kind. Only run on CPUs.",
        "",
        f"**Aligned minus base: {spread(gains)} points** (mean over seeds ± 95 % interval of that mean). "
        f"Base {percent(base)}, blind (base on noise videos) {percent(blind)}.",
        "",
        "| seed | pairs | accuracy | minus base | chosen log-likelihood | rejected | truth (probe) | both fell | reward–trust |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for seed, summary in summaries.items():
        moved = [arrow(summary["log_likelihood"][side]) for side in ("chosen", "rejected", "truth")]
        gain = 100 * (aligned[seed]["accuracy"] - base["accuracy"])
        lines.append(
            f"| {seed} | {summary['pairs']['kept']} | {percent(aligned[seed])} | {gain:+.1f} | {' | '.join(moved)} | "
            f"{summary['log_likelihood']['both_fell']:.0%} | {summary['reward_trust_correlation']:.2f} |"
        )
    lines += [
        "",
        "Log-likelihoods are nats per token, first → last measurement; both fell: share of monitored pairs whose chosen and rejected "
        "response both became less likely; reward–trust: Spearman correlation over all responses.",
        "",
        "| category | questions | blind | base | aligned (mean over seeds) | change |",
        "|---|---|---|---|---|---|",
    ]
    for category, row in base["by_category"].items():
        mean = statistics.fmean(table["by_category"][category]["accuracy"] for table in aligned.values())
        lines.append(
            f"| {category} | {row['total']} | {percent(blind['by_category'][category])} | {percent(row)} | {100 * mean:.1f} % | "
            f"{100 * (mean - row['accuracy']):+.1f} |"
        )
    ran = ", ".join(f"{name} {version}" for name, version in versions().items())
    settings = json.dumps(
        config.model_dump(mode="json", include={"objective", "recipe", "train", "video"}), ensure_ascii=False
    )
    return "\n".join([*lines, "", f"Versions: {ran}.", "", f"Settings of seed {config.seed}: `{settings}`", ""])


def spread(values: list[float]) -> str:
    mean, half = interval(values)
    return f"{mean:+.1f} (one seed, no interval)" if math.isnan(half) else f"{mean:+.1f} ± {half:.1f}"


def percent(table: dict) -> str:
    return f"{100 * table['accuracy']:.1f} %"


def arrow(side: dict) -> str:
    return f"{side['start']:.2f} → {side['end']:.2f}"


if __name__ == "__main__":
    main()
