"""The published entropy calibration, step by step and slowly, to hold the quick one against.

From the description (S. Migacz, GTC 2017, S7310), in plain loops over lists; it shares no code with
``penstock.backends.quantize.divergence``, and only the rule for equals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from penstock.backends.quantize.divergence import TIE


def expanded(bins: Sequence[int], levels: int) -> list[float]:
    """``bins`` after they went through ``levels`` groups and back."""
    size = len(bins)
    members: list[list[int]] = [[] for _ in range(levels)]
    for place in range(size):
        members[place * levels // size].append(place)
    out = [0.0] * size
    for group in members:
        filled = [place for place in group if bins[place] != 0]
        for place in filled:
            out[place] = sum(bins[p] for p in group) / len(filled)
    return out


def divergence(p: Sequence[float], q: Sequence[float]) -> float:
    """KL(P || Q) of two lists of counts."""
    p_sum, q_sum = sum(p), sum(q)
    total = 0.0
    for p_count, q_count in zip(p, q, strict=True):
        if p_count == 0:
            continue
        if q_count == 0:
            return math.inf
        total += p_count / p_sum * math.log((p_count / p_sum) / (q_count / q_sum))
    return total


def divergences_as_published(bins: Sequence[int], levels: int) -> list[float]:
    """For every number of bins kept, from ``levels`` to all of them."""
    found = []
    for kept in range(levels, len(bins) + 1):
        reference = list(bins[:kept])
        reference[-1] += sum(bins[kept:])
        found.append(divergence(reference, expanded(bins[:kept], levels)))
    return found


def bins_kept_as_published(bins: Sequence[int], levels: int) -> int:
    """The number of bins with the least divergence, the largest of equals."""
    size = max((place + 1 for place, count in enumerate(bins) if count), default=0)
    if size <= levels:
        return size
    found = divergences_as_published(bins[:size], levels)
    return levels + max(at for at, value in enumerate(found) if value <= min(found) + TIE)
