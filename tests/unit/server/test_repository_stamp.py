"""What counts as a change of a model's files."""

import os
from pathlib import Path

import pytest

from penstock.server import repository_stamp
from penstock.server.repository_layout import LayoutError, scan
from penstock.server.repository_stamp import stamp


def put(path: Path, content: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


@pytest.fixture
def root(tmp_path):
    put(tmp_path / "m" / "1" / "model.onnx")
    put(tmp_path / "m" / "2" / "model.onnx")
    put(tmp_path / "m" / "config.pbtxt", "max_batch_size: 1")
    put(tmp_path / "m" / "labels.txt")
    return tmp_path


def of(root):
    (model,) = scan([root])
    return stamp(model)


def touch(path):
    before = path.stat()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def replace_inode(path):
    other = put(path.with_name("other"), path.read_text())
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.rename(path)


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (lambda m: None, {1, 2}),
        (lambda m: put(m / "1" / "model.onnx", "longer"), {2}),
        (lambda m: touch(m / "1" / "model.onnx"), {2}),
        (lambda m: replace_inode(m / "1" / "model.onnx"), {2}),
        (lambda m: (m / "1" / "model.onnx").rename(m / "1" / "net.onnx"), {2}),
        (lambda m: put(m / "1" / "deep" / "weights.bin"), {2}),
        (lambda m: (m / "1" / "link").symlink_to("nowhere"), {2}),
        (lambda m: put(m / "3" / "model.onnx"), {1, 2}),
        (lambda m: put(m / "1" / "model.onnx.tmp"), {1, 2}),
        (lambda m: put(m / ".git" / "HEAD"), {1, 2}),
        (lambda m: touch(m / "labels.txt"), set()),
        (lambda m: put(m / "config.pbtxt", "max_batch_size: 2"), set()),
        (lambda m: put(m / "warmup" / "raw"), set()),
    ],
)
def test_what_a_change_concerns(root, change, kept):
    before = of(root)
    change(root / "m")
    after = of(root)
    assert {v for v in (1, 2) if after.same(before, v)} == kept
    assert (after == before) == (kept == {1, 2} and set(after.versions) == {1, 2})


def test_a_version_that_is_new_or_gone(root):
    before = of(root)
    assert not before.same(None, 1)
    assert not before.same(before, 3)


def test_a_single_file_and_what_belongs_to_it(tmp_path):
    path = put(tmp_path / "bert.onnx")
    put(tmp_path / "other.txt")
    before = of(path)
    put(tmp_path / "another.txt")
    assert of(path) == before
    put(tmp_path / "bert.onnx.data")
    assert of(path) != before


def test_links_are_followed(root, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    put(store / "blob")
    (root / "m" / "1" / "model.onnx").unlink()
    (root / "m" / "1" / "model.onnx").symlink_to(store / "blob")
    before = of(root)
    put(store / "blob", "longer")
    assert not of(root).same(before, 1)


def test_directories_without_end_are_refused(root, monkeypatch):
    (root / "m" / "1" / "loop").symlink_to(root / "m" / "1")
    with pytest.raises(LayoutError, match="looked after"):
        of(root)
    (root / "m" / "1" / "loop").unlink()
    monkeypatch.setattr(repository_stamp, "FILES_MAX", 10)
    assert of(root).versions
    for i in range(10):
        put(root / "m" / "2" / str(i))
    with pytest.raises(LayoutError, match="more than 10 files"):
        of(root)


def test_a_model_with_problems_is_not_walked(root):
    put(root / "bad" / "model.onnx")
    bad, _ = scan([root])
    assert bad.problems
    assert stamp(bad).versions == {}


def test_an_override_is_a_change(root):
    (model,) = scan([root])
    assert stamp(model, "{}") == stamp(model, "{}")
    assert not stamp(model, "{}").same(stamp(model), 1)
