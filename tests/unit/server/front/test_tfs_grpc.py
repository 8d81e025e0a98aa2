"""TensorFlow Serving over gRPC, through the methods themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from penstock.protocol.errors import Code, PenstockError
from penstock.server.front.doors import DoorOptions
from penstock.server.tfs_schema import message

PREDICTION = "/tensorflow.serving.PredictionService/"
MODEL = "/tensorflow.serving.ModelService/"
ROW = np.arange(16, dtype=np.int32).reshape(1, 16)
SERVED = {
    "add/1": {"kind": "add_sub"},
    "add/3": {"kind": "add_sub"},
    "score/1": {"dtype": "FP32", "shape": "3"},
    "value/1": {"dtype": "FP32", "shape": "1"},
    "text/1": {"dtype": "BYTES", "shape": "1"},
    "fail/1": {"kind": "fail"},
    "gone/1": {"load_error": "no luck"},
}


@pytest.fixture
async def call(serve: Any, doors: Any, fake_call: Any, fake_head: Any, rpc: Any) -> Any:
    """``await call(method, reply type, request)``, or raises what the call ended with."""
    served = await serve(SERVED)
    labels = DoorOptions({"add": {"stable": "1", "later": "2"}})
    methods = {m.path: m for m in doors(labels, of=served).methods()}

    async def made(path: str, reply_type: str, request: Any) -> Any:
        answered = fake_call()
        data = request if isinstance(request, bytes) else request.SerializeToString()
        methods[path].unary(answered, fake_head(path), data)
        await rpc.until(lambda: answered.ended)
        if answered.error is not None:
            raise answered.error
        (reply,) = answered.messages
        return message(reply_type).FromString(reply)

    return made


def predict_request(inputs: Mapping[str, Any], outputs: tuple[str, ...] = (), **spec: Any) -> Any:
    request = message("PredictRequest")(output_filter=outputs)
    fill(request.model_spec, spec)
    for name, array in inputs.items():
        tensor = request.inputs[name]
        tensor.dtype = {"i": 3, "f": 1}[array.dtype.kind]
        for size in array.shape:
            tensor.tensor_shape.dim.add().size = size
        tensor.tensor_content = array.tobytes()
    return request


def fill(spec: Any, values: Mapping[str, Any]) -> None:
    spec.SetInParent()
    for name, value in values.items():
        if name == "version":
            spec.version.value = value
        else:
            setattr(spec, name, value)


PAIR = {"INPUT0": ROW, "INPUT1": ROW}


async def test_predict(call: Any) -> None:
    for _ in range(3):
        request = predict_request(PAIR, name="add")
        reply = await call(PREDICTION + "Predict", "PredictResponse", request)
        assert list(reply.outputs["OUTPUT0"].int_val) == (ROW + ROW).ravel().tolist()
        assert list(reply.outputs["OUTPUT1"].int_val) == [0] * 16
        assert (reply.model_spec.name, reply.model_spec.version.value) == ("add", 3)


@pytest.mark.parametrize(
    ("spec", "version"),
    [({"version": 1}, 1), ({"version_label": "stable"}, 1), ({"version": 3}, 3), ({}, 3)],
)
async def test_versions_and_labels(call: Any, spec: dict[str, Any], version: int) -> None:
    request = predict_request(PAIR, name="add", **spec)
    reply = await call(PREDICTION + "Predict", "PredictResponse", request)
    assert reply.model_spec.version.value == version


async def test_chosen_outputs(call: Any) -> None:
    request = predict_request(PAIR, ("OUTPUT1",), name="add")
    reply = await call(PREDICTION + "Predict", "PredictResponse", request)
    assert list(reply.outputs) == ["OUTPUT1"]


REFUSED: dict[str, tuple[Any, Code, str]] = {
    "garbage": (b"\xff\xff", Code.INVALID_ARGUMENT, "malformed"),
    "nothing": (b"", Code.NOT_FOUND, "no model is named"),
    "unknown model": (predict_request(PAIR, name="nope"), Code.NOT_FOUND, "'nope' is not found"),
    "unknown version": (predict_request(PAIR, name="add", version=9), Code.NOT_FOUND, "version 9"),
    "unknown label": (
        predict_request(PAIR, name="add", version_label="x"), Code.NOT_FOUND, "label: x",
    ),
    "label of nothing": (
        predict_request(PAIR, name="add", version_label="later"), Code.NOT_FOUND, "version 2",
    ),
    "not loaded": (predict_request(PAIR, name="gone"), Code.UNAVAILABLE, "no luck"),
    "missing input": (
        predict_request({"INPUT0": ROW}, name="add"), Code.INVALID_ARGUMENT, "INPUT1",
    ),
    "wrong type": (
        predict_request({k: v.astype("f4") for k, v in PAIR.items()}, name="add"),
        Code.INVALID_ARGUMENT, "FP32",
    ),
    "unknown output": (predict_request(PAIR, ("x",), name="add"), Code.INVALID_ARGUMENT, "'x'"),
    "signature": (
        predict_request(PAIR, name="add", signature_name="s"), Code.INVALID_ARGUMENT, "signature",
    ),
    "the model fails": (
        predict_request({"INPUT0": ROW}, name="fail"), Code.INTERNAL, "always fails",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("request_", "code", "text"), REFUSED.values(), ids=REFUSED)
async def test_refusals(call: Any, request_: Any, code: Code, text: str) -> None:
    with pytest.raises(PenstockError, match=text) as caught:
        await call(PREDICTION + "Predict", "PredictResponse", request_)
    assert caught.value.code is code
    await test_predict(call)


async def test_a_call_that_is_given_up(
    serve: Any, doors: Any, fake_call: Any, fake_head: Any
) -> None:
    served = await serve({"slow/1": {"kind": "slow"}})
    methods = {m.path: m for m in doors(of=served).methods()}
    answered = fake_call()
    request = predict_request({"INPUT0": ROW}).SerializeToString()
    job = methods[PREDICTION + "Predict"].unary(answered, fake_head(""), request)
    job.cancel()
    assert job.arrays == ()
    assert not answered.ended


# --- examples -------------------------------------------------------------------------------------


def examples_request(kind: str, rows: list[dict[str, Any]], model: str, context: Any = None) -> Any:
    request = message(kind)()
    request.model_spec.name = model
    given = request.input.example_list
    if context is not None:
        given = request.input.example_list_with_context
        fill_example(given.context, context)
    for row in rows:
        fill_example(given.examples.add(), row)
    return request


def fill_example(example: Any, row: dict[str, Any]) -> None:
    for name, values in row.items():
        kind = {bytes: "bytes_list", float: "float_list", int: "int64_list"}[type(values[0])]
        getattr(example.features.feature[name], kind).value.extend(values)


async def test_classify(call: Any) -> None:
    rows = [{"INPUT0": [0.5, 0.25, 1.0]}, {"INPUT0": [1, 2, 3]}]
    request = examples_request("ClassificationRequest", rows, "score")
    reply = await call(PREDICTION + "Classify", "ClassificationResponse", request)
    told = [[(c.label, c.score) for c in row.classes] for row in reply.result.classifications]
    assert told == [
        [("0", 0.5), ("1", 0.25), ("2", 1.0)],
        [("0", 1.0), ("1", 2.0), ("2", 3.0)],
    ]
    assert reply.model_spec.name == "score"


async def test_regress_with_a_context(call: Any) -> None:
    request = examples_request(
        "RegressionRequest", [{}, {"INPUT0": [2.5]}], "value", {"INPUT0": [1.5]}
    )
    reply = await call(PREDICTION + "Regress", "RegressionResponse", request)
    assert [r.value for r in reply.result.regressions] == [1.5, 2.5]


@pytest.mark.parametrize(
    ("rows", "model", "code"),
    [
        ([], "score", Code.INVALID_ARGUMENT),
        ([{}], "score", Code.INVALID_ARGUMENT),
        ([{"INPUT0": [b"x"]}], "score", Code.INVALID_ARGUMENT),
        ([{"INPUT0": [1.0]}], "nope", Code.NOT_FOUND),
        ([{"INPUT0": [b"x"]}], "text", Code.FAILED_PRECONDITION),
        ([{"INPUT0": [1] * 16}], "fail", Code.INTERNAL),
    ],
)
async def test_examples_that_cannot_be(call: Any, rows: Any, model: str, code: Code) -> None:
    request = examples_request("ClassificationRequest", rows, model)
    with pytest.raises(PenstockError) as caught:
        await call(PREDICTION + "Classify", "ClassificationResponse", request)
    assert caught.value.code is code


async def test_multi_inference_is_refused(call: Any) -> None:
    with pytest.raises(PenstockError, match="Classify and Regress") as caught:
        await call(PREDICTION + "MultiInference", "MultiInferenceResponse", b"")
    assert caught.value.code is Code.UNIMPLEMENTED


# --- documents ------------------------------------------------------------------------------------


async def test_metadata(call: Any) -> None:
    request = message("GetModelMetadataRequest")(metadata_field=["signature_def"])
    fill(request.model_spec, {"name": "add", "version_label": "stable"})
    reply = await call(PREDICTION + "GetModelMetadata", "GetModelMetadataResponse", request)
    assert reply.model_spec.version.value == 1
    packed = reply.metadata["signature_def"]
    assert packed.type_url == "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    told = message("SignatureDefMap").FromString(packed.value)
    signature = told.signature_def["serving_default"]
    info = signature.inputs["INPUT0"]
    assert (info.dtype, [dim.size for dim in info.tensor_shape.dim]) == (3, [-1, 16])
    assert set(signature.outputs) == {"OUTPUT0", "OUTPUT1"}


@pytest.mark.parametrize("fields", [[], ["other"], ["signature_def", "other"]])
async def test_other_metadata(call: Any, fields: list[str]) -> None:
    request = message("GetModelMetadataRequest")(metadata_field=fields)
    with pytest.raises(PenstockError, match="signature_def"):
        await call(PREDICTION + "GetModelMetadata", "GetModelMetadataResponse", request)


async def status(call: Any, **spec: Any) -> list[Any]:
    request = message("GetModelStatusRequest")()
    fill(request.model_spec, spec)
    reply = await call(MODEL + "GetModelStatus", "GetModelStatusResponse", request)
    return [(s.version, s.state, s.status.error_code) for s in reply.model_version_status]


async def test_status(call: Any) -> None:
    assert await status(call, name="add") == [(3, 30, 0), (1, 30, 0)]
    assert await status(call, name="add", version_label="stable") == [(1, 30, 0)]
    assert await status(call, name="gone") == [(1, 50, 14)]
    for unknown in ({"name": "nope"}, {"name": "add", "version": 2}):
        with pytest.raises(PenstockError) as caught:
            await status(call, **unknown)
        assert caught.value.code is Code.NOT_FOUND


def reload_request(labels: Mapping[str, Mapping[str, int]]) -> Any:
    request = message("ReloadConfigRequest")()
    request.config.model_config_list.SetInParent()
    for model, named in labels.items():
        config = request.config.model_config_list.config.add(name=model, base_path="/models")
        for label, version in named.items():
            config.version_labels[label] = version
    return request


EVERY: dict[str, dict[str, int]] = {name.partition("/")[0]: {} for name in SERVED}


async def test_new_labels(call: Any) -> None:
    request = reload_request({**EVERY, "add": {"canary": 3}})
    reply = await call(MODEL + "HandleReloadConfigRequest", "ReloadConfigResponse", request)
    assert reply.status.error_code == 0
    assert await status(call, name="add", version_label="canary") == [(3, 30, 0)]
    with pytest.raises(PenstockError, match="label: stable"):
        await status(call, name="add", version_label="stable")


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        (message("ReloadConfigRequest")(), Code.INVALID_ARGUMENT, "model_config_list"),
        (reload_request({"add": {}}), Code.FAILED_PRECONDITION, "leaves out model 'fail'"),
        (reload_request({**EVERY, "new": {}}), Code.NOT_FOUND, "'new' is not found"),
        (reload_request({**EVERY, "add": {"x": 2}}), Code.FAILED_PRECONDITION, "not loaded"),
        (reload_request({**EVERY, "add": {"": 1}}), Code.INVALID_ARGUMENT, "cannot be a label"),
        (b"\xff", Code.INVALID_ARGUMENT, "not a tensorflow.serving.ReloadConfigRequest"),
    ],
)
async def test_configurations_that_are_refused(
    call: Any, request_: Any, code: Code, text: str
) -> None:
    with pytest.raises(PenstockError, match=text) as caught:
        await call(MODEL + "HandleReloadConfigRequest", "ReloadConfigResponse", request_)
    assert caught.value.code is code
    assert await status(call, name="add", version_label="stable") == [(1, 30, 0)], "unchanged"
