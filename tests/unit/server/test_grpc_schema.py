"""The compiled gRPC schemas are the schemas, and upstream's numbers are ours."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from penstock.server import grpc_schema as schema
from penstock.server.grpc_schema import generate
from penstock.server.model_config_schema import POOL
from penstock.server.model_config_schema.generate import compile_schema

Row = tuple[object, ...]

OURS_ALONE: set[Row] = {
    # The Open Inference Protocol's field, which Triton's schema lacks.
    ("inference.ModelMetadataResponse", "properties", 6, "message", "repeated", "", False),
    ("inference.ModelMetadataResponse.PropertiesEntry", "key", 1, "string", "one", "", False),
    ("inference.ModelMetadataResponse.PropertiesEntry", "value", 2, "string", "one", "", False),
}
"""Fields that the other side's schema has not; there are no others, and none that only it has."""

UPSTREAM = {
    "grpc_service.proto": "tritonclient.grpc.service_pb2",
    "grpc/health/v1/health.proto": "grpc_health.v1.health_pb2",
    "grpc/reflection/v1alpha/reflection.proto": "grpc_reflection.v1alpha.reflection_pb2",
}


def upstream(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        pytest.skip(f"SKIPPED LOUDLY: {name} is not installed, nothing to compare with")


_KINDS = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in descriptor_pb2.FieldDescriptorProto.Type.items()
}


def facts(file: bytes) -> set[Row]:
    """What bytes and stubs depend on: fields, enum values and methods, one row each."""
    read = descriptor_pb2.FileDescriptorProto.FromString(file)
    rows: set[Row] = set()

    def messages(prefix: str, nested: Any) -> None:
        for message in nested:
            path = f"{prefix}.{message.name}"
            rows.add((path,))
            for f in message.field:
                rows.add((path, f.name, f.number, _KINDS[f.type], *_shape(message, f)))
            for enum in message.enum_type:
                rows.update((f"{path}.{enum.name}", v.name, v.number) for v in enum.value)
            messages(path, message.nested_type)

    messages(read.package, read.message_type)
    for service in read.service:
        for m in service.method:
            streams = (m.client_streaming, m.server_streaming)
            rows.add(
                (f"{read.package}.{service.name}", m.name, m.input_type, m.output_type, streams)
            )
    return rows


def _shape(message: Any, field: Any) -> Row:
    label = "repeated" if field.label == field.LABEL_REPEATED else "one"
    oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
    return label, oneof, field.proto3_optional


def type_names(file: bytes) -> set[Row]:
    """Of each message field the message; apart, because map entries are named by protoc."""
    read = descriptor_pb2.FileDescriptorProto.FromString(file)
    return {(m.name, f.name, f.type_name) for m in read.message_type for f in m.field}


@pytest.mark.parametrize("name", UPSTREAM)
def test_every_field_is_upstream_s(name: str) -> None:
    theirs = upstream(UPSTREAM[name]).DESCRIPTOR.serialized_pb
    ours = schema.FILES[name]
    alone = {row for row in facts(ours) - facts(theirs) if len(row) > 1}
    assert alone <= OURS_ALONE
    assert not facts(theirs) - facts(ours)
    assert not type_names(theirs) - type_names(ours)


def test_listed_differences_exist() -> None:
    assert facts(schema.FILES["grpc_service.proto"]) >= OURS_ALONE


def test_reflection_versions_differ_in_their_package_alone() -> None:
    v1 = schema.FILES["grpc/reflection/v1/reflection.proto"]
    alpha = schema.FILES["grpc/reflection/v1alpha/reflection.proto"]
    read = descriptor_pb2.FileDescriptorProto.FromString
    assert str(read(v1)) == str(read(alpha)).replace(".v1alpha", ".v1").replace("/v1alpha", "/v1")


def test_descriptors_are_the_compiled_schemas() -> None:
    try:
        importlib.import_module("grpc_tools.protoc")
    except ImportError:
        pytest.skip("SKIPPED LOUDLY: grpcio-tools is not installed, descriptor.py is not verified")
    fresh = compile_schema(generate.SCHEMA)
    assert fresh == {name: schema.FILES[name] for name in fresh}, f"run {generate.SCHEMA.module}"
    assert set(fresh) == set(schema.FILES) - {"model_config.proto"}


def test_pool_is_private_and_shares_a_process_with_upstream() -> None:
    theirs = upstream("tritonclient.grpc.service_pb2")
    assert POOL is not descriptor_pool.Default()
    ours = schema.message("ModelReadyRequest")(name="m", version="3")
    assert theirs.ModelReadyRequest.FromString(ours.SerializeToString()).version == "3"
    assert theirs.ModelReadyRequest is not type(ours)


def test_files_can_be_loaded_in_order_by_a_peer() -> None:
    pool = descriptor_pool.DescriptorPool()
    for file in schema.FILES.values():
        pool.AddSerializedFile(file)
    for service in schema.SERVICES:
        assert pool.FindServiceByName(service).methods


def test_methods() -> None:
    assert len(schema.METHODS) == 20 + 2 + 1 + 1
    infer = schema.METHODS["/inference.GRPCInferenceService/ModelStreamInfer"]
    assert (infer.client_streaming, infer.server_streaming) == (True, True)
    assert infer.request is schema.message("inference.ModelInferRequest")
    assert infer.reply is schema.message("ModelStreamInferResponse")
    with pytest.raises(KeyError):
        schema.message("NoSuchMessage")
