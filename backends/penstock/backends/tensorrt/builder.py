"""From an ONNX model to a plan: parsing, profiles, the builder's settings, progress.

Knows the part of TensorRT's Python API that builds; needs no GPU with TensorRT for RTX. Knows
nothing of files that plans are kept in, and of running them.

INT8 is explicit only: QuantizeLinear and DequantizeLinear in the model, symmetric. What the parser
would refuse in riddles, or worse, would take and compute wrongly, is refused here in words.

Contract: one build at a time in a process, because a builder may be used by one thread. A build
stops at its deadline, and when ``progress`` raises.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from penstock.backends.base import LoadError
from penstock.backends.tensorrt.facade import Library, clean
from penstock.backends.tensorrt.options import Recipe
from penstock.backends.tensorrt.profiles import Profile, profiles
from penstock.protocol.message import TensorSpec

Progress = Callable[[str, float], None]

_BUILDING: Final = threading.Lock()
_QUANTIZE: Final = (
    "INT8 is symmetric here, and biases stay float: make the model with "
    "`penstock quantize --target tensorrt`"
)
_QUANTIZERS: Final = ("QuantizeLinear", "DequantizeLinear")
_STEP: Final = 0.01


@dataclass(frozen=True, slots=True)
class Order:
    """What to build. ``onnx`` is the content of ``path``, which leads to external data.

    ``timing`` are measurements of earlier builds, empty if there are none; ``build_s_max`` bounds
    the search; ``threads`` is how many cores it may use.
    """

    path: Path
    onnx: bytes
    recipe: Recipe
    rows_max: int
    build_s_max: float
    threads: int = 1
    timing: bytes = b""
    progress: Progress = lambda _step, _share: None


@dataclass(frozen=True, slots=True)
class Built:
    """A plan, what it takes and gives, and the measurements made on the way (even without it)."""

    blob: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: Sequence[Profile]
    timing: bytes


class BuildStopped(LoadError):
    """There was not enough time. ``timing`` has the measurements, so that another try is faster."""

    def __init__(self, message: str, timing: bytes) -> None:
        super().__init__(message)
        self.timing = timing


def build(library: Library, order: Order) -> Built:
    """Builds a plan; blocks, may take as long as the order allows.

    Raises:
        LoadError: the model or an option is refused, or time is over (``BuildStopped``).
    """
    with _BUILDING:
        return _build(library, order)


def _build(library: Library, order: Order) -> Built:
    library.said.forget()
    trt = library.trt
    try:
        builder = trt.Builder(library.logger)
    except TypeError as error:  # what the binding makes of a null pointer
        why = library.said.why() or error
        raise LoadError(f"{library.kind} cannot build here: {why}") from error
    builder.max_threads = max(1, order.threads)
    network = builder.create_network(0)
    _parse(library, network, order)
    inputs = tuple(_input(library, network.get_input(i)) for i in range(network.num_inputs))
    outputs = tuple(
        library.spec("output", t.name, t.dtype, t.shape)
        for t in (network.get_output(i) for i in range(network.num_outputs))
    )
    if not outputs:
        raise LoadError(f"{order.path} has no outputs, or is not all of the model")
    found = profiles(inputs, order.recipe, order.rows_max, library.kind)
    config = builder.create_builder_config()
    _configure(library, config, order.recipe)
    for profile in found:
        _add(builder, config, profile)
    timing = _timing_cache(library, config, order.timing)
    monitor = _monitor(trt, order)
    config.progress_monitor = monitor
    made = builder.build_serialized_network(network, config)
    measured = bytes(timing.serialize()) if timing is not None else b""
    if made is None:
        monitor.raise_if_stopped(order, measured)
        why = library.said.why() or "it does not say why"
        raise LoadError(f"{library.kind} cannot build {order.path}: {why}")
    return Built(bytes(made), inputs, outputs, found, measured)


def _parse(library: Library, network: Any, order: Order) -> None:
    parser = library.trt.OnnxParser(network, library.logger)
    with library.said.listening() as heard:
        try:
            parsed = parser.parse(order.onnx, str(order.path))
        except Exception as error:
            why = clean(str(error))
            raise LoadError(f"{library.kind} cannot read {order.path}: {why}") from error
    if not parsed:
        raise LoadError(f"{library.kind} cannot take {order.path}: {_parser_says(library, parser)}")
    # The parser goes on with INT8, where all above 127 is lost.
    if any("UINT8 zero_point" in line for line in heard):
        raise LoadError(
            f"{library.kind} cannot take {order.path}: it is quantized to UINT8; {_QUANTIZE}"
        )


def _parser_says(library: Library, parser: Any) -> str:
    if not parser.num_errors:
        return library.said.why() or "its parser does not say why"
    error = parser.get_error(0)
    text, operator = clean(error.desc()), error.node_operator()
    node = f"node {error.node_name()!r} ({operator})" if error.node_name() else operator
    if operator in _QUANTIZERS:
        asymmetric = "zero point" in text
        reason = "its zero point is not zero" if asymmetric else text.split(" [", 1)[0]
        return f"{node}: {reason}; {_QUANTIZE}"
    if error.code().name == "MODEL_DESERIALIZE_FAILED":
        return "it is no ONNX model, or not all of one"
    if "Plugin not found" in text:
        return f"it has no operator {operator!r}"
    return f"{node}: {text.removeprefix('Assertion failed: ')}" if node else text


def _input(library: Library, tensor: Any) -> TensorSpec:
    if tensor.is_shape_tensor:
        raise LoadError(
            f"input {tensor.name!r} decides about shapes, which TensorRT reads on the host; make "
            "it a constant of the model"
        )
    return library.spec("input", tensor.name, tensor.dtype, tensor.shape)


def _configure(library: Library, config: Any, recipe: Recipe) -> None:
    trt = library.trt
    if recipe.workspace_bytes_max:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, recipe.workspace_bytes_max)
    if recipe.builder_optimization_level >= 0:
        config.builder_optimization_level = recipe.builder_optimization_level
    if not recipe.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if recipe.hardware_compatibility != "none":
        levels = trt.HardwareCompatibilityLevel
        level = getattr(levels, recipe.hardware_compatibility.upper())
        config.hardware_compatibility_level = level
    if recipe.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if recipe.compute_capabilities:
        _set_capabilities(trt, config, recipe.compute_capabilities)


def _set_capabilities(trt: Any, config: Any, wanted: Sequence[str]) -> None:
    known = {
        f"{name[2:-1]}.{name[-1]}": value
        for name, value in trt.ComputeCapability.__members__.items()
        if name.startswith("SM")
    }
    config.num_compute_capabilities = len(wanted)
    for i, name in enumerate(wanted):
        if name not in known or not config.set_compute_capability(known[name], i):
            raise LoadError(
                f"compute capability {name} cannot be built for; known are {', '.join(known)}"
            )


def _add(builder: Any, config: Any, profile: Profile) -> None:
    made = builder.create_optimization_profile()
    for name, limits in profile.items():
        made.set_shape(name, limits.min, limits.opt, limits.max)
    if config.add_optimization_profile(made) < 0:
        raise LoadError(f"the sizes {dict(profile)} are refused as an optimization profile")


def _timing_cache(library: Library, config: Any, earlier: bytes) -> Any:
    """What the builder measures, kept from build to build; RTX measures nothing."""
    if library.kind == "tensorrt_rtx":
        return None
    cache = config.create_timing_cache(earlier)
    return cache if cache is not None and config.set_timing_cache(cache, False) else None


def _monitor(trt: Any, order: Order) -> Any:
    # Made here because its base class comes with the library.
    class Monitor(_Phases, trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            _Phases.__init__(self, order.progress, time.monotonic() + order.build_s_max)

    return Monitor()


class _Phases:
    """Turns the builder's nested phases into a rising share, and stops it when time is over.

    Called by the builder, on any of its threads; an exception must not get into its frames.
    """

    def __init__(self, progress: Progress, deadline: float) -> None:
        self._progress = progress
        self._deadline = deadline
        self._phases: dict[str, tuple[str | None, int, int]] = {}
        self._told = -1.0
        self._late = False
        self._raised: BaseException | None = None
        self._lock = threading.Lock()

    def phase_start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[name] = (parent, max(1, steps), 0)

    def step_complete(self, name: str, step: int) -> bool:
        with self._lock:
            parent, steps, _ = self._phases.get(name, (None, step + 1, 0))
            self._phases[name] = (parent, steps, step + 1)
            share = self._share(name)
            try:
                if share >= self._told + _STEP:
                    self._told = share
                    self._progress(name, share)
            except BaseException as error:
                self._raised = self._raised or error
            self._late = self._late or time.monotonic() > self._deadline
            return not self._late and self._raised is None

    def phase_finish(self, name: str) -> None:
        with self._lock:
            self._phases.pop(name, None)

    def raise_if_stopped(self, order: Order, timing: bytes) -> None:
        """For why there is no plan, if it is this."""
        if self._raised is not None:
            raise self._raised
        if self._late:
            kept = "; what it measured is kept, so another try gets further" if timing else ""
            raise BuildStopped(
                f"building {order.path} took longer than {order.build_s_max:g} s{kept}", timing
            )

    def _share(self, name: str) -> float:
        """Of the whole: what is done of this phase counts as a part of its parent's next step."""
        share = 0.0
        at: str | None = name
        for _ in range(len(self._phases)):
            if at is None or at not in self._phases:
                break
            parent, steps, done = self._phases[at]
            share = min(1.0, (done + share) / steps)
            at = parent
        return share
