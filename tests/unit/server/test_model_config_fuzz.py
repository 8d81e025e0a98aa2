"""Any text at all is a configuration or a ConfigError, and documents read back as they were."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.server.model_config import ConfigError, config_json
from penstock.server.model_config_parse import parse_json, parse_pbtxt
from penstock.server.model_config_schema import POOL

WORDS = sorted(
    {field.name for m in POOL.FindFileByName("model_config.proto").message_types_by_name.values()
     for field in m.fields}
)  # fmt: skip
TOKENS = st.one_of(
    st.sampled_from(WORDS),
    st.sampled_from(["{", "}", "[", "]", ":", ",", ";", "<", ">", '"a"', "'..'", "true", "#"]),
    st.sampled_from(["TYPE_FP32", "TYPE_STRING", "KIND_GPU", "key", "value", "-1", "0", "1e9"]),
    st.sampled_from(["0x10", "99999999999999999999", "nan", '"\\xff"', '"\\ud800"', "[a.b/c]"]),
)  # fmt: skip
TEXTS = st.one_of(st.text(max_size=60), st.lists(TOKENS, max_size=30).map(" ".join))
MESSAGES = st.recursive(
    st.builds("{}{}".format, st.sampled_from(WORDS), st.sampled_from([": 1", ': "a"', " {}"])),
    lambda inner: st.tuples(st.sampled_from(WORDS), st.lists(inner, max_size=3)).map(
        lambda pair: f"{pair[0]} {{ {' '.join(pair[1])} }}"
    ),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.one_of(TEXTS, MESSAGES))
def test_any_text_is_a_configuration_or_refused(text: str) -> None:
    for parser in (parse_pbtxt, parse_json):
        try:
            config = parser(text, "fuzz", name="m")
        except ConfigError as error:
            str(error).encode()  # printable whatever was quoted
        else:
            json.dumps(config_json(config), allow_nan=False)


@settings(max_examples=100, deadline=None)
@given(
    st.builds(
        "max_batch_size: {} input {{ name: {} data_type: {} dims: {} }} version_policy {{ {} }} "
        "dynamic_batching {{ max_queue_delay_microseconds: {} }}".format,
        st.integers(0, 2**31 - 1),
        st.text(st.characters(categories=("L", "N")), min_size=1, max_size=8).map("'{}'".format),
        st.integers(0, 14),
        st.lists(st.just(-1) | st.integers(1, 2**63 - 1), max_size=4),
        st.sampled_from(["all {}", "latest { num_versions: 2 }", "specific { versions: 4 }", ""]),
        st.integers(0, 2**64 - 1),
    )
)
def test_document_reads_back_as_the_same_configuration(text: str) -> None:
    config = parse_pbtxt(text, "generated", name="m")
    again = parse_json(json.dumps(config_json(config)), "document", name="m")
    assert again == config
    assert config_json(again) == config_json(config)
