"""Large messages of strings over gRPC: decoded beside the loop, answered like any others."""

import threading

import pytest

from penstock.protocol.errors import Code, PenstockError
from penstock.protocol.oip_proto import RequestDecoder
from penstock.server.front.grpc_large import INLINE_MESSAGE_BYTES_MAX
from penstock.server.front.grpc_methods import table
from penstock.server.front.grpc_oip import GrpcOipFront
from penstock.server.grpc_schema import METHODS
from penstock.server.shared_memory import SharedMemory

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
LONG = b"x" * (INLINE_MESSAGE_BYTES_MAX // 4)
VALUES = [LONG, b"", LONG, b"yz", LONG, LONG]


@pytest.fixture
async def front(repository):
    return GrpcOipFront(await repository({"text/1": ({"dtype": "BYTES", "shape": "-1"}, "")}))


@pytest.fixture
def server(rpc, front):
    return rpc(table(front.methods()))


@pytest.fixture
def threads(monkeypatch):
    """The threads that decoded, in order."""
    found, decode = [], RequestDecoder.decode

    def noted(self, message):
        found.append(threading.current_thread())
        return decode(self, message)

    monkeypatch.setattr(RequestDecoder, "decode", noted)
    return found


def asked(values, id="", typed=False, shm=""):
    tensor = {"name": "INPUT0", "datatype": "BYTES", "shape": [1, len(values)]}
    fields = {"model_name": "text", "id": id, "inputs": [tensor]}
    if typed:
        tensor["contents"] = {"bytes_contents": values}
    else:
        fields["raw_input_contents"] = [
            b"".join(len(value).to_bytes(4, "little") + value for value in values)
        ]
    if shm:
        where = {"shared_memory_region": {"string_param": shm},
                 "shared_memory_byte_size": {"int64_param": 8}}  # fmt: skip
        fields["outputs"] = [{"name": "OUTPUT0", "parameters": where}]
    return fields


def packed(fields):
    return METHODS[INFER].request(**fields).SerializeToString()


def aside(thread):
    return thread is not threading.main_thread()


@pytest.mark.parametrize("typed", [False, True])
async def test_large_ones_are_decoded_aside(server, threads, typed):
    large = await server.unary(INFER, **asked(VALUES, typed=typed))
    small = await server.unary(INFER, **asked([b"", b"yz"], typed=typed))
    assert large.raw_output_contents == asked(VALUES)["raw_input_contents"]
    assert small.raw_output_contents == asked([b"", b"yz"])["raw_input_contents"]
    assert [aside(thread) for thread in threads] == [True, False]


async def test_their_faults_are_told(server, threads):
    fields = asked(VALUES)
    fields["inputs"][0]["shape"] = [1, 7]
    with pytest.raises(PenstockError, match="expected 7 string elements") as caught:
        await server.unary(INFER, **fields)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert [aside(thread) for thread in threads] == [True]


async def test_shared_memory_is_the_loops(rpc, front, threads):
    shared = GrpcOipFront(front.gateway, regions=SharedMemory(True))
    with pytest.raises(PenstockError, match="region"):
        await rpc(table(shared.methods())).unary(INFER, **asked(VALUES, shm="region"))
    assert [aside(thread) for thread in threads] == [True, False]


async def test_without_shared_memory_the_loop_is_not_needed(server, threads):
    with pytest.raises(PenstockError, match="shared memory is disabled"):
        await server.unary(INFER, **asked(VALUES, shm="region"))
    assert [aside(thread) for thread in threads] == [True]


async def test_a_client_that_leaves_meanwhile(server, front, fake_call, fake_head, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    class Slow:
        @property
        def decoder(self):
            return self

        def decode(self, message):
            begun.set()
            go_on.wait(10)
            raise AssertionError("nobody waits for this")

    monkeypatch.setattr(front.large, "_own", Slow())
    call = fake_call()
    pending = server.methods[INFER].unary(call, fake_head(INFER), packed(asked(VALUES)))
    await server.until(begun.is_set)
    pending.cancel()
    go_on.set()
    await server.until(lambda: front.large._offload._waiting == 0)
    assert not call.ended


async def test_a_stream_keeps_its_order(server, threads):
    talk = server.stream(STREAM)
    talk.say(**asked(VALUES, "first"))
    assert talk.stream.full  # so that the transport keeps what comes behind
    assert talk.call.resumed == 0
    await server.until(lambda: talk.call.resumed == 1)
    talk.say(**asked([b"yz"], "second"))
    heard = await talk.until(2)
    assert [reply.infer_response.id for reply in heard] == ["first", "second"]
    assert [aside(thread) for thread in threads] == [True, False]


async def test_a_stream_whose_client_says_no_more(server):
    talk = server.stream(STREAM)
    talk.say(**asked(VALUES, "last"))
    talk.stream.half_closed()
    assert not talk.call.ended
    await server.until(lambda: talk.call.ended)
    (reply,) = talk.heard
    assert (reply.error_message, reply.infer_response.id) == ("", "last")


async def test_a_fault_in_a_stream(server):
    talk = server.stream(STREAM)
    fields = asked(VALUES)
    fields["inputs"][0]["shape"] = [1, 7]
    talk.say(**fields)
    (reply,) = await talk.until(1)
    assert "expected 7 string elements" in reply.error_message
    assert not talk.stream.full
    talk.stream.half_closed()
    assert talk.call.ended


async def test_a_stream_that_is_cancelled_meanwhile(server, front):
    talk = server.stream(STREAM)
    talk.say(**asked(VALUES))
    talk.stream.cancel()
    await server.until(lambda: front.large._offload._waiting == 0)
    assert talk.heard == []
    assert not talk.call.ended
