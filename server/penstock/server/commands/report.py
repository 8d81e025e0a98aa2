"""Reports a server that has just become ready, as the start-up text or as one line of the log.

Knows the running ``App``; ``startup`` lays out the text and knows nothing of it.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from penstock.protocol import dtype as dt
from penstock.protocol.message import TensorSpec
from penstock.server import demo
from penstock.server.app import App
from penstock.server.commands.startup import Addresses, ModelLine, startup_lines
from penstock.server.commands.terminal import forgive, terminal_for
from penstock.server.models import ModelVersion

_log = logging.getLogger(__name__)

_PICTURES: Final = TensorSpec("image", dt.FP32, (-1, 1, 8, 8))
_EVERY: Final = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}


def report(app: App, *, as_log: bool) -> None:
    """Says what is served and where: on stdout, or ``as_log`` through logging."""
    models = [describe(entry) for entry in app.models]
    default = app.options.default_model
    if default and not app.models.versions(default):
        _log.warning("--default-model: there is no model '%s'", default)
    if as_log:
        _log_report(models, addresses_of(app))
        return
    lines = startup_lines(
        models,
        addresses_of(app),
        terminal_for(sys.stdout),
        default_model=default,
        example=_example(models),
        mode=app.options.model_control_mode.value,
    )
    forgive(sys.stdout)
    try:
        print("\n".join(lines), flush=True)
    except OSError:  # Nobody reads it: no reason not to serve, nor to fail at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def describe(entry: ModelVersion) -> ModelLine:
    """A version in the table of models, as values."""
    loaded = entry.loaded
    if loaded is None:
        return ModelLine(entry.name, entry.version, entry.state.value, reason=entry.reason)
    return ModelLine(
        entry.name,
        entry.version,
        entry.state.value,
        inputs=loaded.metadata.inputs,
        outputs=loaded.metadata.outputs,
        rows_max=loaded.lane.admission.rows_max,
        backend=loaded.config.backend or loaded.metadata.platform,
        mode=loaded.lane.mode,
        load_s=loaded.load_s,
        ignored=loaded.config.ignored,
    )


def addresses_of(app: App) -> Addresses:
    """Where the server can be reached from this machine."""
    host = app.options.host
    host = _EVERY.get(host, f"[{host}]" if ":" in host else host)

    def url(port: int | None, scheme: str = "http") -> str:
        return "" if port is None else f"{scheme}://{host}:{port}"

    def socket(path: Path | None) -> str:
        return str(path.absolute()) if path else ""

    options = app.options
    scheme = "https" if options.http_tls else "http"
    grpc_host = options.grpc.host or options.host
    grpc_host = _EVERY.get(grpc_host, f"[{grpc_host}]" if ":" in grpc_host else grpc_host)
    return Addresses(
        url(app.http_port, scheme),
        url(app.metrics_port),
        socket(options.uds),
        "" if app.grpc.port is None else f"{grpc_host}:{app.grpc.port}",
        socket(options.grpc.uds),
        options.grpc.tls is not None,
    )


def _log_report(models: Sequence[ModelLine], addresses: Addresses) -> None:
    for model in models:
        for ignored in model.ignored:
            _log.warning("model %s: config.pbtxt: %s", model.name, ignored)
    fields: dict[str, Any] = {
        "http": addresses.http or None,
        "metrics": addresses.metrics or None,
        "uds": addresses.socket or None,
        "grpc": addresses.grpc or None,
        "grpc_uds": addresses.grpc_socket or None,
        "models": [{"name": m.name, "version": m.version, "state": m.state} for m in models],
    }
    _log.info("ready", extra={"fields": fields})


def _example(models: Sequence[ModelLine]) -> Mapping[str, Sequence[float]] | None:
    """A real picture, where the first ready model is the demonstration."""
    first = next((model for model in models if model.ready), None)
    if first is None or (first.name, *first.inputs) != ("digits", _PICTURES):
        return None
    images, _ = demo.heldout()
    pixels = [round(float(pixel), 2) for pixel in images[0].ravel()]
    return {"image": [int(pixel) if pixel in (0, 1) else pixel for pixel in pixels]}
