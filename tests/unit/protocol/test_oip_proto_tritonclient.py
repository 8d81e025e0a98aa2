"""The protobuf codec below the stock client: its calls end in our decoder, our replies in it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from penstock.protocol import dtype as dt
from penstock.protocol.message import InferReply, InferRequest, Signature, TensorSpec, wire_array
from penstock.protocol.oip_proto import ReplyEncoder, RequestDecoder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the client's imports are not ours to warn about
    grpc = pytest.importorskip("tritonclient.grpc", exc_type=ImportError)
ml_dtypes = pytest.importorskip("ml_dtypes")

VALUES: dict[dt.DType, Any] = {
    dt.BOOL: np.array([[True, False]]),
    dt.UINT8: np.array([[0, 255]], dtype="u1"),
    dt.INT8: np.array([[-128, 127]], dtype="i1"),
    dt.UINT16: np.array([[0, 65535]], dtype="u2"),
    dt.INT16: np.array([[-32768, 32767]], dtype="i2"),
    dt.UINT32: np.array([[0, 2**32 - 1]], dtype="u4"),
    dt.INT32: np.array([[-(2**31), 2**31 - 1]], dtype="i4"),
    dt.UINT64: np.array([[0, 2**64 - 1]], dtype="u8"),
    dt.INT64: np.array([[-(2**63), 2**63 - 1]], dtype="i8"),
    dt.FP16: np.array([[0.1, -2]], dtype="f2"),
    dt.FP32: np.array([[0.1, np.nan]], dtype="f4"),
    dt.FP64: np.array([[0.1, -np.inf]], dtype="f8"),
    dt.BYTES: np.array([[b"ab", "\u00e9\U0001f600".encode()]], dtype=object),
    dt.BF16: np.array([[0.5, -3.0]], dtype=ml_dtypes.bfloat16),
}


class Echo:
    """Stands where the client's connection would: answers each input under the name of an output.

    Bytes go through our codec in both directions.
    """

    def __init__(self) -> None:
        self.decoder, self.encoder = RequestDecoder(), ReplyEncoder()
        self.request: InferRequest | None = None

    def ModelInfer(self, request: Any, **_: Any) -> Any:  # noqa: N802  # the name of the RPC
        found = self.request = self.decoder.decode(request.SerializeToString())
        specs = [TensorSpec(f"O{s.name}", s.dtype, s.shape) for s in found.signature.tensors]
        reply = InferReply(Signature(specs), found.arrays, found.model, "1", found.id, {"k": 1})
        buffers = self.encoder.encode(reply, found.signature.form)
        return grpc.service_pb2.ModelInferResponse.FromString(b"".join(buffers))


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def client(echo: Echo) -> Iterator[Any]:
    with grpc.InferenceServerClient("127.0.0.1:1") as made:  # which connects when it is used
        made._client_stub = echo
        yield made


def given(value: Any, dtype: dt.DType, name: str = "x") -> Any:
    tensor = grpc.InferInput(name, list(value.shape), dtype.name)
    tensor.set_data_from_numpy(value)
    return tensor


@pytest.mark.parametrize("dtype", VALUES, ids=str)
@pytest.mark.parametrize("elements", [2, 0])
def test_every_type_there_and_back(client: Any, echo: Echo, dtype: dt.DType, elements: int) -> None:
    value = VALUES[dtype][:, :elements]
    for _ in range(3):
        result = client.infer("m", [given(value, dtype), given(value, dtype, "y")], request_id="7")
        assert echo.request is not None
        expected = wire_array(value, dtype)[1]
        for array in echo.request.arrays:
            np.testing.assert_array_equal(array, expected)
        for name in ("Ox", "Oy"):
            np.testing.assert_array_equal(result.as_numpy(name), value)
        assert result.get_output("Ox").datatype == dtype.name
        assert result.get_response().id == "7"


def test_everything_that_infer_takes(client: Any, echo: Echo) -> None:
    inputs = [given(VALUES[dt.INT32], dt.INT32)]
    outputs = [grpc.InferRequestedOutput("Ox", class_count=3)]
    client.infer("m", inputs, "3", outputs, "id", 42, True, False, 2, 1000, parameters={"own": "v"})
    found = echo.request
    assert found is not None
    assert (found.model, found.version, found.id) == ("m", "3", "id")
    assert (found.priority, found.timeout_us) == (2, 1000)
    assert dict(found.parameters) == {
        "sequence_id": 42, "sequence_start": True, "sequence_end": False, "own": "v",
    }  # fmt: skip
    assert [(o.name, dict(o.parameters)) for o in found.signature.outputs] == [
        ("Ox", {"classification": 3})
    ]
    client.infer("m", inputs, sequence_id="by name", sequence_end=True)
    assert echo.request is not None
    assert echo.request.parameters["sequence_id"] == "by name"


def test_shared_memory_of_outputs(client: Any, echo: Echo) -> None:
    echo.decoder = RequestDecoder(regions=Regions())
    output = grpc.InferRequestedOutput("Ox")
    output.set_shared_memory("r", 64, 8)
    tensor = grpc.InferInput("x", [1, 2], "INT32")
    tensor.set_shared_memory("r", 8)
    found = echo.decoder.decode(_captured(client, [tensor], [output]))
    assert found.arrays[0].tolist() == [[1, 1]]
    assert found.targets["Ox"].ref == ("r", 8, 64)


def _captured(client: Any, inputs: list[Any], outputs: list[Any]) -> bytes:
    class Stop(Exception):
        pass

    class Stub:
        def ModelInfer(self, request: Any, **_: Any) -> Any:  # noqa: N802
            raise Stop(request.SerializeToString())

    client._client_stub = Stub()
    with pytest.raises(Stop) as caught:
        client.infer("m", inputs, outputs=outputs)
    return bytes(caught.value.args[0])


class Regions:
    """Every region is full of ones."""

    def resolve(self, ref: Any) -> memoryview:
        return memoryview(np.ones(ref.byte_size // 4, "<i4").tobytes())

    def target(self, ref: Any) -> Any:
        from penstock.protocol.message import Target

        return Target(ref, memoryview(bytearray(ref.byte_size)))
