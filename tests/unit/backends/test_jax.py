"""Exported JAX functions keep the contract, whatever they were written with."""

import dataclasses
import gc
import os
import subprocess
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from tests.zoo import digits
from tests.zoo.engines import engine_or_skip

from penstock.backends import jax as ours
from penstock.backends.base import LoadError, ModelSource, RunError
from penstock.backends.conformance import Case, check_backend
from penstock.backends.jax import JaxBackend
from penstock.backends.jax import session as jax_session
from penstock.protocol import dtype as dt
from penstock.protocol.message import TensorSpec


@pytest.fixture(scope="module", autouse=True)
def jax():
    engine_or_skip("jax")
    from jax import export  # noqa: F401 - an attribute of jax from here on

    import jax  # isort: skip

    return jax


@pytest.fixture
def written(jax, tmp_path):
    """Exports a function; shapes may have letters for free sizes."""

    def write(function, *shapes, dtype="float32", **how):
        letters = sorted({size for shape in shapes for size in shape if isinstance(size, str)})
        symbols = jax.export.symbolic_shape(",".join(letters)) if letters else ()
        free = dict(zip(letters, symbols, strict=True))
        given = [
            jax.ShapeDtypeStruct([free.get(size, size) for size in shape], dtype)
            for shape in shapes
        ]
        exported = jax.export.export(jax.jit(function), **how)(*given)
        (tmp_path / "model.jax").write_bytes(exported.serialize())
        return ModelSource("m", tmp_path / "model.jax")

    return write


@pytest.fixture
def double(written):
    return written(lambda x: x * 2, ("n", 4))


def load(source, **changes):
    return JaxBackend().load(dataclasses.replace(source, **changes))


def test_keeps_the_contract_with_the_digits(tmp_path):
    import onnxruntime
    from tests.zoo import jax as zoo

    zoo.write(tmp_path)
    picture = digits.pictures()[:3]
    wanted = onnxruntime.InferenceSession(str(digits.MODEL)).run(None, {"image": picture})
    source = ModelSource("m", tmp_path / "model.jax", rows_max=8)
    report = check_backend(JaxBackend(), source, cases=[Case([picture], wanted)])
    assert report.skipped == []


@pytest.mark.parametrize(
    "dtype",
    ["bool", "int8", "uint16", "int32", "float16", "bfloat16", "float32", "int64", "float64"],
)
def test_keeps_the_contract_with_every_type(jax, written, dtype):
    with jax.enable_x64(dtype in ("int64", "float64")):
        source = written(lambda x, y: {"same": x, "first": (y[:, :1],)}, ("n", 4), ("n", 4),
                         dtype=dtype)  # fmt: skip
    check_backend(JaxBackend(), source)
    session = load(source)
    assert [spec.name for spec in session.inputs] == ["input_0", "input_1"]
    assert [spec.name for spec in session.outputs] == ["first.0", "same"]
    assert session.inputs[0].dtype is dt.of_numpy(np.dtype(dtype))


@pytest.mark.parametrize("shape", [(), (3,), ("n", "k")])
def test_keeps_the_contract_with_other_shapes(written, shape):
    check_backend(JaxBackend(), written(lambda x: x + 1, shape))


def test_names_of_a_dictionary(jax, tmp_path):
    part = jax.ShapeDtypeStruct((2,), "float32")
    exported = jax.export.export(jax.jit(lambda d: d["b"] - d["a"]))({"a": part, "b": part})
    (tmp_path / "model.jax").write_bytes(exported.serialize())
    source = ModelSource("m", tmp_path)
    assert [spec.name for spec in load(source).inputs] == ["a", "b"]
    # The configuration may state them in another order, or give others by position.
    stated = tuple(TensorSpec(name, dt.FP32, (2,)) for name in ("b", "a"))
    assert [spec.name for spec in load(source, inputs=stated).inputs] == ["a", "b"]
    stated = tuple(TensorSpec(name, dt.FP32, (2,)) for name in ("x", "y"))
    assert [spec.name for spec in load(source, inputs=stated).inputs] == ["x", "y"]
    out = (TensorSpec("difference", dt.FP32, (2,)),)
    assert load(source, outputs=out).outputs == out


def test_batches_are_filled_up_to_few_sizes(double):
    session = load(double, rows_max=24)
    made = session._program.cache_info().currsize
    assert made == len({1, 2, 4, 8, 16, 24})
    for rows in range(1, 25):
        given = np.full((rows, 4), rows, np.float32)
        assert session.run([given])[0].tolist() == (given * 2).tolist()
    assert session._program.cache_info().currsize == made


@pytest.mark.parametrize("function", [lambda x: x - x.mean(0), lambda x: x + x.shape[0]])
def test_rows_that_influence_each_other_are_never_filled_up(written, function):
    source = written(function, ("n", 4))
    given = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert np.allclose(load(source, rows_max=8).run([given])[0], function(given))
    check_backend(JaxBackend(), source, independent_rows=False)


def test_filling_up_and_compiling_ahead_can_be_switched_off(double):
    session = load(double, rows_max=8, options={"pad_rows": "0"})
    session.run([np.ones((3, 4), np.float32)])
    assert session._program.cache_info().currsize == 1
    lazy = load(double, rows_max=64, options={"precompile": "false"})
    assert lazy._program.cache_info().currsize == 2  # what the trial of independence needs


def test_what_calls_back_into_python_is_refused(jax, written):
    name = "xla_ffi_python_cpu_callback"

    def calls(x):
        return jax.ffi.ffi_call(name, x)(x, index=np.uint64(12345))

    off = [jax.export.DisabledSafetyCheck.custom_call(name)]
    with pytest.raises(LoadError, match="calls back into Python"):
        load(written(calls, (2, 4), disabled_checks=off))


def test_nothing_of_a_closed_session_is_kept(jax, double, monkeypatch):
    read, kept = jax.export.deserialize, []

    def watched(content):
        made = read(content)
        kept.append(weakref.ref(made))
        return made

    monkeypatch.setattr(jax.export, "deserialize", watched)
    session, other = load(double), load(double)
    session.run([np.ones((3, 4), np.float32)])
    session.close()
    session.close()
    np.testing.assert_array_equal(other.run([np.ones((3, 4), np.float32)])[0], np.full((3, 4), 2))
    other.close()
    del session, other
    gc.collect()
    assert [ref() for ref in kept if ref() is not None] == []


def test_no_more_programs_are_kept_than_allowed(written, monkeypatch):
    monkeypatch.setattr(jax_session, "PROGRAMS_MAX", 3)
    session = load(written(lambda x: x + 1, ("n", "k")))
    for size in range(1, 7):
        assert session.run([np.zeros((1, size), np.float32)])[0].shape == (1, size)
    assert session._program.cache_info().currsize == 3


def test_sizes_that_do_not_go_together_are_the_callers_fault(written):
    session = load(written(lambda x, y: x + y, ("n", "k"), ("n", "k")))
    with pytest.raises(RunError) as caught:
        session.run([np.zeros((1, 2), np.float32), np.zeros((1, 3), np.float32)])
    assert caught.value.caller_fault
    assert "\n" not in str(caught.value)


def test_inputs_of_different_numbers_of_rows(written):
    session = load(written(lambda x, y: x + y, ("n", 2), ("n", 2)))
    with pytest.raises(RunError, match="different numbers of rows") as caught:
        session.run([np.zeros((1, 2), np.float32), np.zeros((3, 2), np.float32)])
    assert caught.value.caller_fault


def test_a_closed_session_refuses(double):
    session = load(double)
    session.close()
    with pytest.raises(RunError, match="closed"):
        session.run([np.zeros((1, 4), np.float32)])


def test_an_export_for_other_devices_is_refused(written):
    with pytest.raises(LoadError, match=r'exported for tpu, not for cpu; .*platforms=\["cpu"\]'):
        load(written(lambda x: x, (2,), platforms=["tpu"]))


def test_types_that_no_request_can_carry_are_refused(written):
    with pytest.raises(LoadError, match="'input_0' is complex64"):
        load(written(lambda x: x.real, (2,), dtype="complex64"))


def test_damaged_files_are_refused(double):
    whole = double.path.read_bytes()
    for size in range(40, len(whole) - 40, len(whole) // 12):
        for data in (whole[:size], whole[:size] + whole[size + 5 :]):
            double.path.write_bytes(data)
            with pytest.raises(LoadError) as caught:
                load(double)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["cuda", "gpu:0", "tpu:0"])
def test_unknown_devices_are_refused(double, device):
    with pytest.raises(LoadError, match=f"device '{device}' is not known"):
        load(double, device=device)


def test_a_device_that_is_not_there_is_refused(double):
    with pytest.raises(LoadError, match="jax has no device 'cuda:0'"):
        load(double, device="cuda:0")
    found = SimpleNamespace(devices=lambda platform: ["first", "second"])
    with pytest.raises(LoadError, match=r"no device 'cuda:3'; it has 2"):
        ours._device(found, ModelSource("m", double.path, device="cuda:3"), "cuda", 3)


def test_says_what_to_install(double, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(LoadError, match=r"pip install 'penstock\[jax\]'"):
        load(double)


def test_a_fresh_process_uses_the_cpu_alone_and_is_quiet(double):
    code = (
        "import sys, os; from pathlib import Path\n"
        "from penstock.backends.base import ModelSource\n"
        "from penstock.backends.jax import JaxBackend\n"
        "assert 'jax' not in sys.modules\n"
        "JaxBackend().load(ModelSource('m', Path(sys.argv[1]), threads=1)).close()\n"
        "import jax\n"
        "print(jax.config.jax_platforms, {d.platform for d in jax.devices()},\n"
        "      os.environ['PJRT_NPROC'], os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'])"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "PJRT_"))}
    done = subprocess.run(
        [sys.executable, "-c", code, str(double.path)],
        env=env, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == "cpu {'cpu'} 1 false\n"
    assert done.stderr == ""
