"""The report's plots and thumbnails: numbers and frames in, markup that needs no other file out.

Matplotlib draws with placeholder colours that are then replaced by CSS variables, so that one SVG follows the page's light
or dark scheme and a name (chosen, rejected, truth, base, aligned, blind) has one colour on the whole page.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

WIDTH, HEIGHT = 380, 220  # CSS pixels at scale 1; a card on a phone is about 320 wide, so 12 px text stays above 10 px
MAX_POINTS = 400  # points drawn of one curve
THUMBNAIL_SIDE = 144

# name: (placeholder colour, line style). The placeholders are near-black colours that no plot uses otherwise.
STYLES = {
    "ink": ("#010101", "-"),
    "faint": ("#010102", "-"),
    "chosen": ("#010103", "-"),
    "rejected": ("#010104", "--"),
    "truth": ("#010105", ":"),
    "aligned": ("#010106", "-"),
    "accent": ("#010107", "-"),
}
_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 12,
    "axes.edgecolor": STYLES["faint"][0],
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.labelcolor": STYLES["ink"][0],
    "grid.color": STYLES["faint"][0],
    "grid.linewidth": 0.8,
    "xtick.color": STYLES["faint"][0],
    "ytick.color": STYLES["faint"][0],
    "xtick.labelcolor": STYLES["ink"][0],
    "ytick.labelcolor": STYLES["ink"][0],
    "ytick.major.size": 0,
    "axes.formatter.useoffset": False,
}


@dataclasses.dataclass(frozen=True)
class Plot:
    """One figure of the page. `legend` holds (style name, label, figures in words)."""

    title: str
    note: str
    legend: tuple[tuple[str, str, str], ...]
    svg: Markup


def curves(
    title: str,
    note: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    labels: Mapping[str, str] | None = None,
    share: bool = False,
    zero: bool = False,
    scope: str = "",
) -> Plot | None:
    """Lines over optimizer steps. `series` maps a style name to (step, value) points; empty ones are left out.

    `scope` tells plots of equal title and figures apart, in the ids inside the SVG. `share` draws values in [0, 1] as
    percentages, `zero` marks the zero line. None when no series has a point.
    """
    series = {name: points for name, points in series.items() if points}
    if not series:
        return None
    figure, axes = _axes()
    legend = []
    for name, points in series.items():
        xs, ys = np.array(_thin(points), dtype=float).T
        colour, line = STYLES[name]
        marker = "o" if len(xs) <= 30 else None
        axes.plot(xs, ys, line, color=colour, linewidth=1.8, marker=marker, markersize=3.2)
        start, end = (f"{100 * value:.0f} %" if share else _number(value) for value in (points[0][1], points[-1][1]))
        legend.append((name, (labels or {}).get(name, name), f"{start} → {end}"))
    if zero:
        axes.axhline(0, color=STYLES["ink"][0], linewidth=0.8)
    if share:
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    steps = [step for points in series.values() for step, _ in points]
    if len(set(steps)) == 1:
        axes.set_xlim(steps[0] - 1, steps[0] + 1)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("optimizer step")
    return Plot(title, note, tuple(legend), _svg(figure, title, note, legend, scope))


def histogram(
    title: str,
    note: str,
    groups: Mapping[str, np.ndarray],
    *,
    xlabel: str,
    labels: Mapping[str, str] | None = None,
    limits: tuple[float, float] | None = None,
    zero: bool = False,
) -> Plot | None:
    """Counts in 24 common bins, one outline a group. Values outside the limits fall in the outer bins."""
    finite = {name: values[np.isfinite(values)] for name, values in groups.items()}
    finite = {name: values for name, values in finite.items() if len(values)}
    if not finite:
        return None
    low, high = limits or _limits(np.concatenate(list(finite.values())))
    bins = np.linspace(low, high, 25)
    figure, axes = _axes()
    legend = []
    for name, values in finite.items():
        colour, line = STYLES[name]
        counts, _ = np.histogram(np.clip(values, low, high), bins)
        axes.stairs(counts, bins, fill=True, color=colour, alpha=0.22, linewidth=0)
        axes.stairs(counts, bins, color=colour, linewidth=1.6, linestyle=line)
        legend.append(
            (name, (labels or {}).get(name, name), f"median {_number(float(np.median(values)))}, n = {len(values):,}")
        )
    if zero and low < 0 < high:
        axes.axvline(0, color=STYLES["ink"][0], linewidth=0.8)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_xlabel(xlabel)
    axes.set_ylim(bottom=0)
    return Plot(title, note, tuple(legend), _svg(figure, title, note, legend))


def medians_by_trust(title: str, note: str, trust: np.ndarray, reward: np.ndarray) -> Plot | None:
    """Median reward and its quartiles in ten equal bins of trust; bins without a response are left out."""
    kept = np.isfinite(trust) & np.isfinite(reward)
    trust, reward = trust[kept], reward[kept]
    if not len(trust):
        return None
    index = np.minimum((trust * 10).astype(int), 9)
    used = [number for number in range(10) if (index == number).any()]
    quartiles = np.array([np.percentile(reward[index == number], (25, 50, 75)) for number in used])  # [bins, 3]
    centres = np.array([trust[index == number].mean() for number in used])
    figure, axes = _axes()
    colour = STYLES["accent"][0]
    axes.vlines(centres, quartiles[:, 0], quartiles[:, 2], color=colour, linewidth=5, alpha=0.3)
    axes.plot(centres, quartiles[:, 1], "o", color=colour, markersize=5)
    axes.set_xlim(-0.05, 1.05)
    axes.set_xlabel("trust")
    legend = [("accent", "median, bar = quartiles", f"n = {len(trust):,}")]
    return Plot(title, note, tuple(legend), _svg(figure, title, note, legend))


def thumbnail(frame: np.ndarray) -> str:
    """Data URI of one frame, uint8 [H, W, 3], shrunk to 144 px: PNG, or JPEG where that is smaller (photographs)."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(frame))
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    encoded = []
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 82})):
        sink = io.BytesIO()
        image.save(sink, kind.upper(), **options)
        encoded.append((len(sink.getvalue()), kind, sink.getvalue()))
    _, kind, data = min(encoded)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _axes() -> tuple[Figure, Axes]:
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
        # Fixed margins: a layout engine would draw every figure twice. 52 px hold a tick label like −0.125.
        axes = figure.add_axes((52 / WIDTH, 42 / HEIGHT, 1 - 60 / WIDTH, 1 - 50 / HEIGHT))
    axes.grid(axis="x", visible=False)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    return figure, axes


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= MAX_POINTS:
        return list(points)
    return [points[i] for i in np.linspace(0, len(points) - 1, MAX_POINTS).astype(int)]


def _limits(values: np.ndarray) -> tuple[float, float]:
    """The central 99 %, so that one outlier does not flatten the rest."""
    low, high = (float(value) for value in np.percentile(values, (0.5, 99.5)))
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _number(value: float) -> str:
    text = f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"
    return text.replace("-", "−")


def _svg(figure: Figure, title: str, note: str, legend: Sequence[tuple[str, str, str]], scope: str = "") -> Markup:
    """The figure as inline SVG: no XML head, no metadata, no fixed size, ids that are unique on the page."""
    sink = io.StringIO()
    words = f"{title}, {note}. " + "; ".join(f"{label} {figures}" for _, label, figures in legend)
    with matplotlib.rc_context({**_RC, "svg.hashsalt": scope + words}):
        figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None})
    text = sink.getvalue()
    text = text[text.index("<svg") :]
    for pattern, replacement in (
        (r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", ""),  # its style sheet would rule the whole page
        (r'<g id="[^"]*"', "<g"),
        (r"font-family: [^;\"]*; ?", ""),
        (r"xlink:href", "href"),
        (r"\s*\n\s*", " "),
    ):
        text = re.sub(pattern, replacement, text, flags=re.DOTALL)
    for name, (colour, _) in STYLES.items():
        text = text.replace(colour, f"var(--{name})")
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="'
    return Markup(head) + words + Markup('">' + text[text.index(">") + 1 :])
