"""The connection's own half of HTTP/2: settings, windows, pings, resets, and what waits to be sent.

Knows every frame but DATA, HEADERS and CONTINUATION, which ``machine`` adds on top. Sans-IO:
``output`` is written to, time comes in ticks. Must not know what is spoken in streams.

What costs us more than the peer is counted: ``nuisance`` (control frames without need) and
``resets`` (streams opened for nothing). Both fall with time, and beyond their limit the peer is
sent away with ENHANCE_YOUR_CALM.
"""

from __future__ import annotations

from typing import Final

from penstock.server.transport.http2 import frames as fr
from penstock.server.transport.http2.application import Application, Output
from penstock.server.transport.http2.frames import ConnectionFault
from penstock.server.transport.http2.stream import Stream

_NO_TABLE: Final = b"\x20"
"""HPACK for: the dynamic table has no bytes from now on."""
_QUANTUM: Final = 1024 * 1024
"""Streams that have much to send take turns of this size."""
_RESETS_KEPT: Final = 4096
NUISANCE_MAX: Final = 1000
NUISANCE_FORGIVEN_PER_S: Final = 100
RESETS_MAX: Final = 5000
RESETS_FORGIVEN_PER_S: Final = 1000


class Control:
    """``over`` is set once the connection is of no more use: it should be closed when what was
    written has been sent. ``paused``: the connection takes no more for now."""

    __slots__ = (
        "_app", "_corked", "_out", "_output", "_resets_kept", "ended_by", "fresh", "goaways",
        "heard", "last_id", "last_id_told", "nuisance", "opened", "over", "paused",
        "peer_frame_max", "peer_window", "pinged", "pongs", "resets", "send_window", "sending",
        "settled", "streams", "strikes", "tick",
    )  # fmt: skip

    def __init__(self, app: Application, output: Output, tick: int = 0) -> None:
        self._app = app
        self._output = output
        self.tick = tick
        self.heard = tick
        """When anything came last."""
        self.streams: dict[int, Stream] = {}
        self.sending: dict[int, Stream] = {}
        """Those with something that waits."""
        self.last_id = 0
        self.last_id_told = fr.STREAM_ID_MAX
        """Of our GOAWAY: streams above are refused."""
        self.goaways = 0
        self.fresh = True
        """No header block was sent yet."""
        self.over = False
        self.ended_by = ""
        """Why we ended it for the peer's fault."""
        self.paused = False
        self.settled = False
        """The peer has acknowledged our settings."""
        self.opened = 0
        """Streams so far."""
        self.pongs = 0
        self.pinged = -1
        """When the client pinged last; -1 if we have sent it something of a stream since."""
        self.strikes = 0
        """Its pings that came too soon."""
        self.nuisance = 0
        self.resets = 0
        self.send_window = fr.WINDOW_DEFAULT
        self.peer_window = fr.WINDOW_DEFAULT
        self.peer_frame_max = fr.FRAME_MAX_DEFAULT
        self._out: list[bytes] = []
        self._corked = False
        self._resets_kept: dict[int, None] = {}

    # ------------------------------------------------------------------ out

    def emit(self, data: bytes) -> None:
        """Writes; what is written during one ``receive`` is joined.

        So is what follows in the same turn of the loop while several streams are open: the calls of
        a batch are answered one after another, and a write costs more than most answers.
        """
        if self._corked:
            self._out.append(data)
        elif len(self.streams) > 1:
            self._out.append(data)
            self._corked = True
            self._app.soon(self.flush)
        else:
            self._output.write(data)

    def headers(self, number: int, block: bytes, *, end: bool) -> bytes:
        """The frames of a header block. Those of the connection's first one must be sent first.

        Our blocks use no dynamic table, and the first says so (RFC 7541 §4.2): whatever size the
        peer allows it later, none is too small.
        """
        if self.fresh:
            self.fresh = False
            block = _NO_TABLE + block
        return fr.headers(number, block, end=end)

    def flush(self) -> None:
        """Writes what was held back to be joined; for the end of a turn, or of the connection."""
        self._corked = False
        self._flush()

    def _flush(self) -> None:
        out = self._out
        if out:
            self._output.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()

    def pump(self) -> None:
        """Sends what waits, as far as the windows and the connection allow, in turns."""
        sending = self.sending
        moved = True
        while moved and sending and not self.paused:
            moved = False
            for stream in tuple(sending.values()):
                pieces = stream.take(min(_QUANTUM, self.send_window))
                if pieces:
                    moved = True
                    stream.moved = self.tick
                    self._flush()
                    self._output.writelines(pieces)
                if not stream.waiting:
                    sending.pop(stream.id, None)
                    stream.sent()
                if self.paused:
                    return

    def resume(self) -> None:
        """The connection takes more again."""
        self.paused = False
        self.pump()
        for stream in tuple(self.streams.values()):
            if stream.pressed and not self.paused and not stream.waiting:
                stream.pressed = False
                stream.drained()

    # ------------------------------------------------------------------ ends

    def finish(self, stream: Stream) -> None:
        """Our side of the stream has ended; the client's ends with it."""
        self.streams.pop(stream.id, None)
        self.pinged = -1
        if not stream.ended:
            self._keep_reset(stream.id)
            self.emit(fr.rst_stream(stream.id, fr.NO_ERROR))
        if self.goaways:
            self._end_if_done()

    def abandon(self, stream: Stream, code: int) -> None:
        """Ends the stream, in both directions and at once, and tells the client."""
        if self.streams.pop(stream.id, None) is not None:
            self._drop(stream)
            self._keep_reset(stream.id)
            self.emit(fr.rst_stream(stream.id, code))
            self._end_if_done()

    def reset(self, stream: Stream, code: int) -> None:
        """As ``abandon``, for the client's fault. Counted: it costs the client little."""
        self.abandon(stream, code)
        self._count_reset()

    def reset_number(self, number: int, code: int) -> None:
        """Refuses a stream that was not made."""
        self._keep_reset(number)
        self.emit(fr.rst_stream(number, code))
        self._count_reset()

    def _keep_reset(self, number: int) -> None:
        kept = self._resets_kept
        kept[number] = None
        if len(kept) > _RESETS_KEPT:
            del kept[next(iter(kept))]

    def _drop(self, stream: Stream) -> None:
        stream.live = False
        stream.drop_outgoing()
        stream.gone()

    def _count_reset(self) -> None:
        self.resets += 1
        if self.resets > RESETS_MAX:
            raise ConnectionFault(fr.ENHANCE_YOUR_CALM, "too many streams are reset")

    def annoyed(self, what: str) -> None:
        """Counts what no honest peer does often."""
        self.nuisance += 1
        if self.nuisance > NUISANCE_MAX:
            raise ConnectionFault(fr.ENHANCE_YOUR_CALM, f"too many {what}")

    def forgive(self) -> None:
        """Called once a second."""
        self.nuisance = max(0, self.nuisance - NUISANCE_FORGIVEN_PER_S)
        self.resets = max(0, self.resets - RESETS_FORGIVEN_PER_S)

    def leave(self, final: bool) -> None:
        """GOAWAY: first without a number, then, when the client must have seen it, the last one."""
        if final:
            self.last_id_told = self.last_id
            self.emit(fr.goaway(self.last_id, fr.NO_ERROR))
            self.goaways = 2
            self._end_if_done()
        else:
            # Its answer says that the client has seen the GOAWAY: no stream is opened after that.
            ping = fr.frame(fr.PING, 0, 0, b"goaway  ")
            self.emit(fr.goaway(fr.STREAM_ID_MAX, fr.NO_ERROR) + ping)
            self.goaways = 1

    def _end_if_done(self) -> None:
        if self.goaways == 2 and not self.streams:
            self.over = True

    def end(self, code: int, text: str) -> None:
        """Ends the connection for the peer's fault."""
        if self.over:
            return
        self.emit(fr.goaway(self.last_id, code, text))
        self.over = True
        self.ended_by = text
        self.lost()

    def lost(self) -> None:
        """The connection is gone; all streams are told."""
        self.over = True
        streams = tuple(self.streams.values())
        self.streams.clear()
        for stream in streams:
            self._drop(stream)

    # ------------------------------------------------------------------ control frames

    def control(self, kind: int, payload: bytes, flags: int, number: int) -> None:
        """Any frame that is not DATA, HEADERS or CONTINUATION."""
        if kind == fr.WINDOW_UPDATE:
            self._window_update(payload, number)
        elif kind == fr.RST_STREAM:
            self._rst_stream(payload, number)
        elif kind == fr.PING:
            self._ping(payload, flags, number)
        elif kind == fr.SETTINGS:
            self._settings(payload, flags, number)
        elif kind == fr.PRIORITY:
            self._priority(payload, number)
        elif kind == fr.GOAWAY:
            if number:
                raise ConnectionFault(fr.PROTOCOL_ERROR, "GOAWAY in a stream")
            if len(payload) < 8:
                raise ConnectionFault(fr.FRAME_SIZE_ERROR, "GOAWAY is too short")
        elif kind == fr.PUSH_PROMISE:
            raise ConnectionFault(fr.PROTOCOL_ERROR, "a client pushes nothing")
        else:
            self.annoyed("frames of unknown kinds")

    def _was_opened(self, number: int, what: str) -> None:
        if not number or number > self.last_id or not number & 1:
            raise ConnectionFault(fr.PROTOCOL_ERROR, f"{what} for a stream that is not open")

    def _window_update(self, payload: bytes, number: int) -> None:
        if len(payload) != 4:
            raise ConnectionFault(fr.FRAME_SIZE_ERROR, "WINDOW_UPDATE has four bytes")
        increment = int.from_bytes(payload, "big") & fr.WINDOW_MAX
        if not number:
            self.send_window += increment
            if not increment:
                raise ConnectionFault(fr.PROTOCOL_ERROR, "a WINDOW_UPDATE of nothing")
            if self.send_window > fr.WINDOW_MAX:
                raise ConnectionFault(fr.FLOW_CONTROL_ERROR, "the window is too large")
            if self.sending:
                self.pump()
            return
        stream = self.streams.get(number)
        if stream is None:
            self._was_opened(number, "WINDOW_UPDATE")
            return
        stream.send_window += increment
        if not increment:
            self.reset(stream, fr.PROTOCOL_ERROR)
        elif stream.send_window > fr.WINDOW_MAX:
            self.reset(stream, fr.FLOW_CONTROL_ERROR)
        elif stream.waiting:
            self.pump()

    def _rst_stream(self, payload: bytes, number: int) -> None:
        if len(payload) != 4:
            raise ConnectionFault(fr.FRAME_SIZE_ERROR, "RST_STREAM has four bytes")
        self._was_opened(number, "RST_STREAM")
        stream = self.streams.pop(number, None)
        if stream is not None:
            self._drop(stream)
            self._count_reset()
            self._end_if_done()

    def _ping(self, payload: bytes, flags: int, number: int) -> None:
        if number:
            raise ConnectionFault(fr.PROTOCOL_ERROR, "PING in a stream")
        if len(payload) != 8:
            raise ConnectionFault(fr.FRAME_SIZE_ERROR, "PING has eight bytes")
        if flags & fr.ACK:
            self.pongs += 1
            if self.goaways == 1:
                self.leave(True)
            return
        self.emit(fr.frame(fr.PING, fr.ACK, 0, payload))
        app = self._app
        if self.pinged < 0:
            self.strikes = 0
        elif self.tick - self.pinged < app.ping_interval_s_min:
            self.annoyed("pings")
            self.strikes += 1
            if self.strikes > app.ping_strikes_max:
                raise ConnectionFault(fr.ENHANCE_YOUR_CALM, "too_many_pings")
        self.pinged = self.tick

    def _priority(self, payload: bytes, number: int) -> None:
        """Ignored, as RFC 9113 §5.3.2 allows, but for its form."""
        if not number:
            raise ConnectionFault(fr.PROTOCOL_ERROR, "PRIORITY without a stream")
        self.annoyed("priorities")
        wrong = 0
        if len(payload) != 5:
            wrong = fr.FRAME_SIZE_ERROR
        elif int.from_bytes(payload[:4], "big") & fr.STREAM_ID_MAX == number:
            wrong = fr.PROTOCOL_ERROR
        if wrong:
            stream = self.streams.get(number)
            if stream is not None:
                self.reset(stream, wrong)
            else:
                self.reset_number(number, wrong)

    def _settings(self, payload: bytes, flags: int, number: int) -> None:
        if number:
            raise ConnectionFault(fr.PROTOCOL_ERROR, "SETTINGS in a stream")
        if len(payload) % 6 or (flags & fr.ACK and payload):
            raise ConnectionFault(fr.FRAME_SIZE_ERROR, "SETTINGS of a wrong length")
        if flags & fr.ACK:
            self.settled = True
            return
        self.annoyed("settings")
        for key, value in fr.SETTING.iter_unpack(payload):
            self._set(key, value)
        self.emit(fr.SETTINGS_ACK)
        if self.sending:
            self.pump()

    def _set(self, key: int, value: int) -> None:
        if key == fr.INITIAL_WINDOW_SIZE:
            if value > fr.WINDOW_MAX:
                raise ConnectionFault(fr.FLOW_CONTROL_ERROR, "the initial window is too large")
            change = value - self.peer_window
            self.peer_window = value
            for stream in self.streams.values():
                stream.send_window += change
                if stream.send_window > fr.WINDOW_MAX:
                    raise ConnectionFault(fr.FLOW_CONTROL_ERROR, "a window is too large")
        elif key == fr.MAX_FRAME_SIZE:
            if not fr.FRAME_MAX_DEFAULT <= value <= fr.FRAME_MAX_LARGEST:
                raise ConnectionFault(fr.PROTOCOL_ERROR, "a frame size that is not allowed")
            self.peer_frame_max = value
        elif key == fr.ENABLE_PUSH and value > 1:
            raise ConnectionFault(fr.PROTOCOL_ERROR, "ENABLE_PUSH is 0 or 1")
