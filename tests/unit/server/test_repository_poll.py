"""Polling: what is acted upon, and when; what is left alone."""

import asyncio
import shutil

import numpy as np
import pytest

from penstock.backends.fake import artefact
from penstock.server.models import ModelState
from penstock.server.repository_poll import RepositoryPoll

READY, UNAVAILABLE = ModelState.READY, ModelState.UNAVAILABLE


class Polled:
    """A site whose repository is polled by hand."""

    def __init__(self, site, **options):
        self.site = site
        self.repository = site.repository(**options)
        self.poll = RepositoryPoll(self.repository, 3600)

    async def look(self, times=1):
        for _ in range(times):
            await asyncio.wait_for(self.poll.poll_once(), 10)

    @property
    def states(self):
        return self.site.states()

    @property
    def loads(self):
        return len(self.site.fakes.sessions)

    def closed(self):
        return [session.closed for session in self.site.fakes.sessions]


@pytest.fixture
async def polled(site):
    site.fake("m")
    polled = Polled(site)
    await polled.repository.load_all()
    await polled.look()
    return polled


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.0005)


async def test_nothing_new_is_nothing_to_do(polled):
    await polled.look(3)
    assert (polled.states, polled.loads) == ({("m", "1"): READY}, 1)


async def test_a_new_model_is_loaded_when_two_looks_agree(polled):
    polled.site.fake("n")
    await polled.look()
    assert polled.states == {("m", "1"): READY}
    await polled.look()
    assert polled.states == {("m", "1"): READY, ("n", "1"): READY}
    await polled.look(2)
    assert polled.loads == 2


async def test_a_file_that_is_being_copied_is_left_alone(polled):
    whole = artefact({"kind": "echo_rows"})
    path = polled.site.root / "m" / "1" / "model.fake"
    lane = polled.site.lane("m")
    for end in range(1, len(whole), 7):
        path.write_bytes(whole[:end])
        await polled.look()
        assert polled.site.lane("m") is lane
    path.write_bytes(whole)
    await polled.look()
    assert (polled.site.lane("m"), polled.loads) == (lane, 1)
    await polled.look()
    assert polled.site.lane("m") is not lane
    assert polled.loads == 2  # never tried half
    assert polled.site.table.loads.failed == 0
    out = await polled.site.predict("m", np.ones((2, 16), np.int32))
    assert out["ROWS"].tolist() == [[2], [2]]
    await until(lambda: polled.closed() == [1, 0])


async def test_a_directory_that_grows_is_left_alone(polled):
    folder = polled.site.root / "big"
    for version in (1, 2, 3):
        polled.site.fake("big", "version_policy { all { } }", version=version)
        await polled.look()
        assert ("big", "1") not in polled.states
    (folder / "labels.txt").write_text("a")
    await polled.look()
    assert ("big", "1") not in polled.states
    await polled.look()
    assert {version for name, version in polled.states if name == "big"} == {"1", "2", "3"}


async def test_unfinished_names_do_not_count(polled):
    site = polled.site
    for name in ("n.tmp", ".n", "n~"):
        site.fake(name)
    for name in ("model.fake.part", ".model.fake.Xy3", "model.fake~"):
        (site.root / "m" / "1" / name).write_bytes(b"half")
    await polled.look(3)
    assert (polled.states, polled.loads) == ({("m", "1"): READY}, 1)
    (site.root / "n.tmp").rename(site.root / "n")
    await polled.look(2)
    assert polled.states == {("m", "1"): READY, ("n", "1"): READY}


async def test_a_model_that_is_gone_is_unloaded_when_two_looks_agree(polled):
    away = polled.site.root.parent / "away"
    (polled.site.root / "m").rename(away)
    await polled.look()
    assert polled.states == {("m", "1"): READY}
    away.rename(polled.site.root / "m")  # it was only moved about
    await polled.look(2)
    assert (polled.states, polled.loads) == ({("m", "1"): READY}, 1)
    shutil.rmtree(polled.site.root / "m")
    await polled.look(2)
    await until(lambda: polled.states == {})
    assert polled.closed() == [1]
    await polled.look(2)
    polled.site.fake("m")
    await polled.look(2)
    assert polled.states == {("m", "1"): READY}


async def test_a_change_that_does_not_load_keeps_the_old_and_is_not_tried_again(polled):
    lane = polled.site.lane("m")
    polled.site.fake("m", load_error="no")
    await polled.look(5)
    (entry,) = polled.site.table.versions("m")
    assert (entry.state, entry.loaded.lane) == (READY, lane)
    assert "reload failed: no" in entry.reason
    assert polled.site.table.loads.failed == 1
    polled.site.fake("m", kind="echo_rows")
    await polled.look(2)
    (entry,) = polled.site.table.versions("m")
    assert (entry.reason, entry.loaded.lane is lane) == ("", False)


async def test_a_broken_model_is_tried_again_when_it_changes(polled):
    polled.site.fake("bad", load_error="no")
    await polled.look(4)
    assert polled.site.reason("bad") == "no"
    assert polled.site.table.loads.failed == 1
    polled.site.fake("bad")
    await polled.look(2)
    assert polled.states["bad", "1"] is READY


async def test_a_version_is_added_and_one_replaced(polled):
    site = polled.site
    site.config("m", "version_policy { all { } }")
    site.fake("m", version=2)
    await polled.look(2)
    one, two = site.lane("m", "1"), site.lane("m", "2")
    site.fake("m", version=2, kind="echo_rows")
    await polled.look(2)
    assert site.lane("m", "1") is one
    assert site.lane("m", "2") is not two
    shutil.rmtree(site.root / "m" / "2")
    await polled.look(2)
    assert site.lane("m", "1") is one
    await until(lambda: polled.states == {("m", "1"): READY, ("m", "2"): UNAVAILABLE})
    await polled.look(2)
    assert site.table.find("m").metadata.versions == ("1",)


async def test_a_disk_that_is_away_unloads_nothing(polled):
    away = polled.site.root.parent / "away"
    polled.site.root.rename(away)
    await polled.look(3)
    assert polled.states == {("m", "1"): READY}
    away.rename(polled.site.root)
    await polled.look(3)
    assert (polled.states, polled.loads) == ({("m", "1"): READY}, 1)


async def test_a_model_that_becomes_ambiguous_and_unambiguous_again(site, tmp_path):
    site.fake("m")
    other = tmp_path / "other"
    other.mkdir()
    polled = Polled(site)
    polled.repository = site.repository(site.root, other)
    polled.poll = RepositoryPoll(polled.repository, 3600)
    await polled.repository.load_all()
    await polled.look()
    lane = site.lane("m")
    shutil.copytree(site.root / "m", other / "m")
    await polled.look(2)
    (entry,) = site.table.versions("m")
    assert "more than one place" in entry.reason
    assert entry.loaded.lane is lane
    shutil.rmtree(other / "m")
    await polled.look(2)
    (entry,) = site.table.versions("m")
    assert (entry.reason, entry.loaded.lane) == ("", lane)


async def test_a_run_goes_on_after_a_failure(site, monkeypatch):
    polled = Polled(site)
    polled.poll = RepositoryPoll(polled.repository, 0.001)
    looks = 0

    async def look():
        nonlocal looks
        looks += 1
        raise ValueError("a bug")

    monkeypatch.setattr(polled.repository, "look", look)
    task = asyncio.ensure_future(polled.poll.run())
    await until(lambda: looks == 3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
