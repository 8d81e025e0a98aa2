"""What the protobuf codec costs, beside google.protobuf. Run as a module; prints a Markdown table.

Both do what a server must: decoding ends in names, shapes, parameters and NumPy arrays, encoding
begins with arrays and ends in buffers for a socket. google.protobuf comes with tritonclient's
messages. One thread, no sockets, no model; both sides in turn, round after round.

Knows no server.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import timeit
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from penstock.protocol import dtype as dt
from penstock.protocol.message import InferReply, InferRequest, Signature, TensorSpec
from penstock.protocol.oip_proto import ReplyEncoder, RequestDecoder, RequestEncoder

Call = Callable[[], object]
SECONDS_A_ROUND = 0.05
SIZES: dict[str, tuple[str, list[tuple[int, ...]]]] = {
    "add_sub (2 x INT32 [1,16])": ("INT32", [(1, 16)] * 2),
    "3 KB (FP32 [1,784])": ("FP32", [(1, 784)]),
    "600 KB (FP32 [1,3,224,224])": ("FP32", [(1, 3, 224, 224)]),
    "16 MB (FP32 [4194304])": ("FP32", [(4194304,)]),
}


class Case(NamedTuple):
    """One row: the same work by the library and by ours."""

    name: str
    library: Call
    ours: Call


def made(datatype: str, shapes: Sequence[tuple[int, ...]], **named: Any) -> InferRequest:
    """A request with tensors of these shapes."""
    specs = [TensorSpec(f"INPUT{i}", dt.BY_NAME[datatype], s) for i, s in enumerate(shapes)]
    arrays = [np.ones(s, dt.BY_NAME[datatype].numpy) for s in shapes]
    return InferRequest(Signature(specs), arrays, "model", **named)


def message(request: InferRequest) -> bytes:
    return b"".join(RequestEncoder().encode(request))


def library_decoder(messages: Iterator[bytes]) -> Call:
    """Decodes the next message to everything that a server needs of it."""
    kind = import_module("tritonclient.grpc.service_pb2").ModelInferRequest

    def decode() -> object:
        read = kind.FromString(next(messages))
        parameters = {
            key: getattr(value, value.WhichOneof("parameter_choice"))
            for key, value in read.parameters.items()
        }
        arrays = []
        for tensor, raw in zip(read.inputs, read.raw_input_contents, strict=True):
            spec = TensorSpec(tensor.name, dt.BY_NAME[tensor.datatype], tuple(tensor.shape))
            arrays.append((spec, np.frombuffer(raw, spec.dtype.numpy).reshape(spec.shape)))
        return read.model_name, read.id, parameters, arrays, [o.name for o in read.outputs]

    return decode


def library_encoder(reply: InferReply) -> Call:
    kind = import_module("tritonclient.grpc.service_pb2").ModelInferResponse

    def encode() -> object:
        written = kind(model_name=reply.model, model_version=reply.version, id=reply.id)
        for spec, array in zip(reply.signature.tensors, reply.arrays, strict=True):
            written.outputs.add(name=spec.name, datatype=spec.dtype.name, shape=spec.shape)
            written.raw_output_contents.append(array.tobytes())
        return written.SerializeToString()

    return encode


def decoding(name: str, messages: Sequence[bytes], decoder: RequestDecoder | None = None) -> Case:
    """The same messages again and again; views as a transport would hand them over if large."""
    given: list[Any] = [memoryview(m) if len(m) > 65536 else m for m in messages]
    library = library_decoder(itertools.cycle(messages))
    ours, decode = itertools.cycle(given), (decoder or RequestDecoder()).decode
    return Case(name, library, lambda: decode(next(ours)))


def forgetful(messages: Sequence[bytes]) -> Case:
    """Ours sees each message for the first time."""
    ours = itertools.cycle(messages)
    return Case(
        "decode, nothing remembered",
        library_decoder(itertools.cycle(messages)),
        lambda: RequestDecoder().decode(next(ours)),
    )


def encoding(name: str, request: InferRequest) -> Case:
    reply = InferReply(request.signature, request.arrays, "model", "1", "42")
    encode = ReplyEncoder().encode
    return Case(name, library_encoder(reply), lambda: encode(reply))


def cases() -> Iterator[Case]:
    for number, (size, (datatype, shapes)) in enumerate(SIZES.items()):
        request = made(datatype, shapes)
        yield decoding(f"decode {size}", [message(request)])
        if number == 0:
            ids = [message(made(datatype, shapes, id=str(10000 + i))) for i in range(1000)]
            yield decoding("decode, another id each time", ids)
            sequences = [
                message(made(datatype, shapes, parameters={"sequence_id": i}))
                for i in range(1, 5000)
            ]
            yield decoding("decode, another sequence each time", sequences)
            yield forgetful(ids)
        yield encoding(f"encode {size}", request)


def measure(case: Case, rounds: int) -> tuple[list[float], list[float]]:
    """Microseconds a call of the library and of ours, a pair for each round."""
    samples: tuple[list[float], list[float]] = ([], [])
    numbers = [_repeats(call) for call in (case.library, case.ours)]
    for _ in range(rounds):
        for call, number, found in zip((case.library, case.ours), numbers, samples, strict=True):
            found.append(timeit.timeit(call, number=number) / number * 1e6)
    return samples


def _repeats(call: Call) -> int:
    for _ in range(3):  # until it is remembered
        call()
    return max(1, int(SECONDS_A_ROUND / max(timeit.timeit(call, number=1), 1e-7)))


def row(case: Case, rounds: int) -> str:
    library, ours = measure(case, rounds)
    ratio = statistics.median(library) / statistics.median(ours)
    return f"| {case.name} | {_cell(library)} | {_cell(ours)} | {ratio:.1f} |"


def _cell(found: Sequence[float]) -> str:
    return f"{statistics.median(found):.1f} ({min(found):.1f}..{max(found):.1f})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="samples a row (default: 9)")
    rounds = parser.parse_args(arguments).rounds
    print("| message | google.protobuf µs | Penstock µs | × |\n|---|---|---|---|")
    for case in cases():
        print(row(case, rounds), flush=True)


if __name__ == "__main__":
    main()
