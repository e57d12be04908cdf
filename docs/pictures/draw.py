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
