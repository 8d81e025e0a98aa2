"""Pictures of a quantisation: accuracy against latency, error by layer, histograms with ranges.

Knows the records of ``result`` and Matplotlib, which is imported when the first picture is drawn.
Each function gives one ``<svg>`` element to stand in a page: text stays text, nothing is fetched,
and equal records give equal bytes.
"""

from __future__ import annotations

import io
import re
import warnings
import zlib
from collections.abc import Collection, Sequence
from typing import Any, Final

from penstock.backends.quantize.result import AccuracyRow, LatencyRow, Layer, TensorRange

OWN: Final = "INT8"
"""The variant that was made here, among those that it is compared with."""
HISTOGRAMS_MAX: Final = 48
"""Small pictures on one page; a large model has hundreds of activations."""
LAYERS_MAX: Final = 80

_INK, _FAINT = "#1c2733", "#8795a3"
_INTEGER, _FLOAT, _CLIP = "#1668a8", "#d9822b", "#b3322f"
_STYLE: Final = {
    "svg.fonttype": "none",  # text that can be searched and copied
    "svg.hashsalt": "penstock",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # for measuring; the page's own font shows it
    "font.size": 9,
    "text.parse_math": False,  # a layer may be called $x$
    "text.color": _INK,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
}


def trade(accuracy: Sequence[AccuracyRow], latency: Sequence[LatencyRow], label: str) -> str:
    """Each variant's accuracy over its latency, one panel for each batch size.

    ``label`` names the vertical axis. Variants without either figure are left out.
    """
    scores = {row.variant: score for row in accuracy if (score := _score(row)) is not None}
    batches = sorted({row.batch for row in latency})
    with _drawing(3.2 * max(len(batches), 1), 3.0) as figure:
        panels = figure.subplots(1, max(len(batches), 1), sharey=True, squeeze=False)[0]
        low, high = _limits(scores.values())
        for panel, batch in zip(panels, batches, strict=False):
            rows = [row for row in latency if row.batch == batch and row.variant in scores]
            near = (max((row.median_us for row in rows), default=0) / 2, (high - low) / 12)
            drawn: list[tuple[float, float]] = []
            for row in sorted(rows, key=lambda row: row.median_us):
                at = (row.median_us, scores[row.variant])
                # Words of points that lie together are stacked.
                level = sum(all(abs(at[i] - old[i]) < near[i] for i in (0, 1)) for old in drawn)
                _point(panel, row, at[1], level)
                drawn.append(at)
            panel.set_title(f"batch {batch}")
            panel.set_xlabel("µs a run")
            panel.margins(0.25, 0.2)
            panel.set_xlim(left=0)
        panels[0].set_ylim(low, high)
        panels[0].set_ylabel(label)
        return _svg(figure)


def _limits(scores: Collection[float]) -> tuple[float, float]:
    """Around the scores: a difference that is no difference must not fill the picture."""
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    margin = max(0.2 * (high - low), 0.5)
    return low - margin, high + 2 * margin  # the words are above the points


def layers(rows: Sequence[Layer]) -> str:
    """Noise of each layer alone, and in the final model; layers that stayed in float stand out."""
    shown = rows[:LAYERS_MAX]
    with _drawing(9.6, 0.9 + 0.22 * max(len(shown), 1)) as figure:
        panel = figure.subplots()
        for at, layer in enumerate(shown):
            colour = _FLOAT if layer.kept_float else _INTEGER
            if layer.alone_db is not None:
                panel.barh(at, layer.alone_db, height=0.62, color=colour, alpha=0.85)
            if layer.sqnr_db is not None:
                panel.plot(layer.sqnr_db, at, marker="D", color=_INK, markersize=3.5)
        panel.set_yticks(range(len(shown)), [_short(layer.name, 34) for layer in shown])
        panel.invert_yaxis()
        panel.set_xlabel("signal over quantisation noise, dB (more is better)")
        _legend(panel)
        return _svg(figure)


def histograms(ranges: Sequence[TensorRange]) -> str:
    """What each activation held, on a logarithmic scale, and the range that was chosen for it."""
    shown = [item for item in ranges if item.histogram is not None][:HISTOGRAMS_MAX]
    columns = 3
    lines = max(-(-len(shown) // columns), 1)
    with _drawing(9.6, 1.6 * lines) as figure:
        panels = figure.subplots(lines, columns, squeeze=False).flat
        for panel, item in zip(panels, shown, strict=False):
            _histogram(panel, item)
        for panel in figure.axes[len(shown) :]:
            panel.set_axis_off()
        return _svg(figure)


def _histogram(panel: Any, item: TensorRange) -> None:
    held = item.histogram
    assert held is not None
    step = (held.high - held.low) / max(len(held.counts), 1)
    edges = [held.low + i * step for i in range(len(held.counts) + 1)]
    panel.stairs(held.counts, edges, fill=True, color=_INTEGER, alpha=0.75)
    for bound in (item.low, item.high):
        panel.axvline(bound, color=_CLIP, linewidth=1)
    panel.set_yscale("symlog", linthresh=1)
    panel.set_yticks([])
    panel.tick_params(axis="x", labelsize=7)
    panel.set_title(f"{_short(item.tensor, 30)}\n{item.method}, {item.clipped:.3%} clipped", size=7)


def _score(row: AccuracyRow) -> float | None:
    if row.measure is None:
        return None
    return row.measure.sqnr_db if row.measure.top1 is None else 100 * row.measure.top1


def _point(panel: Any, row: LatencyRow, score: float, level: int) -> None:
    spread = [[row.median_us - row.low_us], [row.high_us - row.median_us]]
    own = row.variant == OWN
    panel.errorbar(
        row.median_us, score, xerr=spread, fmt="o", color=_INTEGER if own else _FAINT,
        markersize=6 if own else 4.5, linewidth=1,
    )  # fmt: skip
    panel.annotate(
        row.variant,
        (row.median_us, score),
        xytext=(4, 5 + 8 * level),
        textcoords="offset points",
        size=7,
    )


def _legend(panel: Any) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    panel.legend(
        handles=[
            Patch(color=_INTEGER, alpha=0.85, label="the outputs, this layer alone quantised"),
            Patch(color=_FLOAT, alpha=0.85, label="the same; stayed in float"),
            Line2D([], [], marker="D", color=_INK, linestyle="", markersize=3.5,
                   label="the layer's own result, in the final model"),
        ],
        loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3, frameon=False, fontsize=7,
    )  # fmt: skip


class _drawing:  # noqa: N801 - used as a function
    """A figure in our style, for the time of a ``with``: Matplotlib's settings are a global."""

    def __init__(self, width_in: float, height_in: float) -> None:
        self._size = (width_in, height_in)

    def __enter__(self) -> Any:
        import matplotlib as mpl
        from matplotlib.figure import Figure

        self._style = mpl.rc_context(_STYLE)  # type: ignore[arg-type]
        self._style.__enter__()
        return Figure(figsize=self._size, layout="constrained")

    def __exit__(self, *exc: object) -> None:
        self._style.__exit__(None, None, None)


def _svg(figure: Any) -> str:
    text = io.StringIO()
    with warnings.catch_warnings():
        # Text is measured with a font that may lack a letter, and shown with the page's own.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(
            text, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    # Identifiers are unique within one picture only, and several stand in a page.
    salt = f"p{zlib.crc32(drawn.encode()):x}"
    drawn = re.sub(r'\bid="([^"]+)"', rf'id="{salt}-\1"', drawn)
    drawn = re.sub(r'(xlink:href|href)="#([^"]+)"', rf'\1="#{salt}-\2"', drawn)
    return re.sub(r"url\(#([^)]+)\)", rf"url(#{salt}-\1)", drawn)


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else "…" + name[1 - length :]
