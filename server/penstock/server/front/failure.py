"""What to answer when something was raised on the way to a reply."""

from __future__ import annotations

import logging

from penstock.protocol.errors import Code, InferError, PenstockError

_log = logging.getLogger(__name__)


def failure(error: Exception) -> PenstockError:
    """``error`` itself if it has a code; otherwise it is a bug, which is logged and not shown.

    Nobody above a job's callback could answer the client: every callback ends with this.
    """
    if isinstance(error, PenstockError):
        return error
    _log.error("a request failed", exc_info=error)
    return InferError(Code.INTERNAL, "internal error")
