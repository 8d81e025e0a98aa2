from __future__ import annotations

import pytest

from penstock.loadtest.replies import HEAD_BYTES_MAX, MalformedReply, Reply, ReplyParser

STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
    b"HTTP/1.1 100 Continue\r\n\r\n"
    b"HTTP/1.1 404 Not Found\r\nX: y\r\ncontent-length:3 \r\nConnection: close\r\n\r\nno!"
    b"HTTP/1.0 204\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nagain"
)
REPLIES = [
    Reply(200, b"hello", False),
    Reply(404, b"no!", True),
    Reply(204, b"", False),
    Reply(200, b"again", False),
]


@pytest.mark.parametrize("step", [1, 2, 3, 7, 40, len(STREAM)])
def test_any_cut_of_the_stream_gives_the_same_replies(step: int) -> None:
    parser = ReplyParser()
    found: list[Reply] = []
    for start in range(0, len(STREAM), step):
        found += parser.feed(STREAM[start : start + step])
    assert found == REPLIES
    assert parser.idle


def test_an_unfinished_reply_is_held() -> None:
    parser = ReplyParser()
    assert parser.feed(STREAM[:50]) == REPLIES[:1]
    assert not parser.idle


@pytest.mark.parametrize(
    "stream",
    [
        b"nonsense",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nBad name: x\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: \x00\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * HEAD_BYTES_MAX,
        STREAM + b"trailing",
    ],
)
def test_what_is_no_reply_is_refused(stream: bytes) -> None:
    for step in (1, len(stream)):
        with pytest.raises(MalformedReply):
            _feed_all(stream, step)


def _feed_all(stream: bytes, step: int) -> None:
    parser = ReplyParser()
    for start in range(0, len(stream), step):
        parser.feed(stream[start : start + step])
