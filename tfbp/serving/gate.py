"""Who may ask, and how many at once."""

import contextlib
import hmac
import ipaddress
import re
import threading
from collections.abc import Iterator, Sequence

from tfbp.errors import UserError, mistake
from tfbp.serving.status import Code, StatusError

_PORT = re.compile(r":\d+$")


def check_exposure(host: str, token: str, insecure: bool) -> None:
    """Refuses to serve other machines without saying who may ask.

    Raises:
        tfbp.UserError: `host` is no loopback address, and there is neither token nor consent.
    """
    if not (loopback(host) or token or insecure):
        raise mistake(
            "--host",
            "must be a loopback address unless --token, --token_file or --insecure is given",
            host,
        )


def loopback(host: str) -> bool:
    """Returns whether only this machine reaches `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Gate:
    """Lets requests in: those that know the token, so many at once, none once it is shut.

    Args:
        host: that is listened on.
        token: what a client must send as `Authorization: Bearer …`; "" lets everybody in.
        most: requests at once.

    Raises:
        tfbp.UserError: no client can send such a token.
    """

    def __init__(self, host: str, token: str, most: int):
        if not (token.isascii() and token.isprintable() and token == token.strip()):
            raise UserError("`--token` must be ASCII characters without blanks at the ends.")
        self._local, self._token, self._most = loopback(host), token, most
        self._inside = 0
        self._shut = False
        self._lock = threading.Lock()

    def admit(self, authorization: Sequence[str]) -> None:
        """Refuses who may not ask, before anything else of the request is looked at.

        Args:
            authorization: the values of the header; several are ambiguous.

        Raises:
            StatusError: the token is wrong (UNAUTHENTICATED), or the server is going down
                (UNAVAILABLE).
        """
        if len(authorization) > 1:
            raise StatusError(Code.UNAUTHENTICATED, "There is more than one Authorization header")
        scheme, _, token = "".join(authorization).partition(" ")
        known = hmac.compare_digest(token.strip().encode(), self._token.encode())
        if self._token and not (known and scheme.lower() == "bearer"):
            raise StatusError(Code.UNAUTHENTICATED, "A bearer token is required")
        with self._lock:
            if self._shut:
                raise StatusError(Code.UNAVAILABLE, "The server is shutting down")

    def check_page(self, hosts: Sequence[str], origins: Sequence[str], method: str) -> None:
        """Refuses what a web page makes a browser ask of a server that it should not know of.

        Any page can have a name of its own that leads to 127.0.0.1 (DNS rebinding), and can post
        plain text to any address. Browsers tell the name in `Host` and the page in `Origin`.

        Raises:
            StatusError: PERMISSION_DENIED.
        """
        if len(hosts) > 1:
            raise StatusError(Code.INVALID_ARGUMENT, "There is more than one Host header")
        host = "".join(hosts)
        if self._local and host and not loopback(_PORT.sub("", host).strip("[]").lower()):
            raise StatusError(Code.PERMISSION_DENIED, "The Host is not this machine's")
        if method == "POST" and any(origin.partition("://")[2] != host for origin in origins):
            raise StatusError(Code.PERMISSION_DENIED, "The Origin is another page's")

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Holds one of the places while a request is worked on that has been read to its end.

        Raises:
            StatusError: all places are taken (RESOURCE_EXHAUSTED).
        """
        with self._lock:
            if self._inside >= self._most:
                raise StatusError(
                    Code.RESOURCE_EXHAUSTED, f"More than {self._most} requests at once"
                )
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1

    def shut(self) -> None:
        """Lets nobody in any more; who has been admitted stays."""
        with self._lock:
            self._shut = True
