"""``penstock compile``: an ONNX model as a backend's own artefact, alone or in a repository.

Knows the command line, model repositories and how ONNX tells a batch dimension. Must not know any
backend: whatever can compile says so (``Compiling``), and takes the options that it knows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from penstock.server.commands import values
from penstock.server.commands.failure import USAGE, CommandError

if TYPE_CHECKING:
    from penstock.backends.base import Compiling

ROWS_MAX: Final = 64
BUDGET_S: Final = 60.0

DESCRIPTION: Final = """\
Compiles an ONNX model for one backend, into a directory or as the next version of a model in a
repository. Nothing lies there before it is whole; a server that polls takes it up then."""

EPILOG: Final = """\
examples:
  penstock compile model.onnx --backend tvm --repository models --name digits-tvm
  penstock compile model.onnx --backend tvm --target x86-64-v3 --output compiled --budget 0
  penstock compile model.onnx --backend openvino --repository models --max-batch 32
  penstock compile model.onnx --backend tvm --output compiled --option trials=20 --json

Targets and options are the backend's own; docs/compile.md has a table.
Exit status: 0 written, 1 not possible, 2 wrong usage."""


@dataclass(slots=True)
class _Place:
    """Where the artefact is made, and where it lies in the end."""

    folder: Path
    final: Path
    version: int = 0


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "compile",
        help="make a backend's own artefact from an ONNX model",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="an .onnx file")
    parser.add_argument(
        "--backend", metavar="NAME", required=True, help="for which engine: tvm, openvino, tensorrt"
    )
    where = parser.add_argument_group("where to (one of)")
    one = where.add_mutually_exclusive_group(required=True)
    one.add_argument(
        "--repository", metavar="DIR", type=Path,
        help="a model repository: there it becomes the next version of --name",
    )  # fmt: skip
    one.add_argument(
        "--output", metavar="DIR", type=Path, help="a directory; files of the same names go"
    )
    where.add_argument(
        "--name", metavar="NAME", default="",
        help="the model's name in the repository (default: the file's, and the backend's)",
    )  # fmt: skip
    _add_how(parser.add_argument_group("how"))
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.set_defaults(run=run)


def _add_how(group: Any) -> None:
    group.add_argument(
        "--target", metavar="TARGET", default="",
        help="the processor, in the backend's words (default: this machine's)",
    )  # fmt: skip
    group.add_argument(
        "--max-batch", metavar="N", type=values.index, default=None,
        help="the largest batch that will be served; 0 for none "
        f"(default: {ROWS_MAX} where the model's batch is free)",
    )  # fmt: skip
    group.add_argument(
        "--budget", metavar="S", type=values.seconds, default=BUDGET_S,
        help=f"seconds for the search for fast code; 0: do not search (default: {BUDGET_S:g})",
    )  # fmt: skip
    group.add_argument(
        "--option", metavar="KEY=VALUE", type=_option, action="append", default=[],
        help="an option of the backend; may be given several times",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    from penstock.backends.base import CompileTask, LoadError
    from penstock.server.commands.progress import Progress

    if not arguments.model.is_file():
        raise CommandError(f"there is no file {arguments.model}", status=USAGE)
    if arguments.output and arguments.name:
        raise CommandError("--name is for --repository", status=USAGE)
    backend = compiling(arguments.backend)
    rows_max = arguments.max_batch
    if rows_max is None:
        rows_max = ROWS_MAX if batch_is_free(arguments.model) else 0
    with _place(arguments, backend, rows_max) as place:
        with Progress(sys.stderr, quiet=arguments.quiet) as tell:
            task = CompileTask(
                arguments.model,
                place.folder,
                arguments.target,
                rows_max,
                arguments.budget,
                dict(arguments.option),
                tell,
            )
            try:
                artefact = backend.compile(task)
            except LoadError as error:
                raise CommandError(str(error)) from error
        size = artefact.stat().st_size
    _report(arguments, backend, place, place.final / artefact.name, size)
    return 0


def compiling(name: str) -> Compiling:
    """The backend of this name, once it is known that it compiles and that its engine is there.

    Raises:
        CommandError: otherwise, with what to do.
    """
    from penstock.backends import catalog
    from penstock.backends.base import Compiling, LoadError, Probing

    try:
        backend = catalog.get(name)
    except LoadError as error:
        raise CommandError(str(error), status=USAGE) from error
    if not isinstance(backend, Compiling):
        able = [known for known in catalog.offered() if _able(known)]
        raise CommandError(
            f"backend '{backend.name}' runs models as they are; those that compile are "
            f"{', '.join(able)}",
            status=USAGE,
        )
    if isinstance(backend, Probing):
        found = backend.engine()
        # One that is there and misses something else, such as a GPU, may yet compile.
        if found.missing and not found.version:
            raise CommandError(found.missing)
    return backend


def batch_is_free(model: Path) -> bool:
    """Whether the first dimension of every input and output is without a number.

    Raises:
        CommandError: that cannot be found out.
    """
    try:
        import onnx
    except ImportError as error:
        raise CommandError(
            "without the package onnx the model's batch cannot be seen: state --max-batch, "
            "or pip install onnx"
        ) from error
    try:
        graph = onnx.load(str(model), load_external_data=False).graph
    except Exception as error:  # protobuf's own, of a kind that is not public
        raise CommandError(f"{model} is not an ONNX model: {error}") from error
    constants = {tensor.name for tensor in graph.initializer}
    ends = [*(value for value in graph.input if value.name not in constants), *graph.output]
    return bool(ends) and all(_free(value.type.tensor_type.shape.dim) for value in ends)


def _free(dimensions: Any) -> bool:
    return bool(dimensions) and not dimensions[0].HasField("dim_value")


def _able(name: str) -> bool:
    from penstock.backends import catalog
    from penstock.backends.base import Compiling, LoadError

    try:
        return isinstance(catalog.get(name), Compiling)
    except LoadError:
        return False


@contextlib.contextmanager
def _place(arguments: argparse.Namespace, backend: Any, rows_max: int) -> Iterator[_Place]:
    """An empty directory; when the block ends well its files are where they were wanted."""
    if arguments.output is not None:
        with _beside(arguments.output) as folder:
            yield _Place(folder, arguments.output)
        return
    from penstock.server.commands.placing import new_version

    stem = arguments.model.stem if arguments.model.stem != "model" else "compiled"
    name = arguments.name or f"{stem}-{backend.name}"
    if name.startswith(".") or Path(name).name != name:
        raise CommandError(f"{name!r} is no name for a model", status=USAGE)
    model = arguments.repository / name
    if not arguments.repository.is_dir():
        raise CommandError(f"there is no directory {arguments.repository}", status=USAGE)
    _check_model(model, backend)
    batch = f"max_batch_size: {rows_max}\n" if rows_max else ""
    with new_version(model, config=f'backend: "{backend.name}"\n{batch}') as version:
        place = _Place(version.folder, version.path)
        yield place
    place.final, place.version = version.path, version.number


def _check_model(model: Path, backend: Any) -> None:
    """Versions of a model are of one backend; what serves already must go on."""
    from penstock.backends import catalog
    from penstock.server.commands.placing import configured_backend

    stated = configured_backend(model)
    if stated and catalog.canonical(stated) != backend.name:
        raise _taken(model, f"its config.pbtxt says backend '{stated}'")
    if stated or not model.is_dir():
        return
    for version in sorted(p for p in model.iterdir() if p.name.isdecimal()):
        if not (version / backend.default_filename).exists():
            raise _taken(model, f"version {version.name} has no {backend.default_filename}")


def _taken(model: Path, why: str) -> CommandError:
    return CommandError(
        f"{model} is a model of another backend: {why}", "choose another name with --name"
    )


@contextlib.contextmanager
def _beside(output: Path) -> Iterator[Path]:
    """A directory whose files go to ``output`` in the end."""
    from penstock.server.commands.unwinding import signals_unwind

    new = not output.exists()
    try:
        output.mkdir(parents=True, exist_ok=True)
        with (
            signals_unwind(),
            tempfile.TemporaryDirectory(prefix=".making-", dir=output) as name,
        ):
            yield Path(name)
            for file in sorted(Path(name).iterdir()):
                if (output / file.name).is_dir():
                    shutil.rmtree(output / file.name)
                file.replace(output / file.name)
    except OSError as error:
        raise CommandError(f"cannot write to {output}: {error.strerror or error}") from error
    finally:
        if new:
            with contextlib.suppress(OSError):
                output.rmdir()  # Fails, as it should, where something lies in it.


def _report(
    arguments: argparse.Namespace, backend: Any, place: _Place, artefact: Path, size: int
) -> None:
    if arguments.json:
        told = {
            "backend": backend.name,
            "artefact": str(artefact),
            "bytes": size,
            "version": place.version or None,
        }
        print(json.dumps(told, indent=2))
        return
    print(f"wrote {artefact} ({size / 1e6:.1f} MB)")
    if place.version:
        print(f"  serve it:  {_serve(arguments, backend)}")


def _serve(arguments: argparse.Namespace, backend: Any) -> str:
    from penstock.backends import catalog

    allow = f" --allow-code {backend.name}" if catalog.runs_code(backend.name) else ""
    return f"penstock serve --model-repository {shlex.quote(str(arguments.repository))}{allow}"


def _option(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r}: expected KEY=VALUE, as trials=20")
    return key, value
