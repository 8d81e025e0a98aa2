"""The core behind every front door: find the model, check the request, queue the job.

Knows no wire and no transport. ``infer`` is the hot path and takes a callback; ``predict`` is the
awaitable form for everything else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from penstock.protocol.errors import Code, InferError
from penstock.protocol.message import InferReply, InferRequest
from penstock.server.classification import Classifier, Labels
from penstock.server.job import Job, OnPart, StreamJob
from penstock.server.models import ModelTable
from penstock.server.stats import FailReason
from penstock.server.tracing import Tracer

DRAINING = "the server is shutting down and accepts no new requests"


class Gateway:
    """Serves the models of one table."""

    def __init__(self, models: ModelTable, tracer: Tracer | None = None) -> None:
        self.models = models
        self.tracer = tracer or Tracer()
        self.draining = False
        self.leaving = False
        """Set some time before ``draining``: not ready any more, still serving."""
        self.ready_empty = False
        """Ready without any model too: they come later, by request."""
        self.ready_strict = False
        """Not ready while any model that is wanted does not serve."""

    def infer(
        self,
        request: InferRequest,
        on_done: Callable[[Job], None],
        context: Any,
        deadline_ns: int = 0,
        on_part: OnPart | None = None,
    ) -> Job:
        """Queues ``request``; ``on_done(job)`` is called once with its reply or error.

        The job may be cancelled until then. ``context`` is kept on the job for the caller. At
        ``deadline_ns`` of ``time.monotonic_ns`` it leaves the queue with DEADLINE_EXCEEDED; 0 is
        never. With ``on_part`` the job is a ``StreamJob``, and a decoupled model may answer it:
        then ``on_part(job, reply)`` gets each reply, and ``on_done(job)`` ends them.

        Raises:
            InferError: the request was not accepted; ``on_done`` will not be called.
        """
        if self.draining:
            raise InferError(Code.UNAVAILABLE, DRAINING)
        loaded = self.models.find(request.model, request.version)
        lane = loaded.lane
        try:
            plan = lane.admission.plan(request.signature)
        except InferError:
            lane.stats.fail_count[FailReason.OTHER] += 1
            raise
        arrays = request.arrays
        if plan.order is not None:
            arrays = [arrays[i] for i in plan.order]
        if plan.shapes is not None:
            arrays = [a.reshape(shape) for a, shape in zip(arrays, plan.shapes, strict=True)]
        if plan.classifier is not None:
            on_done, on_part = _classified(plan.classifier, loaded.labels, on_done, on_part)
        job: Job
        if loaded.sequences is not None:
            job = loaded.sequences.infer(request, arrays, plan, on_done, context, deadline_ns)
        else:
            if on_part is None:
                job = Job(request, arrays, plan.rows, plan.key, plan.wanted, on_done, context)
            else:
                job = StreamJob(
                    request, arrays, plan.rows, plan.key, plan.wanted, on_done, context, on_part
                )
            if deadline_ns:
                job.deadline_ns = deadline_ns
            lane.submit(job)
        if self.tracer.on:
            self.tracer.sample(job, lane.name)
        return job

    async def predict(self, request: InferRequest) -> InferReply:
        """The reply to ``request``; cancelling the await cancels the job.

        Raises:
            InferError: why there is no reply.
        """
        done: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        job = self.infer(request, _settle, done)
        try:
            await done
        except asyncio.CancelledError:
            job.cancel()
            raise
        if job.reply is None:
            raise job.error or InferError(Code.INTERNAL, "no reply")
        return job.reply

    @property
    def ready(self) -> bool:
        """Whether the server should get traffic: there is a model to serve."""
        if self.draining or self.leaving:
            return False
        entries = list(self.models)
        if self.ready_strict:
            for entry in entries:
                if entry.loaded is None and not entry.leaving:
                    return False
        return self.ready_empty or any(entry.loaded is not None for entry in entries)

    def model_ready(self, name: str, version: str = "") -> bool:
        """Whether this model would be served now."""
        try:
            self.models.find(name, version)
        except InferError:
            return False
        return not self.draining


def _classified(
    classifier: Classifier,
    labels: Labels,
    on_done: Callable[[Job], None],
    on_part: OnPart | None,
) -> tuple[Callable[[Job], None], OnPart | None]:
    """The callbacks of a job whose replies are wanted as classes."""

    def done(job: Job) -> None:
        if job.reply is not None:
            try:
                job.reply = classifier.classify(job.reply, labels)
            except InferError as error:
                job.reply, job.error = None, error
        on_done(job)

    def part(job: StreamJob, reply: InferReply) -> None:
        try:
            reply = classifier.classify(reply, labels)
        except InferError as error:
            job.cancel()  # Its other replies would be no better.
            job.error = error
            on_done(job)
        else:
            given(job, reply)

    if on_part is None:
        return done, None
    given = on_part
    return done, part


def _settle(job: Job) -> None:
    # Apart again, or the cycle would keep the arrays until the next garbage collection.
    done, job.context = job.context, None
    if not done.done():
        done.set_result(job)
