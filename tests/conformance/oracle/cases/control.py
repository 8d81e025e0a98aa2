"""The model repository over HTTP: index, load and unload, with other configurations and files."""

import base64
import json

from ..case import Case, get, post, tensor

_REPOSITORY = "/v2/repository"
_SPARE = f"{_REPOSITORY}/models/spare"
_CONFIG = {
    "backend": "@BACKEND@",
    "max_batch_size": 4,
    "input": [{"name": "INPUT0", "data_type": "TYPE_FP32", "dims": [-1]}],
    "output": [{"name": "OUTPUT0", "data_type": "TYPE_FP32", "dims": [-1]}],
}
_INPUT = {"inputs": [tensor("INPUT0", "FP32", [1, 2], [1, 2])]}


def _load(name: str, body: object, model: str = "spare", **more: object) -> Case:
    return post(name, f"{_REPOSITORY}/models/{model}/load", body, **more)  # type: ignore[arg-type]


def _config(**changes: object) -> dict[str, object]:
    return {"parameters": {"config": json.dumps(_CONFIG | changes)}}


def _files(files: dict[str, object]) -> dict[str, object]:
    named = {f"file:{path}": content for path, content in files.items()}
    return {"parameters": {"config": json.dumps(_CONFIG), **named}}


def _spare(name: str) -> Case:
    """What the spare model does now."""
    return post(name, "/v2/models/spare/infer", _INPUT)


CASES: list[Case] = [
    post("index", f"{_REPOSITORY}/index", ""),
    post("index of what is ready", f"{_REPOSITORY}/index", {"ready": True}),
    post("index of everything", f"{_REPOSITORY}/index", {"ready": False}),
    post("index with an empty object", f"{_REPOSITORY}/index", "{}"),
    post("index with ready of another type", f"{_REPOSITORY}/index", {"ready": "yes"}),
    post("index with a number", f"{_REPOSITORY}/index", {"ready": 1}),
    post("index with bad JSON", f"{_REPOSITORY}/index", "{ready", check="status"),
    post("index of one repository", f"{_REPOSITORY}/first/index", ""),
    _load("load", ""),
    get("it is ready", "/v2/models/spare/ready"),
    _spare("it answers"),
    _load("load again", "{}"),
    post("index with it", f"{_REPOSITORY}/index", {"ready": True}),
    _load("load with a configuration", _config()),
    get("configuration after it", "/v2/models/spare/config", ignore=(
        "backend", "platform", "default_model_filename", "instance_group", "optimization")),
    _load("load with a batch size in quotes", _config(max_batch_size="16")),
    get("metadata after it", "/v2/models/spare", ignore=("platform",)),
    _load("load with a configuration that is no JSON", {"parameters": {"config": "{"}},
          check="error"),
    _load("load with a configuration of unknown fields", _config(colour="red"), check="error"),
    _load("load with a configuration of a wrong type", _config(max_batch_size="many"),
          check="error"),
    _load("load with a configuration as an object", {"parameters": {"config": _CONFIG}}),
    _load("load with an empty configuration", {"parameters": {"config": ""}}, check="error"),
    _spare("it still answers"),
    _load("load with files without configuration",
          {"parameters": {"file:1/@MODEL_FILE@": "@MODEL_B64@"}}),
    _load("load with files that are not base64",
          _files({"1/@MODEL_FILE@": "???"}), check="error"),
    _load("load with files that are numbers",
          _files({"1/@MODEL_FILE@": 1}), check="error"),
    _load("load with configuration and files",
          _files({"1/@MODEL_FILE@": "@MODEL_B64@"})),
    _spare("it answers from the files"),
    _load("load with files of another version",
          _files({"7/@MODEL_FILE@": "@MODEL_B64@"})),
    get("that version is served", "/v2/models/spare", ignore=("platform",)),
    _load("load with files above the folder",
          _files({"../../x": "AAAA"}), check="error"),
    _load("load with bad files",
          _files({"1/@MODEL_FILE@": base64.b64encode(b"(what").decode()}), check="status"),
    _load("load as it is on disk again", ""),
    _load("load with bad JSON", "{", check="status"),
    _load("load with parameters of another type", {"parameters": [1]}, check="error"),
    _load("load with unknown parameters", {"parameters": {"colour": "red"}}),
    _load("load an unknown model", "", "nobody"),
    _load("load a broken model", "", "broken", check="status"),
    post("index with the broken model", f"{_REPOSITORY}/index", "", ignore=("reason",)),
    get("the broken model", "/v2/models/broken"),
    post("inference of the broken model", "/v2/models/broken/infer", _INPUT),
    _load("load above the repository", "", "..", check="error"),
    _load("load above the repository in percent", "", "%2e%2e%2fspare", check="error"),
    post("load from a repository by name", f"{_REPOSITORY}/first/models/spare/load", ""),
    post("unload", f"{_SPARE}/unload", {"parameters": {"unload_dependents": False}}),
    get("it is not ready any more", "/v2/models/spare/ready", check="error"),
    _spare("it does not answer any more"),
    get("metadata of what is unloaded", "/v2/models/spare"),
    get("statistics of what is unloaded", "/v2/models/spare/stats"),
    post("unload again", f"{_SPARE}/unload", ""),
    post("unload with dependents of another type", f"{_SPARE}/unload",
         {"parameters": {"unload_dependents": "yes"}}),
    post("unload with bad JSON", f"{_SPARE}/unload", "{", check="status"),
    post("unload an unknown model", f"{_REPOSITORY}/models/nobody/unload", ""),
    post("unload from a repository by name", f"{_REPOSITORY}/first/models/spare/unload", ""),
    post("index after it", f"{_REPOSITORY}/index", "", ignore=("reason", "state")),
    post("unload the broken model", f"{_REPOSITORY}/models/broken/unload", ""),
    get("server ready without it", "/v2/health/ready"),
    post("load where models are fixed", f"{_REPOSITORY}/models/simple/load", "", server="fixed"),
    post("unload where models are fixed", f"{_REPOSITORY}/models/simple/unload", "",
         server="fixed"),
    post("index where models are fixed", f"{_REPOSITORY}/index", "", server="fixed",
         ignore=("reason",)),
    get("the broken model where models are fixed", "/v2/models/broken", server="fixed"),
    get("its readiness", "/v2/models/broken/ready", server="fixed", check="error"),
]  # fmt: skip
