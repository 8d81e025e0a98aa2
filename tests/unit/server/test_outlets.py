"""Results land in the client's memory at once where that can be told, and only there."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from penstock.backends.base import RunError
from penstock.protocol import dtype as dt
from penstock.protocol.message import InferRequest, RegionRef, Signature, Target, TensorSpec
from penstock.protocol.oip_region import IN_PLACE_BYTES_MIN, region_space, write_region
from penstock.server.job import Job
from penstock.server.outlets import SHAPES_MAX, Outlets
from penstock.server.shared_memory import Kind, SharedMemory
from penstock.server.stacking import Stacker
from penstock.server.system_memory import map_system
from penstock.server.worker import execute, outlets_of

WIDTH = IN_PLACE_BYTES_MIN // 4
SIZE = 4 * WIDTH


@pytest.fixture
def region(tmp_path):
    """Registered regions over files: ``region.target(name)``, ``region.read(name)``."""
    registry = SharedMemory(True, map_system=partial(map_system, folder=tmp_path))

    def create(name, key="", size=4 * SIZE):
        if not key:
            (tmp_path / name).write_bytes(bytes(size))
        registry.register_system(name, key or name, 0, size)

    def target(name, offset=0, size=SIZE):
        return registry.target(RegionRef(name, offset, size))

    def read(name, offset=0, count=WIDTH):
        return np.frombuffer((tmp_path / name).read_bytes(), np.int32, count, offset)

    def inputs(name, offset=0):
        memory = registry.resolve(RegionRef(name, offset, SIZE))
        return np.ndarray((1, WIDTH), np.int32, memory)

    return SimpleNamespace(
        create=create, target=target, read=read, inputs=inputs, registry=registry
    )


def job_of(array, targets, wanted=(0,)):
    request = InferRequest(Signature([TensorSpec("INPUT0", dt.INT32, array.shape)]), [array])
    request.targets = targets
    return Job(request, [array], len(array), "key", wanted, lambda job: None)


def rows(value=1, count=1):
    return np.full((count, WIDTH), value, np.int32)


def run(session, job, outlets=None, worker=None):
    outlets = outlets or outlets_of(session)
    (done,) = execute(session, Stacker(1), [job], True, outlets, worker)
    return done


class Counted:
    """An able session that counts how its results are asked for."""

    def __init__(self, session):
        self._session = session
        self.inputs, self.outputs, self.thread_safe = session.inputs, session.outputs, True
        self.asked = []

    def run(self, inputs):
        self.asked.append("run")
        return self._session.run(inputs)

    def run_into(self, inputs, outputs):
        self.asked.append("into")
        return self._session.run_into(inputs, outputs)

    def close(self):
        self._session.close()


@pytest.fixture
def session(rig):
    return Counted(rig.session(able="1"))


def test_a_session_that_cannot_has_no_outlets(rig, session):
    assert outlets_of(rig.session()) is None
    assert outlets_of(session) is not None


def test_the_first_run_teaches_and_the_next_is_in_place(session, region):
    region.create("out")
    target = region.target("out")
    outlets = outlets_of(session)
    for value in (1, 2, 3):
        done = run(session, job_of(rows(value), {"OUTPUT0": target}), outlets)
        (output,) = done.outputs
        assert output.tolist() == rows(value).tolist()
        in_place = value > 1
        assert (region.read("out") == (value if in_place else 0)).all()
        write_region(target, output, session.outputs[0])  # what the reply does
        assert (region.read("out") == value).all()
    assert session.asked == ["run", "into", "into"]


def test_what_is_in_place_is_not_copied(session, region, monkeypatch):
    """The array that is returned is the region: writing it there again changes nothing."""
    region.create("out")
    target = region.target("out")
    space = region_space(target, (1, WIDTH), dt.INT32)
    space[...] = 5
    told = []
    monkeypatch.setattr(
        "penstock.protocol.oip_region._is_there", lambda a, b: told.append((a, b)) or True
    )
    assert write_region(target, space, session.outputs[0]) == SIZE
    ((mine, other),) = told
    assert np.shares_memory(mine, other)
    assert (region.read("out") == 5).all()


def test_the_same_memory_in_another_order_is_copied(region):
    region.create("out")
    target = region.target("out")
    space = region_space(target, (256, WIDTH // 256), dt.INT32)
    space[...] = np.arange(WIDTH, dtype=np.int32).reshape(space.shape)
    turned = space.T
    wanted = turned.copy()
    write_region(target, turned, TensorSpec("y", dt.INT32, turned.shape))
    assert np.array_equal(region.read("out").reshape(wanted.shape), wanted)


def test_shapes_are_those_of_the_run_before(session, region):
    region.create("out")
    outlets = outlets_of(session)
    targets = {"OUTPUT0": region.target("out", 0, 2 * SIZE)}
    for count in (1, 2, 1, 2):
        run(session, job_of(rows(count, count), targets), outlets)
    assert session.asked == ["run", "run", "into", "into"]


def test_remembered_shapes_are_bounded():
    outlets = Outlets([TensorSpec("y", dt.INT32, (-1, -1))])
    for width in range(3 * SHAPES_MAX):
        outlets.learn([np.zeros((1, width))], [np.zeros((1, width))])
    assert len(outlets._by_inputs) <= SHAPES_MAX


def wide(inputs):
    """As many columns as the first element says."""
    return [np.full((len(inputs[0]), int(inputs[0][0, 0])), 3, np.int32)]


def test_shapes_that_depend_on_data_fall_back_for_good(rig, region):
    session = Counted(rig.session(able="1", compute=wide))
    region.create("out")
    targets = {"OUTPUT0": region.target("out", 0, 4 * SIZE)}
    outlets = outlets_of(session)
    for width in (WIDTH, 2 * WIDTH, WIDTH, WIDTH):
        (output,) = run(session, job_of(rows(width), targets), outlets).outputs
        assert output.shape == (1, width)
        assert (output == 3).all()
    assert session.asked == ["run", "into", "run", "run", "run"]


def test_a_request_at_fault_is_told_so(rig, region):
    session = Counted(rig.session(able="1", poison="-7"))
    region.create("out")
    targets = {"OUTPUT0": region.target("out")}
    outlets = outlets_of(session)
    run(session, job_of(rows(), targets), outlets)
    done = run(session, job_of(rows(-7), targets), outlets)
    assert "contains the poison" in done.error.message
    assert session.asked == ["run", "into", "run"]
    run(session, job_of(rows(2), targets), outlets)
    assert session.asked[-1] == "into", "its shape is known as before"


def test_what_was_given_up_is_not_run_again(rig, region, monkeypatch):
    session = Counted(rig.session(able="1"))
    region.create("out")
    outlets = outlets_of(session)
    targets = {"OUTPUT0": region.target("out")}
    run(session, job_of(rows(), targets), outlets)
    worker = SimpleNamespace(gave_up=False)

    def interrupted(self, inputs, outputs):
        self.asked.append("into")
        worker.gave_up = True
        raise RunError("interrupted")

    monkeypatch.setattr(Counted, "run_into", interrupted)
    assert run(session, job_of(rows(), targets), outlets, worker).given_up
    assert session.asked == ["run", "into"]


def small(region):
    return region.target("out", 0, SIZE - 4)


def crooked(region):
    return region.target("out", 1, SIZE)


def no_longer_alone(region):
    region.registry.register_system("again", "out", 0, 4 * SIZE)
    return region.target("out")


@pytest.mark.parametrize("made", [small, crooked, no_longer_alone])
def test_memory_that_will_not_do(session, region, made):
    region.create("out")
    outlets = outlets_of(session)
    run(session, job_of(rows(), {"OUTPUT0": region.target("out")}), outlets)
    run(session, job_of(rows(2), {"OUTPUT0": made(region)}), outlets)
    assert session.asked == ["run", "run"]


def test_a_region_is_alone_again_when_the_other_has_gone(session, region):
    region.create("out")
    region.create("again", "out")
    assert not region.target("out").alone
    region.registry.unregister("again", Kind.SYSTEM)
    assert region.target("out").alone


def test_inputs_are_never_written_over(session, region):
    """In the same region: side by side is well, one over the other is not."""
    region.create("both")
    outlets = outlets_of(session)
    target = {"OUTPUT0": region.target("both", SIZE)}
    run(session, job_of(region.inputs("both"), target), outlets)
    for offset in (SIZE // 2, SIZE, SIZE + SIZE // 2):
        run(session, job_of(region.inputs("both", offset), target), outlets)
    assert session.asked == ["run"] * 4
    for offset in (0, 2 * SIZE):
        run(session, job_of(region.inputs("both", offset), target), outlets)
    assert session.asked[4:] == ["into"] * 2


def test_what_was_not_asked_for_is_not_written(rig, region):
    session = Counted(rig.session(able="1", kind="add_sub"))
    region.create("out")
    outlets = outlets_of(session)
    targets = {"OUTPUT0": region.target("out"), "OUTPUT1": region.target("out", SIZE)}
    for value in (1, 2):
        job = job_of(rows(value), targets, wanted=(1,))
        job.arrays = [rows(value), rows(value)]
        execute(session, Stacker(2), [job], True, outlets)
    assert session.asked == ["run", "into"]
    assert (region.read("out") == 0).all()
    assert (region.read("out", SIZE) == 0).all()  # 2 - 2


def test_outputs_over_each_other_are_not_both_in_place(rig, region):
    """The engine writes one; the other is copied over it afterwards, as the last to come."""
    session = Counted(rig.session(able="1", kind="add_sub"))
    region.create("out")
    outlets = outlets_of(session)
    half = SIZE // 2
    targets = {"OUTPUT0": region.target("out"), "OUTPUT1": region.target("out", half)}
    job = job_of(rows(), targets, wanted=(0, 1))
    outlets.learn([rows(), rows()], [rows(), rows()])
    places = outlets.places(job, [rows(), rows()])
    assert [place is None for place in places] == [False, True]
    targets["OUTPUT1"] = region.target("out", SIZE)
    places = outlets.places(job, [rows(), rows()])
    assert [place is None for place in places] == [False, False]


def test_results_that_are_too_small_are_never_asked_for_again(rig, region):
    session = Counted(rig.session(able="1"))
    region.create("out")
    outlets = outlets_of(session)
    little = np.ones((1, 4), np.int32)
    job = job_of(little, {"OUTPUT0": region.target("out")})
    assert outlets.places(job, [little]) is None, "not known yet"
    for _ in range(3):
        run(session, job, outlets)
    assert session.asked == ["run"] * 3
    assert outlets.places(job, [little]) == []


def test_several_requests_share_a_batch_and_copy(session, region):
    region.create("out")
    outlets = outlets_of(session)
    jobs = [job_of(rows(i), {"OUTPUT0": region.target("out", i * SIZE)}) for i in range(2)]
    for _ in range(2):
        (done,) = execute(session, Stacker(1), jobs, True, outlets)
        assert done.outputs[0].shape == (2, WIDTH)
    assert session.asked == ["run", "run"]


def test_a_gpus_memory_is_reached_by_way_of_the_hosts():
    """Inputs of a GPU's memory are copies, so nothing of it can be written over."""
    told = []
    memory = memoryview(bytearray(SIZE))
    target = Target(RegionRef("gpu", 0, SIZE), memory, told.append)
    space = region_space(target, (1, WIDTH), dt.INT32)
    space[...] = 9
    write_region(target, space, TensorSpec("y", dt.INT32, (1, WIDTH)))
    assert told == [SIZE]
    assert np.frombuffer(memory, np.int32)[-1] == 9
