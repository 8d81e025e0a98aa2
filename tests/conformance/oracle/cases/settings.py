"""Trace and log settings over HTTP."""

from typing import Any

from ..case import Case, get, post

_TRACE = "/v2/trace/setting"
_MODEL = "/v2/models/simple/trace/setting"
_LOG = "/v2/logging"


def _trace(name: str, path: str = _TRACE, **settings: Any) -> Case:
    return post(name, path, settings)


def _log(name: str, **settings: Any) -> Case:
    return post(name, _LOG, settings)


CASES: list[Case] = [
    get("trace settings", _TRACE),
    get("trace settings of a model", _MODEL),
    get("trace settings of an unknown model", "/v2/models/nobody/trace/setting"),
    get("trace settings of a version", "/v2/models/simple/versions/1/trace/setting"),
    _trace("trace nothing new"),
    _trace("trace rate", trace_rate="10"),
    _trace("trace rate as a number", trace_rate=10),
    _trace("trace rate that is no number", trace_rate="often"),
    _trace("trace rate below zero", trace_rate="-1"),
    _trace("trace rate zero", trace_rate="0"),
    _trace("trace count", trace_count="5"),
    _trace("trace count without limit", trace_count="-1"),
    _trace("trace count below that", trace_count="-2"),
    _trace("trace count that is no number", trace_count="x"),
    _trace("log frequency", log_frequency="3"),
    _trace("log frequency that is no number", log_frequency="x"),
    _trace("trace level", trace_level=["TIMESTAMPS"]),
    _trace("trace levels", trace_level=["TIMESTAMPS", "TENSORS"]),
    _trace("trace level off", trace_level=["OFF"]),
    _trace("trace level as a string", trace_level="OFF"),
    _trace("trace level unknown", trace_level=["LOUD"]),
    _trace("trace level off and on", trace_level=["OFF", "TIMESTAMPS"]),
    _trace("trace file", trace_file="/tmp/penstock-trace.json"),
    _trace("trace setting unknown", colour="red"),
    _trace("trace mode", trace_mode="triton"),
    _trace("trace of a model", _MODEL, trace_rate="7"),
    get("trace settings of it", _MODEL),
    get("trace settings of another model", "/v2/models/three/trace/setting"),
    _trace("trace rate for all again", trace_rate="20"),
    get("trace settings of it stay", _MODEL),
    _trace("trace of a model as for all", _MODEL, trace_rate=None),
    _trace("trace of an unknown model", "/v2/models/nobody/trace/setting", trace_rate="7"),
    post("trace with bad JSON", _TRACE, "{", check="status"),
    post("trace with a list", _TRACE, "[]"),
    _trace("trace file as at the start", trace_file=None),
    _trace("trace as at the start", trace_rate=None, trace_count=None, log_frequency=None,
           trace_level=None),
    get("trace settings at the end", _TRACE),
    get("log settings", _LOG, check="shape"),
    _log("log nothing new"),
    _log("log verbosely", log_verbose_level=1),
    _log("log no more verbosely", log_verbose_level=0),
    _log("log level below zero", log_verbose_level=-1),
    _log("log level in quotes", log_verbose_level="1"),
    _log("log level as a fraction", log_verbose_level=0.5),
    _log("log no information", log_info=False),
    _log("log information", log_info=True),
    _log("log information as a string", log_info="yes"),
    _log("log no warnings", log_warning=False),
    _log("log warnings", log_warning=True),
    _log("log no errors", log_error=False),
    _log("log errors", log_error=True),
    _log("log format", log_format="ISO8601"),
    _log("log format as at the start", log_format="default"),
    _log("log format unknown", log_format="rhyme"),
    _log("log format of another type", log_format=1),
    _log("log file", log_file="/tmp/penstock.log"),
    _log("log setting unknown", colour="red"),
    post("log with bad JSON", _LOG, "{", check="status"),
    post("log with a list", _LOG, "[]"),
    get("log settings at the end", _LOG),
]  # fmt: skip
