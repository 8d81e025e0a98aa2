"""What loading has in common: where the file is, what is missing, and trying in another process."""

import sys

import pytest

from penstock.backends import loading
from penstock.backends.base import LoadError, ModelSource


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "model.bin"
    made.write_bytes(b"content")
    return made


def test_an_engine_that_is_there(path):
    assert loading.engine("json", "b", "e").__name__ == "json"


def test_a_missing_engine_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(LoadError, match=r"backend 'b' needs .*pip install 'penstock\[e\]'"):
        loading.engine("lightgbm", "b", "e")
    assert "pip install" in loading.probed("lightgbm", "b", "e").missing


def test_an_artefact_is_a_file_or_lies_in_a_folder(path):
    assert loading.artefact(ModelSource("m", path), "other") == path
    assert loading.artefact(ModelSource("m", path.parent), "model.bin") == path


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "there is no file"),
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1", "run git lfs pull"),
    ],
)
def test_what_is_no_artefact(path, content, told):
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(LoadError, match=told):
        loading.artefact(ModelSource("m", path), "model.bin")


def test_messages_become_one_short_line():
    assert loading.one_line(ValueError("a\n  b\tc")) == "a b c"
    assert loading.one_line(ValueError()) == "ValueError"
    long = loading.one_line("x" * 1000)
    assert len(long) == 600
    assert long.endswith("...")


def test_a_trial_that_ends_well(path, tmp_path):
    seen = tmp_path / "seen"
    loading.tried(path, f"open({str(seen)!r}, 'wb').write(open(sys.argv[1], 'rb').read())")
    assert seen.read_bytes() == b"content"


def test_a_trial_that_says_why_not(path):
    with pytest.raises(LoadError, match=r"cannot load .*model\.bin: the tree has no roots$"):
        loading.tried(path, "sys.stderr.write('noise\\n'); sys.exit('the tree has no roots')")


def test_a_trial_that_crashes(path):
    with pytest.raises(LoadError, match=r"damaged .*crashed on it \(SIGABRT\)"):
        loading.tried(path, "import os; os.abort()")


def test_a_trial_that_says_too_much(path):
    with pytest.raises(LoadError, match=r"x{100}") as caught:
        loading.tried(path, "import os\nwhile True: os.write(2, b'x' * 65536)")
    assert len(str(caught.value)) < 1000


def test_a_trial_that_does_not_end(path, monkeypatch):
    monkeypatch.setattr(loading, "_TRIAL_S_MIN", 0.5)
    with pytest.raises(LoadError, match="did not come to an end"):
        loading.tried(path, "import time; time.sleep(3600)")


def test_a_trial_that_wants_all_memory(path):
    with pytest.raises(LoadError, match="MemoryError"):
        loading.tried(path, "bytearray(8 << 30)")


def test_nothing_in_the_current_folder_stands_in_for_a_module(path, tmp_path, monkeypatch):
    (tmp_path / "colorsys.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    loading.tried(path, "import colorsys; colorsys.rgb_to_hsv")
    with pytest.raises(LoadError, match="the wrong one"):
        loading.tried(path, "sys.path.insert(0, ''); import colorsys")
