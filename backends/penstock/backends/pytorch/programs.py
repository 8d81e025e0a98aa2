"""Makes one kind of thing of PyTorch's three artefacts: a function from tensors to tensors.

Knows ``torch.export``, AOTInductor packages and TorchScript; the module is handed in. Must not know
NumPy arrays, threads or streams.

Contract: whatever cannot be served raises LoadError. Exported programs declare what they take;
the other two do not, so for them the configuration must state all inputs and outputs.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from penstock.backends.base import LoadError, ModelSource
from penstock.backends.checks import whole
from penstock.backends.naming import labels, named
from penstock.backends.pytorch.archive import EXPORTED, PACKAGE, Archive, refusal_of
from penstock.protocol import dtype as dt
from penstock.protocol.dtype import DType
from penstock.protocol.message import TensorSpec

DTYPES: Final[Mapping[str, DType]] = {
    "bool": dt.BOOL,
    "uint8": dt.UINT8,
    "uint16": dt.UINT16,
    "uint32": dt.UINT32,
    "uint64": dt.UINT64,
    "int8": dt.INT8,
    "int16": dt.INT16,
    "int32": dt.INT32,
    "int64": dt.INT64,
    "float16": dt.FP16,
    "bfloat16": dt.BF16,
    "float32": dt.FP32,
    "float64": dt.FP64,
}
"""Names of ``torch`` and the element types that travel."""

RUNNERS: Final = "2"
"""A lane has at most two workers unless the configuration says otherwise."""

Specs = tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """``call`` maps tensors in the order of ``inputs`` to tensors in the order of ``outputs``.

    ``borrows``: it never writes to its inputs. ``weights`` are the addresses of memory that an
    output might be a view of; None where that is not known, so every output has to be copied.
    """

    inputs: Specs
    outputs: Specs
    call: Callable[[list[Any]], Sequence[Any]]
    symbols: tuple[str | None, ...] = ()
    borrows: bool = False
    weights: frozenset[int] | None = None


def program(torch: Any, source: ModelSource, path: Path, archive: Archive) -> Program:
    """The artefact at ``path`` on the device of ``source``; raises what the engine raises too."""
    if archive.kind == EXPORTED:
        return _exported(torch, source, path)
    if not source.inputs or not source.outputs:
        raise LoadError(
            f"{path} does not declare what it takes and gives: state all inputs and outputs, with "
            "data_type and dims, in config.pbtxt (or export it with torch.export)"
        )
    if archive.kind == PACKAGE:
        return _package(torch, source, path, archive)
    return _script(torch, source, path)


def _exported(torch: Any, source: ModelSource, path: Path) -> Program:
    exported = torch.export.load(str(path))
    signature = exported.graph_signature
    writes = _writes(exported)
    if writes is not None and writes.buffers_to_mutate:
        changed = ", ".join(sorted(writes.buffers_to_mutate.values()))
        raise LoadError(
            f"{path} changes its own state when it runs ({changed}), so that requests would "
            "influence each other; make the state an input and an output"
        )
    if source.device != "cpu" or _devices(exported) - {"cpu"}:
        passes = torch.export.passes
        exported = passes.move_to_device_pass(exported, source.device)
    nodes = {node.name: node for node in exported.graph.nodes}
    ins = [_value(nodes, name, "input") for name in signature.user_inputs]
    outs = [_value(nodes, name, "output") for name in signature.user_outputs]
    tree = torch.utils._pytree
    skeleton = tree.tree_unflatten(list(range(len(outs))), exported.call_spec.out_spec)
    paths = [path for path, _ in tree.tree_flatten_with_path(skeleton)[0]]
    inputs = _specs(signature.user_inputs, ins)
    outputs = _specs(labels(paths, "output"), outs)
    module, in_spec = exported.module(), exported.call_spec.in_spec

    def call(tensors: list[Any]) -> Sequence[Any]:
        args, kwargs = tree.tree_unflatten(tensors, in_spec)
        leaves: Sequence[Any] = tree.tree_leaves(module(*args, **kwargs))
        return leaves

    held = (*exported.state_dict.values(), *exported.constants.values())
    return Program(
        named(inputs, source.inputs, "input"),
        named(outputs, source.outputs, "output"),
        call,
        tuple(_symbol(value) for value in (*ins, *outs)),
        borrows=writes is None or not writes.user_inputs_to_mutate,
        weights=frozenset(
            t.untyped_storage().data_ptr() for t in held if isinstance(t, torch.Tensor)
        ),
    )


def _writes(exported: Any) -> Any:
    """What the program writes to, as a signature; None where no operator of it writes in place.

    The archive's own signature is silent about that. Making a functional program of it tells, and
    takes as long as loading does.
    """
    graphs = [part.graph for part in exported.graph_module.modules() if hasattr(part, "graph")]
    schemas = [getattr(node.target, "_schema", None) for graph in graphs for node in graph.nodes]
    if not any(schema is not None and schema.is_mutable for schema in schemas):
        return None
    return exported.run_decompositions({}).graph_signature


def _devices(exported: Any) -> set[str]:
    return {value.device.type for value in exported.state_dict.values()}


def _value(nodes: Mapping[str, Any], name: Any, kind: str) -> Any:
    value = nodes[name].meta["val"] if name in nodes else name
    if not hasattr(value, "dtype"):
        raise LoadError(f"{kind} {name!r} is no tensor but {type(value).__name__}")
    return value


def _specs(names: Sequence[str], values: Sequence[Any]) -> Specs:
    specs = []
    for name, value in zip(names, values, strict=True):
        dtype = DTYPES.get(str(value.dtype).removeprefix("torch."))
        if dtype is None:
            raise LoadError(f"tensor {name!r} is {value.dtype}, which no request can carry")
        shape = tuple(size if type(size) is int else -1 for size in value.shape)
        specs.append(TensorSpec(name, dtype, shape))
    return tuple(specs)


def _symbol(value: Any) -> str | None:
    first = value.shape[0] if len(value.shape) else None
    return None if first is None or type(first) is int else str(first)


def _package(torch: Any, source: ModelSource, path: Path, archive: Archive) -> Program:
    refused = refusal_of(archive.metadata, source.device, Path("/proc/cpuinfo"))
    if refused:
        raise LoadError(f"cannot load {path}: {refused}")
    runners = whole("runners", source.options.get("runners", RUNNERS), 1)
    index = int(source.device.partition(":")[2] or -1)
    loader = torch._inductor.aoti_load_package(
        str(path), num_runners=runners, device_index=index
    ).loader
    sides = zip(
        ("inputs", "outputs"), (source.inputs, source.outputs), loader.get_call_spec(), strict=True
    )
    for kind, stated, text in sides:
        count = torch.utils._pytree.treespec_loads(text).num_leaves
        if count != len(stated):
            raise LoadError(
                f"{path} has {count} {kind}, but the configuration states {len(stated)}"
            )
    return Program(source.inputs, source.outputs, loader.run)


def _script(torch: Any, source: ModelSource, path: Path) -> Program:
    with warnings.catch_warnings():
        # That there is something newer, the operator who serves a file cannot change.
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        module = torch.jit.load(str(path), map_location=source.device).eval()
    arguments = [argument.name for argument in module.forward.schema.arguments[1:]]
    required = [a for a in module.forward.schema.arguments[1:] if not a.has_default_value()]
    if not len(required) <= len(source.inputs) <= len(arguments):
        raise LoadError(
            f"forward of {path} takes {', '.join(arguments)}, "
            f"but the configuration states {len(source.inputs)} inputs"
        )
    inputs = in_order(source.inputs, arguments)
    outputs = in_order(source.outputs)
    names = [spec.name for spec in outputs]

    def call(tensors: list[Any]) -> Sequence[Any]:
        return leaves(module(*tensors), names, torch.Tensor)

    return Program(inputs, outputs, call)


def in_order(specs: Specs, arguments: Sequence[str] = ()) -> Specs:
    """As the function takes or gives them: in the order of ``arguments`` where the names are those
    of the first of them, by Triton's numbers (``name__0``), or else as stated.
    """
    by_name = {spec.name: spec for spec in specs}
    first = arguments[: len(specs)]
    if set(by_name) == set(first):
        return tuple(by_name[name] for name in first)
    numbers = [re.fullmatch(r".*__(\d+)", spec.name) for spec in specs]
    by_number = {int(m[1]): spec for m, spec in zip(numbers, specs, strict=True) if m}
    if sorted(by_number) == list(range(len(specs))):
        return tuple(by_number[i] for i in range(len(specs)))
    return specs


def leaves(made: Any, names: Sequence[str], tensor: type) -> list[Any]:
    """The tensors of what TorchScript gives: one, a sequence of them, or a dictionary by name."""
    if isinstance(made, tensor):
        return [made]
    if isinstance(made, Mapping):
        return [made[name] for name in names]
    return list(made)
