"""The ``penstock`` program: reads the command line and hands over to a command.

Knows the commands' names only; each imports what it needs when it runs, so that everything but
``serve`` works with the base installation. ``main`` returns the exit status: 0 done, 1 failed,
2 wrong usage, 130 interrupted. Operators' mistakes end with a text, our own with a traceback.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

from penstock.server.commands import backends, infer, models, quantize, serve, version
from penstock.server.commands import compile as compiling
from penstock.server.commands.failure import FAILED, USAGE, CommandError
from penstock.server.commands.terminal import forgive

_INTERRUPTED: Final = 130

EPILOG: Final = """\
start here, in two terminals:
  penstock serve --demo      a server with a model that reads handwritten digits
  penstock infer digits      pictures for it, with its answers

penstock COMMAND --help tells all about a command."""


class Parser(argparse.ArgumentParser):
    """Tells a mistake in two lines; argparse would bury it under a list of all flags."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: error: {message}\n  see: {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; ``argv`` is without the program's name."""
    parser = build_parser()
    try:
        arguments, unknown = parser.parse_known_args(argv)
        if unknown:
            _refuse(arguments, unknown)
    except SystemExit as end:  # --help, --version, or a mistake that argparse has told already
        return end.code if isinstance(end.code, int) else USAGE
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return USAGE
    return _run(arguments.run, arguments)


def _refuse(arguments: argparse.Namespace, unknown: Sequence[str]) -> NoReturn:
    """Argparse would tell it for the whole program, and with the help of that alone."""
    command = Parser(prog=" ".join(filter(None, ("penstock", arguments.command))), add_help=False)
    text = f"unrecognized arguments: {' '.join(unknown)}"
    if arguments.command == "serve" and not unknown[0].startswith("-"):
        text += f"\n  what to serve is named with -m: penstock serve -m {shlex.quote(unknown[0])}"
    command.error(text)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = Parser(
        prog="penstock",
        description="A model-serving gateway: KServe v2 and other protocols over HTTP and gRPC.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"penstock {version.own_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for command in (serve, infer, models, backends, compiling, quantize, version):
        command.add(commands)
    return parser


def _run(run: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    try:
        status = run(arguments)
        sys.stdout.flush()
    except CommandError as error:
        forgive(sys.stderr)
        print(error.text(arguments.command), file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # The reader of our output has gone, as `| head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return status


if __name__ == "__main__":
    sys.exit(main())
