"""A judge that sees the video: what an endpoint gets (a small server that looks at the pixels), and what configs are refused."""

import base64
import io
import json
import pathlib

import numpy as np
import PIL.Image
import pytest
from conftest import write_video
from json_server import serving

from actors.chats import data_url
from actors.judge import Judge
from cluster.resources import Workers
from pipelines.stages.judge import Judging, limits_of
from vidalign import prompts
from vidalign.config.judging import JudgeConfig
from vidalign.config.recipes import HoundRecipe
from vidalign.config.run import ModelConfig
from vidalign.errors import DataError
from vidalign.recipes import judging
from vidalign.recipes.engine import Completion
from vidalign.recipes.hound import Hound
from vidalign.types import Example, FrameSpec, PolicyVersion
from vidalign.video import decoding
from vidalign.video.frame_cache import FrameCache

COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200)}


class Seen:
    """The parts of every first message, in order of arrival."""

    def __init__(self) -> None:
        self.contents: list[list[dict]] = []


@pytest.fixture(scope="module")
def endpoint():
    """Scores by the colour of the first image; without one, by whether there are bytes of a video."""
    seen = Seen()

    def answer(body: dict) -> tuple[int, dict]:
        content = body["messages"][0]["content"]
        seen.contents.append(content)
        text, first = content[-1]["text"], content[0]
        if first["type"] == "image_url":
            image = PIL.Image.open(io.BytesIO(base64.b64decode(first["image_url"]["url"].partition(",")[2])))
            colour = "red" if np.asarray(image).mean((0, 1))[0] > 128 else "blue"
            reply = f"It is {colour}.\nScore: {5 if f'judge: {colour}' in text else 1}"
        else:
            reply = f"Score: {3 if first['video_url']['url'].startswith('data:video/mp4;base64,') else 1}"
        message = {"role": "assistant", "content": reply}
        head = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
        return 200, {**head, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}

    with serving(answer) as url:
        yield url, seen


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """{colour: (file, its decoded clip in a frame cache)}"""
    folder, spec = tmp_path_factory.mktemp("videos"), FrameSpec(num_frames=3)
    found = {}
    for name, colour in COLOURS.items():
        path = write_video(folder / f"{name}.mp4", np.full((8, 32, 32, 3), colour, np.uint8))
        clip = FrameCache(folder / "frames").put(decoding.content_hash(path), spec, decoding.decode(path, spec))
        found[name] = (str(path), str(clip))
    return found


def config(url="http://127.0.0.1:1/v1", **changes):
    return JudgeConfig(**{"kind": "openai", "model": "eyes", "base_url": url, "sees": "frames", **changes})


def judged(config, videos, tmp_path, responses, limits=None):
    example = {name: Example(id=name, video=videos[name][0], question="What colour?", answer="?") for name in COLOURS}
    rows = [judging.judged_row(example[name], text, "", config) for name, text in responses]
    judge = Judge(config.model_dump(), str(tmp_path), judging.judge_rows, dict(videos.values()), "evaluate.judge", limits)
    judge({"part": 0, "rows": f"[{','.join(rows)}]"})
    return json.loads((tmp_path / "000000.json").read_text())


def test_an_endpoint_gets_the_frames_that_the_policy_sees_as_images(endpoint, videos, tmp_path):
    url, seen = endpoint
    seen.contents.clear()
    rows = judged(config(url), videos, tmp_path, [("red", "red"), ("blue", "red"), ("blue", "blue")])
    assert [row["score"] for row in rows] == [5.0, 1.0, 5.0]
    assert {row["judge"] for row in rows} == {f"openai:eyes:{judging.prompt_version(prompts.JUDGE_SEEING)}"}
    assert [part["type"] for part in seen.contents[0]] == ["image_url"] * 3 + ["text"]
    assert "caption" not in seen.contents[0][-1]["text"]


def test_every_video_and_image_of_a_prompt_is_shown(endpoint, videos, tmp_path):
    url, seen = endpoint
    seen.contents.clear()
    example = Example(
        id="a", question="Which is red?", answer="?", video=videos["red"][0], videos=tuple(v for v, _ in videos.values())
    )
    row = judging.judged_row(example, "red", "", config(url))
    Judge(config(url).model_dump(), str(tmp_path), judging.judge_rows, dict(videos.values()))(
        {"part": 0, "rows": f"[{row}]"}
    )
    assert [part["type"] for part in seen.contents[0]] == ["image_url"] * 6 + ["text"]
    assert limits_of([row]) == {"video": 2, "image": 0}


def test_an_endpoint_that_takes_videos_gets_the_file_itself(endpoint, videos, tmp_path):
    url, seen = endpoint
    seen.contents.clear()
    rows = judged(config(url, sees="video"), videos, tmp_path, [("red", "red")])
    assert rows[0]["score"] == 3.0
    [content] = seen.contents
    assert [part["type"] for part in content] == ["video_url", "text"]
    sent = base64.b64decode(content[0]["video_url"]["url"].partition(",")[2])
    assert sent == pathlib.Path(videos["red"][0]).read_bytes()


def test_a_video_of_another_machine_is_named_and_a_missing_file_is_an_error(tmp_path):
    assert data_url("https://example.org/a.mp4", "recipe.judge") == "https://example.org/a.mp4"
    with pytest.raises(DataError, match="cannot be read for the judge"):
        data_url(str(tmp_path / "none.mp4"), "recipe.judge")
    with pytest.raises(DataError, match=r"is a part of a video.*set recipe\.judge\.sees to frames"):
        data_url(f"file://{tmp_path}/a.mp4#t=1,2", "recipe.judge")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "vllm", "sees": "frames"}, "set sees to video instead of frames"),
        ({"kind": "policy", "sees": "video"}, "kind=policy names none"),
        ({"kind": "policy", "model": "", "sees": "caption"}, "kind=policy judges by the video"),
        ({"model": ""}, "kinds openai and vllm need a model"),
        ({"prompt": "{question} {response}"}, r"prompt must contain \{answer\}"),
    ],
)
def test_a_judge_that_cannot_see_so_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_a_judge_that_sees_needs_no_captions_and_has_a_prompt_of_its_own():
    seeing = HoundRecipe(judge=config())
    assert seeing.judge.prompt == prompts.JUDGE_SEEING
    assert config(prompt=prompts.JUDGE).prompt == prompts.JUDGE
    Hound(seeing).check_data([], source="x")
    with pytest.raises(ValueError, match=r"add \{caption\} to it"):
        HoundRecipe(judge=config(), captions="policy")


def test_the_policy_itself_is_the_judge_with_the_policys_own_settings(tmp_path):
    policy = PolicyVersion(version="v7", path="models/mine")
    stage = Judging(
        folder=tmp_path,
        judge=JudgeConfig(kind="policy", sees="video"),
        task=judging.JudgeTask(rows=[], work=judging.judge_rows),
        engines=Workers(num=1, cpus=1, gpus=2),
        label="judge",
        policy=policy,
        model=ModelConfig(path="models/base", dtype="float16", max_model_len=999, trust_remote_code=True),
    )
    served = stage.served()
    assert (served.kind, served.model, served.dtype, served.max_model_len) == ("vllm", "models/mine", "float16", 999)
    assert (served.num_gpus, served.engine_args) == (2, {"trust_remote_code": True})
    assert stage.inputs()["policy"] == "v7"
    assert served.needs_frames
    assert not config(sees="video").needs_frames


def test_a_model_in_an_engine_gets_the_clips_and_is_reminded_in_one_message(videos, tmp_path, monkeypatch, model_path):
    made = []

    class Eyes:
        def __init__(self, model, path, **options):
            made.append((model, path, options))
            self.asked = []

        def generate(self, requests):
            self.asked.append(requests)
            done = len(self.asked) > 1
            texts = ["Score: 4" if done or request.clip.frames[0, 0, 0, 0] > 128 else "Hm." for request in requests]
            return [Completion(text=text, token_ids=(), log_probs=(), finish_reason="stop") for text in texts]

    monkeypatch.setattr("actors.engine.VllmEngine", Eyes)
    judge = JudgeConfig(kind="vllm", model=model_path, sees="video", max_model_len=77, num_gpus=0)
    rows = judged(judge, videos, tmp_path, [("red", "red"), ("blue", "blue")], limits={"video": 1, "image": 0})
    assert [row["score"] for row in rows] == [4.0, 4.0]
    [(model, path, options)] = made
    assert (model.max_model_len, path, options["limits"]) == (77, model_path, {"video": 1, "image": 0})
    assert {row["judge"].split(":")[0] for row in rows} == {"vllm"}


def test_a_reminder_follows_the_earlier_reply():
    from actors.chats import in_one_message

    talk = [
        {"role": "user", "content": "Judge."},
        {"role": "assistant", "content": "Hm."},
        {"role": "user", "content": "A score!"},
    ]
    assert in_one_message(talk) == "Judge.\n\nYour reply was:\nHm.\n\nA score!"
