"""GraphPipe frames written and read by flatc's generated code and the flatbuffers library.

An independent second opinion for the codec's tests; they load this file by its path. Frames are
described as plain tuples so that nothing of the codec is used:

    tensor  = (dtype number, shape, data bytes | list of bytes)
    request = (config, input names, tensors, output names)
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import flatbuffers


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fb = _load("graphpipe_generated")


class Writer(flatbuffers.Builder):
    """``nul=False`` writes strings as the Go client does, ``aligned=False`` forgets alignment as
    libraries before 2018-07-23 did."""

    def __init__(self, *, nul: bool = True, aligned: bool = True) -> None:
        super().__init__(64)
        self.nul, self.keeps_alignment = nul, aligned

    def StartObject(self, numfields: int) -> None:  # noqa: N802
        super().StartObject(numfields)
        if not self.keeps_alignment:
            self.minalign = 1

    def text(self, value: bytes) -> int:
        return self.CreateString(value) if self.nul else self.CreateByteVector(value)

    def offsets(self, items: list[int]) -> int:
        self.StartVector(4, len(items), 4)
        for item in reversed(items):
            self.PrependUOffsetTRelative(item)
        return self.EndVector()

    def shape(self, sizes: tuple[int, ...]) -> int:
        self.StartVector(8, len(sizes), 8)
        for size in reversed(sizes):
            self.PrependInt64(size)
        return self.EndVector()

    def tensor(self, number: int, sizes: tuple[int, ...], body: bytes | list[bytes]) -> int:
        shape = self.shape(sizes)
        if isinstance(body, list):
            content = self.offsets([self.text(item) for item in body])
        else:
            content = self.CreateByteVector(body)
        fb.TensorStart(self)
        fb.TensorAddType(self, number)
        fb.TensorAddShape(self, shape)
        (fb.TensorAddStringVal if isinstance(body, list) else fb.TensorAddData)(self, content)
        return fb.TensorEnd(self)

    def done(self, root: int) -> bytes:
        self.Finish(root)
        return bytes(self.Output())


def write_request(
    config: bytes,
    names: list[bytes],
    tensors: list[tuple[int, tuple[int, ...], bytes | list[bytes]]],
    outputs: list[bytes],
    *,
    bare: bool = False,
    **options: bool,
) -> bytes:
    """``bare``: the InferRequest is the root, as over gRPC, without a Request around it."""
    w = Writer(**options)
    parts = (
        w.text(config),
        w.offsets([w.text(name) for name in names]),
        w.offsets([w.tensor(*tensor) for tensor in tensors]),
        w.offsets([w.text(name) for name in outputs]),
    )
    fb.InferRequestStart(w)
    fb.InferRequestAddConfig(w, parts[0])
    fb.InferRequestAddInputNames(w, parts[1])
    fb.InferRequestAddInputTensors(w, parts[2])
    fb.InferRequestAddOutputNames(w, parts[3])
    infer = fb.InferRequestEnd(w)
    if bare:
        return w.done(infer)
    fb.RequestStart(w)
    fb.RequestAddReqType(w, fb.Req.InferRequest)
    fb.RequestAddReq(w, infer)
    return w.done(fb.RequestEnd(w))


def write_bare_metadata_request(config: bytes = b"") -> bytes:
    w = Writer()
    text = w.text(config) if config else None
    w.StartObject(1)
    if text is not None:
        w.PrependUOffsetTRelativeSlot(0, text, 0)
    return w.done(w.EndObject())


def write_reply(
    tensors: list[tuple[int, tuple[int, ...], bytes | list[bytes]]],
    errors: list[tuple[int, bytes]] | None = None,
    *,
    bogus_errors: bool = False,
    **options: bool,
) -> bytes:
    """``bogus_errors``: the vector of errors as the Python server helper makes it with flatbuffers
    2.0.7 and later: started for as many errors as there are tensors, with none in it."""
    w = Writer(**options)
    outputs = w.offsets([w.tensor(*tensor) for tensor in tensors])
    vector = None
    if bogus_errors:
        w.StartVector(4, len(tensors), 4)
        vector = w.EndVector()
    elif errors is not None:
        made = []
        for code, message in errors:
            text = w.text(message)
            fb.ErrorStart(w)
            fb.ErrorAddCode(w, code)
            fb.ErrorAddMessage(w, text)
            made.append(fb.ErrorEnd(w))
        vector = w.offsets(made)
    fb.InferResponseStart(w)
    fb.InferResponseAddOutputTensors(w, outputs)
    if vector is not None:
        fb.InferResponseAddErrors(w, vector)
    return w.done(fb.InferResponseEnd(w))


def read_request(frame: bytes) -> tuple[bytes, list[bytes], list[Any], list[bytes]]:
    request = fb.Request.GetRootAs(frame)
    assert request.ReqType() == fb.Req.InferRequest
    infer = fb.InferRequest()
    infer.Init(request.Req().Bytes, request.Req().Pos)
    return (
        infer.Config(),
        [infer.InputNames(i) for i in range(infer.InputNamesLength())],
        [_read_tensor(infer.InputTensors(i)) for i in range(infer.InputTensorsLength())],
        [infer.OutputNames(i) for i in range(infer.OutputNamesLength())],
    )


def read_reply(frame: bytes) -> tuple[list[Any], list[tuple[int, bytes]]]:
    reply = fb.InferResponse.GetRootAs(frame)
    return (
        [_read_tensor(reply.OutputTensors(i)) for i in range(reply.OutputTensorsLength())],
        [(reply.Errors(i).Code(), reply.Errors(i).Message()) for i in range(reply.ErrorsLength())],
    )


def read_metadata(frame: bytes) -> dict[str, Any]:
    meta = fb.MetadataResponse.GetRootAs(frame)

    def ios(count: int, item: Any) -> list[Any]:
        return [
            (
                item(i).Name(),
                item(i).Description(),
                tuple(item(i).Shape(k) for k in range(item(i).ShapeLength())),
                item(i).Type(),
            )
            for i in range(count)
        ]

    return {
        "name": meta.Name(),
        "version": meta.Version(),
        "server": meta.Server(),
        "description": meta.Description(),
        "inputs": ios(meta.InputsLength(), meta.Inputs),
        "outputs": ios(meta.OutputsLength(), meta.Outputs),
    }


def _read_tensor(tensor: Any) -> tuple[int, tuple[int, ...], bytes | list[bytes]]:
    shape = tuple(tensor.Shape(i) for i in range(tensor.ShapeLength()))
    if tensor.Type() == fb.Type.String:
        assert tensor.DataLength() == 0
        texts = [tensor.StringVal(i) for i in range(tensor.StringValLength())]
        return tensor.Type(), shape, texts
    assert tensor.StringValLength() == 0
    body = tensor.DataAsNumpy()
    return tensor.Type(), shape, b"" if isinstance(body, int) else bytes(body)
