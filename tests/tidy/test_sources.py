"""The rules of style that no linter knows, each with its exceptions and their reasons."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
# Tables of cases belong together, and a scripted day is one story.
TEST_FILE_LINES_MAX = 1000
TEST_FUNCTION_LINES_MAX = 100
COLUMNS_MAX = 100

GENERATED = {
    "server/penstock/server/model_config_schema/descriptor.py",
    "tests/data/graphpipe_fbs/graphpipe_generated.py",
}
LONG_FUNCTIONS = {
    "protocol/python/penstock/protocol/graphpipe_parse.py": "readers are closures: one name lookup "
    "less per field is a tenth of a decode",
    "protocol/vectors/invalid_vectors.py": "one table of cases",
    "protocol/vectors/valid_vectors.py": "one table of cases",
}
NO_NAMES = {"common", "helper", "helpers", "manager", "misc", "util", "utils"}
Sources = dict[Path, str]


def written(sources: Sources) -> Iterator[tuple[Path, str]]:
    return ((path, text) for path, text in sources.items() if path.as_posix() not in GENERATED)


def is_test(path: Path) -> bool:
    return path.parts[0] == "tests"


def test_files_are_short(sources: Sources) -> None:
    long = {
        str(path): lines
        for path, text in written(sources)
        if (lines := text.count("\n")) > (TEST_FILE_LINES_MAX if is_test(path) else FILE_LINES_MAX)
    }
    assert not long, f"split them: {long}"


def test_functions_are_short(sources: Sources) -> None:
    long = {
        f"{path}:{node.lineno} {node.name}": lines
        for path, text in written(sources)
        if path.as_posix() not in LONG_FUNCTIONS
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (lines := (node.end_lineno or 0) - node.lineno + 1)
        > (TEST_FUNCTION_LINES_MAX if is_test(path) else FUNCTION_LINES_MAX)
    }
    assert not long, f"split them: {long}"


def test_exceptions_are_still_needed(root: Path) -> None:
    gone = [name for name in GENERATED | LONG_FUNCTIONS.keys() if not (root / name).is_file()]
    assert not gone


def test_modules_say_what_they_are(sources: Sources) -> None:
    silent = [
        str(path)
        for path, text in written(sources)
        if not is_test(path) and text.strip()  # a test module's name says which module it tests
        if not ast.get_docstring(ast.parse(text))
    ]
    assert not silent, f"modules without a docstring: {silent}"


def test_modules_are_named_for_what_they_hold(sources: Sources) -> None:
    vague = [str(p) for p in sources if {p.stem, *p.stem.split("_")} & NO_NAMES]
    assert not vague


def test_nothing_is_left_to_do(files: tuple[Path, ...], root: Path) -> None:
    marker = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b")
    assert not list(_lines_with(marker, files, root))


def test_no_path_of_one_machine(files: tuple[Path, ...], root: Path) -> None:
    path = re.compile(r"(?<![\w.])/(home|Users|root|work|workspace)/")
    found = list(_lines_with(path, files, root))
    assert not found


def test_lines_fit(files: tuple[Path, ...], root: Path) -> None:
    """ruff looks after Python; here are the others."""
    names = {".toml", ".yaml", ".yml", ".sh", ".fbs"}
    long = [
        f"{path}:{number}"
        for path in files
        if path.suffix in names or path.name in {"Makefile", "run"}
        for number, line in enumerate((root / path).read_text().splitlines(), 1)
        if len(line) > COLUMNS_MAX
    ]
    assert not long


def _lines_with(pattern: re.Pattern[str], files: tuple[Path, ...], root: Path) -> Iterator[str]:
    for path in files:
        try:
            text = (root / path).read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if pattern.search(line):
                yield f"{path}:{number}: {line.strip()}"
