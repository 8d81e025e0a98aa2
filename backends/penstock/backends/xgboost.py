"""Runs XGBoost's models (UBJSON or JSON) on the CPU.

Knows XGBoost's Python API. The engine is imported when the first model is loaded.

Contract, beyond ``base`` and ``trees``: XGBoost ends the process on some damaged files, or reads
them for ever, so a model is loaded in a process of its own first. Results are FP32, XGBoost's own
type. Linear models are not safe to share between threads, so each worker loads its own.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

import numpy as np

from penstock.backends.base import Engine, LoadError, ModelSource
from penstock.backends.checks import known_options, only_cpu
from penstock.backends.loading import artefact, engine, one_line, probed, tried
from penstock.backends.trees import TreeSession, kind_of
from penstock.protocol import dtype as dt
from penstock.protocol.message import Array

_OPTIONS: Final = frozenset({"output", "rounds"})
_ROUNDS: Final = ("all", "best")
_NOISE: Final = re.compile(r"^\[[\d:]+\] \S+?:\d+: |\s*Stack trace:.*", re.DOTALL)

_TRIAL: Final = """
import xgboost, numpy
try:
    model = xgboost.Booster({"nthread": 1})
    model.load_model(bytearray(open(sys.argv[1], "rb").read()))
    rows = numpy.random.default_rng(0).normal(size=(16, model.num_features()))
    rows[0], rows[1] = 0, numpy.nan
    for scale in (1.0, 1e3):
        model.predict(xgboost.DMatrix(rows * scale))
except Exception as error:
    sys.exit(" ".join(str(error).partition("Stack trace")[0].split()) or type(error).__name__)
"""


class XgBoostBackend:
    """Makes ``TreeSession``s. Stateless; ``load`` may be called from any thread."""

    name = "xgboost"
    default_filename = "model.ubj"

    def engine(self) -> Engine:
        """See ``Probing.engine``."""
        return probed("xgboost", self.name, "xgboost")

    def load(self, source: ModelSource) -> TreeSession:
        """Loads what ``Booster.save_model`` writes, under whatever name: the content tells.

        Raises:
            LoadError: the package is missing, or the file, an option or the device is refused.
        """
        xgb = engine("xgboost", self.name, "xgboost")
        known_options(source.options, _OPTIONS, self.name)
        only_cpu(source, self.name)
        path = artefact(source, self.default_filename)
        tried(path, _TRIAL)
        try:
            model = xgb.Booster({"nthread": source.threads, "verbosity": 0})
            # Of a path the engine would believe the suffix, and it knows fewer of them.
            model.load_model(bytearray(path.read_bytes()))
            booster = json.loads(model.save_config())["learner"]["gradient_booster"]["name"]
            linear = booster == "gblinear"
            return TreeSession(
                source,
                model.num_features(),
                _predict(xgb, model, source, linear),
                result_types=(dt.FP32,),
                thread_safe=not linear,
            )
        except (xgb.core.XGBoostError, OSError) as error:
            raise LoadError(f"cannot load {path}: {_reason(error)}") from error


def _predict(xgb: Any, model: Any, source: ModelSource, linear: bool) -> Any:
    kind, rounds = kind_of(source), _rounds(source, model)
    if kind == "leaf" and linear:
        raise LoadError("option 'output' is 'leaf', but a linear model has no leaves")

    def in_place(rows: Array) -> Any:
        return model.inplace_predict(
            rows,
            iteration_range=rounds,
            predict_type="margin" if kind == "raw" else "value",
            missing=np.nan,
            validate_features=False,
        )

    def by_matrix(rows: Array) -> Any:
        return model.predict(
            xgb.DMatrix(rows, missing=np.nan, nthread=source.threads),
            iteration_range=rounds,
            output_margin=kind == "raw",
            pred_leaf=kind == "leaf",
            validate_features=False,
        )

    return by_matrix if linear or kind == "leaf" else in_place


def _rounds(source: ModelSource, model: Any) -> tuple[int, int]:
    """Option ``rounds``: whether trees that early stopping found useless are used."""
    wish = source.options.get("rounds", _ROUNDS[0])
    if wish not in _ROUNDS:
        raise LoadError(f"option 'rounds' is {wish!r}; it must be one of {', '.join(_ROUNDS)}")
    if wish == "all":
        return (0, 0)
    best = model.attr("best_iteration")
    if best is None:
        raise LoadError(
            "option 'rounds' is 'best', but the model was learned without early stopping"
        )
    return (0, int(best) + 1)


def _reason(error: Exception) -> str:
    return one_line(_NOISE.sub("", str(error)))
