"""temporary"""

import argparse, json, logging
from pathlib import Path
from penstock.server.app import ServeOptions, run


def main() -> None:
    p = argparse.ArgumentParser()
    s = p.add_subparsers(dest="cmd")
    q = s.add_parser("serve")
    q.add_argument("--model-repository", action="append", type=Path)
    q.add_argument("--host", default="127.0.0.1")
    q.add_argument("--http-port", type=int, default=8000)
    q.add_argument("--metrics-port", type=int, default=8002)
    q.add_argument("--ready-file", type=Path)
    q.add_argument("--uds", type=Path)
    a = p.parse_args()
    logging.basicConfig(level=logging.INFO)
    import os

    def ready(app):
        print(
            "ready",
            app.http_port,
            app.metrics_port,
            [
                (
                    e.name,
                    e.version,
                    e.state.value,
                    e.reason,
                    e.loaded and e.loaded.lane.mode,
                    e.loaded and e.loaded.lane._run_ns,
                )
                for e in app.models
            ],
            flush=True,
        )
        if a.ready_file:
            a.ready_file.write_text(
                json.dumps({"http": app.http_port, "metrics": app.metrics_port, "pid": os.getpid()})
            )

    run(ServeOptions(tuple(a.model_repository), a.host, a.http_port, a.metrics_port, a.uds), ready)


if __name__ == "__main__":
    main()
