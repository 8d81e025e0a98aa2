"""Whatever tensors go to the device and back, through however little pinned memory, are the same.

The stream does nothing before somebody waits, so memory that is used again too early shows.
"""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.backends.fake_cuda import FakeDriver

from penstock.backends.tensorrt.cuda import Device
from penstock.backends.tensorrt.staging import Staging

DTYPES = ("f4", "u1", "i8", "?", "f2")
TENSORS = st.lists(
    st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 40), max_size=3)), max_size=5
)


@settings(max_examples=80, deadline=None)
@given(
    rounds=st.lists(TENSORS, min_size=1, max_size=4),
    half_bytes=st.integers(16, 70).map(lambda n: n * 16) | st.just(1 << 18),
    sleeps=st.booleans(),
    given_places=st.booleans(),
)
def test_there_and_back(rounds, half_bytes: int, sleeps: bool, given_places: bool) -> None:
    driver = FakeDriver()
    device = Device(driver, 0)
    device.make_current()
    stream = device.stream()
    up = Staging(device, stream, half_bytes, sleeps=sleeps)
    down = Staging(device, stream, half_bytes, sleeps=sleeps)
    random = np.random.default_rng(0)
    for tensors in rounds:
        arrays = [
            random.integers(0, 2 if kind == "?" else 100, shape).astype(kind)
            for kind, shape in tensors
        ]
        shapes, dtypes = [a.shape for a in arrays], [a.dtype for a in arrays]
        sent, fetched = up.packed(shapes, dtypes), down.packed(shapes, dtypes)
        assert sent.offsets == fetched.offsets
        assert (sent.views is None) == (sent.nbytes > half_bytes)
        block = device.allocate(max(1, sent.nbytes))
        copies = [array.copy() for array in arrays]
        up.send(sent, copies, int(block))
        for array in copies:
            array.reshape(-1).view("u1")[:] = 0xA5  # they are the caller's again
        must = given_places or fetched.views is None
        places = [np.empty_like(a) if must else None for a in arrays]
        found = down.fetch(fetched, places, int(block))
        for array, one, place in zip(arrays, found, places, strict=True):
            np.testing.assert_array_equal(one, array)
            assert (one.shape, one.dtype) == (array.shape, array.dtype)
            assert place is None or one is place
        assert not stream.queue
        device.free(block)
    up.close()
    down.close()
    device.free_stream(stream)
    device.close()
    assert driver.held() == 0
