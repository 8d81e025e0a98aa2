"""Which messages take long to read: told for messages that google.protobuf wrote."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.protocol import oip_proto_cost
from penstock.protocol.oip_proto_cost import CONTENTS_BYTES_MAX, OUTLINE_MAX, is_slow
from penstock.server.grpc_schema import METHODS

REQUEST = METHODS["/inference.GRPCInferenceService/ModelInfer"].request


def message(*datatypes: str, contents: dict[str, Any] | None = None) -> bytes:
    inputs = [{"name": f"x{i}", "datatype": d, "shape": [1]} for i, d in enumerate(datatypes)]
    if contents:
        inputs[-1]["contents"] = contents
    raw = [b"\x12\x05BYTES" * 1000 for _ in datatypes]
    return bytes(REQUEST(model_name="m", inputs=inputs, raw_input_contents=raw).SerializeToString())


@pytest.mark.parametrize("kind", [bytes, memoryview])
@pytest.mark.parametrize(
    ("data", "slow"),
    [
        (message("BYTES"), True),
        (message("FP32", "BYTES"), True),
        (message("FP32", "INT8"), False),
        (message("FP32", contents={"fp32_contents": [1.0]}), False),
        (message("FP32", contents={"fp32_contents": [1.0] * CONTENTS_BYTES_MAX}), True),
        (message("FP32", contents={"bytes_contents": [b""] * CONTENTS_BYTES_MAX}), True),
        (b"\x78\x00" * (OUTLINE_MAX + 1), True),
        (b"\x2a\x80\x20" + b"\x78\x00" * 2048, True),
        (b"", False),
        (b"\xff\xff\xff", False),
    ],
)
def test_what_is_slow(data: bytes, slow: bool, kind: Any) -> None:
    assert is_slow(kind(data)) is slow


def test_telling_does_not_depend_on_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    def counted(*args: Any, **more: Any) -> Any:
        for found in fields(*args, **more):
            steps.append(found)
            yield found

    fields = oip_proto_cost.fields
    monkeypatch.setattr(oip_proto_cost, "fields", counted)
    large = REQUEST.FromString(message("FP32"))
    large.raw_input_contents[0] = bytes(4 << 20)
    assert not is_slow(large.SerializeToString())
    assert len(steps) < 10
