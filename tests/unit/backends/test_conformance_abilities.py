"""Each broken clause about abilities is noticed, and a whole session passes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from penstock.backends.base import Engine, ModelSource, RunError
from penstock.backends.conformance import check_backend
from penstock.backends.fake import FakeAbleSession, FakeBackend, artefact

ABLE = {"able": "1"}
plain_run, plain_into = FakeAbleSession.run, FakeAbleSession.run_into
plain_clone = FakeAbleSession.clone


def broken(**methods):
    """A backend whose sessions, and their clones, have ``methods`` instead of their own."""
    session_class = type("Session", (FakeAbleSession,), methods)

    class Backend(FakeBackend):
        def load(self, source):
            session = super().load(source)
            session.__class__ = session_class
            return session

    return Backend()


def probing(engine):
    class Backend(FakeBackend):
        pass

    Backend.engine = engine
    return Backend()


def raises(error):
    def raising(self, *_):
        raise error

    return raising


def counts_calls(self):
    self.calls = getattr(self, "calls", 0) + 1
    return Engine(f"1.{self.calls}", ("cpu",))


def clone_of_another_kind(self):
    return FakeBackend().load(ModelSource("m", Path(), options={**ABLE, "shape": "4"}))


def clone_that_closes_what_it_came_from(self):
    made = plain_clone(self)
    made.close = lambda: FakeAbleSession.close(self)
    return made


def clone_that_leans_on_what_it_came_from(self):
    made = plain_clone(self)
    made.run = self.run
    return made


def clone_with_one_scratch(self):
    made = plain_clone(self)
    made.run = lambda inputs: [array + np.int32(1) for array in plain_run(made, inputs)]
    return made


def run_that_remembers_interrupts(self, inputs):
    outputs = plain_run(self, inputs)
    if self.interrupts:
        self.interrupts = 0
        raise RunError("interrupted, but late")
    return outputs


def run_that_never_recovers(self, inputs):
    outputs = plain_run(self, inputs)
    if self.interrupts > 4:
        raise RunError("interrupted for ever")
    return outputs


def run_that_gives_what_it_has(self, inputs):
    outputs = plain_run(self, inputs)
    if self.interrupts > 4:
        outputs[0][...] = 0
    return outputs


def run_that_blames_the_caller(self, inputs):
    outputs = plain_run(self, inputs)
    if self.interrupts > 4:
        raise RunError("interrupted", caller_fault=True)
    return outputs


def into_a_copy(self, inputs, outputs):
    return [array.copy() for array in plain_into(self, inputs, outputs)]


def into_nothing(self, inputs, outputs):
    made = plain_run(self, inputs)
    return [own if own is not None else array for own, array in zip(outputs, made, strict=True)]


def into_what_it_keeps(self, inputs, outputs):
    made = plain_into(self, inputs, outputs)
    self.kept = [array for array in outputs if array is not None] or getattr(self, "kept", [])
    return made


def run_over_what_it_kept(self, inputs):
    for array in getattr(self, "kept", []):
        array[...] = 0
    return plain_run(self, inputs)


def into_what_is_too_large(self, inputs, outputs):
    if any(o is not None and o.shape != inputs[0].shape for o in outputs):
        return plain_run(self, inputs)
    return plain_into(self, inputs, outputs)


@pytest.mark.parametrize(
    ("backend", "clause"),
    [
        (probing(raises(OSError("no driver"))), r"engine\(\) must never raise"),
        (probing(lambda self: "1.0"), "must return an Engine"),
        (probing(counts_calls), "must repeat itself"),
        (probing(lambda self: Engine(devices=("cpu",))), "must tell the version"),
        (probing(lambda self: Engine("1.0")), "must name a device"),
        (probing(lambda self: Engine(missing="a\nb")), "must be one line"),
        (broken(clone=clone_of_another_kind), "must declare the same inputs"),
        (broken(clone=lambda self: self), "must be a session of its own"),
        (broken(clone=clone_that_closes_what_it_came_from), "that they were made of usable"),
        (broken(clone=clone_that_leans_on_what_it_came_from), "must leave the clone usable"),
        (broken(clone=clone_with_one_scratch), "must each give their own results"),
        (broken(run=run_that_remembers_interrupts), "a run that begins after it; it raised"),
        (broken(run=run_that_never_recovers), "must stay usable after it was interrupted"),
        (broken(run=run_that_gives_what_it_has), "is interrupted or gives all of its results"),
        (broken(run=run_that_blames_the_caller), "is not the caller's fault"),
        (broken(run_into=into_a_copy), "must return an array that it was given as itself"),
        (broken(run_into=into_nothing), "run_into must give what run gives"),
        (broken(run_into=into_what_it_keeps, run=run_over_what_it_kept), "the caller's arrays"),
        (broken(run_into=into_what_is_too_large), r"array of shape \[2, 16\]"),
    ],
)  # fmt: skip
def test_a_broken_clause_is_named(tmp_path, backend, clause):
    path = tmp_path / "model.fake"
    path.write_bytes(artefact({"kind": "identity", **ABLE}))
    with pytest.raises(AssertionError, match=clause):
        check_backend(backend, ModelSource("m", path))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("identity", "BYTES"), ("identity", "FP16"), ("add_sub", "INT32"), ("echo_rows", "INT32")],
)
def test_what_is_whole_passes(tmp_path, kind, dtype):
    source = ModelSource("m", tmp_path, options={"kind": kind, "dtype": dtype, **ABLE})
    report = check_backend(FakeBackend(), source, independent_rows=kind != "echo_rows")
    assert {"clones", "interrupts", "results in place"} <= set(report.held)


def test_what_is_missing_is_a_sentence(tmp_path):
    backend = probing(lambda self: Engine(missing="there is no driver: install one"))
    assert "engine" in check_backend(backend, ModelSource("m", tmp_path)).held


def test_an_artefact_of_which_half_is_whole(tmp_path):
    """A program's text, say: cut in the middle, it may still be one."""

    class Backend(FakeBackend):
        def load(self, source):
            if source.path.is_file() and source.path.read_bytes().startswith(b"penstock"):
                return super().load(replace(source, path=tmp_path))
            return super().load(source)

    path = tmp_path / "text.fake"
    path.write_bytes(artefact({}))
    with pytest.raises(AssertionError, match="truncated file must raise LoadError"):
        check_backend(Backend(), ModelSource("m", path))
    check_backend(Backend(), ModelSource("m", path), half_is_broken=False)


def test_a_folder_is_damaged_as_a_folder(tmp_path):
    """The file's neighbours stay, so it is the damage that is refused and not their absence."""
    seen = []

    class Backend(FakeBackend):
        def load(self, source):
            if source.path.is_dir():
                seen.append(sorted(file.name for file in source.path.iterdir()))
            return super().load(source)

    for name, content in (("model.fake", artefact({})), ("weights.bin", b"1")):
        (tmp_path / name).write_bytes(content)
    check_backend(Backend(), ModelSource("m", tmp_path))
    assert all(names == ["model.fake", "weights.bin"] for names in seen)
