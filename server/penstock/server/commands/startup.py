"""What ``penstock serve`` says once it serves: models, addresses, a line to try, what is wrong.

Pure: values in, lines out. Must not know the running server; ``serving`` describes it in these
values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from penstock.protocol.message import TensorSpec
from penstock.server.commands.curl import curl_line
from penstock.server.commands.signature import signature_lines
from penstock.server.commands.terminal import Cell, Terminal, table

MODELS_URLS_MAX: Final = 8
"""With more models, their URLs are shown as one pattern."""
_OTHER_COLUMNS: Final = 60
"""What the table needs for everything but inputs and outputs, as a rule."""
_HEADER: Final = ("MODEL", "VERSION", "STATE", "INPUTS {} OUTPUTS", "BATCH", "RUNS ON", "LOADED")


@dataclass(frozen=True, slots=True)
class ModelLine:
    """One version of a model. ``rows_max`` 0 means that it does not batch.

    ``ignored`` are the settings of its config.pbtxt that change nothing, with their reasons.
    """

    name: str
    version: str
    state: str
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    rows_max: int = 0
    backend: str = ""
    mode: str = ""
    load_s: float = 0.0
    reason: str = ""
    ignored: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        return self.state == "READY"


@dataclass(frozen=True, slots=True)
class Addresses:
    """Base URLs and sockets' paths; empty for what is off. ``grpc`` is ``host:port``."""

    http: str = ""
    metrics: str = ""
    socket: str = ""
    grpc: str = ""
    grpc_socket: str = ""
    grpc_tls: bool = False


def startup_lines(
    models: Sequence[ModelLine],
    addresses: Addresses,
    terminal: Terminal,
    *,
    default_model: str = "",
    example: Mapping[str, Sequence[float]] | None = None,
    mode: str = "none",
) -> list[str]:
    """The whole text; ``example`` are values for the inputs of the first ready model, ``mode``
    that of model control."""
    lines = _models_lines(models, terminal)
    lines += [""] * bool(lines)
    lines += _address_lines(models, addresses, default_model)
    first = next((model for model in models if model.ready), None)
    if first is not None:
        lines += ["", terminal.paint("Try it:", "bold")]
        base = addresses.http or "http://localhost"
        socket = "" if addresses.http else addresses.socket
        line = curl_line(
            base, first.name, first.inputs, first.outputs, socket=socket, example=example
        )
        lines.append(f"  {line}")
    return lines + problem_lines(models, terminal, mode)


_EMPTY: Final = {
    "none": (
        "NO MODELS: the repository is empty",
        "put each model at REPOSITORY/MODEL/1/model.onnx and start again",
    ),
    "poll": (
        "NO MODELS YET: the repository is empty",
        "put each model at REPOSITORY/MODEL/1/model.onnx; it is loaded once it is whole",
    ),
    "explicit": ("NO MODELS YET: none is loaded", "penstock models load MODEL"),
}
"""By the mode of model control: what is the matter, and what to do."""


def problem_lines(models: Sequence[ModelLine], terminal: Terminal, mode: str) -> list[str]:
    """What the operator should know of: models that are not served, settings without effect."""
    lines = []
    for model in models:
        if not model.ready:
            title = f"{model.name} {model.version}".strip()
            lines += ["", terminal.paint(f"NOT SERVED: {title}", "red")]
            lines += [f"  {line}" for line in (model.reason or "no reason given").splitlines()]
            others = any(other.ready for other in models)
            lines.append(f"  What to do: {_advice(model.reason, others)}")
    notes = [f"note: {m.name}: config.pbtxt: {ignored}" for m in models for ignored in m.ignored]
    if notes:
        lines += ["", *(terminal.paint(note, "yellow") for note in dict.fromkeys(notes))]
    if not models:
        text, advice = _EMPTY[mode]
        lines += ["", terminal.paint(text, "red" if mode == "none" else "yellow")]
        lines.append(f"  What to do: {advice}")
    return lines


def _advice(reason: str, others: bool) -> str:
    if "No module named" in reason or "not installed" in reason:
        return "install the backend's engine (for ONNX: pip install 'penstock[onnx]'), start again"
    meanwhile = "every other model is served" if others else "the server runs without any model"
    return f"correct it and start again; {meanwhile} meanwhile"


def _models_lines(models: Sequence[ModelLine], terminal: Terminal) -> list[str]:
    rows = []
    columns_max = terminal.columns - _OTHER_COLUMNS
    for model in models:
        batch = (str(model.rows_max) if model.rows_max else "none") if model.ready else ""
        engine = f"{model.backend}, {model.mode}" if model.mode else model.backend
        texts = [
            (model.name,),
            (model.version,),
            (model.state,),
            signature_lines(model.inputs, model.outputs, terminal.arrow, columns_max),
            (batch,),
            (engine,),
            (f"{model.load_s:.2f} s" if model.ready else "",),
        ]
        styles = ["bold", "", "green" if model.ready else "red", "", "", "", ""]
        rows.append([Cell(text, style) for text, style in zip(texts, styles, strict=True)])
    header = [title.format(terminal.arrow) for title in _HEADER]
    return table(header, rows, terminal) if rows else []


def _address_lines(
    models: Sequence[ModelLine], addresses: Addresses, default_model: str
) -> list[str]:
    base = addresses.http or (addresses.socket and "http://localhost")
    names = list(dict.fromkeys(model.name for model in models if model.ready))
    paths = [quote(name, safe="") for name in names]
    if len(names) > MODELS_URLS_MAX:
        paths = ["MODEL"]
    lines = [f"GraphPipe  {base}/graphpipe/{path}" for path in paths]
    if not paths and base:
        lines.append(f"HTTP       {base}")
    if default_model in names or (not default_model and len({m.name for m in models}) == 1):
        lines += [f"GraphPipe  {base}/  (default model: {default_model or n})" for n in names[:1]]
    lines += [f"KServe v2  {base}/v2/models/{path}/infer" for path in paths]
    if addresses.grpc:
        lines.append(f"gRPC       {addresses.grpc}{' (TLS)' if addresses.grpc_tls else ''}")
    if addresses.grpc_socket:
        lines.append(f"gRPC       unix:{addresses.grpc_socket}")
    if addresses.metrics:
        lines.append(f"Metrics    {addresses.metrics}/metrics")
    if addresses.socket:
        lines.append(f"Socket     unix:{addresses.socket}")
    return lines
