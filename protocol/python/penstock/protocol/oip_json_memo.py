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
from penstock.protocol.message import Array, RegionRef, Regions, Signature
from penstock.protocol.oip_json_body import Place
from penstock.protocol.oip_region import NO_REGIONS, known_region_array
from penstock.protocol.oip_tensor import Body, view_of
from penstock.protocol.sightings import Sightings

PLANS_MAX: Final = 1024
PLAN_JSON_BYTES_MAX: Final = 8192

K = TypeVar("K")
V = TypeVar("V")


class Plan(NamedTuple):
    """What one JSON text means.

    ``views`` are (shape, dtype, offset from the end of the JSON), to be made into arrays without
    another look; ``None`` when there are tensors that must be looked at each time: the elements of
    BYTES, and what lies in shared memory. ``places`` say where each is, ``binary_bytes`` is the
    length of the binary part.
    """

    signature: Signature
    binary_bytes: int
    views: tuple[tuple[tuple[int, ...], Any, int], ...] | None
    places: tuple[Place, ...]
    extras: Any


class Plans:
    """A table of plans by text. Readers look into ``table`` themselves."""

    __slots__ = ("_sightings", "table")

    def __init__(self) -> None:
        self.table: dict[bytes, Plan] = {}
        self._sightings = Sightings()

    def wants(self, text: bytes) -> bool:
        """Whether ``text`` was seen before."""
        return self._sightings.again(text)

    def add(
        self, text: bytes, signature: Signature, places: Sequence[Place], extras: object
    ) -> None:
        """Keeps what ``text`` was found to mean. None of the tensors is in the JSON."""
        views: list[tuple[tuple[int, ...], Any, int]] | None = []
        offset = 0
        for spec, place in zip(signature.tensors, places, strict=True):
            if isinstance(place, RegionRef):
                views = None
                continue
            if spec.dtype is dt.BYTES:
                views = None
            elif views is not None:
                views.append((spec.shape, spec.dtype.numpy, offset))
            offset += place
        fixed = None if views is None else tuple(views)
        keep(self.table, text, Plan(signature, offset, fixed, tuple(places), extras), PLANS_MAX)


def keep(table: dict[K, V], key: K, value: V, entries_max: int) -> None:
    """First in, first out: cheap, and what is in use soon comes back."""
    if len(table) >= entries_max:
        del table[next(iter(table))]
    table[key] = value


def arrays_at(
    plan: Plan, body: Body, offset: int, what: str, model: str, regions: Regions = NO_REGIONS
) -> list[Array]:
    """The arrays of a plan that has no ``views``. ``what`` and ``model`` fill error texts."""
    arrays = []
    for spec, place in zip(plan.signature.tensors, plan.places, strict=True):
        if isinstance(place, RegionRef):
            arrays.append(known_region_array(regions, place, spec, model))
        else:
            arrays.append(view_of(body, spec, offset, place, what, model))
            offset += place
    return arrays
