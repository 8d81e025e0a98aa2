"""``sequence_batching`` of config.pbtxt: controls, states, and what is refused."""

import pytest

from penstock.protocol import dtype as dt
from penstock.server.model_config import ConfigError
from penstock.server.model_config_parse import parse_pbtxt
from penstock.server.model_config_sequence import ControlInput, StateTensor

START = "{ kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] }"
CORRID = "{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 }"


def read(text):
    return parse_pbtxt(f"sequence_batching {{ {text} }}", "config.pbtxt", name="m")


def refusal(text):
    with pytest.raises(ConfigError) as caught:
        read(text)
    return str(caught.value)


def test_nothing_stated_is_a_second_of_patience():
    made = read("").sequence_batching
    assert (made.idle_us, made.controls, made.states) == (1_000_000, (), ())


def test_controls():
    made = read(
        f"""max_sequence_idle_microseconds: 5
        control_input [
          {{ name: "START" control [ {START} ] }},
          {{ name: "END" control [ {{ kind: CONTROL_SEQUENCE_END fp32_false_true: [0, 2] }} ] }},
          {{ name: "READY"
             control [ {{ kind: CONTROL_SEQUENCE_READY bool_false_true: [false, true] }} ] }},
          {{ name: "ID" control [ {CORRID} ] }}
        ]"""
    ).sequence_batching
    assert made.idle_us == 5
    assert made.controls == (
        ControlInput("START", "START", dt.INT32, (0, 1)),
        ControlInput("END", "END", dt.FP32, (0.0, 2.0)),
        ControlInput("READY", "READY", dt.BOOL, (False, True)),
        ControlInput("ID", "CORRID", dt.UINT64),
    )
    assert made.hidden_inputs == ("START", "END", "READY", "ID")


def test_states():
    made = read(
        """state [
          { input_name: "A" output_name: "B" data_type: TYPE_FP32 dims: [ 4 ] },
          { input_name: "C" output_name: "D" data_type: TYPE_INT64 dims: [ -1, 2 ]
            initial_state: { name: "x" data_type: TYPE_INT64 dims: [ 3, 2 ] data_file: "c.bin" } },
          { input_name: "E" output_name: "F" data_type: TYPE_INT64 dims: [ -1 ] }
        ]"""
    ).sequence_batching
    assert made.states == (
        StateTensor("A", "B", dt.FP32, (4,), (4,)),
        StateTensor("C", "D", dt.INT64, (-1, 2), (3, 2), "c.bin"),
        StateTensor("E", "F", dt.INT64, (-1,), (1,)),
    )
    assert made.hidden_outputs == ("B", "D", "F")


def test_how_batches_form_is_told_to_have_no_effect():
    config = read("oldest { max_candidate_sequences: 4 }")
    assert any(line.startswith("sequence_batching.oldest: ") for line in config.ignored)


STATE = 'input_name: "A" output_name: "B" data_type: TYPE_FP32'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("iterative_sequence: true", "iterative_sequence"),
        (f"control_input [ {{ control [ {START} ] }} ]", "must have a name"),
        ('control_input [ { name: "S" } ]', "0 controls"),
        (f'control_input [ {{ name: "S" control [ {START}, {START} ] }} ]', "2 controls"),
        (
            'control_input [ { name: "S" control [ { kind: CONTROL_SEQUENCE_START } ] } ]',
            "two values",
        ),
        (
            'control_input [ { name: "S" control '
            "[ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_FP32 } ] } ]",
            "type FP32",
        ),
        (
            f'control_input [ {{ name: "S" control [ {START} ] }}, '
            f'{{ name: "T" control [ {START} ] }} ]',
            "START twice",
        ),
        ('state [ { input_name: "A" data_type: TYPE_FP32 dims: [1] } ]', "output_name"),
        ('state [ { input_name: "A" output_name: "B" dims: [1] } ]', "data type 0"),
        (
            f"state [ {{ {STATE} dims: [4] initial_state {{ dims: [5] zero_data: true }} }} ]",
            "[5] of initial_state are not [4]",
        ),
        (
            f"state [ {{ {STATE} dims: [4] initial_state {{ data_type: TYPE_INT8 }} }} ]",
            "not of type FP32",
        ),
        (
            f'state [ {{ {STATE} dims: [4] initial_state {{ data_file: "../x" }} }} ]',
            "inside the model directory",
        ),
        (f"state [ {{ {STATE} dims: [4] }}, {{ {STATE} dims: [4] }} ]", "A twice"),
    ],
)
def test_refusals(text, reason):
    assert reason in refusal(text)


def test_decoupled_sequences_are_refused():
    with pytest.raises(ConfigError, match="decoupled"):
        parse_pbtxt(
            "sequence_batching {} model_transaction_policy { decoupled: true }", "c", name="m"
        )
