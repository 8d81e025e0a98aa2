"""Auto-completion from a session's specs, agreement with them, and label files."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.protocol import dtype as dt
from penstock.protocol.message import TensorSpec
from penstock.server.model_config import (
    ConfigError,
    DynamicBatching,
    Latest,
    ModelConfig,
    TensorConfig,
    config_json,
    metadata_specs,
)
from penstock.server.model_config_complete import (
    complete,
    is_batchable,
    load_labels,
    rows_that_fit,
)
from penstock.server.model_config_parse import parse_pbtxt

IMAGE = TensorSpec("x", dt.FP32, (-1, 3, 224))
SCORES = TensorSpec("y", dt.FP32, (-1, 10))
CLASSES = TensorSpec("label", dt.INT64, (-1,))
FIXED = TensorSpec("x", dt.FP32, (1, 3, 224))
FIXED_SCORES = TensorSpec("y", dt.FP32, (1, 10))


def join(
    text: str | None,
    inputs: tuple[TensorSpec, ...] = (IMAGE,),
    outputs: tuple[TensorSpec, ...] = (SCORES,),
    *,
    batchable: bool = True,
    **more: object,
) -> ModelConfig:
    config = None if text is None else parse_pbtxt(text, "config.pbtxt", name="m")
    return complete(
        config,
        name="m",
        inputs=inputs,
        outputs=outputs,
        batchable=batchable,
        backend="onnxruntime",
        **more,  # type: ignore[arg-type]
    )


def refusal(text: str | None, *specs: tuple[TensorSpec, ...]) -> str:
    with pytest.raises(ConfigError) as caught:
        join(text, *specs)
    return str(caught.value)


class TestWithoutConfiguration:
    def test_batchable_model(self) -> None:
        config = join(None, outputs=(SCORES, CLASSES), default_model_filename="model.onnx")
        assert (config.name, config.backend, config.max_batch_size) == ("m", "onnxruntime", 512)
        assert config.inputs == (TensorConfig("x", dt.FP32, (3, 224)),)
        assert config.outputs == (
            TensorConfig("y", dt.FP32, (10,)),
            TensorConfig("label", dt.INT64, ()),
        )
        assert config.dynamic_batching == DynamicBatching()
        assert config.version_policy == Latest(1)
        assert config.ignored == ()
        assert metadata_specs(config) == ((IMAGE,), (SCORES, CLASSES))

    def test_document(self) -> None:
        document = config_json(join(None, default_model_filename="model.onnx"))
        assert document["max_batch_size"] == 512
        assert document["default_model_filename"] == "model.onnx"
        assert document["version_policy"] == {"latest": {"num_versions": 1}}
        assert document["input"][0]["data_type"] == "TYPE_FP32"
        assert document["input"][0]["dims"] == [3, 224]
        assert document["dynamic_batching"]["preferred_batch_size"] == []

    @pytest.mark.parametrize("batchable", [True, False])
    def test_fixed_first_dimension_does_not_batch(self, batchable: bool) -> None:
        config = join(None, (FIXED,), (FIXED_SCORES,), batchable=batchable)
        assert (config.max_batch_size, config.dynamic_batching) == (0, None)
        assert metadata_specs(config) == ((FIXED,), (FIXED_SCORES,))

    def test_the_backend_s_word_counts(self) -> None:
        config = join(None, batchable=False)
        assert config.max_batch_size == 0
        assert metadata_specs(config) == ((IMAGE,), (SCORES,))

    def test_label_files(self) -> None:
        config = join(None, label_filenames={"y": "labels.txt", "absent": "z"})
        assert config.outputs[0].label_filename == "labels.txt"


@pytest.mark.parametrize(
    ("shapes", "rows"),
    [
        ([(dt.FP32, (3, 224, 224))], 55),  # 602112 bytes a row
        ([(dt.FP32, (3, 224, 224)), (dt.FP32, (3, 224, 224))], 27),
        ([(dt.UINT8, (1,))], 512),
        ([(dt.FP32, ())], 512),
        ([(dt.FP64, (4_000_000,))], 8),
        ([(dt.FP32, (3, -1, 224))], 64),
        ([(dt.BYTES, (1,))], 64),
    ],
)
def test_rows_that_fit(shapes: list[tuple[dt.DType, tuple[int, ...]]], rows: int) -> None:
    assert rows_that_fit(shapes) == rows


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        ((IMAGE,), (SCORES, CLASSES), True),
        ((FIXED,), (SCORES,), False),
        ((IMAGE,), (FIXED_SCORES,), False),
        ((IMAGE, TensorSpec("s", dt.FP32, ())), (SCORES,), False),
        ((), (SCORES,), False),
    ],
)
def test_is_batchable(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], expected: bool
) -> None:
    assert is_batchable(inputs, outputs) is expected


class TestStated:
    def test_stated_wins(self) -> None:
        config = join(
            'max_batch_size: 4 backend: "mine" default_model_filename: "a.onnx" '
            'output { name: "y" label_filename: "l.txt" }',
            default_model_filename="model.onnx",
            label_filenames={"y": "other"},
        )
        assert (config.max_batch_size, config.backend) == (4, "mine")
        assert config.default_model_filename == "a.onnx"
        assert config.outputs == (TensorConfig("y", dt.FP32, (10,), label_filename="l.txt"),)
        assert config.dynamic_batching is None, "only an unstated max_batch_size turns it on"

    @pytest.mark.parametrize(("limit", "rows"), [(0, 512), (600, 512), (16, 16)])
    def test_a_session_may_limit_the_rows(self, limit: int, rows: int) -> None:
        small = TensorSpec("x", dt.FP32, (-1, 4))
        assert join(None, (small,), rows_limit=limit).max_batch_size == rows
        assert join("max_batch_size: 100", (small,), rows_limit=limit).max_batch_size == 100

    def test_zero_forbids_batching(self) -> None:
        assert join("max_batch_size: 0").max_batch_size == 0
        assert join("max_batch_size: 0 dynamic_batching {}").max_batch_size == 0

    def test_platform_stands_for_a_backend(self) -> None:
        assert join('platform: "tensorrt_plan"').backend == "tensorrt"

    def test_dims_with_the_batch_dimension_mean_no_batching(self) -> None:
        config = join('input { name: "x" data_type: TYPE_FP32 dims: [ -1, 3, 224 ] }')
        assert config.max_batch_size == 0
        assert metadata_specs(config) == ((IMAGE,), (SCORES,))

    def test_dims_without_the_batch_dimension_mean_batching(self) -> None:
        config = join('output { name: "y" dims: 10 }')
        assert config.max_batch_size == 512
        assert config.dynamic_batching is not None

    def test_free_dimension_may_be_fixed_and_counts_for_the_batch(self) -> None:
        free = TensorSpec("x", dt.FP32, (-1, 3, -1, -1))
        config = join('input { name: "x" dims: [ 3, 224, 224 ] }', (free,))
        assert (config.inputs[0].dims, config.max_batch_size) == ((3, 224, 224), 55)

    def test_stated_scheduling_is_kept(self) -> None:
        config = join("dynamic_batching { preferred_batch_size: 1024 }")
        assert config.max_batch_size == 1024
        assert config.dynamic_batching == DynamicBatching((1024,))

    def test_order_is_the_session_s(self) -> None:
        mask = TensorSpec("mask", dt.BOOL, (-1, 3))
        config = join('input { name: "mask" } input { name: "x" dims: [ 3, 224 ] }', (IMAGE, mask))
        assert metadata_specs(config)[0] == (IMAGE, mask)
        assert [entry["name"] for entry in config_json(config)["input"]] == ["x", "mask"]

    def test_outputs_left_out_are_served_and_named(self) -> None:
        config = join('output { name: "label" label_filename: "l" }', outputs=(SCORES, CLASSES))
        assert [output.name for output in config.outputs] == ["y", "label"]
        assert config.outputs[1].label_filename == "l"
        assert config.ignored == ("output: the model's output(s) y are not stated and served too",)

    def test_the_stated_configuration_is_not_touched(self) -> None:
        stated = parse_pbtxt("", "config.pbtxt", name="m")
        complete(stated, name="m", inputs=(IMAGE,), outputs=(SCORES,), batchable=True, backend="b")
        assert config_json(stated)["input"] == []

    def test_completing_twice_changes_nothing(self) -> None:
        outputs = (SCORES, CLASSES)
        text = 'optimization { priority: PRIORITY_MAX } instance_group {} output { name: "y" }'
        once = join(text, outputs=outputs)
        again = complete(
            once, name="m", inputs=(IMAGE,), outputs=outputs, batchable=True, backend="b"
        )
        assert again == once
        assert config_json(again) == config_json(once)
        assert len(again.ignored) == 2


class TestDisagreement:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (
                'max_batch_size: 8 input { name: "x" data_type: TYPE_FP32 dims: [ 3 ] }',
                "config.pbtxt: model 'm', tensor 'x': the model expects 3 dimensions (shape "
                "[-1,3,224]) but the model configuration specifies 2 (shape [-1,3]) (with the "
                "batch dimension of max_batch_size 8)",
            ),
            (
                'max_batch_size: 0 input { name: "x" dims: [ 3, 224 ] }',
                "but the model configuration specifies 2 (shape [3,224])",
            ),
            ('max_batch_size: 8 input { name: "x" dims: [ 3, 225 ] }', "(shape [-1,3,225])"),
            ('max_batch_size: 8 input { name: "x" dims: [ 3, -1 ] }', "(shape [-1,3,-1])"),
            (
                'input { name: "x" data_type: TYPE_INT8 }',
                "expects data type TYPE_FP32 but the model configuration specifies TYPE_INT8",
            ),
            ('input { name: "z" }', "unexpected inference input 'z', allowed inputs are: x"),
            ('output { name: "z" }', "unexpected inference output 'z', allowed outputs are: y"),
        ],
    )
    def test_words(self, text: str, words: str) -> None:
        assert words in refusal(text)

    def test_every_input_must_be_stated(self) -> None:
        second = TensorSpec("mask", dt.BOOL, (-1, 3))
        assert "lacks the model's input(s) mask" in refusal('input { name: "x" }', (IMAGE, second))

    def test_batching_needs_a_free_first_dimension(self) -> None:
        said = refusal("max_batch_size: 8", (FIXED,), (FIXED_SCORES,))
        assert "tensor 'x': max_batch_size 8 needs a model whose first dimension is free" in said
        assert "fixed to 1 (shape [1,3,224])" in said
        assert "dynamic batch axis, or set max_batch_size: 0" in said
        scalar = TensorSpec("y", dt.FP32, ())
        assert "it does not exist (shape [])" in refusal("max_batch_size: 8", (IMAGE,), (scalar,))


class TestLabels:
    def labels(self, folder: Path, filename: str = "labels.txt") -> dict[str, tuple[str, ...]]:
        config = join(f'output {{ name: "y" label_filename: "{filename}" }}')
        return load_labels(folder, config)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("cat\ndog\n", ("cat", "dog")),
            ("cat\r\ndøg", ("cat", "døg")),
            ("a\n\nb\n\n", ("a", "", "b", "")),
            ("", ()),
        ],
    )
    def test_lines(self, tmp_path: Path, text: str, expected: tuple[str, ...]) -> None:
        (tmp_path / "labels.txt").write_bytes(text.encode())
        assert self.labels(tmp_path) == {"y": expected}

    def test_none_stated(self, tmp_path: Path) -> None:
        assert load_labels(tmp_path, join(None)) == {}

    def test_missing_or_not_text(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"config\.pbtxt: label_filename: cannot read"):
            self.labels(tmp_path)
        (tmp_path / "labels.txt").write_bytes(b"\xff\xfe")
        with pytest.raises(ConfigError, match="cannot read"):
            self.labels(tmp_path)
