"""Reading config.pbtxt: what is understood, what is refused and in which words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penstock.protocol import dtype as dt
from penstock.protocol.message import TensorSpec
from penstock.server.model_config import (
    All,
    Checksum,
    ConfigError,
    InstanceGroup,
    Latest,
    ModelConfig,
    QueuePolicy,
    Specific,
    WarmupInput,
    config_json,
    metadata_specs,
)
from penstock.server.model_config_parse import TEXT_CHARACTERS_MAX, parse_json, parse_pbtxt
from penstock.server.model_config_schema import POOL
from penstock.server.model_config_support import IGNORED, REFUSED

FULL = """
# everything that is acted on
name: "resnet"
platform: "onnxruntime_onnx"
max_batch_size: 16
input [
  { name: "image" data_type: TYPE_UINT8 format: FORMAT_NCHW dims: [ 3, -1, 224 ] },
  { name: "hint" data_type: TYPE_STRING dims: 1 optional: true }
]
output { name: "scores" data_type: TYPE_BF16 dims: [ 1000 ] label_filename: "labels/en.txt" }
version_policy: { specific { versions: [ 3, 1, 3 ] } }
dynamic_batching {
  preferred_batch_size: [ 4, 8 ]
  max_queue_delay_microseconds: 500
  preserve_ordering: true
  priority_levels: 3
  default_priority_level: 2
  default_queue_policy { default_timeout_microseconds: 1000 allow_timeout_override: true }
  priority_queue_policy { key: 1 value { max_queue_size: 7 } }
}
instance_group [ { count: 2 kind: KIND_CPU }, { name: "g" kind: KIND_GPU gpus: [ 0, 1 ] } ]
parameters { key: "intra_op_thread_count" value: { string_value: "4" } }
model_warmup {
  name: "w" batch_size: 8
  inputs { key: "image" value { data_type: TYPE_UINT8 dims: [ 3, 1, 224 ] random_data: true } }
  inputs { key: "hint" value { data_type: TYPE_STRING dims: 1 input_data_file: "hint.bin" } }
}
response_cache { enable: false }
model_transaction_policy { decoupled: false }
default_model_filename: "resnet.onnx"
metric_tags { key: "team" value: "vision" }
optimization { priority: PRIORITY_MAX input_pinned_memory { enable: true } }
"""


def parse(text: str, name: str = "m") -> ModelConfig:
    return parse_pbtxt(text, "config.pbtxt", name=name)


def refusal(text: str, name: str = "m") -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, name)
    return str(caught.value)


class TestValues:
    @pytest.fixture
    def config(self) -> ModelConfig:
        return parse(FULL, "resnet")

    def test_identity(self, config: ModelConfig) -> None:
        assert (config.name, config.backend, config.platform) == (
            "resnet",
            "onnxruntime",
            "onnxruntime_onnx",
        )
        assert config.max_batch_size == 16
        assert config.default_model_filename == "resnet.onnx"
        assert config.parameters == {"intra_op_thread_count": "4"}
        assert config.metric_tags == {"team": "vision"}
        assert not config.response_cache
        assert not config.decoupled

    def test_tensors(self, config: ModelConfig) -> None:
        image, hint = config.inputs
        assert (image.name, image.dtype, image.dims) == ("image", dt.UINT8, (3, -1, 224))
        assert (hint.dtype, hint.dims, hint.optional) == (dt.BYTES, (1,), True)
        (scores,) = config.outputs
        assert (scores.dtype, scores.label_filename) == (dt.BF16, "labels/en.txt")

    def test_scheduling(self, config: ModelConfig) -> None:
        batching = config.dynamic_batching
        assert batching is not None
        assert (batching.preferred_batch_size, batching.max_queue_delay_us) == ((4, 8), 500)
        assert (batching.priority_levels, batching.default_priority_level) == (3, 2)
        assert batching.preserve_ordering
        assert batching.default_queue_policy == QueuePolicy("REJECT", 1000, True, 0)
        assert batching.priority_queue_policy == {1: QueuePolicy(max_queue_size=7)}
        assert config.instance_groups == (
            InstanceGroup("resnet_0", "CPU", 2),
            InstanceGroup("g", "GPU", 1, (0, 1)),
        )
        assert config.version_policy == Specific((1, 3))

    def test_warmup(self, config: ModelConfig) -> None:
        (warmup,) = config.model_warmup
        assert (warmup.name, warmup.batch_size, warmup.count) == ("w", 8, 1)
        assert warmup.inputs == {
            "hint": WarmupInput(dt.BYTES, (1,), "file", "hint.bin"),
            "image": WarmupInput(dt.UINT8, (3, 1, 224), "random"),
        }

    def test_what_changes_nothing_is_named(self, config: ModelConfig) -> None:
        assert [entry.split(":")[0] for entry in config.ignored] == [
            "input[1].optional",
            "dynamic_batching.preferred_batch_size",
            "dynamic_batching.max_queue_delay_microseconds",
            "dynamic_batching.preserve_ordering",
            "dynamic_batching.default_queue_policy.allow_timeout_override",
            "dynamic_batching.priority_queue_policy[1].max_queue_size",
            "optimization.priority",
            "optimization.input_pinned_memory",
        ]

    def test_metadata_has_the_batch_dimension(self, config: ModelConfig) -> None:
        inputs, outputs = metadata_specs(config)
        assert inputs[0] == TensorSpec("image", dt.UINT8, (-1, 3, -1, 224))
        assert outputs == (TensorSpec("scores", dt.BF16, (-1, 1000)),)

    def test_metadata_without_batching_and_without_completion(self) -> None:
        text = 'max_batch_size: 0 input { name: "x" data_type: TYPE_FP32 dims: [ 2 ] }'
        assert metadata_specs(parse(text))[0] == (TensorSpec("x", dt.FP32, (2,)),)
        with pytest.raises(ConfigError, match="no max_batch_size yet"):
            metadata_specs(parse(""))
        with pytest.raises(ConfigError, match="tensor 'x' has no data_type yet"):
            metadata_specs(parse('max_batch_size: 0 input { name: "x" dims: [ 2 ] }'))

    def test_nothing_stated(self) -> None:
        config = parse("")
        assert (config.name, config.max_batch_size, config.version_policy) == ("m", None, Latest(1))
        assert parse("version_policy { all {} }").version_policy == All()
        assert parse("version_policy { latest { num_versions: 3 } }").version_policy == Latest(3)
        assert parse("version_policy { latest {} }").version_policy == Latest(1)

    @pytest.mark.parametrize("dtype", dt.ALL)
    def test_every_dtype(self, dtype: dt.DType) -> None:
        label = "TYPE_STRING" if dtype is dt.BYTES else f"TYPE_{dtype}"
        config = parse(f'input {{ name: "x" data_type: {label} dims: 1 }}')
        assert config.inputs[0].dtype is dtype


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("\n\nmax_batch_sizes: 8", ["config.pbtxt:3:", '"max_batch_sizes"', "max_batch_size?"]),
            ("input {\n data_typ: TYPE_FP32 }", ["config.pbtxt:2:", "Did you mean data_type?"]),
            ("input { data_type: TYPE_FLOAT }", ["TYPE_FLOAT", "It knows TYPE_BF16", "TYPE_FP32"]),
            ("zzz: 1", ["It knows backend, batch_input,"]),
            ('max_batch_size: "x"', ["config.pbtxt:1:"]),
            ("max_batch_size: 99999999999", ["out of range"]),
            ('name: "m" name: "m"', ["multiple"]),
            ("dynamic_batching {} sequence_batching {}", ["sequence_batching", "oneof"]),
            ("input {", ["config.pbtxt:1:"]),
            ('name: "\ud800"', ["config.pbtxt"]),
            ("max_batch_size: -1", ["'max_batch_size' must be non-negative, not -1"]),
            ('name: "other"', ["unexpected directory name 'm' for model 'other'"]),
            ("input { dims: 1 }", ["input[0]", "must specify 'name'"]),
            ('output { name: "y" } output { name: "y" }', ["output 'y'", "more than once"]),
            ('input { name: "x" dims: [ 3, 0 ] }', ["'x'.dims", "integer >= 1, or -1", "not 0"]),
            ('input { name: "x" dims: -2 }', ["not -2"]),
            ('input { name: "x" data_type: 99 }', ["data type 99"]),
            ("version_policy { specific {} }", ["version_policy.specific"]),
            ("version_policy { specific { versions: -3 } }", [">= 1"]),
            ("dynamic_batching { preferred_batch_size: 0 }", ["must be positive"]),
            (
                "max_batch_size: 4 dynamic_batching { preferred_batch_size: 8 }",
                ["must be <= max batch size (4)"],
            ),
            (
                "dynamic_batching { priority_levels: 2 default_priority_level: 3 }",
                ["default priority level must be in range [1, 2], not 3"],
            ),
            ("dynamic_batching { default_priority_level: 1 }", ["needs priority_levels"]),
            (
                "dynamic_batching { priority_queue_policy { key: 1 value {} } }",
                ["level 1 must be in range [1, 0]"],
            ),
            ("instance_group { kind: KIND_CPU gpus: 0 }", ["KIND_CPU but specifies one or more"]),
            ("instance_group { gpus: -1 }", ["must be >= 0"]),
            ("instance_group { count: -1 }", ["count -1"]),
            ("instance_group { kind: 9 }", ["kind 9"]),
            ('default_model_filename: "../x.onnx"', ["inside the model directory"]),
            ('default_model_filename: "/etc/passwd"', ["inside the model directory"]),
            ('default_model_filename: "a\\nb"', ["control characters"]),
            ('output { name: "y" label_filename: "../l" }', ["label_filename", "inside the model"]),
            ("model_warmup {}", ["model_warmup[0]", "'name'"]),
            ('max_batch_size: 2 model_warmup { name: "w" batch_size: 3 }', ["exceeds"]),
            ('model_warmup { name: "w" inputs { key: "x" value {} } }', ["'data_type'"]),
            (
                'model_warmup { name: "w" inputs { key: "x" value { data_type: TYPE_FP32 } } }',
                ["zero_data, random_data or input_data_file"],
            ),
            (
                'model_warmup { name: "w" inputs { key: "x" '
                "value { data_type: TYPE_FP32 dims: -1 zero_data: true } } }",
                ["must be fixed sizes"],
            ),
            (" " * (TEXT_CHARACTERS_MAX + 1), ["too many"]),
        ],
    )  # fmt: skip
    def test_words(self, text: str, words: list[str]) -> None:
        said = refusal(text)
        assert [word for word in words if word not in said] == [], said
        said.encode()

    @pytest.mark.parametrize("name", ["", "a/b", "..", "a\nb"])
    def test_model_name(self, name: str) -> None:
        expected = "path traversal" if name else "must specify 'name'"
        assert expected in refusal("", name)

    @pytest.mark.parametrize(
        ("text", "path"),
        [
            (
                "sequence_batching { iterative_sequence: true }",
                "sequence_batching.iterative_sequence",
            ),
            ("ensemble_scheduling { step { model_name: 'a' } }", "ensemble_scheduling"),
            ("batch_input { kind: BATCH_ITEM_SHAPE }", "batch_input"),
            ("batch_output { target_name: 'a' }", "batch_output"),
            ("input { name: 'x' allow_ragged_batch: true }", "input[0].allow_ragged_batch"),
            ("output { name: 'x' is_shape_tensor: true }", "output[0].is_shape_tensor"),
            ("model_operations { op_library_filename: 'x.so' }", "model_operations"),
            (
                "model_repository_agents { agents { name: 'decrypt' } }",
                "model_repository_agents.agents[0]",
            ),
            ("response_cache { enable: true }", "response_cache.enable"),
            ("cc_model_filenames { key: '8.0' value: 'a' }", "cc_model_filenames"),
            ("instance_group {} instance_group { passive: true }", "instance_group[1].passive"),
            (
                "dynamic_batching { priority_levels: 1 default_priority_level: 1 "
                "priority_queue_policy { key: 1 value { timeout_action: DELAY } } }",
                "dynamic_batching.priority_queue_policy[1].timeout_action",
            ),
        ],
    )
    def test_what_is_not_implemented_is_named_with_a_reason(self, text: str, path: str) -> None:
        said = refusal(text)
        assert f"not supported: {path}: " in said

    def test_tritons_agent_for_checksums(self) -> None:
        config = parse_pbtxt(
            "model_repository_agents { agents { name: 'checksum' "
            f"parameters {{ key: 'SHA256:1/b' value: ' {'ab' * 32} ' }} "
            f"parameters {{ key: 'MD5:1/a' value: '{'CD' * 16}' }} }} }}",
            "config.pbtxt",
            name="m",
        )
        assert config.checksums == (
            Checksum("md5", "1/a", "CD" * 16),
            Checksum("sha256", "1/b", "ab" * 32),
        )

    @pytest.mark.parametrize("digest", ["", "abcd", "é" * 32, "ab" * 32])
    def test_a_checksum_that_is_none_is_refused(self, digest: str) -> None:
        said = refusal(
            "model_repository_agents { agents { name: 'checksum' "
            f"parameters {{ key: 'MD5:1/a' value: '{digest}' }} }} }}"
        )
        assert f"'{digest}' is no MD5 of 1/a" in said

    @pytest.mark.parametrize("key", ["MD5:", "SHA1:1/a", "1/a", "MD5:../a", "MD5:/a"])
    def test_a_checksum_of_another_kind_is_refused(self, key: str) -> None:
        said = refusal(
            "model_repository_agents { agents { name: 'checksum' "
            f"parameters {{ key: '{key}' value: 'x' }} }} }}"
        )
        assert f"'{key}' is not MD5:FILE or SHA256:FILE" in said

    def test_all_of_it_at_once(self) -> None:
        said = refusal(
            "sequence_batching { iterative_sequence: true } response_cache { enable: true }"
        )
        assert "sequence_batching.iterative_sequence: " in said
        assert "response_cache.enable: " in said

    @pytest.mark.parametrize(
        ("text", "path"),
        [
            ("optimization { cuda { graphs: true } graph { level: 1 } }", "optimization.graph"),
            ("optimization { eager_batching: true }", "optimization.eager_batching"),
            ("instance_group { rate_limiter { priority: 2 } }", "instance_group[0].rate_limiter"),
            ("instance_group { profile: '1' }", "instance_group[0].profile"),
            ("runtime: 'libx.so'", "runtime"),
            ("model_metrics { metric_control {} }", "model_metrics"),
        ],
    )
    def test_what_is_harmless_is_listed(self, text: str, path: str) -> None:
        assert parse(text).ignored[0].startswith(f"{path}: ")

    @pytest.mark.parametrize("path", sorted({*REFUSED, *IGNORED}))
    def test_tables_name_fields_that_exist(self, path: str) -> None:
        owner = POOL.FindMessageTypeByName("inference.ModelConfig")
        for part in path.split("."):
            assert owner is not None
            owner = owner.fields_by_name[part].message_type
            if owner is not None and owner.GetOptions().map_entry:
                owner = owner.fields_by_name["value"].message_type


class TestJson:
    def test_override(self) -> None:
        text = '{"max_batch_size": "16", "input": [{"name": "x", "dims": ["1", 2]}]}'
        config = parse_json(text, "load request", name="m")
        assert (config.max_batch_size, config.inputs[0].dims) == (16, (1, 2))

    @pytest.mark.parametrize(
        "text",
        ["", "1", "null", "[]", "{", '{"foo": 1}', '{"max_batch_size": "x"}', "[" * 100_000,
         '{"input": [{"data_type": "TYPE_X"}]}', '{"input": 3}', '{"name": "\\ud800"}'],
    )  # fmt: skip
    def test_refusals(self, text: str) -> None:
        with pytest.raises(ConfigError, match="Invalid config override"):
            parse_json(text, "load request", name="m")

    def test_checks_are_the_same(self) -> None:
        with pytest.raises(ConfigError, match="must be non-negative"):
            parse_json('{"max_batch_size": -1}', "load request", name="m")


class TestDocument:
    def test_shape(self) -> None:
        document = config_json(parse(FULL, "resnet"))
        assert json.loads(json.dumps(document)) == document
        assert document["input"][0] == {
            "name": "image",
            "data_type": "TYPE_UINT8",
            "format": "FORMAT_NCHW",
            "dims": [3, -1, 224],
            "is_shape_tensor": False,
            "allow_ragged_batch": False,
            "optional": False,
            "is_non_linear_format_io": False,
        }
        assert document["version_policy"] == {"specific": {"versions": [3, 1, 3]}}
        batching = document["dynamic_batching"]
        assert batching["max_queue_delay_microseconds"] == 500
        assert batching["priority_levels"] == 3
        assert batching["default_queue_policy"]["default_timeout_microseconds"] == 1000
        assert batching["priority_queue_policy"]["1"]["default_timeout_microseconds"] == 0
        assert document["parameters"] == {"intra_op_thread_count": {"string_value": "4"}}
        assert document["model_warmup"][0]["inputs"]["image"]["dims"] == [3, 1, 224]
        assert document["metric_tags"] == {"team": "vision"}
        assert document["instance_group"][0]["kind"] == "KIND_CPU"

    def test_defaults_are_printed(self) -> None:
        document = config_json(parse(""))
        assert document["max_batch_size"] == 0
        assert document["input"] == []
        assert document["parameters"] == {}
        assert "dynamic_batching" not in document

    def test_calls_share_nothing(self) -> None:
        config = parse(FULL, "resnet")
        config_json(config)["input"].clear()
        assert config_json(config)["input"]


def test_demo_configuration() -> None:
    import penstock.server.demo as demo

    path = Path(demo.__path__[0]) / "models" / "digits" / "config.pbtxt"
    config = parse_pbtxt(path.read_text(), path, name="digits")
    assert config.outputs[0].label_filename == "labels.txt"
    assert config.dynamic_batching is not None
    assert config.ignored == ()


def test_a_text_that_ends_too_early() -> None:
    with pytest.raises(ConfigError, match=r'the text ends too early: Expected ","'):
        parse_pbtxt('input [ { name: "x" }\n', "config.pbtxt", name="m")
