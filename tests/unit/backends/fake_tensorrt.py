"""TensorRT's runtime without a GPU: plans that are run by NumPy, over ``fake_cuda``.

Has the calls that we make, in the order in which they are legal; anything else is an
AssertionError. ``test_tensorrt_fakes`` holds the names against TensorRT for RTX's own. What is not
here, the builder and the parser, comes from the real library where ``FakeTrt`` is given it.
"""

# ruff: noqa: N802
from __future__ import annotations

import ctypes
import json
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np
from tests.unit.backends.fake_cuda import FakeDriver

DataType = IntEnum("DataType", "FLOAT HALF INT8 INT32 BOOL UINT8 FP8 BF16 INT64 INT4", start=0)
TensorIOMode = IntEnum("TensorIOMode", "NONE INPUT OUTPUT", start=0)
TensorLocation = IntEnum("TensorLocation", "DEVICE HOST", start=0)
TensorFormat = IntEnum("TensorFormat", "LINEAR CHW2 HWC8 CHW4", start=0)
ExecutionContextAllocationStrategy = IntEnum(
    "ExecutionContextAllocationStrategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED", start=0
)
NUMPY = {
    "FLOAT": "f4", "HALF": "f2", "INT8": "i1", "INT32": "i4", "BOOL": "?", "UINT8": "u1",
    "BF16": "u2", "INT64": "i8",
}  # fmt: skip
SCRATCH = 5000


@dataclass(frozen=True)
class Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    location: str = "DEVICE"
    format: str = "LINEAR"


@dataclass(frozen=True)
class Model:
    """``profiles`` has (min, opt, max) by input. Data-dependent outputs have ``late``: their sizes
    are told by a run only."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    profiles: tuple[dict[str, tuple[tuple[int, ...], ...]], ...]
    compute: Callable[..., Sequence[np.ndarray]]
    late: bool = False


def batched(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], compute: Any, buckets=(1, 8), **more: Any
) -> Model:
    """A model over a free first dimension, with a profile for each bucket."""
    low, profiles = 1, []
    for high in buckets:
        profiles.append({
            t.name: tuple((size, *t.shape[1:]) for size in (low, high, high)) for t in inputs
        })  # fmt: skip
        low = high + 1
    return Model(tuple(inputs), tuple(outputs), tuple(profiles), compute, **more)


ADD_SUB = batched(
    [Tensor("INPUT0", "FLOAT", (-1, 16)), Tensor("INPUT1", "FLOAT", (-1, 16))],
    [Tensor("OUTPUT0", "FLOAT", (-1, 16)), Tensor("OUTPUT1", "FLOAT", (-1, 16))],
    lambda a, b: (a + b, a - b),
)
LATE = replace(
    batched(
        [Tensor("X", "FLOAT", (-1, 4))],
        [Tensor("FOUND", "INT64", (-1, 2)), Tensor("TWICE", "FLOAT", (-1, 4))],
        lambda x: (np.argwhere(x), x * 2),
    ),
    late=True,
)


def plan(name: str, version: tuple[int, ...] = (11, 4, 0, 106)) -> bytes:
    """A plan file that names a model, with the header of a real one."""
    body = json.dumps({"model": name}).encode() + b" " * 200
    rtx = version[0] < 7
    head = struct.pack("<4sIQQ", b"vtrt" if rtx else b"ftrt", 0, 2, 32 + len(body))
    numbers = bytes(version)
    return (head + numbers).ljust(32, b"\0") + body


def of_onnx(onnx: bytes, rows_max: int) -> Model:
    """A model that ONNX Runtime computes, for plans that were really built."""
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx)
    sides = [
        [
            Tensor(a.name, "FLOAT", tuple(d if isinstance(d, int) else -1 for d in a.shape))
            for a in side
        ]
        for side in (session.get_inputs(), session.get_outputs())
    ]
    names = [t.name for t in sides[0]]

    def compute(*arrays: np.ndarray) -> Sequence[np.ndarray]:
        return session.run(None, dict(zip(names, arrays, strict=True)))

    return batched(*sides, compute, (rows_max,))


class FakeTrt:
    """Stands for the module. ``models`` are those that plans may name; ``default`` is what a real
    plan stands for, unless ``built`` knows its bytes. ``fails`` is what the next execution
    complains of."""

    DataType = DataType
    TensorIOMode = TensorIOMode
    TensorLocation = TensorLocation
    TensorFormat = TensorFormat
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy

    def __init__(self, driver: FakeDriver, version: str = "11.4.0.106", real: Any = None) -> None:
        self.driver = driver
        self.__version__ = version
        self.real = real
        self.models: dict[str, Model] = {"add_sub": ADD_SUB, "late": LATE}
        self.default: Model | None = None
        self.built: dict[bytes, Model] = {}
        self.fails = ""
        self.executed: list[tuple[int, int]] = []
        self.compiled: list[bytes] = []
        self.code_allowed = False
        self.refuses = ""
        self.ILogger = real.ILogger if real else _Logger
        self.IOutputAllocator = real.IOutputAllocator if real else _OutputAllocator
        self.logger: Any = None

    def __getattr__(self, name: str) -> Any:
        if self.__dict__.get("real") is None:
            raise AttributeError(name)
        return getattr(self.real, name)

    def Runtime(self, logger: Any) -> Runtime:
        self.logger = logger
        return Runtime(self)


class _Logger:
    def __init__(self) -> None:
        pass


class _OutputAllocator:
    def __init__(self) -> None:
        pass


class Runtime:
    def __init__(self, trt: FakeTrt) -> None:
        self._trt = trt
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        trt = self._trt
        trt.driver._needs_context()
        trt.code_allowed = self.engine_host_code_allowed
        if trt.refuses:
            trt.logger.log(1, trt.refuses)
            return None
        model = trt.built.get(serialized_engine, trt.default)
        if serialized_engine[32:33] == b"{":
            numbers = ".".join(map(str, serialized_engine[24:28]))
            if struct.unpack_from("<Q", serialized_engine, 16)[0] != len(serialized_engine):
                trt.logger.log(1, "[dispatch.cpp::read::9] Error Code 4: the plan is cut off")
                return None
            if numbers != trt.__version__:
                trt.logger.log(
                    1, f"Error Code 6: expecting version {trt.__version__} got {numbers}"
                )
                return None
            model = trt.models[json.loads(serialized_engine[32:])["model"]]
        return ICudaEngine(trt, model)

    def get_engine_validity(self, buffer: bytes) -> tuple[Any, int]:
        return 2, 1


class NoDims:
    """``Dims`` of -1 dimensions, as for what is not known."""

    def __len__(self) -> int:
        return -1


class ICudaEngine:
    def __init__(self, trt: FakeTrt, model: Any) -> None:
        self._trt = trt
        self._model = model
        self._tensors = {t.name: t for t in (*model.inputs, *model.outputs)}
        self.num_io_tensors = len(self._tensors)
        self.num_optimization_profiles = max(1, len(model.profiles))
        self._context = trt.driver._needs_context()
        self.device_memory_size_v2 = SCRATCH

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        given = any(t.name == name for t in self._model.inputs)
        return TensorIOMode.INPUT if given else TensorIOMode.OUTPUT

    def get_tensor_location(self, name: str) -> Any:
        return TensorLocation[self._tensors[name].location]

    def get_tensor_format(self, name: str) -> Any:
        return TensorFormat[self._tensors[name].format]

    def get_tensor_dtype(self, name: str) -> Any:
        return DataType[self._tensors[name].dtype]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Any]:
        profiles = self._model.profiles
        return list(profiles[profile_index][name]) if profiles else [NoDims()] * 3

    def create_runtime_config(self) -> IRuntimeConfig:
        return (RtxConfig if self._trt.__version__.startswith("1.") else IRuntimeConfig)(self._trt)

    def create_execution_context(self, runtime_config: IRuntimeConfig) -> IExecutionContext:
        self._trt.driver._needs_context(self._context)
        assert runtime_config.strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        return IExecutionContext(self._trt, self._model)


class IRuntimeConfig:
    def __init__(self, trt: FakeTrt) -> None:
        self._trt = trt
        self.strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy


class RtxConfig(IRuntimeConfig):
    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache(self._trt)

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        return isinstance(cache, IRuntimeCache)


class IRuntimeCache:
    def __init__(self, trt: FakeTrt) -> None:
        self._trt = trt

    def deserialize(self, blob: bytes) -> bool:
        self._trt.compiled.append(blob)
        return True

    def serialize(self) -> bytes:
        if self._trt.driver.known_lost:
            raise RuntimeError("the GPU is lost")
        return b"kernels"


class IExecutionContext:
    """Knows what it was told, and refuses to go before it was told everything."""

    def __init__(self, trt: FakeTrt, model: Model) -> None:
        self._trt = trt
        self._model = model
        self._tensors = {t.name: t for t in (*model.inputs, *model.outputs)}
        self._profile: int | None = None if model.profiles else 0
        self._shapes: dict[str, tuple[int, ...]] = {
            t.name: t.shape for t in model.inputs if -1 not in t.shape
        }
        self._addresses: dict[str, int] = {}
        self._allocators: dict[str, Any] = {}
        self._scratch = 0
        self._busy = threading.Lock()
        self._context = trt.driver._needs_context()

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle in self._trt.driver.streams, "no such stream"
        self._profile = profile_index
        return profile_index < max(1, len(self._model.profiles))

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 16 == 0
        assert size >= SCRATCH
        self._trt.driver.check_device(memory, size)
        self._scratch = memory

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self._profile is not None, "a profile has to be chosen first"
        limits = self._model.profiles[self._profile][name] if self._model.profiles else None
        low, high = (limits[0], limits[2]) if limits else (shape, shape)
        within = all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        if within:
            self._shapes[name] = tuple(shape)
        return within

    def infer_shapes(self) -> list[str]:
        missing = [t.name for t in self._model.inputs if t.name not in self._shapes]
        if not missing:
            try:
                self._compute(self._zeros())
            except ValueError as error:
                self._trt.logger.log(1, f"Error Code 4: {error}")
                raise RuntimeError("infer_shapes failed") from error
        return missing

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if self._model.late and name == self._model.outputs[0].name:
            return self._tensors[name].shape
        arrays = self._compute(self._zeros())
        return arrays[[t.name for t in self._model.outputs].index(name)].shape

    def _zeros(self) -> list[np.ndarray]:
        return [np.zeros(self._shapes[t.name], NUMPY[t.dtype]) for t in self._model.inputs]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert name in self._tensors
        self._addresses[name] = memory
        return memory != 0

    def set_output_allocator(self, name: str, output_allocator: Any) -> bool:
        self._allocators[name] = output_allocator
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert self._busy.acquire(blocking=False), "two threads use one context"
        try:
            return self._execute(self._trt.driver.streams[stream_handle])
        finally:
            self._busy.release()

    def _execute(self, stream: Any) -> bool:
        trt, model = self._trt, self._model
        trt.driver._needs_context(self._context)
        assert stream.context == self._context, "the stream is of another GPU"
        if trt.fails:
            trt.logger.log(1, trt.fails)
            trt.fails = ""
            return False
        assert self._scratch, "no device memory was given"
        trt.driver.check_device(self._scratch, SCRATCH)
        assert all(t.name in self._shapes for t in model.inputs), "shapes are missing"
        trt.executed.append((self._profile or 0, (*self._shapes[model.inputs[0].name], 0)[0]))
        shapes, addresses = dict(self._shapes), dict(self._addresses)

        def compute() -> list[np.ndarray]:
            return self._compute([
                self._read(addresses[t.name], shapes[t.name], t.dtype) for t in model.inputs
            ])  # fmt: skip

        if model.late:
            stream.run()
            for tensor, array in zip(model.outputs, compute(), strict=True):
                self._write_late(tensor.name, array, stream)
            return True

        def work() -> None:
            for tensor, array in zip(model.outputs, compute(), strict=True):
                self._write(addresses[tensor.name], array)

        stream.queue.append(work)
        return True

    def _write_late(self, name: str, array: np.ndarray, stream: Any) -> None:
        allocator, address = self._allocators.get(name), self._addresses.get(name, 0)
        if allocator is not None:
            size = max(1, array.nbytes)
            address = allocator.reallocate_output_async(name, 0, size, 512, int(stream))
            if not address:
                return
            assert address % 512 == 0, "an output that a run decides about is aligned more"
            allocator.notify_shape(name, array.shape)
        self._write(address, array)

    def _compute(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        made = self._model.compute(*arrays)
        pairs = zip(made, self._model.outputs, strict=True)
        return [np.asarray(array, NUMPY[t.dtype], order="C") for array, t in pairs]

    def _read(self, address: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        out = np.empty(shape, NUMPY[dtype])
        self._trt.driver.check_device(address, out.nbytes)
        ctypes.memmove(out.ctypes.data, address, out.nbytes)
        return out

    def _write(self, address: int, array: np.ndarray) -> None:
        self._trt.driver.check_device(address, array.nbytes)
        ctypes.memmove(address, array.ctypes.data, array.nbytes)
