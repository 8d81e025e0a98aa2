"""Penstock as the cases know servers (``case.Server``), over one gRPC transport.

Knows Penstock's command line. Must not know what was recorded.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from penstock.loadtest import children

from . import repository
from .replay import Target

_CODE = repository.onnx_bytes(repository.SPARE[0])
_WORDS = {
    "BACKEND": "onnxruntime",
    "MODEL_FILE": "model.onnx",
    "MODEL_B64": base64.b64encode(_CODE).decode(),
}
Targets = Mapping[str, Target]


@contextmanager
def serving(grpc_transport: str) -> Iterator[Targets]:
    """One of each kind."""
    with tempfile.TemporaryDirectory(prefix="penstock-oracle-") as folder, ExitStack() as stack:
        common = ["--grpc-port", "0", "--grpc-transport", grpc_transport, "--allow-client-shm"]
        loads = [word for m in repository.LOADED for word in ("--load-model", m.name)]
        flags = {
            "explicit": [*common, "--model-control-mode", "explicit", *loads],
            "fixed": common,
            "decoupled": common,
        }
        targets = {}
        for name, given in flags.items():
            models = Path(folder, name)
            repository.write(models, repository.MODELS[name], triton=False)
            child = stack.enter_context(children.gateway(models, *given))
            target = targets[name] = Target(child.port, child.grpc, _WORDS)
            stack.callback(target.close)
        yield targets
