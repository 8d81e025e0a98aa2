"""The regions of memory that clients share with the server, by name.

Knows: names, bounds, and the texts that Triton's tools expect. Knows nothing of wires, and of the
memory itself only that a ``Mapping`` gives it: ``system_memory`` maps files of /dev/shm,
``cuda_memory`` opens memory of a GPU.

Contract: used from the event loop's thread. Regions of both kinds share one set of names. A
mapping is dropped, not closed, when its region is unregistered: requests in flight hold views of
it, and it goes when the last of them is gone. Nothing outside of a region is ever handed out.
"""

from __future__ import annotations

import enum
import resource
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final, Protocol

from penstock.protocol.errors import Code, InferError
from penstock.protocol.message import RegionRef, Target
from penstock.protocol.oip_region import DISABLED
from penstock.server.cuda_memory import open_cuda
from penstock.server.system_memory import KEY_BYTES_MAX, map_system

REGIONS_MAX: Final = 1024
"""Each costs a file descriptor: connections keep three quarters of them in any case."""
MAPPED_BYTES_MAX: Final = 256 << 30
"""Of all regions together: address space, not memory of the server's own."""
PLACES_MAX: Final = 4096
"""References whose memory is kept at hand."""
NAME_BYTES_MAX: Final = 4096
RESERVED_KEY_PREFIX: Final = "triton_python_backend_shm_region_"


class Kind(enum.Enum):
    """The values are the words that errors use."""

    SYSTEM = "system"
    CUDA = "CUDA"


@dataclass(frozen=True, slots=True)
class SystemRegion:
    """``byte_size`` bytes from ``offset`` of the POSIX shared memory object ``key``."""

    name: str
    key: str
    offset: int
    byte_size: int


@dataclass(frozen=True, slots=True)
class CudaRegion:
    """``byte_size`` bytes of memory of GPU ``device_id``."""

    name: str
    device_id: int
    byte_size: int


Guard = tuple[Callable[[], int], int]
"""How many bytes the memory has now, and how many of them there must be."""


class Mapping(Protocol):
    """The memory of one region, which lives as long as it or what it gave is held.

    ``offset`` and ``byte_size`` are within the region, as the registry has checked. ``memory_key``
    is equal for mappings that give the same memory at two addresses.
    """

    @property
    def memory_key(self) -> Hashable: ...

    def read(self, offset: int, byte_size: int) -> memoryview | None:
        """The bytes as they are now or stay; None where they are there no longer."""
        ...

    def write(
        self, offset: int, byte_size: int
    ) -> tuple[memoryview, Callable[[int], None] | None] | None:
        """Bytes to write to, and ``Target.written``; None where they are there no longer."""
        ...

    def guard(self, offset: int, byte_size: int) -> Guard | None:
        """What says whether that which ``read`` and ``write`` gave for this place is still good;
        None where they must be asked each time."""
        ...


MapSystem = Callable[[str, int, int], Mapping]
"""(key, offset, byte_size). Raises ``FileNotFoundError`` or another ``OSError`` for a key that
cannot be opened, ``ValueError`` for bytes that it does not have."""
OpenCuda = Callable[[bytes, int, int], Mapping]
"""(raw handle, device, byte_size). Raises ``LookupError`` where there is no CUDA, ``ValueError``
for a handle that cannot be opened or has fewer bytes."""


class SharedMemory:
    """The registry; what codecs know of it is ``penstock.protocol.message.Regions``.

    Unless ``allowed``, regions cannot be registered, and requests that name one are refused.
    """

    def __init__(
        self,
        allowed: bool,
        *,
        regions_max: int | None = None,
        mapped_bytes_max: int = MAPPED_BYTES_MAX,
        map_system: MapSystem = map_system,
        open_cuda: OpenCuda = open_cuda,
    ) -> None:
        self.allowed = allowed
        self._regions_max = _regions_max() if regions_max is None else regions_max
        self._bytes_max = mapped_bytes_max
        self._map_system = map_system
        self._open_cuda = open_cuda
        self._regions: dict[str, tuple[SystemRegion | CudaRegion, Mapping]] = {}
        self._bytes = 0
        self._mapped: Counter[Hashable] = Counter()
        """How many regions there are of each memory."""
        self._places: dict[RegionRef, tuple[Callable[[], int], int, memoryview, Target]] = {}
        """What was given for a reference, as long as its region is registered: clients send the
        same ones again and again."""

    # --- the protocol's own requests --------------------------------------------------------------

    def register_system(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Maps ``byte_size`` bytes from ``offset`` of the shared memory object ``key``.

        Raises:
            InferError: not allowed, a name that is taken, a key that is reserved or cannot be
                opened, bytes that it does not have, too many regions.
        """
        self._check_allowed()
        shown = key[:KEY_BYTES_MAX]
        if key.lstrip("/").startswith(RESERVED_KEY_PREFIX):
            raise _invalid(
                f"cannot register shared memory region '{name[:NAME_BYTES_MAX]}' with key "
                f"'{shown}' as the key "
                f"contains the reserved prefix '{RESERVED_KEY_PREFIX}'"
            )
        self._check_new(name, byte_size)
        try:
            mapping = self._map_system(key, offset, byte_size)
        except OSError:
            raise InferError(
                Code.INTERNAL, f"Unable to open shared memory region: '{shown}'"
            ) from None
        except ValueError:
            raise _invalid_args(name) from None
        self._add(SystemRegion(name, key, offset, byte_size), mapping)

    def register_cuda(self, name: str, raw_handle: bytes, device_id: int, byte_size: int) -> None:
        """Opens memory of a GPU by its ``cudaIpcMemHandle_t``.

        Raises:
            InferError: as ``register_system``, or the server has no CUDA.
        """
        self._check_allowed()
        self._check_new(name, byte_size)
        try:
            mapping = self._open_cuda(raw_handle, device_id, byte_size)
        except LookupError:
            raise _invalid(
                f"failed to register CUDA shared memory region: '{name}', GPUs not supported"
            ) from None
        except ValueError:
            raise _invalid_args(name) from None
        self._add(CudaRegion(name, device_id, byte_size), mapping)

    def unregister(self, name: str, kind: Kind) -> None:
        """Forgets the region ``name``, or all of ``kind`` where it is empty; none is no error."""
        for region in list(self._of(kind)):
            if name in ("", region.name):
                _, mapping = self._regions.pop(region.name)
                self._mapped[mapping.memory_key] -= 1
                self._mapped += Counter()  # without those that are 0 now
                self._bytes -= region.byte_size
                self._places.clear()

    def status(self, name: str, kind: Kind) -> list[SystemRegion | CudaRegion]:
        """The region ``name``, or all of ``kind`` where it is empty, in order of registration.

        Raises:
            InferError: NOT_FOUND.
        """
        if not name:
            return self._of(kind)
        found = self._regions.get(name)
        if found is None:
            raise InferError(
                Code.NOT_FOUND,
                f"Unable to find {kind.value.lower()} shared memory region: '{name}'",
            )
        region = found[0]
        if _kind(region) is not kind:
            raise InferError(
                Code.NOT_FOUND,
                f"The region named '{name}' is registered as {_kind(region).value} shared memory, "
                f"not {kind.value} shared memory",
            )
        return [region]

    def close(self) -> None:
        """Forgets all regions."""
        self._regions.clear()
        self._places.clear()
        self._mapped.clear()
        self._bytes = 0

    # --- codecs -----------------------------------------------------------------------------------

    def resolve(self, ref: RegionRef) -> memoryview:
        """The bytes of an input; see ``Regions``."""
        known = self._places.get(ref)
        if known is not None:
            bytes_now, needed, memory, _ = known
            if bytes_now() >= needed:
                return memory
        mapping = self._mapping(ref)
        found = mapping.read(ref.offset, ref.byte_size)
        if found is None:
            raise _cut_short(ref)
        self._remember(ref, mapping)
        return found

    def target(self, ref: RegionRef) -> Target:
        """Where an output goes; see ``Regions``."""
        known = self._places.get(ref)
        if known is not None:
            bytes_now, needed, _, target = known
            if bytes_now() >= needed:
                return target
        mapping = self._mapping(ref)
        place = mapping.write(ref.offset, ref.byte_size)
        if place is None:
            raise _cut_short(ref)
        self._remember(ref, mapping)
        return Target(ref, *place, self._alone(mapping))

    def _alone(self, mapping: Mapping) -> bool:
        return self._mapped[mapping.memory_key] == 1

    def _remember(self, ref: RegionRef, mapping: Mapping) -> None:
        guard = mapping.guard(ref.offset, ref.byte_size)
        memory = mapping.read(ref.offset, ref.byte_size) if guard is not None else None
        if guard is None or memory is None:
            return
        if len(self._places) >= PLACES_MAX:
            self._places.clear()
        target = Target(ref, memory, None, self._alone(mapping))
        self._places[ref] = (*guard, memory.toreadonly(), target)

    def _mapping(self, ref: RegionRef) -> Mapping:
        name, offset, byte_size = ref
        found = self._regions.get(name)
        if found is None:
            self._check_allowed()
            raise InferError(Code.NOT_FOUND, f"Unable to find shared memory region: '{name}'")
        region, mapping = found
        if not 0 <= offset < region.byte_size:
            raise _invalid(f"Invalid offset for shared memory region: '{name}'")
        if not 0 <= byte_size <= region.byte_size - offset:
            raise _invalid(f"Invalid offset + byte size for shared memory region: '{name}'")
        return mapping

    # --- bookkeeping ------------------------------------------------------------------------------

    def _of(self, kind: Kind) -> list[SystemRegion | CudaRegion]:
        return [region for region, _ in self._regions.values() if _kind(region) is kind]

    def _check_allowed(self) -> None:
        if not self.allowed:
            raise _invalid(DISABLED)

    def _check_new(self, name: str, byte_size: int) -> None:
        if name in self._regions:
            raise InferError(
                Code.ALREADY_EXISTS, f"shared memory region '{name}' already in manager"
            )
        if not 0 < len(name.encode()) <= NAME_BYTES_MAX or byte_size <= 0:
            raise _invalid_args(name[:NAME_BYTES_MAX])
        if len(self._regions) >= self._regions_max:
            raise InferError(
                Code.RESOURCE_EXHAUSTED,
                f"failed to register shared memory region '{name}': there are {self._regions_max} "
                "already, the maximum",
            )
        if byte_size > self._bytes_max - self._bytes:
            raise InferError(
                Code.RESOURCE_EXHAUSTED,
                f"failed to register shared memory region '{name}': all regions together may have "
                f"{self._bytes_max} bytes",
            )

    def _add(self, region: SystemRegion | CudaRegion, mapping: Mapping) -> None:
        self._regions[region.name] = region, mapping
        self._mapped[mapping.memory_key] += 1
        self._places.clear()  # Their memory may be this region's too from now on.
        self._bytes += region.byte_size


def _regions_max() -> int:
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return REGIONS_MAX if descriptors < 0 else min(REGIONS_MAX, descriptors // 4)


def _kind(region: SystemRegion | CudaRegion) -> Kind:
    return Kind.SYSTEM if isinstance(region, SystemRegion) else Kind.CUDA


def _invalid(text: str) -> InferError:
    return InferError(Code.INVALID_ARGUMENT, text)


def _invalid_args(name: str) -> InferError:
    return _invalid(f"failed to register shared memory region '{name}': invalid args")


def _cut_short(ref: RegionRef) -> InferError:
    return _invalid(
        f"Invalid offset + byte size for shared memory region: '{ref.region}'; "
        "its memory is smaller now than when it was registered, or the system has none left for it"
    )
