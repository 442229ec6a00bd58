"""Workers that wait for each other: threads of one process, and strangers that connect."""

import concurrent.futures
import contextlib
import json
import os
import signal
import socket
import threading
import time

import pytest

from tfbp.errors import UserError
from tfbp.workers import rendezvous

PATIENCE = 60.0  # for what takes milliseconds, on a machine that is busy
SOON = {"patience": 0.1, "again": 0.1}


@pytest.fixture
def addresses():
    """Returns how to get so many addresses of the loopback that are free."""

    def free(count):
        with contextlib.ExitStack() as stack:
            servers = [
                stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
            ]
            return [f"127.0.0.1:{server.getsockname()[1]}" for server in servers]

    return free


@pytest.fixture
def join():
    """Returns how to let a worker join beside the test."""

    def start(*arguments, **settings):
        result = concurrent.futures.Future()

        def run():
            try:
                result.set_result(rendezvous.join(*arguments, **settings))
            except BaseException as error:
                result.set_exception(error)

        threading.Thread(target=run, daemon=True).start()  # a test that fails leaves it waiting
        return result

    return start


def connect(address):
    """Returns a connection to a worker, once it listens."""
    host, port = address.split(":")
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_connection((host, int(port)), timeout=PATIENCE)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def send(address, line):
    """Sends a line to a worker, and returns its answer."""
    with connect(address) as connection:
        connection.sendall(line)
        return connection.makefile("rb").readline()


def identity(cluster, worker):
    return json.dumps({"addresses": cluster, "worker": worker}).encode() + b"\n"


@pytest.fixture
def wait_for(caplog):
    """Returns how to wait for a line of the log."""
    caplog.set_level("INFO", logger="absl")

    def wait(line):
        deadline = time.monotonic() + PATIENCE
        while line not in caplog.messages:
            assert time.monotonic() < deadline, caplog.messages
            time.sleep(0.01)

    return wait


def test_one_worker_waits_for_nobody():
    rendezvous.join(["nowhere.invalid:1"], 0)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_all_go_on_when_the_last_has_joined(addresses, join, order):
    cluster = addresses(3)
    waiting = []
    for worker in order:
        assert not any(each.done() for each in waiting)
        waiting.append(join(cluster, worker))
        time.sleep(0.1)
    for each in waiting:
        assert each.result(timeout=PATIENCE) is None
    socket.create_server(
        ("127.0.0.1", int(cluster[0].split(":")[1]))
    ).close()  # free for TensorFlow


def test_a_long_wait_names_the_missing_workers(addresses, join, wait_for):
    cluster = addresses(3)
    first = join(cluster, 1, **SOON)
    wait_for(f"Waiting for Worker 0 ({cluster[0]}).")
    chief = join(cluster, 0, **SOON)
    wait_for(f"Waiting for workers other than Worker 0 ({cluster[0]}), which has joined.")
    wait_for(f"Waiting for Worker 2 ({cluster[2]}).")
    for each in (join(cluster, 2), first, chief):
        each.result(timeout=PATIENCE)


def test_strangers_are_not_taken_for_workers(addresses, join):
    cluster = addresses(2)
    chief = join(cluster, 0)
    for line in (b"\n", b"GET / HTTP/1.1\r\n\r\n", b"[" * 100_000 + b"\n", b"3\n", b"\xff\x00\n"):
        assert send(cluster[0], line) == b""
    silent = connect(cluster[0])
    assert not chief.done()
    join(cluster, 1).result(timeout=PATIENCE)
    chief.result(timeout=PATIENCE)
    silent.close()


def test_a_worker_of_another_cluster_or_one_that_has_joined_already_is_refused(
    addresses, join, wait_for
):
    cluster = addresses(3)
    chief, first = join(cluster, 0, **SOON), join(cluster, 1)
    wait_for(f"Waiting for Worker 2 ({cluster[2]}).")
    other = [cluster[0], cluster[2]]
    with pytest.raises(UserError, match=r"`TF_CONFIG` must be the same for all workers, and name"):
        rendezvous.join(other, 1)
    for worker in (1, 0, 3, "2", None):
        assert b"must be the same for all" in send(cluster[0], identity(cluster, worker))
    assert not chief.done()
    join(cluster, 2).result(timeout=PATIENCE)
    assert first.result(timeout=PATIENCE) is chief.result(timeout=PATIENCE) is None


def test_a_worker_that_has_left_is_waited_for_again(addresses, join, wait_for):
    cluster = addresses(3)
    chief = join(cluster, 0, **SOON)
    with connect(cluster[0]) as leaving:
        leaving.sendall(identity(cluster, 1))
        wait_for(f"Waiting for Worker 2 ({cluster[2]}).")
    second = join(cluster, 2)
    wait_for(f"Waiting for Worker 1 ({cluster[1]}).")
    assert not chief.done()
    assert not second.done()
    for each in (join(cluster, 1), chief, second):
        each.result(timeout=PATIENCE)


def test_a_second_worker_of_the_same_index_is_refused_though_the_chief_is_missing(
    addresses, join, wait_for
):
    cluster = addresses(2)
    waiting = join(cluster, 1, **SOON)
    wait_for(f"Waiting for Worker 0 ({cluster[0]}).")
    with pytest.raises(UserError, match="Address already in use"):
        rendezvous.join(cluster, 1)
    for each in (join(cluster, 0), waiting):
        each.result(timeout=PATIENCE)


def test_a_port_that_is_taken_is_a_mistake(addresses):
    cluster = addresses(2)
    for worker in (0, 1):
        host, port = cluster[worker].split(":")
        with socket.create_server((host, int(port))), pytest.raises(UserError) as caught:
            rendezvous.join(cluster, worker)
        assert str(caught.value) == (
            "`TF_CONFIG` must give this worker a port that it can listen on (Address already in "
            f"use). Received: {cluster[worker]!r}."
        )


def test_what_listens_is_up(addresses):
    (address,) = addresses(1)
    assert not rendezvous.is_up(address)
    with socket.create_server(("127.0.0.1", int(address.split(":")[1]))):
        assert rendezvous.is_up(address)
    assert not rendezvous.is_up("nowhere.invalid:1")


@pytest.mark.parametrize("index", [0, 1])
def test_a_signal_ends_the_wait(addresses, index):
    class Stopped(Exception):
        pass

    def stop(number, frame):
        raise Stopped

    def send_signal():
        connect(cluster[index]).close()  # it listens: the wait has begun
        os.kill(os.getpid(), signal.SIGTERM)

    cluster = addresses(2)
    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(Stopped):
            threading.Thread(target=send_signal, daemon=True).start()
            rendezvous.join(cluster, index)
    finally:
        signal.signal(signal.SIGTERM, before)
