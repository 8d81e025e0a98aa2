"""What the tests of the server's core share: a clock moved by hand, a puppet loop, lanes on fakes.

No test waits for time to pass: workers are held at gates, timers fire when the test says so.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.backends import catalog
from penstock.backends.base import ModelSource
from penstock.backends.fake import FakeBackend, FakeSession, artefact
from penstock.protocol import dtype as dt
from penstock.protocol.message import Array, InferRequest, OutputRequest, Signature, TensorSpec
from penstock.server.admission import Admission
from penstock.server.gateway import Gateway
from penstock.server.job import Job
from penstock.server.lane import Lane
from penstock.server.model_control import ControlMode, ModelControl
from penstock.server.model_loading import LoadOptions
from penstock.server.models import ModelState, ModelTable
from penstock.server.policy import LanePolicy
from penstock.server.repository import Repository, RepositoryOptions

PATIENCE_S = 10.0
"""How long a test waits for what must happen before it fails."""


class Clock:
    """Stands in for ``monotonic_ns``; safe to move from several threads."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000
        self._lock = threading.Lock()

    def __call__(self) -> int:
        return self.now_ns

    def pass_us(self, us: int) -> None:
        with self._lock:
            self.now_ns += us * 1000


class _Timer:
    def __init__(self, at_ns: int, callback: Callable[[], None]) -> None:
        self.at_ns = at_ns
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class PuppetLoop:
    """The part of an event loop that a lane uses; nothing runs before the test says so."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ready: deque[Callable[[], None]] = deque()
        self._timers: list[_Timer] = []
        self.timers_set = 0

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._ready.append(callback)

    call_soon_threadsafe = call_soon

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> _Timer:
        timer = _Timer(self._clock() + round(delay_s * 1e9), callback)
        self._timers.append(timer)
        self.timers_set += 1
        return timer

    def run_in_executor(self, _: None, work: Callable[[], None]) -> asyncio.Future[None]:
        return asyncio.get_running_loop().run_in_executor(None, work)

    @property
    def next_timer_ns(self) -> int:
        """When the next timer fires; 0 for none."""
        return min((t.at_ns for t in self._timers if not t.cancelled), default=0)

    def turn(self) -> None:
        """One turn: what is ready now, and the timers that are due."""
        now = self._clock()
        due = [t for t in self._timers if t.at_ns <= now and not t.cancelled]
        self._timers = [t for t in self._timers if t not in due and not t.cancelled]
        self._ready.extend(t.callback for t in sorted(due, key=lambda t: t.at_ns))
        for _ in range(len(self._ready)):
            self._ready.popleft()()

    def run(self) -> None:
        """Turns until nothing is ready."""
        self.turn()
        while self._ready:
            self.turn()

    def pass_us(self, us: int) -> None:
        """Lets time pass, then runs what became due."""
        self._clock.pass_us(us)
        self.run()


class Outcome:
    """What came back for one job."""

    def __init__(self) -> None:
        self.calls = 0
        self.event = asyncio.Event()


class Rig:
    """Makes fake sessions, lanes on them and jobs for them; takes all down at the end."""

    def __init__(self) -> None:
        self.lanes: list[Lane] = []
        self.gates: list[threading.Event] = []
        self.answered: list[Job] = []
        """In the order of the callbacks."""

    def gate(self) -> threading.Event:
        """A closed gate that is opened at the end of the test at the latest."""
        self.gates.append(threading.Event())
        return self.gates[-1]

    def session(
        self,
        *,
        gate: threading.Event | None = None,
        compute: Callable[[Sequence[Array]], Any] | None = None,
        outputs: int = 1,
        **options: str,
    ) -> FakeSession:
        """INT32 [-1, -1] unless told; with ``compute``: INPUT0 to OUTPUT0.. of that type."""
        options = {"shape": "-1", **options}
        if compute is None:
            return FakeBackend(gate=gate).load(ModelSource("m", Path(), options=options))
        plain = FakeBackend().load(ModelSource("m", Path(), options=options))
        outs = [
            TensorSpec(f"OUTPUT{i}", plain.outputs[0].dtype, plain.outputs[0].shape)
            for i in range(outputs)
        ]
        backend = FakeBackend(inputs=plain.inputs, outputs=outs, compute=compute, gate=gate)
        return backend.load(ModelSource("m", Path(), options=options))

    def lane(
        self,
        *sessions: FakeSession,
        rows_max: int = 8,
        inline: bool = False,
        loop: Any = None,
        **options: Any,
    ) -> Lane:
        """A lane that starts in ``inline`` or threads mode; ``options`` are its policy's."""
        sessions = sessions or (self.session(),)
        admission = Admission("m", sessions[0].inputs, sessions[0].outputs, rows_max)
        lane = Lane("m", "3", sessions, admission, policy=LanePolicy(**options), loop=loop)
        lane.learned(0 if inline else 1 << 40)
        self.lanes.append(lane)
        return lane

    def request(
        self,
        *arrays: Array,
        outputs: Sequence[str] = (),
        model: str = "m",
        **fields: Any,
    ) -> InferRequest:
        """INT32 inputs INPUT0, INPUT1, ...."""
        specs = [
            TensorSpec(f"INPUT{i}", dt.of_numpy(array.dtype), array.shape)
            for i, array in enumerate(arrays)
        ]
        signature = Signature(specs, [OutputRequest(name) for name in outputs])
        return InferRequest(signature, arrays, model=model, **fields)

    def job(
        self, lane: Lane, *arrays: Array, priority: int = 0, outputs: Sequence[str] = (), **f: Any
    ) -> Job:
        """A job that is not submitted yet; its ``context`` is an ``Outcome``."""
        request = self.request(*arrays, outputs=outputs, **f)
        plan = lane.admission.plan(request.signature)
        job = Job(request, arrays, plan.rows, plan.key, plan.wanted, self._on_done, Outcome())
        job.priority = priority
        return job

    def submit(self, lane: Lane, *arrays: Array, **fields: Any) -> Job:
        job = self.job(lane, *(arrays or (self.rows(1),)), **fields)
        lane.submit(job)
        return job

    def _on_done(self, job: Job) -> None:
        job.context.calls += 1
        job.context.event.set()
        self.answered.append(job)

    @staticmethod
    def rows(count: int, value: int = 1, width: int = 2) -> Array:
        return np.full((count, width), value, np.int32)

    async def done(self, *jobs: Job) -> None:
        """Waits until every one of ``jobs`` is answered."""
        async with asyncio.timeout(PATIENCE_S):
            for job in jobs:
                await job.context.event.wait()

    @staticmethod
    async def entered(session: FakeSession, runs: int = 1) -> None:
        """Waits until ``runs`` further runs have begun."""
        for _ in range(runs):
            assert await asyncio.to_thread(session.entered.acquire, timeout=PATIENCE_S)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Lets the loop turn until ``condition`` holds."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.0005)

    async def close(self) -> None:
        for gate in self.gates:
            gate.set()
        async with asyncio.timeout(PATIENCE_S):
            for lane in self.lanes:
                await lane.close()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    yield rig
    await rig.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time as the lane and its workers see it."""
    clock = Clock()
    monkeypatch.setattr("penstock.server.lane.monotonic_ns", clock)
    monkeypatch.setattr("penstock.server.worker.monotonic_ns", clock)
    return clock


@pytest.fixture
def puppet(clock: Clock) -> PuppetLoop:
    return PuppetLoop(clock)


NewJob = Callable[..., Job]


@pytest.fixture
def new_job() -> NewJob:
    """Jobs for the pure parts: ``new_job(rows, key, priority, deadline_ns)``."""

    def make(
        rows: int = 1,
        key: Hashable = "k",
        priority: int = 0,
        deadline_ns: int = 0,
        arrays: Sequence[Array] = (),
    ) -> Job:
        request = InferRequest(Signature(()), arrays)
        job = Job(request, arrays, rows, key, (0,), lambda job: None)
        job.priority, job.deadline_ns = priority, deadline_ns
        return job

    return make


class Site:
    """A repository on disk and what was loaded from it."""

    def __init__(self, root: Path) -> None:
        self.root = root / "models"
        self.root.mkdir()
        self.table = ModelTable()
        self.gateway = Gateway(self.table)
        self.fakes = FakeBackend()
        """The catalog's backend 'fake' of this test."""
        self.repositories: list[Repository] = []

    def fake(
        self, name: str, config: str | None = None, *, version: int = 1, **options: str
    ) -> Path:
        folder = self.root / name / str(version)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.fake").write_bytes(artefact(options))
        return self.config(name, config)

    def config(self, name: str, text: str | None) -> Path:
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        if text is not None:
            (folder / "config.pbtxt").write_text(text)
        return folder

    def repository(
        self,
        *roots: Path,
        load_threads: int = 2,
        load_retries: int = 0,
        config_name: str = "",
        **load: Any,
    ) -> Repository:
        """One that is closed at the end of the test; ``load`` are ``LoadOptions``."""
        options = LoadOptions(**{"cores": 2, **load})
        roots = roots or (self.root,)
        made = Repository(
            RepositoryOptions(roots, load_threads, load_retries, config_name, options), self.table
        )
        self.repositories.append(made)
        return made

    async def load(self, *roots: Path, **options: Any) -> None:
        await self.repository(*roots, **options).load_all()

    async def control(self, *names: str, **options: Any) -> ModelControl:
        """Under explicit control, with the models of these ``names`` loaded."""
        repository = self.repository(**options)
        await repository.load_all(names)
        return ModelControl(repository, self.table, ControlMode.EXPLICIT)

    def states(self) -> dict[tuple[str, str], ModelState]:
        return {(entry.name, entry.version): entry.state for entry in self.table}

    def reason(self, name: str, version: str = "1") -> str:
        (entry,) = [e for e in self.table.versions(name) if e.version == version]
        assert entry.state is ModelState.UNAVAILABLE
        assert entry.loaded is None
        return entry.reason

    def lane(self, name: str, version: str = "") -> Lane:
        return self.table.find(name, version).lane

    async def predict(self, name: str, *arrays: Array, **fields: Any) -> Any:
        tensors = [
            TensorSpec(f"INPUT{i}", dt.of_numpy(a.dtype), a.shape) for i, a in enumerate(arrays)
        ]
        request = InferRequest(Signature(tensors), arrays, model=name, **fields)
        return (await self.gateway.predict(request)).named()

    async def close(self) -> None:
        for repository in self.repositories:
            await asyncio.wait_for(repository.close(), PATIENCE_S)


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    site = Site(tmp_path)
    monkeypatch.setitem(catalog._made, "fake", site.fakes)
    yield site
    await site.close()
