"""What a request said about the form of its reply: which outputs travel as binary data, and which
go to memory that the client shares.

Knows only these choices. The reader of a request puts it into ``signature.form``; the writer of the
reply gets it back. Nobody else looks into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from penstock.protocol.message import RegionRef


@dataclass(frozen=True, slots=True, eq=False)
class OipForm:
    """``binary`` of the outputs named in the request, ``default`` of all others, unless ``regions``
    has them.

    Compared by identity, so that it can key tables cheaply; readers hand out ``ALL_JSON`` and
    ``ALL_BINARY`` where they can.
    """

    default: bool = False
    binary: Mapping[str, bool] = field(default_factory=lambda: MappingProxyType({}))
    regions: Mapping[str, RegionRef] = field(default_factory=lambda: MappingProxyType({}))

    def is_binary(self, name: str) -> bool:
        return self.binary.get(name, self.default)


ALL_JSON: Final = OipForm(False)
ALL_BINARY: Final = OipForm(True)
