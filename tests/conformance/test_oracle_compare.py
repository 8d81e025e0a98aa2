"""How answers are compared with Triton's: what counts as alike, and that what does not is seen."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("tritonclient.grpc")

from .oracle.case import Check, Grpc, Http, get, infer, post, tensor
from .oracle.compare import difference, is_error

CASE = get("a case", "/")


def http(document: Any, status: int = 200, **more: Any) -> dict[str, Any]:
    return {"status": status, "headers": {"content-type": "application/json"}, "json": document,
            **more}  # fmt: skip


def refused(text: str, status: int = 400) -> dict[str, Any]:
    return http({"error": text}, status)


ALIKE = [
    (http({"a": [1, 2.0]}), http({"a": [1, 2.0]})),
    (refused("[request id: <id_unknown>] no"), refused("no; try yes")),
    (refused("bad shape. NOTE: Setting a non-zero max_batch_size needs"), refused("bad shape")),
    ({**refused("no"), "headers": {"content-type": "text/plain"}}, refused("no")),
    ({"status": 200, "headers": {"content-type": "text/plain"}, "text": ""}, http({"live": True})),
    (http({"outputs": [{"name": "B"}, {"name": "A"}]}),
     http({"outputs": [{"name": "A"}, {"name": "B"}]})),
    ({"code": "OK", "replies": [
        {"outputs": [{"name": "B"}, {"name": "A"}], "raw_output_contents": ["b", "a"]}]},
     {"code": "OK", "replies": [
        {"outputs": [{"name": "A"}, {"name": "B"}], "raw_output_contents": ["a", "b"]}]}),
    ({"died": True}, refused("too large")),
]  # fmt: skip

UNLIKE = [
    (http({"a": 1}), http({"a": 2})),
    (http({"a": 1}), http({"a": 1, "b": 1})),
    (http({"a": [1]}), http({"a": [1, 1]})),
    (refused("no such model"), refused("no such input")),
    (refused("no", 404), refused("no", 400)),
    (refused("no"), http({})),
    (http({"a": 1}), http({"a": 1}, headers={"content-type": "text/plain"})),
    (http({}, binary="AAAA"), http({}, binary="AAAB")),
    (http({}, memory="AAAA"), http({}, memory="AAAB")),
    ({"code": "OK", "replies": [
        {"outputs": [{"name": "B"}, {"name": "A"}], "raw_output_contents": ["b", "a"]}]},
     {"code": "OK", "replies": [
        {"outputs": [{"name": "A"}, {"name": "B"}], "raw_output_contents": ["b", "a"]}]}),
    ({"code": "NOT_FOUND", "text": "x", "replies": []},
     {"code": "INTERNAL", "text": "x", "replies": []}),
    ({"died": True}, {"closed": "ConnectionResetError"}),
    (http([]), {"closed": "ConnectionResetError"}),
]  # fmt: skip


@pytest.mark.parametrize(("theirs", "ours"), ALIKE)
def test_alike(theirs: Any, ours: Any) -> None:
    assert difference(CASE, theirs, ours) == ""


@pytest.mark.parametrize(("theirs", "ours"), UNLIKE)
def test_unlike(theirs: Any, ours: Any) -> None:
    assert difference(CASE, theirs, ours)


@pytest.mark.parametrize(
    ("check", "theirs", "ours", "alike"),
    [
        ("status", refused("no"), refused("never"), True),
        ("status", refused("no"), refused("no", 404), False),
        ("error", refused("no"), {"closed": "BadStatusLine"}, True),
        ("error", refused("no"), http({}), False),
        ("shape", http({"a": 1, "b": ["x"]}), http({"a": 7, "b": []}), True),
        ("shape", http({"a": 1}), http({"a": "1"}), False),
        ("shape", http({"a": [{"b": 1}]}), http({"a": [{"c": 1}]}), False),
    ],
)
def test_how_near(check: Check, theirs: Any, ours: Any, alike: bool) -> None:
    assert (difference(get("a case", "/", check=check), theirs, ours) == "") == alike


def test_ignored_keys() -> None:
    case = get("a case", "/", ignore=("version",))
    theirs = http([{"name": "triton", "version": "2"}])
    assert difference(case, theirs, http([{"name": "triton", "version": "3"}])) == ""
    assert difference(case, theirs, http([{"name": "penstock", "version": "2"}]))


def test_errors_of_both_protocols() -> None:
    assert is_error(refused("no"))
    assert is_error({"code": "INTERNAL"})
    assert is_error({"closed": "x"})
    assert not is_error(http({}))
    assert not is_error({"code": "OK", "replies": []})


def test_bodies_of_cases() -> None:
    given = [tensor("A", "INT8", [1], binary_data_size=1)]
    case = infer("x", "m", given, binary=b"\1")
    assert (case.method, case.path) == ("POST", "/v2/models/m/infer")
    length = int(case.headers["Inference-Header-Content-Length"])
    assert case.body[length:] == b"\1"
    assert case.body[:length].startswith(b'{"inputs": [{"name": "A"')
    assert post("x", "/", "{").body == b"{"
    assert isinstance(case, Http)
    assert Grpc("x", "ServerLive").messages == ({},)
