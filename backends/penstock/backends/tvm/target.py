"""Which processor a model is compiled for: an operator's word to TVM's target.

Knows LLVM's names of processors and features, through TVM, which is passed in. Contract: an unknown
word is refused with LoadError; nothing is guessed.

``""`` and ``native`` are this machine's processor; ``x86-64-v3``, ``znver4`` and the like are
LLVM's names; ``cuda:sm_90`` is an NVIDIA GPU by its architecture.
"""

from __future__ import annotations

import difflib
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from penstock.backends.base import LoadError
from penstock.backends.tvm.graph import Vectors
from penstock.backends.tvm.library import FEATURES, missing_features

_CUDA: Final = re.compile(r"cuda:(sm_[0-9]{2,3}[a-z]?)")
_PORTABLE: Final = ("x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4", "generic")


@dataclass(frozen=True, slots=True)
class Target:
    """A target of TVM's, what it needs of a processor, and whether this one has it."""

    engine: Any
    name: str
    device: str
    features: tuple[str, ...]
    vectors: Vectors

    @property
    def here(self) -> bool:
        """Whether what is compiled for it runs on this machine."""
        return self.device == "cpu" and not missing_features(self.features)


def target_of(tvm: Any, word: str) -> Target:
    """Reads ``--target``.

    Raises:
        LoadError: LLVM has no such processor, or it is one of another family.
    """
    if found := _CUDA.fullmatch(word):
        made = tvm.target.Target({"kind": "cuda", "arch": found[1]}, host=_host(tvm, "generic"))
        return Target(made, word, "cuda", (), Vectors(16, 16))
    codegen = tvm.target.codegen
    cpu = codegen.llvm_get_system_cpu() if word in ("", "native") else word
    if word.startswith("cuda"):
        raise LoadError(f"target {word!r} does not name an architecture; write cuda:sm_90")
    known = {str(name) for name in codegen.llvm_get_cpu_archlist(_host(tvm, "generic"))}
    if cpu not in known:
        near = difflib.get_close_matches(cpu, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"try {', '.join(_PORTABLE)}"
        raise LoadError(
            f"target {word!r} is no processor that LLVM knows for {platform.machine()}; {hint}"
        )
    made = _host(tvm, cpu)
    features = _features(tvm, made)
    hidden = missing_features(features) if word in ("", "native") else []
    if hidden:  # A virtual machine may have a processor's name without all that it can do.
        made = _host(tvm, cpu, hidden)
        features = tuple(feature for feature in features if feature not in hidden)
    return Target(made, cpu, "cpu", features, _vectors(features))


def _host(tvm: Any, cpu: str, without: Sequence[str] = ()) -> Any:
    attributes = {"mattr": [f"-{feature}" for feature in without]} if without else {}
    return tvm.target.Target({"kind": "llvm", "mcpu": cpu, **attributes})


def _features(tvm: Any, target: Any) -> tuple[str, ...]:
    have = tvm.target.codegen.llvm_get_cpu_features(target)
    return tuple(sorted(feature for feature in map(str, have) if feature in FEATURES))


def _vectors(features: tuple[str, ...]) -> Vectors:
    if "avx512f" in features:
        return Vectors(64, 32)
    if "avx" in features:
        return Vectors(32, 16)
    return Vectors(16, 32 if "neon" in features else 16)


__all__ = ["Target", "target_of"]
