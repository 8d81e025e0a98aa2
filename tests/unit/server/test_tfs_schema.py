"""The compiled schema is the schema, and apart from everybody else's classes."""

from __future__ import annotations

import base64
import sys

import pytest
from google.protobuf import descriptor_pool

from penstock.protocol.tf_dtype import BY_DTYPE, BY_NUMBER
from penstock.server import tfs_schema
from penstock.server.model_config_schema.generate import compile_schema
from penstock.server.tfs_schema import generate
from penstock.server.tfs_schema.descriptor import FILES


def test_the_committed_descriptors_are_the_compiled_schema() -> None:
    committed = {name: base64.b64decode(text) for name, text in FILES.items()}
    assert compile_schema(generate.SCHEMA) == committed


def test_services() -> None:
    def methods(name: str) -> set[str]:
        return {method.name for method in tfs_schema.POOL.FindServiceByName(name).methods}

    assert methods(tfs_schema.PREDICTION) == {
        "Predict", "Classify", "Regress", "MultiInference", "GetModelMetadata",
    }  # fmt: skip
    assert methods(tfs_schema.MODEL) == {"GetModelStatus", "HandleReloadConfigRequest"}


def test_the_pool_is_our_own() -> None:
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("tensorflow.serving.PredictRequest")
    assert not [name for name in sys.modules if name.partition(".")[0] == "tensorflow"]


def test_messages_by_name() -> None:
    assert tfs_schema.message("ModelSpec").DESCRIPTOR.full_name == "tensorflow.serving.ModelSpec"
    assert tfs_schema.message("tensorflow.Example")() is not None
    with pytest.raises(KeyError):
        tfs_schema.message("Nothing")


def test_every_type_has_its_number() -> None:
    assert len(BY_NUMBER) == len(BY_DTYPE)
    assert {d.name for d in BY_DTYPE} == {
        "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
        "FP16", "FP32", "FP64", "BF16", "BYTES",
    }  # fmt: skip
