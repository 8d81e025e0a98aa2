"""Whether two answers to one case are alike, as closely as the case asks for.

Knows the form of answers (``replay``), and what no client can tell apart: the request's id that
Triton puts before some texts, its advice behind some, and more words of ours behind the same text,
as clients look for a part of it. Outputs go by their names, so their order is free. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from .case import Case

_TEXTS: Final = ("error", "error_message", "text", "reason")
_BESIDE: Final = re.compile(r"^\[request id: [^]]*\] |\.? ?(NOTE: Setting a non-zero .*)?$")


def difference(case: Case, theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """What differs, in words; empty if nothing that matters does."""
    if "died" in theirs:  # whatever is answered is better
        return "" if "status" in ours or "code" in ours else _told("outcome", theirs, ours)
    if case.check == "error":
        return "" if is_error(theirs) == is_error(ours) else _told("outcome", theirs, ours)
    for key in ("closed", "status", "code"):
        if theirs.get(key) != ours.get(key):
            return _told(key, theirs, ours)
    if case.check == "status":
        return ""
    if case.check == "shape":
        return _shape(case.ignore, theirs, ours)
    for key in ("headers", "json", "events", "replies", "text", "binary", "memory"):
        left, right = ({key: _comparable(key, a, case.ignore)} for a in (theirs, ours))
        if not _alike(left, right):
            return f"theirs {left!r}, ours {right!r}"
    return ""


def _alike(theirs: Any, ours: Any) -> bool:
    """Equal, but for texts of errors, of which ours must hold theirs."""
    if isinstance(theirs, list) and isinstance(ours, list):
        return len(theirs) == len(ours) and all(map(_alike, theirs, ours))
    if not isinstance(theirs, dict) or not isinstance(ours, dict):
        return bool(theirs == ours)
    if theirs.keys() != ours.keys():
        return False
    return all(
        _says(theirs[k], ours[k]) if k in _TEXTS else _alike(theirs[k], ours[k]) for k in theirs
    )


def _says(theirs: Any, ours: Any) -> bool:
    if isinstance(theirs, str) and isinstance(ours, str):
        return _BESIDE.sub("", theirs) in ours
    return bool(theirs == ours)


def is_error(answer: dict[str, Any]) -> bool:
    return (
        "closed" in answer or answer.get("status", 200) != 200 or answer.get("code", "OK") != "OK"
    )


def _comparable(key: str, answer: dict[str, Any], ignore: Sequence[str]) -> Any:
    value = answer.get(key)
    if key == "headers" and (is_error(answer) or _is_bare(answer)):
        # Triton says text/plain of errors, which are JSON, and of nothing.
        return {name: text for name, text in (value or {}).items() if name != "content-type"}
    if key in ("json", "text") and _is_bare(answer):
        return None
    if key == "replies":
        return [_by_name(_without(ignore, reply)) for reply in value or ()]
    return _by_name(_without(ignore, value)) if key == "json" else _without(ignore, value)


def _is_bare(answer: dict[str, Any]) -> bool:
    """Whether all is in the status: no body, or the health document that KServe asks for."""
    document = answer.get("json")
    if isinstance(document, dict) and document:
        return set(document) <= {"live", "ready", "name"}
    return document in (None, {}) and not answer.get("text") and "status" in answer


def _by_name(message: Any) -> Any:
    """The message with its outputs in the order of their names."""
    if not isinstance(message, dict) or not isinstance(message.get("outputs"), list):
        if isinstance(message, dict) and "infer_response" in message:
            return {**message, "infer_response": _by_name(message["infer_response"])}
        return message
    outputs = message["outputs"]
    order = sorted(range(len(outputs)), key=lambda i: str(outputs[i].get("name")))
    sorted_ = {**message, "outputs": [outputs[i] for i in order]}
    raw = message.get("raw_output_contents")
    if raw and len(raw) == len(outputs):
        sorted_["raw_output_contents"] = [raw[i] for i in order]
    return sorted_


def _without(ignore: Sequence[str], value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without(ignore, v) for k, v in value.items() if k not in ignore}
    if isinstance(value, list):
        return [_without(ignore, item) for item in value]
    return value


def _shape(ignore: Sequence[str], theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    for key in ("json", "replies", "events"):
        left, right = (
            _outline(_without(ignore, theirs.get(key))),
            _outline(_without(ignore, ours.get(key))),
        )
        if not _fits(left, right):
            return f"{key}: theirs {left!r}, ours {right!r}"
    return ""


def _outline(value: Any) -> Any:
    """Keys and types; of a list its first element."""
    if isinstance(value, dict):
        return {k: _outline(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_outline(item) for item in value[:1]]
    return "null" if value is None else type(value).__name__


def _fits(left: Any, right: Any) -> bool:
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_fits(left[k], right[k]) for k in left)
    if isinstance(left, list) and isinstance(right, list):
        return not left or not right or _fits(left[0], right[0])
    return bool(left == right)


def _told(what: str, theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    def words(answer: dict[str, Any]) -> Any:
        told = {k: answer[k] for k in ("died", "closed", "status", "code", "text") if k in answer}
        return told | ({"json": answer["json"]} if is_error(answer) and "json" in answer else {})

    return f"{what}: theirs {words(theirs)!r}, ours {words(ours)!r}"
