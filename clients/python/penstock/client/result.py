"""What calls return.

Knows: the reply message and the names of its tensors. Must not know wires.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from penstock.protocol.message import Array, InferReply


class Result(Mapping[str, Array]):
    """The outputs of one inference by name, in the server's order.

    The arrays are read-only views of the memory that the reply was received into: no copies, and
    the memory lives as long as any of them (``array.copy()`` to write or to keep one alone). BF16
    comes as its 16 bits (``message.widen_bf16`` makes float32 of them), BYTES as an object array of
    ``bytes``. ``reply`` is the message itself.
    """

    __slots__ = ("_named", "reply")

    def __init__(self, reply: InferReply, names: Sequence[str]) -> None:
        self.reply = reply
        self._named = dict(zip(names, reply.arrays, strict=True))

    @property
    def array(self) -> Array:
        """The only output.

        Raises:
            ValueError: there are none or several.
        """
        if len(self.reply.arrays) != 1:
            raise ValueError(f"the reply has {len(self.reply.arrays)} outputs: {list(self._named)}")
        return self.reply.arrays[0]

    def __getitem__(self, name: str) -> Array:
        try:
            return self._named[name]
        except KeyError:
            raise KeyError(f"{name!r} is not among the outputs {list(self._named)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._named)

    def __len__(self) -> int:
        return len(self._named)

    def __repr__(self) -> str:
        outputs = ", ".join(f"{n}: {a.dtype}{list(a.shape)}" for n, a in self._named.items())
        return f"<Result {outputs}>"


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One line of the server's model repository. ``state`` is READY, UNAVAILABLE, LOADING..."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""
