"""Runs plans of TensorRT and of TensorRT for RTX on NVIDIA GPUs, and builds them from ONNX models.

Knows which engine, artefact and device a model is for, and where built plans are kept. Its parts:
``options`` and ``profiles`` read what is wanted, ``plan`` looks at
files, ``builder`` builds, ``cache`` keeps, ``engine`` and
``session`` run, over ``facade`` (the two libraries), ``cuda`` (the
driver) and ``staging`` (copies).

Contract, beyond ``base``: a library is imported when a model needs it, and its runtime is not
touched before a driver was found, because it may take the process with it. An ONNX model is built
when it is loaded, unless its plan was kept. A plan is a program: it is run as it is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from penstock.backends.base import CompileTask, Engine, LoadError, ModelSource
from penstock.backends.tensorrt import cuda as tensorrt_cuda
from penstock.backends.tensorrt import facade as tensorrt_facade
from penstock.backends.tensorrt.builder import BuildStopped, Built, Order, Progress, build
from penstock.backends.tensorrt.cache import PlanCache, fingerprint, key
from penstock.backends.tensorrt.cuda import CudaError, Device
from penstock.backends.tensorrt.engine import Engine as LoadedEngine
from penstock.backends.tensorrt.facade import EXTRAS, Library
from penstock.backends.tensorrt.options import KINDS, Options, check_engine, default_cache, read
from penstock.backends.tensorrt.plan import FORMAT, Plan, content, description, origin
from penstock.backends.tensorrt.plan import read as read_plan
from penstock.backends.tensorrt.session import TensorRtSession
from penstock.protocol.message import TensorSpec

_log = logging.getLogger(__name__)

_DEVICE: Final = re.compile(r"cuda:([0-9]{1,3})")
_SUFFIXES: Final = (".plan", ".engine", ".onnx")


@dataclass(frozen=True, slots=True)
class Machine:
    """What the backend stands on: tests put others in the place of these.

    ``missing`` says why there is no GPU, ``devices`` names those there are, ``driver`` gives CUDA's
    bindings, ``installed`` the libraries' versions by kind, ``library`` one of them.
    """

    missing: Callable[[], str] = tensorrt_cuda.driver_missing
    devices: Callable[[], tuple[str, ...]] = tensorrt_cuda.device_names
    driver: Callable[[], Any] = tensorrt_cuda.bindings
    installed: Callable[[], Mapping[str, str]] = tensorrt_facade.installed
    library: Callable[[str], Library] = tensorrt_facade.library


class TensorRtBackend:
    """Makes ``TensorRtSession``s and plans. Stateless; may be called from any thread."""

    name = "tensorrt"
    default_filename = "model.plan"
    device = "cuda:0"  # where models go that nobody placed: there is no other kind

    def __init__(self, machine: Machine | None = None) -> None:
        self._machine = machine or Machine()

    def engine(self) -> Engine:
        """See ``Probing.engine``. Neither library is imported for it."""
        found = self._machine.installed()
        version = ", ".join(f"{kind} {version}" for kind, version in found.items())
        if not found:
            extras = " or ".join(f"pip install 'penstock[{extra}]'" for extra in EXTRAS.values())
            return Engine(missing=f"TensorRT is not installed: {extras}")
        missing = self._machine.missing()
        if missing:
            return Engine(version, missing=f"plans run on NVIDIA GPUs only, and {missing}")
        return Engine(version, self._machine.devices())

    def load(self, source: ModelSource) -> TensorRtSession:
        """Loads a ``.plan`` or ``.engine``, or builds an ``.onnx``; or that of a directory.

        Raises:
            LoadError: an option, the device, the artefact or the sizes are refused, or the engine
                or the driver is missing.
        """
        options = read(source.options, self.name)
        ordinal = _ordinal(source)
        path = _artefact(source.path, self.default_filename)
        onnx = content(path) if path.suffix.lower() == ".onnx" else b""
        plan = None if onnx else read_plan(path)
        kind = self._kind(options, source.options, plan)
        if plan is None and options.recipe.version_compatible and not options.host_code:
            raise LoadError(
                "option 'version_compatible': such a plan brings code for the host, which is run "
                "only with option 'host_code'"
            )
        # In this order: nothing of a library is touched where there is no driver for it.
        device = self._device(ordinal)
        try:
            device.make_current()
            library = self._machine.library(kind)
            cache = _kernels(options) if kind == "tensorrt_rtx" else None
            if plan is None:
                order = Order(
                    path, onnx, options.recipe, source.rows_max, options.build_s_max, source.threads
                )
                plan = self._built(library, options, device, order)
        except BaseException:
            device.close()
            raise
        session = TensorRtSession(LoadedEngine(library, device, plan, options, cache))
        if source.rows_max > session.rows_max > 0:
            session.close()
            raise LoadError(
                f"max_batch_size is {source.rows_max}, but {path} takes {session.rows_max} rows at "
                "most: build it for more, or lower max_batch_size"
            )
        return session

    def compile(self, task: CompileTask) -> Path:
        """Builds ``task.into / "model.plan"`` and describes it in ``model.json`` beside it.

        TensorRT for RTX needs no GPU for it, and ``task.target`` may list compute capabilities;
        TensorRT builds for the first GPU of this machine. When the budget is spent, the plan is
        built without looking for faster kernels any more.
        """
        given = dict(task.options)
        if task.target:
            given["compute_capabilities"] = task.target
        options = read(given, self.name)
        onnx = content(task.model)
        kind = self._kind(options, given)
        order = Order(
            task.model,
            onnx,
            options.recipe,
            task.rows_max,
            min(task.budget_s, options.build_s_max),
            len(os.sched_getaffinity(0)),
            progress=_rising(task.progress),
        )
        path = task.into / self.default_filename
        if kind == "tensorrt_rtx":  # measures nothing, so there is nothing to keep
            library = self._machine.library(kind)
            return _written(path, library, PlanCache(Path(), 0), None, order, options)
        device = self._device(0)
        try:
            device.make_current()
            library = self._machine.library(kind)
            return _written(path, library, _opened(options), device, order, options)
        finally:
            device.close()

    def _kind(self, options: Options, given: Mapping[str, str], plan: Plan | None = None) -> str:
        """Of the library that is asked for, that wrote the plan, or that is installed."""
        installed = self._machine.installed()
        kind = options.engine or (plan.kind if plan else "")
        if plan is not None and kind != plan.kind:
            raise LoadError(
                f"option 'engine' is {kind!r}, but the plan was built by {origin(plan)}"
            )
        kind = kind or next((kind for kind in KINDS if kind in installed), KINDS[0])
        check_engine(given, kind)
        if kind not in installed:
            here = ", ".join(f"{k} {v}" for k, v in installed.items()) or "neither engine"
            whose = f"the plan was built by {origin(plan)}" if plan else f"the model wants {kind}"
            raise LoadError(f"{whose}, and here is {here}: pip install 'penstock[{EXTRAS[kind]}]'")
        return kind

    def _device(self, ordinal: int) -> Device:
        missing = self._machine.missing()
        if missing:
            raise LoadError(f"TensorRT runs on NVIDIA GPUs only, and {missing}")
        try:
            return Device(self._machine.driver(), ordinal)
        except CudaError as error:
            raise LoadError(f"cuda:{ordinal} cannot be used: {error}") from error

    def _built(self, library: Library, options: Options, device: Device, order: Order) -> Plan:
        """The plan of an ONNX model for this device: kept from before, or built now."""
        cache = _opened(options)
        place = _place(library, device)
        name = plan_key(place, order)

        def make() -> bytes:
            return _measured(library, cache, place, order).blob

        blob = cache.made(name, options.build_s_max, make)
        return Plan(blob, library.kind, library.version, {"built_for": device.name})


def plan_key(place: Mapping[str, object], order: Order) -> str:
    """The name that a built plan is kept under: everything that it depends on."""
    model = fingerprint(order.path, order.onnx)
    wanted = {"onnx": model, "recipe": order.recipe.facts(), "rows_max": order.rows_max}
    return key({**place, **wanted, "what": "plan"})


def _measured(
    library: Library, cache: PlanCache, place: Mapping[str, object], order: Order
) -> Built:
    """A build that begins with what earlier ones measured, and keeps what it adds."""
    name = key({**place, "what": "timing"})
    try:
        built = build(library, replace(order, timing=cache.get(name) or b""))
    except BuildStopped as stopped:
        cache.put(name, stopped.timing)
        raise
    cache.put(name, built.timing)
    return built


def _searched(
    library: Library,
    cache: PlanCache,
    place: Mapping[str, object],
    order: Order,
    options: Options,
) -> tuple[Built, bool]:
    """A build within its budget, and True; or one that does not search, and False."""
    if order.build_s_max:
        try:
            return _measured(library, cache, place, order), True
        except BuildStopped as stopped:
            order.progress(f"{stopped}: no more search", 0.0)
    recipe = replace(order.recipe, builder_optimization_level=0)
    order = replace(order, recipe=recipe, build_s_max=options.build_s_max)
    return _measured(library, cache, place, order), False


def _rising(progress: Progress) -> Progress:
    """The same, with a share that never falls: a second try begins where the first one ended."""
    told = 0.0

    def tell(step: str, share: float) -> None:
        nonlocal told
        told = max(told, share)
        progress(step, told)

    return tell


def _written(
    path: Path,
    library: Library,
    cache: PlanCache,
    device: Device | None,
    order: Order,
    options: Options,
) -> Path:
    """Builds a plan into ``path``, with its description beside it."""
    place = _place(library, device)
    built, searched = _searched(library, cache, place, order, options)
    found = {
        "format": FORMAT,
        "engine": library.kind,
        "version": library.version,
        "built_for": f"{device.name} ({device.capability})" if device else "",
        "sha256": hashlib.sha256(built.blob).hexdigest(),
        "onnx_sha256": fingerprint(order.path, order.onnx),
        "recipe": order.recipe.facts(),
        "rows_max": order.rows_max,
        "searched": searched,
        "profiles": [
            {name: limits._asdict() for name, limits in profile.items()}
            for profile in built.profiles
        ],
        "inputs": [_tensor(spec) for spec in built.inputs],
        "outputs": [_tensor(spec) for spec in built.outputs],
    }
    description(path).write_text(json.dumps(found, indent=1) + "\n")
    path.write_bytes(built.blob)
    order.progress("written", 1.0)
    return path


def _tensor(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "dtype": spec.dtype.name, "shape": list(spec.shape)}


def _place(library: Library, device: Device | None) -> dict[str, object]:
    """What a plan and its measurements hold for."""
    found: dict[str, object] = {"engine": library.kind, "version": library.version}
    if device is not None:
        found |= {
            "device": device.name,
            "capability": device.capability,
            "driver": device.driver_version,
        }
    return found


def _opened(options: Options) -> PlanCache:
    if not options.cache_bytes_max:
        return PlanCache(Path(), 0)
    cache = PlanCache(options.cache_dir or default_cache(), options.cache_bytes_max)
    cache.open()
    return cache


def _kernels(options: Options) -> PlanCache | None:
    """Where TensorRT for RTX keeps what it compiles; a plan can be served without."""
    try:
        return _opened(options)
    except LoadError as error:
        _log.warning("kernels are compiled at every start: %s", error)
        return None


def _ordinal(source: ModelSource) -> int:
    match = _DEVICE.fullmatch(source.device)
    if match is None:
        raise LoadError(
            f"device {source.device!r}: TensorRT runs on NVIDIA GPUs only; state "
            "instance_group [ { kind: KIND_GPU } ] in config.pbtxt"
        )
    return int(match[1])


def _artefact(path: Path, default: str) -> Path:
    """The file itself, or the one of a directory."""
    if not path.is_dir():
        return path
    stem = Path(default).stem
    for suffix in _SUFFIXES:
        if (path / f"{stem}{suffix}").is_file():
            return path / f"{stem}{suffix}"
    raise LoadError(f"{path} has no {' or '.join(stem + suffix for suffix in _SUFFIXES)}")
