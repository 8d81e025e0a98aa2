"""``penstock models load`` and ``unload``: changes what a running server serves.

Knows the command line and files. The server must be under explicit control
(``--model-control-mode explicit``); Triton understands these commands too.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from penstock.server.commands.failure import USAGE, CommandError
from penstock.server.commands.target import add_target

DESCRIPTION = """\
Loads a model of the server's repository, or loads it again where it changed. What served before
serves until its successor is loaded, and goes on if that fails."""


def add(changes: Any) -> None:
    load = changes.add_parser(
        "load", help="load a model, or load it again", description=DESCRIPTION, allow_abbrev=False
    )
    load.add_argument("model", metavar="MODEL", help="its name")
    load.add_argument(
        "--config", metavar="JSON", default=None,
        help="a configuration instead of the repository's, as JSON or the name of a JSON file",
    )  # fmt: skip
    load.add_argument(
        "--file", metavar="PATH=FILE", type=_file, action="append", default=[],
        help="send FILE as PATH within the model's directory (1/model.onnx), instead of the "
        "files there; needs --config; may be given several times",
    )  # fmt: skip
    add_target(load, inherited=True)
    load.set_defaults(run=run_load)
    unload = changes.add_parser(
        "unload", help="unload a model", allow_abbrev=False,
        description="Unloads every version of a model; requests that it accepted are answered.",
    )  # fmt: skip
    unload.add_argument("model", metavar="MODEL", help="its name")
    add_target(unload, inherited=True)
    unload.set_defaults(run=run_unload)


def run_load(arguments: argparse.Namespace) -> int:
    from penstock.server.commands.remote import connected

    if arguments.file and arguments.config is None:
        raise CommandError("--file needs --config: how the files are to be served", status=USAGE)
    config = None if arguments.config is None else _config(arguments.config)
    files = {path: _read(Path(name)) for path, name in arguments.file}
    name = arguments.model
    with connected(arguments.url, protocol="v2", timeout_s=arguments.timeout, model=name) as client:
        client.load(name, config=config, files=files)
    print(f"{name} is loaded")
    return 0


def run_unload(arguments: argparse.Namespace) -> int:
    from penstock.server.commands.remote import connected

    name = arguments.model
    with connected(arguments.url, protocol="v2", timeout_s=arguments.timeout, model=name) as client:
        client.unload(name)
    print(f"{name} is unloaded")
    return 0


def _file(text: str) -> tuple[str, str]:
    path, equals, name = text.partition("=")
    if not (path and equals and name):
        raise argparse.ArgumentTypeError(f"{text!r}: expected PATH=FILE, as 1/model.onnx=new.onnx")
    return path, name


def _config(text: str) -> str:
    if text.lstrip().startswith("{"):
        return text
    return _read(Path(text)).decode(errors="replace")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror}", status=USAGE) from error
