"""Whatever a file is, it is read without being run, and refused in a sentence."""

import platform
import sys
from pathlib import Path

import numpy as np
import pytest

from penstock.backends.base import LoadError
from penstock.backends.tvm import kernels as tvm_kernels
from penstock.backends.tvm import library as tvm_library
from penstock.backends.tvm.kernels import Convolution, Dense, Tile, pack, pack_bias, tiles
from penstock.backends.tvm.library import (
    FEATURES,
    described,
    dtype_of,
    missing_features,
    read_library,
    symbols,
)
from penstock.protocol import dtype as dt
from penstock.protocol.message import TensorSpec


@pytest.fixture(scope="module")
def foreign():
    """A library that this process has mapped, as bytes: not TVM's."""
    with open("/proc/self/maps") as maps:
        paths = {line.split()[-1] for line in maps if "_multiarray_umath" in line}
    return Path(min(paths)).read_bytes()


def test_symbols_are_those_that_the_library_has_not_those_it_wants(tmp_path, foreign):
    found = symbols(tmp_path, foreign)
    assert any(name.startswith("PyInit_") for name in found)
    assert "PyErr_SetString" not in found
    (tmp_path / "model.so").write_bytes(foreign)
    with pytest.raises(LoadError, match="no model compiled by TVM"):
        read_library(tmp_path / "model.so", None)


def test_damaged_heads_and_tables_are_refused_or_read_but_never_more(tmp_path, foreign):
    random = np.random.default_rng(1)
    sections = int.from_bytes(foreign[40:48], "little")
    places = [*range(64), *range(sections, sections + 640)]
    said = []
    for _ in range(60):
        content = bytearray(foreign)
        for at in random.choice(places, 9):
            content[at] = random.integers(256)
        try:
            symbols(tmp_path, bytes(content))
        except LoadError as error:
            said.append(str(error))
    assert len(said) > 10
    assert not [text for text in said if "\n" in text]


def test_an_older_table_of_nothing(tmp_path, foreign):
    head = bytearray(foreign[:64])
    head[60:62] = b"\0\0"
    with pytest.raises(LoadError, match="truncated or damaged"):
        symbols(tmp_path, bytes(head))


def test_another_machine_is_named(tmp_path, foreign, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(LoadError, match="this machine is riscv64"):
        symbols(tmp_path, foreign)


def test_features_are_translated(monkeypatch):
    monkeypatch.setattr(tvm_library, "cpu_flags", lambda: frozenset({"pni", "sse4_1", "abm"}))
    assert missing_features(["sse3", "sse4.1", "lzcnt"]) == []
    assert missing_features(["sse3", "avx512vnni", "later"]) == ["avx512vnni", "later"]
    monkeypatch.setattr(tvm_library, "cpu_flags", lambda: frozenset())
    assert missing_features(["avx512vnni"]) == []  # nobody says what this machine can do
    assert len(set(FEATURES.values())) == len(FEATURES)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/cpuinfo")
def test_this_machine_says_what_it_can():
    assert tvm_library.cpu_flags()


def test_specs_come_back_from_the_sidecar():
    specs = [TensorSpec(f"t{i}", dtype, (-1, i)) for i, dtype in enumerate(dt.ALL)]
    for spec in specs:
        if spec.dtype not in (dt.BYTES, dt.BF16):
            told = described(spec, "N")
            assert (told["shape"], told["rows"]) == (list(spec.shape), "N")
            assert dtype_of(told["dtype"]) is spec.dtype
    assert dtype_of("bfloat16") is None


# --- what is packed for kernels


@pytest.mark.parametrize("columns", [1, 10, 16, 33, 512])
def test_packed_weights_hold_every_value_once(columns):
    weights = np.arange(1, 7 * columns + 1, dtype=np.float32).reshape(7, columns)
    for tile in tiles(columns, 16, 32):
        packed = pack(weights, tile, 16)
        width = tile.vectors * 16
        for column in range(columns):
            values = packed[column // width, :, column % width]
            np.testing.assert_array_equal(values, weights[:, column])
        assert np.count_nonzero(packed) == weights.size
        bias = pack_bias(weights[0], columns, tile, 16, "float32")
        assert bias.shape == (packed.shape[0] * width,)
        assert np.count_nonzero(bias) == columns
    assert not pack_bias(None, columns, Tile(4, 1), 16, "float32").any()


@pytest.mark.parametrize(("lanes", "registers"), [(16, 32), (8, 16), (4, 16), (4, 32), (2, 16)])
def test_tiles_fit_the_registers(lanes, registers):
    for columns in (1, 3, 10, 64, 1000):
        found = tiles(columns, lanes, registers)
        assert len(set(found)) == len(found) > 0
        for tile in found:
            assert tile.rows * tile.vectors + tile.vectors + 2 <= registers
            assert (tile.vectors - 1) * lanes < columns


def test_sizes_of_windows():
    shape = Convolution((10, 13, 4), (3, 2), (2, 3), (2, 1), 8)
    assert shape.out == (3, 4)
    assert shape.depth == 24
    assert shape.multiplies == 24 * 8 * 12
    alone = Convolution((10, 10, 16), (3, 3), (1, 1), (1, 1), 16, depthwise=True)
    assert alone.depth == 9
    assert Dense(3, 5).multiplies == 15
    assert tvm_kernels.CHUNK_TILES > 0
