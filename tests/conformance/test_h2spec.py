"""h2spec, the conformance suite for HTTP/2 and HPACK, against our transport: every case of it.

It is built by Go into the cache. ``--max-header-length`` is a setting of h2spec's for servers that
take larger frames than the smallest allowed: with it, a HEADERS frame of its case on frame sizes is
larger than we take, which is what the case is about.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

MODULE = "github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible"
SECTIONS = ("generic", "http2", "hpack")
KNOWN_FAILURES: dict[str, str] = {}
"""Cases (``package: name``) that fail, and why that is right. They are run all the same."""


@pytest.fixture(scope="module")
def h2spec(cannot_have: Callable[[str], NoReturn], cache: Path) -> Path:
    program = cache / "go" / "bin" / "h2spec"
    if not program.exists():
        go = shutil.which("go")
        if go is None:
            cannot_have("NOT TESTED: h2spec needs Go to be built")
        environment = {**os.environ, "GOBIN": str(program.parent), "GOFLAGS": ""}
        done = subprocess.run(
            [go, "install", MODULE], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            cannot_have(f"NOT TESTED: h2spec was not built: {done.stderr[-1500:]}")
    return program


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
def test_h2spec(h2spec: Path, grpc_echo: Callable[..., int], section: str, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    done = subprocess.run(
        [
            str(h2spec), section, "-h", "127.0.0.1", "-p", str(grpc_echo()), "-o", "5",
            "--max-header-length", "16000", "-j", str(report),
        ],
        capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip
    suites = ET.parse(report).getroot().findall("testsuite")
    cases = [case for suite in suites for case in suite.findall("testcase")]
    failed = {
        f"{case.get('package')}: {case.get('classname')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    }
    assert len(cases) >= {"generic": 40, "http2": 80, "hpack": 5}[section], done.stdout[-2000:]
    assert not [case for case in cases if case.find("skipped") is not None]
    assert failed == {name for name in KNOWN_FAILURES if name.startswith(section)}, done.stdout
