"""The same model by other people's quantisers, for the rows that ours is compared with.

Knows ONNX Runtime's tools. They are run as they are shipped: what they are not told here is their
own default. None of them is ever served.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import onnx

from penstock.backends.quantize.data import Batch, Samples
from penstock.backends.quantize.model_file import engine
from penstock.backends.quantize.prepare import line

Maker = Callable[[Path, Path, Samples, int], None]


def made(name: str, model: Path, samples: Samples, rows: int) -> tuple[bytes | None, str]:
    """The variant ``name`` of ``model`` and an empty note, or None and why it cannot be had."""
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder, _quiet():
        into = Path(folder) / "variant.onnx"
        try:
            VARIANTS[name](model, into, samples, rows)
            return into.read_bytes(), ""
        except Exception as error:  # whatever another tool dies of is a row without figures
            return None, line(error)


class _Reader:
    """Samples as ONNX Runtime's calibration wants them."""

    def __init__(self, samples: Samples, rows: int) -> None:
        # Its histograms cannot take a last batch with fewer rows than the others.
        self._batches = samples.batches(min(rows, len(samples)), whole=True)

    def get_next(self) -> Batch | None:
        return next(self._batches, None)


def _static(method: str, *, advised: bool = False) -> Maker:
    def make(model: Path, into: Path, samples: Samples, rows: int) -> None:
        tools = engine("onnxruntime.quantization")

        class Reader(_Reader, tools.CalibrationDataReader):  # type: ignore[misc, name-defined]
            pass

        more: dict[str, Any] = {}
        if advised:
            more = {"per_channel": True, "activation_type": tools.QuantType.QUInt8}
        # What its documentation asks for before anything is quantised.
        ready = into.with_name("prepared.onnx")
        before = engine("onnxruntime.quantization.shape_inference")
        before.quant_pre_process(str(model), str(ready), skip_symbolic_shape=True)
        tools.quantize_static(
            str(ready),
            str(into),
            Reader(samples, rows),
            calibrate_method=getattr(tools.CalibrationMethod, method),
            **more,
        )

    return make


def _dynamic(model: Path, into: Path, samples: Samples, rows: int) -> None:
    engine("onnxruntime.quantization").quantize_dynamic(str(model), str(into))


def _half(model: Path, into: Path, samples: Samples, rows: int) -> None:
    convert = engine("onnxruntime.transformers.float16").convert_float_to_float16
    onnx.save(convert(onnx.load(model), keep_io_types=True), into)


VARIANTS: Final[Mapping[str, Maker]] = {
    "ORT static MinMax": _static("MinMax"),
    "ORT static MinMax, U8, per channel": _static("MinMax", advised=True),
    "ORT static Entropy": _static("Entropy"),
    "ORT dynamic": _dynamic,
    "FP16": _half,
}
"""Static: ``quantize_static`` with its defaults, or with what its documentation advises on x86."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """These tools print, log to the root logger and warn, and not about the user's model."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
