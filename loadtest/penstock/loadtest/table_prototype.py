"""What a throw-away gateway and Triton reached before Penstock's first line.

Facts only. Measured once with perf_analyzer on two cores of a Zen 5 EPYC, Python 3.11, Triton 2.51
and the prototype both with ONNX Runtime 1.31.1, MLPs with dynamic batching of 500 µs in Triton. The
machine and the hour were others, so only the ratio of the two is to be compared with today's.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Figures(NamedTuple):
    """Inferences a second; None where nothing was measured."""

    triton_s: float
    prototype_s: float | None


FIGURES: Final = {
    "add_sub/http/1": Figures(7969, 9580),
    "add_sub/http/32": Figures(16757, 29684),
    "add_sub/grpc/1": Figures(7398, 9914),
    "add_sub/grpc/32": Figures(22940, 29842),
    "mlp512/http/1": Figures(1067, 6439),
    "mlp512/http/8": Figures(7477, 22026),
    "mlp512/http/32": Figures(17735, 26245),
    "mlp512/h2load/32": Figures(27000, 51300),
    "mlp2048/http/1": Figures(799, 1978),
    "mlp2048/http/16": Figures(5957, 6665),
    "mlp2048/http/64": Figures(8651, 8496),
    "image_mean/http/1": Figures(1621, 3798),
    "image_mean/http/4": Figures(2660, 8123),
    "image_mean/grpc/1": Figures(3628, 3605),
    "image_mean/grpc/4": Figures(4154, 4517),
    "image_mean/grpc+shm/1": Figures(5918, None),
    "identity/http/1": Figures(17, 69),
    "identity/http/4": Figures(35, 46),
    "identity/grpc+shm/1": Figures(377, None),
}
"""By the names of cells."""
