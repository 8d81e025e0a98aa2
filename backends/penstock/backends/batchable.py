"""Says whether rows of different requests may share one run of a model.

Knows declared shapes and, where a session offers ``symbols``, the names that the model's author
gave to first dimensions. Cannot know whether the model mixes rows: only its author does.
"""

from __future__ import annotations

import re
from typing import Final

from penstock.backends.base import Session

_GENERATED: Final = re.compile(r"unk__\d+|.*_dim_\d+|.*_dynamic_axes_\d+|\?|")
"""Names made up by exporters (tf2onnx, PyTorch), one for each tensor: they say nothing."""


def supports_batching(session: Session) -> bool:
    """True if every input and output begins with one and the same free dimension.

    ``session.symbols``, if there, has for every input, then every output, the name of the first
    dimension or None; two different names mean two different sizes.
    """
    tensors = (*session.inputs, *session.outputs)
    if not session.inputs or not all(spec.shape[:1] == (-1,) for spec in tensors):
        return False
    symbols: tuple[str | None, ...] = getattr(session, "symbols", ())
    return len({name for name in symbols if name and not _GENERATED.fullmatch(name)}) <= 1
