"""What is kept comes back whole or not at all, under a key that has everything in it."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from penstock.backends.base import LoadError
from penstock.backends.tensorrt import plan_key
from penstock.backends.tensorrt.builder import Order
from penstock.backends.tensorrt.cache import PlanCache, fingerprint, key
from penstock.backends.tensorrt.options import Recipe

PLACE = {
    "engine": "tensorrt", "version": "11.4", "device": "H200", "capability": "9.0",
    "driver": "13.0",
}  # fmt: skip
RECIPES = {
    "buckets": (1, 8),
    "min_shapes": (("x", (1,)),),
    "opt_shapes": (("x", (2,)),),
    "max_shapes": (("x", (3,)),),
    "workspace_bytes_max": 1 << 20,
    "builder_optimization_level": 5,
    "tf32": False,
    "hardware_compatibility": "ampere_plus",
    "version_compatible": True,
    "compute_capabilities": ("8.9",),
}


@pytest.fixture
def cache(tmp_path: Path) -> PlanCache:
    made = PlanCache(tmp_path / "kept", 10_000)
    made.open()
    return made


@pytest.fixture
def order(tmp_path: Path) -> Order:
    path = tmp_path / "m" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(b"a model")
    return Order(path, b"a model", Recipe(), 8, 60.0)


@pytest.mark.parametrize("name", list(PLACE))
def test_a_plan_is_for_one_place(order: Order, name: str) -> None:
    assert plan_key(PLACE, order) != plan_key({**PLACE, name: "another"}, order)
    assert plan_key(PLACE, order) == plan_key(dict(reversed(PLACE.items())), order)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Recipe)])
def test_every_setting_of_the_builder_counts(order: Order, name: str) -> None:
    recipe = dataclasses.replace(Recipe(), **{name: RECIPES[name]})
    assert plan_key(PLACE, order) != plan_key(PLACE, dataclasses.replace(order, recipe=recipe))


def test_content_and_sizes_count_and_the_name_does_not(order: Order, tmp_path: Path) -> None:
    same = dataclasses.replace(order, path=tmp_path / "m" / "other.onnx", threads=7)
    assert plan_key(PLACE, order) == plan_key(PLACE, same)
    for changed in ({"onnx": b"another"}, {"rows_max": 9}):
        assert plan_key(PLACE, order) != plan_key(PLACE, dataclasses.replace(order, **changed))


def test_files_that_a_model_names_count(tmp_path: Path) -> None:
    path, onnx = tmp_path / "model.onnx", b"..location..weights/one.bin.."
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "one.bin").write_bytes(b"1")
    (tmp_path / "other.txt").write_bytes(b"1")
    first = fingerprint(path, onnx)
    (tmp_path / "other.txt").write_bytes(b"2")
    assert fingerprint(path, onnx) == first
    (tmp_path / "weights" / "one.bin").write_bytes(b"2")
    assert fingerprint(path, onnx) != first
    assert fingerprint(path, b"all inside") == fingerprint(path, b"all inside")


def test_too_many_files_beside_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.backends.tensorrt.cache._FILES_MAX", 2)
    for i in range(3):
        (tmp_path / str(i)).touch()
    with pytest.raises(LoadError, match="more than 2 files beside the model"):
        fingerprint(tmp_path / "model.onnx", b"location")


def test_what_was_put_in_comes_out(cache: PlanCache) -> None:
    assert cache.get("a") is None
    cache.put("a", b"plan")
    assert cache.get("a") == b"plan"
    cache.put("a", b"other")
    assert cache.get("a") == b"other"
    cache.put("empty", b"")
    assert cache.get("empty") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[:-1],
        lambda whole: whole + b"x",
        lambda whole: whole[:20],
        lambda whole: whole[:-3] + b"xyz",
        lambda whole: b"x" + whole,
    ],
)
def test_damaged_files_are_not_there(cache: PlanCache, tmp_path: Path, damage: Any) -> None:
    cache.put("a", b"a plan of some length")
    path = tmp_path / "kept" / "a.kept"
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get("a") is None
    assert not path.exists()
    assert cache.made("a", 1, lambda: b"again") == b"again"
    assert cache.get("a") == b"again"


def test_the_folder_stays_below_its_limit(cache: PlanCache, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    for i in range(8):
        cache.put(str(i), bytes(1000))
        os.utime(folder / f"{i}.kept", (i, i))
    cache.get("2")  # now the one used last
    for i in range(8, 14):
        cache.put(str(i), bytes(1000))
        os.utime(folder / f"{i}.kept", (i, i))
    left = {path.stem for path in folder.glob("*.kept")}
    assert "2" in left
    assert {"13", "12", "11"} <= left
    assert not {"0", "1", "3"} & left
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 10_000
    cache.put("2", bytes(9000))
    assert cache.get("2") == bytes(9000)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 10_000


def test_what_is_larger_than_the_limit_is_not_kept(cache: PlanCache) -> None:
    cache.put("small", b"1")
    assert cache.made("large", 1, lambda: bytes(10_000)) == bytes(10_000)
    assert cache.get("large") is None
    assert cache.get("small") == b"1"


def test_leftovers_are_removed_in_time(cache: PlanCache, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    for name in ("old.tmp", "new.tmp", "old.lock", "stranger.txt"):
        (folder / name).touch()
        if name != "new.tmp":
            os.utime(folder / name, (1, 1))
    cache.put("a", b"1")
    assert {p.name for p in folder.iterdir()} == {"new.tmp", "stranger.txt", "a.kept"}


def test_one_of_many_threads_makes(cache: PlanCache) -> None:
    made: list[int] = []
    got: list[bytes] = []

    def make() -> bytes:
        made.append(1)
        time.sleep(0.05)
        return b"plan"

    threads = [
        threading.Thread(target=lambda: got.append(cache.made("a", 30, make))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), got) == (1, [b"plan"] * 6)


def _make_in_a_process(folder: Path, started: Any, results: Any) -> None:
    cache = PlanCache(folder, 10_000)

    def make() -> bytes:
        time.sleep(0.2)
        return str(os.getpid()).encode()

    started.wait()
    results.put(cache.made("a", 30, make))


def test_one_of_many_processes_makes(cache: PlanCache, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    started, results = spawn.Barrier(2), spawn.Queue()
    processes = [
        spawn.Process(target=_make_in_a_process, args=(tmp_path / "kept", started, results))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    got = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert len(set(got)) == 1


def test_who_waits_too_long_makes_it_too(cache: PlanCache) -> None:
    with cache._alone("a", 1):
        assert cache.made("a", 0.0, lambda: b"mine") == b"mine"
    assert cache.get("a") == b"mine"


def test_what_making_raises_is_raised_and_the_next_may_try(cache: PlanCache) -> None:
    def fail() -> bytes:
        raise LoadError("no")

    with pytest.raises(LoadError, match=r"^no$"):
        cache.made("a", 1, fail)
    assert cache.made("a", 1, lambda: b"yes") == b"yes"


def test_folders_that_others_may_write_to(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(LoadError, match="others may write to it, and plans are programs"):
        PlanCache(folder, 1).open()
    folder.chmod(0o755)
    PlanCache(folder, 1).open()
    (tmp_path / "file").touch()
    with pytest.raises(LoadError, match=r"cannot be kept in .*file.*cache_dir"):
        PlanCache(tmp_path / "file" / "below", 1).open()


def test_a_new_folder_is_the_users_alone(cache: PlanCache, tmp_path: Path) -> None:
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o700


def test_keys_are_names_of_files() -> None:
    assert key({"a": 1}) == key({"a": 1})
    assert key({"a": 1}).isalnum()
    assert key({"a": 1}) != key({"a": "1"})


def test_links_and_files_of_others_are_not_read(
    cache: PlanCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.put("a" * 64, b"plan")
    (kept,) = tmp_path.rglob("*.kept")
    elsewhere = kept.rename(tmp_path / "elsewhere")
    kept.symlink_to(elsewhere)
    assert cache.get("a" * 64) is None
    kept.unlink()
    elsewhere.rename(kept)
    assert cache.get("a" * 64) == b"plan"
    monkeypatch.setattr(os, "geteuid", lambda: kept.stat().st_uid + 1)
    assert cache.get("a" * 64) is None


def test_where_nothing_can_be_locked_it_is_made_all_the_same(
    cache: PlanCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_file: object, _operation: int) -> None:
        raise OSError(37, "no locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert cache.made("a" * 64, 5.0, lambda: b"plan") == b"plan"
    assert "nothing can be locked" in caplog.text


def test_a_full_disk_leaves_nothing_and_is_no_error(
    cache: PlanCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_descriptor: int) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    assert cache.made("a" * 64, 5.0, lambda: b"plan") == b"plan"
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]


def test_a_damaged_file_that_cannot_be_removed_is_not_there(
    cache: PlanCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.put("a" * 64, b"plan")
    (kept,) = tmp_path.rglob("*.kept")
    kept.write_bytes(kept.read_bytes()[:-1])

    def refuse(_path: Path, missing_ok: bool = False) -> None:
        raise OSError(30, "read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert cache.get("a" * 64) is None
