"""``penstock serve`` once its flags are read: builds the options and runs the server.

Knows ``app``. Must not know sockets or models. Every mistake of an operator ends as a
``CommandError``; anything else is a fault of ours and keeps its traceback.
"""

from __future__ import annotations

import argparse
import os

from penstock.backends import catalog
from penstock.server import demo
from penstock.server.app import App, ServeOptions, run
from penstock.server.commands import door_flags, http_flags, logs, process
from penstock.server.commands.failure import USAGE, CommandError
from penstock.server.commands.listening import listen_failure
from penstock.server.commands.options_grpc import grpc_options, grpc_service_options, http_tls
from penstock.server.commands.report import report
from penstock.server.model_control import ControlMode
from penstock.server.ports import ListenError
from penstock.server.repository_layout import LayoutError
from penstock.server.trace_settings import TraceSettings, settings_of
from penstock.server.transport.listener import HttpLimits
from penstock.server.transport.tls import CertificateError

_LAYOUT_HINT = """\
--model-repository takes a folder laid out as MODEL/1/model.onnx, or a model file;
to try Penstock without a model of yours: penstock serve --demo"""


def serve(arguments: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT and returns 0.

    Raises:
        CommandError: the server cannot start; tells what to do.
    """
    logs.set_up(arguments.log_level, arguments.log_format)
    options = options_of(arguments)
    connections_max = options.http.connections_max + options.grpc.limits.connections_max
    process.raise_descriptor_limit(connections_max)
    ready_file = process.ReadyFile(arguments.ready_file)

    def on_ready(app: App) -> None:
        report(app, as_log=arguments.log_format == "json")
        failed = sorted({entry.name for entry in app.models if entry.loaded is None})
        if failed and arguments.exit_on_error:
            raise CommandError(
                f"not every model could be loaded: {', '.join(failed)}",
                "the reasons are above; without --exit-on-error the other models are served",
            )
        ready_file.write(
            app.http_port, app.metrics_port, options.uds, app.grpc.port, options.grpc.uds
        )

    try:
        with ready_file:
            run(options, on_ready)
    except CertificateError as error:
        raise CommandError(f"TLS: {error}") from error
    except ListenError as error:
        raise listen_failure(error) from error
    except LayoutError as error:
        raise CommandError(str(error), _LAYOUT_HINT) from error
    return 0


def options_of(arguments: argparse.Namespace) -> ServeOptions:
    """The flags as the server takes them."""
    roots = tuple(arguments.model_repository)
    body_bytes_max = arguments.http_max_body_bytes
    return ServeOptions(
        model_repository=(*roots, demo.model_repository()) if arguments.demo else roots,
        host=arguments.host,
        http_port=arguments.http_port,
        metrics_port=arguments.metrics_port,
        uds=arguments.uds,
        uds_mode=arguments.uds_mode,
        default_model=door_flags.default_model(arguments, os.environ),
        queue_jobs_max=arguments.queue_max,
        load_threads=arguments.load_threads,
        model_control_mode=ControlMode(arguments.model_control_mode),
        repository_poll_s=arguments.repository_poll_secs,
        load_models=tuple(dict.fromkeys(arguments.load_model)),
        model_load_retries=arguments.model_load_retry_count,
        model_config_name=arguments.model_config_name,
        complete_configs=not arguments.disable_auto_complete_config,
        allow_code_upload=arguments.allow_code_upload,
        allow_code=_code_backends(arguments.allow_code),
        require_checksums=arguments.require_checksums,
        strict_readiness=arguments.strict_readiness,
        shutdown_delay_s=arguments.shutdown_delay_s,
        exit_timeout_s=arguments.exit_timeout_s,
        http=HttpLimits(
            connections_max=arguments.http_max_connections,
            body_bytes_max=body_bytes_max,
            bodies_bytes_max=max(HttpLimits().bodies_bytes_max, body_bytes_max),
            idle_timeout_s=arguments.http_idle_timeout_s,
            read_timeout_s=arguments.http_read_timeout_s,
            write_timeout_s=arguments.http_write_timeout_s,
        ),
        http_front=http_flags.options_of(arguments),
        sagemaker_port=arguments.sagemaker_port,
        doors=door_flags.options_of(arguments, os.environ),
        http_tls=http_tls(arguments),
        grpc=grpc_options(arguments),
        grpc_service=grpc_service_options(arguments),
        allow_client_shm=arguments.allow_client_shm,
        trace=_trace(arguments.trace_config),
    )


def _code_backends(stated: list[str]) -> frozenset[str]:
    names = {catalog.canonical(name.strip()) for part in stated for name in part.split(",")} - {""}
    programs = {name for name in catalog.offered() if catalog.runs_code(name)}
    for name in sorted(names - {"all", *catalog.offered()}):
        known = ", ".join(sorted(programs))
        raise CommandError(
            f"--allow-code: there is no backend {name!r}",
            f"those whose models are programs: {known}; or all",
            status=USAGE,
        )
    return frozenset(programs if "all" in names else names)


def _trace(parts: list[str]) -> TraceSettings:
    try:
        return settings_of(parts)
    except ValueError as error:
        raise CommandError(f"--trace-config: {error}", status=USAGE) from None
