"""Triton's accelerators become options of the ONNX Runtime backend, and of no other."""

from pathlib import Path

import pytest

from penstock.backends.onnxruntime.provider import KNOWN
from penstock.server.model_config import ConfigError
from penstock.server.model_config_parse import parse_pbtxt


def parsed(accelerators: str, more: str = 'backend: "onnxruntime"'):
    text = f"optimization {{ execution_accelerators {{ {accelerators} }} }}\n{more}"
    return parse_pbtxt(text, Path("config.pbtxt"), name="m")


TENSORRT = """
gpu_execution_accelerator : [ {
  name : "tensorrt"
  parameters { key: "precision_mode" value: "FP16" }
  parameters { key: "max_workspace_size_bytes" value: "1073741824" }
  parameters { key: "trt_engine_cache_enable" value: "1" }
} ]
"""


def test_tensorrt():
    config = parsed(TENSORRT)
    assert config.parameters == {
        "execution_provider": "tensorrt",
        "trt_fp16_enable": "1",
        "trt_max_workspace_size": "1073741824",
        "trt_engine_cache_enable": "1",
    }
    assert set(config.parameters) <= KNOWN
    assert config.ignored == ()


def test_what_parameters_say_prevails():
    more = 'parameters { key: "trt_fp16_enable" value { string_value: "0" } }'
    assert parsed(TENSORRT, more).parameters["trt_fp16_enable"] == "0"


@pytest.mark.parametrize("order", [("cuda", "tensorrt"), ("tensorrt", "cuda")])
def test_cuda_takes_what_tensorrt_leaves(order):
    both = "".join(f'gpu_execution_accelerator {{ name: "{name}" }}' for name in order)
    assert parsed(both).parameters == {"execution_provider": "tensorrt"}


def test_precisions():
    def of(mode):
        return parsed(
            'gpu_execution_accelerator { name: "tensorrt" '
            f'parameters {{ key: "precision_mode" value: "{mode}" }} }}'
        ).parameters

    assert of("FP32") == {"execution_provider": "tensorrt"}
    assert of("INT8")["trt_int8_enable"] == "1"
    with pytest.raises(ConfigError, match="precision_mode is 'FP8'; it must be one of FP32, FP16"):
        of("FP8")


def test_an_unknown_accelerator_is_named():
    with pytest.raises(ConfigError, match=r"gpu_execution_accelerator\[0\]: 'auto_mixed' is not"):
        parsed('gpu_execution_accelerator { name: "auto_mixed" }')


@pytest.mark.parametrize("more", ['backend: "openvino"', 'platform: "tensorrt_plan"'])
def test_other_backends_have_none(more):
    assert parsed(TENSORRT, more).parameters == {}


def test_those_for_cpus_are_told_to_do_nothing():
    config = parsed('cpu_execution_accelerator { name: "openvino" }')
    assert config.parameters == {}
    assert len(config.ignored) == 1
    assert "cpu_execution_accelerator" in config.ignored[0]
