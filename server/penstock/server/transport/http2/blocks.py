"""Header blocks to what they say (HPACK, RFC 7541), behind a memo for the blocks that come again.

A block that adds to or resizes the dynamic table changes what every block means, so it is always
decoded and empties the memo; any other block means the same until then. Clients index the fields
they repeat, so that after the first calls every block is found by its bytes.

Knows HPACK alone: ``resolve`` says what a list of fields means.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from hpack import Decoder, HPACKError, OversizedHeaderListError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from penstock.server.transport.http2.frames import (
    COMPRESSION_ERROR,
    ENHANCE_YOUR_CALM,
    ConnectionFault,
)

Fields = list[tuple[bytes, bytes]]

LIST_BYTES_LARGEST: Final = 256 * 1024
"""What is decoded at most. Longer lists end the connection: the rest of the block would be needed
to keep the table right. What a request may have is less, and is the business of ``resolve``."""
_STATIC: Final = HeaderTable.STATIC_TABLE
_STATIC_SIZE: Final = len(_STATIC)
ENTRY_BYTES: Final = 32
"""What RFC 7541 §4.1 adds to each field when fields are measured."""
_FIELDS_HARMLESS: Final = 32
_MEMO_MAX: Final = 128
_MEMO_BLOCK_BYTES_MAX: Final = 1024


class _Table(HeaderTable):  # type: ignore[misc, unused-ignore]
    """Counts its changes."""

    def __init__(self) -> None:
        super().__init__()
        self.changes = 0

    def add(self, name: bytes, value: bytes) -> None:
        self.changes += 1
        super().add(name, value)

    @property
    def maxsize(self) -> int:
        return int(self._maxsize)

    @maxsize.setter
    def maxsize(self, size: int) -> None:
        self.changes += 1
        HeaderTable.maxsize.fset(self, size)  # type: ignore[attr-defined]


class Blocks:
    """One connection's blocks. ``known`` may be looked into directly; see ``decode`` for a miss."""

    __slots__ = ("_decoder", "_resolve", "_table", "known")

    def __init__(self, resolve: Callable[[Fields], Any]) -> None:
        self.known: dict[bytes, Any] = {}
        self._resolve = resolve
        self._decoder = Decoder(LIST_BYTES_LARGEST)
        self._decoder.header_table = self._table = _Table()

    def fields(self, block: bytes) -> Fields:
        """The fields of a block; to be called for every block, in order, but those ``known``.

        Raises:
            ConnectionFault: the block cannot be decoded, nor can any after it.
        """
        before = self._table.changes
        fields: Fields = []
        try:
            at = self._common(block, fields)
            if at < len(block):
                if at and block[at] & 0xE0 == 0x20:
                    raise ConnectionFault(COMPRESSION_ERROR, "the table is resized in a block")
                fields += [(f[0], f[1]) for f in self._decoder.decode(block[at:], raw=True)]
        except OversizedHeaderListError as error:
            raise ConnectionFault(ENHANCE_YOUR_CALM, str(error)) from error
        except (HPACKError, IndexError, ValueError) as error:
            raise ConnectionFault(COMPRESSION_ERROR, f"header block: {error}") from error
        if self._table.changes != before:
            self.known.clear()
        # One entry of the table may be named again and again. So few fields cannot be too much.
        if len(fields) > _FIELDS_HARMLESS:
            unfolded = sum(len(name) + len(value) + ENTRY_BYTES for name, value in fields)
            if unfolded > LIST_BYTES_LARGEST:
                raise ConnectionFault(ENHANCE_YOUR_CALM, "the header list is too large")
        return fields

    def _common(self, block: bytes, fields: Fields) -> int:
        """Reads what clients send in nearly every block that no memo knows, to ``fields``: indexed
        fields, and new values of known names. Gives where something else begins.

        A client that states a time limit anew in each call changes the table with each.
        """
        table, entries = self._table, self._table.dynamic_entries
        at, size = 0, len(block)
        while at < size:
            first = block[at]
            if 0x80 < first < 0xFF:
                index = first - 0x81
            elif 0x40 < first < 0x7F and at + 1 < size:
                index = first - 0x41
            else:
                return at
            if index >= _STATIC_SIZE and index - _STATIC_SIZE >= len(entries):
                return at
            entry = _STATIC[index] if index < _STATIC_SIZE else entries[index - _STATIC_SIZE]
            if first >= 0x80:
                fields.append(entry)
                at += 1
                continue
            length = block[at + 1] & 0x7F
            stop = at + 2 + length
            if length == 0x7F or stop > size:
                return at
            value = block[at + 2 : stop]
            if block[at + 1] & 0x80:
                value = bytes(decode_huffman(value))
            table.add(entry[0], value)
            fields.append((entry[0], value))
            at = stop
        return at

    def decode(self, block: bytes) -> Any:
        """What the block's fields are resolved to; remembered if that is sound.

        Raises:
            ConnectionFault: as ``fields``. What ``resolve`` raises comes through.
        """
        before = self._table.changes
        entry = self._resolve(self.fields(block))
        if self._table.changes == before and len(block) <= _MEMO_BLOCK_BYTES_MAX:
            if len(self.known) >= _MEMO_MAX:
                self.known.clear()
            self.known[block] = entry
        return entry
