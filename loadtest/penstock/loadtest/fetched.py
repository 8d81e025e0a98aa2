"""Other people's programs, fetched once from the package registry into a cache folder.

Knows virtual environments and pip. Must not know what is in a package. An environment is named by
what was asked for, and complete when its stamp is there: half a download is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

INSTALL_S_MAX = 600


class Unobtainable(Exception):
    """A program cannot be had here; the text says why and what would help."""


def cache() -> Path:
    """Where fetched programs are kept: ``PENSTOCK_TEST_CACHE``, else ``.cache`` of this folder."""
    return Path(os.environ.get("PENSTOCK_TEST_CACHE") or ".cache").resolve()


def venv(name: str, *installs: Sequence[str]) -> Path:
    """The folder of an environment in which each of ``installs`` was given to ``pip install``.

    Raises:
        Unobtainable: pip failed, as it does without a network.
    """
    recipe = json.dumps([sys.version, *map(list, installs)])
    folder = cache() / "venvs" / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    stamp = folder / ".complete"
    if not stamp.exists():
        shutil.rmtree(folder, ignore_errors=True)
        _run(sys.executable, "-m", "venv", str(folder))
        for arguments in installs:
            _run(str(folder / "bin" / "python"), "-m", "pip", "install", "-q", *arguments)
        stamp.write_text(recipe)
    return folder


def packages(environment: Path) -> Path:
    """The ``site-packages`` of an environment."""
    (folder,) = environment.glob("lib/python*/site-packages")
    return folder


def _run(*command: str) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=INSTALL_S_MAX
        )
    except subprocess.TimeoutExpired:
        raise Unobtainable(f"{' '.join(command)} took more than {INSTALL_S_MAX} s") from None
    if done.returncode:
        raise Unobtainable(f"{' '.join(command)} failed: {done.stderr.strip()[-1500:]}")
