"""LLaVA-Hound-DPO (arXiv 2404.01258, https://github.com/RifleZhang/LLaVA-Hound-DPO).

    id, video, prompt, answer, chosen, rejected, chosen_score, rejected_score

The scores are a judge's, 1 to 5. Their videos are published as folders of frames; a row of ours names a video file.
"""

from __future__ import annotations

from vidalign.data.formats.chat import Fields, Notes, make_row, question, reply, take_videos, turns_of
from vidalign.errors import RowError


def to_row(fields: Fields, notes: Notes) -> Fields:
    """One row of ours; takes out of `fields` what it uses. Raises `RowError`."""
    if "prompt" not in fields:
        why = f"has the columns {', '.join(fields) or '(none)'}"
        raise RowError(
            "row", why, "a row has video, prompt, chosen and rejected; conversations are imported with --from llamafactory"
        )
    videos = take_videos(fields, notes)
    asked = question(turns_of(fields.pop("prompt"), "prompt", "user", notes), "prompt", notes)
    if "chosen" in fields or "rejected" in fields:
        better, worse = (reply(fields.pop(side, None), side, notes) for side in ("chosen", "rejected"))
        return make_row(fields, asked, videos, notes, chosen=better, rejected=worse)
    return make_row(fields, asked, videos, notes, answer=reply(fields.pop("answer", None), "answer", notes))
