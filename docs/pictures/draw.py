"""The pictures of docs/recipes.md, drawn from the tables below: `python docs/pictures/draw.py` writes them beside this file.

A picture is boxes on a grid and arrows between them. The files hold no script, no font and no link, so that they show anywhere.
"""

from __future__ import annotations

import html
import pathlib
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 176, 62, 46, 22, 16
COLOURS = {
    "data": "#e3e8f4",
    "policy": "#dcefe2",
    "good": "#c5e7cf",
    "bad": "#f6d3cf",
    "judge": "#f7e8c3",
    "loss": "#e6daf3",
}
Box = tuple[float, float, str, str]  # column, row, colour, text with "|" between lines

PICTURES: Mapping[str, tuple[str, Mapping[str, Box], Sequence[tuple[str, str, str]]]] = {
    "run": (
        "A run: decode, roll out, pair, train, evaluate; the next round starts from the new policy",
        {
            "rows": (0, 0, "data", "rows|video, question, answer"),
            "frames": (1, 0, "data", "frames|decoded once, by content"),
            "rollout": (2, 0, "policy", "rollout (vLLM)|recipe: responses"),
            "pairs": (3, 0, "good", "pairs or groups|checked for artefacts"),
            "train": (3, 1, "loss", "training (DeepSpeed)|objective"),
            "policy": (2, 1, "policy", "new policy|Hugging Face folder"),
            "serve": (1, 1, "data", "endpoint (Ray Serve)|base and aligned"),
            "report": (0, 1, "data", "report|accuracy, likelihoods"),
        },
        [
            ("rows", "frames", ""),
            ("frames", "rollout", ""),
            ("rollout", "pairs", ""),
            ("pairs", "train", ""),
            ("train", "policy", ""),
            ("policy", "serve", ""),
            ("serve", "report", ""),
            ("policy", "rollout", "round"),
        ],
    ),
    "leanpo": (
        "LeanPO: hinted and reflected responses against responses to an augmented video",
        {
            "video": (0, 0, "data", "video, question,|ground truth as a hint"),
            "hinted": (1, 0, "policy", "response with hint"),
            "reflected": (2, 0, "policy", "reflection on it"),
            "chosen": (3, 0, "good", "chosen|trust × exp(reward)"),
            "augmented": (0, 1, "data", "augmented video,|question alone"),
            "answers": (1, 1, "policy", "responses"),
            "rejected": (3, 1, "bad", "rejected|least trust"),
        },
        [
            ("video", "hinted", ""),
            ("hinted", "reflected", ""),
            ("reflected", "chosen", ""),
            ("augmented", "answers", ""),
            ("answers", "rejected", ""),
        ],
    ),
    "rrpo": (
        "RRPO: the ground truth against the policy's likeliest error on a perturbed video, alike but for the marked phrases",
        {
            "truth": (0, 0, "data", "ground truth"),
            "chosen": (3, 0, "good", "chosen|the ground truth"),
            "video": (0, 1, "data", "perturbed video:|masked, shuffled"),
            "answers": (1, 1, "policy", "wrong responses"),
            "rewrite": (2, 1, "policy", "ground truth with|that error swapped in"),
            "rejected": (3, 1, "bad", "rejected|differs in marked words"),
        },
        [
            ("truth", "chosen", ""),
            ("video", "answers", ""),
            ("answers", "rewrite", ""),
            ("rewrite", "rejected", ""),
        ],
    ),
    "hound": (
        "LLaVA-Hound: the policy's own samples, scored by a judge that reads a caption",
        {
            "video": (0, 0.5, "data", "video, question"),
            "samples": (1, 0.5, "policy", "samples of the policy"),
            "judge": (2, 0.5, "judge", "judge: 1 to 5|reads caption or video"),
            "chosen": (3, 0, "good", "chosen|highest, at least 3"),
            "rejected": (3, 1, "bad", "rejected|lowest, below 3"),
        },
        [("video", "samples", ""), ("samples", "judge", ""), ("judge", "chosen", ""), ("judge", "rejected", "")],
    ),
    "group": (
        "Groups: rewards of the policy's own replies become advantages",
        {
            "video": (0, 0, "data", "video, question"),
            "replies": (1, 0, "policy", "8 replies of the policy"),
            "rewards": (2, 0, "judge", "rewards: accuracy,|format, temporal, yours"),
            "group": (3, 0, "loss", "advantages of a group|grpo, dapo, gspo …"),
        },
        [("video", "replies", ""), ("replies", "rewards", ""), ("rewards", "group", "")],
    ),
    "temporal": (
        "T-GRPO: right answers are worth more where frames in another order are answered worse",
        {
            "video": (0, 0, "data", "video, question"),
            "replies": (1, 0, "policy", "8 replies"),
            "shuffled": (0, 1, "data", "the same frames|in any order"),
            "others": (1, 1, "policy", "4 replies"),
            "rewards": (2, 0.5, "judge", "order in time|shares of right ones"),
            "group": (3, 0.5, "loss", "advantages|grpo"),
        },
        [
            ("video", "replies", ""),
            ("shuffled", "others", ""),
            ("replies", "rewards", ""),
            ("others", "rewards", ""),
            ("rewards", "group", ""),
        ],
    ),
    "veripo": (
        "VerIPO: rounds on groups, a verifier's pairs of their replies, and groups again",
        {
            "before": (0, 0.5, "loss", "rounds on groups|grpo"),
            "replies": (1, 0.5, "policy", "their replies"),
            "verifier": (2, 0.5, "judge", "verifier|right, consistent, long"),
            "chosen": (3, 0, "good", "chosen|right and consistent"),
            "rejected": (3, 1, "bad", "rejected|inconsistent, wrong"),
            "dpo": (4, 0.5, "loss", "training on pairs|dpo"),
            "after": (4, 1.5, "loss", "rounds on groups|grpo"),
        },
        [
            ("before", "replies", ""),
            ("replies", "verifier", ""),
            ("verifier", "chosen", ""),
            ("verifier", "rejected", ""),
            ("chosen", "dpo", ""),
            ("rejected", "dpo", ""),
            ("dpo", "after", ""),
        ],
    ),
    "reagent": (
        "ReAgent-V: a critic's reports on an answer and on three reflections decide which is preferred",
        {
            "frames": (0, 0.5, "data", "frames chosen|by the question"),
            "answer": (1, 0.5, "policy", "answer"),
            "report": (2, 0.5, "judge", "critic's report|five scores"),
            "reflected": (3, 0.5, "policy", "three reflections|conservative to aggressive"),
            "again": (4, 0.5, "judge", "critic's reports|on all four"),
            "chosen": (5, 0, "good", "chosen|rated highest"),
            "rejected": (5, 1, "bad", "rejected|rated lowest"),
        },
        [
            ("frames", "answer", ""),
            ("answer", "report", ""),
            ("report", "reflected", ""),
            ("reflected", "again", ""),
            ("again", "chosen", ""),
            ("again", "rejected", ""),
        ],
    ),
    "dvpo": (
        "DVPO: a value model learns from pairs once, and then takes the place of rewards",
        {
            "pairs": (0, 0, "good", "pairs|chosen and rejected"),
            "value": (1, 0, "loss", "value model|objective value"),
            "video": (0, 1, "data", "video, question"),
            "reply": (1, 1, "policy", "one reply"),
            "token": (2, 0.5, "judge", "value of each token|frozen value model"),
            "train": (3, 0.5, "loss", "token advantages|objective dvpo"),
        },
        [
            ("pairs", "value", ""),
            ("video", "reply", ""),
            ("value", "token", ""),
            ("reply", "token", ""),
            ("token", "train", ""),
        ],
    ),
    "over_videos": (
        "Pairs over videos: one response with its video and with another clip (VDPO; MixDPO has both kinds)",
        {
            "response": (0, 0.5, "good", "chosen response|of any pair"),
            "video": (1, 0, "data", "its video"),
            "other": (1, 1, "data", "altered clip, or|one that the row names"),
            "chosen": (2, 0, "good", "chosen|response, video"),
            "rejected": (2, 1, "bad", "rejected|response, other clip"),
            "train": (3, 0.5, "loss", "training, alone or|beside other pairs"),
        },
        [
            ("response", "video", ""),
            ("response", "other", ""),
            ("video", "chosen", ""),
            ("other", "rejected", ""),
            ("chosen", "train", ""),
            ("rejected", "train", ""),
        ],
    ),
    "perturbed": (
        "TPO and TEMPLE: errors on videos without some of their frames or in another order, from strong to weak",
        {
            "truth": (0, 0, "data", "ground truth"),
            "chosen": (3, 0, "good", "chosen|the ground truth"),
            "video": (0, 1, "data", "one part, backwards,|frames dropped …"),
            "answers": (1, 1, "policy", "wrong responses"),
            "rejected": (3, 1, "bad", "rejected|the likeliest one"),
            "train": (4, 0.5, "loss", "training|dpo"),
            "next": (4, 1.5, "data", "next round|a weaker change"),
        },
        [
            ("truth", "chosen", ""),
            ("video", "answers", ""),
            ("answers", "rejected", ""),
            ("chosen", "train", ""),
            ("rejected", "train", ""),
            ("train", "next", ""),
        ],
    ),
    "bridge": (
        "BMC: a wrong response is corrected in a few words, and the words that differ weigh more",
        {
            "video": (0, 0.5, "data", "perturbed video"),
            "answers": (1, 0.5, "policy", "wrong response"),
            "judge": (2, 0, "judge", "corrected by|ground truth, few words"),
            "chosen": (3, 0, "good", "chosen|the correction"),
            "rejected": (3, 1, "bad", "rejected|as it was"),
            "train": (4, 0.5, "loss", "training|bmc"),
        },
        [
            ("video", "answers", ""),
            ("answers", "judge", ""),
            ("answers", "rejected", ""),
            ("judge", "chosen", ""),
            ("chosen", "train", ""),
            ("rejected", "train", ""),
        ],
    ),
    "overlap": (
        "Rounds that overlap: the next rollout is made while this round trains",
        {
            "first": (0, 0, "policy", "rollout 0"),
            "second": (1, 0, "policy", "rollout 1|by policy 0"),
            "third": (2, 0, "policy", "rollout 2|by policy 1"),
            "train0": (1, 1, "loss", "training 0|makes policy 1"),
            "train1": (2, 1, "loss", "training 1|makes policy 2"),
            "train2": (3, 1, "loss", "training 2"),
        },
        [
            ("first", "second", ""),
            ("second", "third", ""),
            ("first", "train0", ""),
            ("second", "train1", ""),
            ("third", "train2", ""),
            ("train0", "train1", ""),
            ("train1", "train2", ""),
        ],
    ),
}


def place(box: Box) -> tuple[float, float]:
    """The upper left corner of a box."""
    return MARGIN + box[0] * (WIDTH + GAP_X), MARGIN + box[1] * (HEIGHT + GAP_Y)


def drawn(title: str, boxes: Mapping[str, Box], arrows: Sequence[tuple[str, str, str]]) -> str:
    """A picture as SVG."""
    corners = {name: place(box) for name, box in boxes.items()}
    width = max(x for x, _ in corners.values()) + WIDTH + MARGIN
    height = max(y for _, y in corners.values()) + HEIGHT + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(title)}">',
        f"<title>{html.escape(title)}</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto-start-reverse">'
        '<path d="M0 0 8 4 0 8z" fill="#4a5160"/></marker></defs>',
        f'<rect width="{width:g}" height="{height:g}" rx="10" fill="#ffffff"/>',
    ]
    for start, end, label in arrows:
        (x1, y1), (x2, y2) = corners[start], corners[end]
        if x1 == x2:  # one above the other
            down = y2 > y1
            ends = (x1 + WIDTH / 2, y1 + HEIGHT * down, x2 + WIDTH / 2, y2 + HEIGHT * (not down))
        else:
            right = x2 > x1
            ends = (x1 + WIDTH * right, y1 + HEIGHT / 2, x2 + WIDTH * (not right), y2 + HEIGHT / 2)
        lines.append(
            '<path d="M{:g} {:g} {:g} {:g}" stroke="#4a5160" stroke-width="1.6" marker-end="url(#tip)"/>'.format(*ends)
        )
        if label:
            x, y = (ends[0] + ends[2]) / 2 + 8, (ends[1] + ends[3]) / 2 + 4
            lines.append(f'<text x="{x:g}" y="{y:g}" font-family="sans-serif" font-size="12" fill="#4a5160">{label}</text>')
    for name, (_, _, colour, text) in boxes.items():
        x, y = corners[name]
        lines.append(
            f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="8" fill="{COLOURS[colour]}" stroke="#4a5160"/>'
        )
        parts = text.split("|")
        for number, part in enumerate(parts):
            at = y + HEIGHT / 2 + 5 + 17 * (number - (len(parts) - 1) / 2)
            weight = ' font-weight="bold"' if number == 0 and len(parts) > 1 and len(part) < 22 else ""
            lines.append(
                f'<text x="{x + WIDTH / 2:g}" y="{at:g}" text-anchor="middle" font-family="sans-serif" font-size="13"{weight} '
                f'fill="#1d2330">{html.escape(part)}</text>'
            )
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    for name, picture in PICTURES.items():
        pathlib.Path(__file__).with_name(f"{name}.svg").write_text(drawn(*picture), encoding="utf-8")
