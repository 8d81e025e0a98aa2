from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from penstock.loadtest import procstat


def test_cpu_time_follows_work_not_waiting() -> None:
    pid = os.getpid()
    before = procstat.read(pid)
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    worked = procstat.read(pid)
    time.sleep(0.1)
    waited = procstat.read(pid)
    assert 0.1 <= worked.cpu_s - before.cpu_s < 0.3
    assert waited.cpu_s - worked.cpu_s < 0.05
    assert waited.user_s + waited.system_s == pytest.approx(waited.cpu_s, abs=0.1)
    assert waited.switches_voluntary > before.switches_voluntary
    assert before.rss_bytes > 2**20
    assert before.threads >= 1


def test_descriptors_are_counted() -> None:
    before = procstat.fd_count(os.getpid())
    pair = os.pipe()
    try:
        assert procstat.fd_count(os.getpid()) == before + 2
    finally:
        for fd in pair:
            os.close(fd)


def test_a_gone_process_is_told() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert not procstat.is_running(process.pid)
    assert procstat.is_running(os.getpid())
    for look in (procstat.read, procstat.cpu_s, procstat.rss_bytes, procstat.fd_count):
        with pytest.raises(ProcessLookupError):
            look(process.pid)
