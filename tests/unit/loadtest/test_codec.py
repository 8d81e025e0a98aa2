"""The codec's figures are of the same work on both sides."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc", exc_type=ImportError)

from penstock.loadtest import codec
from penstock.protocol.message import InferRequest


def test_both_sides_read_the_same() -> None:
    for case in itertools.islice(codec.cases(), 4):
        theirs: Any = case.library()
        ours = case.ours()
        assert isinstance(ours, InferRequest)
        name, request_id, parameters, arrays, _ = theirs
        assert (ours.model, ours.id, dict(ours.parameters)) == (name, request_id, parameters)
        assert list(ours.signature.tensors) == [spec for spec, _ in arrays]
        for one, (_, other) in zip(ours.arrays, arrays, strict=True):
            np.testing.assert_array_equal(one, other)


def test_both_sides_write_the_same() -> None:
    case = codec.encoding("e", codec.made("FP32", [(2, 3), (4,)]))
    buffers: Any = case.ours()
    assert b"".join(buffers) == case.library()


def test_a_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(codec, "SECONDS_A_ROUND", 0.001)
    monkeypatch.setattr(codec, "SIZES", {"small": ("INT32", [(1, 16)])})
    codec.main(["--rounds", "2"])
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 5
    for line in rows:
        assert line.count("|") == head.count("|")
        assert float(line.rsplit("|", 2)[1]) > 0
