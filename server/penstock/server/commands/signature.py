"""Tensor declarations as people read them: ``image FP32[-1,1,8,8] → probabilities FP32[-1,10]``.

Pure; knows specs and nothing of where they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.protocol.message import TensorSpec


def spec_text(spec: TensorSpec) -> str:
    """Name, type and shape of one tensor."""
    return f"{spec.name} {spec.dtype.name}[{','.join(map(str, spec.shape))}]"


def signature_lines(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], arrow: str, columns_max: int
) -> tuple[str, ...]:
    """Inputs and outputs on one line if that fits, else a line for each tensor."""
    ins, outs = [spec_text(s) for s in inputs], [spec_text(s) for s in outputs]
    if not ins and not outs:
        return ("",)
    line = f"{', '.join(ins) or 'nothing'} {arrow} {', '.join(outs) or 'nothing'}"
    if len(line) <= columns_max:
        return (line,)
    blank = " " * len(arrow)
    heads = [arrow, *(blank for _ in outs[1:])]
    return (*ins, *(f"{head} {out}" for head, out in zip(heads, outs, strict=True)))
