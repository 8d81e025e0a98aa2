from __future__ import annotations

import contextlib
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
