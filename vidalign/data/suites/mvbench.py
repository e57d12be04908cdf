"""MVBench (arXiv 2311.17005) and TVBench (arXiv 2410.07752): temporal tasks with two to five options, in the same form.

Rows: `json/<task>.json`, a list of {"video", "question", "candidates", "answer"} and, in the tasks that ask about a part of the video,
"start" and "end" in seconds. MVBench's videos are below `video/`, in the folder of the data set that each task is from, one task's as
folders of frames; TVBench's are in `video/<task>/`. Source of prompt and rule: OpenGVLab/Ask-Anything, video_chat2/mvbench.ipynb, and
daniel-cores/tvbench, infer.ipynb and vqa_dataset.py: the share of right answers in each task, and over all questions. Their opening
of the model's own answer, "Best option:(", has no place in a chat and is left out.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping, Sequence

from vidalign.data.suites import measures
from vidalign.data.suites.base import Request, Suite
from vidalign.data.suites.question import SuiteQuestion
from vidalign.data.suites.reading import Row, Videos, answerless, find, refuse_many, rows_of
from vidalign.data.suites.replies import by_choice, lettered

SYSTEM = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of objects, and the "
    "action and pose of persons. Based on your observations, select the best option that accurately addresses the question."
)
BOUNDED = ("action_sequence", "action_prediction", "object_interaction", "action_localization", "episodic_reasoning")
FRAMES_PER_SECOND = 3.0  # of the folders of frames
STAR = ("star/Charades_v1_480", "data0613/star/Charades_v1_480")
CLEVRER = ("clevrer/video_validation", "data0613/clevrer/video_validation")
MVBENCH: Mapping[str, tuple[str, ...]] = {  # task ─► folders below video/
    "action_sequence": STAR,
    "action_prediction": STAR,
    "action_antonym": ("ssv2_video",),
    "fine_grained_action": ("Moments_in_Time_Raw/videos",),
    "unexpected_action": ("FunQA_test/test",),
    "object_existence": CLEVRER,
    "object_interaction": STAR,
    "object_shuffle": ("perception/videos",),
    "moving_direction": CLEVRER,
    "action_localization": ("sta/sta_video",),
    "scene_transition": ("scene_qa/video",),
    "action_count": ("perception/videos",),
    "moving_count": CLEVRER,
    "moving_attribute": CLEVRER,
    "state_change": ("perception/videos",),
    "fine_grained_pose": ("nturgbd",),
    "character_order": ("perception/videos",),
    "egocentric_navigation": ("vlnqa",),
    "episodic_reasoning": ("tvqa/frames_fps3_hq",),
    "counterfactual_inference": CLEVRER,
}
TVBENCH: Mapping[str, tuple[str, ...]] = {
    task: (task,)
    for task in (
        "action_count",
        "object_count",
        "action_sequence",
        "object_shuffle",
        "scene_transition",
        "action_localization",
        "action_antonym",
        "unexpected_action",
        "egocentric_sequence",
        "moving_direction",
    )
}


def read(folders: Mapping[str, tuple[str, ...]], form: str, request: Request) -> list[SuiteQuestion]:
    """The questions of every task whose file is there; a task that was asked for must be."""
    present = {path.stem: path for path in find(request.folder, ("json/*.json", "*.json"), form)}
    found: list[SuiteQuestion] = []
    for task, places in folders.items():
        if task in present and request.wants(task):
            videos = Videos(request.folder, [f"video/{place}" for place in places] + list(places))
            rows = rows_of(present[task], form)
            own = [_question(row, task, number, videos) for number, row in enumerate(rows)]
            refuse_many([answerless(row) for row, question in zip(rows, own, strict=True) if not question.answer], len(rows))
            found += own
        elif task in request.tasks:
            find(request.folder, (f"json/{task}.json", f"{task}.json"), form)
    if not found:
        find(request.folder, [f"json/{task}.json" for task in folders], form)
    return found


def _question(row: Row, task: str, number: int, videos: Videos) -> SuiteQuestion:
    options = row.texts("candidates")
    video = videos.find(row.text("video"))
    start, end = (row.seconds("start"), row.seconds("end")) if task in BOUNDED else (0.0, None)
    if end is not None and end <= start:
        raise row.refuse("end", f"must be after start={start:g}, got {end:g}")
    return SuiteQuestion(
        id=f"{task}-{number:04d}",
        video=video,
        prompt=f"{SYSTEM}\nQuestion: {row.text('question')}\nOptions:\n{lettered(options, '({letter}) {option}')}\n"
        "Only give the best option.",
        answer=row.letters("answer", options),
        task=task,
        options=options,
        keys={"task": task},
        fps=FRAMES_PER_SECOND if pathlib.Path(video).is_dir() else None,
        start_s=start,
        end_s=end,
        where=row.where,
    )


def table(questions: Sequence[SuiteQuestion]) -> list[measures.Measure]:
    """Over all questions, and by task."""
    return [measures.mean("overall"), *measures.breakdown(questions, "task")]


def _suite(name: str, title: str, folders: Mapping[str, tuple[str, ...]], source: str) -> Suite:
    return Suite(
        name=name,
        title=title,
        source=source,
        rule="share of questions whose option is named",
        read=functools.partial(read, folders, f"{title} (json/<task>.json and video/)"),
        mark=by_choice,
        measures=table,
        tasks=tuple(folders),
    )


MVBENCH_SUITE = _suite("mvbench", "MVBench", MVBENCH, "OpenGVLab/Ask-Anything: video_chat2/mvbench.ipynb")
TVBENCH_SUITE = _suite("tvbench", "TVBench", TVBENCH, "daniel-cores/tvbench: infer.ipynb, vqa_dataset.py")
