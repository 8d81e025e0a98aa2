"""What a user's class may look like, and what becomes of one that is wrong; in both isolations."""

from __future__ import annotations

import logging
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.zoo.engines import engine_of

from penstock.backends import catalog
from penstock.backends.base import (
    LoadError,
    ModelSource,
    OffLoopSession,
    RunError,
    StreamingSession,
)
from penstock.backends.conformance import Case, check_backend
from penstock.backends.python import PythonBackend
from penstock.backends.python import host as python_host
from penstock.protocol import dtype as dt
from penstock.protocol.message import TensorSpec

ADD_SUB = """
class Model:
    inputs = {"a": ("FP32", [-1, 4]), "b": ("FP32", [-1, 4])}
    outputs = {"sum": ("FP32", [-1, 4]), "difference": ("FP32", [-1, 4])}

    def predict(self, a, b):
        return a + b, a - b
"""
HEAD = """
import numpy as np
from penstock.backends.python.model import BadInput, Context

class Model:
    inputs = {"x": ("FP32", [-1, 2])}
    outputs = {"y": ("FP32", [-1, 2])}
"""
X = np.array([[1, 2]], np.float32)

Load = Callable[..., Any]


@pytest.fixture(params=["thread", "process"])
def isolation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def load(tmp_path: Path, isolation: str) -> Iterator[Load]:
    """``load(text, **source)`` writes ``model.py`` and loads it; sessions are closed at the end."""
    sessions: list[Any] = []
    folder = tmp_path / "7"
    folder.mkdir()

    def load(text: str, options: dict[str, str] | None = None, **source: Any) -> Any:
        (folder / "model.py").write_text(text)
        given = {"isolation": isolation, **(options or {})}
        made = ModelSource("m", folder / "model.py", options=given, **source)
        session = PythonBackend().load(made)
        sessions.append(session)
        return session

    yield load
    for session in sessions:
        session.close()


def method(text: str) -> str:
    """``HEAD`` with more methods."""
    return HEAD + "\n" + textwrap.indent(textwrap.dedent(text), "    ")


def refused(load: Load, text: str, **source: Any) -> str:
    with pytest.raises(LoadError) as caught:
        load(text, **source)
    said = str(caught.value)
    assert "\n" not in said
    return said


def failed(session: Any, x: Any = X) -> RunError:
    with pytest.raises(RunError) as caught:
        session.run([x])
    return caught.value


# ---------------------------------------------------------------------- the contract


def test_it_is_in_the_catalog_and_says_what_it_runs_on() -> None:
    assert isinstance(catalog.get("python"), PythonBackend)
    assert catalog.runs_code("python")
    found = engine_of("python")
    assert not found.missing
    assert found.version.endswith(sys.version.split()[0])


def test_it_keeps_the_contract(tmp_path: Path, isolation: str) -> None:
    (tmp_path / "model.py").write_text(ADD_SUB)
    source = ModelSource("m", tmp_path, options={"isolation": isolation})
    rng = np.random.default_rng(3)
    a, b = rng.random((2, 4), np.float32), rng.random((2, 4), np.float32)
    cases = [Case([a, b], [a + b, a - b])]
    report = check_backend(PythonBackend(), source, cases=cases, half_is_broken=False)
    assert {"batches", "ownership", "refusals", "close"} <= set(report.held)


def test_it_keeps_the_contract_with_strings(tmp_path: Path, isolation: str) -> None:
    (tmp_path / "model.py").write_text("""
class Model:
    inputs = {"text": ("BYTES", [-1, 2])}
    outputs = {"upper": ("BYTES", [-1, 2]), "length": (int, [-1])}

    def predict(self, text):
        return {
            "upper": [[item.decode().upper() for item in row] for row in text],
            "length": [sum(map(len, row)) for row in text],
        }
""")
    source = ModelSource("m", tmp_path, options={"isolation": isolation})
    texts = np.array([[b"", "ä".encode()], [b"x" * 70_000, b"b"]], object)
    wanted = np.array([[b"", "Ä".encode()], [b"X" * 70_000, b"B"]], object)
    case = Case([texts], [wanted, np.array([2, 70_001])])
    check_backend(PythonBackend(), source, cases=[case], half_is_broken=False)


def test_it_keeps_the_contract_with_streams(tmp_path: Path, isolation: str) -> None:
    (tmp_path / "model.py").write_text(
        method("""
        def predict(self, x):
            yield x + 1
        """)
    )
    source = ModelSource("m", tmp_path, options={"isolation": isolation})
    case = Case([X], [X + 1])
    report = check_backend(PythonBackend(), source, cases=[case], half_is_broken=False)
    assert "streams" in report.held


def test_only_a_process_stays_off_the_loop(load: Load, isolation: str) -> None:
    session = load(ADD_SUB)
    off_loop = isinstance(session, OffLoopSession) and session.off_loop
    assert off_loop is (isolation == "process")


# ---------------------------------------------------------------------- what a class may be


def test_specs_come_from_the_configuration_where_the_class_states_none(load: Load) -> None:
    session = load(
        """
class Model:
    def predict(self, x):
        return 2 * x
""",
        inputs=(TensorSpec("x", dt.FP32, (-1, 2)),),
        outputs=(TensorSpec("y", dt.FP32, (-1, 2)),),
    )
    assert session.inputs == (TensorSpec("x", dt.FP32, (-1, 2)),)
    np.testing.assert_array_equal(session.run([X])[0], 2 * X)


def test_the_context_tells_a_model_about_itself(load: Load, tmp_path: Path) -> None:
    session = load(
        """
class Model:
    inputs = {"x": ("FP32", [-1, 2])}
    outputs = {"told": ("BYTES", [7])}

    def __init__(self, context):
        self.context = context

    def predict(self, x):
        c = self.context
        return [c.name, c.version, str(c.directory), c.device, str(c.threads), str(c.rows_max),
                c.parameters["top"]]
""",
        options={"model.top": "5"},
        device="cuda:1",
        threads=3,
        rows_max=8,
    )
    told = [item.decode() for item in session.run([X])[0]]
    assert told == ["m", "7", str(tmp_path / "7"), "cuda:1", "3", "8", "5"]


def test_siblings_and_files_beside_it_are_its_own(load: Load, tmp_path: Path) -> None:
    folder = tmp_path / "7"
    (folder / "arithmetic.py").write_text("def double(x):\n    return 2 * x\n")
    np.savez(folder / "weights.npz", bias=np.float32(0.5))
    session = load("""
import dataclasses
import numpy as np
import arithmetic

@dataclasses.dataclass
class Weights:
    bias: "np.ndarray"

class Model:
    inputs = {"x": ("FP32", [-1, 2])}
    outputs = {"y": ("FP32", [-1, 2])}

    def __init__(self, context):
        with np.load(context.directory / "weights.npz") as weights:
            self.weights = Weights(weights["bias"])

    def predict(self, x):
        return arithmetic.double(x) + self.weights.bias
""")
    np.testing.assert_array_equal(session.run([X])[0], [[2.5, 4.5]])
    assert "arithmetic" not in sys.modules
    assert str(folder) not in sys.path
    assert not list(folder.rglob("__pycache__"))


def test_another_class_can_be_named(load: Load) -> None:
    text = ADD_SUB.replace("class Model", "class Adder")
    assert "class' may name another: Adder" in refused(load, text)
    session = load(text, options={"class": "Adder"})
    assert [spec.name for spec in session.outputs] == ["sum", "difference"]


def test_names_that_are_no_identifiers_come_by_keyword(load: Load) -> None:
    session = load("""
class Model:
    inputs = {"input:0": ("INT64", [2])}
    outputs = {"output:0": ("INT64", [2])}

    def predict(self, **inputs):
        return {"output:0": inputs["input:0"] + 1}
""")
    np.testing.assert_array_equal(session.run([np.array([1, 2])])[0], [2, 3])


def test_warmup_and_close_are_called(load: Load, tmp_path: Path) -> None:
    mark = tmp_path / "closed"
    session = load(
        method(f"""
        def warmup(self):
            self.warm = 10
        def predict(self, x):
            return x + self.warm
        def close(self):
            open({str(mark)!r}, "w").close()
        """)
    )
    np.testing.assert_array_equal(session.run([X])[0], X + 10)
    assert not mark.exists()
    session.close()
    assert mark.exists()
    assert "closed" in str(failed(session))


def test_bfloat16_travels_as_bits(load: Load) -> None:
    session = load("""
class Model:
    inputs = {"x": ("BF16", [-1])}
    outputs = {"y": ("BF16", [-1])}

    def predict(self, x):
        return (x.astype("<u4") << 16).view("<f4") * 2
""")
    one = np.array([0x3F80], np.uint16)
    np.testing.assert_array_equal(session.run([one])[0], [0x4000])


def test_empty_arrays_and_scalars_pass(load: Load) -> None:
    session = load("""
class Model:
    inputs = {"x": ("FP32", [-1, 2]), "k": ("INT32", [])}
    outputs = {"y": ("FP32", [-1, 2]), "n": ("INT64", [])}

    def predict(self, x, k):
        return x * k, len(x)
""")
    for rows in (0, 2):
        y, n = session.run([np.ones((rows, 2), np.float32), np.array(3, np.int32)])
        np.testing.assert_array_equal(y, np.full((rows, 2), 3, np.float32))
        assert n.shape == ()
        assert n == rows


def test_large_arrays_pass_and_belong_to_the_caller(load: Load) -> None:
    session = load("""
class Model:
    inputs = {"x": ("FP32", [-1, 1024])}
    outputs = {"y": ("FP32", [-1, 1024])}

    def predict(self, x):
        return x + 1
""")
    kept = []
    for rows in (1, 100, 4000, 20_000, 100, 100, 100, 100, 100, 1):
        x = np.full((rows, 1024), len(kept), np.float32)
        kept.append(session.run([x])[0])
    for i, array in enumerate(kept):
        assert array.min() == array.max() == i + 1


def test_what_a_model_keeps_is_not_what_a_caller_gets(load: Load) -> None:
    session = load(
        method("""
        def __init__(self):
            self.kept = np.zeros((1, 2), np.float32)
            self.list = [self.kept]
        def predict(self, x):
            return {"y": self.kept[:]}
        """)
    )
    session.run([X])[0][:] = 9
    np.testing.assert_array_equal(session.run([X])[0], [[0, 0]])


def test_what_a_model_makes_is_not_copied(tmp_path: Path) -> None:
    """In this process only: memory that nobody else can reach goes to the caller as it is."""
    (tmp_path / "model.py").write_text(ADD_SUB)
    source = ModelSource("m", tmp_path, options={"isolation": "thread"})
    session = PythonBackend().load(source)
    made: list[int] = []

    def add(a: Any, b: Any) -> Any:
        out = a + b, (a - b).reshape(-1, 4)
        made.extend(array.__array_interface__["data"][0] for array in out)
        return out

    session._hosted._predict = add  # type: ignore[attr-defined]
    a = np.ones((2, 4), np.float32)
    outputs = session.run([a, a])
    assert [array.__array_interface__["data"][0] for array in outputs] == made
    session.close()


# ---------------------------------------------------------------------- runs that fail


def test_bad_input_is_the_callers_fault(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    session = load(
        method("""
        def predict(self, x):
            if x[0, 0] < 0:
                raise BadInput("x must not be negative")
            return x
        """)
    )
    error = failed(session, -X)
    assert str(error) == "x must not be negative"
    assert error.caller_fault
    np.testing.assert_array_equal(session.run([X])[0], X)
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def test_every_other_exception_is_the_models(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    session = load(
        method("""
        def predict(self, x):
            if x[0, 0] == 1:
                self.deep(x)
            raise SystemExit("over")
        def deep(self, x):
            raise KeyError("nothing")
        """)
    )
    for _ in range(3):
        error = failed(session)
        assert "KeyError" in str(error)
        assert "nothing" in str(error)
        assert not error.caller_fault
    assert "SystemExit: over" in str(failed(session, X + 1))
    logged = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert len(logged) == 2, "one for each kind"
    assert 'model.py", line' in logged[0]
    assert "in deep" in logged[0]


WRONG = {
    "None": "NoneType",
    "{'y': None}": "None",
    "{'z': x}": "z instead of y",
    "{'y': x, 'z': x}": "instead of y",
    "(x, x)": "2 outputs instead of 1",
    "()": "0 outputs",
    "x.astype(complex)": "complex",
    "'text'": "<U4",
    "np.ones((1, 2)).astype(object)": "object",
    "x[:, :1]": "shape [1, 1]",
    "x[0]": "declared as [-1, 2]",
    "[[1.0, 2.0], [3.0]]": "no array",
    "object()": "object",
}
CONVERTED = {
    "x.astype('f8')": 1.0,
    "x.astype('i4')": 1.0,
    "x + np.arange(2) * 0": 1.0,
    "[[1, 1]]": 1.0,
    "np.asfortranarray(np.vstack([x, x]))[:1]": 1.0,
    "(x,)": 1.0,
    "x * np.nan": np.nan,
    "x * np.inf": np.inf,
}
NUMBERED = """
        def predict(self, x):
            number, x = int(x[0, 0]), np.ones((1, 2), np.float32)
            return [{}][number]()
"""


def numbered(load: Load, expressions: Iterable[str]) -> Any:
    """A model that returns one of them, by the number that it is given."""
    return load(method(NUMBERED.format(", ".join(f"lambda: {e}" for e in expressions))))


def test_wrong_outputs_are_refused(load: Load) -> None:
    session = numbered(load, [*WRONG, "x"])
    for number, (expression, said) in enumerate(WRONG.items()):
        error = failed(session, np.full((1, 2), number, np.float32))
        assert said in str(error), expression
        assert not error.caller_fault
    (output,) = session.run([np.full((1, 2), len(WRONG), np.float32)])
    np.testing.assert_array_equal(output, [[1, 1]])


def test_outputs_are_converted(load: Load) -> None:
    session = numbered(load, CONVERTED)
    for number, (expression, wanted) in enumerate(CONVERTED.items()):
        (output,) = session.run([np.full((1, 2), number, np.float32)])
        assert output.dtype == np.float32, expression
        np.testing.assert_array_equal(output, [[wanted, wanted]], expression)


def test_inputs_are_checked_before_the_model_sees_them(load: Load) -> None:
    session = load(
        method("""
        def predict(self, x):
            return x
        """)
    )
    for wrong in (X.astype("f8"), X[0], np.ones((1, 3), np.float32)):
        for _ in range(2):
            error = failed(session, wrong)
            assert error.caller_fault
            assert "'x'" in str(error)


# ---------------------------------------------------------------------- streams


def test_a_generator_streams(load: Load) -> None:
    session = load(
        method("""
        def predict(self, x):
            for i in range(int(x[0, 0])):
                yield x + i
        """)
    )
    assert isinstance(session, StreamingSession)
    for count in (3, 0, 5):
        x = np.full((1, 2), count, np.float32)
        parts = [parts[0] for parts in session.stream([x])]
        assert [part[0, 0] for part in parts] == [count + i for i in range(count)]
    error = failed(session, np.full((1, 2), 3, np.float32))
    assert "more than one response" in str(error)
    assert "decoupled" in str(error)
    assert "no response" in str(failed(session, np.zeros((1, 2), np.float32)))


def test_a_stream_that_is_closed_early_is_closed_in_the_model(load: Load) -> None:
    session = load(
        method("""
        closed = 0
        def predict(self, x):
            try:
                for i in range(1000):
                    yield x * 0 + self.closed
            finally:
                self.closed += 1
        """)
    )
    for wanted in range(3):
        stream = session.stream([X])
        assert next(stream)[0][0, 0] == wanted
        stream.close()


def test_a_stream_may_fail_halfway(load: Load) -> None:
    session = load(
        method("""
        def predict(self, x):
            yield x
            raise BadInput("no more") if x[0, 0] == 1 else ValueError("broken")
        """)
    )
    for x, fault in ((X, True), (X + 1, False)):
        stream = session.stream([x])
        np.testing.assert_array_equal(next(stream)[0], x)
        with pytest.raises(RunError) as caught:
            next(stream)
        assert caught.value.caller_fault is fault
    assert len(session.outputs) == len(next(session.stream([X])))


# ---------------------------------------------------------------------- loads that fail


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no class Model"),
        ("Model = 3", "no class Model"),
        ("class Model:\n    pass\n", "no method predict"),
        ("class Model:\n    def predict(self\n", "(model.py:2)"),
        ("\x00\x01", "model.py"),
        ("\n\nimport no_such_package\n", "No module named 'no_such_package'"),
        ("\n\nimport no_such_package\n", "(model.py:3)"),
        ("import triton_python_backend_utils as pb_utils", "docs/backends/python.md"),
        ("\n\nraise ValueError('at\\nonce')\n", "ValueError: at once (model.py:3)"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3 (model.py:2)"),
        ("class Model:\n    def predict(self, x): ...\n", "nothing states the model's inputs"),
        (method("async def predict(self, x): ..."), "async"),
        (method("async def predict(self, x):\n    yield x"), "async"),
        (method("def predict(self, z): ..."), "predict takes z, but the inputs are x"),
        (method("def predict(self, x, k): ..."), "predict takes x, k"),
        (method("def predict(self): ..."), "predict takes nothing"),
        (method("def __init__(self, a, b): ...\ndef predict(self, x): ..."), "TypeError"),
        (method("def __init__(self): 1 / 0\ndef predict(self, x): ..."), "ZeroDivisionError"),
        (method("def warmup(self): 1 / 0\ndef predict(self, x): ..."), "ZeroDivisionError"),
        (ADD_SUB.replace('("FP32", [-1, 4])', "7"), "attribute inputs: 'a' is 7"),
        (ADD_SUB.replace("FP32", "FP3"), "FP3"),
        (ADD_SUB.replace("[-1, 4]", "[-2, 4]"), "no tensor"),
        (ADD_SUB.replace("outputs = {", "outputs = 1, {"), "outputs must map names"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("isolation", ["thread"])  # The host is the same one in a process.
def test_what_makes_no_model_is_refused(load: Load, text: str, said: str) -> None:
    assert said in refused(load, text)


def test_what_makes_no_model_is_refused_in_one_line(load: Load) -> None:
    assert "SystemExit: 3 (model.py:2)" in refused(load, "import sys\nsys.exit(3)\n")
    assert "ValueError: at once (model.py:3)" in refused(load, "\n\nraise ValueError('at\\nonce')")
    assert "no class Model" in refused(load, "")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"izolation": "thread"}, "did you mean isolation"),
        ({"isolation": "fibre"}, "process or thread"),
        ({"load_timeout_s": "0"}, "at least 1"),
        ({"load_timeout_s": "soon"}, "whole number"),
    ],
)
def test_options_are_checked(load: Load, options: dict[str, str], said: str) -> None:
    assert said in refused(load, ADD_SUB, options=options)


@pytest.mark.parametrize("key", ["python", "timeout_s", "memory_limit_mb", "message_limit_mb"])
def test_a_thread_takes_no_limits(tmp_path: Path, key: str) -> None:
    (tmp_path / "model.py").write_text(ADD_SUB)
    source = ModelSource("m", tmp_path, options={"isolation": "thread", key: "1"})
    with pytest.raises(LoadError, match=f"'{key}'.*process"):
        PythonBackend().load(source)


def test_a_constructor_that_hangs_is_given_up(load: Load, isolation: str) -> None:
    text = method("""
        def __init__(self):
            import time
            time.sleep(8)
        def predict(self, x):
            return x
        """)
    assert "load_timeout_s" in refused(load, text, options={"load_timeout_s": "1"})
    other = load(ADD_SUB)
    assert len(other.run([np.ones((1, 4), np.float32)] * 2)) == 2
    assert isolation == "process" or any(t.name == "m load" for t in threading.enumerate())


def test_models_with_siblings_of_one_name_do_not_mix(tmp_path: Path, isolation: str) -> None:
    sessions = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "sibling.py").write_text(f"NUMBER = {number}\n")
        (folder / "model.py").write_text(
            "import sibling\n"
            + method("""
            def predict(self, x):
                return x * 0 + sibling.NUMBER
            """)
        )
        source = ModelSource("m", folder, options={"isolation": isolation})
        sessions.append(PythonBackend().load(source))
    assert [session.run([X])[0][0, 0] for session in sessions] == [1, 2]
    for session in sessions:
        session.close()


def test_one_instance_serves_all_threads_if_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        method("""
        thread_safe = True
        def predict(self, x):
            return x + 1
        """)
    )
    source = ModelSource("m", tmp_path, options={"isolation": "thread"})
    report = check_backend(PythonBackend(), source, half_is_broken=False)
    assert "threads" in report.held


def test_fitted_names_the_output() -> None:
    with pytest.raises(RunError, match="output 'y' has shape"):
        python_host.fitted(TensorSpec("y", dt.FP32, (2,)), [1.0])
