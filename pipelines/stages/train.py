"""Train: pairs ─► reference log-probs, where the objective needs them ─► Ray Train + DeepSpeed ─► an exported policy."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from actors.learner import train_loop
from actors.reference import Reference, kept_paths, parts_of
from actors.train_job import TrainJob
from cluster.resources import ResourcePlan
from pipelines import progress
from pipelines.check import check_objective
from vidalign import files
from vidalign.config.run import RunConfig, UncertaintyConfig
from vidalign.errors import DataError
from vidalign.files import RunFolder
from vidalign.learning import objectives
from vidalign.learning.pair_data import usable_pairs
from vidalign.model.checkpoint import policy_version, read_card
from vidalign.model.tensor_cache import TensorCache, missing, read_tensors
from vidalign.types import PolicyVersion, PreferencePair, stable_hash


def train(
    config: RunConfig, run: RunFolder, plan: ResourcePlan, policy: PolicyVersion, round_index: int = 0
) -> PolicyVersion:
    """Train one round on its pairs and return the exported policy. Needs a Ray connection.

    A finished round is skipped; a round that was killed continues from its newest checkpoint.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    check_objective(config)
    stage = run.stage("train", round_index)
    pairs = run.stage("pairs", round_index)
    export = run.stage("model", round_index)
    inputs = {
        "pairs": files.read_json(pairs / files.MANIFEST)["inputs"],
        "policy": policy.version,
        "objective": config.objective.model_dump(mode="json"),
        "train": config.train.model_dump(mode="json"),
        "dtype": config.model.dtype,
        "seed": config.seed,
    }
    if files.is_finished(stage, inputs):
        return exported(export)
    files.claim(stage, inputs)
    objective = objectives.build(config.objective.name, config.objective.params)
    usable, dropped = usable_pairs(files.read_table(pairs / "pairs.parquet", PreferencePair), objective)
    if not usable:
        raise DataError(
            f"objective.name={config.objective.name} can train on none of the pairs of this round ({dropped}); "
            + "it needs rows with a chosen and a rejected response, and for rrpo responses that differ in words"
        )
    reference = _reference(config, run, plan, policy, round_index, usable)
    doubt, num_kept = "", len(usable)
    if config.train.uncertainty is not None:
        assert reference is not None
        doubt, num_kept = _doubt(config, config.train.uncertainty, run, reference, round_index, usable)
        dropped |= {"voted_against": len(usable) - num_kept} if num_kept < len(usable) else {}
    job = TrainJob(
        model=config.model,
        policy_path=policy.path,
        policy_version=policy.version,
        train=config.train,
        objective=config.objective,
        plain_prompt=config.recipe.plain_prompt,
        frame_spec=config.video.frame_spec(),
        seed=config.seed + round_index,
        pairs=str(pairs / "pairs.parquet"),
        frames=str(run.stage("responses", round_index) / "frames.json"),
        probe=str(run.stage("responses", round_index) / "probe.parquet"),
        reference=str(reference) if reference else "",
        doubt=doubt,
        cache=str(tensor_cache(config, run)),
        stage=str(stage),
        export=str(export),
    )
    trainer = TorchTrainer(
        train_loop,
        train_loop_config=job.to_dict(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=plan.train.num,
            use_gpu=plan.use_gpu,
            resources_per_worker={"CPU": plan.train.cpus, **({"GPU": plan.train.gpus} if plan.use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=str(stage),
            failure_config=ray.train.FailureConfig(max_failures=config.train.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=config.train.num_checkpoints_kept),
        ),
    )
    with progress.follow_steps(f"train, round {round_index}", stage):
        trainer.fit()
    trained = exported(export)
    files.finish(stage, inputs, policy=trained.version, num_pairs=num_kept, dropped=dropped)
    return trained


def exported(folder: pathlib.Path) -> PolicyVersion:
    """The policy version in an export folder. Raises `DataError` when the export is not complete."""
    card = read_card(folder)
    if card is None:
        return policy_version(folder)
    return PolicyVersion(version=card["version"], path=str(folder.absolute()), parent=card["parent"])


def _reference(
    config: RunConfig,
    run: RunFolder,
    plan: ResourcePlan,
    policy: PolicyVersion,
    round_index: int,
    usable: Sequence[PreferencePair],
) -> pathlib.Path | None:
    """JSON file {pair id: what the policy that the round starts from says of it}, computed once; None if not needed."""
    objective = objectives.build(config.objective.name, config.objective.params)
    parts = parts_of(hidden=objective.needs_kl, features=config.train.uncertainty is not None)
    if not (objective.needs_reference or parts):
        return None
    import ray.data

    pairs_path = run.stage("pairs", round_index) / "pairs.parquet"
    frames_path = run.stage("responses", round_index) / "frames.json"
    kept = kept_paths(
        TensorCache(tensor_cache(config, run) / "reference"),
        usable,
        files.read_json(frames_path),
        policy_version=policy.version,
        dtype=config.model.dtype,
        plain_prompt=config.recipe.plain_prompt,
        parts=parts,
    )
    index_path = run.stage("reference", round_index) / "files.json"
    files.write_json(index_path, kept)
    todo = missing(kept)
    if not todo:
        return index_path
    indices = [index for index, pair in enumerate(files.read_table(pairs_path, PreferencePair)) if pair.id in todo]
    dataset = ray.data.from_items([{"index": index} for index in indices]).map_batches(
        Reference,
        fn_constructor_kwargs={
            "model": config.model.model_dump(mode="json"),
            "path": policy.path,
            "pairs": str(pairs_path),
            "frames": str(frames_path),
            "plain_prompt": config.recipe.plain_prompt,
            "use_gpu": plan.use_gpu,
            "kept": str(index_path),
            "parts": parts,
            "packed": config.train.shared_prefix,
        },
        batch_size=config.train.micro_batch_size,
        compute=ray.data.ActorPoolStrategy(size=plan.train.num),
        num_cpus=plan.train.cpus,
        num_gpus=plan.train.gpus,
    )
    with progress.bar(f"reference, round {round_index}", len(kept), "pair") as shown:
        shown.update(len(kept) - len(todo))
        for row in dataset.iter_rows():
            shown.update(int(row["done"]))
    return index_path


def tensor_cache(config: RunConfig, run: RunFolder) -> pathlib.Path:
    """The run's own cache of what frozen models say, or the one that several runs share by `train.cache_dir`."""
    return pathlib.Path(config.train.cache_dir).absolute() if config.train.cache_dir else run.root / "cache"


def _doubt(
    config: RunConfig,
    uncertainty: UncertaintyConfig,
    run: RunFolder,
    reference: pathlib.Path,
    round_index: int,
    usable: Sequence[PreferencePair],
) -> tuple[str, int]:
    """(JSON file {pair id: label smoothing} of the pairs that stay, how many those are), computed once in a Ray task."""
    import ray

    stage = run.stage("doubt", round_index)
    inputs = {
        "reference": stable_hash(files.read_json(reference)),
        "uncertainty": uncertainty.model_dump(mode="json"),
        "seed": config.seed + round_index,
    }
    path = stage / "doubt.json"
    if not files.is_finished(stage, inputs):
        made = ray.remote(estimate_doubt).remote(
            str(reference), [pair.id for pair in usable], uncertainty, config.seed + round_index
        )
        smoothing = ray.get(made)
        if not smoothing:
            raise DataError(
                f"train.uncertainty dropped all {len(usable)} pairs: the heads vote against every order; set "
                "train.uncertainty.drop_disagreeing to false, or look at the pairs"
            )
        files.write_json(path, smoothing)
        files.finish(stage, inputs)
    return str(path), len(files.read_json(path))


def estimate_doubt(kept: str, pair_ids: Sequence[str], config: UncertaintyConfig, seed: int) -> dict[str, float]:
    """{pair id: label smoothing} from the features that `actors.reference.Reference` left; `kept`: its JSON file of files."""
    import torch

    from vidalign.learning import uncertainty

    paths = files.read_json(pathlib.Path(kept))
    means = torch.stack([read_tensors(paths[pair_id])["features"] for pair_id in pair_ids])  # [P, 2, D]
    doubt = uncertainty.estimate(means[:, 0], means[:, 1], num_passes=config.num_passes, dropout=config.dropout, seed=seed)
    smoothing = doubt.smoothing(config.max_smoothing).tolist()
    return {
        pair_id: value
        for pair_id, value, vote in zip(pair_ids, smoothing, doubt.vote.tolist(), strict=True)
        if vote > 0.5 or not config.drop_disagreeing
    }
