"""ModelInfer and ModelStreamInfer on the seam, against fake models."""

import asyncio
import re
import time

import numpy as np
import pytest

from penstock.protocol.errors import Code, InferError, PenstockError
from penstock.server.front import grpc_stream
from penstock.server.front.grpc_methods import table
from penstock.server.front.grpc_oip import GrpcOipFront
from penstock.server.grpc_schema import METHODS

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
DECOUPLED = "model_transaction_policy { decoupled: true }"
MODELS = {
    "add/1": ({"kind": "add_sub", "shape": "2"}, "version_policy { all {} }"),
    "add/3": ({"kind": "add_sub", "shape": "2"}, "version_policy { all {} }"),
    "one/1": ({"shape": "2"}, ""),
    "slow/1": ({"kind": "slow", "shape": "2"}, ""),
    "fail/1": ({"kind": "fail", "shape": "2"}, ""),
    "repeat/1": ({"kind": "repeat", "shape": "1", "times": "-1"}, DECOUPLED),
}


@pytest.fixture
async def gateway(repository):
    return await repository(MODELS)


@pytest.fixture
def front(gateway):
    return GrpcOipFront(gateway)


@pytest.fixture
def server(rpc, front):
    return rpc(table(front.methods()))


def asked(model="one", *, id="", version="", rows=1, value=1, names=("INPUT0",), width=2, **params):
    """The fields of a ModelInferRequest with INT32 inputs of ``rows`` rows."""
    array = np.full((rows, width), value, np.int32)
    return {
        "model_name": model,
        "model_version": version,
        "id": id,
        "inputs": [{"name": n, "datatype": "INT32", "shape": array.shape} for n in names],
        "raw_input_contents": [array.tobytes()] * len(names),
        "parameters": {name: parameter(value) for name, value in params.items()},
    }


def parameter(value):
    if isinstance(value, bool):
        return {"bool_param": value}
    return {"int64_param": value} if isinstance(value, int) else {"string_param": value}


def values(response, index=0):
    return np.frombuffer(response.raw_output_contents[index], np.int32).tolist()


# --- ModelInfer


async def test_a_reply(server):
    reply = await server.unary(INFER, **asked("add", id="seven", names=("INPUT0", "INPUT1")))
    assert (reply.model_name, reply.model_version, reply.id) == ("add", "3", "seven")
    assert [(o.name, o.datatype, list(o.shape)) for o in reply.outputs] == [
        ("OUTPUT0", "INT32", [1, 2]),
        ("OUTPUT1", "INT32", [1, 2]),
    ]
    assert (values(reply), values(reply, 1)) == ([2, 2], [0, 0])


async def test_a_version_is_chosen(server):
    both = ("INPUT0", "INPUT1")
    reply = await server.unary(INFER, **asked("add", version="1", names=both))
    assert reply.model_version == "1"


@pytest.mark.parametrize(
    ("fields", "code", "text"),
    [
        (asked("nope"), Code.NOT_FOUND, "Request for unknown model: 'nope' is not found"),
        (asked("one", version="9"), Code.NOT_FOUND, "version 9 is not found"),
        (asked("one", width=3), Code.INVALID_ARGUMENT, "unexpected shape for input 'INPUT0'"),
        (asked("fail"), Code.INTERNAL, "this model always fails"),
        (asked("one", names=()), Code.INVALID_ARGUMENT, "expected 1 inputs but got 0 inputs"),
        (
            asked("repeat", width=1),
            Code.UNIMPLEMENTED,
            "ModelInfer RPC doesn't support models with decoupled transaction policy",
        ),
    ],
)
async def test_errors_have_a_code_and_a_text(server, fields, code, text):
    with pytest.raises(PenstockError, match=re.escape(text)) as caught:
        await server.unary(INFER, **fields)
    assert caught.value.code is code


async def test_bytes_that_are_no_message(server, fake_call, fake_head):
    call = fake_call()
    assert server.methods[INFER].unary(call, fake_head(INFER), b"\xff\xff\xff") is None
    assert call.error.code is Code.INVALID_ARGUMENT


async def test_the_deadline_of_the_call_reaches_the_job(server, fake_call, fake_head):
    call = fake_call(deadline_ns=time.monotonic_ns() - 1)
    message = grpc_message(INFER, asked("slow"))
    server.methods[INFER].unary(call, fake_head(INFER), message)
    await server.until(lambda: call.ended)
    assert (call.error.code, call.error.message) == (Code.DEADLINE_EXCEEDED, "Deadline Exceeded")


async def test_what_is_returned_cancels_the_job(server, gateway, fake_call, fake_head):
    call = fake_call()
    job = server.methods[INFER].unary(call, fake_head(INFER), grpc_message(INFER, asked("slow")))
    job.cancel()
    await asyncio.sleep(0.1)
    assert not call.ended
    assert gateway.models.find("slow").lane.in_flight == 0


async def test_a_full_queue_is_unavailable_as_in_triton(server, gateway, monkeypatch):
    def refuse(*args):
        raise InferError(Code.RESOURCE_EXHAUSTED, "Exceeds maximum queue size of 2 for model 'one'")

    monkeypatch.setattr(gateway, "infer", refuse)
    with pytest.raises(PenstockError, match="Exceeds maximum queue size") as caught:
        await server.unary(INFER, **asked())
    assert caught.value.code is Code.UNAVAILABLE


async def test_a_server_that_goes_says_so(server, gateway):
    gateway.draining = True
    with pytest.raises(PenstockError) as caught:
        await server.unary(INFER, **asked())
    assert caught.value.code is Code.UNAVAILABLE
    assert caught.value.message == (
        "GRPC server is shutting down and has stopped accepting new requests"
    )


def grpc_message(path, fields):
    return METHODS[path].request(**fields).SerializeToString()


# --- forwarded metadata


@pytest.mark.parametrize("path", [INFER, STREAM])
async def test_metadata_that_match_become_parameters(gateway, rpc, fake_head, monkeypatch, path):
    front = GrpcOipFront(gateway, forward=re.compile("^x-|team"))
    server = rpc(table(front.methods()))
    seen = []
    infer = gateway.infer

    def spy(request, *rest):
        seen.append(dict(request.parameters))
        return infer(request, *rest)

    monkeypatch.setattr(gateway, "infer", spy)
    head = fake_head(path, {"x-a": "1", "x-b": "2", "team": "blue", "no": "", "my-x-c": "no"})
    fields = asked(team="its own", n=3)
    for _ in range(2):
        if path == INFER:
            await server.unary(path, head, **fields)
        else:
            talk = server.stream(path, head)
            talk.say(**fields)
            await talk.until(1)
    assert seen == [{"x-a": "1", "x-b": "2", "team": "blue", "n": 3}] * 2


# --- ModelStreamInfer


async def test_many_requests_in_one_stream(server):
    talk = server.stream(STREAM)
    for i in range(20):
        talk.say(**asked(id=str(i), value=i))
    talk.stream.half_closed()
    heard = await talk.until(20)
    assert {r.infer_response.id: values(r.infer_response) for r in heard} == {
        str(i): [i, i] for i in range(20)
    }
    for reply in heard:
        assert reply.error_message == ""
        assert reply.infer_response.parameters["triton_final_response"].bool_param
    assert talk.call.ended
    assert talk.call.error is None


async def test_the_quick_overtake_the_slow(server):
    talk = server.stream(STREAM)
    talk.say(**asked("slow", id="slow"))
    talk.say(**asked("one", id="quick"))
    heard = await talk.until(2)
    assert [r.infer_response.id for r in heard] == ["quick", "slow"]
    assert not talk.call.ended
    talk.stream.half_closed()
    assert talk.call.ended


async def test_an_error_ends_its_request_only(server):
    talk = server.stream(STREAM)
    talk.say(**asked("nope", id="lost"))
    talk.say(b"\xff\xff")
    talk.say(**asked("fail", id="broken"))
    talk.say(**asked(id="good"))
    heard = await talk.until(4)
    said = {r.infer_response.id: r.error_message for r in heard}
    assert said == {
        "lost": "Request for unknown model: 'nope' is not found",
        "": heard[1].error_message,
        "broken": "this model always fails",
        "good": "",
    }
    assert heard[1].error_message
    assert not talk.call.ended


async def test_errors_as_the_status_of_the_call(server, gateway, fake_head):
    talk = server.stream(STREAM, fake_head(STREAM, {"triton_grpc_error": "true"}))
    talk.say(**asked("slow"))
    talk.say(**asked("nope"))
    assert talk.call.error.code is Code.NOT_FOUND
    assert gateway.models.find("slow").lane.in_flight == 0
    talk.say(**asked())
    talk.stream.cancel()
    assert talk.call.messages == []


async def test_parts_of_a_decoupled_model(server):
    talk = server.stream(STREAM)
    talk.say(**asked("repeat", id="three", width=1, value=3))
    heard = await talk.until(3)
    for reply in heard:
        response = reply.infer_response
        assert (response.id, response.model_name, values(response)) == ("three", "repeat", [3])
        assert "triton_final_response" in response.parameters
        assert not response.parameters["triton_final_response"].bool_param
    talk.stream.half_closed()
    await server.until(lambda: talk.call.ended)
    assert len(talk.heard) == 3


@pytest.mark.parametrize("count", [0, 2])
async def test_the_end_of_a_decoupled_model_if_asked_for(server, count):
    talk = server.stream(STREAM)
    talk.say(
        **asked("repeat", id="x", width=1, value=count, triton_enable_empty_final_response=True)
    )
    last = (await talk.until(count + 1))[count].infer_response
    assert (last.id, last.model_name, last.model_version) == ("x", "repeat", "1")
    assert not last.outputs
    assert last.parameters["triton_final_response"].bool_param
    talk.stream.half_closed()
    assert talk.call.ended


async def test_a_client_that_does_not_keep_up_holds_the_model_back(server, gateway, fake_call):
    call = fake_call()
    call.congested = True
    talk = server.stream(STREAM, call=call)
    talk.say(**asked("repeat", width=1, value=500))
    await asyncio.sleep(0.05)
    assert 0 < len(call.messages) < 20
    call.congested = False
    talk.stream.drained()
    await talk.until(500)
    talk.stream.half_closed()
    await server.until(lambda: call.ended)


async def test_a_stream_takes_so_many_requests_and_no_more(server, monkeypatch):
    monkeypatch.setattr(grpc_stream, "REQUESTS_MAX", 3)
    talk = server.stream(STREAM)
    for i in range(3):
        assert not talk.stream.full
        talk.say(**asked("slow", id=str(i)))
    assert talk.stream.full
    assert talk.call.resumed == 0
    await talk.until(3)
    assert not talk.stream.full
    assert talk.call.resumed == 1


async def test_a_client_that_leaves_cancels_its_requests(server, gateway):
    talk = server.stream(STREAM)
    talk.say(**asked("slow"))
    talk.say(**asked("repeat", width=1, value=1 << 30))
    await talk.until(1)
    talk.stream.cancel()
    assert gateway.models.find("slow").lane.in_flight == 0
    assert gateway.models.find("repeat").lane.in_flight == 0
    count = len(talk.call.messages)
    await asyncio.sleep(0.1)
    assert len(talk.call.messages) == count


async def test_idle_streams_end_with_the_server_and_busy_ones_finish(server, front, gateway):
    idle, busy = server.stream(STREAM), server.stream(STREAM)
    busy.say(**asked("slow", id="last"))
    gateway.draining = True
    front.drain()
    assert idle.call.error.code is Code.UNAVAILABLE
    assert not busy.call.ended
    busy.say(**asked(id="late"))
    heard = await busy.until(2)
    assert {r.infer_response.id: r.error_message for r in heard} == {
        "late": "GRPC server is shutting down and has stopped accepting new requests",
        "last": "",
    }
    front.drain()
    assert busy.call.error.code is Code.UNAVAILABLE
