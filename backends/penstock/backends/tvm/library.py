"""Looks at a compiled model before it is loaded: a library's head and symbols, and its sidecar.

Loading a library runs code of it, and a bad one may end the process; so what can be read is read
first. Knows ELF, the processor's features as Linux tells them, and the sidecar's format. Knows
nothing of TVM's API. Contract: refusals are LoadErrors of one line, and nothing is executed.

The *sidecar* is ``model.json`` beside ``model.so``; ``penstock compile`` writes it. It has what the
library cannot tell: names, types and shapes, what the processor must be able to do, and checksums.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from penstock.backends.base import LoadError
from penstock.protocol import dtype as dt
from penstock.protocol.message import TensorSpec

FORMAT: Final = 1
LIBRARY_BYTES_MAX: Final = 1 << 34
SIDECAR_BYTES_MAX: Final = 1 << 24
MODULE_SYMBOL: Final = "__tvm_ffi__library_bin"
"""In every library of TVM 0.21 and later: where the module's other parts lie."""

_MACHINES: Final[Mapping[str, int]] = {"x86_64": 62, "aarch64": 183}
_MACHINE_NAMES: Final = {number: name for name, number in _MACHINES.items()}
_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_SYMBOL_BYTES: Final = 24
_SHARED: Final = 3
_DYNAMIC_SYMBOLS: Final = 11

FEATURES: Final[Mapping[str, str]] = {
    # LLVM's word: Linux's word in /proc/cpuinfo. Only those that change what code is made.
    "sse3": "pni", "ssse3": "ssse3", "sse4.1": "sse4_1", "sse4.2": "sse4_2", "popcnt": "popcnt",
    "avx": "avx", "avx2": "avx2", "fma": "fma", "f16c": "f16c", "bmi": "bmi1", "bmi2": "bmi2",
    "lzcnt": "abm", "movbe": "movbe", "gfni": "gfni", "vaes": "vaes", "avxvnni": "avx_vnni",
    "vpclmulqdq": "vpclmulqdq", "avx512f": "avx512f", "avx512dq": "avx512dq",
    "avx512bw": "avx512bw", "avx512cd": "avx512cd", "avx512vl": "avx512vl",
    "avx512ifma": "avx512ifma", "avx512vbmi": "avx512vbmi", "avx512vbmi2": "avx512_vbmi2",
    "avx512vnni": "avx512_vnni", "avx512bitalg": "avx512_bitalg", "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16", "avx512vpopcntdq": "avx512_vpopcntdq",
    "amx-tile": "amx_tile", "amx-int8": "amx_int8", "amx-bf16": "amx_bf16",
    "neon": "asimd", "dotprod": "asimddp", "fullfp16": "asimdhp", "i8mm": "i8mm", "bf16": "bf16",
    "sve": "sve", "sve2": "sve2",
}  # fmt: skip

_DTYPES: Final[Mapping[str, dt.DType]] = {
    "bool": dt.BOOL, "uint8": dt.UINT8, "int8": dt.INT8, "uint16": dt.UINT16, "int16": dt.INT16,
    "uint32": dt.UINT32, "int32": dt.INT32, "uint64": dt.UINT64, "int64": dt.INT64,
    "float16": dt.FP16, "float32": dt.FP32, "float64": dt.FP64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What ``penstock compile`` wrote down about a library.

    ``symbols`` has for every input, then every output, what its first dimension is in words of the
    model (``N``, ``N * 2``); None where it is a number. ``branches`` is whether the model has ways
    that its inputs choose between.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    symbols: tuple[str | None, ...]
    sha256: str
    tvm: str
    device: str
    features: tuple[str, ...]
    branches: bool = False


def read_sidecar(path: Path) -> Sidecar | None:
    """The sidecar of the library at ``path``; None where there is none.

    Raises:
        LoadError: it is there, but not one of ours, or of a later format.
    """
    beside = path.with_suffix(".json")
    try:
        if beside.stat().st_size > SIDECAR_BYTES_MAX:
            raise LoadError(f"{beside} is too large for the description of a compiled model")
        found = json.loads(beside.read_bytes())
        if found["format"] != FORMAT:
            raise LoadError(
                f"{beside} has format {found['format']!r}, this version reads {FORMAT}: compile "
                "the model again"
            )
        target = found["target"]
        return Sidecar(
            tuple(map(_spec, found["inputs"])),
            tuple(map(_spec, found["outputs"])),
            tuple(end["rows"] for end in (*found["inputs"], *found["outputs"])),
            str(found["sha256"]),
            str(found["tvm"]),
            str(target["device"]),
            tuple(map(str, target["features"])),
            bool(found.get("branches", False)),
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LoadError(f"cannot read {beside}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoadError(
            f"{beside} is not what penstock compile writes beside a model ({error!r}); compile it "
            "again, or delete the file and declare the tensors in config.pbtxt"
        ) from error


def described(spec: TensorSpec, rows: str | None) -> dict[str, Any]:
    """An input or output as the sidecar has it."""
    words = {dtype: word for word, dtype in _DTYPES.items()}
    shape = list(spec.shape)
    return {"name": spec.name, "dtype": words[spec.dtype], "shape": shape, "rows": rows}


def dtype_of(word: str) -> dt.DType | None:
    """Our element type for TVM's word; None where tensors of it cannot be served."""
    return _DTYPES.get(word)


def read_library(path: Path, sidecar: Sidecar | None) -> bytes:
    """The whole library, once it is known to be one of TVM's for this machine.

    Raises:
        LoadError: it is not, it is damaged, or it is not the one that the sidecar describes.
    """
    try:
        if path.stat().st_size > LIBRARY_BYTES_MAX:
            raise LoadError(f"{path} is larger than {LIBRARY_BYTES_MAX >> 30} GiB")
        content = path.read_bytes()
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error.strerror}") from error
    if sidecar is not None and hashlib.sha256(content).hexdigest() != sidecar.sha256:
        raise LoadError(
            f"{path} is not the file that {path.with_suffix('.json').name} beside it describes "
            "(another checksum): it is damaged, or was replaced; copy both again"
        )
    names = symbols(path, content)
    if MODULE_SYMBOL not in names:
        raise LoadError(
            f"{path} is a library, but no model compiled by TVM (it lacks {MODULE_SYMBOL})"
        )
    return content


def symbols(path: Path, content: bytes) -> frozenset[str]:
    """The names that a shared library for this machine shows to others.

    Raises:
        LoadError: it is no such library, or some of it is missing.
    """
    if not content:
        raise LoadError(f"{path} is empty: copy the model there again")
    if content[:4] != b"\x7fELF":
        raise LoadError(f"{path} is no shared library: models of backend 'tvm' are .so files")
    if len(content) < _HEADER.size:
        raise LoadError(f"{path} is truncated: copy the model there again")
    head = _HEADER.unpack_from(content)
    if head[0][4:6] != b"\x02\x01" or head[1] != _SHARED:
        raise LoadError(f"{path} is an ELF file, but no 64-bit little-endian shared library")
    here = platform.machine()
    if head[2] != _MACHINES.get(here):
        there = _MACHINE_NAMES.get(head[2], f"ELF machine {head[2]}")
        raise LoadError(f"{path} is made for {there}, this machine is {here}: compile it for that")
    try:
        return _dynamic_symbols(content, head[6], head[11], head[12])
    except (struct.error, IndexError, ValueError) as error:
        raise LoadError(f"{path} is truncated or damaged: copy the model there again") from error


def _dynamic_symbols(content: bytes, at: int, size: int, count: int) -> frozenset[str]:
    if size != _SECTION.size or not count:
        raise ValueError("no table of sections")
    sections = [_SECTION.unpack_from(content, at + i * size) for i in range(count)]
    table = next((s for s in sections if s[1] == _DYNAMIC_SYMBOLS), None)
    if table is None:
        return frozenset()
    _, _, _, _, start, length, link, *_ = table
    texts = sections[link][4]
    names = set()
    for entry in range(start, start + length, _SYMBOL_BYTES):
        name, _, _, section = struct.unpack_from("<IBBH", content, entry)
        if section:  # Zero: it is wanted here, and lies elsewhere.
            begin = texts + name
            names.add(content[begin : content.index(b"\0", begin)].decode("ascii", "replace"))
    return frozenset(names)


def missing_features(wanted: Sequence[str]) -> list[str]:
    """Which of LLVM's features this processor lacks; none where Linux does not tell."""
    have = cpu_flags()
    return [word for word in wanted if have and FEATURES.get(word, word) not in have]


def cpu_flags() -> frozenset[str]:
    """What Linux says that the processor can do; empty where it does not say."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() in ("flags", "Features"):
                    return frozenset(value.split())
    except OSError:
        pass
    return frozenset()


def private_copy(content: bytes) -> int:
    """A descriptor of a file in memory that only this process has.

    A loaded library is mapped, not read: were its file overwritten in place, the process would die.
    """
    descriptor = os.memfd_create("penstock-tvm-model", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _spec(found: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(
        str(found["name"]), _DTYPES[found["dtype"]], tuple(int(size) for size in found["shape"])
    )
