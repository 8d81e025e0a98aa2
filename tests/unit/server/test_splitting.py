"""Outputs of a batch back into replies; what a lane makes of outputs that cannot be declared."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from penstock.protocol import dtype as dt
from penstock.protocol.errors import Code
from penstock.protocol.message import TensorSpec
from penstock.server.admission import Admission
from penstock.server.job import State
from penstock.server.lane import Lane
from penstock.server.splitting import Splitter

SPECS = (TensorSpec("Y", dt.FP32, (-1, 6)), TensorSpec("Z", dt.FP32, (-1, 1)))


def test_rows_go_to_their_jobs_as_views(new_job):
    jobs = [new_job(rows=rows) for rows in (1, 3, 2)]
    jobs[1].state = State.DONE
    for job in jobs:
        job.wanted = (1, 0)
    outputs = [np.arange(36, dtype="f4").reshape(6, 6), np.arange(6, dtype="f4").reshape(6, 1)]
    first, none, last = Splitter("m", "7", SPECS, True).split(jobs, outputs)
    assert none is None
    assert (first.model, first.version) == ("m", "7")
    assert [array.tolist() for array in first.arrays] == [[[0]], [list(range(6))]]
    assert last.arrays[0].tolist() == [[4], [5]]
    assert np.shares_memory(last.arrays[0], outputs[1])
    assert np.shares_memory(last.arrays[1], outputs[0])
    assert [spec.shape for spec in last.signature.tensors] == [(2, 1), (2, 6)]


def test_reshaped_outputs(new_job):
    job = new_job(rows=2)
    job.wanted = (0, 1)
    outputs = [np.zeros((2, 6), "f4"), np.zeros((2, 1), "f4")]
    (reply,) = Splitter("m", "1", SPECS, True, ((2, -1), None)).split([job], outputs)
    assert [array.shape for array in reply.arrays] == [(2, 2, 3), (2, 1)]
    assert [spec.shape for spec in reply.signature.tensors] == [(2, 2, 3), (2, 1)]


def test_reshaped_without_batches(new_job):
    job = new_job()
    job.wanted = (0,)
    (reply,) = Splitter("m", "1", SPECS[:1], False, ((6,),)).split([job], [np.zeros((2, 3), "f4")])
    assert reply.arrays[0].shape == (6,)


@pytest.mark.parametrize("inline", [True, False])
async def test_an_output_that_cannot_be_reshaped_is_an_answer(rig, inline):
    session = rig.session()
    admission = Admission("m", session.inputs, session.outputs, 8)
    lane = Lane("m", "1", [session], admission, reshapes=((7, 7),) * len(session.outputs))
    lane.learned(0 if inline else 1 << 40)
    job = rig.submit(lane)
    async with asyncio.timeout(10):
        await rig.done(job)
    assert job.error.code is Code.INTERNAL
    assert "cannot reshape" in job.error.message
    await lane.close()
