"""Every call of the gRPC service but inference."""

from typing import Any

from ..case import Case, Grpc
from ..replay import MEMORY_BYTES, MEMORY_KEY

_VALUES_DIFFER = ("backend", "platform", "default_model_filename", "instance_group", "optimization")


def _call(name: str, method: str, message: Any = None, **more: Any) -> Case:
    return Grpc(name, method, [message or {}], **more)


def _box(**changes: Any) -> dict[str, Any]:
    return {"name": "box", "key": MEMORY_KEY, "byte_size": str(MEMORY_BYTES), **changes}


def _load(name: str, model: str = "spare", parameters: Any = None, **more: Any) -> Case:
    message = {"model_name": model, "parameters": parameters or {}}
    return _call(name, "RepositoryModelLoad", message, **more)


_ABOUT: list[Case] = [
    _call("live", "ServerLive"),
    _call("ready", "ServerReady"),
    _call("not ready while a model could not be loaded", "ServerReady", server="fixed"),
    _call("health", "Check"),
    _call("health of the service", "Check", {"service": "inference.GRPCInferenceService"}),
    _call("health of an unknown service", "Check", {"service": "nobody"}),
    _call("no such method", "ServerFine"),
    _call("no protobuf", "ModelMetadata", b"\xff\xff\xff", check="error"),
    _call("server metadata", "ServerMetadata", ignore=("version",)),
    _call("model ready", "ModelReady", {"name": "simple"}),
    _call("model version ready", "ModelReady", {"name": "simple", "version": "1"}),
    _call("unknown model ready", "ModelReady", {"name": "nobody"}),
    _call("unknown version ready", "ModelReady", {"name": "simple", "version": "9"}),
    _call("version ready that is no number", "ModelReady", {"name": "simple", "version": "one"}),
    _call("unloaded model ready", "ModelReady", {"name": "spare"}),
    _call("no model ready", "ModelReady"),
    _call("model metadata", "ModelMetadata", {"name": "simple"}, ignore=("platform",)),
    _call("model metadata of a version", "ModelMetadata", {"name": "versions", "version": "1"},
          ignore=("platform",)),
    _call("unknown model", "ModelMetadata", {"name": "nobody"}),
    _call("unknown version", "ModelMetadata", {"name": "simple", "version": "9"}),
    _call("version that is no number", "ModelMetadata", {"name": "simple", "version": "one"}),
    _call("no model name", "ModelMetadata"),
    _call("config", "ModelConfig", {"name": "versions"}, ignore=_VALUES_DIFFER),
    _call("config of labels", "ModelConfig", {"name": "classes"}, ignore=_VALUES_DIFFER),
    _call("config of an unknown model", "ModelConfig", {"name": "nobody"}),
    _call("config of an unknown version", "ModelConfig", {"name": "simple", "version": "9"}),
    _call("statistics", "ModelStatistics", {"name": "identity_2d"}, check="status"),
    _call("statistics of all", "ModelStatistics", check="status"),
    _call("statistics of an unknown model", "ModelStatistics", {"name": "nobody"}),
    _call("statistics of an unknown version", "ModelStatistics",
          {"name": "simple", "version": "9"}),
]  # fmt: skip

_CONTROL: list[Case] = [
    _call("index", "RepositoryIndex", ignore=("reason",)),
    _call("index of what is ready", "RepositoryIndex", {"ready": True}),
    _call("index of one repository", "RepositoryIndex", {"repository_name": "first"}),
    _load("load"),
    _call("it is ready", "ModelReady", {"name": "spare"}),
    _load("load with a configuration", parameters={"config": {"string_param":
          '{"backend":"@BACKEND@","max_batch_size":4,'
          '"input":[{"name":"INPUT0","data_type":"TYPE_FP32","dims":[-1]}],'
          '"output":[{"name":"OUTPUT0","data_type":"TYPE_FP32","dims":[-1]}]}'}}),
    _call("configuration after it", "ModelConfig", {"name": "spare"}, ignore=_VALUES_DIFFER),
    _load("load with a configuration of another type", parameters={"config": {"int64_param": "1"}}),
    _load("load with a bad configuration", parameters={"config": {"string_param": "{"}},
          check="error"),
    _load("load with files without configuration",
          parameters={"file:1/@MODEL_FILE@": {"bytes_param": "@MODEL_B64@"}}),
    _load("load with files of another type",
          parameters={"file:1/@MODEL_FILE@": {"string_param": "x"}}),
    _load("load with unknown parameters", parameters={"colour": {"string_param": "red"}}),
    _load("load an unknown model", "nobody"),
    _load("load a broken model", "broken", check="status"),
    _call("not ready with a broken model", "ServerReady"),
    _call("unload a broken model", "RepositoryModelUnload", {"model_name": "broken"}),
    _call("ready without it", "ServerReady"),
    _load("load no model", ""),
    _load("load above the repository", "../spare", check="error"),
    _call("load from a repository by name", "RepositoryModelLoad",
          {"model_name": "spare", "repository_name": "first"}),
    _call("unload", "RepositoryModelUnload",
          {"model_name": "spare", "parameters": {"unload_dependents": {"bool_param": False}}}),
    _call("it is not ready", "ModelReady", {"name": "spare"}),
    _call("unload again", "RepositoryModelUnload", {"model_name": "spare"}),
    _call("unload an unknown model", "RepositoryModelUnload", {"model_name": "nobody"}),
    _call("unload with dependents of another type", "RepositoryModelUnload",
          {"model_name": "spare", "parameters": {"unload_dependents": {"string_param": "yes"}}}),
    _call("unload from a repository by name", "RepositoryModelUnload",
          {"model_name": "spare", "repository_name": "first"}),
    _load("load where models are fixed", "simple", server="fixed"),
    _call("unload where models are fixed", "RepositoryModelUnload", {"model_name": "simple"},
          server="fixed"),
]  # fmt: skip

_MEMORY: list[Case] = [
    _call("shared memory of nobody", "SystemSharedMemoryStatus"),
    _call("shared memory of an unknown region", "SystemSharedMemoryStatus", {"name": "box"}),
    _call("register shared memory", "SystemSharedMemoryRegister", _box()),
    _call("register shared memory again", "SystemSharedMemoryRegister", _box()),
    _call("register an unknown key", "SystemSharedMemoryRegister",
          _box(name="other", key="/penstock-nobody")),
    _call("register beyond the file", "SystemSharedMemoryRegister",
          _box(name="other", byte_size="99999")),
    _call("register without a name", "SystemSharedMemoryRegister", _box(name="")),
    _call("register no bytes", "SystemSharedMemoryRegister", _box(name="other", byte_size="0")),
    _call("shared memory", "SystemSharedMemoryStatus"),
    _call("shared memory of a region", "SystemSharedMemoryStatus", {"name": "box"}),
    _call("unregister", "SystemSharedMemoryUnregister", {"name": "box"}),
    _call("unregister again", "SystemSharedMemoryUnregister", {"name": "box"}),
    _call("unregister all", "SystemSharedMemoryUnregister"),
    _call("CUDA memory", "CudaSharedMemoryStatus"),
    _call("CUDA memory of an unknown region", "CudaSharedMemoryStatus", {"name": "box"}),
    _call("register CUDA memory", "CudaSharedMemoryRegister",
          {"name": "box", "raw_handle": "AAAA", "byte_size": "64"}, check="error"),
    _call("unregister CUDA memory", "CudaSharedMemoryUnregister", {"name": "box"}),
    _call("unregister all CUDA memory", "CudaSharedMemoryUnregister"),
]  # fmt: skip


def _values(*values: str) -> dict[str, list[str]]:
    return {"value": list(values)}


_SETTINGS: list[Case] = [
    _call("trace settings", "TraceSetting"),
    _call("trace settings of a model", "TraceSetting", {"model_name": "simple"}),
    _call("trace settings of an unknown model", "TraceSetting", {"model_name": "nobody"}),
    _call("trace rate", "TraceSetting", {"settings": {"trace_rate": _values("10")}}),
    _call("two trace rates", "TraceSetting", {"settings": {"trace_rate": _values("10", "20")}}),
    _call("trace rate that is no number", "TraceSetting",
          {"settings": {"trace_rate": _values("often")}}),
    _call("trace level", "TraceSetting", {"settings": {"trace_level": _values("TIMESTAMPS")}}),
    _call("trace level unknown", "TraceSetting", {"settings": {"trace_level": _values("LOUD")}}),
    _call("trace setting unknown", "TraceSetting", {"settings": {"colour": _values("red")}}),
    _call("trace of a model", "TraceSetting",
          {"model_name": "simple", "settings": {"trace_rate": _values("7")}}),
    _call("trace of a model as for all", "TraceSetting",
          {"model_name": "simple", "settings": {"trace_rate": {}}}),
    _call("trace as at the start", "TraceSetting",
          {"settings": {"trace_rate": {}, "trace_level": {}}}),
    _call("log settings", "LogSettings", check="status"),
    _call("log verbosely", "LogSettings",
          {"settings": {"log_verbose_level": {"uint32_param": 1}}}),
    _call("log no more verbosely", "LogSettings",
          {"settings": {"log_verbose_level": {"uint32_param": 0}}}),
    _call("log level of another type", "LogSettings",
          {"settings": {"log_verbose_level": {"string_param": "1"}}}),
    _call("log no information", "LogSettings", {"settings": {"log_info": {"bool_param": False}}}),
    _call("log information", "LogSettings", {"settings": {"log_info": {"bool_param": True}}}),
    _call("log information of another type", "LogSettings",
          {"settings": {"log_info": {"uint32_param": 1}}}),
    _call("log format", "LogSettings", {"settings": {"log_format": {"string_param": "ISO8601"}}}),
    _call("log format as at the start", "LogSettings",
          {"settings": {"log_format": {"string_param": "default"}}}),
    _call("log format unknown", "LogSettings",
          {"settings": {"log_format": {"string_param": "rhyme"}}}),
    _call("log file", "LogSettings", {"settings": {"log_file": {"string_param": "/tmp/x.log"}}}),
    _call("log setting unknown", "LogSettings", {"settings": {"colour": {"string_param": "red"}}}),
]  # fmt: skip

CASES = [*_ABOUT, *_CONTROL, *_MEMORY, *_SETTINGS]
