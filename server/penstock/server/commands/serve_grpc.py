"""The flags of the gRPC port and of TLS, under Triton's names where Triton has them.

Knows the command line. Must not import the server; ``options_grpc`` reads the flags for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from penstock.server.commands import values

TRANSPORTS: Final = ("own", "grpcio")


def add(parser: Any) -> None:
    grpc = parser.add_argument_group("gRPC", "KServe v2 over HTTP/2")
    _add_addresses(grpc)
    _add_access(grpc)
    _add_limits(parser.add_argument_group("gRPC limits", "beyond each comes an error"))
    _add_keepalive(parser.add_argument_group("gRPC connections", "times in milliseconds"))
    _add_tls(parser.add_argument_group("TLS", "files are PEM, and read again when they change"))


def _add_addresses(group: Any) -> None:
    group.add_argument(
        "--grpc-port", metavar="PORT", type=values.port, default=8001,
        help="0: any free port, off: none (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--grpc-address", metavar="ADDRESS", default="", help="default: what --host says"
    )
    group.add_argument(
        "--grpc-uds", metavar="PATH", type=Path, help="serve gRPC on this unix socket as well"
    )
    group.add_argument(
        "--grpc-uds-mode", metavar="OCTAL", type=values.file_mode, default=0o660,
        help="the socket's permissions (default: 660, owner and group)",
    )  # fmt: skip
    group.add_argument(
        "--grpc-transport", choices=TRANSPORTS, default="own",
        help="own: Penstock's HTTP/2; grpcio: the library's, slower (default: own)",
    )  # fmt: skip


def _add_access(group: Any) -> None:
    group.add_argument(
        "--grpc-restricted-protocol", metavar="GROUP[,GROUP...]:KEY=VALUE", action="append",
        default=[],
        help="calls of these groups of methods need the metadata triton-grpc-protocol-KEY with "
        "this value; groups: health, metadata, inference, shared-memory, model-config, "
        "model-repository, statistics, trace, logging (default: all are open)",
    )  # fmt: skip
    group.add_argument(
        "--grpc-header-forward-pattern", metavar="REGEX", default="",
        help="metadata whose names it is found in become parameters of the request "
        "(default: none)",
    )  # fmt: skip


def _add_limits(group: Any) -> None:
    group.add_argument(
        "--grpc-max-connections", metavar="N", type=values.count, default=2048,
        help="open connections (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--grpc-max-concurrent-streams", metavar="N", type=values.count, default=4096,
        help="calls in progress on a connection (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--grpc-max-message-bytes", metavar="SIZE", type=values.size, default=2 << 30,
        help="the largest message of a client; 64MiB, 2GiB... (default: 2GiB)",
    )  # fmt: skip
    group.add_argument(
        "--grpc-idle-timeout-s", metavar="S", type=values.index, default=0,
        help="seconds without a call until a client is asked to go; 0: never (default: 0)",
    )  # fmt: skip
    group.add_argument(
        "--grpc-read-timeout-s", metavar="S", type=values.count, default=30,
        help="seconds in which a message must make some progress (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--grpc-write-timeout-s", metavar="S", type=values.count, default=60,
        help="seconds in which a client must read some of its reply (default: %(default)s)",
    )  # fmt: skip


def _add_keepalive(group: Any) -> None:
    group.add_argument(
        "--grpc-keepalive-time", metavar="MS", type=values.count, default=7_200_000,
        help="silence after which a client with calls in progress is pinged (default: 2 hours)",
    )  # fmt: skip
    group.add_argument(
        "--grpc-keepalive-timeout", metavar="MS", type=values.count, default=20_000,
        help="time for the answer, then the connection is given up (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--grpc-keepalive-permit-without-calls", metavar="BOOL", type=values.truth, nargs="?",
        const=True, default=False, help="ping clients without calls too (default: false)",
    )  # fmt: skip
    group.add_argument(
        "--grpc-http2-min-recv-ping-interval-without-data", metavar="MS", type=values.index,
        default=300_000,
        help="pings of a client that come sooner, with nothing sent between them, are bad ones "
        "(default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--grpc-http2-max-ping-strikes", metavar="N", type=values.index, default=2,
        help="bad pings that are forgiven; with one more the connection ends "
        "(default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--grpc-max-connection-age", metavar="MS", type=values.index, default=0,
        help="age at which a client is asked to go, so that it connects anew; 0: never "
        "(default: 0)",
    )  # fmt: skip
    group.add_argument(
        "--grpc-max-connection-age-grace", metavar="MS", type=values.index, default=0,
        help="time for the calls then in progress; 0: no limit (default: 0)",
    )  # fmt: skip


def _add_tls(group: Any) -> None:
    group.add_argument(
        "--grpc-use-ssl", metavar="BOOL", type=values.truth, nargs="?", const=True, default=False,
        help="TLS on the gRPC port, with the certificate and key below (default: false)",
    )  # fmt: skip
    group.add_argument(
        "--grpc-use-ssl-mutual", metavar="BOOL", type=values.truth, nargs="?", const=True,
        default=False,
        help="TLS in which clients show a certificate signed by --grpc-root-cert (default: false)",
    )  # fmt: skip
    for flag, what in (
        ("--grpc-server-cert", "the server's certificate, intermediate ones behind it"),
        ("--grpc-server-key", "the key to it, without a pass phrase"),
        ("--grpc-root-cert", "authorities whose clients are let in"),
        ("--http-tls-cert", "the HTTP port's certificate; with it the port speaks TLS alone"),
        ("--http-tls-key", "the key to it, without a pass phrase"),
        ("--http-tls-ca", "authorities; clients must show a certificate that one has signed"),
    ):
        group.add_argument(flag, metavar="FILE", type=Path, help=what)
