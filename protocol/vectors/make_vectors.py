"""Writes the test vectors of this folder: ``python make_vectors.py`` (needs nothing but Python).

valid/NAME.bin is a frame and valid/NAME.json what it means; invalid/NAME.bin must be refused, and
invalid/NAME.json says in which field and with which words. ``message`` tells which reader the frame
is for: ``request``, ``reply`` or ``metadata``. Tensor data stands in the JSON as the hexadecimal
bytes of the frame, strings as lists of hexadecimal bytes.

``--check`` writes nothing and names the files that are not as they should be.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from invalid_vectors import invalid
from valid_vectors import valid

HERE = Path(__file__).parent


def files() -> dict[str, bytes]:
    """Relative path → content of every vector."""
    out = {}
    for name, (frame, value) in valid().items():
        out[f"valid/{name}.bin"] = frame
        out[f"valid/{name}.json"] = _text(value)
    for name, (frame, message, field, why) in invalid().items():
        out[f"invalid/{name}.bin"] = frame
        out[f"invalid/{name}.json"] = _text({"message": message, "field": field, "error": why})
    return out


def _text(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def stale(wanted: dict[str, bytes]) -> list[str]:
    """The files that are missing, different or too many."""
    there = {
        f"{kind}/{path.name}": path.read_bytes()
        for kind in ("valid", "invalid")
        if (HERE / kind).is_dir()
        for path in (HERE / kind).iterdir()
    }
    names = wanted.keys() | there.keys()
    return sorted(name for name in names if wanted.get(name) != there.get(name))


def main() -> int:
    wanted = files()
    names = stale(wanted)
    if "--check" in sys.argv[1:]:
        print("\n".join(names) or "fresh")
        return 1 if names else 0
    for name in names:
        if name in wanted:
            (HERE / name).parent.mkdir(exist_ok=True)
            (HERE / name).write_bytes(wanted[name])
        else:
            (HERE / name).unlink()
    print(f"{len(wanted) // 2} vectors, {len(names)} files changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
