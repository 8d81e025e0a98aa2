"""A new version appears whole, under the next number, or not at all."""

import errno
import os
import signal
import threading

import pytest

from penstock.server.commands.failure import CommandError
from penstock.server.commands.placing import configured_backend, new_version
from penstock.server.commands.unwinding import signals_unwind
from penstock.server.repository_layout import scan


def test_the_first_version_makes_the_model(tmp_path):
    model = tmp_path / "digits"
    with new_version(model, config='backend: "tvm"\n') as made:
        (made.folder / "model.so").write_bytes(b"x")
    assert made.number == 1
    assert made.path == model / "1"
    assert (model / "1" / "model.so").read_bytes() == b"x"
    assert configured_backend(model) == "tvm"
    assert sorted(p.name for p in model.iterdir()) == ["1", "config.pbtxt"]


def test_the_next_number_is_above_the_highest_and_the_configuration_stays(tmp_path):
    model = tmp_path / "m"
    (model / "3").mkdir(parents=True)
    (model / "12").mkdir()
    (model / "config.pbtxt").write_text('platform: "onnxruntime_onnx"')
    with new_version(model, config='backend: "tvm"') as made:
        pass
    assert made.number == 13
    assert configured_backend(model) == "onnxruntime"


def test_a_version_in_the_making_is_invisible_to_a_server(tmp_path):
    model = tmp_path / "m"
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.onnx").write_bytes(b"x")
    with new_version(model) as made:
        (made.folder / "model.onnx").write_bytes(b"half")
        assert [found.versions for found in scan([tmp_path])] == [(1,)]
        assert not any(found.problems for found in scan([tmp_path]))
    assert [found.versions for found in scan([tmp_path])] == [(1, 2)]


@pytest.mark.parametrize("there", [True, False])
def test_nothing_stays_of_what_failed(tmp_path, there):
    model = tmp_path / "m"
    if there:
        (model / "1").mkdir(parents=True)
    with pytest.raises(FileNotFoundError), new_version(model, config="x") as made:
        (made.folder / "missing" / "model.so").write_bytes(b"x")
    assert [p.name for p in model.iterdir()] == ["1"] if there else not model.exists()


def test_a_model_in_the_making_is_invisible_too(tmp_path):
    """A server that polls would call a model without versions unavailable, for hours perhaps."""
    model = tmp_path / "repository" / "m"
    with new_version(model) as made:
        (made.folder / "model.onnx").write_bytes(b"half")
        assert not model.exists()
        assert scan([tmp_path]) == []
    assert [found.versions for found in scan([tmp_path / "repository"])] == [(1,)]
    assert [p.name for p in tmp_path.iterdir()] == ["repository"]


def test_folders_that_were_made_for_it_do_not_stay_without_it(tmp_path, monkeypatch):
    def fail(self, other):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(type(tmp_path), "rename", fail)
    with pytest.raises(CommandError, match="Input/output error"), new_version(tmp_path / "a" / "m"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_are_no_versions_do_not_count(tmp_path):
    model = tmp_path / "m"
    for name in ("2", "007", "\u0663", "9" * 30):
        (model / name).mkdir(parents=True)
    (model / "8").write_text("a file")
    with new_version(model) as made:
        pass
    assert made.number == 3


def test_nothing_stays_of_what_is_not_kept(tmp_path):
    with new_version(tmp_path / "m", config="x") as made:
        (made.folder / "model.onnx").write_bytes(b"x")
        made.keep = False
    assert not (tmp_path / "m").exists()


def test_versions_made_at_the_same_time_get_numbers_of_their_own(tmp_path):
    together = threading.Barrier(8)
    numbers = []

    def make():
        with new_version(tmp_path / "m", config='backend: "tvm"') as made:
            (made.folder / "file").write_bytes(b"x")
            together.wait()
        numbers.append(made.number)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 9))
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [*"12345678", "config.pbtxt"]


def test_others_may_read_it(tmp_path):
    with new_version(tmp_path / "m") as made:
        pass
    plain = tmp_path / "plain"
    plain.mkdir()
    assert made.path.stat().st_mode == plain.stat().st_mode


def test_where_nothing_can_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CommandError, match="cannot write to"), new_version(tmp_path / "file"):
        pass


def test_a_configuration_that_cannot_be_read_is_told(tmp_path):
    (tmp_path / "config.pbtxt").write_text("backend: [")
    with pytest.raises(CommandError, match=r"config\.pbtxt"):
        configured_backend(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_who_ends_the_program_finds_nothing_half_made(tmp_path, number):
    def make():
        with new_version(tmp_path / "m") as made:
            (made.folder / "model.onnx").write_bytes(b"half")
            os.kill(os.getpid(), number)

    before = signal.signal(number, signal.SIG_DFL)  # Under nohup, say, it would be ignored.
    try:
        with pytest.raises(SystemExit) as ended:
            make()
        assert ended.value.code == 128 + number
        assert list(tmp_path.iterdir()) == []
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_unwind():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
