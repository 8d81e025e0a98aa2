"""Short forms of ``make fuzz`` and ``make soak``: nothing that a client does harms the server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from penstock.loadtest import corrupt_h2, samples
from penstock.loadtest.children import Child, add_sub_gateway
from penstock.loadtest.corrupt import Siege, besiege
from penstock.loadtest.idle import Rest, rest_beside_load

MIB = 2**20
RSS_GROWTH_MAX = 32 * MIB  # arenas of the allocator, the memo of heads; a leak of bodies is more

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gateway() -> Iterator[Child]:
    with add_sub_gateway() as child:
        yield child


async def test_corrupt_requests_are_answered_or_closed(gateway: Child) -> None:
    found = await besiege(
        Siege("127.0.0.1", gateway.port, samples.add_sub(), count=5_000, pid=gateway.pid)
    )
    assert found.ok, found.examples
    assert found.attacks == 5_000
    assert found.rss_bytes_after - found.rss_bytes_before < RSS_GROWTH_MAX


async def test_corrupt_conversations_over_grpc_end(gateway: Child) -> None:
    found = await corrupt_h2.besiege(
        corrupt_h2.Siege("127.0.0.1", gateway.grpc, count=5_000, seed=7, pid=gateway.pid)
    )
    assert found.ok, found.examples
    assert found.attacks == 5_000
    assert found.rss_bytes_after - found.rss_bytes_before < RSS_GROWTH_MAX


async def test_idle_connections_cost_little_and_stay_usable(gateway: Child) -> None:
    rest = Rest(
        "127.0.0.1", gateway.port, samples.add_sub()[0], gateway.pid,
        idle=500, sample=100, quiet_s=1.0, load_s=2.0,
    )  # fmt: skip
    found = await rest_beside_load(rest)
    assert not found.failures, found.first_failure
    assert found.opened == 500
    assert found.rss_bytes_after - found.rss_bytes_before < RSS_GROWTH_MAX
    assert found.rss_bytes_a_connection < 64 * 1024
    assert found.cpu_idle < 0.25
