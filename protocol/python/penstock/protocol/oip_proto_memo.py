"""Recognises inference messages that differ from an earlier one in raw contents, id and parameters.

Stock clients write fields by number: model, version, id, parameters, then tensors, then raw
contents. The first four are split off by a few looks at the bytes (``_split``), which read them as
any parser would; what follows is compared with what was decoded before. A *template* remembers all
of that but the raw contents, of messages that have no field of the first four there.

That is sound because decoding never looks into raw contents (BYTES are decoded anew each time), so
that what it did is a function of the bytes compared and of their number.

Knows: byte ranges and top-level fields. Knows nothing of requests and replies: ``value`` is theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Generic, NamedTuple, TypeVar

from penstock.protocol import dtype as dt
from penstock.protocol.limits import WireLimits
from penstock.protocol.message import Array, RegionRef, Regions, Signature
from penstock.protocol.oip_proto_body import Place, array_at
from penstock.protocol.oip_proto_contents import Contents
from penstock.protocol.oip_proto_parse import ID, MODEL, PARAMETERS, VERSION
from penstock.protocol.oip_proto_wire import Buffer, fields
from penstock.protocol.oip_region import known_region_array
from penstock.protocol.sightings import Sightings

HEAD_BYTES_MAX: Final = 8192
"""Up to where the first raw contents must begin for a message to be remembered."""
PIECES_BYTES_MAX: Final = 8192
TEMPLATES_MAX: Final = 4096
TEMPLATES_BYTES_MAX: Final = 32 * 1024**2
"""What templates take, about: the bytes that they compare, and objects."""
_PLACE_BYTES: Final = 640
"""Of the spec, the place and the view of a tensor."""
LENGTHS_MAX: Final = 512
PER_LENGTH_MAX: Final = 4
PER_HEAD_MAX: Final = 4
_SHORT_MAX: Final = 0x7F

V = TypeVar("V")
View = tuple[tuple[int, ...], Any, int]
"""Shape, NumPy's dtype and offset."""


class Template(NamedTuple, Generic[V]):
    """What one run of tensors and raw contents means. Offsets count from where it begins.

    ``pieces`` are (start, end, bytes) of what stands between and behind raw contents. ``views`` are
    made into arrays without another look; ``None`` when there are tensors that must be looked at
    each time, BYTES and what lies in shared memory: then ``places`` say where each is.
    """

    pieces: tuple[tuple[int, int, bytes], ...]
    views: tuple[View, ...] | None
    places: tuple[tuple[int, int] | RegionRef, ...]
    signature: Signature
    model: str
    version: str
    value: V

    def arrays(self, message: Buffer, at: int, what: str, regions: Regions) -> list[Array]:
        """The arrays of a template without ``views``, of the message that it fits at ``at``."""
        arrays = []
        for place, spec in zip(self.places, self.signature.tensors, strict=True):
            if isinstance(place, RegionRef):
                arrays.append(known_region_array(regions, place, spec, self.model))
            else:
                place = (at + place[0], place[1])
                arrays.append(array_at(place, spec, message, self.model, what, regions))
        return arrays


class Templates(Generic[V]):
    """A bounded table of templates, in which a message finds its own by what stands before its
    first raw contents. Where there are none, that is all of it: then entries of maps come in any
    order, and there are dozens of templates of one length.

    A message is remembered when one like it was seen before; the oldest ones go first.
    """

    __slots__ = ("_bytes", "_id_bytes_max", "_sightings", "_sizes", "_table")

    def __init__(self, limits: WireLimits) -> None:
        self._id_bytes_max = min(_SHORT_MAX, limits.name_bytes_max)
        self._sizes: dict[tuple[bytes, int], tuple[int, ...]] = {}
        """By the fields of model and version and by the length behind the id: where heads end."""
        self._table: dict[tuple[bytes, int, bytes], tuple[Template[V], ...]] = {}
        """By the same and the head. Several templates differ behind the first raw contents."""
        self._bytes = 0
        self._sightings = Sightings()

    def find(self, message: Buffer) -> tuple[Template[V], int, bytes, bytes] | None:
        """What a message like this meant: (template, where it begins, id, parameter fields)."""
        head = message if type(message) is bytes else bytes(message[:HEAD_BYTES_MAX])
        split = _split(head, self._id_bytes_max)
        if split is None:
            return None
        prefix, request_id, parameters, at = split
        length = len(message) - at
        for size in self._sizes.get((prefix, length), ()):
            for template in self._table.get((prefix, length, head[at : at + size]), ()):
                for start, end, piece in template.pieces:
                    if bytes(message[at + start : at + end]) != piece:
                        break
                else:
                    return template, at, request_id, parameters
        return None

    def add(
        self,
        message: Buffer,
        signature: Signature,
        places: Sequence[Place],
        model: str,
        version: str,
        value: V,
    ) -> None:
        """Remembers what ``message`` was found to mean, if it is of the kind that can be."""
        if any(isinstance(place, Contents) for place in places):
            return
        split = _split(bytes(message[:HEAD_BYTES_MAX]), self._id_bytes_max)
        if split is None:
            return
        prefix, _, _, at = split
        cut = _cut(message, at, [p for p in places if not isinstance(p, RegionRef | Contents)])
        if cut is None or not self._sightings.again((prefix, cut)) or not _apart(message, at):
            return
        kept = tuple([_relative(place, at) for place in places])
        views: list[View] = []
        for place, spec in zip(kept, signature.tensors, strict=True):
            if isinstance(place, RegionRef) or spec.dtype is dt.BYTES:
                break
            views.append((spec.shape, spec.dtype.numpy, place[0]))
        fixed = tuple(views) if len(views) == len(kept) else None
        (_, _, head), *pieces = cut
        template = Template(tuple(pieces), fixed, kept, signature, model, version, value)
        self._keep(prefix, len(message) - at, head, template)

    def _keep(self, prefix: bytes, length: int, head: bytes, template: Template[V]) -> None:
        sizes = self._sizes.get((prefix, length), ())
        if len(head) not in sizes:
            if not sizes and len(self._sizes) >= LENGTHS_MAX:
                del self._sizes[next(iter(self._sizes))]
            self._sizes[prefix, length] = (*sizes[1 - PER_LENGTH_MAX :], len(head))
        key = (prefix, length, head)
        known = self._forget(key)
        kept = (*known[1 - PER_HEAD_MAX :], template)
        self._table[key] = kept
        self._bytes += _weight(key, kept)
        while len(self._table) > TEMPLATES_MAX or self._bytes > TEMPLATES_BYTES_MAX:
            self._forget(next(iter(self._table)))

    def _forget(self, key: tuple[bytes, int, bytes]) -> tuple[Template[V], ...]:
        templates = self._table.pop(key, ())
        if templates:
            self._bytes -= _weight(key, templates)
        return templates


def _weight(key: tuple[bytes, int, bytes], templates: Sequence[Template[Any]]) -> int:
    prefix, _, head = key
    pieces = sum(len(piece) for template in templates for _, _, piece in template.pieces)
    places = sum(1 + len(template.places) for template in templates)
    return len(prefix) + len(head) + pieces + _PLACE_BYTES * places


def _split(head: bytes, id_bytes_max: int) -> tuple[bytes, bytes, bytes, int] | None:
    """(fields of model and version, id, fields of parameters, where the rest begins).

    None for a message that has anything there that needs more than a look.
    """
    try:
        at = 0
        if head[0] == MODEL:
            at = 2 + head[1]
            if head[1] > _SHORT_MAX:
                return None
        tag = head[at]
        if tag == VERSION:
            size = head[at + 1]
            if size > _SHORT_MAX:
                return None
            at += 2 + size
            tag = head[at]
        prefix = head[:at]
        name = b""
        if tag == ID:
            size = head[at + 1]
            if size > id_bytes_max:
                return None
            name = head[at + 2 : at + 2 + size]
            at += 2 + size
            tag = head[at]
        start = at
        while tag == PARAMETERS:
            size = head[at + 1]
            if size > _SHORT_MAX or at > HEAD_BYTES_MAX:
                return None
            at += 2 + size
            tag = head[at]
    except IndexError:
        return None
    return prefix, name, head[start:at], at


def _cut(
    message: Buffer, at: int, raw: Sequence[tuple[int, int]]
) -> tuple[tuple[int, int, bytes], ...] | None:
    """What stands outside of raw contents, as (start, end, bytes) counted from ``at``.

    None if that is too much.
    """
    pieces: list[tuple[int, int, bytes]] = []
    nbytes, start = 0, at
    for raw_start, size in (*raw, (len(message), 0)):
        nbytes += raw_start - start
        if nbytes > PIECES_BYTES_MAX:
            return None
        if raw_start > start or not pieces:
            pieces.append((start - at, raw_start - at, bytes(message[start:raw_start])))
        start = raw_start + size
    if len(pieces[0][2]) + at > HEAD_BYTES_MAX:
        return None
    return tuple(pieces)


def _apart(message: Buffer, at: int) -> bool:
    """Whether all fields of the kinds that ``_split`` knows are before ``at``."""
    top = fields(message, at, len(message))
    return not any(tag in (MODEL, VERSION, ID, PARAMETERS) for tag, _, _ in top)


def _relative(place: Place, at: int) -> tuple[int, int] | RegionRef:
    assert not isinstance(place, Contents)
    return place if isinstance(place, RegionRef) else (place[0] - at, place[1])
