"""Workers meet before TensorFlow starts its engine on their addresses.

TensorFlow would wait for those that are missing too, but without a word and deaf to signals: with
Python's lock held, so that no thread can speak for it.

The others connect to the chief, on the port that TensorFlow's engine takes a moment later, and say
who they are in a line of JSON; once all have come, the chief answers each with another.
"""

import contextlib
import ipaddress
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence

from absl import logging

from tfbp.errors import UserError, mistake

# After so long a wait there is a word of it, and again each minute.
PATIENCE_SECONDS = 5.0
AGAIN_SECONDS = 60.0
# A call that blocks longer would keep a signal waiting that the kernel has given to another thread.
POLL_SECONDS = 0.5
# For the line of a process that has connected: a stranger's silence must not keep the others.
LINE_SECONDS = 1.0
# A network that is busy may take as long.
REACH_SECONDS = 5.0
LINE_BYTES = 1 << 20


def meet(addresses: Sequence[str], own: int) -> None:
    """Waits until all workers are there.

    Args:
        addresses: of all workers, "host:port", the chief first.
        own: which of them this process is.

    Raises:
        tfbp.UserError: the port of this one is taken, or the chief expects other workers.
    """
    if len(addresses) > 1:
        with _listening(addresses[own]) as server:  # also to refuse a second one of the same number
            if own == 0:
                _receive(server, list(addresses))
            else:
                _join(list(addresses), own)


def named(worker: int, address: str) -> str:
    """Returns how messages name a worker."""
    return f"Worker {worker} ({address})"


def is_up(address: str) -> bool:
    """Tells whether something listens at an address."""
    try:
        socket.create_connection(_endpoint(address), timeout=REACH_SECONDS).close()
    except OSError:
        return False
    return True


def _receive(server: socket.socket, addresses: list[str]) -> None:
    """Waits, as the chief, for all others; answers them when all are there."""
    came: dict[int, socket.socket] = {}
    patience = _Patience()

    def missing() -> list[int]:
        return [i for i in range(1, len(addresses)) if i not in came or _gone(came[i])]

    with contextlib.ExitStack() as stack:
        while missing():
            patience.tell(lambda: ", ".join(named(i, addresses[i]) for i in missing()))
            try:
                connection = server.accept()[0]
            except TimeoutError:
                continue
            with contextlib.ExitStack() as passing:
                passing.enter_context(connection).settimeout(LINE_SECONDS)
                said = _read(connection)
                connection.setblocking(False)
                if said.get("addresses") == addresses and said.get("worker") in missing():
                    came[said["worker"]] = connection
                    stack.push(passing.pop_all())
                elif said:
                    rule = "must be the same for all workers, and name each of them once"
                    _write(connection, {"mistake": str(mistake("TF_CONFIG", rule, said))})
        for connection in came.values():
            _write(connection, {"all": "there"})


def _join(addresses: list[str], own: int) -> None:
    """Waits, as one of the others, until the chief says that all are there."""
    patience = _Patience()
    while True:
        patience.tell(lambda: named(0, addresses[0]))
        try:
            with socket.create_connection(_endpoint(addresses[0]), timeout=REACH_SECONDS) as chief:
                _write(chief, {"addresses": addresses, "worker": own})
                chief.settimeout(POLL_SECONDS)
                while not _readable(chief):
                    patience.tell(lambda: f"others than {named(0, addresses[0])}, which is there")
                answer = _read(chief)
        except OSError:
            time.sleep(POLL_SECONDS)
            continue
        if "mistake" in answer:
            raise UserError(answer["mistake"])
        if answer:
            return
        time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def _listening(address: str) -> Iterator[socket.socket]:
    """Yields a server on the port of an address: of all networks, as TensorFlow's own is, but where
    the address is of this machine alone.
    """
    host, port = _endpoint(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        server = socket.create_server((host if _is_loopback(host) else "", port), family=family)
    except OSError as error:
        rule = f"must give this worker a port that it can listen on ({os.strerror(error.errno)})"
        raise mistake("TF_CONFIG", rule, address) from error
    with server:
        server.settimeout(POLL_SECONDS)
        yield server


def _endpoint(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _is_loopback(host: str) -> bool:
    # Not by looking a name up: many machines call themselves 127.0.1.1.
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _gone(connection: socket.socket) -> bool:
    """Tells whether the process behind a connection has closed it."""
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _readable(connection: socket.socket) -> bool:
    try:
        connection.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return False
    return True


def _read(connection: socket.socket) -> dict:
    """Returns what a line says; {} where it says nothing that is understood."""
    try:
        with connection.makefile("rb") as lines:
            said = json.loads(lines.readline(LINE_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _write(connection: socket.socket, line: dict) -> None:
    with contextlib.suppress(OSError):  # it has left; whoever waits for it will notice
        connection.sendall(json.dumps(line).encode() + b"\n")


class _Patience:
    """Says at times for whom this process waits."""

    def __init__(self):
        self._due = time.monotonic() + PATIENCE_SECONDS

    def tell(self, whom: Callable[[], str]) -> None:
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + AGAIN_SECONDS
            logging.info("Waiting for %s.", whom())
