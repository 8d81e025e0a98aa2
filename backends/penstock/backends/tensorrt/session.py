"""Runs a plan: one stream with its own contexts, buffers and pinned staging memory.

Knows the calls of an execution context, and in which order they are legal. Knows nothing of files
and of building. Copies and computing of one session follow each other; they overlap with those of
its clones, one for each worker, which share the weights.

Contract, beyond ``base``: not ``thread_safe``; each clone is for one thread at a time. A run ends
when its results are on the host and the stream is empty, whatever happened. Shapes met before cost
no question to the engine.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from penstock.backends.base import LoadError, RunError
from penstock.backends.checks import refusal
from penstock.backends.tensorrt.cuda import CudaError, Device
from penstock.backends.tensorrt.engine import Engine
from penstock.backends.tensorrt.profiles import rows_limit
from penstock.backends.tensorrt.staging import Packed, Staging
from penstock.protocol.message import Array, TensorSpec

_log = logging.getLogger(__name__)

_SHAPES_MAX: Final = 256
"""Combinations of input shapes that a session remembers; beyond it begins anew."""
_ALIGNMENT: Final = 256

Key = tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]
Shape = tuple[int, ...]


class Memory:
    """Device memory that grows. ``moves`` counts how often its address changed."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._block: Any = None
        self.nbytes = 0
        self.address = 0
        self.moves = 0

    def reserve(self, nbytes: int) -> int:
        """The address of at least ``nbytes``; what was in it is lost if it grows."""
        if nbytes > self.nbytes or self._block is None:
            size = -(-max(nbytes, 1) // _ALIGNMENT) * _ALIGNMENT
            self.free()
            self._block = self._device.allocate(size)
            self.nbytes, self.address = size, int(self._block)
        return self.address

    def free(self) -> None:
        block, self._block, self.nbytes, self.address = self._block, None, 0, 0
        self.moves += 1
        if block is not None:
            self._device.free(block)


@dataclass(slots=True)
class _Prepared:
    """What follows from shapes of inputs. ``outputs`` has None where only a run can tell, ``late``
    is the indexes of those; ``made`` packs the others."""

    profile: int
    inputs: list[Shape]
    outputs: list[Shape | None]
    given: Packed
    made: Packed
    late: list[int]


@dataclass(slots=True)
class _Bound:
    """What a context was told last: shapes, addresses (as the count of moves), and for which
    outputs it asks an allocator."""

    prepared: _Prepared | None = None
    moves: int = 0
    allocated: set[int] = field(default_factory=set)


class TensorRtSession:
    """One worker's part of a model. ``rows_max`` is the largest batch that the plan takes, 0 if
    its batch is fixed."""

    thread_safe = False

    def __init__(self, engine: Engine) -> None:
        """Owns one share of ``engine`` from here on, whatever comes of it.

        Raises:
            LoadError: not enough memory, or a context is refused.
        """
        self.inputs = engine.inputs
        self.outputs = engine.outputs
        self.rows_max = rows_limit(engine.inputs, engine.profiles)
        self._engine = engine
        self._device = engine.device
        self._open = True
        self._prepared: dict[Key, _Prepared] = {}
        self._contexts: list[Any] = []
        self._bound: list[_Bound] = []
        self._staging: list[Staging] = []
        self._scratch = Memory(engine.device)
        self._given = Memory(engine.device)
        self._made = Memory(engine.device)
        trt = engine.library.trt
        self._late = [_allocator(trt, Memory(engine.device)) for _ in engine.outputs]
        self._stream: Any = None
        try:
            self._device.make_current()
            self._stream = self._device.stream()
            self._reserve()
        except CudaError as error:
            self.close()
            raise LoadError(f"the GPU refuses another worker: {error}") from error
        except RunError as error:
            self.close()
            raise LoadError(f"the plan cannot run its own largest sizes: {error}") from error
        except BaseException:
            self.close()
            raise

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """See ``Session.run``."""
        return self.run_into(inputs, (None,) * len(self.outputs))

    def run_into(self, inputs: Sequence[Array], outputs: Sequence[Array | None]) -> Sequence[Array]:
        """See ``BoundSession.run_into``."""
        if not self._open:
            raise RunError("the session is closed")
        try:
            # Each time: other models, of other GPUs or engines, run on this thread too.
            self._device.make_current()
            return self._run(inputs, outputs)
        except CudaError as error:
            self._drain()
            raise RunError(f"the GPU failed: {error}") from error
        except RunError as error:
            lost = self._drain()
            if lost is not None:
                raise RunError(f"the GPU failed: {lost}") from error
            raise
        except BaseException:
            self._drain()
            raise

    def clone(self) -> TensorRtSession:
        """See ``CloneableSession.clone``: stream, contexts and buffers are its own."""
        if not self._open:
            raise LoadError("the session is closed")
        return TensorRtSession(self._engine.share())

    def close(self) -> None:
        """See ``Session.close``."""
        if not self._open:
            return
        self._open = False
        try:
            self._free()
        except CudaError as error:
            _log.warning("the GPU is lost, what was on it too: %s", error)
        finally:
            self._engine.release()

    def _free(self) -> None:
        """Everything, whatever fails on the way: a GPU that is lost refuses each call."""
        self._prepared.clear()
        self._bound.clear()
        late = [allocator.memory for allocator in self._late]
        with ExitStack() as from_the_end:
            if self._stream is not None:
                from_the_end.callback(self._device.free_stream, self._stream)
            for staging in self._staging:
                from_the_end.callback(staging.close)
            for memory in (self._scratch, self._given, self._made, *late):
                from_the_end.callback(memory.free)
            from_the_end.callback(self._contexts.clear)
            from_the_end.callback(self._drain)
            from_the_end.callback(self._device.make_current)

    def _reserve(self) -> None:
        engine, device = self._engine, self._device
        half, sleeps = engine.options.staging_bytes, engine.options.blocking_wait
        for _ in ("up", "down"):
            self._staging.append(Staging(device, self._stream, half, sleeps=sleeps))
        scratch = self._scratch.reserve(engine.scratch_bytes)
        for i in range(len(engine.profiles)):
            self._contexts.append(engine.context(i, self._stream, scratch))
            self._bound.append(_Bound())
        # The largest sizes now: what does not fit should not load, rather than fail in a request.
        for i, profile in enumerate(engine.profiles):
            largest = self._prepared_for(i, [profile[spec.name].max for spec in self.inputs])
            self._given.reserve(largest.given.nbytes)
            self._made.reserve(largest.made.nbytes)

    def _drain(self) -> CudaError | None:
        """After a failure: nothing may still be reading or writing our memory. What it returns is
        why the device is lost; then there is nothing left to wait for."""
        if self._stream is not None:
            try:
                self._device.drain(self._stream)
            except CudaError as error:
                return error
        return None

    def _run(self, inputs: Sequence[Array], outputs: Sequence[Array | None]) -> Sequence[Array]:
        key = tuple([(array.shape, array.dtype) for array in inputs])
        prepared = self._prepared.get(key) or self._prepare(key, inputs)
        context, bound = self._contexts[prepared.profile], self._bound[prepared.profile]
        for spec, shape, given in zip(self.outputs, prepared.outputs, outputs, strict=True):
            if given is not None and shape is not None:
                _check_fits(spec.name, shape, given)
        if bound.prepared is not prepared or bound.moves != self._given.moves + self._made.moves:
            self._bind(context, bound, prepared)
        up, down = self._staging
        up.send(prepared.given, inputs, self._given.address)
        done = context.execute_async_v3(int(self._stream))
        for i in prepared.late:
            self._late[i].raise_if_failed()
        if not done:
            raise RunError(self._why())
        if not prepared.late and prepared.made.views is not None:
            return down.fetch(prepared.made, outputs, self._made.address)
        places = self._places(prepared, outputs)
        if not prepared.late:
            return down.fetch(prepared.made, places, self._made.address)
        down.fetch_each(zip(places, self._addresses(prepared), strict=True))
        return places

    def _prepare(self, key: Key, inputs: Sequence[Array]) -> _Prepared:
        why = refusal(self.inputs, inputs)
        if why is not None:
            raise RunError(why, caller_fault=True)
        prepared = self._prepared_for(self._profile(inputs), [array.shape for array in inputs])
        if len(self._prepared) == _SHAPES_MAX:
            self._prepared.clear()
        self._prepared[key] = prepared
        return prepared

    def _prepared_for(self, profile: int, shapes: list[Shape]) -> _Prepared:
        context = self._contexts[profile]
        self._bound[profile].prepared = None
        self._set_shapes(context, shapes)
        try:
            missing = context.infer_shapes()
        except RuntimeError as error:
            said = f"the model refuses these shapes: {self._why()}"
            raise RunError(said, caller_fault=True) from error
        if missing:
            raise RunError(f"the shapes of {', '.join(missing)} are not known to the plan")
        outputs: list[Shape | None] = []
        for spec in self.outputs:
            shape = tuple(context.get_tensor_shape(spec.name))
            outputs.append(None if -1 in shape else shape)
        up, down = self._staging
        return _Prepared(
            profile,
            shapes,
            outputs,
            up.packed(shapes, [spec.dtype.numpy for spec in self.inputs]),
            down.packed(
                [(0,) if shape is None else shape for shape in outputs],
                [spec.dtype.numpy for spec in self.outputs],
            ),
            [i for i, shape in enumerate(outputs) if shape is None],
        )

    def _profile(self, inputs: Sequence[Array]) -> int:
        profiles = self._engine.profiles
        for i, profile in enumerate(profiles):
            pairs = zip(self.inputs, inputs, strict=True)
            if all(profile[spec.name].holds(array.shape) for spec, array in pairs):
                return i
        limits = "; ".join(
            f"{spec.name} from {list(profiles[0][spec.name].min)} "
            f"to {list(profiles[-1][spec.name].max)}"
            for spec in self.inputs
        )
        given = ", ".join(str(list(array.shape)) for array in inputs)
        raise RunError(f"the plan takes {limits}; not {given}", caller_fault=True)

    def _set_shapes(self, context: Any, shapes: Sequence[Shape]) -> None:
        for spec, shape in zip(self.inputs, shapes, strict=True):
            if not context.set_input_shape(spec.name, shape):
                raise RunError(f"input {spec.name!r}: {self._why()}", caller_fault=True)

    def _why(self) -> str:
        return self._engine.library.said.why() or "TensorRT does not say why"

    def _bind(self, context: Any, bound: _Bound, prepared: _Prepared) -> None:
        """Memory for these shapes, and the context told of it."""
        bound.prepared = None  # until all of it is told
        self._set_shapes(context, prepared.inputs)
        start = self._given.reserve(prepared.given.nbytes)
        for spec, offset in zip(self.inputs, prepared.given.offsets, strict=True):
            self._accepted(spec, context.set_tensor_address(spec.name, start + offset))
        self._made.reserve(prepared.made.nbytes)
        for i, (spec, address) in enumerate(
            zip(self.outputs, self._addresses(prepared), strict=True)
        ):
            if i in prepared.late:
                bound.allocated.add(i)
                told = context.set_output_allocator(spec.name, self._late[i])
            else:
                if i in bound.allocated:
                    bound.allocated.remove(i)
                    context.set_output_allocator(spec.name, None)
                told = context.set_tensor_address(spec.name, address)
            self._accepted(spec, told)
        bound.prepared = prepared
        bound.moves = self._given.moves + self._made.moves

    def _accepted(self, spec: TensorSpec, told: bool) -> None:
        if not told:
            raise RunError(f"the place of {spec.name!r} is refused: {self._why()}")

    def _addresses(self, prepared: _Prepared) -> list[int]:
        return [
            self._late[i].address if i in prepared.late else self._made.address + offset
            for i, offset in enumerate(prepared.made.offsets)
        ]

    def _places(self, prepared: _Prepared, outputs: Sequence[Array | None]) -> list[Array]:
        """Where results go: the caller's arrays or new ones, as large as the run has told."""
        places = []
        for i, (spec, shape, given) in enumerate(
            zip(self.outputs, prepared.outputs, outputs, strict=True)
        ):
            if shape is None:
                shape = self._late[i].shape
                if given is not None:
                    _check_fits(spec.name, shape, given)
            places.append(np.empty(shape, spec.dtype.numpy) if given is None else given)
        return places


def _check_fits(name: str, shape: Shape, given: Array) -> None:
    if given.shape != shape:
        raise RunError(
            f"output {name!r} has shape {list(shape)}; the array for it has {list(given.shape)}"
        )


def _allocator(trt: Any, memory: Memory) -> Any:
    # Made here because its base class comes with the library.
    class OutputAllocator(trt.IOutputAllocator):  # type: ignore[misc]
        """Gives the engine memory for an output whose size a run decides."""

        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.memory = memory
            self.address = 0
            self.shape: Shape = ()
            self.failed: CudaError | None = None

        def reallocate_output_async(
            self, _name: str, _memory: int, size: int, alignment: int, _stream: int
        ) -> int:
            # More than the driver promises may be asked for; never null, for nothing at all too.
            step = max(1, alignment)
            try:
                self.address = -(-memory.reserve(size + step - 1) // step) * step
            except CudaError as error:  # Must not get into the engine's frames.
                self.failed = error
                return 0
            return self.address

        def reallocate_output(self, name: str, old: int, size: int, alignment: int) -> int:
            return self.reallocate_output_async(name, old, size, alignment, 0)

        def raise_if_failed(self) -> None:
            failed, self.failed = self.failed, None
            if failed is not None:
                raise failed

        def notify_shape(self, _name: str, shape: Any) -> None:
            self.shape = tuple(shape)

    return OutputAllocator()
