"""Looks at the repository from time to time and has the changes loaded.

Knows two successive looks. Must not know how models are loaded.

Contract: a change is acted upon when two looks in a row have seen the same: files that are being
copied differ from look to look. What failed is not tried again before it changes. A repository that
cannot be looked at changes nothing.
"""

from __future__ import annotations

import asyncio
import logging

from penstock.server.repository import Repository
from penstock.server.repository_layout import LayoutError
from penstock.server.residents import Found

_log = logging.getLogger(__name__)


class RepositoryPoll:
    """Polls one repository; ``poll_once`` is one look, ``run`` does it every ``period_s``."""

    def __init__(self, repository: Repository, period_s: float) -> None:
        self._repository = repository
        self._period_s = period_s
        self._before: dict[str, Found] = {}

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(self._period_s)
            try:
                await self.poll_once()
            except Exception:
                _log.exception("the model repository could not be polled")

    async def poll_once(self) -> None:
        """Returns when what this look has confirmed is loaded or unloaded."""
        try:
            looks = await self._repository.look()
        except LayoutError as error:
            _log.error("the model repository cannot be looked at: %s", error)
            return
        before, self._before = self._before, looks
        await asyncio.gather(
            *[
                self._repository.refresh(found)
                for name, found in looks.items()
                if self._repository.differs(found)
                and name in before
                and before[name].stamp == found.stamp
            ],
            *[
                self._repository.unload(name, forget=True)
                for name in self._repository.known()
                if name not in looks and name not in before
            ],
        )
