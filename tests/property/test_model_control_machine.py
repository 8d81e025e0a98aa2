"""Random loads, unloads, changes on disk and requests: none is lost, and the table tells the truth.

One event loop is driven by hand, so that operations overlap as Hypothesis likes: an operation is
begun, and other rules run before it is awaited. Some models run on the loop, some on threads.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from penstock.backends import catalog
from penstock.backends.fake import FakeBackend, artefact
from penstock.protocol import dtype as dt
from penstock.protocol.errors import Code, InferError
from penstock.protocol.message import InferRequest, Signature, TensorSpec
from penstock.server.gateway import Gateway
from penstock.server.model_control import ControlMode, ModelControl
from penstock.server.models import ModelState, ModelTable
from penstock.server.repository import Repository, RepositoryOptions

NAMES = st.sampled_from(["a", "b"])
VERSIONS = st.sampled_from([1, 2, 3])
CONFIG = json.dumps({"backend": "fake", "max_batch_size": 8, "version_policy": {"all": {}}})
ARTEFACTS = st.sampled_from(
    [
        {"kind": "add_sub"},
        {"kind": "add_sub", "delay_ms": "3"},
        {"load_error": "made to fail"},
    ]
)
VALUES = st.lists(st.integers(0, 99), min_size=1, max_size=6)
ABSENT = (Code.NOT_FOUND, Code.UNAVAILABLE)


class ControlMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp())
        self.fakes = FakeBackend()
        self.patches = [
            mock.patch.dict(catalog._made, {"fake": self.fakes}),
            mock.patch("penstock.server.model_upload.tempfile.tempdir", str(self.folder)),
        ]
        for patch in self.patches:
            patch.start()
        self.root = self.folder / "models"
        self.root.mkdir()
        self.table = ModelTable()
        self.gateway = Gateway(self.table)
        self.repository = Repository(RepositoryOptions((self.root,)), self.table)
        self.control = ModelControl(self.repository, self.table, ControlMode.EXPLICIT)
        self.running: list[asyncio.Task[Any]] = []
        self.asked: list[asyncio.Task[Any]] = []
        self.numbers = itertools.count()
        self.write("a", 1, {"kind": "add_sub", "delay_ms": "3"})
        self.load("a")
        self.settle()

    def turn(self, turns: int = 1) -> None:
        async def pause() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.loop.run_until_complete(pause())

    def begin(self, work: Any) -> None:
        self.running.append(self.loop.create_task(work))
        self.turn()

    # ------------------------------------------------------------------ the disk

    @rule(name=NAMES, version=VERSIONS, options=ARTEFACTS)
    def write(self, name: str, version: int, options: dict[str, str]) -> None:
        folder = self.root / name / str(version)
        folder.mkdir(parents=True, exist_ok=True)
        (self.root / name / "config.pbtxt").write_text("version_policy { all { } }")
        # Written beside and moved: a file of its own, whatever the clock of the disk says.
        new = folder / f"new{next(self.numbers)}.tmp"
        new.write_bytes(artefact(options))
        new.rename(folder / "model.fake")

    @rule(name=NAMES, version=VERSIONS)
    def erase(self, name: str, version: int) -> None:
        shutil.rmtree(self.root / name / str(version), ignore_errors=True)

    # ------------------------------------------------------------------ the clients

    @rule(name=NAMES)
    def load(self, name: str) -> None:
        self.begin(self.control.load(name))

    @rule(name=NAMES, version=VERSIONS, options=ARTEFACTS)
    def upload(self, name: str, version: int, options: dict[str, str]) -> None:
        files = {f"{version}/model.fake": artefact(options)}
        self.begin(self.control.load(name, CONFIG, files))

    @rule(name=NAMES)
    def unload(self, name: str) -> None:
        self.begin(self.control.unload(name))

    @rule()
    def leave(self) -> None:
        """A client goes away; what it began goes on."""
        if self.running:
            self.running.pop().cancel()

    @rule(name=NAMES, version=st.sampled_from(["", "1", "2"]), values=VALUES)
    def ask(self, name: str, version: str, values: list[int]) -> None:
        self.asked += [self.loop.create_task(self.answer(name, version, v)) for v in values]

    @rule(pick=st.integers(0, 99), values=VALUES)
    def ask_what_serves(self, pick: int, values: list[int]) -> None:
        serving = [entry for entry in self.table if entry.loaded is not None]
        if serving:
            entry = serving[pick % len(serving)]
            self.ask(name=entry.name, version=entry.version, values=values)

    async def answer(self, name: str, version: str, value: int) -> None:
        serves = self.gateway.model_ready(name, version)
        array = np.full((1, 16), value, np.int32)
        specs = [TensorSpec(f"INPUT{i}", dt.INT32, (1, 16)) for i in range(2)]
        request = InferRequest(Signature(specs), [array, array], model=name, version=version)
        try:
            reply = await self.gateway.predict(request)
        except InferError as error:
            refusal, reply = error.code, None
        if reply is None:
            # Nothing served when it came: once a request is accepted, it is answered.
            assert not serves
            assert refusal in ABSENT
        else:
            assert serves
            assert reply.arrays[0].tolist() == (2 * array).tolist()

    @rule(turns=st.integers(1, 30))
    def pass_time(self, turns: int) -> None:
        self.turn(turns)

    @rule()
    def settle(self) -> None:
        """Everything that was begun comes to its end."""

        async def finish() -> None:
            async with asyncio.timeout(30):
                done = await asyncio.gather(*self.running, return_exceptions=True)
                for outcome in done:
                    assert outcome is None or isinstance(outcome, InferError), outcome
                while self.repository.pending or self.repository._residents.retiring:
                    await asyncio.sleep(0.0005)
                await asyncio.gather(*self.asked)

        self.loop.run_until_complete(finish())
        self.running.clear()
        self.asked.clear()
        serving = [entry for entry in self.table if entry.loaded is not None]
        live = [session for session in self.fakes.sessions if not session.closed]
        used = {id(s) for entry in serving for s in entry.loaded.lane._sessions}
        assert {id(session) for session in live} == used  # nothing else is kept, nothing is missing
        assert all(session.closed <= 1 for session in self.fakes.sessions)
        assert not any(entry.state in (ModelState.LOADING, ModelState.UNLOADING)
                       for entry in self.table)  # fmt: skip
        uploads = len(list(self.folder.glob("penstock-model-*")))
        assert uploads <= len({entry.name for entry in serving})

    # ------------------------------------------------------------------ what always holds

    @invariant()
    def the_table_is_consistent(self) -> None:
        if not hasattr(self, "table"):
            return
        lanes = []
        for entry in self.table:
            assert (entry.state is ModelState.READY) == (entry.loaded is not None)
            if entry.loaded is not None:
                lanes.append(entry.loaded.lane)
                assert not entry.loaded.lane._closing
                assert self.table.find(entry.name, entry.version) is entry.loaded
                assert entry.version in entry.loaded.metadata.versions
        assert len(set(map(id, lanes))) == len(lanes)

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            self.settle()
            self.loop.run_until_complete(self.repository.close())
            assert all(session.closed == 1 for session in self.fakes.sessions)
            assert list(self.folder.glob("penstock-model-*")) == []
        finally:
            for patch in self.patches:
                patch.stop()
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()
            shutil.rmtree(self.folder)


TestModelControl = ControlMachine.TestCase
TestModelControl.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
