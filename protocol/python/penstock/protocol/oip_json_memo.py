"""What JSON texts in front of binary tensors mean, kept for the texts that come again.

Knows: that the JSON alone decides everything but the tensor values, and when it pays to keep that.
Knows nothing of what is a request and what a reply: ``extras`` are theirs.

Contract: bounded in number (``PLANS_MAX``) and in the size of each text (``PLAN_JSON_BYTES_MAX``).
A text is kept when it comes for the second time, so that texts that never do (because of a time or
a number in them) cost a set entry each and do not push out those that are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeVar

from penstock.protocol import dtype as dt
from penstock.protocol.message import Array, Signature, TensorSpec
from penstock.protocol.oip_json_body import view_of
from penstock.protocol.oip_json_wire import Tensor, unsigned
from penstock.protocol.oip_tensor import Body

PLANS_MAX: Final = 1024
PLAN_JSON_BYTES_MAX: Final = 8192
SEEN_MAX: Final = 4096

K = TypeVar("K")
V = TypeVar("V")


class Plan(NamedTuple):
    """What one JSON text means.

    ``views`` are (shape, dtype, offset from the end of the JSON), to be made into arrays without
    another look; ``None`` when there are BYTES among the tensors, whose elements must be looked at
    each time. ``sizes`` are those of the tensors' binary parts, ``binary_bytes`` their sum.
    """

    signature: Signature
    binary_bytes: int
    views: tuple[tuple[tuple[int, ...], Any, int], ...] | None
    sizes: tuple[int, ...]
    extras: Any


class Plans:
    """A table of plans by text. Readers look into ``table`` themselves."""

    __slots__ = ("_seen", "table")

    def __init__(self) -> None:
        self.table: dict[bytes, Plan] = {}
        self._seen: set[int] = set()

    def wants(self, text: bytes) -> bool:
        """Whether ``text`` was seen before. A collision of hashes only keeps one too many."""
        mark = hash(text)
        if mark in self._seen:
            return True
        if len(self._seen) >= SEEN_MAX:
            self._seen.clear()
        self._seen.add(mark)
        return False

    def add(
        self, text: bytes, signature: Signature, tensors: Sequence[Tensor[Any]], extras: object
    ) -> None:
        """Keeps what ``text`` was found to mean; all ``tensors`` are binary and were checked."""
        sizes, views, offset = [], [], 0
        for spec, tensor in zip(signature.tensors, tensors, strict=True):
            size = unsigned((tensor.parameters or {})["binary_data_size"], "binary_data_size")
            sizes.append(size)
            views.append((spec.shape, spec.dtype.numpy, offset))
            offset += size
        has_strings = any(spec.dtype is dt.BYTES for spec in signature.tensors)
        plan = Plan(signature, offset, None if has_strings else tuple(views), tuple(sizes), extras)
        keep(self.table, text, plan, PLANS_MAX)


def keep(table: dict[K, V], key: K, value: V, entries_max: int) -> None:
    """First in, first out: cheap, and what is in use soon comes back."""
    if len(table) >= entries_max:
        del table[next(iter(table))]
    table[key] = value


def arrays_with_strings(
    tensors: Sequence[TensorSpec], sizes: Sequence[int], body: Body, offset: int, what: str
) -> list[Array]:
    """The arrays of a plan that has no ``views``."""
    arrays = []
    for spec, size in zip(tensors, sizes, strict=True):
        arrays.append(view_of(body, spec, offset, size, what))
        offset += size
    return arrays
