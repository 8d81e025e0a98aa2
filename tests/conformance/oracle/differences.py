"""Where Penstock answers otherwise than Triton, and why: each entry is meant.

Knows names of cases. A rule covers every difference that it recognises; an entry covers the cases
that it names. ``test_oracle`` fails for a difference that is not here, and for a rule or an entry
that no longer has any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

Answer = Mapping[str, Any]


class Rule(NamedTuple):
    reason: str
    covers: Callable[[Answer, Answer], bool]


_JSON_READER: Final = ("parse", "attempt to access", "attempt to get", "Unable to set")


def _blames_itself(theirs: Answer, ours: Answer) -> bool:
    document = theirs.get("json")
    text = str(document.get("error", "")) if isinstance(document, dict) else ""
    blames = theirs.get("status") == 500 and any(words in text for words in _JSON_READER)
    return blames and ours.get("status") == 400


RULES: Final[Mapping[str, Rule]] = {
    "blame": Rule(
        "What the client got wrong is 400 and names its place; Triton calls what its JSON reader "
        "trips over an internal error, 500.",
        _blames_itself,
    ),
}

_WORDS: Final = "The same mistake, told in other words; no client is known to look for Triton's."
_STRICT: Final = "What cannot be meant is refused; Triton drops it or makes something of it."
_LENIENT: Final = "What is clearly meant is accepted; Triton refuses it for its type or place."
_UTF8: Final = "ONNX Runtime's strings are UTF-8; Triton's answer comes from a Python model."
_FIRST: Final = "Several things are wrong; another of them is told first."
_READY: Final = "A model that failed to load stops no other: the server is ready for those."
_DONE: Final = "What is not done is not announced."
_BROKEN: Final = (
    "A model that is there but could not be loaded is unavailable, and the reason is told."
)
_BLAME: Final = "A mistake of the client's, not an internal error; its code says so."
_CONFIG: Final = "Placement is Penstock's own: there is no instance group or optimisation to show."
_BINARY: Final = "binary_data_output holds for outputs that say nothing themselves, as documented."
_PART: Final = "A region's offset counts once; Triton 2.51 adds it twice and writes elsewhere."
_TRACED: Final = "Levels may be set before a rate, and without a file: traces then go to the log."
_DOUBLE: Final = "Numbers with a fraction are parameters too, as in gRPC; the text says so."

ENTRIES: Final[Mapping[str, Mapping[str, Sequence[str]]]] = {
    "routes": {
        _READY: ["server not ready while a model could not be loaded"],
        _DONE: ["server metadata", "query is ignored"],
        "Served by another protocol's front.": ["root", "version 1 protocol"],
        _LENIENT: ["model name in percent"],
        _CONFIG: ["config", "config of a version", "config of labels and versions"],
    },
    "infer_json": {
        _BINARY: ["binary but for one"],
        _STRICT: [
            "UINT8 too large", "INT8 too large", "INT32 too large", "FP32 beyond its range",
            "same output twice", "data nested the wrong way", "data nested unevenly",
            "data nested beyond reason",
        ],
        "0 and 1 are truths, as other servers of the protocol have them.": ["a number for BOOL"],
        _WORDS: ["unknown input", "an input that is no object", "empty body"],
        _FIRST: ["too few dimensions", "batches of two sizes", "wrong shape without batches"],
        "No rows are no elements, which are served.": ["batch of zero"],
        "An index outside its table is the client's mistake.": ["a failing run"],
        "The last of several equal keys holds, as in most readers of JSON.": [
            "the same field twice"
        ],
    },
    "infer_binary": {
        "Triton takes it for no length, and the JSON for a tensor.": ["length that is no number"],
        "An input is called by its name, not 'raw_input'.": [
            "raw of one element less", "raw of one element more", "raw with half an element"
        ],
        _LENIENT: ["size as a string", "binary_data of another type"],
        _UTF8: ["strings", "strings that are no UTF-8 as JSON output"],
        _STRICT: ["length with a sign", "length beyond 32 bits"],
    },
    "classification": {
        _STRICT: ["count beyond 32 bits"],
        _BINARY: ["binary for all outputs"],
    },
    "parameters": {
        _LENIENT: [
            "priority as a string", "timeout as a string", "parameters null",
        ],
        _DOUBLE: ["custom list", "custom object", "custom null"],
        _STRICT: [
            "parameters of an input of another type", "parameters of an output of another type",
        ],
    },
    "compression": {
        "Names of encodings have no case.": ["GZIP in capitals in"],
        "Replies that fit a packet are not compressed.": ["binary tensors in gzip both ways"],
        "Of encodings that are equally welcome the better is taken.": [
            "either out, deflate first"
        ],
        _STRICT: ["gzip in that is none", "deflate in that is none", "raw deflate in"],
    },
    "control": {
        _BLAME: ["load with unknown parameters"],
        _BROKEN: [
            "the broken model", "inference of the broken model",
            "the broken model where models are fixed",
        ],
        _STRICT: ["unload with dependents of another type", "unload with bad JSON"],
        _READY: ["server ready without it"],
    },
    "shared_memory": {
        _BLAME: [
            "register beyond the file", "register an offset beyond the file", "register nothing",
            "output that does not fit",
        ],
        "The reserved prefix is refused by name, as newer Tritons do.": [
            "register with a reserved key"
        ],
        "One key may have several names.": ["register a second name for a key"],
        _LENIENT: ["input with a size in quotes"],
        _PART: ["input and output in a part", "output beyond a part"],
        "A region may begin anywhere.": ["register from within a page"],
    },
    "settings": {
        _LENIENT: ["trace rate as a number", "trace level as a string"],
        _STRICT: [
            "trace rate below zero", "trace level unknown", "trace setting unknown",
            "trace with a list", "log setting unknown", "log with a list",
        ],
        _TRACED: ["trace level", "trace levels"],
        _BLAME: ["log format unknown"],
    },
    "generate": {
        _DOUBLE: ["with a key that is a list", "with a key that is an object"],
        _STRICT: ["too large a number"],
    },
    "decoupled": {
        _CONFIG: ["config"],
        "An empty last response names the version as the others do.": [
            "stream of nothing with its end told", "stream with its end told"
        ],
        "An error has an error's status.": [
            "generate with two replies", "generate with no reply"
        ],
        "What fails before the first event is an error like others, not an event.": [
            "generate a stream with an error"
        ],
    },
    "grpc_admin": {
        _READY: [
            "ready", "not ready while a model could not be loaded", "health",
            "health of the service", "not ready with a broken model", "ready without it",
        ],
        "As the health protocol has it.": ["health of an unknown service"],
        _DONE: ["server metadata"],
        "The models' files have other names.": ["load with files of another type"],
        "A load with other files ends with them: what they added leaves no trace.": ["index"],
        _BLAME: [
            "load no model", "register beyond the file", "register without a name",
            "register no bytes",
        ],
        _TRACED: ["trace level", "trace of a model", "trace of a model as for all"],
        _STRICT: ["trace level unknown", "trace setting unknown", "log setting unknown"],
    },
    "grpc_infer": {
        _UTF8: ["strings", "strings, typed"],
        _WORDS: ["unknown input", "unknown datatype", "no datatype"],
        _LENIENT: [
            "timeout as an unsigned number", "sequence as an unsigned number",
            "custom unsigned number", "classes as an unsigned number",
        ],
        "No rows are no elements, which are served.": ["batch of zero"],
        _FIRST: ["huge shape", "batches of two sizes", "typed too few", "typed too many"],
        "An index outside its table is the client's mistake.": ["a failing run"],
        "Outputs in shared memory say where they are.": [
            "memory in and out", "memory for one output of two"
        ],
        _BLAME: ["memory out that does not fit"],
        "triton_grpc_error asks for real statuses, as newer Tritons do.": [
            "stream with real statuses, bad"
        ],
    },
}  # fmt: skip
"""Table, reason, names of cases."""


def reasons(table: str) -> dict[str, str]:
    """The reason by the case's name."""
    return {case: reason for reason, cases in ENTRIES.get(table, {}).items() for case in cases}
