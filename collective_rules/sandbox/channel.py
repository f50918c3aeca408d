"""Lines of JSON between two processes, over a socket that never blocks."""

from __future__ import annotations

import contextlib
import json
import select
import socket
from typing import Any


class Channel:
    """Lines both ways over a socket, without ever blocking; `ended` when the other side has gone."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end, self._in, self._out, self.ended = end, bytearray(), bytearray(), False

    @property
    def pending(self) -> int:
        """How many bytes of an unfinished line have come."""
        return len(self._in)

    def register(self, poll: select.poll) -> None:
        """Have `poll` wake up when there is something to do here."""
        if not self.ended:
            poll.register(self._end, select.POLLIN | (select.POLLOUT if self._out else 0))

    def put(self, message: dict[str, Any]) -> None:
        """Send as much as can be sent now; `flush` sends the rest."""
        self._out += json.dumps(message).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Send as much as can be sent now of what was put."""
        try:
            while self._out and not self.ended:
                del self._out[: self._end.send(self._out[: 2**20])]
        except BlockingIOError:
            pass
        except OSError:
            self.ended = True

    def take(self) -> list[bytes]:
        """Return the lines that have come, up to some megabytes."""
        lines: list[bytes] = []
        for _ in range(64):
            try:
                chunk = self._end.recv(2**16)
            except BlockingIOError:
                break
            except OSError:
                chunk = b""
            if not chunk:
                self.ended = True
                break
            self._in += chunk
            if b"\n" in chunk:
                *whole, rest = self._in.split(b"\n")
                lines += map(bytes, whole)
                self._in = rest
        return lines

    def end(self) -> None:
        """End the connection, whatever forks of this process hold it, too."""
        with contextlib.suppress(OSError):  # the other side has ended it
            self._end.shutdown(socket.SHUT_RDWR)
        self.close()

    def close(self) -> None:
        """Close this end, but not a fork's."""
        self.ended = True
        self._end.close()
