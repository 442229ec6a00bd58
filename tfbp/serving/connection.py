"""HTTP connections that do not wait for ever: uvicorn's, with a time for the head of a request."""

import asyncio
import json
import socket

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def protocol(head_seconds: float, most: int) -> type[H11Protocol]:
    """Returns the class of the connections of one server.

    Args:
        head_seconds: the time for a request line and its headers to arrive, also of the next
            request on a connection that is kept. uvicorn itself waits for ever.
        most: connections at once; one more is closed.
    """

    class Connection(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport):
            super().connection_made(transport)
            # asyncio does so only for sockets that were made with the protocol's number. Else an
            # answer's body waits for the acknowledgement of its head, 40 ms and more.
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if len(self.connections) > most:
                transport.close()
            else:
                self._timer = self.loop.call_later(head_seconds, transport.close)

        def data_received(self, data):
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:
                self._stop()
            elif self._timer is None:
                self._timer = self.loop.call_later(head_seconds, self.transport.close)

        def send_400_response(self, msg):
            """Answers what is no HTTP in the words of all other answers."""
            content = json.dumps({"error": msg}).encode()
            headers = [("content-type", "application/json"), ("connection", "close")]
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=content),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event))
            self.transport.close()

        def connection_lost(self, exc):
            self._stop()
            super().connection_lost(exc)

        def _stop(self):
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Connection
