from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from penstock.loadtest import children, procstat


def test_the_echo_process_ends_with_its_block_whatever_happens() -> None:
    pids = []
    with contextlib.suppress(ZeroDivisionError), children.echo() as server:
        assert procstat.is_running(server.pid)
        pids.append(server.pid)
        raise ZeroDivisionError
    assert not procstat.is_running(pids[0])


def test_a_gateway_that_does_not_start_tells_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="did not get ready"):
        children.gateway(tmp_path, "--no-such-flag").__enter__()


def test_a_load_that_is_terminated_ends_at_once() -> None:
    with children.echo() as server:
        url = f"http://127.0.0.1:{server.port}/"
        command = [sys.executable, "-m", "penstock.loadtest.blast", "--url", url, "--seconds", "60"]
        load = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            end = time.monotonic() + 20
            while procstat.fd_count(server.pid) < 20 and time.monotonic() < end:
                time.sleep(0.05)
            load.terminate()
            assert load.wait(10) == 143
        finally:
            load.kill()
            load.wait()
