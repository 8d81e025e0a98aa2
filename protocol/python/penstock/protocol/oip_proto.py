"""The protobuf form of the Open Inference Protocol (KServe v2): what its gRPC methods carry.

This is the face of the codec for ``ModelInferRequest``, ``ModelInferResponse`` and
``ModelStreamInferResponse``. Its parts are ``oip_proto_read`` (requests), ``oip_proto_write``
(replies, and requests on the client's side), ``oip_proto_reply`` (replies on the client's side)
and, below them, ``oip_proto_memo``, ``oip_proto_body``, ``oip_proto_parse``, ``oip_proto_contents``
and ``oip_proto_wire``.

It is written by hand because google.protobuf copies tensors, in both directions, and makes every
message anew. Its bytes are held against google.protobuf's by tests. All other messages of the
service are small, rare, and left to that library.
Knows nothing of gRPC: the caller adds and removes its framing.
"""

from penstock.protocol.oip_proto_read import RequestDecoder
from penstock.protocol.oip_proto_reply import ReplyDecoder, split_stream_response
from penstock.protocol.oip_proto_wire import Buffer
from penstock.protocol.oip_proto_write import (
    ReplyEncoder,
    RequestEncoder,
    encode_stream_response,
)

__all__ = [
    "Buffer",
    "ReplyDecoder",
    "ReplyEncoder",
    "RequestDecoder",
    "RequestEncoder",
    "encode_stream_response",
    "split_stream_response",
]
