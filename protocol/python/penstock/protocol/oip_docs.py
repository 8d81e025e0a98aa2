"""The metadata documents of the Open Inference Protocol.

Knows: which keys describe a server and a model. Knows nothing of who answers for them.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from penstock.protocol.errors import ProtocolError
from penstock.protocol.limits import DEFAULT
from penstock.protocol.message import ModelMetadata, TensorSpec
from penstock.protocol.oip_json_body import dtype_of
from penstock.protocol.oip_json_wire import check_text


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]


class _Model(msgspec.Struct):
    name: str
    versions: list[str] | None = None
    platform: str = ""
    inputs: list[_Tensor] | None = None
    outputs: list[_Tensor] | None = None


_model_decoder = msgspec.json.Decoder(_Model)


def model_metadata_document(meta: ModelMetadata, *, alone: bool = False) -> dict[str, object]:
    """What GET /v2/models/<model> answers, ready for a JSON encoder.

    ``alone`` is for who asked for this one version: it is then the only one named.
    """
    return {
        "name": meta.name,
        "versions": [meta.version] if alone else list(meta.versions),
        "platform": meta.platform,
        "inputs": [_tensor_document(spec) for spec in meta.inputs],
        "outputs": [_tensor_document(spec) for spec in meta.outputs],
    }


def _tensor_document(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "datatype": spec.dtype.name, "shape": list(spec.shape)}


def server_metadata_document(version: str, extensions: Sequence[str]) -> dict[str, object]:
    """What GET /v2 answers. The name is the one that Triton's health examples insist on."""
    return {"name": "triton", "version": version, "extensions": list(extensions)}


def parse_model_metadata(doc: bytes) -> ModelMetadata:
    """The inverse of ``model_metadata_document``, on the client's side.

    ``version`` is left empty: the document names all that are served, not the one that answered.

    Raises:
        ProtocolError: not such a document.
    """
    try:
        model = _model_decoder.decode(doc)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"not a model metadata document: {error}") from None
    return ModelMetadata(
        name=model.name,
        version="",
        versions=tuple(model.versions or ()),
        platform=model.platform,
        inputs=_specs(model.inputs or [], "input"),
        outputs=_specs(model.outputs or [], "output"),
    )


def _specs(tensors: list[_Tensor], what: str) -> tuple[TensorSpec, ...]:
    if len(tensors) > DEFAULT.tensors_max:
        raise ProtocolError(f"{len(tensors)} {what}s, more than the maximum {DEFAULT.tensors_max}")
    specs = []
    for tensor in tensors:
        check_text(tensor.name, f"{what} name", DEFAULT)
        if len(tensor.shape) > DEFAULT.rank_max or any(dim < -1 for dim in tensor.shape):
            raise ProtocolError(f"shape of {what} '{tensor.name}' is not a shape")
        dtype = dtype_of(tensor.datatype, tensor.name, what)
        specs.append(TensorSpec(tensor.name, dtype, tuple(tensor.shape)))
    return tuple(specs)
