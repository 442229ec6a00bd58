import contextlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from tfbp.workers import interruption

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@pytest.fixture(autouse=True)
def pythons_own():
    """Gives both signals the handlers of a program in the foreground, for one test."""
    own = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in own.items()}
    yield
    assert {number: signal.getsignal(number) for number in own} == own
    for number, handler in before.items():
        signal.signal(number, handler)


@BOTH
def test_an_installed_signal_interrupts_at_once(number):
    with pytest.raises(interruption.Interrupted), interruption.install():
        signal.raise_signal(number)
        raise AssertionError("It goes on.")


@BOTH
def test_in_a_deferred_block_it_is_asked_for_and_ends_the_block(number, caplog):
    caplog.set_level("INFO", logger="absl")
    reached = []
    with (
        pytest.raises(interruption.Interrupted),
        interruption.install(),
        interruption.deferred() as stop_requested,
    ):
        assert not stop_requested()
        signal.raise_signal(number)
        assert stop_requested()
        deadline = time.monotonic() + 60
        while interruption.NOTICE not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        reached.append("end")
    assert reached == ["end"]
    assert caplog.text.count(interruption.NOTICE) == 1
    assert ("Ctrl-C again stops at once" in caplog.text) == (number == signal.SIGINT)


def test_an_error_in_a_deferred_block_is_what_is_raised():
    with pytest.raises(ZeroDivisionError), interruption.install(), interruption.deferred():
        signal.raise_signal(signal.SIGTERM)
        raise ZeroDivisionError
    with interruption.deferred() as stop_requested:
        assert not stop_requested()


def test_a_request_that_somebody_has_swallowed_is_met_by_the_next_block():
    # What a handler raises while an object is destroyed is printed, and lost.
    with (
        pytest.raises(interruption.Interrupted, match="by the block"),
        interruption.install(),
    ):
        with contextlib.suppress(interruption.Interrupted):
            signal.raise_signal(signal.SIGTERM)
        with interruption.deferred() as stop_requested:
            assert stop_requested()
            raise interruption.Interrupted("by the block")


def test_a_library_waits_for_the_first_ctrl_c_alone_and_leaves_sigterm(caplog):
    caplog.set_level("INFO", logger="absl")
    with pytest.raises(interruption.Interrupted), interruption.deferred() as stop_requested:
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        signal.raise_signal(signal.SIGINT)
        assert stop_requested()
        with pytest.raises(KeyboardInterrupt) as second:
            signal.raise_signal(signal.SIGINT)
        assert second.type is KeyboardInterrupt
    assert interruption.NOTICE in caplog.text
    with interruption.deferred() as stop_requested:  # another run of the same program
        assert not stop_requested()


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda number, frame: None])
def test_what_is_ignored_or_has_a_handler_of_its_own_is_left_alone(handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        for block in (interruption.install, interruption.deferred):
            with block():
                assert signal.getsignal(signal.SIGINT) == handler
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_gets_no_signals_and_changes_no_handlers():
    found = []

    def work():
        with interruption.install(), interruption.deferred() as stop_requested:
            found.append((stop_requested(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, signal.SIG_DFL)]


BUSY = """
import hashlib, signal
from absl import logging
from tfbp.workers import interruption

signal.signal(signal.SIGINT, signal.default_int_handler)
logging.set_verbosity(logging.INFO)
with interruption.install(), interruption.deferred():
    print("computes", flush=True)
    # For many minutes Python's own handlers are not called: this is compiled code.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


def test_a_second_ctrl_c_ends_the_process_amid_compiled_code():
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "computes\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline().endswith(
            f"{interruption.NOTICE} Ctrl-C again stops at once.\n"
        )
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=300) == 130
    finally:
        process.kill()
        process.communicate()
