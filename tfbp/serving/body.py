"""The body of an HTTP request: read within bounds, inflated within bounds, or thrown away."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tfbp.serving.status import Code, StatusError

# A body so many times over the limit is not read to its end any more.
_PATIENCE = 4
# How long the rest of a body is read, and thrown away, that the answer does not depend on. A client
# that still sends when the connection is closed may not see the answer.
_DRAIN_SECONDS = 0.5
_TOO_LARGE = 413

Receive = Callable[[], Awaitable[Mapping[str, Any]]]


class ClientLeft(Exception):
    """The client has closed the connection."""


class Memory:
    """Bytes of bodies that may be in memory at once, over all requests."""

    def __init__(self, most: int):
        self._free = most

    def take(self, size: int) -> None:
        """Raises: StatusError, RESOURCE_EXHAUSTED: there is none left."""
        if size > self._free:
            raise StatusError(Code.RESOURCE_EXHAUSTED, "Too many large requests at once")
        self._free -= size

    def give_back(self, size: int) -> None:
        """Frees what has been taken."""
        self._free += size


class Body:
    """The body of one request.

    Args:
        headers: of the request, their names in lower case.
        receive: ASGI's function.
        memory: what holds the body until `release`.
        limit: bytes, sent and inflated.
    """

    def __init__(
        self, headers: Mapping[bytes, bytes], receive: Receive, memory: Memory, limit: int
    ):
        self._headers, self._receive, self._memory, self._limit = headers, receive, memory, limit
        self._held = 0
        announced = headers.get(b"content-length", b"0") != b"0"
        self._ended = not announced and b"transfer-encoding" not in headers

    async def read(self) -> bytes:
        """Returns the body, inflated where it was sent as gzip.

        Raises:
            StatusError: it is too large, by itself or beside the others, or is no gzip.
            ClientLeft: it ended too early.
        """
        encoding = self._headers.get(b"content-encoding", b"identity").decode("latin-1").lower()
        if encoding not in ("identity", "gzip", "x-gzip"):
            raise StatusError(Code.UNIMPLEMENTED, f"Content-Encoding {encoding} is not supported")
        size, parts = 0, []
        more = True
        while more:
            part, more = await self._part()
            size += len(part)
            if size <= self._limit:
                self._hold(len(part))
                parts.append(part)
            elif size > _PATIENCE * self._limit:
                raise self._too_large()
        # Read to its end where that is not far: a client that still sends sees no answer.
        if size > self._limit:
            raise self._too_large()
        content = b"".join(parts)
        return content if encoding == "identity" else await self._inflated(content)

    async def drain(self) -> bool:
        """Returns whether the body has been read to its end, which is waited for shortly."""
        if self._ended or b"expect" in self._headers:
            return self._ended
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while (await self._part())[1]:
                    pass
        except (TimeoutError, ClientLeft):
            return False
        return True

    def release(self) -> None:
        """Gives the memory back. Nobody uses the body any more."""
        self._memory.give_back(self._held)
        self._held = 0

    async def _part(self) -> tuple[bytes, bool]:
        """Returns what comes next, and whether there is more."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        more = bool(message.get("more_body", False))
        self._ended = not more
        return message.get("body", b""), more

    async def _inflated(self, content: bytes) -> bytes:
        self._hold(self._limit)
        inflater = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)  # gzip's head and checksum
        try:
            # zlib lets other threads run.
            result = await asyncio.to_thread(inflater.decompress, content, self._limit + 1)
        except zlib.error:
            raise StatusError(Code.INVALID_ARGUMENT, "The body of the request is no gzip") from None
        if len(result) > self._limit:
            raise self._too_large()
        if not inflater.eof:
            raise StatusError(Code.INVALID_ARGUMENT, "The body of the request is cut off")
        return result

    def _hold(self, size: int) -> None:
        self._memory.take(size)
        self._held += size

    def _too_large(self) -> StatusError:
        message = f"The body of the request is over the limit of {self._limit} bytes"
        return StatusError(Code.INVALID_ARGUMENT, message, _TOO_LARGE)
