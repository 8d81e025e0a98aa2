"""All gRPC methods of a server by path, and who may call them.

Knows Triton's groups of methods and how a refusal is worded. Must not know what methods do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from penstock.protocol.errors import Code, InferError
from penstock.server.front.graphpipe_grpc import SERVICE as GRAPHPIPE
from penstock.server.front.grpc_admin import PREFIX
from penstock.server.front.grpc_health import CHECK, WATCH
from penstock.server.front.restriction import Rule, Rules
from penstock.server.grpc_seam import Call, CallHead, Method, Methods, Stream
from penstock.server.http_seam import Buffer, Cancellable
from penstock.server.tfs_schema import MODEL as TENSORFLOW_MODEL
from penstock.server.tfs_schema import PREDICTION

HEADER_PREFIX: Final = "triton-grpc-protocol-"
_MEMBERS: Final = {
    "health": ("ServerLive", "ServerReady", "ModelReady"),
    "metadata": ("ServerMetadata", "ModelMetadata"),
    "inference": ("ModelInfer", "ModelStreamInfer"),
    "shared-memory": tuple(
        f"{kind}SharedMemory{what}"
        for kind in ("System", "Cuda")
        for what in ("Status", "Register", "Unregister")
    ),
    "model-config": ("ModelConfig",),
    "model-repository": ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
    "statistics": ("ModelStatistics",),
    "trace": ("TraceSetting",),
    "logging": ("LogSettings",),
}
GROUPS: Final = {
    **{PREFIX + name: group for group, names in _MEMBERS.items() for name in names},
    CHECK: "health",
    WATCH: "health",
    **{
        f"/{PREDICTION}/{name}": "inference"
        for name in ("Predict", "Classify", "Regress", "MultiInference")
    },
    f"/{PREDICTION}/GetModelMetadata": "metadata",
    f"/{TENSORFLOW_MODEL}/GetModelStatus": "health",
    f"/{TENSORFLOW_MODEL}/HandleReloadConfigRequest": "model-repository",
    f"/{GRAPHPIPE}/Infer": "inference",
    f"/{GRAPHPIPE}/Metadata": "metadata",
}
"""The group (``restriction.GROUPS``) of each method that can be restricted, by path."""


def table(methods: Iterable[Method], rules: Rules | None = None) -> Methods:
    """``methods`` by path; those of a group with a rule answer only calls that meet it."""
    made: dict[str, Method] = {}
    for method in methods:
        if method.path in made:
            raise ValueError(f"two methods at {method.path}")
        rule = (rules or {}).get(GROUPS.get(method.path, ""))
        made[method.path] = method if rule is None else _restricted(method, rule)
    return made


def _restricted(method: Method, rule: Rule) -> Method:
    header = HEADER_PREFIX + rule.key.lower()
    error = InferError(
        Code.UNAVAILABLE,
        f"This protocol is restricted, expecting header '{HEADER_PREFIX}{rule.key}'",
    )
    unary, stream = method.unary, method.stream

    def call_unary(call: Call, head: CallHead, message: Buffer) -> Cancellable | None:
        if unary is not None and rule.admits(head.metadata.get(header)):
            return unary(call, head, message)
        call.fail(error)
        return None

    def call_stream(call: Call, head: CallHead) -> Stream:
        if stream is not None and rule.admits(head.metadata.get(header)):
            return stream(call, head)
        call.fail(error)
        return _Refused()

    return Method(
        method.path,
        unary=call_unary if unary else None,
        stream=call_stream if stream else None,
        request_bytes_max=method.request_bytes_max,
    )


class _Refused:
    """The stream of a call that is over; see ``grpc_seam.Stream``."""

    full = False

    def received(self, message: Buffer) -> None: ...
    def half_closed(self) -> None: ...
    def drained(self) -> None: ...
    def cancel(self) -> None: ...
