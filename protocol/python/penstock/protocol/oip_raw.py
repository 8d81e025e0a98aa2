"""Raw binary requests: the body is one tensor and nothing else.

Knows: how to deduce the shape from the model's specs and the size of the body. Knows nothing of
JSON. Clients choose this form with Inference-Header-Content-Length: 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from penstock.protocol import dtype as dt
from penstock.protocol.errors import ProtocolError
from penstock.protocol.message import Array, InferRequest, Signature, TensorSpec
from penstock.protocol.oip_form import ALL_BINARY
from penstock.protocol.oip_tensor import Body, object_array, size_mismatch


def decode_raw(
    body: Body, inputs: Sequence[TensorSpec], model: str, *, batched: bool = False
) -> InferRequest:
    """The request whose whole body is the only input (Inference-Header-Content-Length: 0).

    ``inputs`` are the model's, with -1 for what is free. One free dimension is deduced from the
    size of the body. ``batched`` says that the first dimension is the batch, which is then 1, as in
    Triton. A BYTES input must have one element a row; it is the body as it is. All outputs are
    wanted as binary data.
    """
    if len(inputs) != 1:
        raise ProtocolError(
            f"Raw request must only have 1 input (found 1) to be deduced but got {len(inputs)} "
            f"inputs in '{model}' model configuration"
        )
    spec = inputs[0]
    array: Array
    dims = list(spec.shape)
    if batched and dims and dims[0] == -1:
        dims[0] = 1
    if spec.dtype is dt.BYTES:
        if spec.shape not in ((1,), (-1, 1)):
            raise ProtocolError(
                f"For BYTE datatype raw input '{spec.name}', the model must have input shape [1]"
            )
        shape = (1,) * len(dims)
        array = object_array([bytes(body)], shape)
    else:
        shape = _deduced(dims, spec, len(body), model)
        array = np.ndarray(shape, spec.dtype.numpy, body)
    signature = Signature([TensorSpec(spec.name, spec.dtype, shape)], form=ALL_BINARY)
    return InferRequest(signature, [array], model=model)


def _deduced(dims: list[int], spec: TensorSpec, size: int, model: str) -> tuple[int, ...]:
    if dims.count(-1) > 1:
        raise ProtocolError(
            f"The shape of the raw input '{spec.name}' can not be deduced because there are more "
            "than one variable-sized dimension"
        )
    row = spec.dtype.itemsize
    for dim in dims:
        row *= dim if dim != -1 else 1
    free = size // row if row and -1 in dims else 0
    shape = tuple([free if dim == -1 else dim for dim in dims])
    expected = row * free if -1 in dims else row
    if expected != size:
        raise size_mismatch(spec.name, model, max(expected, row), size)
    return shape
