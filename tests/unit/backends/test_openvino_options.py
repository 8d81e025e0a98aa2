"""Options become OpenVINO's device and properties, or are refused by name."""

from pathlib import Path

import pytest

from penstock.backends.base import LoadError, ModelSource
from penstock.backends.openvino.options import plan


def planned(device="cpu", threads=1, cores=8, devices=("CPU",), **options):
    return plan(ModelSource("m", Path("m.xml"), device, threads, options), devices, cores)


def test_defaults_are_for_serving_beside_others():
    made = planned()
    assert made.device == "CPU"
    assert made.properties == {
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": 2,
        "INFERENCE_NUM_THREADS": 2,
    }


@pytest.mark.parametrize(
    ("threads", "cores", "streams"), [(1, 1, 1), (1, 2, 2), (2, 2, 1), (4, 8, 2), (8, 4, 1)]
)
def test_streams_share_the_cores(threads, cores, streams):
    properties = planned(threads=threads, cores=cores).properties
    assert properties["NUM_STREAMS"] == streams
    assert properties["INFERENCE_NUM_THREADS"] == streams * threads


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"NUM_STREAMS": "4"}, {"NUM_STREAMS": 4, "INFERENCE_NUM_THREADS": 4}),
        ({"INFERENCE_NUM_THREADS": "6"}, {"INFERENCE_NUM_THREADS": 6}),
        ({"HINT_BF16": "yes"}, {"INFERENCE_PRECISION_HINT": "bf16"}),
        ({"HINT_BF16": "NO"}, {"INFERENCE_PRECISION_HINT": "f32"}),
        ({"ENABLE_CPU_PINNING": "YES"}, {"ENABLE_CPU_PINNING": True}),
        ({"INFERENCE_PRECISION_HINT": "BF16"}, {"INFERENCE_PRECISION_HINT": "bf16"}),
    ],
)
def test_an_option_wins_over_a_default(options, wanted):
    assert wanted.items() <= planned(**options).properties.items()


def test_hints_are_left_to_choose_what_they_are_for():
    properties = planned(PERFORMANCE_HINT="throughput", EXECUTION_MODE_HINT="ACCURACY").properties
    assert properties == {
        "ENABLE_CPU_PINNING": False,
        "PERFORMANCE_HINT": "THROUGHPUT",
        "EXECUTION_MODE_HINT": "ACCURACY",
    }


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"NUM_STREAM": "2"}, "did you mean NUM_STREAMS"),
        ({"NUM_STREAMS": "0"}, "whole number of at least 1"),
        ({"COMPILATION_NUM_THREADS": "many"}, "whole number of at least 1"),
        ({"PERFORMANCE_HINT": "fast"}, "one of LATENCY, THROUGHPUT"),
        ({"ENABLE_CPU_PINNING": "maybe"}, "1, true, 0 or false"),
        ({"CPU_EXTENSION_PATH": "/x.so"}, "loads a program"),
        ({"CACHE_DIR": "/x"}, "writes files"),
        ({"CPU_DENORMALS_OPTIMIZATION": "1"}, "of other models"),
        ({"ENABLE_BATCH_PADDING": "YES"}, "cannot be on: batches are not padded"),
        ({"RESHAPE_IO_LAYERS": "1"}, "cannot be on"),
        ({"TARGET_DEVICE": "GPU"}, "'GPU', but OpenVINO sees CPU only"),
    ],
)
def test_refusals(options, told):
    with pytest.raises(LoadError, match=told) as caught:
        planned(**options)
    assert next(iter(options)) in str(caught.value)


def test_a_cuda_device_is_refused():
    with pytest.raises(LoadError, match="has no CUDA; state kind: KIND_CPU"):
        planned(device="cuda:0")


@pytest.mark.parametrize(
    ("wanted", "device"), [("gpu", "GPU"), ("GPU.1", "GPU.1"), ("AUTO", "AUTO")]
)
def test_another_device_keeps_its_own_defaults(wanted, device):
    made = planned(devices=("CPU", "GPU.0", "GPU.1"), TARGET_DEVICE=wanted)
    assert (made.device, made.properties) == (device, {})


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(LoadError, match=r"'GPU\.2', but OpenVINO sees CPU, GPU\.0 only"):
        planned(devices=("CPU", "GPU.0"), TARGET_DEVICE="GPU.2")
