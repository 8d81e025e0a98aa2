"""Stateful sequences of one model: order, control tensors and states, on top of a stateless lane.

Knows which requests belong together and what the model is to be told of it. Must not know wires,
batches or sessions: a request of a sequence becomes an ordinary job, whose arrays are those of the
caller, then one for each control input, then one for each state. Requests of different sequences
share batches; of one sequence only one runs at a time, the lane holds the others in order.

A request starts a sequence by ``sequence_start`` (anew, if there is one with its id), ends it by
``sequence_end``, and says by ``sequence_id``, a number or a string, which one it belongs to. What
follows a start that did not succeed is refused: it must never run on the states of an older one.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from time import monotonic_ns
from typing import Any, Final
from weakref import WeakMethod

import numpy as np

from penstock.protocol import dtype as dt
from penstock.protocol.errors import Code, InferError
from penstock.protocol.message import Array, InferReply, InferRequest, Signature
from penstock.server.admission import Plan
from penstock.server.alarm import Alarm
from penstock.server.job import Job, State
from penstock.server.lane import Lane
from penstock.server.model_config_sequence import ControlInput, SequenceBatching
from penstock.server.stats import FailReason

SEQUENCES_MAX: Final = 65_536
"""Sequences of one model that are in progress."""
_REMEMBERED_MAX: Final = 4096
_ID_CHARS_MAX: Final = 64
"""Of an id, in an error."""
_UINT64: Final = 1 << 64

SequenceId = int | str


class _Sequence:
    """One sequence. ``busy`` while a request of it may run.

    ``runs`` counts the starts and ends that were accepted: the requests between two of them are one
    run. ``states`` are of run ``run``; None if there is nothing to go on from.
    """

    __slots__ = ("busy", "id", "run", "runs", "states", "touched_ns", "waiting")

    def __init__(self, id: SequenceId) -> None:
        self.id = id
        self.states: Sequence[Array] | None = None
        self.waiting: dict[SequenceJob, None] = {}
        self.busy = False
        self.run = self.runs = 0
        self.touched_ns = 0


class SequenceJob(Job):
    """A job that knows its place; cancelling it lets its sequence go on."""

    __slots__ = ("answer", "end", "launched", "owner", "run", "sequence", "start", "visible")

    owner: Sequences
    sequence: _Sequence
    start: bool
    end: bool
    run: int
    launched: bool
    """Whether its turn came; until then it waits behind others of its sequence."""
    visible: int
    """How many of the outputs are the caller's."""
    answer: Callable[[Job], None]

    def cancel(self) -> None:
        self.owner.cancel(self)


class Sequences:
    """The sequences of one lane. Lives on the event loop, as the lane does.

    ``initial`` are the states of a first request, without a batch dimension; ``ranks`` the number
    of dimensions of each control input at the model. The lane's inputs are the callers', then the
    controls, then the states; its outputs the callers', then the states.
    """

    def __init__(
        self,
        lane: Lane,
        config: SequenceBatching,
        initial: Sequence[Array],
        ranks: Sequence[int],
        outputs: int,
        *,
        clock: Callable[[], int] = monotonic_ns,
    ) -> None:
        self._lane = lane
        self._config = config
        self._batches = lane.admission.rows_max > 0
        self._initial = list(initial)
        self._ranks = tuple(ranks)
        self._state_outputs = tuple(range(outputs, outputs + len(config.states)))
        self._clock = clock
        self._sequences: OrderedDict[SequenceId, _Sequence] = OrderedDict()
        self._wanted: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._visible: dict[Signature, Signature] = {}
        # Weak: a timer that is hours away must not keep what a lane left behind.
        forget = WeakMethod(self._forget_idle)
        self._alarm = Alarm(asyncio.get_running_loop(), lambda: (forget() or _nothing)())

    def __len__(self) -> int:
        """Sequences in progress."""
        return len(self._sequences)

    def infer(
        self,
        request: InferRequest,
        arrays: Sequence[Array],
        plan: Plan,
        on_done: Callable[[Job], None],
        context: Any,
        deadline_ns: int = 0,
    ) -> Job:
        """Queues a request behind those of its sequence; see ``Gateway.infer``.

        Raises:
            InferError: the request belongs to no sequence, or too much waits.
        """
        self._forget_idle()
        wanted = self._all_wanted(plan.wanted)
        job = SequenceJob(request, arrays, plan.rows, plan.key, wanted, self._done, context)
        job.owner, job.visible, job.answer = self, len(plan.wanted), on_done
        job.deadline_ns = deadline_ns
        try:
            job.start, job.end = _flag(request, "sequence_start"), _flag(request, "sequence_end")
            sequence = job.sequence = self._find(request, job.start)
            job.run = sequence.runs + job.start
            job.launched = not sequence.busy
            if job.launched:
                self._prepare(job)
        except InferError:
            self._lane.stats.fail_count[FailReason.OTHER] += 1
            raise
        self._lane.submit(job, held=not job.launched)
        sequence.runs = job.run + job.end
        if job.launched:
            self._begin(job)
        else:
            sequence.waiting[job] = None
        self._touch(sequence)
        return job

    def _find(self, request: InferRequest, start: bool) -> _Sequence:
        key = request.parameters.get("sequence_id", 0)
        model = self._lane.name
        if isinstance(key, bool) or not isinstance(key, int | str) or not key:
            raise InferError(
                Code.INVALID_ARGUMENT,
                f"inference request to model '{model}' must specify a non-zero or non-empty "
                "correlation ID",
            )
        if isinstance(key, int) and key < 0:
            key += _UINT64  # how gRPC's clients send large ones
        sequence = self._sequences.get(key)
        if sequence is not None:
            return sequence
        if not start:
            raise self._not_started(key)
        if len(self._sequences) >= SEQUENCES_MAX:
            raise InferError(
                Code.RESOURCE_EXHAUSTED,
                f"more than {SEQUENCES_MAX} sequences of model '{model}' are in progress",
            )
        return _Sequence(key)

    def _not_started(self, key: SequenceId) -> InferError:
        return InferError(
            Code.INVALID_ARGUMENT,
            f"inference request for sequence {str(key)[:_ID_CHARS_MAX]} to model "
            f"'{self._lane.name}' must specify the START flag on the first request of the sequence",
        )

    # ------------------------------------------------------------------ silence

    def _touch(self, sequence: _Sequence) -> None:
        now = sequence.touched_ns = self._clock()
        self._sequences[sequence.id] = sequence
        self._sequences.move_to_end(sequence.id)
        if not self._alarm.at_ns:
            self._alarm.set(now + self._config.idle_us * 1000, now)

    def _forget_idle(self) -> None:
        now, idle_ns = self._clock(), self._config.idle_us * 1000
        while self._sequences:
            sequence = next(iter(self._sequences.values()))
            if sequence.touched_ns >= now - idle_ns:
                if not self._alarm.at_ns:
                    self._alarm.set(sequence.touched_ns + idle_ns + 1, now)
                return
            if sequence.busy:
                # Not its silence: the model is slow. It has its time again from now on.
                self._touch(sequence)
            else:
                del self._sequences[sequence.id]

    # ------------------------------------------------------------------ the way of a request

    def _prepare(self, job: SequenceJob) -> None:
        """Gives ``job`` its further inputs; raises if it has nothing to go on from."""
        sequence = job.sequence
        states = self._initial_states(job.rows) if job.start else sequence.states
        if states is None or not (job.start or job.run == sequence.run):
            raise self._not_started(sequence.id)
        if states and self._batches and len(states[0]) != job.rows:
            raise InferError(
                Code.INVALID_ARGUMENT,
                f"a request of {job.rows} rows does not continue sequence "
                f"{str(sequence.id)[:_ID_CHARS_MAX]} of model '{self._lane.name}'",
            )
        if states:
            job.key = (job.key, tuple([state.shape[1:] for state in states]))
        job.arrays = [*job.arrays, *self._controls(job), *states]

    def _begin(self, job: SequenceJob) -> None:
        sequence = job.sequence
        job.launched = sequence.busy = True
        if job.start:
            sequence.run, sequence.states = job.run, None

    def _initial_states(self, rows: int) -> Sequence[Array]:
        if not self._batches:
            return self._initial
        return [np.repeat(state[None], rows, axis=0) for state in self._initial]

    def _controls(self, job: SequenceJob) -> list[Array]:
        flags = {"START": job.start, "END": job.end, "READY": True}
        made = []
        for control, rank in zip(self._config.controls, self._ranks, strict=True):
            shape = (job.rows, *[1] * (rank - 1)) if self._batches else (1,) * rank
            made.append(_filled(control, shape, flags, job.sequence.id))
        return made

    def _done(self, job: Job) -> None:
        assert isinstance(job, SequenceJob)
        reply = job.reply
        if reply is not None:
            if not job.end:
                # Copies: a view would keep the outputs of the whole batch.
                job.sequence.states = [np.array(state) for state in reply.arrays[job.visible :]]
            job.reply = self._trimmed(reply, job.visible)
        self._left(job)
        job.answer(job)

    def cancel(self, job: SequenceJob) -> None:
        """Forgets ``job``; a sequence goes on with the state that it had before."""
        if job.state is not State.DONE:
            self._lane.cancel(job)
            self._left(job)

    def _left(self, job: SequenceJob) -> None:
        """The lane is done with ``job``: its sequence goes on, or ends."""
        sequence = job.sequence
        if not job.launched:
            sequence.waiting.pop(job, None)
            return
        sequence.busy = False
        if job.end:
            sequence.states = None
        refused = []
        while sequence.waiting and not sequence.busy:
            following = next(iter(sequence.waiting))
            del sequence.waiting[following]
            try:
                self._prepare(following)
            except InferError as error:
                refused.append((following, error))
                continue
            self._begin(following)
            if not self._lane.release(following):  # it expired just now
                following.launched = sequence.busy = False
        if sequence.busy or sequence.states is not None:
            self._touch(sequence)
        else:
            self._sequences.pop(sequence.id, None)
        # Last: whoever is told may send the sequence's next request at once.
        for following, reason in refused:
            self._lane.refuse(following, reason)

    # ------------------------------------------------------------------ what callers see

    def _all_wanted(self, wanted: tuple[int, ...]) -> tuple[int, ...]:
        found = self._wanted.get(wanted)
        if found is None:
            if len(self._wanted) >= _REMEMBERED_MAX:
                self._wanted.clear()
            found = self._wanted[wanted] = (*wanted, *self._state_outputs)
        return found

    def _trimmed(self, reply: InferReply, count: int) -> InferReply:
        signature = self._visible.get(reply.signature)
        if signature is None:
            if len(self._visible) >= _REMEMBERED_MAX:
                self._visible.clear()
            signature = Signature(reply.signature.tensors[:count])
            self._visible[reply.signature] = signature
        arrays = reply.arrays[:count]
        return InferReply(signature, arrays, reply.model, reply.version, reply.id)


def _nothing() -> None:
    pass


def _flag(request: InferRequest, name: str) -> bool:
    value = request.parameters.get(name, False)
    if not isinstance(value, bool):
        raise InferError(Code.INVALID_ARGUMENT, f"parameter '{name}' must be a boolean")
    return value


def _filled(
    control: ControlInput, shape: tuple[int, ...], flags: dict[str, bool], id: SequenceId
) -> Array:
    if control.kind != "CORRID":
        return np.full(shape, control.values[flags[control.kind]], control.dtype.numpy)
    if control.dtype is dt.BYTES:
        return np.full(shape, str(id).encode(), object)
    if isinstance(id, str):
        raise InferError(
            Code.INVALID_ARGUMENT,
            f"the model takes correlation IDs of type {control.dtype}, not the string "
            f"'{id[:_ID_CHARS_MAX]}'",
        )
    try:
        return np.full(shape, id, control.dtype.numpy)
    except OverflowError:
        raise InferError(
            Code.INVALID_ARGUMENT, f"correlation ID {id} does not fit {control.dtype}"
        ) from None
