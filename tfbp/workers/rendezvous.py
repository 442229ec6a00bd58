"""The rendezvous of the workers, before TensorFlow starts its engine on their addresses.

TensorFlow would wait for missing workers too, but silently and without reacting to signals: it
holds Python's lock, so that no other thread can report the wait.

The other workers connect to the chief, on the port that TensorFlow's engine takes a moment later,
and identify themselves by a line of JSON. Once all have joined, the chief answers each of them.
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

# A wait is logged after this time, and again every minute.
PATIENCE_SECONDS = 5.0
AGAIN_SECONDS = 60.0
# A signal that the kernel has delivered to another thread waits until a blocking call returns.
POLL_SECONDS = 0.5
# For the line of a process that has connected: a silent stranger must not hold up the others.
LINE_SECONDS = 1.0
# To connect, on a busy network.
CONNECT_SECONDS = 5.0
LINE_BYTES = 1 << 20


def join(
    addresses: Sequence[str],
    index: int,
    *,
    patience: float = PATIENCE_SECONDS,
    again: float = AGAIN_SECONDS,
) -> None:
    """Waits until all workers have joined.

    Args:
        addresses: of all workers, "host:port", the chief first.
        index: which of them this process is.
        patience: seconds of waiting before the log names the missing workers.
        again: seconds before it names them again.

    Raises:
        tfbp.UserError: the port of this worker is taken, or the chief expects other workers.
    """
    if len(addresses) > 1:
        with _listening(addresses[index]) as server:  # it also refuses a second worker `index`
            waiting = _Waiting(patience, again)
            if index == 0:
                _join_as_chief(server, list(addresses), waiting)
            else:
                _join_as_worker(list(addresses), index, waiting)


def named(worker: int, address: str) -> str:
    """Returns the name of a worker in messages."""
    return f"Worker {worker} ({address})"


def is_up(address: str) -> bool:
    """Whether something listens at an address."""
    try:
        socket.create_connection(_endpoint(address), timeout=CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _join_as_chief(server: socket.socket, addresses: list[str], waiting: "_Waiting") -> None:
    """Waits for all other workers, and answers them once all have joined."""
    joined: dict[int, socket.socket] = {}

    def missing() -> list[int]:
        return [i for i in range(1, len(addresses)) if i not in joined or _gone(joined[i])]

    with contextlib.ExitStack() as stack:
        while missing():
            waiting.log(lambda: ", ".join(named(i, addresses[i]) for i in missing()))
            try:
                connection = server.accept()[0]
            except TimeoutError:
                continue
            with contextlib.ExitStack() as passing:
                passing.enter_context(connection).settimeout(LINE_SECONDS)
                line = _read(connection)
                connection.setblocking(False)
                if line.get("addresses") == addresses and line.get("worker") in missing():
                    joined[line["worker"]] = connection
                    stack.push(passing.pop_all())
                elif line:
                    rule = "must be the same for all workers, and name each of them once"
                    _write(connection, {"mistake": str(mistake("TF_CONFIG", rule, line))})
        for connection in joined.values():
            _write(connection, {"joined": "all"})


def _join_as_worker(addresses: list[str], index: int, waiting: "_Waiting") -> None:
    """Waits until the chief answers that all have joined."""
    endpoint, chief_name = _endpoint(addresses[0]), named(0, addresses[0])
    while True:
        waiting.log(lambda: chief_name)
        try:
            with socket.create_connection(endpoint, timeout=CONNECT_SECONDS) as chief:
                _write(chief, {"addresses": addresses, "worker": index})
                chief.settimeout(POLL_SECONDS)
                while not _readable(chief):
                    waiting.log(lambda: f"workers other than {chief_name}, which has joined")
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
    """Yields a server on the port of an address: on all networks, as TensorFlow's own is, unless
    the address is a loopback one.
    """
    host, port = _endpoint(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        server = socket.create_server((host if _is_loopback(host) else "", port), family=family)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        rule = f"must give this worker a port that it can listen on ({reason})"
        raise mistake("TF_CONFIG", rule, address) from error
    with server:
        server.settimeout(POLL_SECONDS)
        yield server


def _endpoint(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _is_loopback(host: str) -> bool:
    # Names are not looked up: many machines resolve their own to 127.0.1.1.
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _gone(connection: socket.socket) -> bool:
    """Whether the other end of a connection has closed it."""
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
    """Reads the JSON object of one line; {} if the line holds anything else."""
    try:
        with connection.makefile("rb") as lines:
            value = json.loads(lines.readline(LINE_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _write(connection: socket.socket, line: dict) -> None:
    with contextlib.suppress(OSError):  # the other end has left, and whoever waits will notice
        connection.sendall(json.dumps(line).encode() + b"\n")


class _Waiting:
    """Logs from time to time which workers this process waits for."""

    def __init__(self, patience: float, again: float):
        self._due, self._again = time.monotonic() + patience, again

    def log(self, workers: Callable[[], str]) -> None:
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + self._again
            logging.info("Waiting for %s.", workers())
