"""config.pbtxt text, or the JSON of a load request, to a ``ModelConfig``.

Knows: protobuf's text and JSON parsers and their complaints. Must not know files or sessions: the
caller brings the text and says where it is from. Everything that is wrong with a configuration by
itself is found here or in ``model_config_read``; what disagrees with the model's artefact is found
by ``model_config_complete``.

Contract: any text gives a ``ModelConfig`` or a ``ConfigError``, nothing else.
"""

from __future__ import annotations

import difflib
import re
from typing import Any, Final, NoReturn

from google.protobuf import json_format, text_format

from penstock.server.model_config import ConfigError, ModelConfig
from penstock.server.model_config_read import read_message
from penstock.server.model_config_schema import POOL, ModelConfigMessage

TEXT_CHARACTERS_MAX: Final = 1 << 20
"""A configuration is written by people; a longer text is some other file."""

_OWNER = re.compile(r'(?:Message|Enum) type "(?P<type>[\w.]+)" (?:at "[^"]*" )?has no ')
_UNKNOWN = re.compile(r'has no (?:field named "(?P<field>[^"]*)"|value named (?P<value>\w+))')
_POSITION = re.compile(r"^\d+:\d+ : ")
_QUOTE_CHARACTERS_MAX: Final = 200


def parse_pbtxt(text: str, where: object, *, name: str = "") -> ModelConfig:
    """The configuration that ``text`` states, checked as far as it can be by itself.

    ``name`` is the model directory's: a configuration without a name gets it, another name is
    refused.

    Raises:
        ConfigError: with the line where there is one, and near names for an unknown field.
    """
    _check_length(text, where)
    message = ModelConfigMessage()
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        _refuse(where, "", _clean(str(error)), line=error.GetLine() or 0)
    except (ValueError, RecursionError) as error:  # lone surrogates, absurd numbers or nesting
        _refuse(where, "", _clean(str(error)))
    return read_message(message, where, name=name)


def parse_json(text: str, where: object, *, name: str = "") -> ModelConfig:
    """As ``parse_pbtxt``, from the JSON form that the model repository extension sends.

    Field names may be written as in config.pbtxt or in camel case, integers may be quoted.

    Raises:
        ConfigError: what is not such a document starts with "Invalid config override".
    """
    _check_length(text, where)
    if not text.lstrip().startswith("{"):
        _refuse(where, "Invalid config override: ", "it is not a JSON object")
    message = ModelConfigMessage()
    try:
        json_format.Parse(text, message)
    except (json_format.ParseError, ValueError, TypeError, AttributeError, RecursionError) as error:
        _refuse(where, "Invalid config override: ", _clean(str(error)))
    return read_message(message, where, name=name)


def _check_length(text: str, where: object) -> None:
    if len(text) > TEXT_CHARACTERS_MAX:
        reason = f"{len(text)} characters are too many for a model configuration"
        raise ConfigError(where, f"{reason} (at most {TEXT_CHARACTERS_MAX})")


def _clean(complaint: str) -> str:
    """Protobuf's words without the position, on one line, of bounded length, always printable."""
    words = " ".join(_POSITION.sub("", complaint).split())
    words = words.encode(errors="backslashreplace").decode()
    if words.startswith("'': "):  # it quotes the line, and there is none
        words = f"the text ends too early: {words[4:]}"
    if len(words) <= _QUOTE_CHARACTERS_MAX:
        return words
    half = _QUOTE_CHARACTERS_MAX // 2  # the quoted text comes first, what is wrong with it last
    return f"{words[:half]} ... {words[-half:]}"


def _refuse(where: object, prefix: str, complaint: str, *, line: int = 0) -> NoReturn:
    raise ConfigError(where, f"{prefix}{complaint}{_hint(complaint)}", line=line) from None


def _hint(complaint: str) -> str:
    """' Did you mean ...?' for a name that the schema lacks, else nothing."""
    unknown, owner = _UNKNOWN.search(complaint), _OWNER.search(complaint)
    if unknown is None or owner is None:
        return ""
    known = _names(owner["type"], is_enum=unknown["field"] is None)
    wrong = unknown["field"] or unknown["value"] or ""
    near = difflib.get_close_matches(wrong, known, n=3, cutoff=0.75)
    if not near:
        return f" It knows {', '.join(sorted(known))}."
    return f" Did you mean {' or '.join(near)}?"


def _names(type_name: str, *, is_enum: bool) -> list[str]:
    try:
        owner: Any
        if is_enum:
            owner = POOL.FindEnumTypeByName(type_name)
            return [value.name for value in owner.values]
        owner = POOL.FindMessageTypeByName(type_name)
        return [field.name for field in owner.fields]
    except KeyError:
        return []
