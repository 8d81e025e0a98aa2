"""``penstock models``: what a running server has, loaded or not; ``load`` and ``unload`` change it.

Asks over KServe v2, so it works with Triton and its like too.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from penstock.server.commands import models_change
from penstock.server.commands.target import add_target

if TYPE_CHECKING:
    from penstock.protocol.message import ModelMetadata, TensorSpec
    from penstock.server.commands.remote import Client, ModelStatus
    from penstock.server.commands.terminal import Terminal

_OTHER_COLUMNS: Final = 40
_HEADER: Final = ("MODEL", "VERSION", "STATE", "PLATFORM", "INPUTS {} OUTPUTS")

EPILOG: Final = """\
examples:
  penstock models
  penstock models --url unix:/run/penstock.sock
  penstock models load digits
  penstock models load digits --config digits.json --file 2/model.onnx=./trained.onnx
  penstock models unload digits
  penstock models --json | jq -r '.[] | select(.state != "READY") | .name + ": " + .reason'"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One version; ``metadata`` is None unless it is ready."""

    status: ModelStatus
    metadata: ModelMetadata | None = None


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "models",
        help="list the models of a running server, load and unload them",
        description="Lists the models of a running server: versions, states, inputs and outputs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_target(parser)
    parser.add_argument("--json", action="store_true", help="a JSON list, for programs")
    parser.set_defaults(run=run)
    changes = parser.add_subparsers(
        title="changes", metavar="CHANGE", dest="change", help="without one, models are listed"
    )
    models_change.add(changes)


def run(arguments: argparse.Namespace) -> int:
    from penstock.server.commands.remote import connected
    from penstock.server.commands.terminal import forgive, terminal_for

    with connected(arguments.url, protocol="v2", timeout_s=arguments.timeout) as client:
        entries = [_entry(client, status) for status in client.models()]
    if arguments.json:
        print(json.dumps([document(entry) for entry in entries], indent=2))
    else:
        forgive(sys.stdout)
        print("\n".join(lines(entries, terminal_for(sys.stdout))))
    return 0


def _entry(client: Client, status: ModelStatus) -> Entry:
    from penstock.server.commands.remote import PenstockError

    if status.state != "READY":
        return Entry(status)
    try:
        return Entry(status, client.metadata(status.name, version=status.version))
    except PenstockError:  # It was unloaded meanwhile; the list still says what was there.
        return Entry(status)


def document(entry: Entry) -> dict[str, Any]:
    """A version as JSON: v2's names for tensors; no inputs and outputs unless it is ready."""
    status, metadata = entry.status, entry.metadata
    made: dict[str, Any] = {
        "name": status.name,
        "version": status.version,
        "state": status.state,
        "reason": status.reason,
    }
    if metadata is not None:
        made["platform"] = metadata.platform
        made["inputs"] = _tensors(metadata.inputs)
        made["outputs"] = _tensors(metadata.outputs)
    return made


def _tensors(specs: Iterable[TensorSpec]) -> list[dict[str, Any]]:
    return [
        {"name": spec.name, "datatype": spec.dtype.name, "shape": list(spec.shape)}
        for spec in specs
    ]


def lines(entries: Sequence[Entry], terminal: Terminal) -> list[str]:
    """The table, and below it why models are not ready."""
    from penstock.server.commands.signature import signature_lines
    from penstock.server.commands.terminal import Cell, table

    if not entries:
        return ["The server has no models."]
    rows, reasons = [], []
    columns_max = terminal.columns - _OTHER_COLUMNS
    for entry in entries:
        status, metadata = entry.status, entry.metadata
        shown = metadata and signature_lines(
            metadata.inputs, metadata.outputs, terminal.arrow, columns_max
        )
        good = status.state == "READY"
        rows.append(
            [
                Cell((status.name,), "bold"),
                Cell((status.version,)),
                Cell((status.state,), "green" if good else "red"),
                Cell((metadata.platform if metadata else "",)),
                Cell(shown or ("",)),
            ]
        )
        if status.reason:
            reasons.append(f"{' '.join((status.name, status.version)).strip()}: {status.reason}")
    made = table([title.format(terminal.arrow) for title in _HEADER], rows, terminal)
    return [*made, "", *reasons] if reasons else made
