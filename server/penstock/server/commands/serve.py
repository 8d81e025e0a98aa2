"""``penstock serve``: its flags, and what is checked before the server is imported.

Knows the command line. Must not import the server: ``--help`` works without the server extra, and
a missing one is named. ``serving`` does the work. Defaults are repeated here for the same reason;
a test holds them to those of ``ServeOptions``.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from penstock.server.commands import door_flags, http_flags, logs, serve_grpc, values
from penstock.server.commands.failure import USAGE, CommandError

_NEEDED: Final = {
    "uvloop": "uvloop", "httptools": "httptools", "hpack": "hpack", "google.protobuf": "protobuf"
}  # fmt: skip

DESCRIPTION: Final = """\
Serves models over HTTP and gRPC: KServe v2 as Triton speaks it, GraphPipe, and other protocols.

A repository is a folder in Triton's layout, REPOSITORY/MODEL/1/model.onnx, where each model may
have a config.pbtxt; without one everything is read from the model file. A single model file will
do too. `penstock backends` lists the engines and their files.
A model that cannot be loaded is reported with its reason and stops no other."""

EPILOG: Final = """\
examples:
  penstock serve --demo
      handwritten digits, which come with Penstock; in another terminal: penstock infer digits
  penstock serve -m ./models -m ./extra/resnet50.onnx --host 0.0.0.0
      a repository and a single model, open to the network
  penstock serve -m /models --http-port off --uds /run/penstock.sock --uds-mode 666
      as a sidecar: over a unix socket alone (clients: unix:/run/penstock.sock)
  penstock serve -m /models --log-format json --shutdown-delay-s 5 --exit-on-error
      in a container: logs for machines, time for load balancers, no start with broken models

Ends on SIGTERM or Ctrl-C: refuses new requests, finishes those it accepted, exits with 0.
Exit status: 0 ended as asked, 1 could not start, 2 wrong usage."""

NO_MODELS: Final = """\
nothing to serve: name a model repository, or try the demonstration
  penstock serve --model-repository PATH   a folder with MODEL/1/model.onnx in it, or a model file
  penstock serve --demo                    the handwritten digits that come with Penstock"""


def add(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "serve",
        help="serve models over HTTP and gRPC",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_models(parser.add_argument_group("models"))
    _add_control(parser.add_argument_group("changes of models while serving"))
    _add_addresses(parser.add_argument_group("addresses"))
    _add_limits(parser.add_argument_group("limits", "beyond each comes an error, never a hang"))
    http_flags.add_to(parser)
    serve_grpc.add(parser)
    _add_life(parser.add_argument_group("start and end"))
    _add_logging(parser.add_argument_group("logging", "logs go to stderr"))
    parser.set_defaults(run=run)


def _add_models(group: Any) -> None:
    group.add_argument(
        "-m", "--model-repository", metavar="PATH", type=Path, action="append", default=[],
        help="a repository in Triton's layout, or a model file; may be given several times",
    )  # fmt: skip
    group.add_argument(
        "--demo", action="store_true", help="serve the model 'digits' that comes with Penstock"
    )
    group.add_argument(
        "--default-model", metavar="NAME", default="",
        help="what GraphPipe requests to / get (default: the only model, if there is only one)",
    )  # fmt: skip
    group.add_argument(
        "--load-threads", "--model-load-thread-count", metavar="N", type=values.count, default=2,
        help="models loaded at the same time (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--model-load-retry-count", metavar="N", type=values.index, default=0,
        help="how often a model that failed to load is tried again (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--model-config-name", metavar="NAME", default="",
        help="use configs/NAME.pbtxt in the models that have it",
    )  # fmt: skip
    group.add_argument(
        "--allow-code", metavar="BACKEND", action="append", default=[],
        help="serve models of this backend although they are programs: python, pytorch, tensorrt, "
        "tvm or one of another package; a comma-separated list, or all (default: none)",
    )  # fmt: skip
    group.add_argument(
        "--require-checksums", metavar="BOOL", type=values.truth, nargs="?", const=True,
        default=False,
        help="refuse versions without a file SHA256SUMS (default: those that have one must match)",
    )  # fmt: skip
    group.add_argument(
        "--disable-auto-complete-config", metavar="BOOL", type=values.truth, nargs="?",
        const=True, default=False,
        help="refuse models whose config.pbtxt does not state every input and output",
    )  # fmt: skip


def _add_control(group: Any) -> None:
    group.add_argument(
        "--model-control-mode", choices=("none", "poll", "explicit"), default="none",
        help="poll: look at the repository from time to time; explicit: load and unload by "
        "request alone (default: none)",
    )  # fmt: skip
    group.add_argument(
        "--load-model", metavar="NAME", action="append", default=[],
        help="explicit: load this at the start, * is every model; may be given several times",
    )  # fmt: skip
    group.add_argument(
        "--repository-poll-secs", metavar="S", type=values.positive_seconds, default=15.0,
        help="poll: seconds between two looks (default: %(default)g)",
    )  # fmt: skip
    group.add_argument(
        "--allow-code-upload", metavar="BOOL", type=values.truth, nargs="?", const=True,
        default=False,
        help="explicit: take files for every backend from requests; programs need --allow-code "
        "besides (default: ONNX models for ONNX Runtime only)",
    )  # fmt: skip
    group.add_argument(
        "--strict-readiness", metavar="BOOL", type=values.truth, nargs="?", const=True,
        default=False,
        help="not ready while any model loads or failed to (default: one that serves will do)",
    )  # fmt: skip


def _add_addresses(group: Any) -> None:
    group.add_argument(
        "--host", "--http-address", metavar="ADDRESS", default="127.0.0.1",
        help="listen here; 0.0.0.0 or :: is every interface (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--http-port", metavar="PORT", type=values.port, default=8000,
        help="HTTP, all protocols; 0: any free port, off: none (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--metrics-port", metavar="PORT", type=values.port, default=8002,
        help="Prometheus metrics at /metrics; 0: any free port, off: none (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--uds", metavar="PATH", type=Path, help="listen on this unix socket as well"
    )
    group.add_argument(
        "--uds-mode", metavar="OCTAL", type=values.file_mode, default=0o660,
        help="the socket's permissions (default: 660, owner and group)",
    )  # fmt: skip
    door_flags.add_to(group)
    group.add_argument(
        "--allow-client-shm", metavar="BOOL", type=values.truth, nargs="?", const=True,
        default=False,
        help="let clients pass tensors in shared memory, /dev/shm or CUDA: whoever may send "
        "requests may then make the server read and write any of it (default: false)",
    )  # fmt: skip


def _add_limits(group: Any) -> None:
    group.add_argument(
        "--http-max-connections", metavar="N", type=values.count, default=16384,
        help="open connections of a port (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--http-max-body-bytes", metavar="SIZE", type=values.size, default=2 << 30,
        help="the largest request; 64MiB, 2GiB... (default: 2GiB)",
    )  # fmt: skip
    group.add_argument(
        "--http-idle-timeout-s", metavar="S", type=values.count, default=600,
        help="seconds until a silent connection is closed (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--http-read-timeout-s", metavar="S", type=values.count, default=30,
        help="seconds in which a request must make some progress (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--http-write-timeout-s", metavar="S", type=values.count, default=60,
        help="seconds in which a client must read some of its reply (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--queue-max", metavar="JOBS", type=values.count, default=4096,
        help="requests that may wait for a model; its config.pbtxt may say otherwise "
        "(default: %(default)s)",
    )  # fmt: skip


def _add_life(group: Any) -> None:
    group.add_argument(
        "--exit-on-error", metavar="BOOL", type=values.truth, nargs="?", const=True, default=False,
        help="end with status 1 if any model failed to load (default: serve the others)",
    )  # fmt: skip
    group.add_argument(
        "--ready-file", metavar="PATH", type=Path,
        help="written when ready, as JSON with ports, socket and pid; removed at the end",
    )  # fmt: skip
    group.add_argument(
        "--shutdown-delay-s", metavar="S", type=values.seconds, default=0.0,
        help="seconds between 'not ready' and refusing requests (default: %(default)g)",
    )  # fmt: skip
    group.add_argument(
        "--exit-timeout-s", "--exit-timeout-secs", metavar="S", type=values.seconds, default=30.0,
        help="seconds that requests in progress may take to finish (default: %(default)g)",
    )  # fmt: skip


def _add_logging(group: Any) -> None:
    group.add_argument("--log-level", choices=logs.LEVELS, default="info", help="default: info")
    group.add_argument(
        "--log-format", choices=logs.FORMATS, default="text",
        help="json: a JSON object a line, and no start-up table (default: text)",
    )  # fmt: skip
    group.add_argument(
        "--trace-config", metavar="NAME=VALUE", action="append", default=[],
        help="file=PATH, level=TIMESTAMPS|TENSORS, rate=N, count=N, log-frequency=N: trace one "
        "request in N; clients may change all but the file (default: off)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    if not arguments.model_repository and not arguments.demo:
        raise CommandError(NO_MODELS, status=USAGE)
    addresses = ("http_port", "uds", "grpc_port", "grpc_uds")
    if all(getattr(arguments, name) is None for name in addresses):
        raise CommandError(
            "nothing to listen on: --http-port and --grpc-port are off, "
            "and there is neither --uds nor --grpc-uds",
            status=USAGE,
        )
    if arguments.load_model and arguments.model_control_mode != "explicit":
        raise CommandError("--load-model needs --model-control-mode explicit", status=USAGE)
    missing = [name for module, name in _NEEDED.items() if not _is_there(module)]
    if missing:
        raise CommandError(
            f"serving needs {', '.join(missing)}, which this installation does not have",
            "pip install 'penstock[server,onnx]'",
            status=USAGE,
        )
    from penstock.server.commands import serving

    return serving.serve(arguments)


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False
