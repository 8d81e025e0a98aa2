"""TLS for a listening port: contexts from PEM files, which are read again when they change.

Knows files and ``ssl``. Must not know what is spoken inside. With ``client_ca`` clients must show a
certificate that one of its authorities signed (mutual TLS).
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)

CHECK_EVERY_S: Final = 10


@dataclass(frozen=True, slots=True)
class PemFiles:
    """``certificate`` is the server's, with the intermediate ones behind it."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


class CertificateError(ValueError):
    """The files do not make a server's identity; says which and why."""


def context_of(files: PemFiles, alpn: Sequence[str]) -> ssl.SSLContext:
    """A server's context of TLS 1.2 and later.

    Raises:
        CertificateError: a file is missing, cannot be read or is not what it should be.
    """
    for path in _paths(files):
        try:
            path.read_bytes()
        except OSError as error:
            raise CertificateError(f"cannot read {path}: {error.strerror or error}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(list(alpn))
    try:
        # A key with a pass phrase is refused: without this OpenSSL would ask the terminal.
        context.load_cert_chain(files.certificate, files.key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        raise CertificateError(
            f"{files.certificate} and {files.key} are not a PEM certificate and the key to it, "
            f"without a pass phrase: {_reason(error)}"
        ) from error
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except (ssl.SSLError, ValueError) as error:
            raise CertificateError(
                f"{files.client_ca} holds no PEM certificates: {_reason(error)}"
            ) from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class Certificates:
    """A port's identity. ``context`` is what to listen with: each handshake gets the newest one."""

    def __init__(self, files: PemFiles, alpn: Sequence[str]) -> None:
        self.files = files
        self._alpn = tuple(alpn)
        self._seen = _stamp(files)
        self._newest = self.context = context_of(files, alpn)
        self.context.sni_callback = self._choose

    def _choose(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        if self._newest is not self.context:
            connection.context = self._newest

    def refresh(self) -> None:
        """Reads the files again if they have changed."""
        if _stamp(self.files) != self._seen:
            self.reload()

    def reload(self) -> None:
        """Reads the files again; what was good before stays if they are not."""
        self._seen = _stamp(self.files)
        try:
            self._newest = context_of(self.files, self._alpn)
        except CertificateError as error:
            _log.error("certificates were not reloaded, the former ones stay: %s", error)
            return
        _log.info("certificates reloaded from %s", self.files.certificate)


def _paths(files: PemFiles) -> list[Path]:
    paths = [files.certificate, files.key]
    return paths if files.client_ca is None else [*paths, files.client_ca]


def _stamp(files: PemFiles) -> tuple[object, ...]:
    found: list[object] = []
    for path in _paths(files):
        try:
            stat = os.stat(path)
            found.append((stat.st_mtime_ns, stat.st_ino, stat.st_size))
        except OSError:
            found.append(None)
    return tuple(found)


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or str(error) or type(error).__name__
