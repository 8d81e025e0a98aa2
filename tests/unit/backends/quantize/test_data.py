"""Samples from every kind of file, and what is said about those that do not fit."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.backends.quantize.data import Samples, open_samples, samples_of
from penstock.backends.quantize.errors import DataError
from penstock.protocol import dtype as dt
from penstock.protocol.message import TensorSpec

X = TensorSpec("x", dt.FP32, (-1, 3))
IDS = TensorSpec("ids", dt.INT64, (-1,))
ROWS: NDArray[np.float32] = np.arange(30, dtype=np.float32).reshape(10, 3)
NUMBERS = np.arange(10, dtype=np.int64)


def whole(samples: Samples, rows: int = 4) -> dict[str, NDArray[np.float32]]:
    batches = list(samples.batches(rows))
    return {name: np.concatenate([b[name] for b in batches]) for name in samples.names}


def one_npz(folder: Path) -> Path:
    np.savez(folder / "all.npz", x=ROWS, ids=NUMBERS, labels=NUMBERS % 3, other=np.zeros(2))
    return folder / "all.npz"


def compressed_npz(folder: Path) -> Path:
    np.savez_compressed(folder / "all.npz", x=ROWS, ids=NUMBERS, labels=NUMBERS % 3)
    return folder / "all.npz"


def folder_of_inputs(folder: Path) -> Path:
    np.save(folder / "x.npy", ROWS)
    np.save(folder / "ids.npy", NUMBERS)
    np.save(folder / "labels.npy", NUMBERS % 3)
    return folder


def shards(folder: Path) -> Path:
    for at, part in enumerate(np.split(np.arange(10), [3, 4])):
        np.savez(folder / f"part{at}.npz", x=ROWS[part], ids=NUMBERS[part], labels=part % 3)
    (folder / "README").write_text("is left alone")
    return folder


@pytest.mark.parametrize("write", [one_npz, compressed_npz, folder_of_inputs, shards])
def test_every_kind_of_file_gives_the_same_samples(write: object, tmp_path: Path) -> None:
    samples = open_samples(write(tmp_path), [X, IDS])  # type: ignore[operator]
    assert len(samples) == 10
    assert samples.names == ("x", "ids")
    for rows in (1, 3, 10, 100):
        found = whole(samples, rows)
        assert np.array_equal(found["x"], ROWS)
        assert np.array_equal(found["ids"], NUMBERS)
    assert samples.labels is not None
    assert np.array_equal(samples.labels, NUMBERS % 3)
    assert [len(b["x"]) for b in samples.batches(4)] == [4, 4, 2]
    assert [len(b["x"]) for b in samples.batches(4, whole=True)] == [4, 4]
    assert np.array_equal(next(samples.batches(4, start=8))["x"], ROWS[8:])


def test_one_array_is_enough_for_one_input(tmp_path: Path) -> None:
    np.save(tmp_path / "part1.npy", ROWS[:6])
    np.save(tmp_path / "part2.npy", np.asfortranarray(ROWS[6:]))
    assert np.array_equal(whole(open_samples(tmp_path, [X]))["x"], ROWS)
    single = open_samples(tmp_path / "part1.npy", [X])
    assert np.array_equal(whole(single)["x"], ROWS[:6])
    assert single.labels is None


def test_a_seed_shuffles_the_same_way_each_time(tmp_path: Path) -> None:
    path = shards(tmp_path)
    samples = [open_samples(path, [X, IDS], samples_max=7, seed=3) for _ in range(2)]
    first, second = (whole(s) for s in samples)
    assert np.array_equal(first["ids"], second["ids"])
    assert len(set(first["ids"].tolist())) == 7
    assert first["ids"].tolist() != sorted(first["ids"].tolist())
    assert np.array_equal(first["x"], ROWS[first["ids"]])
    assert samples[0].labels is not None
    assert np.array_equal(samples[0].labels, first["ids"] % 3)
    assert whole(open_samples(path, [X, IDS], samples_max=7))["ids"].tolist() == list(range(7))


def test_a_fingerprint_knows_values_order_and_number(tmp_path: Path) -> None:
    path = one_npz(tmp_path)
    base = open_samples(path, [X, IDS]).fingerprint
    assert base == open_samples(path, [X, IDS]).fingerprint
    assert base == samples_of({"x": ROWS, "ids": NUMBERS}).fingerprint
    others = [
        open_samples(path, [X, IDS], samples_max=9),
        open_samples(path, [X, IDS], seed=1),
        open_samples(path, [X]),
        samples_of({"x": ROWS + 1, "ids": NUMBERS}),
    ]
    assert len({base, *(other.fingerprint for other in others)}) == 5


def test_files_are_mapped_not_read(tmp_path: Path) -> None:
    big = np.zeros((4096, 1024), np.float32)  # 16 MiB
    np.savez(tmp_path / "big.npz", x=big)
    tracemalloc.start()
    samples = open_samples(tmp_path / "big.npz", [TensorSpec("x", dt.FP32, (-1, 1024))])
    total = sum(float(batch["x"].sum()) for batch in samples.batches(64))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 0
    assert peak < big.nbytes / 8


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": ROWS}, "no array for input ids; it has x"),
        ({"x": ROWS.astype(np.float64), "ids": NUMBERS}, r"save it as .astype\('float32'\)"),
        ({"x": ROWS[:, :2], "ids": NUMBERS}, r"shape \[10, 2\], the model takes \['samples', 3\]"),
        ({"x": ROWS[0], "ids": NUMBERS}, r"shape \[3\], the model takes"),
        ({"x": ROWS[:9], "ids": NUMBERS}, r"numbers of samples differ: x \[9\], ids \[10\]"),
        ({"x": ROWS, "ids": NUMBERS, "labels": NUMBERS[:2]}, r"differ: .*labels \[2\]"),
        ({"x": ROWS, "ids": NUMBERS, "labels": np.array(3)}, r"differ: .*labels \[\]"),
        ({"x": ROWS[:0], "ids": NUMBERS[:0]}, "has no samples"),
        ({"x": np.array([None]), "ids": NUMBERS}, "x.npy holds Python objects"),
    ],
)
def test_what_does_not_fit_is_said(
    arrays: dict[str, NDArray[np.float32]], said: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=said) as refused:
        open_samples(tmp_path / "d.npz", [X, IDS])
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_folders_that_are_no_samples(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file or folder"):
        open_samples(tmp_path / "missing", [X])
    with pytest.raises(DataError, match=r"has no \.npz or \.npy files"):
        open_samples(tmp_path, [X])
    np.save(tmp_path / "a.npy", ROWS)
    with pytest.raises(DataError, match="one array, the model has the inputs x, ids"):
        open_samples(tmp_path, [X, IDS])
    np.savez(tmp_path / "b.npz", x=ROWS)
    with pytest.raises(DataError, match=r"both \.npz and \.npy"):
        open_samples(tmp_path, [X])
    (tmp_path / "c.csv").write_text("1,2,3")
    with pytest.raises(DataError, match=r"neither \.npz nor \.npy"):
        open_samples(tmp_path / "c.csv", [X])


def test_labels_in_some_shards_only(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=ROWS, labels=NUMBERS)
    np.savez(tmp_path / "b.npz", x=ROWS)
    with pytest.raises(DataError, match=r"b.npz has no labels, other files"):
        open_samples(tmp_path, [X])


def test_numbers_that_make_no_sense() -> None:
    with pytest.raises(DataError, match="0 samples were asked for"):
        samples_of({"x": ROWS}, samples_max=0)
    with pytest.raises(DataError, match="no arrays"):
        samples_of({})
    with pytest.raises(ValueError, match="0 rows"):
        next(samples_of({"x": ROWS}).batches(0))
