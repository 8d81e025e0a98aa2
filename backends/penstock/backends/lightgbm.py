"""Runs LightGBM's text models on the CPU.

Knows LightGBM's Python API. The engine is imported when the first model is loaded.

Contract, beyond ``base`` and ``trees``: LightGBM ends the process on some damaged files, so a model
is loaded in a process of its own first. Results are FP32 unless FP64, LightGBM's own type, is
declared. The engine's messages go to the logger ``lightgbm``, never to the standard output.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

from penstock.backends.base import Engine, LoadError, ModelSource
from penstock.backends.checks import known_options, only_cpu
from penstock.backends.loading import artefact, engine, one_line, probed, tried
from penstock.backends.trees import TreeSession, kind_of
from penstock.protocol import dtype as dt
from penstock.protocol.message import Array

_OPTIONS: Final = frozenset({"output"})
_FIRST: Final = b"tree\n"
_LAST: Final = b"end of trees"

_TRIAL: Final = """
import lightgbm, numpy
try:
    model = lightgbm.Booster(model_file=sys.argv[1])
    rows = numpy.random.default_rng(0).normal(size=(16, model.num_feature()))
    rows[0], rows[1] = 0, numpy.nan
    for scale in (1.0, 1e3):
        model.predict(rows * scale, num_threads=1)
except Exception as error:
    sys.exit(str(error) or type(error).__name__)
"""


class LightGbmBackend:
    """Makes ``TreeSession``s. Stateless; ``load`` may be called from any thread."""

    name = "lightgbm"
    default_filename = "model.lgb"

    def engine(self) -> Engine:
        """See ``Probing.engine``."""
        return probed("lightgbm", self.name, "lightgbm")

    def load(self, source: ModelSource) -> TreeSession:
        """Loads what ``Booster.save_model`` writes, under whatever name.

        Raises:
            LoadError: the package is missing, or the file, an option or the device is refused.
        """
        lgb = engine("lightgbm", self.name, "lightgbm")
        known_options(source.options, _OPTIONS, self.name)
        only_cpu(source, self.name)
        kind = kind_of(source)
        path = artefact(source, self.default_filename)
        _refuse_what_is_no_model(path)
        tried(path, _TRIAL)
        lgb.register_logger(logging.getLogger("lightgbm"))
        try:
            model = lgb.Booster(model_file=str(path))
            predict = _predict(model, kind, source.threads)
            return TreeSession(
                source, model.num_feature(), predict, result_types=(dt.FP32, dt.FP64)
            )
        except lgb.basic.LightGBMError as error:
            raise LoadError(f"cannot load {path}: {one_line(error)}") from error


def _refuse_what_is_no_model(path: Path) -> None:
    """The two cases that happen, in better words than the engine's."""
    with path.open("rb") as file:
        head = file.read(len(_FIRST))
        whole = any(line.rstrip() == _LAST for line in file)
    if head != _FIRST:
        raise LoadError(f"cannot load {path}: it is not a model as Booster.save_model writes it")
    if not whole:
        raise LoadError(f"cannot load {path}: the file is cut short; copy it there again")


def _predict(model: Any, kind: str, threads: int) -> Any:
    how = {"raw_score": kind == "raw", "pred_leaf": kind == "leaf", "num_threads": threads}

    def predict(rows: Array) -> Any:
        return model.predict(rows, **how)

    return predict
