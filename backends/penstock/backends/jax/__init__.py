"""Loads functions exported with ``jax.export``.

Knows JAX's export API and how JAX is set up for the whole process: the first model that is loaded
decides that. JAX is imported then, not before. Running is ``session``'s.

Contract, beyond ``base``: whatever stands in the environment (``JAX_PLATFORMS``, ``PJRT_NPROC``,
``XLA_PYTHON_CLIENT_PREALLOCATE``) prevails over what is set here.
"""

from __future__ import annotations

import importlib.util
import os
import re
import threading
from pathlib import Path
from typing import Any, Final

from penstock.backends.base import Engine, LoadError, ModelSource
from penstock.backends.checks import cuda_number, known_options
from penstock.backends.jax.session import OPTIONS, JaxSession
from penstock.backends.loading import artefact, engine, one_line, probed

_PLUGINS: Final = ("jax_cuda13_plugin", "jax_cuda12_plugin")
_CALLBACK: Final = re.compile(rb"\w+python\w*_callback")
"""Names of the functions of XLA that call an object of this process by a number in the file."""
_LOADING: Final = threading.Lock()
"""Held while JAX is set up: two models that are loaded at once must not both decide."""


class JaxBackend:
    """Makes ``JaxSession``s. ``load`` may be called from any thread."""

    name = "jax"
    default_filename = "model.jax"

    def engine(self) -> Engine:
        """See ``Probing.engine``. Opens no device: that would take memory on it."""
        gpus = sorted(Path("/dev").glob("nvidia[0-9]*")) if _has_cuda() else []
        devices = ("cpu", *(f"cuda:{path.name.removeprefix('nvidia')}" for path in gpus))
        return probed("jax", self.name, "jax", devices)

    def load(self, source: ModelSource) -> JaxSession:
        """Loads the bytes of ``Exported.serialize``.

        Raises:
            LoadError: the package is missing, the file or an option is refused, or the function was
                exported for other devices or takes what no request can carry.
        """
        known_options(source.options, OPTIONS, self.name)
        number = cuda_number(source, self.name)
        platform = "cpu" if number is None else "cuda"
        path = artefact(source, self.default_filename)
        with _LOADING:
            jax = _engine(source, platform)
            device = _device(jax, source, platform, number or 0)
        try:
            exported = jax.export.deserialize(bytearray(path.read_bytes()))
        except Exception as error:  # whatever its reader of tables stumbles over
            raise LoadError(
                f"cannot load {path}: it is not what jax.export writes, or from another version "
                f"({type(error).__name__}: {one_line(error)})"
            ) from error
        if platform not in exported.platforms:
            raise LoadError(
                f"{path} was exported for {', '.join(exported.platforms)}, not for {platform}; "
                f'export it with platforms=["{platform}"]'
            )
        if _CALLBACK.search(exported.mlir_module_serialized):
            raise LoadError(
                f"{path} calls back into Python, which ends the process that it was not made in"
            )
        if exported.nr_devices != 1:
            raise LoadError(f"{path} was exported for {exported.nr_devices} devices together")
        return JaxSession(jax, exported, source, device)


def _engine(source: ModelSource, platform: str) -> Any:
    # Each is read once: when the module is imported, or when the first device is opened.
    os.environ.setdefault("PJRT_NPROC", str(source.threads))
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax = engine("jax", "jax", "jax")
    engine("jax.export", "jax", "jax")
    if jax.config.jax_platforms is None:
        # Without it JAX opens every device that it finds.
        jax.config.update("jax_platforms", "cpu" if platform == "cpu" else "cuda,cpu")
    return jax


def _device(jax: Any, source: ModelSource, platform: str, number: int) -> Any:
    try:
        found = jax.devices(platform)
    except RuntimeError as error:
        why = one_line(error)
        if _has_cuda() and jax.config.jax_platforms == "cpu":
            why = "the first JAX model ran on the CPU; set JAX_PLATFORMS=cuda,cpu before the start"
        raise LoadError(f"{source.name}: jax has no device {source.device!r}: {why}") from error
    if number >= len(found):
        raise LoadError(
            f"{source.name}: jax has no device {source.device!r}; it has {len(found)} of them"
        )
    return found[number]


def _has_cuda() -> bool:
    return any(importlib.util.find_spec(name) for name in _PLUGINS)
