"""A deserialized plan on one GPU: what all sessions of a model share.

Knows the part of TensorRT's Python API that runs, and the device. Sessions (``session``)
bring streams, contexts and buffers; weights are here, once.

Contract: ``opened`` gives an engine with one owner; each session is one more until it lets go, and
the last one frees engine and device. Nothing of the runtime is touched without a driver.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from typing import Any, Final

from penstock.backends.base import LoadError
from penstock.backends.tensorrt.cache import PlanCache, key
from penstock.backends.tensorrt.cuda import CudaError, Device
from penstock.backends.tensorrt.facade import Library
from penstock.backends.tensorrt.options import Options
from penstock.backends.tensorrt.plan import Plan, origin
from penstock.backends.tensorrt.profiles import Profile, Range
from penstock.protocol.message import TensorSpec

_LOADING: Final = threading.Lock()


class Engine:
    """``inputs``, ``outputs`` and ``profiles`` as the plan has them; the first profile that holds
    given shapes is the best for them."""

    def __init__(
        self,
        library: Library,
        device: Device,
        plan: Plan,
        options: Options,
        cache: PlanCache | None = None,
    ) -> None:
        """Takes the device over, whatever comes of it. ``cache`` keeps what TensorRT for RTX
        compiles when it meets new sizes.

        Raises:
            LoadError: the plan is refused, or has inputs or outputs that cannot be served.
        """
        self.library = library
        self.device = device
        self.options = options
        self._owners = 1
        self._lock = threading.Lock()
        self._runtime: Any = None
        self.trt_engine: Any = None
        self._config: Any = None
        self._kernels: Any = None
        self._cache = cache
        self._cache_name = key({
            "what": "kernels",
            "plan": hashlib.sha256(plan.blob).hexdigest(),
            "engine": library.kind,
            "version": library.version,
            "device": device.name,
            "driver": device.driver_version,
        })  # fmt: skip
        try:
            with _LOADING:
                self._deserialize(plan)
                self._configure()
            self.inputs, self.outputs = self._specs()
            self.profiles = self._profiles()
        except BaseException:
            self._free()
            raise

    def share(self) -> Engine:
        """This engine, with one owner more."""
        with self._lock:
            self._owners += 1
        return self

    def release(self) -> None:
        """One owner less; the device is current on the calling thread."""
        with self._lock:
            self._owners -= 1
            last = not self._owners
        if last:
            self._free()

    def context(self, profile: int, stream: Any, scratch: int) -> Any:
        """A context that stays on ``profile`` and borrows the memory at ``scratch``.

        Raises:
            LoadError: the library refuses.
        """
        with self._lock:
            context = self.trt_engine.create_execution_context(self._config)
        if context is None:
            raise LoadError(f"no execution context can be made: {self.library.said.why()}")
        if not context.set_optimization_profile_async(profile, int(stream)):
            raise LoadError(f"profile {profile} cannot be used: {self.library.said.why()}")
        self.device.drain(stream)
        context.set_device_memory(scratch, self.scratch_bytes)
        return context

    @property
    def scratch_bytes(self) -> int:
        """What one context needs beside inputs, outputs and weights, in any profile."""
        return int(self.trt_engine.device_memory_size_v2)

    def _deserialize(self, plan: Plan) -> None:
        library, trt = self.library, self.library.trt
        library.said.forget()
        try:
            self._runtime = trt.Runtime(library.logger)
        except TypeError as error:  # what the binding makes of a null pointer
            why = library.said.why() or error
            raise LoadError(f"{library.kind} cannot run here: {why}") from error
        self._runtime.engine_host_code_allowed = self.options.host_code
        self.trt_engine = self._runtime.deserialize_cuda_engine(plan.blob)
        if self.trt_engine is None:
            here = f"{library.kind} {library.version} on {self.device.name}"
            why = self._invalid(plan) or library.said.why() or "it does not say why"
            if "out of memory" in why.lower():
                raise LoadError(f"{self.device.name} has not enough memory for the plan: {why}")
            raise LoadError(
                f"a plan built by {origin(plan)} cannot be run by {here}: {why}; build it again "
                "there, or serve the ONNX model"
            )

    def _invalid(self, plan: Plan) -> str:
        """What TensorRT for RTX has against a plan, in its own names."""
        reasons = getattr(self.library.trt, "EngineInvalidityDiagnostics", None)
        if reasons is None:
            return ""
        _, bits = self._runtime.get_engine_validity(plan.blob)
        found = reasons.__members__.items()
        return ", ".join(name for name, reason in found if int(bits) & int(reason))

    def _configure(self) -> None:
        """What all contexts are made with; kept, because they may look at it later."""
        strategies = self.library.trt.ExecutionContextAllocationStrategy
        self._config = self.trt_engine.create_runtime_config()
        self._config.set_execution_context_allocation_strategy(strategies.USER_MANAGED)
        if self.library.kind != "tensorrt_rtx":
            return
        self._kernels = self._config.create_runtime_cache()
        kept = self._cache.get(self._cache_name) if self._cache else None
        if kept:
            # Refused, it stays empty: kernels are compiled again.
            self._kernels.deserialize(kept)
        self._config.set_runtime_cache(self._kernels)

    def _specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        engine, trt = self.trt_engine, self.library.trt
        inputs: list[TensorSpec] = []
        outputs: list[TensorSpec] = []
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            given = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            kind = "input" if given else "output"
            if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise LoadError(
                    f"{kind} {name!r} decides about shapes, which TensorRT reads on the host; make "
                    "it a constant of the model"
                )
            if engine.get_tensor_format(name) != trt.TensorFormat.LINEAR:
                layout = engine.get_tensor_format(name).name
                raise LoadError(
                    f"{kind} {name!r} has the memory layout {layout}; build the plan with LINEAR"
                )
            spec = self.library.spec(
                kind, name, engine.get_tensor_dtype(name), engine.get_tensor_shape(name)
            )
            (inputs if given else outputs).append(spec)
        return tuple(inputs), tuple(outputs)

    def _profiles(self) -> list[Profile]:
        # There is always one, of nothing but fixed sizes too.
        count = self.trt_engine.num_optimization_profiles
        return [{spec.name: self._range(spec, i) for spec in self.inputs} for i in range(count)]

    def _range(self, spec: TensorSpec, profile: int) -> Range:
        if -1 not in spec.shape:
            return Range(spec.shape, spec.shape, spec.shape)
        limits = self.trt_engine.get_tensor_profile_shape(spec.name, profile)
        return Range(*(tuple(shape) for shape in limits))

    def _keep_kernels(self) -> None:
        if self._kernels is None or self._cache is None:
            return
        kernels = self._kernels.serialize()
        if kernels is not None:
            self._cache.put(self._cache_name, bytes(kernels))

    def _free(self) -> None:
        with contextlib.suppress(RuntimeError):  # of a GPU that is lost, which has none to give
            self._keep_kernels()
        # Each was made by the one behind it, and all of them in the device's context.
        self._config = None
        self._kernels = None
        self.trt_engine = None
        self._runtime = None
        with contextlib.suppress(CudaError):
            self.device.close()
