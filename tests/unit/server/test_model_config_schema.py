"""The compiled schema is the schema, and it shares a process with upstream's own."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

import pytest
from google.protobuf import descriptor_pb2

from penstock.server import model_config_schema as schema
from penstock.server.model_config_schema import generate


def ours() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto()
    schema.ModelConfigMessage.DESCRIPTOR.file.CopyToProto(file)
    return file


def upstream() -> ModuleType:
    """tritonclient's generated module alone: its package wants grpc, which we do not."""
    found = importlib.util.find_spec("tritonclient")
    if found is None or not found.submodule_search_locations:
        pytest.skip("SKIPPED LOUDLY: tritonclient is not installed, nothing to compare with")
    path = f"{found.submodule_search_locations[0]}/grpc/model_config_pb2.py"
    name = "upstream_model_config_pb2"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]


def facts(file: descriptor_pb2.FileDescriptorProto) -> set[tuple[object, ...]]:
    """Everything that text and bytes depend on, as comparable rows."""
    rows: set[tuple[object, ...]] = set()

    def enums(prefix: str, owner: object) -> None:
        for enum in owner.enum_type:  # type: ignore[attr-defined]
            rows.update((f"{prefix}.{enum.name}", v.name, v.number) for v in enum.value)

    def messages(prefix: str, nested: object) -> None:
        for message in nested:  # type: ignore[attr-defined]
            path = f"{prefix}.{message.name}"
            rows.add((path,))
            for f in message.field:
                rows.add((path, f.name, f.number, f.type, f.label, f.type_name))
            enums(path, message)
            messages(path, message.nested_type)

    enums(file.package, file)
    messages(file.package, file.message_type)
    return rows


def test_descriptor_is_the_compiled_schema() -> None:
    try:
        importlib.import_module("grpc_tools.protoc")
    except ImportError:
        pytest.skip("SKIPPED LOUDLY: grpcio-tools is not installed, descriptor.py is not verified")
    (fresh_bytes,) = generate.compile_schema().values()
    fresh = descriptor_pb2.FileDescriptorProto.FromString(fresh_bytes)
    assert fresh == ours(), "run python -m penstock.server.model_config_schema.generate"


def test_names_and_numbers_are_upstream_s_in_one_process() -> None:
    theirs = descriptor_pb2.FileDescriptorProto()
    upstream().DESCRIPTOR.CopyToProto(theirs)
    missing = facts(theirs) - facts(ours())
    assert not missing
    assert {row[0] for row in facts(ours())} == {row[0] for row in facts(theirs)}


def test_bytes_of_ours_are_read_by_upstream() -> None:
    message = schema.ModelConfigMessage(name="m", max_batch_size=8)
    message.input.add(name="x", data_type=11, dims=[-1, 3])
    read = upstream().ModelConfig.FromString(message.SerializeToString())
    assert (read.name, read.max_batch_size, list(read.input[0].dims)) == ("m", 8, [-1, 3])


def test_pool_is_private() -> None:
    from google.protobuf import descriptor_pool

    assert schema.POOL is not descriptor_pool.Default()
    assert schema.DATA_TYPES[11] == "TYPE_FP32"
