"""``penstock infer``: its flags, and the course of one inference on a running server.

Reading inputs, writing outputs and the demonstration are modules of their own.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, Final

from penstock.server.commands import values
from penstock.server.commands.failure import USAGE, CommandError
from penstock.server.commands.target import add_target

if TYPE_CHECKING:
    from penstock.server.commands.remote import Client, ModelMetadata

DESCRIPTION: Final = """\
Runs a model on a running server and shows its outputs.

Without --input the model 'digits' of the demonstration gets pictures that its training never saw;
they are drawn with the answers beside them."""

EPILOG: Final = """\
examples:
  penstock infer digits
  penstock infer digits --index 7 --index 42
  penstock infer add_sub --input 'INPUT0=[[1,2,3,4]]' --input INPUT1=@numbers.json --output json
  penstock infer resnet50 --input data=picture.npy --output scores.npz --protocol v2
  jq '{INPUT0: .a, INPUT1: .b}' row.json | penstock infer add_sub --input -

Exit status: 0 answered, 1 no answer, 2 wrong usage."""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "infer",
        help="run a model on a running server",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="the model's name; see: penstock models")
    parser.add_argument(
        "--version", metavar="N", default="", help="its version (default: the server's choice)"
    )
    parser.add_argument(
        "--input", metavar="NAME=VALUE", action="append", default=[],
        help="an input, by name unless there is only one: file.npy, @file.json, or JSON such as "
        "[[1,2]]; - reads a JSON object of inputs from stdin; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--output", metavar="FORM", default="text",
        help="text, json, or a file to write that ends with .npz (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--protocol", choices=("graphpipe", "v2"), default="graphpipe", help="default: graphpipe"
    )
    add_target(parser)
    group = parser.add_argument_group("demonstration", "for the model 'digits' without --input")
    group.add_argument(
        "--index", metavar="N", type=values.index, action="append",
        help="this held-out picture, counted from 0; may be given several times",
    )  # fmt: skip
    group.add_argument(
        "--count", metavar="N", type=values.count,
        help="so many pictures by chance (default: 3)",
    )  # fmt: skip
    group.add_argument(
        "--seed", metavar="N", type=values.index, help="the same pictures for the same seed"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.output not in ("text", "json") and not arguments.output.endswith(".npz"):
        raise CommandError(
            f"--output: {arguments.output!r} is neither text nor json nor a file.npz", status=USAGE
        )
    from penstock.server.commands.remote import connected

    with connected(
        arguments.url,
        protocol=arguments.protocol,
        timeout_s=arguments.timeout,
        model=arguments.model,
    ) as client:
        metadata = client.metadata(arguments.model, version=arguments.version)
        if arguments.input:
            return _infer(client, metadata, arguments)
        return _demonstrate(client, metadata, arguments)


def _infer(client: Client, metadata: ModelMetadata, arguments: argparse.Namespace) -> int:
    from penstock.server.commands.infer_inputs import read_inputs
    from penstock.server.commands.infer_outputs import write_result

    if arguments.index is not None or arguments.count is not None or arguments.seed is not None:
        raise CommandError("--index, --count and --seed go without --input", status=USAGE)
    inputs = read_inputs(arguments.input, metadata.inputs, sys.stdin)
    result = client.infer(
        arguments.model, inputs.arrays, dtypes=inputs.dtypes, version=arguments.version
    )
    name, version = metadata.name or arguments.model, metadata.version or arguments.version
    write_result(result, arguments.output, model=name, version=version)
    return 0


def _demonstrate(client: Client, metadata: ModelMetadata, arguments: argparse.Namespace) -> int:
    from penstock.server.commands import digits

    if arguments.model != "digits" or not digits.takes_pictures(metadata.inputs):
        raise CommandError(f"no --input given; {_wanted(metadata, arguments.model)}", status=USAGE)
    return digits.demonstrate(client, arguments)


def _wanted(metadata: ModelMetadata, model: str) -> str:
    """What a model takes, and how that is written."""
    from penstock.server.commands.signature import spec_text

    taken = ", ".join(spec_text(spec) for spec in metadata.inputs) or "nothing"
    flags = " ".join(f"--input {spec.name}=file.npy" for spec in metadata.inputs)
    return f"{model} takes {taken}\n  penstock infer {model} {flags}"
