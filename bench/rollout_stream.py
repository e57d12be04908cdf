"""The sides of `bench.rollout` that stream on Ray, a process each: `python -m bench.rollout_stream SIDE FOLDER`."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import sys
import tempfile
import time
from typing import Any

from bench import processes
from bench.built_in import MAX_NEW_TOKENS, MODEL, make_run
from bench.rollout_recipe import TEMPERATURE, TOP_P, hint, reflect, winners
from bench.turns import results_in_turns
from vidalign import files
from vidalign.config.loading import load_config
from vidalign.config.run import RunConfig
from vidalign.data.reading import read_examples
from vidalign.model.rendering import load_processor, prompt_text
from vidalign.types import Response
from vidalign.video.frame_cache import load_clip

RAY_CANDIDATES = 4
CHUNK = 64  # examples of ours, requests of ray.data.llm


def stream_ours(work: pathlib.Path) -> dict[str, Any]:
    """The rollout stage as `vidalign rollout` runs it, from files to part files; its losers and scores are left out."""
    from cluster.session import connect
    from pipelines.inputs import read_inputs
    from pipelines.rounds import Rounds, resource_plan
    from vidalign.files import RunFolder
    from vidalign.model.checkpoint import policy_version

    config = read_config(work)
    run = RunFolder.open(config.run_dir)
    inputs, base = read_inputs(config.data, choice=config.video.choice.frame_choice()), policy_version(config.model.path)
    with connect(config.cluster) as resources:
        rounds = Rounds(config=config, run=run, plan=resource_plan(config, resources), inputs=inputs, base=base)
        stage = dataclasses.replace(rounds.rollout(0), recipe=winners(RAY_CANDIDATES))
        stage.generate()
    parts = sorted((stage.folder / "parts").glob("*.json"))
    ends = [part.stat().st_mtime for part in parts]
    rows = [files.read_json(part) for part in parts]
    waiting, working = (sum(row["engine_s"][name] for row in rows[1:]) for name in ("waiting", "working"))
    return {
        "replies_per_s": sum(row["num_responses"] for row in rows[1:]) / (ends[-1] - ends[0]),
        "waiting_s": waiting,
        "working_s": working,
        "engine_start_s": rows[0]["engine_s"]["starting"],
        "idle": waiting / (waiting + working),
    }


def stream_ray_data_llm(work: pathlib.Path) -> dict[str, Any]:
    """ray.data.llm on the rows that ours made; the first quarter of the outputs starts the clock."""
    from cluster.session import connect

    with connect(read_config(work).cluster):
        import ray
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig

        processor = build_processor(
            vLLMEngineProcessorConfig(
                model_source=str(pathlib.Path(MODEL.path).absolute()),
                engine_kwargs={
                    "dtype": MODEL.dtype,
                    "max_model_len": MODEL.max_model_len,
                    "enforce_eager": True,
                    "enable_chunked_prefill": False,
                    "max_num_batched_tokens": 4096,
                    "block_size": 32,
                    "limit_mm_per_prompt": {"video": 1, "image": 0},
                },
                placement_group_config={"bundles": [{"CPU": 0.5}]},
                runtime_env={
                    "env_vars": {
                        "VLLM_CPU_KVCACHE_SPACE": "1",
                        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                        "OMP_NUM_THREADS": "2",
                        "VLLM_LOGGING_LEVEL": "ERROR",
                        "VLLM_NO_USAGE_STATS": "1",
                    }
                },
                log_engine_metrics=False,
                batch_size=CHUNK,
                concurrency=1,
                chat_template_stage={"enabled": False},
                tokenize_stage={"enabled": False},
                detokenize_stage={"enabled": False},
                prepare_multimodal_stage={"enabled": False},
            ),
            preprocess=as_request,
            postprocess=lambda row: {"reply": row["generated_text"]},
        )
        rows = [json.loads(line) for line in (work / "requests.jsonl").read_text().splitlines()]
        stream = processor(ray.data.from_items(rows, override_num_blocks=max(1, len(rows) // CHUNK)))
        arrivals: list[float] = []
        for _ in stream.iter_rows():
            arrivals.append(time.perf_counter())
        assert len(arrivals) == len(rows)
        mark = len(rows) // 4
        return {"replies_per_s": (len(rows) - mark) / (arrivals[-1] - arrivals[mark - 1])}


def as_request(row: dict[str, Any]) -> dict[str, Any]:
    """A row as ray.data.llm takes it."""
    clip = load_clip(row["frames_path"])
    return {
        "prompt": row["prompt"],
        "multimodal_data": {"video": [(clip.frames, clip.metadata())]},
        "sampling_params": {
            "temperature": TEMPERATURE,
            "top_p": TOP_P,
            "max_tokens": MAX_NEW_TOKENS,
            "seed": row["seed"],
            "logprobs": 0,
        },
    }


def write_requests(work: pathlib.Path) -> int:
    """The rows for ray.data.llm: both turns of every candidate that ours has just made."""
    processor = load_processor(MODEL.path)
    by_id = {example.id: example for example in read_examples(str(work / "data/train.jsonl"))}
    parts = sorted((work / "run/rounds/0/responses/parts").glob("*.json"))
    frames = {row["video"]: row["frames_path"] for part in parts for row in files.read_json(part)["decoded"]}
    made = [response for part in parts for response in files.read_table(part.with_suffix(".parquet"), Response)]
    first = {(r.example_id, r.candidate): r.text for r in made if r.kind == "hinted"}
    with (work / "requests.jsonl").open("w", encoding="utf-8") as file:
        for r in made:
            example = by_id[r.example_id]
            text = hint(example) if r.kind == "hinted" else reflect(example, first[r.example_id, r.candidate])
            row = {"prompt": prompt_text(processor, text), "frames_path": frames[example.video], "seed": r.seed}
            file.write(json.dumps(row) + "\n")
    return len(made)


def on_ray(rounds: int, num_examples: int) -> dict[str, Any]:
    """Rates of ours and of ray.data.llm, a process each, in turns."""
    found: dict[str, Any] = {"num_candidates": RAY_CANDIDATES}
    with tempfile.TemporaryDirectory() as temporary:
        work = pathlib.Path(temporary)
        raw = make_run(work, {"train": num_examples}, rollout={"batch_size": min(CHUNK, num_examples // 2)})
        files.write_json(work / "config.json", raw)  # JSON is YAML

        def ours() -> dict[str, Any]:
            shutil.rmtree(work / "run", ignore_errors=True)
            row = processes.result_of("bench.rollout_stream", "ours", work)
            if "num_replies" not in found:
                found["num_replies"] = write_requests(work)
            return row

        def other() -> dict[str, Any]:
            return processes.result_of("bench.rollout_stream", "ray.data.llm", work)

        return found | results_in_turns({"ours": ours, "ray.data.llm": other}, rounds, warm_up=0, show=True)


def read_config(work: pathlib.Path) -> RunConfig:
    return load_config(work / "config.json")


if __name__ == "__main__":
    side, folder = sys.argv[1:]
    processes.tell({"ours": stream_ours, "ray.data.llm": stream_ray_data_llm}[side](pathlib.Path(folder)))
