"""Evaluation over HTTP, against a small server that speaks the endpoint's protocol (the real one: tests/test_serving.py)."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import pathlib
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

import numpy as np
import pytest
from json_server import Quiet, serving

from cluster.plan import plan_evaluation
from cluster.resources import ClusterResources
from pipelines import patience
from pipelines.asking import evaluate, evaluate_each
from pipelines.media_urls import noise_clips, video_url
from pipelines.patience import MAX_ATTEMPTS
from serving.app import Endpoint
from serving.refusals import unusable_message
from serving.spec import EndpointSpec
from vidalign import files
from vidalign.config.run import EvaluateConfig, ModelConfig, ServeConfig
from vidalign.errors import ClusterError, ConfigError, DataError, ModelError, VideoError
from vidalign.records import Turn
from vidalign.types import EvalAnswer, Example, FrameSpec, PolicyVersion
from vidalign.video import decoding

CONFIG = EvaluateConfig(concurrency=3, max_new_tokens=8, request_timeout_s=10)


class Server:
    """Answers every question with the text after "say ", and misbehaves where a question asks it to.

    After `hold(n)`, no request is answered before n of them are there at once.
    """

    def __init__(self) -> None:
        self.requests: list[dict] = []
        self.in_flight = self.most_in_flight = 0
        self.attempts: collections.Counter[str] = collections.Counter()
        self.lock = threading.Lock()
        self.company: threading.Barrier | None = None
        self.on_first: Callable[[], None] = lambda: None

    def hold(self, num_requests: int, on_first: Callable[[], None]) -> None:
        self.company, self.on_first = threading.Barrier(num_requests, timeout=5), on_first

    def reply(self, body: dict) -> tuple[int, dict]:
        question = body["messages"][-1]["content"][-1]["text"]
        with self.lock:
            if not self.requests:
                self.on_first()
            self.requests.append(body)
            self.attempts[question] += 1
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        if self.company is not None:
            self.company.wait()
        with self.lock:
            self.in_flight -= 1
        if question == "busy at first" and self.attempts[question] < 3:
            return 503, {"error": {"message": "no replica is ready", "code": 503}}
        if question == "always busy":
            return 503, {"error": {"message": "no replica is ready", "code": 503}}
        if question == "broken video":
            return 400, {"error": {"message": unusable_message(VideoError("truncated", "it's cut")), "code": 400}}
        if question == "too long":
            return 400, {"error": {"message": "the prompt has 9000 tokens but the context 4096", "code": 400}}
        version = "v2" if question == "other version" else "v1"
        message = {"role": "assistant", "content": question.removeprefix("say ")}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        head = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
        return 200, {**head, "choices": [choice], "system_fingerprint": version}


@pytest.fixture
def served():
    server = Server()

    with serving(server.reply) as url:
        server.endpoint = Endpoint(base_url=url, versions={"base": "v1"})
        yield server


def _example(index: int, question: str, tmp_path, answer: str = "left", video: str = "clip.mp4") -> Example:
    path = tmp_path / video
    if video == "clip.mp4":
        path.write_bytes(b"bytes of a video")
    return Example(id=f"e{index}", video=str(path), question=question, answer=answer, category="motion")


def _evaluate(served, examples, stage, **options):
    options = {"config": CONFIG, **options}
    return evaluate(examples, served.endpoint, model_id="base", stage=stage, progress=False, **options)


def test_answers_are_scored_and_written_in_the_order_of_the_examples(served, tmp_path):
    examples = [_example(i, "say Left." if i % 2 else "say right", tmp_path) for i in range(8)]
    _evaluate(served, examples[4:], tmp_path / "eval")  # so that the log is in another order
    answers = _evaluate(served, examples, tmp_path / "eval").answers
    assert [answer.example_id for answer in answers] == [f"e{i}" for i in range(8)]
    assert [answer.correct for answer in answers] == [False, True] * 4
    assert answers[1].text == "Left."
    assert {(answer.model_id, answer.policy_version) for answer in answers} == {("base", "v1")}
    assert all(answer.latency_s > 0 for answer in answers)
    assert files.read_table(tmp_path / "eval" / "base.parquet", EvalAnswer) == answers
    assert {(body["temperature"], body["max_tokens"], body["model"]) for body in served.requests} == {(0, 8, "base")}
    assert {body["repetition_penalty"] for body in served.requests} == {1.0}  # a model's own is not that of its rollouts


def test_as_many_questions_are_in_flight_as_the_config_says(served, tmp_path, monkeypatch):
    begun, begun_before_the_first_request_arrived = [], []

    def counted(*arguments):
        begun.append(arguments)
        return video_url(*arguments)

    monkeypatch.setattr("pipelines.media_urls.video_url", counted)  # what every question begins with
    served.hold(CONFIG.concurrency, on_first=lambda: begun_before_the_first_request_arrived.extend(begun))
    examples = [_example(i, f"say {i}", tmp_path) for i in range(4 * CONFIG.concurrency)]
    answers = _evaluate(served, examples, tmp_path / "eval").answers
    assert [answer.text for answer in answers] == [str(i) for i in range(len(examples))]
    assert len(begun_before_the_first_request_arrived) == CONFIG.concurrency
    assert served.most_in_flight == CONFIG.concurrency
    assert len(served.requests) == len(begun) == len(examples)


def test_models_with_gpus_of_their_own_do_not_wait_for_each_other(served, tmp_path):
    served.hold(2 * CONFIG.concurrency, on_first=lambda: None)
    examples = [_example(i, f"say {i}", tmp_path) for i in range(2 * CONFIG.concurrency)]
    both = dataclasses.replace(served.endpoint, versions={"base": "v1", "aligned": "v1"})
    options = {"stage": tmp_path / "eval", "config": CONFIG, "progress": False}
    found = evaluate_each(examples, both, [("base", False), ("aligned", False)], at_once=True, **options)
    assert [[answer.text for answer in one.answers] for one in found] == [[str(i) for i in range(len(examples))]] * 2
    assert served.most_in_flight == 2 * CONFIG.concurrency


def test_an_error_of_one_model_is_raised_as_it_is_and_ends_the_others(served, tmp_path):
    both = dataclasses.replace(served.endpoint, versions={"base": "v1", "aligned": "v2"})
    options = {"stage": tmp_path / "eval", "config": CONFIG, "progress": False}
    with pytest.raises(ClusterError, match="answered as policy v1, expected v2"):
        evaluate_each([_example(0, "say 0", tmp_path)], both, [("base", False), ("aligned", False)], at_once=True, **options)


@pytest.mark.parametrize(("in_turn", "started"), [(True, [["aligned"]]), (False, [["base", "aligned"]])])
def test_an_endpoint_is_started_for_those_models_that_are_asked(monkeypatch, model_path, in_turn, started):
    from pipelines import endpoints

    seen = []

    @contextlib.contextmanager
    def endpoint(spec, on_wait, say):
        seen.append(list(spec.models))
        yield Endpoint(base_url="http://up", versions=dict.fromkeys(spec.models, "v"))
        seen.append("stopped")

    monkeypatch.setattr(endpoints, "endpoint", endpoint)
    plan = plan_evaluation(ServeConfig(), in_turn, ClusterResources(num_cpus=8), 2)
    models = {name: PolicyVersion(version="v", path=model_path, parent="") for name in ("base", "aligned")}
    spec = EndpointSpec(
        models=models, model=ModelConfig(path=model_path), serve=ServeConfig(), plan=plan, frame_spec=FrameSpec(num_frames=8)
    )
    asked = endpoints.at_each(spec, {"aligned"}, lambda running: (list(running.versions), running.base_url))
    assert asked == ([(["base"], ""), (["aligned"], "http://up")] if in_turn else [(["base", "aligned"], "http://up")])
    assert seen == [*started, "stopped"]
    assert endpoints.at_each(spec, set(), lambda running: running.base_url) == [""] * len(asked)


def test_the_prompt_template_is_the_one_of_training(served, tmp_path):
    _evaluate(served, [_example(0, "say left", tmp_path)], tmp_path / "eval", prompt="Look. {question}")
    content = served.requests[0]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["video_url", "text"]
    assert content[1]["text"] == "Look. say left"


def test_a_conversation_and_parts_of_videos_are_asked_as_in_training(served, tmp_path):
    example = _example(0, "say left", tmp_path)
    part = f"{pathlib.Path(example.video).as_uri()}#t=1,2"
    turns = (Turn(role="user", content="What moves?"), Turn(role="assistant", content="A circle."))
    example = dataclasses.replace(example, video=part, videos=(part, example.video), system="Brief.", turns=turns)
    [answer] = _evaluate(served, [example], tmp_path / "eval").answers
    system, first, reply, last = served.requests[0]["messages"]
    assert [message["role"] for message in (system, first, reply, last)] == ["system", "user", "assistant", "user"]
    urls = [part["video_url"]["url"] for part in first["content"][:2]]
    assert urls[0] == f"{urls[1]}#t=1,2"
    assert last["content"] == [{"type": "text", "text": "say left"}]
    assert answer.context == example.context
    gone = dataclasses.replace(example, id="gone", videos=(part, str(tmp_path / "gone.mp4")))
    [row] = _evaluate(served, [gone], tmp_path / "gone").quarantined
    assert (row.uri, row.reason) == (f"{part}, {tmp_path / 'gone.mp4'}", "missing")


def test_a_second_run_asks_nothing_and_a_killed_one_asks_only_what_is_missing(served, tmp_path):
    examples = [_example(i, f"say left {i}", tmp_path) for i in range(6)]
    stage = tmp_path / "eval"
    first = _evaluate(served, examples, stage)
    assert _evaluate(served, examples, stage) == first
    assert len(served.requests) == 6
    log = stage / "base.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:4]) + lines[4][:20])  # the header, three results, and half of a fourth
    (stage / "base.parquet").unlink()
    again = _evaluate(served, examples, stage)
    assert len(served.requests) == 6 + 3
    assert [answer.text for answer in again.answers] == [answer.text for answer in first.answers]


def test_a_changed_question_is_asked_again_and_a_changed_prompt_is_refused(served, tmp_path):
    stage = tmp_path / "eval"
    _evaluate(served, [_example(0, "say left", tmp_path), _example(1, "say left", tmp_path)], stage)
    changed = [_example(0, "say up", tmp_path), _example(1, "say left", tmp_path)]
    assert [answer.text for answer in _evaluate(served, changed, stage).answers] == ["up", "left"]
    assert len(served.requests) == 3
    with pytest.raises(ConfigError, match=r"base\.jsonl was begun with another prompt; delete"):
        _evaluate(served, changed, stage, prompt="Now: {question}")


def test_a_busy_endpoint_is_asked_again_and_at_last_given_up(served, tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "FIRST_BACKOFF_S", 0.01)
    assert _evaluate(served, [_example(0, "busy at first", tmp_path)], tmp_path / "a").answers[0].text == "busy at first"
    assert served.attempts["busy at first"] == 3
    with pytest.raises(ClusterError, match=r"example e1: http://.* failed 5 times.*no replica is ready"):
        _evaluate(served, [_example(1, "always busy", tmp_path)], tmp_path / "b")
    assert served.attempts["always busy"] == MAX_ATTEMPTS


def test_an_endpoint_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "FIRST_BACKOFF_S", 0.01)
    gone = Endpoint(base_url="http://127.0.0.1:9/v1", versions={"base": "v1"})
    with pytest.raises(ClusterError, match=r"example e0: http://127\.0\.0\.1:9/v1 failed 5 times"):
        evaluate([_example(0, "q", tmp_path)], gone, model_id="base", stage=tmp_path, config=CONFIG, progress=False)


def test_a_video_at_fault_is_quarantined_and_not_scored(served, tmp_path):
    examples = [
        _example(0, "say left", tmp_path),
        _example(1, "broken video", tmp_path),
        _example(2, "say left", tmp_path, video="gone.mp4"),
    ]
    result = _evaluate(served, examples, tmp_path / "eval")
    assert [answer.example_id for answer in result.answers] == ["e0"]
    assert [(row.reason, row.message) for row in result.quarantined] == [
        ("truncated", "it's cut"),
        ("missing", f"no file at {tmp_path / 'gone.mp4'}"),
    ]
    assert _evaluate(served, examples, tmp_path / "eval") == result
    assert len(served.requests) == 2


def test_any_other_refusal_names_the_example(served, tmp_path):
    with pytest.raises(ModelError, match=r"example e7: base refuses the request \(400\): the prompt has 9000 tokens"):
        _evaluate(served, [_example(7, "too long", tmp_path)], tmp_path / "eval")


def test_an_answer_of_another_policy_version_is_an_error(served, tmp_path):
    with pytest.raises(ClusterError, match="answered as policy v2, expected v1"):
        _evaluate(served, [_example(0, "other version", tmp_path)], tmp_path / "eval")


def test_blind_asks_the_same_questions_on_noise(served, tmp_path):
    examples = [_example(i, "say left", tmp_path) for i in range(12)]
    answers = _evaluate(served, examples, tmp_path / "eval", blind=True).answers
    assert {answer.model_id for answer in answers} == {"blind"}
    assert (tmp_path / "eval" / "blind.parquet").is_file()
    urls = {body["messages"][0]["content"][0]["video_url"]["url"] for body in served.requests}
    noise = {video_url(str(path), None) for path in noise_clips(tmp_path / "eval" / "noise")}
    assert urls <= noise
    assert len(urls) > 1


def test_noise_clips_are_videos_without_a_picture(tmp_path):
    paths = noise_clips(tmp_path)
    assert [path.read_bytes() for path in noise_clips(tmp_path / "again")] == [path.read_bytes() for path in paths]
    clips = [decoding.decode(path, FrameSpec(num_frames=8)).frames.astype(float) for path in paths]
    assert all(clip.shape == (8, 64, 64, 3) and clip.std() > 20 for clip in clips)
    between = np.corrcoef([clip.ravel() for clip in clips]) - np.eye(len(clips))
    assert np.abs(between).max() < 0.2  # no two show the same
    assert abs(np.corrcoef(clips[0][0].ravel(), clips[0][7].ravel())[0, 1]) < 0.2  # and nothing lasts


def test_video_urls(tmp_path):
    clip = tmp_path / "root" / "a b.mp4"
    clip.parent.mkdir()
    clip.write_bytes(b"abc")
    assert video_url(str(clip), str(tmp_path / "root")) == f"file://{tmp_path}/root/a%20b.mp4"
    assert video_url(str(clip), None) == "data:video/mp4;base64,YWJj"
    assert video_url(str(clip), str(tmp_path / "elsewhere")) == "data:video/mp4;base64,YWJj"
    assert video_url(clip.as_uri(), None) == "data:video/mp4;base64,YWJj"
    with pytest.raises(VideoError, match="no file at"):
        video_url(str(tmp_path / "none.mp4"), None)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Answers with each of `statuses` in turn, and with the last one for ever."""
    monkeypatch.setenv("VIDALIGN_VIDEOS", str(tmp_path / "kept"))
    monkeypatch.setattr(patience, "FIRST_BACKOFF_S", 0.001)
    statuses: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
            self.send_response(status)
            self.send_header("Content-Length", "3" if status == 200 else "0")
            self.end_headers()
            if status == 200:
                self.wfile.write(b"abc")

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test's output clean."""

    http = Quiet(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}/a.mp4", statuses
    http.shutdown()
    http.server_close()


def test_remote_videos_are_fetched_and_sent(served, tmp_path, store):
    uri, statuses = store
    statuses += [503, 429, 200]
    example = dataclasses.replace(_example(0, "say left", tmp_path), video=uri)
    found = _evaluate(served, [example], tmp_path / "eval")
    assert [answer.correct for answer in found.answers] == [True]
    assert served.requests[0]["messages"][-1]["content"][0]["video_url"]["url"] == "data:video/mp4;base64,YWJj"


def test_a_store_that_does_not_answer_ends_an_evaluation_and_quarantines_nothing(served, tmp_path, store):
    uri, statuses = store
    statuses.append(503)
    example = dataclasses.replace(_example(0, "say left", tmp_path), video=uri)
    with pytest.raises(DataError, match=rf"503.*\({MAX_ATTEMPTS} attempts\)\. That is no fault of the video"):
        _evaluate(served, [example], tmp_path / "eval")
    statuses[0] = 200
    assert [answer.correct for answer in _evaluate(served, [example], tmp_path / "eval").answers] == [True]


def test_what_a_store_does_not_have_is_quarantined(served, tmp_path, store):
    uri, statuses = store
    statuses.append(404)
    found = _evaluate(served, [dataclasses.replace(_example(0, "say left", tmp_path), video=uri)], tmp_path / "eval")
    assert [row.reason for row in found.quarantined] == ["missing"]
