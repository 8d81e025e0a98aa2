"""The fake does what its table says, so that tests of the gateway can lean on it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from penstock.backends.base import LoadError, ModelSource, RunError
from penstock.backends.conformance import check_backend
from penstock.backends.fake import FakeBackend, artefact
from penstock.protocol import dtype as dt
from penstock.protocol.message import TensorSpec


def load(backend=None, path=Path(), **options):
    return (backend or FakeBackend()).load(ModelSource("m", path, options=options))


def rows(count, value=1):
    return np.full((count, 16), value, np.int32)


@pytest.mark.parametrize("kind", ["identity", "add_sub", "slow", "echo_rows"])
def test_keeps_the_contract(tmp_path, kind):
    path = tmp_path / "model.fake"
    path.write_bytes(artefact({"kind": kind, "delay_ms": "1"}))
    source = ModelSource("m", path)
    check_backend(FakeBackend(), source, independent_rows=kind != "echo_rows")


@pytest.mark.parametrize("dtype", dt.ALL, ids=str)
def test_keeps_the_contract_for_every_type(tmp_path, dtype):
    options = {"dtype": dtype.name, "shape": "2,-1"}
    check_backend(FakeBackend(), ModelSource("m", tmp_path, options=options))


def test_keeps_the_contract_when_not_thread_safe(tmp_path):
    source = ModelSource("m", tmp_path, options={"thread_safe": "0", "batch": "4"})
    report = check_backend(FakeBackend(), source)
    assert [text.partition(":")[0] for text in report.skipped] == ["batches", "threads"]


def test_add_sub():
    total, difference = load(kind="add_sub").run([rows(2, 5), rows(2, 3)])
    assert (total == 8).all()
    assert (difference == 2).all()


def test_add_sub_needs_equal_rows():
    with pytest.raises(RunError, match="must agree"):
        load(kind="add_sub").run([rows(2), rows(1)])


def test_echo_rows_tells_how_many_shared_the_run():
    session = load(kind="echo_rows")
    assert session.run([rows(3)])[1].tolist() == [[3], [3], [3]]
    session.run([rows(1)])
    assert session.batches == [3, 1]
    assert session.runs[0][0].shape == (3, 16)


def test_fail():
    with pytest.raises(RunError, match="always fails") as caught:
        load(kind="fail").run([rows(1)])
    assert not caught.value.caller_fault


def test_fail_runs():
    session = load(fail_runs="2")
    for _ in range(2):
        with pytest.raises(RunError):
            session.run([rows(1)])
    assert session.run([rows(1)])[0].shape == (1, 16)


@pytest.mark.parametrize(
    ("dtype", "poison", "good", "bad"),
    [("INT32", "666", 1, 666), ("FP32", "0.5", 0.25, 0.5), ("BYTES", "bad", b"ok", b"bad")],
)
def test_poison_fails_the_run_it_is_in(dtype, poison, good, bad):
    session = load(dtype=dtype, shape="1", poison=poison)
    numpy = dt.BY_NAME[dtype].numpy
    session.run([np.array([[good], [good]], numpy)])
    with pytest.raises(RunError, match=f"'INPUT0' contains the poison {poison}") as caught:
        session.run([np.array([[good], [bad]], numpy)])
    assert caught.value.caller_fault


def test_poison_may_be_the_models_fault():
    with pytest.raises(RunError) as caught:
        load(poison="7", poison_is_caller_fault="0").run([rows(1, 7)])
    assert not caught.value.caller_fault


def test_the_gate_holds_a_run():
    gate = threading.Event()
    session = load(FakeBackend(gate=gate))
    done = []
    thread = threading.Thread(target=lambda: done.append(session.run([rows(2)])))
    thread.start()
    assert session.entered.acquire(timeout=5)
    assert session.batches == [2]
    assert not done
    gate.set()
    thread.join(5)
    assert len(done) == 1


def test_overlapping_runs_are_noticed_when_not_thread_safe():
    gate = threading.Event()
    session = load(FakeBackend(gate=gate), thread_safe="0")
    thread = threading.Thread(target=session.run, args=([rows(1)],))
    thread.start()
    assert session.entered.acquire(timeout=5)
    with pytest.raises(AssertionError, match="overlap"):
        session.run([rows(1)])
    with pytest.raises(AssertionError, match="in progress"):
        session.close()
    gate.set()
    thread.join(5)
    session.close()
    with pytest.raises(RunError, match="closed"):
        session.run([rows(1)])


def test_own_specs_and_function():
    specs = [TensorSpec("x", dt.FP32, (-1, 2))]
    sums = [TensorSpec("sum", dt.FP32, (-1,))]
    backend = FakeBackend(inputs=specs, outputs=sums, compute=lambda arrays: [arrays[0].sum(1)])
    session = load(backend)
    assert session.run([np.ones((3, 2), np.float32)])[0].tolist() == [2, 2, 2]
    assert backend.sessions == [session]


def test_options_of_the_source_override_those_of_the_file(tmp_path):
    (tmp_path / "model.fake").write_bytes(artefact({"kind": "fail", "shape": "2"}))
    session = load(path=tmp_path, kind="identity")
    assert session.inputs[0].shape == (-1, 2)
    session.run([np.zeros((1, 2), np.int32)])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "sort"}, "'kind' is 'sort'"),
        ({"dtype": "int32"}, "'dtype' is 'int32'"),
        ({"kind": "add_sub", "dtype": "BYTES"}, "cannot add BYTES"),
        ({"shape": "4,-2"}, "'shape' is '-2'"),
        ({"delay_ms": "-1"}, "'delay_ms'"),
        ({"fail_runs": "x"}, "'fail_runs'"),
        ({"thread_safe": "maybe"}, "'thread_safe'"),
        ({"poisson": "1"}, "'poisson'.*did you mean poison"),
        ({"load_error": "out of memory"}, "^out of memory$"),
    ],
)
def test_refusals(options, said):
    with pytest.raises(LoadError, match=said):
        load(**options)


def test_devices():
    source = ModelSource("m", Path(), device="cuda:1")
    with pytest.raises(LoadError, match="'cuda:1' is not known"):
        FakeBackend().load(source)
    FakeBackend(devices=["cuda:1"]).load(source)


# --- streams


def streaming(tmp_path, gate=None, **options):
    options = {"kind": "repeat", "shape": "2", **options}
    return FakeBackend(gate=gate).load(ModelSource("m", tmp_path, options=options))


@pytest.mark.parametrize("options", [{}, {"times": "0"}, {"times": "-1"}, {"thread_safe": "0"}])
def test_a_streaming_session_keeps_the_contract(tmp_path, options):
    source = ModelSource("m", tmp_path, options={"kind": "repeat", **options})
    assert "streams" in check_backend(FakeBackend(), source).held


@pytest.mark.parametrize(("times", "count"), [("0", 0), ("2", 2), ("-1", 4)])
def test_a_stream_repeats_its_input(tmp_path, times, count):
    session = streaming(tmp_path, times=times)
    given = np.full((3, 2), 4, np.int32)
    parts = [outputs for (outputs,) in session.stream([given])]
    assert len(parts) == count
    assert all(np.array_equal(part, given) for part in parts)
    assert (session.batches, session.streams) == ([3], [(count, True)])
    session.close()


def test_a_stream_that_nobody_reads_to_its_end(tmp_path):
    session = streaming(tmp_path, times="100")
    parts = session.stream([np.ones((1, 2), np.int32)])
    next(parts)
    next(parts)
    parts.close()
    assert session.streams == [(2, False)]
    session.close()


def test_streams_fail_as_runs_do(tmp_path):
    session = streaming(tmp_path, poison="7")
    with pytest.raises(RunError, match="poison"):
        list(session.stream([np.full((1, 2), 7, np.int32)]))
    with pytest.raises(RunError, match="shape") as caught:
        list(session.stream([np.ones((1, 3), np.int32)]))
    assert caught.value.caller_fault
    assert len(list(session.stream([np.ones((1, 2), np.int32)]))) == 3


def test_a_stream_waits_at_the_gate_for_each_response(tmp_path):
    gate = threading.Event()
    session = streaming(tmp_path, gate=gate, times="2")
    got = []
    thread = threading.Thread(
        target=lambda: got.extend(session.stream([np.ones((1, 2), np.int32)]))
    )
    thread.start()
    assert session.entered.acquire(timeout=10)
    assert got == []
    gate.set()
    thread.join(10)
    assert len(got) == 2


# --- abilities


def able(gate=None, **options):
    return load(FakeBackend(gate=gate), able="1", **options)


def test_keeps_the_contract_with_every_ability(tmp_path):
    report = check_backend(FakeBackend(), ModelSource("m", tmp_path, options={"able": "1"}))
    assert {"clones", "interrupts", "results in place"} <= set(report.held)


def test_an_interrupt_ends_a_run_at_its_gate():
    session = able(threading.Event())
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(session.run, [rows(1)])
        assert session.entered.acquire(timeout=10)
        session.interrupt()
        with pytest.raises(RunError, match="interrupted"):
            run.result()
    assert session.interrupts == 1


def test_an_interrupt_ends_a_run_that_takes_its_time():
    session = able(delay_ms="20000")
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(session.run, [rows(1)])
        assert session.entered.acquire(timeout=10)
        session.interrupt()
        with pytest.raises(RunError, match="interrupted"):
            run.result()


def test_clones_are_remembered_and_closed_alone():
    session = able()
    clone = session.clone()
    assert session.clones == [clone]
    clone.close()
    assert (clone.closed, session.closed) == (1, 0)


def test_results_in_place():
    session, out = able(kind="add_sub"), rows(2, 0)
    made = session.run_into([rows(2, 5), rows(2, 3)], [None, out])
    assert made[1] is out
    assert (made[0] == 8).all()
    assert (out == 2).all()
    with pytest.raises(RunError, match=r"OUTPUT1' has shape \[2, 16\], the array for it \[3, 16\]"):
        session.run_into([rows(2)] * 2, [None, rows(3)])
