"""Which endpoint gets a request, what it learns from the path, and what the others are told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.server.front.routes import Routes, refusal
from penstock.server.transport.head import Head


def head(method: str, path: str) -> Head:
    made = Head()
    made.method = method
    made.path = path
    return made


class Answer:
    def reply(
        self, status: int, content_type: str, buffers: Any, fields: bytes = b"", **_: Any
    ) -> None:
        self.status = status
        self.content_type = content_type
        self.body = b"".join(buffers)
        self.fields = fields


def endpoint(name: str) -> Any:
    def answer(responder: Any, head: Any, body: Any) -> None:
        responder.reply(200, "", (name.encode(),))

    return answer


@pytest.fixture
def routes() -> Routes:
    def captured(head: Any, parts: dict[str, str]) -> dict[str, str]:
        return parts

    table = Routes()
    table.add("GET", "/", endpoint("root"))
    table.add("GET", "/m/all", endpoint("all"))
    table.add("GET", "/m/{model}", endpoint("model"), captured)
    table.add("POST", "/m/{model}", endpoint("post"), captured)
    table.add("PUT", "/m/{model}", endpoint("post"), captured)
    table.add("GET", "/m/{model}/versions/{version}", endpoint("version"), captured)
    table.add("POST", "/a.b", endpoint("dot"))
    return table


def ask(routes: Routes, method: str, path: str) -> tuple[Answer, Head]:
    asked, answer = head(method, path), Answer()
    found: Any = routes.resolve(asked)
    found(answer, asked, b"")
    return answer, asked


@pytest.mark.parametrize(
    ("method", "path", "name", "memo"),
    [
        ("GET", "/", "root", None),
        ("HEAD", "/", "root", None),
        ("GET", "/m/all", "all", None),
        ("GET", "/m/x", "model", {"model": "x"}),
        ("POST", "/m/all", "post", {"model": "all"}),
        ("PUT", "/m/x", "post", {"model": "x"}),
        ("HEAD", "/m/x", "model", {"model": "x"}),
        ("GET", "/m/a%20b%2Fc", "model", {"model": "a b/c"}),
        ("GET", "/m/%C3%A9", "model", {"model": "é"}),
        ("GET", "/m/%ff%zz", "model", {"model": "\ufffd%zz"}),
        ("GET", "/m/..", "model", {"model": ".."}),
        ("GET", "/m/x/versions/12", "version", {"model": "x", "version": "12"}),
        ("POST", "/a.b", "dot", None),
    ],
)
def test_found(routes: Routes, method: str, path: str, name: str, memo: Any) -> None:
    answer, asked = ask(routes, method, path)
    assert (answer.status, answer.body) == (200, name.encode())
    assert asked.memo == memo


@pytest.mark.parametrize(
    "path",
    ["", "*", "//", "/m", "/m/", "/m/x/", "/m/x/versions/", "/m/x/versions/1a", "/m/x/versions/-1",
     "/m/x/versions/١", "/axb", "/M/x", " /"],
)  # fmt: skip
def test_not_found(routes: Routes, path: str) -> None:
    answer, _ = ask(routes, "GET", path)
    assert (answer.status, answer.body) == (404, b"Not Found\n")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/", b"GET, HEAD"),
        ("DELETE", "/m/x", b"GET, POST, PUT, HEAD"),
        ("OPTIONS", "/m/x/versions/1", b"GET, HEAD"),
        ("GET", "/a.b", b"POST"),
        ("HEAD", "/a.b", b"POST"),
    ],
)
def test_wrong_method(routes: Routes, method: str, path: str, allow: bytes) -> None:
    answer, _ = ask(routes, method, path)
    assert (answer.status, answer.body) == (405, b"Method Not Allowed\n")
    assert answer.fields == b"Allow: " + allow + b"\r\n"


@pytest.mark.parametrize("path", ["/v2", "/v2/", "/v2/nothing"])
def test_v2_gets_json(routes: Routes, path: str) -> None:
    answer, _ = ask(routes, "GET", path)
    assert (answer.status, answer.content_type) == (404, "application/json")
    assert json.loads(answer.body) == {"error": "Not Found"}


def test_v2_gets_json_for_a_wrong_method() -> None:
    table = Routes()
    table.add("GET", "/v2", endpoint("v2"))
    answer, _ = ask(table, "POST", "/v2")
    assert (answer.status, json.loads(answer.body)) == (405, {"error": "Method Not Allowed"})


def test_refusals_of_the_transport() -> None:
    assert refusal(None, "text") == ("text/plain; charset=utf-8", b"text\n")
    assert refusal(head("POST", "/graphpipe/a"), "text")[1] == b"text\n"
    kind, body = refusal(head("POST", "/v2/models/a/infer"), 'a "quoted"\ntext')
    assert (kind, json.loads(body)) == ("application/json", {"error": 'a "quoted"\ntext'})
