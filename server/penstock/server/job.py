"""One waiting request, from admission to its one callback.

A job is created by the gateway, owned by a lane until it is done, and mutated by nobody else.
``on_done`` is called exactly once, on the event loop, unless the job was cancelled: then never.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from penstock.protocol.errors import PenstockError
from penstock.protocol.message import Array, InferReply, InferRequest


class State(enum.Enum):
    QUEUED = "queued"
    TAKEN = "taken"
    """Off the queue: in a batch, or expired and about to be told so."""
    DONE = "done"
    """Answered, failed, expired or cancelled."""


class Job:
    """``arrays`` are in the model's order, ``wanted`` are the indices of the outputs to return.

    ``rows`` is the size of the first dimension (1 where the model does not batch); jobs with an
    equal ``key`` may share a batch. Times are monotonic nanoseconds; ``deadline_ns`` 0 means none.
    After the callback exactly one of ``reply`` and ``error`` is set, or neither at the end of a
    stream of replies.
    """

    __slots__ = (
        "arrays", "arrived_ns", "context", "deadline_ns", "error", "impatient", "key", "lane",
        "on_done", "priority", "reply", "request", "rows", "state", "times", "wanted",
    )  # fmt: skip

    def __init__(
        self,
        request: InferRequest,
        arrays: Sequence[Array],
        rows: int,
        key: Hashable,
        wanted: tuple[int, ...],
        on_done: Callable[[Job], None],
        context: Any = None,
    ) -> None:
        self.request = request
        self.arrays = arrays
        self.rows = rows
        self.key = key
        self.wanted = wanted
        self.on_done = on_done
        self.context = context
        self.lane: Any = None
        """The lane that accepted the job; set by it."""
        self.state = State.QUEUED
        self.priority = 0
        self.arrived_ns = 0
        self.deadline_ns = 0
        """Until when it may wait: set by the gateway if the call has an end, by the lane if the
        queue's policy sets an earlier one."""
        self.impatient = False
        """Whether the policy's is the earlier one."""
        self.reply: InferReply | None = None
        self.error: PenstockError | None = None
        self.times: tuple[int, ...] | None = None
        """Set to () by who wants to know: then, once answered, when the batch began, had its
        inputs, had its outputs, and was over."""

    def cancel(self) -> None:
        """Forgets the job: no callback will come. Does nothing once it is done."""
        if self.lane is not None:
            self.lane.cancel(self)

    def release(self) -> None:
        """Lets go of the tensors of a job that will never run."""
        self.arrays = ()
        self.request.arrays = ()


class StreamJob(Job):
    """A job whose model may answer any number of times.

    Of a decoupled model each reply goes to ``on_part(job, reply)``, in order and on the event loop,
    and ``on_done`` follows the last with neither a reply nor an error; or with the error that ended
    it early. Of any other model the one reply comes by ``on_done`` as always.
    """

    __slots__ = ("gate", "on_part")

    def __init__(
        self,
        request: InferRequest,
        arrays: Sequence[Array],
        rows: int,
        key: Hashable,
        wanted: tuple[int, ...],
        on_done: Callable[[Job], None],
        context: Any,
        on_part: OnPart,
    ) -> None:
        super().__init__(request, arrays, rows, key, wanted, on_done, context)
        self.on_part = on_part
        self.gate: Any = None
        """What holds the model back; set by the lane of a decoupled model."""

    def pause(self) -> None:
        """The client does not keep up: only a few more parts may come before ``resume``."""
        if self.gate is not None:
            self.gate.pause()

    def resume(self) -> None:
        if self.gate is not None:
            self.gate.resume()


OnPart = Callable[[StreamJob, InferReply], None]
