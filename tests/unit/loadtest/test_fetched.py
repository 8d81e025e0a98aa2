"""Other people's programs in a cache: made once, made anew if half made, refused in words."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from penstock.loadtest import fetched, perf_analyzer, triton


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PENSTOCK_TEST_CACHE", str(tmp_path))
    return tmp_path


def test_an_environment_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, ...]] = []

    def run(*command: str) -> None:
        ran.append(command)
        Path(command[-1]).mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(fetched, "_run", run)
    first = fetched.venv("tool")
    assert fetched.venv("tool") == first
    assert len(ran) == 1
    (first / ".complete").unlink()
    fetched.venv("tool")
    assert len(ran) == 2


def test_what_cannot_be_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(fetched.Unobtainable, match=r"failed: .*no-such-option"):
        fetched._run("python3", "--no-such-option")
    monkeypatch.setattr(fetched, "INSTALL_S_MAX", 0.05)
    with pytest.raises(fetched.Unobtainable, match="took more than"):
        fetched._run("sleep", "5")


@pytest.mark.parametrize("fetch", [perf_analyzer.Analyzer, triton.fetch])
def test_other_machines_are_refused(fetch: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert callable(fetch)
    with pytest.raises(fetched.Unobtainable, match="x86-64 Linux only"):
        fetch()


def test_flags_of_a_load() -> None:
    load = perf_analyzer.Load("m", "h:1", "grpc", 4, window_s=0.25, shape="A:8", memory="system",
                              output_bytes=32)  # fmt: skip
    flags = load.flags()
    told = dict(zip(flags[::2], flags[1::2], strict=True))
    assert told["--measurement-interval"] == "250"
    assert told["--shape"] == "A:8"
    assert told["--output-shared-memory-size"] == "32"
    assert "--shared-memory" not in perf_analyzer.Load("m", "h:1", "http", 1).flags()


def test_a_servers_processes_are_all_below_it() -> None:
    child = subprocess.Popen(["sleep", "20"])
    try:
        assert child.pid in triton._children(os.getpid())
    finally:
        child.kill()
        child.wait()
    assert child.pid not in triton._children(os.getpid())
    assert triton._children(child.pid) == []
