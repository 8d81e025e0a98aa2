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
from penstock.server.job import Job
from penstock.server.models import ModelState, ModelTable
from penstock.server.stats import FailReason

DRAINING = "the server is shutting down and accepts no new requests"


class Gateway:
    """Serves the models of one table."""

    def __init__(self, models: ModelTable) -> None:
        self.models = models
        self.draining = False
        self.leaving = False
        """Set some time before ``draining``: not ready any more, still serving."""

    def infer(self, request: InferRequest, on_done: Callable[[Job], None], context: Any) -> Job:
        """Queues ``request``; ``on_done(job)`` is called once with its reply or error.

        The job may be cancelled until then. ``context`` is kept on the job for the caller.

        Raises:
            InferError: the request was not accepted; ``on_done`` will not be called.
        """
        if self.draining:
            raise InferError(Code.UNAVAILABLE, DRAINING)
        lane = self.models.find(request.model, request.version).lane
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
        job = Job(request, arrays, plan.rows, plan.key, plan.wanted, on_done, context)
        lane.submit(job)
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
        """Whether the server should get traffic: no model is loading and there is one to serve."""
        if self.draining or self.leaving:
            return False
        states = {entry.state for entry in self.models}
        return ModelState.READY in states and ModelState.LOADING not in states

    def model_ready(self, name: str, version: str = "") -> bool:
        """Whether this model would be served now."""
        try:
            self.models.find(name, version)
        except InferError:
            return False
        return not self.draining


def _settle(job: Job) -> None:
    # Apart again, or the cycle would keep the arrays until the next garbage collection.
    done, job.context = job.context, None
    if not done.done():
        done.set_result(job)
