"""Rules that let only those who know a header's value use a group of the API, as Triton has them.

Knows the names of the groups and how a rule is written: ``GROUP[,GROUP...]:KEY=VALUE``. Must not
know routes, methods and transports: whoever serves a group asks for its rule and answers refusals
in his own protocol.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from penstock.server.front.cors import check_token

GROUPS: Final = (
    "health",
    "metadata",
    "inference",
    "shared-memory",
    "model-config",
    "model-repository",
    "statistics",
    "trace",
    "logging",
)


@dataclass(frozen=True, slots=True)
class Rule:
    """The header ``key`` (as the operator wrote it) must have this ``value``."""

    key: str
    value: str

    def admits(self, given: str | bytes | None) -> bool:
        """Whether a header's value, None where it is missing, is the right one."""
        if given is None:
            return False
        if isinstance(given, str):
            given = given.encode("utf-8", "surrogateescape")
        return hmac.compare_digest(given, self.value.encode())


Rules = Mapping[str, Rule]
"""By group; a group that is not there is open to all."""


def parse_rules(texts: Iterable[str]) -> Rules:
    """The rules in ``texts``.

    Raises:
        ValueError: a text is not a rule, names no group that there is, or a group has two rules.
    """
    rules: dict[str, Rule] = {}
    for text in texts:
        names, _, condition = text.partition(":")
        key, equals, value = condition.partition("=")
        key, value = key.strip(), value.strip()
        if not (key and equals and value):
            raise ValueError(f"'{text}' is not a rule; expected GROUP[,GROUP...]:KEY=VALUE")
        check_token(key)
        for name in names.split(","):
            group = name.strip()
            if group not in GROUPS:
                raise ValueError(f"unknown restricted api '{group}'; there are {', '.join(GROUPS)}")
            if group in rules:
                raise ValueError(
                    f"restricted api '{group}' can not be specified in multiple config groups"
                )
            rules[group] = Rule(key, value)
    return rules
