"""What the documents tell a reader to type really runs.

A fenced block with the word ``run`` after its language is executed, in the order of the page and in
one folder per page, against a live demo server whose ports stand in for 8000 to 8002 (9000 to
9002 become free ports):

* ``console run``: lines that begin with ``$ `` are commands, as one bash script per block; lines
  without it, if there are any, are what it must print.
* ``python run``: a program; a ``text`` block right after it is what it must print.

``...`` in expected output stands for anything.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.zoo.engines import engine_or_skip

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ENGINES = {"trees": ("lightgbm", "xgboost"), "compile": ("tvm",)}
"""Pages whose examples need other engines than their name says, or than ONNX Runtime."""
_BLOCK = re.compile(
    r"^```(?P<language>console|python) run\n(?P<code>.*?)^```$"
    r"(?:\s*^```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Block:
    """``script`` is bash or Python; ``expected`` is None where any output will do."""

    language: str
    line: int
    script: str
    expected: str | None


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        if match["language"] == "python":
            yield Block("python", line, match["code"], match["output"])
        else:
            yield Block("console", line, *_console(match["code"]))


def _console(code: str) -> tuple[str, str | None]:
    script, output, within = [], [], False
    for line in code.splitlines():
        if line.startswith("$ "):
            script.append(line[2:])
            within = _goes_on("\n".join(script))
        elif within:
            script.append(line)
            within = _goes_on("\n".join(script))
        else:
            output.append(line)
    return "\n".join(script), "\n".join(output) if output else None


def _goes_on(script: str) -> bool:
    """Whether the last command is not complete: a backslash at the end, or an open quotation."""
    return script.endswith("\\") or script.count("'") % 2 == 1


def test_the_pages_have_examples() -> None:
    assert sum(len(list(blocks(page))) for page in PAGES) >= 10
    assert {b.language for b in blocks(ROOT / "README.md")} == {"console", "python"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(blocks(p))], ids=lambda p: str(p.relative_to(ROOT))
)
def test_examples_run(page: Path, digits_server: Any, cannot_have: Any, tmp_path: Path) -> None:
    for name in ENGINES.get(page.stem, (page.stem,) if page.parent.name == "backends" else ()):
        engine_or_skip(name)
    ports = {"8000": digits_server.http, "8002": digits_server.metrics}
    ports |= {"8001": digits_server.grpc, **free_ports("9000", "9001", "9002")}
    bin_folder = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "100",
        "NO_COLOR": "1",
    }
    for block in blocks(page):
        script = adapted(block.script, ports)
        words = [sys.executable, "-c", script] if block.language == "python" else [
            "bash", "-euo", "pipefail", "-c", script,
        ]  # fmt: skip
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
            timeout=60,
        )  # fmt: skip
        if "curl: command not found" in done.stderr:
            cannot_have("the examples need curl")
        where = f"{page.relative_to(ROOT)}:{block.line}"
        assert done.returncode == 0, f"{where}\n{script}\n{done.stdout}{done.stderr}"
        if block.expected is not None:
            wanted = adapted(block.expected, ports)
            assert alike(done.stdout, wanted), (
                f"{where}\n{wanted}\n--- but it printed\n{done.stdout}"
            )


def free_ports(*names: str) -> dict[str, int]:
    """A free port for each name; they are taken a moment later, which is good enough here."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    ports = {name: s.getsockname()[1] for name, s in zip(names, sockets, strict=True)}
    for opened in sockets:
        opened.close()
    return ports


def adapted(script: str, ports: dict[str, int]) -> str:
    """With the ports of the test; commands that rely on the default server get ``--url``."""
    script = re.sub(
        r"(?m)^(\s*penstock (?:infer|models)\b)(?!.*--url)", r"\1 --url http://127.0.0.1:8000",
        script,
    )  # fmt: skip
    return re.sub(r"\b(8000|8001|8002|9000|9001|9002)\b", lambda m: str(ports[m[1]]), script)


def alike(printed: str, wanted: str) -> bool:
    """Whether they are equal but for blanks at the ends of lines and what ``...`` stands for."""
    lines = "\n".join(line.rstrip() for line in printed.strip().splitlines())
    parts = "\n".join(line.rstrip() for line in wanted.strip().splitlines()).split("...")
    return re.fullmatch(".*?".join(map(re.escape, parts)), lines, re.DOTALL) is not None
