"""The digits network as OpenVINO's IR, made by the backend itself from the shipped file."""

from pathlib import Path

from tests.zoo import digits

from penstock.backends.base import CompileTask
from penstock.backends.openvino import OpenVinoBackend

TOLERANCE = 1e-5
"""FP32 throughout; only the order of the sums differs."""


def write(version: Path) -> str:
    OpenVinoBackend().compile(CompileTask(digits.MODEL, version, rows_max=digits.ROWS_MAX))
    return digits.config("openvino")
