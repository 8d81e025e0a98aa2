"""One instance of a user's class: makes it, calls it, checks what it returns.

Knows ``model.py`` and NumPy. Must not know processes, threads or shared memory: a worker process
and the server itself host models by the same rules.

Contract: ``Hosted.run`` and the generators of ``stream`` raise RunError alone, whose ``__cause__``
is what the model raised, and KeyboardInterrupt where a signal's handler raised it. Outputs fit
their declarations; they are the model's own memory unless ``own`` is set.
"""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from penstock.backends.base import LoadError, RunError
from penstock.backends.python.model import BadInput, Context
from penstock.backends.python.options import Recipe
from penstock.backends.python.specs import declared
from penstock.protocol import dtype as dt
from penstock.protocol.message import Array, TensorSpec, wire_array

_TEXT_MAX: Final = 1000
_FAULTS: Final = (Exception, SystemExit)
"""What user code may raise without ending more than its own run."""


class Hosted:
    """A model that was made. ``own`` copies outputs that the model might still hold."""

    def __init__(self, instance: Any, recipe: Recipe, *, own: bool) -> None:
        self._instance = instance
        self.inputs, self.outputs = declared(instance, recipe)
        self.streams = inspect.isgeneratorfunction(_predict_of(instance))
        self.thread_safe = bool(getattr(instance, "thread_safe", False))
        self._predict = _predict_of(instance)
        self._names = _checked_names(self._predict, self.inputs)
        self._own = own

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """What ``predict`` returns; of a generator, the only thing that it yields."""
        if self.streams:
            return self._only(inputs)
        try:
            answer = self._predict(**dict(zip(self._names, inputs, strict=True)))
        except _FAULTS as error:
            raise run_error(error) from error
        outputs = self._ordered(answer)
        del answer  # Whether anybody else holds an output shows once this has gone.
        return self._fitted(outputs)

    def stream(self, inputs: Sequence[Array]) -> Generator[list[Array], None, None]:
        """What ``predict`` yields, one after another."""
        parts = self._predict(**dict(zip(self._names, inputs, strict=True)))
        try:
            while True:
                try:
                    outputs = self._ordered(next(parts))
                except StopIteration:
                    return
                except RunError:
                    raise
                except _FAULTS as error:
                    raise run_error(error) from error
                yield self._fitted(outputs)
        finally:
            try:
                parts.close()
            except _FAULTS as error:
                raise run_error(error) from error

    def close(self) -> None:
        """Calls the model's own ``close``, if it has one; whatever that raises."""
        closing = getattr(self._instance, "close", None)
        self._instance = self._predict = None
        if callable(closing):
            closing()

    def _only(self, inputs: Sequence[Array]) -> list[Array]:
        parts = self.stream(inputs)
        try:
            first = next(parts, None)
            if first is not None and next(parts, None) is None:
                return first
        finally:
            parts.close()
        count = "no response" if first is None else "more than one response"
        raise RunError(
            f"the model gave {count} where one was wanted: serve it with "
            "model_transaction_policy { decoupled: true } and ask for a stream"
        )

    def _ordered(self, answer: Any) -> list[Any]:
        names = [spec.name for spec in self.outputs]
        if isinstance(answer, Mapping):
            if set(answer) != set(names):
                raise RunError(f"predict returned {_listed(answer)} instead of {_listed(names)}")
            return [answer[name] for name in names]
        if isinstance(answer, tuple) or (isinstance(answer, list) and len(names) > 1):
            if len(answer) != len(names):
                raise RunError(f"predict returned {len(answer)} outputs instead of {len(names)}")
            return list(answer)
        if answer is None or len(names) > 1:
            raise RunError(f"predict returned {type(answer).__name__} instead of {_listed(names)}")
        return [answer]

    def _fitted(self, values: list[Any]) -> list[Array]:
        out = []
        for i, spec in enumerate(self.outputs):
            array = fitted(spec, values[i])
            if self._own:
                held = _REFERENCES if array is values[i] else _REFERENCES - 1
                mine = sys.getrefcount(array) <= held and _sole(array.base)
                array = array if mine else array.copy()
            out.append(array)
        return out


_REFERENCES: Final = 3
"""Of an output that nobody else holds: the list's, the variable's and the argument's."""


def _sole(base: Any) -> bool:
    """Whether memory behind a view is that view's alone: the view's reference and ours."""
    return base is None or (
        type(base) is np.ndarray and sys.getrefcount(base) <= _REFERENCES and base.base is None
    )


def load(recipe: Recipe, imported: Callable[[Path], ModuleType], *, own: bool) -> Hosted:
    """Imports the file by ``imported``, makes an instance and warms it up.

    Raises:
        LoadError: with the line of the model's file that is to blame.
    """
    path = Path(recipe.path)
    try:
        made = _class_of(imported(path), recipe.class_name)
        predict = _predict_of(made)
        if inspect.iscoroutinefunction(predict) or inspect.isasyncgenfunction(predict):
            raise LoadError(
                "predict is async, but an instance answers one batch at a time: make it a plain "
                "function (asyncio.run inside it works), or a generator to stream"
            )
        context = Context(
            recipe.name, path.parent.name, path.parent, recipe.device, recipe.threads,
            recipe.rows_max, recipe.parameters,
        )  # fmt: skip
        instance = made(context) if _takes_context(made) else made()
        hosted = Hosted(instance, recipe, own=own)
        warmup = getattr(instance, "warmup", None)
        if callable(warmup):
            warmup()
    except LoadError as error:
        raise LoadError(f"cannot load {path}: {error}") from None
    except (*_FAULTS, KeyboardInterrupt) as error:
        raise LoadError(f"cannot load {path}: {_said(error)} ({_where(error, path)})") from error
    return hosted


def fitted(spec: TensorSpec, value: Any) -> Array:
    """``value`` as what ``spec`` declares: C-contiguous, converted where nothing is lost but
    precision or range.

    Raises:
        RunError: it has another kind of elements, or another shape.
    """
    what = f"output {spec.name!r}"
    if value is None:
        raise RunError(f"{what} is None")
    try:
        array: Array = np.asarray(value, order="C")
        if array.dtype != spec.dtype.numpy or spec.dtype in (dt.BYTES, dt.BF16):
            array = _converted(spec, array)
    except _FAULTS as error:
        raise RunError(f"{what} is no array of {spec.dtype}: {_said(error)}") from error
    if len(array.shape) != len(spec.shape) or any(
        want not in (-1, size) for want, size in zip(spec.shape, array.shape, strict=True)
    ):
        raise RunError(
            f"{what} has shape {list(array.shape)}; it is declared as {list(spec.shape)}"
        )
    return array


def _converted(spec: TensorSpec, array: Array) -> Array:
    if spec.dtype in (dt.BYTES, dt.BF16):
        return wire_array(array, spec.dtype)[1]
    if array.dtype.hasobject or not np.can_cast(array.dtype, spec.dtype.numpy, "same_kind"):
        raise TypeError(f"it came as {array.dtype}; convert it in predict, by .astype")
    return array.astype(spec.dtype.numpy)


def run_error(error: BaseException) -> RunError:
    """What callers are told of what a model raised."""
    if isinstance(error, BadInput):
        return RunError(_text(error) or "the model refuses the input", caller_fault=True)
    return RunError(_said(error))


def _said(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else _text(error)
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, ModuleNotFoundError) and error.name == "triton_python_backend_utils":
        said += "; models for Triton's Python backend need a few changes: docs/backends/python.md"
    elif isinstance(error, ModuleNotFoundError):
        said += f"; install it for {sys.executable}, or name an interpreter by option 'python'"
    return said


def _text(error: BaseException) -> str:
    try:
        text = " ".join(str(error).split()).encode(errors="replace").decode()
    except Exception:
        return "(its text cannot be had)"
    return text if len(text) <= _TEXT_MAX else f"{text[:_TEXT_MAX]}..."


def _where(error: BaseException, path: Path) -> str:
    """The file and line to look at: the deepest of the model's own."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(path.parent)]
    found = own[-1] if own else None
    return f"{Path(found.filename).name}:{found.lineno}" if found else path.name


def _class_of(module: ModuleType, name: str) -> Any:
    found = getattr(module, name or "Model", None)
    if isinstance(found, type) and callable(getattr(found, "predict", None)):
        return found
    if isinstance(found, type):
        raise LoadError(f"class {found.__name__} has no method predict")
    others = [
        key
        for key, value in vars(module).items()
        if isinstance(value, type) and callable(getattr(value, "predict", None))
    ]
    hint = f"; option 'class' may name another: {_listed(others)}" if others else ""
    raise LoadError(f"it has no class {name or 'Model'}{hint}")


def _takes_context(made: Any) -> bool:
    parameters = inspect.signature(made).parameters
    return "context" in parameters or any(
        p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        for p in parameters.values()
    )


def _predict_of(instance: Any) -> Any:
    return getattr(instance, "predict")  # noqa: B009 - any class may be the user's


def _checked_names(predict: Any, inputs: Sequence[TensorSpec]) -> list[str]:
    """The inputs' names, once ``predict`` is known to take them as keywords."""
    names = [spec.name for spec in inputs]
    parameters = inspect.signature(predict).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return names
    keywords = {
        p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    strange = [p.name for p in parameters if p.default is p.empty and p.name not in names]
    missing = [name for name in names if name not in keywords]
    if strange or missing:
        raise LoadError(
            f"predict takes {_listed(p.name for p in parameters)}, but the inputs are "
            f"{_listed(names)}: its parameters must be named as they are, or be **inputs"
        )
    return names


def _listed(names: Iterator[str] | Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(map(str, names)) or "nothing"
