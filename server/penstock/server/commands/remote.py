"""A running server, for the commands that ask one; its errors in words for people.

The only module under ``penstock.server`` that imports ``penstock.client``: everything that another
command needs of the client it takes from here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from penstock.client import (
    BadReply,
    Client,
    Code,
    ConnectError,
    DeadlineExceeded,
    ModelMetadata,
    ModelStatus,
    PenstockError,
    Result,
)
from penstock.server.commands.failure import USAGE, CommandError

__all__ = ["Client", "ModelMetadata", "ModelStatus", "PenstockError", "Result", "connected"]

_REFUSALS: Final = {
    Code.INVALID_ARGUMENT: "penstock models --url {url} shows what each model takes",
    Code.UNAVAILABLE: "penstock models --url {url} shows the state of each model",
    Code.RESOURCE_EXHAUSTED: "the server has too much to do; try again, or see --queue-max",
    Code.OUT_OF_RANGE: "the server's limit is --http-max-body-bytes of penstock serve",
}


@contextmanager
def connected(url: str, *, protocol: str, timeout_s: float, model: str = "") -> Iterator[Client]:
    """A client of the server at ``url``, closed in the end; ``model`` is what is asked of it.

    Raises:
        CommandError: for everything that the client can raise within the block.
    """
    try:
        client = Client(url, protocol=protocol, timeout=timeout_s)
    except ValueError as error:
        raise CommandError(f"--url: {error}", status=USAGE) from error
    with client:
        try:
            yield client
        except PenstockError as error:
            raise _explained(error, client, url, model, timeout_s) from error


def _explained(
    error: PenstockError, client: Client, url: str, model: str, timeout_s: float
) -> CommandError:
    if isinstance(error, ConnectError):
        return CommandError(
            error.message, f"is the server running? start it with: penstock serve --demo\n{_AIM}"
        )
    if isinstance(error, DeadlineExceeded):
        return CommandError(
            f"no answer within {timeout_s:g} s: {error.message}", "--timeout S waits longer"
        )
    if isinstance(error, BadReply):
        return CommandError(f"{url}: {error.message}", f"is this a model server's port? {_AIM}")
    if error.code is Code.NOT_FOUND:
        hint = _models_there(client, model) if model else ""
        return CommandError(error.message, hint or f"is {url} a model server? {_AIM}")
    hint = _REFUSALS.get(error.code, "").format(url=url)
    return CommandError(f"{error.message} ({error.code.name})", hint)


_AIM: Final = "--url URL asks another server"


def _models_there(client: Client, model: str) -> str:
    """What could have been asked for, if the server tells."""
    try:
        statuses = client.models()
    except PenstockError:
        return ""
    versions = [status.version for status in statuses if status.name == model and status.version]
    if versions:
        return f"versions of {model} there: {', '.join(versions)}"
    names = sorted({status.name for status in statuses})
    return f"models there: {', '.join(names)}" if names else "the server has no models at all"
