"""Workers that wait for each other: threads of one process, and what strangers say to the chief."""

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
def meet():
    """Returns how to let a worker meet the others beside the test."""

    def start(*arguments):
        result = concurrent.futures.Future()

        def run():
            try:
                result.set_result(rendezvous.meet(*arguments))
            except BaseException as error:
                result.set_exception(error)

        threading.Thread(target=run, daemon=True).start()  # a test that fails leaves it waiting
        return result

    return start


def say(address, line):
    """Says a line to a worker, and returns what it answers."""
    host, port = address.split(":")
    deadline = time.monotonic() + 10
    while True:
        try:
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                connection.sendall(line)
                return connection.makefile("rb").readline()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_one_worker_waits_for_nobody():
    rendezvous.meet(["nowhere.invalid:1"], 0)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_all_go_on_when_the_last_has_come(addresses, meet, order):
    cluster = addresses(3)
    waiting = []
    for worker in order:
        assert not any(each.done() for each in waiting)
        waiting.append(meet(cluster, worker))
        time.sleep(0.2)
    for each in waiting:
        assert each.result(timeout=10) is None
    socket.create_server(
        ("127.0.0.1", int(cluster[0].split(":")[1]))
    ).close()  # free for TensorFlow


def test_a_long_wait_names_those_who_are_missing(addresses, meet, caplog, monkeypatch):
    monkeypatch.setattr(rendezvous, "PATIENCE_SECONDS", 0.1)
    caplog.set_level("INFO", logger="absl")
    cluster = addresses(3)

    def is_said(line):
        deadline = time.monotonic() + 20
        while line not in caplog.messages and time.monotonic() < deadline:
            time.sleep(0.05)
        return line in caplog.messages

    joining = meet(cluster, 1)
    assert is_said(f"Waiting for Worker 0 ({cluster[0]}).")
    monkeypatch.setattr(rendezvous, "PATIENCE_SECONDS", 3.0)
    receiving = meet(cluster, 0)
    assert is_said(f"Waiting for Worker 2 ({cluster[2]}).")
    meet(cluster, 2).result(timeout=20)
    joining.result(timeout=20)
    receiving.result(timeout=20)


def test_strangers_are_not_taken_for_workers(addresses, meet):
    cluster = addresses(2)
    receiving = meet(cluster, 0)
    for line in (b"\n", b"GET / HTTP/1.1\r\n\r\n", b"[" * 100_000 + b"\n", b"3\n", b"\xff\x00\n"):
        assert say(cluster[0], line) == b""
    silent = socket.create_connection(("127.0.0.1", int(cluster[0].split(":")[1])))
    assert not receiving.done()
    meet(cluster, 1).result(timeout=10)
    receiving.result(timeout=10)
    silent.close()


def test_a_worker_of_another_cluster_or_one_that_is_there_already_is_refused(addresses, meet):
    cluster = addresses(3)
    receiving = meet(cluster, 0)
    first = meet(cluster, 1)
    time.sleep(1)
    other = [cluster[0], cluster[2]]
    with pytest.raises(UserError, match=r"`TF_CONFIG` must be the same for all workers, and name"):
        rendezvous.meet(other, 1)
    for worker in (1, 0, 3, "2", None):
        line = json.dumps({"addresses": cluster, "worker": worker}).encode() + b"\n"
        assert b"must be the same for all" in say(cluster[0], line)
    assert not receiving.done()
    meet(cluster, 2).result(timeout=10)
    assert first.result(timeout=10) is receiving.result(timeout=10) is None


def test_a_worker_that_has_left_is_waited_for_again(addresses, meet):
    cluster = addresses(3)
    receiving = meet(cluster, 0)
    host, port = cluster[0].split(":")
    time.sleep(0.2)
    with socket.create_connection((host, int(port))) as leaving:
        leaving.sendall(json.dumps({"addresses": cluster, "worker": 1}).encode() + b"\n")
        time.sleep(0.2)
    second = meet(cluster, 2)
    time.sleep(1)
    assert not receiving.done()
    assert not second.done()
    meet(cluster, 1).result(timeout=10)
    receiving.result(timeout=10)
    second.result(timeout=10)


def test_a_second_one_of_the_same_number_is_refused_though_the_chief_is_missing(addresses, meet):
    cluster = addresses(2)
    waiting = meet(cluster, 1)
    time.sleep(0.5)
    with pytest.raises(UserError, match="Address already in use"):
        rendezvous.meet(cluster, 1)
    meet(cluster, 0).result(timeout=10)
    waiting.result(timeout=10)


def test_a_port_that_is_taken_is_a_mistake(addresses):
    cluster = addresses(2)
    for worker in (0, 1):
        host, port = cluster[worker].split(":")
        with socket.create_server((host, int(port))), pytest.raises(UserError) as caught:
            rendezvous.meet(cluster, worker)
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


@pytest.mark.parametrize("own", [0, 1])
def test_a_signal_ends_the_wait(addresses, own):
    class Asked(Exception):
        pass

    def meet_handler(number, frame):
        raise Asked

    before = signal.signal(signal.SIGTERM, meet_handler)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    try:
        with pytest.raises(Asked):
            rendezvous.meet(addresses(2), own)
    finally:
        signal.signal(signal.SIGTERM, before)
