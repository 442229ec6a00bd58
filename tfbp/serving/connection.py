"""HTTP connections that do not wait for ever: uvicorn's, with bounds for strangers."""

import asyncio
import collections
import dataclasses
import socket

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tfbp.serving import json_text

# A request line and its headers. curl sends 100 bytes, a browser with its cookies some thousands.
_MOST_HEAD_BYTES = 64 * 2**10


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What connections may do.

    Attributes:
        head_seconds: the time for a request line and its headers to arrive, also of the next
            request on a connection that is kept. uvicorn itself waits for ever.
        most: connections at once; one more is closed.
        most_per_address: connections of one address; one more is closed. 0: as many as `most`.
    """

    head_seconds: float
    most: int
    most_per_address: int


def protocol(bounds: Bounds) -> type[HttpToolsProtocol]:
    """Returns the class of the connections of one server."""
    addresses: collections.Counter[str] = collections.Counter()

    class Connection(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None
        _head_bytes = 0
        _address = ""
        _refused = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            self._address = str((transport.get_extra_info("peername") or [""])[0])
            addresses[self._address] += 1
            most = bounds.most_per_address or bounds.most
            if addresses[self._address] > most or len(self.connections) >= bounds.most:
                self._refused = True  # before anything that takes time
                transport.abort()
                return
            super().connection_made(transport)
            # asyncio does so only for sockets that were made with the protocol's number. Else an
            # answer's body waits for the acknowledgement of its head, 40 ms and more.
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._start()

        def data_received(self, data: bytes) -> None:
            if self._timer is not None:
                self._head_bytes += len(data)
            super().data_received(data)
            if self._timer is not None and self._head_bytes > _MOST_HEAD_BYTES:
                self.send_400_response("The head of the request is too long.")

        def on_message_begin(self) -> None:
            super().on_message_begin()
            if self._timer is None:
                self._start()

        def on_headers_complete(self) -> None:
            self._stop()
            super().on_headers_complete()

        def send_400_response(self, msg: str) -> None:
            """Answers what is no HTTP in the words of all other answers."""
            content = json_text.member("error", json_text.string(msg)).encode()
            head = (
                "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
                f"content-length: {len(content)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + content)
            self.transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            addresses[self._address] -= 1
            if not addresses[self._address]:
                del addresses[self._address]
            if not self._refused:
                super().connection_lost(exc)

        def _start(self) -> None:
            self._head_bytes = 0
            self._timer = self.loop.call_later(bounds.head_seconds, self.transport.close)

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Connection
