"""Whole calls as generators, driven by hand: no sockets, no sleeping, a clock that is set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from penstock.client import endpoint
from penstock.client.errors import ConnectError, DeadlineExceeded, Unavailable
from penstock.client.exchange import PROTOCOLS, Call
from penstock.client.flow import Flow, Flows
from penstock.client.request import RequestBuilder
from penstock.client.retry import Retrier, RetryPolicy
from penstock.protocol import dtype as dt
from penstock.protocol.errors import Code, InferError
from penstock.protocol.limits import DEFAULT
from penstock.protocol.message import InferReply, ModelMetadata, Signature, TensorSpec

X = np.zeros(2, np.float32)
Answer = Callable[[Call[Any]], Any]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Play:
    """Drives a flow with scripted answers; a pause moves the clock."""

    def __init__(self, protocol: str, policy: RetryPolicy | None = None) -> None:
        self.clock = Clock()
        exchange = PROTOCOLS[protocol](endpoint.parse("http://h"), {}, DEFAULT)
        retrier = Retrier(policy or RetryPolicy(backoff_s_first=1.0), lambda: 0.5)
        self.flows = Flows(exchange, retrier, self.clock)
        self.builder = RequestBuilder()
        self.targets: list[str] = []
        self.pauses: list[float] = []

    def infer(self, inputs: Any, *, outputs: Any = None, timeout: float = 10.0) -> Flow[Any]:
        request = self.builder.build("m", inputs, outputs=outputs or (), timeout_s=timeout)
        self.request = request
        return self.flows.infer(request, self.clock() + timeout, all_outputs=outputs is None)

    def drive(self, flow: Flow[Any], *answers: Any) -> Any:
        todo = list(answers)
        try:
            step = next(flow)
            while True:
                if isinstance(step, Call):
                    self.targets.append(step.route.target)
                    answer = todo.pop(0)
                    step = (
                        flow.throw(answer) if isinstance(answer, Exception) else flow.send(answer)
                    )
                else:
                    self.pauses.append(step)
                    self.clock.now += step
                    step = flow.send(None)
        except StopIteration as stop:
            assert not todo
            return stop.value


def metadata(*outputs: str, inputs: tuple[str, ...] = ("x",)) -> ModelMetadata:
    def specs(names: tuple[str, ...]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name, dt.FP32, (-1,)) for name in names)

    return ModelMetadata("m", "1", ("1",), "", specs(inputs), specs(outputs))


def reply(*names: str) -> InferReply:
    return InferReply(Signature([TensorSpec(n, dt.FP32, (2,)) for n in names]), [X] * len(names))


def test_retries_pause_and_tell_the_server_what_time_is_left() -> None:
    play = Play("v2")
    busy = Unavailable(Code.UNAVAILABLE, "", retry_after_s=2.0)
    result = play.drive(play.infer({"x": X}), busy, ConnectError("gone"), reply("y"))
    assert list(result) == ["y"]
    assert play.pauses == [2.5, 1.0]
    assert play.request.timeout_us == 6_500_000


def test_the_deadline_ends_the_retries() -> None:
    play = Play("v2")
    with pytest.raises(ConnectError) as caught:
        play.drive(play.infer({"x": X}, timeout=0.6), ConnectError("a"), ConnectError("b"))
    assert caught.value.message == "b"
    assert caught.value.__notes__ == ["after 2 attempts"]
    flow = play.infer({"x": X}, timeout=0.6)
    play.clock.now += 1
    with pytest.raises(DeadlineExceeded):
        play.drive(flow)


def test_v2_names_come_with_the_reply() -> None:
    play = Play("v2")
    assert list(play.drive(play.infer({"x": X}), reply("a", "b"))) == ["a", "b"]
    assert play.targets == ["/v2/models/m/infer"]


def test_v2_asks_for_the_name_of_the_only_input() -> None:
    play = Play("v2")
    play.drive(play.infer(X), metadata("y", inputs=("image",)), reply("y"))
    play.drive(play.infer(X), reply("y"))
    assert play.request.signature.tensors[0].name == "image"
    assert play.targets == ["/v2/models/m", *["/v2/models/m/infer"] * 2]


def test_one_array_for_several_inputs() -> None:
    play = Play("v2")
    with pytest.raises(ValueError, match=r"\['a', 'b'\]"):
        play.drive(play.infer(X), metadata("y", inputs=("a", "b")))


def test_graphpipe_asks_for_all_declared_outputs_by_name() -> None:
    play = Play("graphpipe")
    assert list(play.drive(play.infer(X), metadata("a", "b"), reply("", ""))) == ["a", "b"]
    assert [output.name for output in play.request.signature.outputs] == ["a", "b"]
    assert play.request.signature.tensors[0].name == ""
    first = play.request.signature
    play.drive(play.infer(X), reply("", ""))
    assert play.request.signature is first


@pytest.mark.parametrize(
    ("outputs", "given", "names"),
    [
        (("b", "a"), 2, ["b", "a"]),
        ((), 2, ["output_0", "output_1"]),
        (("a",), 2, ["output_0", "output_1"]),
        ((), 0, []),
    ],
)
def test_graphpipe_names_by_position(outputs: Any, given: int, names: list[str]) -> None:
    play = Play("graphpipe")
    result = play.drive(play.infer({"x": X}, outputs=outputs), reply(*[""] * given))
    assert list(result) == names
    if given == 1:
        assert result.array is X


def test_a_model_whose_outputs_changed_names() -> None:
    play = Play("graphpipe")
    play.drive(play.infer(X), metadata("old"), reply(""))
    unknown = InferError(Code.INVALID_ARGUMENT, "no output 'old'")
    assert list(play.drive(play.infer(X), unknown, metadata("new"), reply(""))) == ["new"]
    assert list(play.drive(play.infer(X), reply(""))) == ["new"]


def test_a_bad_request_is_not_repeated_when_nothing_changed() -> None:
    play = Play("graphpipe")
    bad = InferError(Code.INVALID_ARGUMENT, "shape")
    with pytest.raises(InferError, match="shape"):
        play.drive(play.infer(X), metadata("y"), bad)
    with pytest.raises(InferError, match="shape"):
        play.drive(play.infer(X), bad, metadata("y"))


def test_result() -> None:
    play = Play("v2")
    result = play.drive(play.infer({"x": X}), reply("y"))
    assert result["y"] is X
    assert result.array is X
    assert len(result) == 1
    assert repr(result) == "<Result y: float32[2]>"
    with pytest.raises(KeyError, match="'z' is not among"):
        result["z"]
    with pytest.raises(ValueError, match="2 outputs"):
        _ = play.drive(play.infer({"x": X}), reply("a", "b")).array
