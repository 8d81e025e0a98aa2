"""The project's parts agree with each other: portions, packaging, documents, targets, versions."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

PORTIONS = {
    "protocol/python/penstock/protocol",
    "backends/penstock/backends",
    "server/penstock/server",
    "clients/python/penstock/client",
    "loadtest/penstock/loadtest",
}
_LINK = re.compile(r"(?<!!)\[[^\]\[]*\]\(([^)\s]+)\)")
_TARGET = re.compile(r"^([a-z][a-z0-9-]*):.*?(?:## (.*))?$", re.MULTILINE)
# A command of its own (in a console block or in backquotes), not "make" in a sentence.
_MAKE = re.compile(r"(?:^\$ |`)make(?:\s+[A-Z]+=\S+)*\s+([a-z][a-z0-9-]*)", re.MULTILINE)


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())


def test_the_namespace_belongs_to_nobody(root: Path) -> None:
    assert not [p for portion in PORTIONS if (p := root / portion / "../__init__.py").exists()]


def test_every_portion_is_typed_and_packaged(root: Path, project: dict[str, Any]) -> None:
    assert {str(p.parent.relative_to(root)) for p in root.glob("*/penstock/*/py.typed")} | {
        str(p.parent.relative_to(root)) for p in root.glob("*/python/penstock/*/py.typed")
    } == PORTIONS
    hatch = project["tool"]["hatch"]["build"]
    parents = {str(Path(portion).parent) for portion in PORTIONS}
    assert set(hatch["targets"]["wheel"]["packages"]) == parents
    assert set(hatch["dev-mode-dirs"]) == {str(Path(parent).parent) for parent in parents}
    assert set(project["tool"]["mypy"]["mypy_path"].split(":")) >= set(hatch["dev-mode-dirs"])


def test_every_root_is_held_to_the_layers(project: dict[str, Any]) -> None:
    roots = {portion.rpartition("penstock/")[2] for portion in PORTIONS}
    assert {r.removeprefix("penstock.") for r in project["tool"]["importlinter"]["root_packages"]} \
        == roots  # fmt: skip


def test_the_changelog_tells_of_this_version(root: Path, project: dict[str, Any]) -> None:
    version = re.escape(project["project"]["version"])
    assert re.search(rf"^## {version}\b", (root / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_targets_explain_themselves(root: Path) -> None:
    makefile = (root / "Makefile").read_text()
    phony = " ".join(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE))
    assert phony
    explained = {name for name, text in _TARGET.findall(makefile) if text}
    assert set(phony.split()) == explained


def test_commands_in_documents_are_targets(root: Path, documents: dict[Path, str]) -> None:
    targets = {name for name, _ in _TARGET.findall((root / "Makefile").read_text())}
    unknown = {
        f"{path}: make {name}"
        for path, text in documents.items()
        for name in _MAKE.findall(text)
        if name not in targets
    }
    assert not unknown


def test_links_lead_somewhere(root: Path, documents: dict[Path, str]) -> None:
    dead = []
    for path, text in documents.items():
        for link in _LINK.findall(_without_code(text)):
            if re.match(r"[a-z]+:", link):
                continue
            name, _, anchor = link.partition("#")
            target = root / path.parent / name if name else root / path
            if not target.exists() or (anchor and anchor not in _anchors(target)):
                dead.append(f"{path}: {link}")
    assert not dead


def test_the_first_screen_has_the_two_commands(root: Path) -> None:
    first = "\n".join((root / "README.md").read_text().splitlines()[:60])
    for needed in ("make run", "make test", "curl ", "from penstock.client import Client"):
        assert needed in first, needed


def test_architecture_stays_short(root: Path) -> None:
    """Four printed pages: about 2,000 words."""
    assert len((root / "ARCHITECTURE.md").read_text().split()) <= 2_000


def _without_code(text: str) -> str:
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)


def _anchors(document: Path) -> set[str]:
    """The anchors that forges give to headings."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings}
