"""A suite from the user's folder to its table, against a small server in place of an endpoint (a real one: test_serving.py)."""

import json
import pathlib
import shutil
import threading

import pytest
from conftest import free_port, vidalign
from json_server import serving

from pipelines import cli
from pipelines.suites import models, tables
from pipelines.suites.run import evaluate_suite
from pipelines.suites.task import describe, read_task
from vidalign import files
from vidalign.config.judging import JudgeConfig
from vidalign.data.suites import SUITES
from vidalign.data.suites.base import Request
from vidalign.data.suites.question import SuiteQuestion
from vidalign.errors import ClusterError, ConfigError, DataError, ModelError
from vidalign.model import rendering
from vidalign.model.checkpoint import CARD
from vidalign.recipes.suite_judging import judge_suite_rows, suite_rows
from vidalign.statistics import wilson_interval
from vidalign.types import FrameSpec
from vidalign.video.decoding import decode

VERSIONS = {"base": "v1", "aligned": "v2"}
JUDGED = {"(0)": "Correct: yes\nScore: 5", "(1)": "Correct: no\nScore: 0", "(2)": "I cannot say."}


class Server:
    """Two models, and a judge: base answers every question with its first option, aligned with its last."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        self.cards = {name: {"policy_version": version} for name, version in VERSIONS.items()}

    def models(self) -> dict:
        cards = [
            {"id": name, "object": "model", "created": 0, "owned_by": "x", "metadata": card}
            for name, card in self.cards.items()
        ]
        return {"object": "list", "data": cards}

    def reply(self, body: dict) -> dict:
        content = body["messages"][0]["content"]
        text = content if isinstance(content, str) else content[-1]["text"]
        with self.lock:
            self.asked.append((body["model"], text))
        if body["model"] == "judge":
            said = next(verdict for start, verdict in JUDGED.items() if f"Question: {start}" in text)
        else:
            options = [line for line in text.splitlines() if line.startswith("(")]
            said = options[0 if body["model"] == "base" else -1]
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        head = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
        return {**head, "choices": [choice], "system_fingerprint": VERSIONS.get(body["model"])}


@pytest.fixture
def server():
    own = Server()

    with serving(lambda body: (200, own.models() if body is None else own.reply(body))) as own.url:
        yield own


@pytest.fixture
def tvbench(tmp_path):
    """Six questions on three videos, four of them answered by the last option and two by the first; and one whose video is missing."""
    folder = tmp_path / "TVBench"
    row = {"question": "Which way?", "candidates": ["Left.", "Right.", "Up."]}
    rows = [{**row, "video": f"{i // 2}.mp4", "answer": "Up." if i < 4 else "Left."} for i in range(6)]
    (folder / "json").mkdir(parents=True)
    (folder / "json" / "moving_direction.json").write_text(json.dumps([*rows, {**rows[0], "video": "gone.mp4"}]))
    videos = folder / "video" / "moving_direction"
    videos.mkdir(parents=True)
    for name in ("0.mp4", "1.mp4", "2.mp4"):
        (videos / name).write_bytes(b"bytes of a video")
    return folder


def run(folder, asked, name="tvbench", **options):
    task = read_task(name, Request(folder=folder, **options), asked)
    return task, evaluate_suite(task, asked)


def test_base_and_aligned_side_by_side(server, tvbench, tmp_path):
    asked = models.of_endpoint(server.url, out=str(tmp_path / "out"))
    assert asked.versions == VERSIONS
    task, scores = run(tvbench, asked)
    assert (scores["num_questions"], scores["num_missing"]) == (7, 1)
    assert [video.rpartition("/")[2] for video in scores["missing_videos"]] == ["gone.mp4"]
    overall = {name: model["scores"][0] for name, model in scores["models"].items()}
    assert {name: (score["value"], score["n"]) for name, score in overall.items()} == {
        "base": (2 / 6, 6),
        "aligned": (4 / 6, 6),
    }
    assert scores["difference"]["scores"][0]["value"] == pytest.approx(2 / 6)
    folder = tmp_path / "out" / "tvbench"
    page = (folder / "table.md").read_text()
    assert "| overall | 6 | 33.3 % (0.0 to 100.0) | 66.7 % (0.0 to 100.0) | +33.3 pt (−100.0 to +100.0) |" in page
    assert (
        f"videos that are not there: 1 ({tvbench}/video/moving_direction/gone.mp4); questions on them, not asked: 1" in page
    )
    assert "base (policy v1): answered 6 of 7 questions" in page
    assert "daniel-cores/tvbench: infer.ipynb" in page
    marks = files.read_jsonl(folder / "aligned-marks.jsonl")
    assert [(mark["id"], mark["reply"], mark["values"]) for mark in marks[:2]] == [
        ("moving_direction-0000", "(C) Up.", {"correct": 1.0}),
        ("moving_direction-0001", "(C) Up.", {"correct": 1.0}),
    ]
    assert len(server.asked) == 12
    assert evaluate_suite(task, asked) == scores
    assert len(server.asked) == 12


def test_a_rerun_asks_only_what_is_missing(server, tvbench, tmp_path):
    asked = models.of_endpoint(server.url, ["base"], out=str(tmp_path / "out"))
    run(tvbench, asked)
    (tvbench / "video" / "moving_direction" / "gone.mp4").write_bytes(b"bytes of a video")
    log = tmp_path / "out" / "tvbench" / "base.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-2]))
    _, scores = run(tvbench, asked)
    assert len(server.asked) == 6 + 3  # the two that were lost, and the one whose video has come
    assert (scores["num_missing"], scores["models"]["base"]["num_answers"], scores["difference"]) == (0, 7, None)
    both = models.of_endpoint(server.url, out=str(tmp_path / "out"))
    run(tvbench, both)
    assert [name for name, _ in server.asked[9:]] == ["aligned"] * 7
    changed = models.of_endpoint(server.url, overrides=["evaluate.max_new_tokens=9"], out=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"base\.jsonl was begun with another max_new_tokens; delete"):
        run(tvbench, changed)


def test_what_a_run_would_do(server, tvbench, tmp_path):
    asked = models.of_endpoint(server.url, out=str(tmp_path / "out"))
    text = describe(read_task("tvbench", Request(folder=tvbench), asked), asked)
    assert f"TVBench: 7 questions in {tvbench}, asked of base, aligned" in text
    assert f"videos that are not there: 1, first {tvbench}/video/moving_direction/gone.mp4; questions on them: 1" in text
    assert f"12 questions still to ask; results go to {tmp_path / 'out' / 'tvbench'}" in text
    assert not server.asked


def test_suites_that_cannot_be_asked(server, tvbench, tmp_path):
    asked = models.of_endpoint(server.url, out=str(tmp_path / "out"))
    for video in (tvbench / "video" / "moving_direction").iterdir():
        video.unlink()
    with pytest.raises(
        DataError, match=r"none of the 4 videos of TVBench is there, first .*/video/moving_direction/0\.mp4; unpack"
    ):
        run(tvbench, asked)
    row = {"question": "q", "question_id": "1", "question_type": "x"}
    (tmp_path / "test_q.json").write_text(json.dumps([{**row, "video_name": "v"}] * 2))
    (tmp_path / "test_a.json").write_text(json.dumps([{"answer": "a", "question_id": "1"}]))
    (tmp_path / "v.mp4").touch()
    with pytest.raises(DataError, match=r"test_q\.json: row 2: the id '1' is also that of .*test_q\.json: row 1; give"):
        run(tmp_path, asked, "msvd-qa")
    (tmp_path / "test_q.json").write_text(json.dumps([{**row, "video_name": "v"}]))
    with pytest.raises(
        ConfigError, match=r"MSVD-QA is scored by a judge, and evaluate\.judge is not set; set its kind and model$"
    ):
        run(tmp_path, asked, "msvd-qa")
    absent = ["evaluate.judge.kind=vllm", f"evaluate.judge.model={tmp_path}/none"]
    with pytest.raises(ModelError, match=r"evaluate\.judge\.model='.*/none': no model folder at"):
        run(tmp_path, models.of_endpoint(server.url, overrides=absent), "msvd-qa")
    sees = [
        "evaluate.judge.kind=openai",
        "evaluate.judge.model=m",
        "evaluate.judge.base_url=http://x/v1",
        "evaluate.judge.sees=video",
    ]
    seeing = models.of_endpoint(server.url, overrides=sees, out=str(tmp_path / "out"))
    with pytest.raises(
        ConfigError, match=r"MSVD-QA is scored by a judge of texts, and evaluate\.judge has kind=openai and sees=video"
    ):
        run(tmp_path, seeing, "msvd-qa")
    questions = tmp_path / "questions"
    questions.mkdir()
    choice = {"question": "What?\nA. x\nB. y", "answer": "A. x"}
    for name in ("multi-choice", "captioning"):
        (questions / f"{name}.json").write_text(json.dumps({"v": {"action": [choice]}}))
    with pytest.raises(
        ConfigError, match=r"tasks captioning of TempCompass are scored by a judge.*--task multi-choice --task yes_no"
    ):
        run(tmp_path, asked, "tempcompass")


def test_parts_of_videos_are_asked_about_where_the_endpoint_reads_them(server, tvbench, tmp_path):
    row = {"video": "0.mp4", "question": "Then?", "candidates": ["A", "B"], "answer": "A", "start": 1.0, "end": 2.0}
    (tvbench / "json" / "action_sequence.json").write_text(json.dumps([row]))
    (tvbench / "video" / "action_sequence").symlink_to(tvbench / "video" / "moving_direction")
    asked = models.of_endpoint(server.url, out=str(tmp_path / "out"))
    with pytest.raises(
        ConfigError, match=r"folders of frames \(action_sequence\), which only vidalign's own .* --task moving_direction"
    ):
        read_task("tvbench", Request(folder=tvbench), asked)
    read_task("tvbench", Request(folder=tvbench, tasks=("moving_direction",)), asked)
    for card in server.cards.values():
        card["frame_spec"] = FrameSpec(num_frames=4).to_row()
    asked = models.of_endpoint(server.url, out=str(tmp_path / "out"))
    assert len(read_task("tvbench", Request(folder=tvbench), asked).present) == 7


def test_endpoints_and_models_that_are_not_there(server):
    with pytest.raises(ConfigError, match=r"has no model 'aligend'; it has base, aligned"):
        models.of_endpoint(server.url, ["aligend"])
    with pytest.raises(ClusterError, match=r"no OpenAI endpoint answers at http://127\.0\.0\.1:9/v1 "):
        models.of_endpoint("http://127.0.0.1:9/v1")
    with pytest.raises(
        ConfigError, match=r"override 'video\.num_frames=4': a suite at a running endpoint does not use video"
    ):
        models.of_endpoint(server.url, overrides=["video.num_frames=4"])
    server.cards = {"x": {}}
    assert models.of_endpoint(server.url).notes == (
        f"{server.url} does not name policy versions, so a change of model is not noticed",
    )


def test_the_models_of_a_run_that_is_not_trained_and_of_a_checkpoint(model_path, tmp_path):
    config = tmp_path / "align.yaml"
    raw = {
        "run_dir": str(tmp_path / "run"),
        "model": {"path": model_path},
        "data": {"train": "train.jsonl"},
        "video": {"num_frames": 4},
        "evaluate": {"max_new_tokens": 24},
    }
    config.write_text(json.dumps(raw))
    asked = models.of_target(str(config))
    assert list(asked.versions) == ["base"]
    assert asked.folder == tmp_path / "run" / "rounds" / "0" / "suites"
    assert asked.frame_spec is not None
    assert (asked.frame_spec.num_frames, asked.evaluate.max_new_tokens) == (4, 24)
    with pytest.raises(
        ConfigError, match=r"a suite does not use train, only model, video, serve, cluster, evaluate and rounds"
    ):
        models.of_target(str(config), ["train.num_epochs=2"])
    for refused in (models.of_target, models.of_endpoint):
        with pytest.raises(ConfigError, match=r"a suite is scored by its own rule, which evaluate\.scorer does not change"):
            refused(str(config), overrides=["evaluate.scorer=f1"])
    own = models.of_target(model_path, ["evaluate.max_new_tokens=8"], out=str(tmp_path / "mine"))
    assert (list(own.versions), own.folder, own.evaluate.max_new_tokens) == (["model"], tmp_path / "mine", 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "x.yaml", "--data", "d"], "--data is an option of suites; name one with --suite"),
        (["evaluate"], "vidalign evaluate needs a config file"),
        (["evaluate", "x.yaml", "--suite", "mvbench"], "--suite needs --data FOLDER"),
        (["evaluate", "--suite", "mvbench", "--data", "d"], "give one of the two"),
        (["evaluate", "r", "--suite", "mvbench", "--data", "d", "--endpoint", "http://x/v1"], "give one of the two"),
        (
            ["evaluate", "r", "--suite", "mvbench", "--data", "d", "--model", "base"],
            "--model belongs to --endpoint; leave it out",
        ),
        (["evaluate", "r", "--suite", "mvbench", "--data", "d", "--media-root", "m"], "set serve.media_root=FOLDER"),
    ],
)
def test_options_that_do_not_go_together(capsys, arguments, message):
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_the_command_prints_the_table(server, tvbench, tmp_path, capsys):
    at = ["--data", str(tvbench), "--endpoint", server.url, "--out", str(tmp_path / "out")]
    done = cli.main(["evaluate", "--suite", "tvbench", *at, "evaluate.max_new_tokens=8"])
    printed = capsys.readouterr()
    assert done == 0, printed.err
    assert printed.out.startswith("TVBench: share of questions whose option is named\n")
    assert "overall" in printed.out
    assert f"table    {tmp_path / 'out' / 'tvbench' / 'table.md'}" in printed.out
    assert "replies of TVBench may take 16 tokens, and evaluate.max_new_tokens=8 cuts them off" in printed.err


def score(value, low, high, top=1.0):
    return {"value": value, "low": low, "high": high, "top": top}


def test_numbers_as_they_are_shown():
    low, high = wilson_interval(1, 4)
    assert tables.shown(score(0.25, low, high)) == "25.0 % (4.6 to 69.9)"
    assert tables.shown(score(-0.021, -0.05, 0.01), signed=True) == "−2.1 pt (−5.0 to +1.0)"
    assert tables.shown(score(3.2, None, None, 5.0)) == "3.20 of 5"
    assert tables.shown(score(0.5, 0.2, 0.9, 5.0), signed=True) == "+0.50 (+0.20 to +0.90)"
    assert tables.shown(score(None, None, None)) == "–"


# The judge


def test_a_judge_is_asked_again_once_and_never_guessed():
    facts = {"question": "what moves?"}
    questions = [SuiteQuestion(id=f"q{i}", video="v", prompt="p", answer="dot", facts=facts) for i in range(3)]
    rows = [json.loads(row) for row in suite_rows("msvd-qa", [(q, f" reply {q.id} ") for q in questions])]
    calls: list[list] = []
    answers = [["Correct: yes\nScore: 5", "Yes.", "Hm."], ["Correct: no\nScore: 1", "Hm again."]]

    def chat(conversations):
        calls.append(list(conversations))
        return answers[len(calls) - 1]

    config = JudgeConfig(kind="openai", model="m", base_url="http://x/v1")
    made = judge_suite_rows(rows, config, chat, "openai:m:00000000")
    assert [row.get("values") for row in made] == [{"correct": 1.0, "score": 5.0}, {"correct": 0.0, "score": 1.0}, None]
    judge = SUITES["msvd-qa"].judge
    assert judge is not None
    assert {row["judge"] for row in made} == {f"openai:m:{judge.version}"}
    assert made[1]["explanation"] == "Yes.\nCorrect: no\nScore: 1"
    assert "Answer to judge: reply q0\n" in calls[0][0][0]["content"]
    assert [turn["role"] for turn in calls[1][0]] == ["user", "assistant", "user"]
    assert judge_suite_rows([], config, chat, "openai:m:00000000") == []


@pytest.mark.heavy
def test_replies_are_judged_once_by_the_model_behind_an_endpoint(server, tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"bytes of a video")
    asked_of = [{"video_name": "v", "question": f"({i}) what moves?", "question_id": str(i)} for i in range(3)]
    (tmp_path / "test_q.json").write_text(json.dumps(asked_of))
    (tmp_path / "test_a.json").write_text(
        json.dumps([{"answer": f"({i}) what moves?", "question_id": str(i)} for i in (0, 1, 2)])
    )
    overrides = ["evaluate.judge.kind=openai", "evaluate.judge.model=judge", f"evaluate.judge.base_url={server.url}"]
    asked = models.of_endpoint(server.url, ["base"], [*overrides, "cluster.num_cpus=2"], out=str(tmp_path / "out"))
    task, scores = run(tmp_path, asked, "msvd-qa")
    model = scores["models"]["base"]
    assert [(score["value"], score["n"]) for score in model["scores"]] == [(0.5, 2), (2.5, 2)]
    assert model["num_unjudged"] == 1
    assert model["judge"].startswith("openai:judge:")
    num_asked = len(server.asked)
    assert num_asked == 3 + 3 + 1  # three questions, three verdicts, and one verdict that was asked for again
    assert evaluate_suite(task, asked) == scores
    assert len(server.asked) == num_asked


def test_prompts_that_do_not_fit_are_refused_before_anything_is_served(shapes, model_path, tmp_path, capsys):
    """The number of tokens is that of the prompt as it is rendered for the model."""
    videos = tmp_path / "video" / "moving_direction"
    videos.mkdir(parents=True)
    held_out = json.loads((shapes / "heldout.jsonl").read_text().splitlines()[0])
    shutil.copy(shapes / held_out["video"], videos / "a.mp4")
    row = {"video": "a.mp4", "question": "Which way?", "candidates": ["Left.", "Right."], "answer": "Left."}
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "moving_direction.json").write_text(
        json.dumps([row, {**row, "question": "Which way does it move?"}])
    )
    asked = models.of_target(model_path, out=str(tmp_path / "out"))
    task = read_task("tvbench", Request(folder=tmp_path, frame_spec=asked.frame_spec), asked)
    clip = decode(str(videos / "a.mp4"), asked.frame_spec)
    processor = rendering.load_processor(model_path)
    needed = rendering.render_prompt(processor, task.questions[1].prompt, clip).length + 16
    dry = ["evaluate", model_path, "--suite", "tvbench", "--data", str(tmp_path), "--dry-run", "evaluate.max_new_tokens=16"]
    assert cli.main([*dry, f"model.max_model_len={needed}"]) == 0
    assert f"at most {needed:,} of model.max_model_len={needed:,} tokens" in capsys.readouterr().out
    assert cli.main([*dry, f"model.max_model_len={needed - 1}"]) == 2
    refused = capsys.readouterr()
    assert f"raise model.max_model_len to {needed}" in refused.err
    assert "moving_direction.json: row 2, " in refused.err
    assert not refused.out


@pytest.mark.long
@pytest.mark.heavy
def test_a_suite_is_asked_of_base_and_aligned_of_a_run(shapes, model_path, tmp_path):
    """TVBench's form over the held-out videos, with a part of a video; the aligned policy is the base under another version."""
    run_folder, data = tmp_path / "run", tmp_path / "data"
    aligned = run_folder / "rounds" / "0" / "model"
    shutil.copytree(model_path, aligned)
    (aligned / CARD).write_text(json.dumps({"version": "aligned-version", "parent": ""}))
    port = free_port()
    raw = {
        "run_dir": str(run_folder),
        "model": {"path": model_path, "dtype": "float32", "max_model_len": 512},
        "data": {"train": "none.jsonl"},
        "video": {"num_frames": 8, "height": 56, "width": 56},
        "evaluate": {"max_new_tokens": 16},
        "serve": {"port": port},
    }
    (run_folder / "config.yaml").write_text(json.dumps(raw))
    held_out = [json.loads(line) for line in (shapes / "heldout.jsonl").read_text().splitlines()]
    ways = [f"It moves {way}." for way in ("left", "right", "up", "down")]
    row = {"question": held_out[0]["question"], "candidates": ways, "answer": ways[0]}
    names = list(dict.fromkeys(pathlib.Path(held["video"]).name for held in held_out))[:4]
    published = {
        "moving_direction": [{**row, "video": name} for name in [*names, "gone.mp4"]],
        "action_sequence": [{**row, "video": names[0], "start": 0.5, "end": 1.5}],
    }
    for task, rows in published.items():
        (data / "json").mkdir(parents=True, exist_ok=True)
        (data / "json" / f"{task}.json").write_text(json.dumps(rows))
        (data / "video").mkdir(exist_ok=True)
        (data / "video" / task).symlink_to(shapes / "videos")
    command = ["evaluate", str(run_folder), "--suite", "tvbench", "--data", str(data)]
    done = vidalign(*command)
    assert done.returncode == 0, done.stderr[-4000:]
    folder = run_folder / "rounds" / "0" / "suites" / "tvbench"
    scores = files.read_json(folder / "scores.json")
    assert {name: (m["policy_version"], m["num_answers"]) for name, m in scores["models"].items() if name == "aligned"} == {
        "aligned": ("aligned-version", 5)
    }
    assert scores["models"]["base"]["num_answers"] == 5
    assert [pathlib.Path(video).name for video in scores["missing_videos"]] == ["gone.mp4"]
    assert scores["difference"]["scores"][0]["value"] == 0.0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracked = EventAccumulator(str(run_folder / "tensorboard"))
    tracked.Reload()
    measure = scores["models"]["base"]["scores"][0]
    assert tracked.Scalars(f"suite/tvbench/{measure['measure']}/base")[-1].value == pytest.approx(measure["value"])
    replies = {
        name: {mark["video"]: mark["reply"] for mark in files.read_jsonl(folder / f"{name}-marks.jsonl")}
        for name in ("base", "aligned")
    }
    assert replies["base"] == replies["aligned"]
    assert all(replies["base"].values())
    assert sum("#t=0.5,1.5" in video for video in replies["base"]) == 1
    again = vidalign(*command)  # nothing is served for it
    assert again.stdout.splitlines() == [line for line in done.stdout.splitlines() if "(raylet)" not in line]  # Ray's own
    assert "start endpoint" not in again.stderr
