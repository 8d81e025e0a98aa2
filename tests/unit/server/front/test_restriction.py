"""Who may use a group of the API, and which web pages may use any."""

from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.server.front.cors import Cors, CorsOptions, check_origin, check_token
from penstock.server.front.openapi import OpenapiFront
from penstock.server.front.operation import json_operation
from penstock.server.front.restriction import GROUPS, Rule, parse_rules
from penstock.server.front.routes import Routes, refusal
from penstock.server.http_seam import EVENTS, JSON, Buffer, RequestHead, Responder
from penstock.server.transport.fake import Reply, Wire
from penstock.server.transport.http1 import Http1Connection
from penstock.server.transport.listener import Http1Listener

STATISTICS = json_operation("statistics", "Counts", {})


def give(responder: Responder, head: RequestHead, body: Buffer) -> None:
    responder.reply(200, JSON, (b"{}",), b"X-Own: 1\r\n")


def pour(responder: Responder, head: RequestHead, body: Buffer) -> None:
    responder.begin(200, EVENTS, b"X-Own: 1\r\n")
    assert not responder.congested
    responder.chunk((b"a", b"b"))
    responder.end()


def ask(routes: Routes, method: str, path: str, **headers: str) -> Reply:
    wire = Wire(Http1Listener(routes.resolve, Http1Connection, refusal=refusal))
    fields = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    wire.feed(f"{method} {path} HTTP/1.1\r\nHost: h\r\n{fields}\r\n".encode())
    (reply,) = wire.replies([method])
    return reply


def served(*rules: str, cors: CorsOptions | None = None) -> Routes:
    routes = Routes(parse_rules(rules), Cors(cors) if cors else None)
    routes.add("GET", "/v2/stats", give, describe=STATISTICS)
    routes.add("POST", "/v2/stats", give, describe=STATISTICS)
    routes.add("GET", "/graph", give, describe=STATISTICS)
    routes.add("GET", "/v2/pour", pour)
    return routes


# ---------------------------------------------------------------------- restriction


def test_rules() -> None:
    rules = parse_rules(["health, metadata:X-Key = s=cret ", "trace:k=v"])
    assert rules == {
        "health": Rule("X-Key", "s=cret"),
        "metadata": Rule("X-Key", "s=cret"),
        "trace": Rule("k", "v"),
    }
    assert parse_rules([]) == {}


@pytest.mark.parametrize(
    ("texts", "complaint"),
    [
        (["health"], "is not a rule"),
        (["health:key"], "is not a rule"),
        (["health:=v"], "is not a rule"),
        (["health:k="], "is not a rule"),
        (["health:a b=v"], "is not a word of HTTP"),
        (["nothing:k=v"], "unknown restricted api 'nothing'"),
        ([":k=v"], "unknown restricted api ''"),
        (["health,:k=v"], "unknown restricted api ''"),
        (["health:k=v", "trace,health:k=v"], "can not be specified in multiple config groups"),
        (["health,health:k=v"], "can not be specified in multiple config groups"),
    ],
)
def test_what_is_no_rule(texts: list[str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_rules(texts)


@pytest.mark.parametrize(
    ("given", "admitted"),
    [("v", True), (b"v", True), (None, False), ("", False), ("V", False), ("\udcff", False)],
)
def test_values_are_compared_exactly(given: Any, admitted: bool) -> None:
    assert Rule("k", "v").admits(given) is admitted


def test_every_group_can_be_restricted() -> None:
    rules = parse_rules([",".join(GROUPS) + ":k=v"])
    assert set(rules) == set(GROUPS)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "HEAD"])
def test_a_restricted_path_is_closed_whatever_the_method(method: str) -> None:
    routes = served("statistics:X-Key=v")
    for headers in ({}, {"X_Key": "w"}, {"Other": "v"}):
        reply = ask(routes, method, "/v2/stats", **headers)
        assert reply.status == 403
        if method != "HEAD":
            text = "This API is restricted, expecting header 'X-Key'"
            assert json.loads(reply.body) == {"error": text}
    reply = ask(routes, method, "/v2/stats", x_kEY="v")
    assert reply.status == (405 if method == "PUT" else 200)


def test_other_groups_stay_open() -> None:
    routes = served("trace:X-Key=v")
    assert ask(routes, "GET", "/v2/stats").status == 200
    assert ask(routes, "GET", "/v2/nothing").status == 404


def test_a_refusal_has_the_form_of_its_path() -> None:
    reply = ask(served("statistics:X-Key=v"), "GET", "/graph")
    assert (reply.status, reply.headers["content-type"]) == (403, "text/plain; charset=utf-8")


# ---------------------------------------------------------------------- web pages

ONE = CorsOptions(("https://a.example", "http://b.example:8080"))
ANY = CorsOptions(("*",), ("GET",), ("x-one", "x-two"), 7)


def test_off_unless_asked_for() -> None:
    reply = ask(served(), "GET", "/v2/stats", Origin="https://a.example")
    assert "access-control-allow-origin" not in reply.headers
    assert ask(served(), "OPTIONS", "/v2/stats", Origin="https://a.example").status == 405


def test_a_page_that_may() -> None:
    reply = ask(served(cors=ONE), "GET", "/v2/stats", Origin="http://b.example:8080")
    assert reply.status == 200
    assert reply.headers["access-control-allow-origin"] == "http://b.example:8080"
    assert reply.headers["vary"] == "Origin"
    assert "Inference-Header-Content-Length" in reply.headers["access-control-expose-headers"]
    assert reply.headers["x-own"] == "1"


@pytest.mark.parametrize("origin", ["https://c.example", "https://a.example.evil", "null", ""])
def test_a_page_that_may_not(origin: str) -> None:
    reply = ask(served(cors=ONE), "GET", "/v2/stats", Origin=origin)
    assert reply.status == 200
    assert "access-control-allow-origin" not in reply.headers
    assert reply.headers["vary"] == "Origin", "or a cache would give it to one that may"


def test_any_page() -> None:
    reply = ask(served(cors=ANY), "GET", "/v2/stats", Origin="https://x.example")
    assert reply.headers["access-control-allow-origin"] == "*"
    assert "vary" not in reply.headers


def test_errors_can_be_read_too() -> None:
    reply = ask(served(cors=ANY), "GET", "/v2/nothing", Origin="https://x.example")
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (404, "*")


def test_streams_can_be_read_too() -> None:
    reply = ask(served(cors=ANY), "GET", "/v2/pour", Origin="https://x.example")
    assert (reply.body, reply.headers["access-control-allow-origin"]) == (b"ab", "*")
    assert reply.headers["x-own"] == "1"


def test_asking_in_advance() -> None:
    asked = {
        "Origin": "https://a.example",
        "Access_Control_Request_Method": "POST",
        "Access_Control_Request_Headers": "content-type, x-y",
    }
    reply = ask(served(cors=ONE), "OPTIONS", "/v2/stats", **asked)
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers["access-control-allow-origin"] == "https://a.example"
    assert reply.headers["access-control-allow-methods"] == "GET, HEAD, POST"
    assert reply.headers["access-control-allow-headers"] == "content-type, x-y"
    assert reply.headers["access-control-max-age"] == "600"
    reply = ask(served(cors=ANY), "OPTIONS", "/v2/stats", **asked)
    assert reply.headers["access-control-allow-methods"] == "GET"
    assert reply.headers["access-control-allow-headers"] == "x-one, x-two"
    refused = ask(served(cors=ONE), "OPTIONS", "/v2/stats", **{**asked, "Origin": "https://c.d"})
    assert not [name for name in refused.headers if name.startswith("access-control")]


@pytest.mark.parametrize("text", ["example.org", "https://", "https://a/b", "", "https://a, b"])
def test_what_is_no_origin(text: str) -> None:
    with pytest.raises(ValueError, match="is not an origin"):
        check_origin(text)


def test_words() -> None:
    assert [check_origin(text) for text in ("*", "null", "https://a.b:1")] != []
    assert check_token("X-Key") == "X-Key"
    with pytest.raises(ValueError, match="word of HTTP"):
        check_token("a\r\nb")


# ---------------------------------------------------------------------- the description


def test_the_description_follows_the_routes() -> None:
    routes = served()
    OpenapiFront(routes, "1.2.3").add_to(routes)
    reply = ask(routes, "GET", "/openapi.json")
    document = json.loads(reply.body)
    assert (reply.status, document["openapi"]) == (200, "3.1.0")
    assert document["info"]["version"] == "1.2.3"
    assert set(document["paths"]) == {"/v2/stats", "/graph", "/openapi.json"}
    assert set(document["paths"]["/v2/stats"]) == {"get", "post"}
    told = document["paths"]["/graph"]["get"]
    assert set(told["responses"]) == {"200", "403"}
    assert list(told["responses"]["403"]["content"]) == ["text/plain"]
