"""A quantisation as one HTML page: the verdict first, then figures, pictures and every table.

Knows the records of ``result``. The page holds everything that it needs: no script, no font and no
picture is fetched, so that it can be mailed or kept as a build's artefact. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from penstock.backends.quantize import plots
from penstock.backends.quantize.result import (
    AccuracyRow,
    Candidate,
    LatencyRow,
    Layer,
    Measure,
    Result,
    TensorRange,
)

_CRITERIA: Final = {
    "top1": "share of right answers",
    "outputs": "outputs beside the float model's",
    "relative": "error relative to the outputs' spread",
}
_RANGES_MAX: Final = 400
_STYLE: Final = """
:root { color-scheme: light; --ink: #1c2733; --faint: #66788a; --line: #dbe2e8; --paper: #fff;
  --good: #1d7a46; --bad: #b3322f; }
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: var(--ink);
  background: var(--paper); max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.4rem; }
.verdict { border-left: .4rem solid; padding: .5rem 1rem; margin: 1rem 0; background: #f6f8fa; }
.passed { border-color: var(--good); } .refused { border-color: var(--bad); }
.verdict strong { font-size: 1.15rem; } .passed strong { color: var(--good); }
.refused strong { color: var(--bad); } ul { margin: .3rem 0; padding-left: 1.2rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .8rem; }
dt, .faint, figcaption { color: var(--faint); font-size: .85rem; } dd { margin: 0; }
dd b { font-size: 1.25rem; font-weight: 600; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
th, td { text-align: left; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
th { font-weight: 600; } tr.own td { font-weight: 600; } .wide { overflow-x: auto; }
figure { margin: 1rem 0; } figure svg { max-width: 100%; height: auto; }
details { margin: .6rem 0; } summary { cursor: pointer; }
"""


def page(result: Result) -> str:
    """The whole document."""
    verdict = "passed" if result.passed else "refused"
    title = f"INT8 {verdict}: {result.model}"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(result.model)}</h1>",
        f'<p class="faint">INT8 for target {escape(result.target)}, ranges by '
        f"{escape(result.method)}</p>",
        _verdict(result),
        _headline(result),
        *_accuracy_and_latency(result),
        *_layers(result),
        *_ranges(result),
        *_search(result),
        *_circumstances(result),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _verdict(result: Result) -> str:
    word = "Passed" if result.passed else "Refused"
    where = f"written to {result.written}" if result.written else "nothing was written"
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in result.verdict.reasons)
    return (
        f'<div class="verdict {word.lower()}"><strong>{word}</strong> '
        f'<span class="faint">{escape(where)}</span><ul>{reasons}</ul></div>'
    )


def _headline(result: Result) -> str:
    own = [row for row in result.latency if row.variant == plots.OWN]
    facts = [("accuracy", _accuracy_fact(result.measure))]
    facts += [(f"speed, batch {row.batch}", f"<b>{row.speedup:.2f}×</b> float") for row in own]
    if result.float_bytes and result.int8_bytes:
        facts.append(("size", f"<b>{_size(result.int8_bytes)}</b> of {_size(result.float_bytes)}"))
    kept = len(result.kept_float)
    facts.append(("layers in float", f"<b>{kept}</b> of {len(result.layers)}"))
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    return f"<dl>{cells}</dl>"


def _accuracy_fact(measure: Measure) -> str:
    if measure.top1 is not None and measure.top1_float is not None:
        return f"<b>{100 * measure.top1:.2f}</b> of {100 * measure.top1_float:.2f} %"
    return f"<b>{_db(measure.sqnr_db)}</b>, cosine {measure.cosine:.5f}"


def _accuracy_and_latency(result: Result) -> Iterable[str]:
    if result.accuracy:
        yield "<h2>Accuracy</h2>"
        yield (
            f'<p class="faint">{escape(_CRITERIA[result.verdict.criterion])}, on '
            f"{escape(result.evaluated_on)}.</p>"
        )
        head = ("variant", "top-1", "lost", "same answer", "SQNR", "cosine", "size", "")
        yield _table(head, (_accuracy_row(row) for row in result.accuracy), own=plots.OWN)
    if result.latency:
        yield "<h2>Latency</h2>"
        if result.accuracy:
            labelled = any(r.measure and r.measure.top1 is not None for r in result.accuracy)
            label = "top-1, %" if labelled else "SQNR of the outputs, dB"
            yield _figure(
                plots.trade(result.accuracy, result.latency, label),
                "Up and to the left is better; bars span the quartiles of interleaved rounds.",
            )
        columns = ("variant", "batch", "median", "quartiles", "times float")
        yield _table(columns, (_latency_row(row) for row in result.latency), own=plots.OWN)


def _accuracy_row(row: AccuracyRow) -> list[str]:
    m = row.measure
    if m is None:
        return [row.variant, "", "", "", "", "", "", row.note]
    return [
        row.variant,
        "" if m.top1 is None else f"{100 * m.top1:.2f} %",
        "" if m.drop_points is None else f"{m.drop_points:+.2f} ± {m.drop_error_points or 0:.2f}",
        "" if m.agreement is None else f"{100 * m.agreement:.2f} %",
        _db(m.sqnr_db),
        f"{m.cosine:.5f}",
        _size(row.size_bytes) if row.size_bytes else "",
        row.note,
    ]


def _latency_row(row: LatencyRow) -> list[str]:
    return [
        row.variant,
        str(row.batch),
        _time(row.median_us),
        f"{_time(row.low_us)} to {_time(row.high_us)}",
        f"{row.speedup:.2f}×",
    ]


def _layers(result: Result) -> Iterable[str]:
    if not result.layers:
        return
    yield "<h2>Layers</h2>"
    if any(layer.alone_db is not None or layer.sqnr_db is not None for layer in result.layers):
        caption = "Bars: the outputs if this layer alone is quantised; short ones cost most."
        if len(result.layers) > plots.LAYERS_MAX:
            caption += f" The first {plots.LAYERS_MAX} of {len(result.layers)}."
        yield _figure(plots.layers(result.layers), caption)
    head = ("layer", "kind", "parameters", "stays", "alone", "in the model", "")
    table = _table(head, (_layer_row(layer) for layer in result.layers))
    yield _details(f"all {len(result.layers)} layers", table)


def _layer_row(layer: Layer) -> list[str]:
    return [
        layer.name,
        layer.op_type,
        f"{layer.parameters:,}",
        "float" if layer.kept_float else "INT8",
        "" if layer.alone_db is None else _db(layer.alone_db),
        "" if layer.sqnr_db is None else _db(layer.sqnr_db),
        layer.why,
    ]


def _ranges(result: Result) -> Iterable[str]:
    if not result.ranges:
        return
    yield "<h2>Activations</h2>"
    if any(item.histogram is not None for item in result.ranges):
        caption = "Counts are logarithmic; red lines are what the integers can express."
        drawn = sum(item.histogram is not None for item in result.ranges)
        if drawn > plots.HISTOGRAMS_MAX:
            caption += f" The first {plots.HISTOGRAMS_MAX} of {drawn}."
        yield _figure(plots.histograms(result.ranges), caption)
    head = ("activation", "method", "seen", "range", "scale", "zero", "clipped")
    table = _table(head, (_range_row(item) for item in result.ranges[:_RANGES_MAX]))
    yield _details(f"{min(len(result.ranges), _RANGES_MAX)} of {len(result.ranges)} ranges", table)


def _range_row(item: TensorRange) -> list[str]:
    return [
        item.tensor,
        item.method,
        f"{item.seen_low:.4g} to {item.seen_high:.4g}",
        f"{item.low:.4g} to {item.high:.4g}",
        f"{item.scale:.4g}",
        str(item.zero_point),
        f"{100 * item.clipped:.3f} %",
    ]


def _search(result: Result) -> Iterable[str]:
    if not result.candidates:
        return
    yield "<h2>What was tried</h2>"
    yield (
        '<p class="faint">In this order, each really built and measured, on '
        f"{result.selection_rows} rows that calibration did not see.</p>"
    )
    head = ("ranges by", "layers in float", "top-1", "SQNR", "9 of 10 rows", "cosine", "")
    yield _table(head, (_candidate_row(tried, result) for tried in result.candidates))


def _candidate_row(tried: Candidate, result: Result) -> list[str]:
    m = tried.measure
    chosen = (tried.method, set(tried.float_layers)) == (result.method, set(result.kept_float))
    said = ("good enough" if tried.passed else "", "chosen" if chosen else "")
    return [
        tried.method,
        ", ".join(tried.float_layers) or "none",
        "" if m.top1 is None else f"{100 * m.top1:.2f} %",
        _db(m.sqnr_db),
        _db(m.row_db),
        f"{m.cosine:.5f}",
        ", ".join(filter(None, said)),
    ]


def _circumstances(result: Result) -> Iterable[str]:
    yield "<h2>Circumstances</h2>"
    if result.notes:
        yield "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in result.notes) + "</ul>"
    t = result.timings
    spent = (
        ("prepared", t.prepare_s), ("calibrated", t.calibrate_s), ("searched", t.search_s),
        ("layers one by one", t.sensitivity_s), ("judged", t.gate_s), ("timed", t.speed_s),
    )  # fmt: skip
    facts = (
        ("calibration rows", str(result.calibration_rows)),
        ("machine", result.machine),
        *result.versions,
        *((name, f"{seconds:.1f} s") for name, seconds in spent),
    )
    cells = "".join(f"<div><dt>{escape(n)}</dt><dd>{escape(v)}</dd></div>" for n, v in facts)
    yield f"<dl>{cells}</dl>"


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _details(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, own: str = "") -> str:
    """``own`` is the first cell of the rows that stand out. Columns of figures are flush right."""
    body = [list(cells) for cells in rows]
    figures = [any(_is_number(cells[i]) for cells in body) for i in range(len(head))]
    lines = [
        f"<tr{' class=own' if own and cells[0] == own else ''}>{_cells('td', cells, figures)}</tr>"
        for cells in body
    ]
    title = f"<thead><tr>{_cells('th', head, figures)}</tr></thead>"
    return f'<div class="wide"><table>{title}<tbody>{"".join(lines)}</tbody></table></div>'


def _cells(tag: str, cells: Sequence[str], figures: Sequence[bool]) -> str:
    return "".join(
        f"<{tag}{' class=n' if figure else ''}>{escape(cell)}</{tag}>"
        for cell, figure in zip(cells, figures, strict=True)
    )


def _is_number(text: str) -> bool:
    return text[:1].isdigit() or (text[:1] in "+-" and text[1:2].isdigit())


def _db(value: float | None) -> str:
    return "equal" if value is None else f"{value:.1f} dB"


def _time(us: float) -> str:
    return f"{us / 1000:.2f} ms" if us >= 1000 else f"{us:.1f} µs"


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e6:.2f} MB" if nbytes >= 1e6 else f"{nbytes / 1e3:.1f} kB"
