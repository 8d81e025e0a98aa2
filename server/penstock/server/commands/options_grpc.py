"""The flags of ``serve_grpc`` as the server takes them. Pure but for the look at files."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from penstock.server.commands.failure import USAGE, CommandError
from penstock.server.front.grpc_service import GrpcServiceOptions
from penstock.server.front.restriction import parse_rules
from penstock.server.front.target import forward_pattern
from penstock.server.transport.grpc.listener import GrpcLimits
from penstock.server.transport.grpc.options import GrpcOptions
from penstock.server.transport.tls import PemFiles


def grpc_options(arguments: argparse.Namespace) -> GrpcOptions:
    """Raises CommandError for flags that do not go together."""
    if arguments.grpc_transport == "grpcio" and find_spec("grpc") is None:
        raise CommandError(
            "--grpc-transport grpcio needs grpcio, which this installation does not have",
            "pip install 'penstock[grpcio]'",
            status=USAGE,
        )
    return GrpcOptions(
        port=arguments.grpc_port,
        host=arguments.grpc_address,
        uds=arguments.grpc_uds,
        uds_mode=arguments.grpc_uds_mode,
        tls=_grpc_tls(arguments),
        transport=arguments.grpc_transport,
        limits=_limits(arguments),
    )


def grpc_service_options(arguments: argparse.Namespace) -> GrpcServiceOptions:
    """Raises CommandError for rules or a pattern that cannot be."""
    try:
        rules = parse_rules(arguments.grpc_restricted_protocol)
    except ValueError as error:
        raise CommandError(f"--grpc-restricted-protocol: {error}", status=USAGE) from None
    try:
        forward = forward_pattern(arguments.grpc_header_forward_pattern)
    except ValueError as error:
        raise CommandError(f"--grpc-header-forward-pattern: {error}", status=USAGE) from None
    return GrpcServiceOptions(rules, forward)


def _limits(arguments: argparse.Namespace) -> GrpcLimits:
    bytes_max = arguments.grpc_max_message_bytes
    return GrpcLimits(
        connections_max=arguments.grpc_max_connections,
        streams_max=arguments.grpc_max_concurrent_streams,
        message_bytes_max=bytes_max,
        bodies_bytes_max=max(GrpcLimits().bodies_bytes_max, bytes_max),
        idle_timeout_s=arguments.grpc_idle_timeout_s,
        read_timeout_s=arguments.grpc_read_timeout_s,
        write_timeout_s=arguments.grpc_write_timeout_s,
        keepalive_time_s=_whole_s(arguments.grpc_keepalive_time),
        keepalive_timeout_s=_whole_s(arguments.grpc_keepalive_timeout),
        keepalive_without_calls=arguments.grpc_keepalive_permit_without_calls,
        ping_interval_s_min=_whole_s(arguments.grpc_http2_min_recv_ping_interval_without_data),
        ping_strikes_max=arguments.grpc_http2_max_ping_strikes,
        connection_age_s_max=_whole_s(arguments.grpc_max_connection_age),
        connection_grace_s=_whole_s(arguments.grpc_max_connection_age_grace),
    )


def _whole_s(ms: int) -> int:
    """Rounded up: time is kept in seconds here, and 0 has a meaning of its own."""
    return -(-ms // 1000)


def _grpc_tls(arguments: argparse.Namespace) -> PemFiles | None:
    mutual = arguments.grpc_use_ssl_mutual
    if not (arguments.grpc_use_ssl or mutual):
        for flag in ("cert", "key"):
            if getattr(arguments, f"grpc_server_{flag}") is not None:
                raise CommandError(
                    f"--grpc-server-{flag} is given, but TLS is off: add --grpc-use-ssl",
                    status=USAGE,
                )
        return None
    if mutual and arguments.grpc_root_cert is None:
        raise CommandError("--grpc-use-ssl-mutual needs --grpc-root-cert", status=USAGE)
    return _pair(
        ("--grpc-server-cert", arguments.grpc_server_cert),
        ("--grpc-server-key", arguments.grpc_server_key),
        arguments.grpc_root_cert if mutual else None,
    )


def http_tls(arguments: argparse.Namespace) -> PemFiles | None:
    """Raises CommandError for flags that do not go together."""
    certificate, key, ca = arguments.http_tls_cert, arguments.http_tls_key, arguments.http_tls_ca
    if certificate is None and key is None and ca is None:
        return None
    return _pair(("--http-tls-cert", certificate), ("--http-tls-key", key), ca)


def _pair(
    certificate: tuple[str, Path | None], key: tuple[str, Path | None], ca: Path | None
) -> PemFiles:
    return PemFiles(_given(*certificate), _given(*key), ca)


def _given(flag: str, path: Path | None) -> Path:
    if path is None:
        raise CommandError(f"TLS needs {flag}", status=USAGE)
    return path
