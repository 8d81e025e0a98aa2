"""Run by the Python of an environment with PyPI's tensorflow-serving-api and min-tfs-client: what a
TensorFlow Serving user's program does.

    tensorflow_serving_client.py host port heldout.npy  ->  one JSON object on stdout

Uses the stock stubs and messages only.
"""

import json
import sys

import grpc
import numpy as np
from min_tfs_client.requests import TensorServingClient
from min_tfs_client.tensors import tensor_proto_to_ndarray
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    input_pb2,
    model_management_pb2,
    model_pb2,
    model_service_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

ROUND_TRIPS = {
    "INT32": np.array([[-(2**31), 0], [1, 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 300], [1, 2**63 - 1]], np.int64),
    "UINT8": np.array([[0, 127], [128, 255]], np.uint8),
    "FP64": np.array([[0.1, -1e300], [2, 3]], np.float64),
    "BOOL": np.array([[True, False], [False, True]]),
    "BYTES": np.array([["a", ""], ["é", "a longer text" * 20]]),
}


def failure(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except grpc.RpcError as error:
        return {"code": error.code().name, "text": error.details()}
    return None


def predict(stub, images, raw=True, **spec):
    request = predict_pb2.PredictRequest()
    for name, value in {"name": "digits", **spec}.items():
        if name == "version":
            request.model_spec.version.value = value
        else:
            setattr(request.model_spec, name, value)
    tensor = request.inputs["image"]
    tensor.dtype = types_pb2.DT_FLOAT
    for size in images.shape:
        tensor.tensor_shape.dim.add().size = size
    if raw:
        tensor.tensor_content = images.tobytes()
    else:
        tensor.float_val.extend(images.ravel().tolist())
    reply = stub.Predict(request, timeout=30)
    return np.array(reply.outputs["probabilities"].float_val).reshape(len(images), -1), reply


def predict_all(stub, images, **options):
    parts = [predict(stub, images[i : i + 50], **options)[0] for i in range(0, len(images), 50)]
    return np.concatenate(parts).tolist()


def round_trip(client, name):
    array = ROUND_TRIPS[name]
    reply = client.predict_request(f"identity_{name}", {"INPUT0": array})
    output = reply.outputs["OUTPUT0"]
    if name == "BYTES":
        return [value.decode() for value in output.string_val] == array.ravel().tolist()
    return np.array_equal(tensor_proto_to_ndarray(output), array)


def classify(stub, images):
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name = "digits"
    for image in images:
        example = request.input.example_list.examples.add()
        example.features.feature["image"].float_list.value.extend(image.ravel().tolist())
    reply = stub.Classify(request, timeout=30)
    return [max(row.classes, key=lambda c: c.score).label for row in reply.result.classifications]


def metadata(stub):
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    request.model_spec.name = "digits"
    request.metadata_field.append("signature_def")
    reply = stub.GetModelMetadata(request, timeout=30)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert reply.metadata["signature_def"].Unpack(signatures)
    signature = signatures.signature_def["serving_default"]
    info = signature.inputs["image"]
    return {
        "version": reply.model_spec.version.value,
        "dtype": types_pb2.DataType.Name(info.dtype),
        "shape": [dim.size for dim in info.tensor_shape.dim],
        "outputs": list(signature.outputs),
    }


def status(stub, name):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = name
    reply = stub.GetModelStatus(request, timeout=30)
    states = get_model_status_pb2.ModelVersionStatus.State
    return [[s.version, states.Name(s.state)] for s in reply.model_version_status]


def reload_labels(stub, models, label):
    request = model_management_pb2.ReloadConfigRequest()
    for name in models:
        config = request.config.model_config_list.config.add()
        config.name, config.base_path = name, "/models/" + name
        if name == "digits":
            config.version_labels[label] = 1
    return stub.HandleReloadConfigRequest(request, timeout=30).status.error_code


def facts():
    """[message, field, number, type, repeated] of everything that the server has a schema of."""
    files = [
        predict_pb2, classification_pb2, regression_pb2, inference_pb2, input_pb2, model_pb2,
        get_model_metadata_pb2, get_model_status_pb2, model_management_pb2, tensor_pb2,
        meta_graph_pb2,
    ]  # fmt: skip
    rows, seen = [], set()

    def walk(message):
        if message.full_name in seen:
            return
        seen.add(message.full_name)
        for field in message.fields:
            kind = "enum" if field.enum_type else field.type
            rows.append([message.full_name, field.name, field.number, kind, field.label == 3])
            if field.message_type:
                walk(field.message_type)

    for file in files:
        for message in file.DESCRIPTOR.message_types_by_name.values():
            walk(message)
    methods = [
        service.full_name + "/" + method.name
        for file in (prediction_service_pb2, model_service_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]
    return {"fields": rows, "methods": methods}


def main(host, port, path):
    images = np.load(path)
    channel = grpc.insecure_channel(f"{host}:{port}")
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    models = model_service_pb2_grpc.ModelServiceStub(channel)
    client = TensorServingClient(host, int(port))
    served = ["digits", *(f"identity_{name}" for name in ROUND_TRIPS)]
    few = images[:2]
    report = {
        "raw": predict_all(stub, images),
        "typed": predict_all(stub, images, raw=False),
        "version": predict(stub, few, version=1)[1].model_spec.version.value,
        "label": predict(stub, few, version_label="stable")[1].model_spec.version.value,
        "round_trips": {name: round_trip(client, name) for name in ROUND_TRIPS},
        "classes": classify(stub, images[:20]),
        "metadata": metadata(stub),
        "status": status(models, "digits"),
        "unknown_model": failure(predict, stub, few, name="letters"),
        "unknown_version": failure(predict, stub, few, version=9),
        "unknown_label": failure(predict, stub, few, version_label="x"),
        "unknown_signature": failure(predict, stub, few, signature_name="x"),
        "wrong_shape": failure(predict, stub, few.reshape(2, 64)),
        "unknown_status": failure(status, models, "letters"),
        "multi_inference": failure(
            stub.MultiInference, inference_pb2.MultiInferenceRequest(), timeout=30
        ),
        "relabelled": reload_labels(models, served, "canary"),
        "canary": predict(stub, few, version_label="canary")[1].model_spec.version.value,
        "dropping": failure(reload_labels, models, served[1:], "x"),
        "facts": facts(),
    }
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
