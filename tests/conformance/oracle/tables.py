"""The tables of cases, and where their recorded answers lie.

Knows names and files. Must not know servers.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any, Final

from .case import Case

NAMES: Final = (
    "routes", "infer_json", "infer_binary", "classification", "parameters", "compression",
    "control", "shared_memory", "settings", "generate", "decoupled", "grpc_admin", "grpc_infer",
)  # fmt: skip
_RECORDED: Final = Path(__file__).with_name("recorded")


def cases(table: str) -> list[Case]:
    """The cases of a table in order; their names are different."""
    module = importlib.import_module(f"{__package__}.cases.{table}")
    found: list[Case] = module.CASES
    names = [case.name for case in found]
    if len(set(names)) != len(names):
        twice = {name for name in names if names.count(name) > 1}
        raise ValueError(f"{table}: names that occur twice: {sorted(twice)}")
    return found


def recorded(table: str) -> dict[str, Any]:
    """Triton's answers by the cases' names."""
    document = json.loads((_RECORDED / f"{table}.json").read_text())
    answers: dict[str, Any] = document["answers"]
    return answers


def record(table: str, server: str, answers: dict[str, Any]) -> None:
    """Keeps answers, with the server that gave them."""
    _RECORDED.mkdir(exist_ok=True)
    document = {"server": server, "answers": answers}
    text = json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True)
    (_RECORDED / f"{table}.json").write_text(text + "\n")
