"""Penstock beside a real Triton: the same requests, and Triton's recorded answers.

``python -m tests.conformance.oracle record`` made the recordings. What differs must be in
``oracle.differences`` with its reason, and what is there must differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from typing import Any, get_args

import pytest

pytest.importorskip("tritonclient.grpc")

from .oracle import compare, differences, penstock, replay, tables
from .oracle.case import Grpc, Server

TRANSPORTS = ("own", "grpcio")
_FAULTS = ("INTERNAL", "UNKNOWN")


@pytest.fixture(scope="module", params=TRANSPORTS)
def targets(request: pytest.FixtureRequest) -> Iterator[penstock.Targets]:
    with penstock.serving(request.param) as targets:
        yield targets


@pytest.fixture(scope="module")
def memory() -> Iterator[SharedMemory]:
    with replay.shared_memory() as memory:
        yield memory


@pytest.mark.parametrize("table", tables.NAMES)
def test_answers_as_triton(table: str, targets: penstock.Targets, memory: SharedMemory) -> None:
    theirs, known = tables.recorded(table), differences.reasons(table)
    unknown, gone = [], []
    for case in tables.cases(table):
        ours = targets[case.server].ask(case, memory)
        told = compare.difference(case, theirs[case.name], ours)
        ruled = any(rule.covers(theirs[case.name], ours) for rule in differences.RULES.values())
        worse = is_fault(ours) and not is_fault(theirs[case.name])
        meant = (ruled or case.name in known) and not worse
        if told and not meant:
            unknown.append(f"{case.name}: {told}")
        elif not told and case.name in known:
            gone.append(case.name)
    assert not unknown, "\n".join(["differs from Triton:", *unknown])
    assert not gone, f"listed in differences.py, but as Triton: {gone}"


def is_fault(answer: replay.Answer) -> bool:
    """None, or that it is the server's fault: no difference can mean that."""
    return "closed" in answer or answer.get("status") == 500 or answer.get("code") in _FAULTS


def test_every_kind_of_server_is_asked(targets: penstock.Targets) -> None:
    assert set(targets) == set(get_args(Server))


def test_every_case_was_recorded() -> None:
    for table in tables.NAMES:
        assert tables.recorded(table).keys() == {case.name for case in tables.cases(table)}, table


def test_every_known_difference_names_a_case() -> None:
    for table, entries in differences.ENTRIES.items():
        names = {case.name for case in tables.cases(table)}
        listed = [case for cases in entries.values() for case in cases]
        assert set(listed) <= names, table
        assert len(set(listed)) == len(listed), table


def test_both_protocols_and_every_rpc_are_asked() -> None:
    asked = {c.method for t in tables.NAMES for c in tables.cases(t) if isinstance(c, Grpc)}
    service = replay.service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert {method.name for method in service.methods} <= asked


@pytest.mark.parametrize("rule", differences.RULES)
def test_rules_cover_something_recorded(rule: str) -> None:
    refused = {"status": 400, "code": "INVALID_ARGUMENT", "json": {"error": "?"}}
    covers: Any = differences.RULES[rule].covers
    answers = [answer for table in tables.NAMES for answer in tables.recorded(table).values()]
    assert any(covers(answer, refused) for answer in answers)
    assert not covers({"status": 200}, refused)
