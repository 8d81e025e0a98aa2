"""Each broken clause is noticed: a backend that breaks it is refused with that clause's words."""

from types import SimpleNamespace

import numpy as np
import pytest

from penstock.backends.base import LoadError, ModelSource, RunError
from penstock.backends.conformance import Case, check_backend
from penstock.backends.fake import FakeBackend, FakeSession, artefact
from penstock.protocol import dtype as dt
from penstock.protocol.message import TensorSpec


def broken_session(**methods):
    """A backend whose sessions have ``methods`` instead of their own."""

    class Session(FakeSession):
        pass

    for name, method in methods.items():
        setattr(Session, name, method)

    class Backend(FakeBackend):
        def load(self, source):
            session = super().load(source)
            session.__class__ = Session
            return session

    return Backend()


def changed_outputs(change):
    """A backend whose sessions return ``change(outputs, inputs)``."""
    plain = FakeSession.run
    return broken_session(run=lambda self, inputs: change(plain(self, inputs), inputs))


def specced(**fields):
    class Backend(FakeBackend):
        def load(self, source):
            session = super().load(source)
            for name, value in fields.items():
                setattr(session, name, value)
            return session

    return Backend()


def broken_load(load):
    class Backend(FakeBackend):
        pass

    Backend.load = load
    return Backend()


plain_run, plain_load = FakeSession.run, FakeBackend.load
kept = {}


def shares_a_buffer(outputs, inputs):
    buffer = kept.setdefault(outputs[0].shape, outputs[0])
    buffer[...] = outputs[0]
    return [buffer]


def mixes_rows(outputs, inputs):
    return [outputs[0] + np.int32(len(outputs[0]) - 1)]


def writes_its_input(self, inputs):
    outputs = plain_run(self, inputs)
    inputs[0].flags.writeable = True
    inputs[0][0] += 1
    return outputs


def raises(error):
    def run(self, inputs):
        try:
            return plain_run(self, inputs)
        except RunError:
            raise error from None

    return run


def accepts_anything(self, inputs):
    try:
        return plain_run(self, inputs)
    except RunError:
        return plain_run(self, [np.zeros((1, 16), np.int32)])


def dies_of_a_refusal(self, inputs):
    if getattr(self, "dead", False):
        return [plain_run(self, inputs)[0] + np.int32(1)]
    try:
        return plain_run(self, inputs)
    except RunError:
        self.dead = True
        raise


def close_once(self):
    if self.closed:
        raise ValueError("closed twice")
    self.closed += 1


def close_spoils_outputs(self):
    for array in self.given_out:
        array[...] = 0


def remembers(self, inputs):
    outputs = plain_run(self, inputs)
    self.__dict__.setdefault("given_out", []).extend(outputs)
    return outputs


def one_scratch_for_all_threads(self, inputs):
    self.scratch = inputs
    plain_run(self, inputs)
    return [array.copy() for array in self.scratch]


def takes_any_option(self, source):
    known = {k: v for k, v in source.options.items() if not k.startswith("no_such")}
    return plain_load(self, ModelSource(source.name, source.path, source.device, options=known))


def hides_the_option(self, source):
    try:
        return plain_load(self, source)
    except LoadError:
        raise LoadError("something is wrong") from None


def takes_any_device(self, source):
    return plain_load(self, ModelSource(source.name, source.path, options=source.options))


def takes_any_file(self, source):
    try:
        return plain_load(self, source)
    except LoadError as error:
        if "whole" not in str(error):
            raise
        return FakeSession((), (), lambda x: x, {})


def leaks_os_errors(self, source):
    if not source.path.exists():
        raise FileNotFoundError(source.path)
    return plain_load(self, source)


X = TensorSpec("x", dt.INT32, (-1, 16))


@pytest.mark.parametrize(
    ("backend", "clause"),
    [
        (SimpleNamespace(name="", default_filename="m"), "name must not be empty"),
        (SimpleNamespace(name="x"), "default_filename must be a string"),
        (specced(thread_safe=1), "thread_safe must be True or False"),
        (specced(outputs=()), "at least one output"),
        (specced(inputs=[X]), "inputs must be a tuple"),
        (specced(inputs=(X, X)), "inputs must have different names"),
        (specced(outputs=(TensorSpec("", dt.FP32, (1,)),)), "outputs must all have names"),
        (specced(outputs=(TensorSpec("x", np.dtype("f4"), (1,)),)), "no element type of ours"),
        (specced(outputs=(TensorSpec("x", dt.FP32, (-2,)),)), "ints of at least -1"),
        (specced(outputs=(TensorSpec("x", dt.FP32, [1]),)), "shape must be a tuple"),
        (changed_outputs(lambda out, given: out * 2), "must return 1 outputs, it returned 2"),
        (changed_outputs(lambda out, given: [out[0].tolist()]), "must be an ndarray"),
        (changed_outputs(lambda out, given: [out[0].astype("i8")]), "came as int64"),
        (changed_outputs(lambda out, given: [out[0][:, :8]]), r"came with \(1, 8\)"),
        (changed_outputs(lambda out, given: [np.asfortranarray(np.resize(out[0], (2, 16)))]),
         "C-contiguous"),
        (changed_outputs(lambda out, given: list(given)), "must not alias an input"),
        (changed_outputs(shares_a_buffer), "must not alias that of the next"),
        (changed_outputs(lambda out, given: [out[0][:1]]), "2 rows in, 1 rows out"),
        (changed_outputs(mixes_rows), "a row among 2 must give what it gives alone"),
        (broken_session(run=writes_its_input), "must not modify its inputs"),
        (broken_session(run=raises(ValueError("x"))), "must raise RunError, not ValueError"),
        (broken_session(run=raises(RunError("x"))), "caller's fault"),
        (broken_session(run=raises(RunError(" ", caller_fault=True))), "must say what is wrong"),
        (broken_session(run=raises(RunError("a\nb", caller_fault=True))), "must be one line"),
        (broken_session(run=accepts_anything), "but the run succeeded"),
        (broken_session(run=dies_of_a_refusal), "must stay usable after one input too many"),
        (broken_session(close=close_once), "close must be idempotent"),
        (broken_session(run=remembers, close=close_spoils_outputs), "outlive their session"),
        (broken_load(takes_any_option), "an unknown option must raise LoadError"),
        (broken_load(hides_the_option), "must name the unknown option"),
        (broken_load(takes_any_device), "an unknown device must raise LoadError"),
        (broken_load(takes_any_file), "an empty file must raise LoadError"),
        (broken_load(leaks_os_errors), "a missing file must raise LoadError, not FileNotFound"),
    ],
)  # fmt: skip
def test_a_broken_clause_is_named(tmp_path, backend, clause):
    path = tmp_path / "model.fake"
    path.write_bytes(artefact({"kind": "identity"}))
    with pytest.raises(AssertionError, match=clause):
        check_backend(backend, ModelSource("m", path))


def test_results_mixed_up_between_threads_are_noticed(tmp_path):
    source = ModelSource("m", tmp_path, options={"delay_ms": "2"})
    backend = broken_session(run=one_scratch_for_all_threads)
    with pytest.raises(AssertionError, match="each of several threads its own results"):
        check_backend(backend, source)


def test_wrong_results_of_a_case_are_noticed(tmp_path):
    given = np.ones((1, 16), np.int32)
    with pytest.raises(AssertionError, match="case 0 must give the outputs it states; array 0"):
        check_backend(FakeBackend(), ModelSource("m", tmp_path), cases=[Case([given], [given + 1])])


def test_a_model_that_does_not_load_is_no_broken_clause(tmp_path):
    with pytest.raises(LoadError):
        check_backend(FakeBackend(), ModelSource("m", tmp_path / "missing"))


# --- streams


def streaming(stream):
    """A backend whose sessions stream as ``stream(self, inputs)`` does."""

    class Session(FakeSession):
        pass

    Session.stream = stream

    class Backend(FakeBackend):
        def load(self, source):
            session = super().load(source)
            session.__class__ = Session
            return session

    return Backend()


def one_buffer_for_all(self, inputs):
    (buffer,) = plain_run(self, inputs)
    for i in range(3):
        buffer[...] = i
        yield [buffer]


def shrinks(self, inputs):
    left = self.__dict__["left"] = self.__dict__.get("left", 4) - 1
    for _ in range(left):
        yield plain_run(self, inputs)


def cannot_be_closed_early(self, inputs):
    if self.__dict__.get("broken"):
        return
    self.broken = True
    for _ in range(3):
        yield plain_run(self, inputs)
    self.broken = False


def takes_anything(self, inputs):
    yield plain_run(self, [np.ones((1, 16), np.int32)])


def too_many_outputs(self, inputs):
    yield [*plain_run(self, inputs)] * 2


def blames_itself(self, inputs):
    try:
        yield plain_run(self, inputs)
    except RunError as error:
        raise RunError(str(error)) from None


@pytest.mark.parametrize(
    ("stream", "clause"),
    [
        (one_buffer_for_all, "responses must outlive their stream"),
        (shrinks, "a stream must repeat itself"),
        (cannot_be_closed_early, "usable after a stream that was closed early"),
        (takes_anything, "must raise RunError, but the stream succeeded"),
        (too_many_outputs, "run must return 1 outputs, it returned 2"),
        (blames_itself, "is the caller's fault, the RunError must say so"),
    ],
)
def test_broken_streams_are_noticed(tmp_path, stream, clause):
    with pytest.raises(AssertionError, match=clause):
        check_backend(streaming(stream), ModelSource("m", tmp_path))
