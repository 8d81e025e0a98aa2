"""``python -m tests.conformance.oracle record [TABLE...]``: asks a real Triton every case again.

Fetches tritonserver into ``.cache`` if it is not there, starts one for each kind of server that
cases ask for, replays the tables and writes ``recorded/TABLE.json``. ``serve`` starts them for
questions by hand, until it is interrupted.
"""

from __future__ import annotations

import argparse
import base64
import json
import signal
import tempfile
import time
from contextlib import ExitStack
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

from penstock.loadtest import procstat, triton

from . import repository, tables
from .case import Case
from .replay import Answer, Target, shared_memory

_WORDS = {
    "BACKEND": "python",
    "MODEL_FILE": "model.py",
    "MODEL_B64": base64.b64encode(repository.CODE.read_bytes()).decode(),
}


class Oracle:
    """A Triton for each of ``case.Server``; a context manager.

    Some mistakes end Triton: that is its answer then, and another one is started in its place.
    """

    def __init__(self, folder: Path) -> None:
        self._environment = triton.fetch()
        loads = [f"--load-model={model.name}" for model in repository.LOADED]
        self._flags = {
            "explicit": ["--model-control-mode=explicit", *loads],
            "fixed": ["--exit-on-error=false"],
            "decoupled": [],
        }
        self._folder = folder
        for name in self._flags:
            repository.write(folder / name, repository.MODELS[name], triton=True)
        self._stacks: dict[str, ExitStack] = {}
        self._targets: dict[str, Target] = {}
        self.servers: dict[str, triton.Triton] = {}

    def __enter__(self) -> Oracle:
        for name in self._flags:
            self._start(name)
        return self

    def __exit__(self, *raised: object) -> None:
        for stack in self._stacks.values():
            stack.close()

    def ask(self, case: Case, memory: SharedMemory) -> Answer:
        answer = self._targets[case.server].ask(case, memory)
        if _is_lost(answer) and not procstat.is_running(self.servers[case.server].pid):
            self._stacks.pop(case.server).close()
            self._start(case.server)
            return {"died": True}
        return answer

    def without_folders(self, answers: dict[str, Answer]) -> dict[str, Answer]:
        """The same with ``/models`` for the folder of this run."""
        text = json.dumps(answers)
        cleaned: dict[str, Answer] = json.loads(text.replace(str(self._folder), "/models"))
        return cleaned

    def _start(self, name: str) -> None:
        stack = self._stacks[name] = ExitStack()
        serving = triton.serving(self._environment, self._folder / name, *self._flags[name])
        server = self.servers[name] = stack.enter_context(serving)
        target = self._targets[name] = Target(server.http, server.grpc, _WORDS)
        stack.callback(target.close)


def _is_lost(answer: Answer) -> bool:
    if "closed" in answer or answer.get("code") == "UNAVAILABLE":
        time.sleep(1)  # it may be about to end
        return True
    return False


def _record(oracle: Oracle, names: list[str]) -> None:
    with shared_memory() as memory:
        for name in names or tables.NAMES:
            answers = {case.name: oracle.ask(case, memory) for case in tables.cases(name)}
            tables.record(name, f"Triton {triton.VERSION}", oracle.without_folders(answers))
            died = [case for case, answer in answers.items() if "died" in answer]
            silent = [case for case, answer in answers.items() if "closed" in answer]
            print(f"{name}: {len(answers)} answers; it ended at {died}, was silent at {silent}")


def _serve(oracle: Oracle) -> None:
    for name, server in oracle.servers.items():
        print(f"{name}: http {server.http}, grpc {server.grpc}, pid {server.pid}", flush=True)
    signal.sigwait({signal.SIGINT, signal.SIGTERM})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.oracle", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="start Triton and tell its ports")
    record = commands.add_parser("record", help="write recorded/*.json anew")
    record.add_argument("tables", nargs="*", choices=[[], *tables.NAMES], metavar="TABLE")
    arguments = parser.parse_args()
    folders = tempfile.TemporaryDirectory(prefix="penstock-oracle-")
    with folders as folder, Oracle(Path(folder)) as oracle:
        if arguments.command == "serve":
            _serve(oracle)
        else:
            _record(oracle, arguments.tables)


if __name__ == "__main__":
    main()
