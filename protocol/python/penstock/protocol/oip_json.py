"""The JSON form of the Open Inference Protocol (KServe v2) with Triton's binary tensor data.

This is the face of the codec. Its parts are ``oip_json_read`` and ``oip_raw`` (requests),
``oip_json_write`` (replies, and requests on the client's side), ``oip_json_reply`` (replies on the
client's side), ``oip_docs`` (metadata) and, below them, ``oip_json_memo``, ``oip_json_body``,
``oip_json_wire`` and ``oip_tensor``.
Knows nothing of HTTP: the caller carries the JSON length to and from its header.
"""

from penstock.protocol.oip_docs import (
    model_metadata_document,
    parse_model_metadata,
    server_metadata_document,
)
from penstock.protocol.oip_form import ALL_BINARY, ALL_JSON, OipForm
from penstock.protocol.oip_json_read import RequestDecoder
from penstock.protocol.oip_json_reply import ReplyDecoder, decode_error, decode_reply
from penstock.protocol.oip_json_write import (
    ReplyEncoder,
    RequestEncoder,
    encode_error,
    encode_request,
)
from penstock.protocol.oip_raw import decode_raw
from penstock.protocol.oip_tensor import Buffer

__all__ = [
    "ALL_BINARY",
    "ALL_JSON",
    "Buffer",
    "OipForm",
    "ReplyDecoder",
    "ReplyEncoder",
    "RequestDecoder",
    "RequestEncoder",
    "decode_error",
    "decode_raw",
    "decode_reply",
    "encode_error",
    "encode_request",
    "model_metadata_document",
    "parse_model_metadata",
    "server_metadata_document",
]
