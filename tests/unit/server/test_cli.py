"""The command line itself: parsing, help, mistakes, exit statuses. No server, no sockets."""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from penstock.client import (
    BadReply,
    Code,
    ConnectError,
    DeadlineExceeded,
    InferError,
    ModelStatus,
    Unavailable,
)
from penstock.server import cli
from penstock.server.commands import remote, values, version
from penstock.server.commands.failure import CommandError
from penstock.server.commands.terminal import Cell, Terminal, forgive, table, terminal_for

Reader = Callable[[str], Any]


def commands() -> dict[str, argparse.ArgumentParser]:
    (action,) = [
        a for a in cli.build_parser()._actions if isinstance(a, argparse._SubParsersAction)
    ]
    return dict(action.choices)


# --- values of flags


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (values.size, "1", 1),
        (values.size, "1048576", 1 << 20),
        (values.size, "64MiB", 64 << 20),
        (values.size, "64 mib", 64 << 20),
        (values.size, "2GiB", 2 << 30),
        (values.size, "2G", 2 << 30),
        (values.size, "1.5K", 1536),
        (values.size, "3KB", 3000),
        (values.size, "1TB", 10**12),
        (values.port, "0", 0),
        (values.port, "65535", 65535),
        (values.port, "off", None),
        (values.port, "OFF", None),
        (values.file_mode, "660", 0o660),
        (values.file_mode, "0600", 0o600),
        (values.file_mode, "0o777", 0o777),
        (values.count, "1", 1),
        (values.index, "0", 0),
        (values.seconds, "0", 0.0),
        (values.seconds, "2.5", 2.5),
        (values.seconds, "30s", 30.0),
        (values.positive_seconds, "0.1", 0.1),
        (values.truth, "true", True),
        (values.truth, "False", False),
    ],
)
def test_values(read: Reader, text: str, value: object) -> None:
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "texts"),
    [
        (values.size, ["", "0", "0.0001", "-1", "x", "1QB", "MiB", "1e3", "1.2.3", "٣", "9" * 19]),
        (values.port, ["", "-1", "65536", "80x", "1.0", "٣"]),
        (values.file_mode, ["", "8", "66", "888", "0x1b0", "1777", "rw-rw----"]),
        (values.count, ["", "0", "-1", "1.5", "x"]),
        (values.index, ["", "-1", "x"]),
        (values.seconds, ["", "-1", "nan", "inf", "x"]),
        (values.positive_seconds, ["0", "-0.1"]),
        (values.truth, ["", "maybe", "2"]),
    ],
)
def test_values_that_are_none(read: Reader, texts: list[str]) -> None:
    for text in texts:
        with pytest.raises(argparse.ArgumentTypeError, match=re.escape(repr(text))):
            read(text)


# --- the command line


@pytest.mark.parametrize("name", ["serve", "infer", "models", "version"])
def test_help_names_and_explains_every_flag(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert cli.main([name, "--help"]) == 0
    text = capsys.readouterr().out
    for action in commands()[name]._actions:
        assert action.help, action
        for flag in action.option_strings:
            assert re.search(rf"(?m)^ +.*{re.escape(flag)}\b", text), flag


@pytest.mark.parametrize("name", ["serve", "infer", "models"])
def test_examples_in_help_can_be_parsed(name: str) -> None:
    """Every example line that starts a command of ours is one that we take."""
    parser = cli.build_parser()
    epilog = commands()[name].epilog
    assert epilog
    lines = re.findall(r"(?m)^  (?:[^|]* \| )?penstock ((?:serve|infer|models)\b[^|\n]*)", epilog)
    assert lines
    for line in lines:
        words = [word.strip("'") for word in re.findall(r"'[^']*'|\S+", line)]
        words = [re.sub(r"^(INPUT\d)='", r"\1=", word) for word in words]
        parser.parse_args(words)


def test_serve_has_four_examples() -> None:
    epilog = commands()["serve"].epilog
    assert epilog
    assert epilog.count("\n  penstock serve ") == 4


def test_without_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    for name in ("serve", "infer", "models", "version"):
        assert re.search(rf"(?m)^    {name} ", err)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sreve"], "penstock: error: argument COMMAND: invalid choice: 'sreve'"),
        (["infer"], "penstock infer: error: the following arguments are required: MODEL"),
        (["serve", "--http-port", "x"], "argument --http-port: 'x' is not a port; write 1 to"),
        (["serve", "--uds-mode", "9"], "argument --uds-mode: '9' is no file mode; write octal"),
        (["serve", "--http-max-body-bytes", "9 potatoes"], "'9 potatoes' is not a size"),
        (["serve", "--http-p", "1"], "penstock serve: error: unrecognized arguments: --http-p"),
        (["serve", "a b"], "what to serve is named with -m: penstock serve -m 'a b'"),
        (["models", "x"], "penstock models: error: argument CHANGE: invalid choice: 'x'"),
        (["models", "load"], "the following arguments are required: MODEL"),
        (["models", "load", "m", "--file", "x"], "'x': expected PATH=FILE"),
        (["models", "load", "m", "--file", "1/a=b"], "--file needs --config"),
        (["models", "load", "m", "--config", "nowhere"], "cannot read nowhere: No such file"),
        (["serve", "--log-level", "loud"], "argument --log-level: invalid choice: 'loud'"),
        (["models", "--timeout", "0"], "argument --timeout: '0': the time must be more than 0"),
        (["serve"], "nothing to serve: name a model repository, or try the demonstration"),
        (
            ["serve", "--demo", "--http-port", "off", "--grpc-port", "off"],
            "nothing to listen on: --http-port and --grpc-port are off",
        ),
        (["infer", "digits", "--output", "xml"], "'xml' is neither text nor json nor a file.npz"),
        (["models", "--url", "ftp://x"], "--url: 'ftp://x': expected http://, https:// or unix:"),
        (["infer", "digits", "--url", "http://"], "--url: 'http://' names no host"),
    ],
)
def test_wrong_usage_is_told_in_short(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert len(err.splitlines()) <= 3


def test_missing_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "httptools", None)
    assert cli.main(["serve", "--demo"]) == 2
    assert capsys.readouterr().err == (
        "penstock serve: error: serving needs httptools, which this installation does not have\n"
        "  pip install 'penstock[server,onnx]'\n"
    )


def test_ctrl_c_in_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(remote, "connected", interrupted)
    assert cli.main(["models"]) == 130


def test_faults_of_ours_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(remote, "connected", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["models"])


# --- version


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"penstock {version.own_version()}\n"
    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out.startswith(f"penstock     {version.own_version()}\npython ")


def test_version_says_how_to_get_what_is_missing() -> None:
    found: dict[str, str | None] = {"penstock": "1", "uvloop": None, "onnxruntime": None}
    assert version.lines(found) == [
        "penstock     1",
        "uvloop       not installed (pip install 'penstock[server]')",
        "onnxruntime  not installed (pip install 'penstock[onnx]')",
    ]


# --- errors of a running server


class Told:
    """A client whose every call fails, but for the list of models."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __enter__(self) -> Told:
        return self

    def __exit__(self, *_: object) -> None: ...

    def models(self) -> tuple[ModelStatus, ...]:
        return (ModelStatus("b", "2"), ModelStatus("a"), ModelStatus("b", "1"))


@contextmanager
def refused(monkeypatch: pytest.MonkeyPatch, error: Exception) -> Iterator[list[CommandError]]:
    monkeypatch.setattr(remote, "Client", Told)
    told: list[CommandError] = []
    with (
        pytest.raises(CommandError) as caught,
        remote.connected("http://h", protocol="v2", timeout_s=2, model="m"),
    ):
        raise error
    told.append(caught.value)
    yield told


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            ConnectError("cannot connect to http://h: refused"),
            "penstock infer: error: cannot connect to http://h: refused\n"
            "  is the server running? start it with: penstock serve --demo\n"
            "  --url URL asks another server",
        ),
        (
            DeadlineExceeded("the time was over while receiving the reply"),
            "penstock infer: error: no answer within 2 s: the time was over while receiving the "
            "reply\n  --timeout S waits longer",
        ),
        (
            BadReply("the reply is not HTTP"),
            "penstock infer: error: http://h: the reply is not HTTP\n"
            "  is this a model server's port? --url URL asks another server",
        ),
        (
            InferError(Code.NOT_FOUND, "unknown model"),
            "penstock infer: error: unknown model\n  models there: a, b",
        ),
        (
            InferError(Code.INVALID_ARGUMENT, "unexpected shape"),
            "penstock infer: error: unexpected shape (INVALID_ARGUMENT)\n"
            "  penstock models --url http://h shows what each model takes",
        ),
        (
            Unavailable(Code.UNAVAILABLE, "not ready"),
            "penstock infer: error: not ready (UNAVAILABLE)\n"
            "  penstock models --url http://h shows the state of each model",
        ),
        (InferError(Code.INTERNAL, "broke"), "penstock infer: error: broke (INTERNAL)"),
    ],
)
def test_errors_of_a_server(error: Exception, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with refused(monkeypatch, error) as (told,):
        assert told.text("infer") == text
        assert told.status == 1


def test_a_version_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Told, "models", lambda _: (ModelStatus("m", "1"), ModelStatus("b", "2")))
    with refused(monkeypatch, InferError(Code.NOT_FOUND, "version 3 is not found")) as (told,):
        assert told.hint == "versions of m there: 1"


def test_another_port_than_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "Client", Told)
    with (
        pytest.raises(CommandError) as caught,
        remote.connected("http://h", protocol="v2", timeout_s=2),
    ):
        raise InferError(Code.NOT_FOUND, "Not Found")
    assert caught.value.hint == "is http://h a model server? --url URL asks another server"


# --- terminals


class Screen(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "color"),
    [
        ({"TERM": "xterm"}, True),
        ({}, True),
        ({"NO_COLOR": "1"}, False),
        ({"NO_COLOR": ""}, True),
        ({"TERM": "dumb"}, False),
    ],
)
def test_colours_only_where_they_are_wanted(environment: dict[str, str], color: bool) -> None:
    assert terminal_for(Screen(), environment).color is color
    plain = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    assert terminal_for(plain, environment).color is False
    plain.close()


@pytest.mark.parametrize(
    ("encoding", "unicode"), [("utf-8", True), ("ascii", False), ("latin-1", False)]
)
def test_characters_that_the_encoding_has(encoding: str, unicode: bool) -> None:
    with io.TextIOWrapper(io.BytesIO(), encoding=encoding) as stream:
        assert terminal_for(stream, {}) == Terminal(color=False, unicode=unicode)
        forgive(stream)
        stream.write("münchen→")
        stream.flush()


def test_table() -> None:
    rows = [
        [Cell(("a",), "bold"), Cell(("1", "22")), Cell(("x",))],
        [Cell(("long",)), Cell(("",)), Cell(("y",), "red")],
    ]
    assert table(("N", "V", "W"), rows, Terminal()) == [
        "N     V   W",
        "a     1   x",
        "      22",
        "long      y",
    ]
    assert table(("N", "V", "W"), rows, Terminal(color=True))[3] == "long      \x1b[31my\x1b[0m"
