"""A request to stop, SIGTERM or Ctrl-C, is met at the next point from which a run can go on.

    with interruption.install():                 # the program: both signals
        with interruption.deferred() as asked:   # the run: a signal has to wait
            …                                    # train a while
            if asked():
                …                                # save
                raise interruption.Interrupted

Without `install`, in a library or a notebook, `deferred` waits for Ctrl-C alone and leaves SIGTERM
to the owner of the program.
"""

import contextlib
import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from absl import logging

NOTICE = "Stopping: writing a checkpoint."
# What a shell reports of a program that a SIGINT has ended.
STOPPED_AT_ONCE = 128 + signal.SIGINT
SHOW_CURSOR = b"\x1b[?25h\n"  # which a progress bar hides


class Interrupted(KeyboardInterrupt):
    """A run was stopped on request; it goes on where it stood when it is started again."""


@dataclasses.dataclass
class _Requests:
    """Of this process: a signal has one handler, however many runs there are.

    Attributes:
        installed: whether the program handles both signals.
        deferring: blocks that a request has to wait for.
        asked: whether there has been one.
    """

    installed: bool = False
    deferring: int = 0
    asked: bool = False


_requests = _Requests()


@contextlib.contextmanager
def install() -> Iterator[None]:
    """Within it SIGTERM and SIGINT raise `Interrupted`, or wait where a block is `deferred`.

    A second SIGINT ends the process at once, with the code 130. Outside the main thread, the one
    that Python hands signals to, it does nothing; so for a signal that is ignored, or that has a
    handler of the program's own.
    """
    if not _in_main_thread():
        yield
        return
    signals = [each for each in (signal.SIGTERM, signal.SIGINT) if _is_free(each)]
    before = {each: signal.signal(each, _meet) for each in signals}
    # Python calls a handler when TensorFlow has returned. What it writes to this pipe is there as
    # soon as the signal is: a thread reads it while TensorFlow computes.
    read, write = os.pipe()
    os.set_blocking(write, False)
    kept = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(read, signals), name="signals", daemon=True)
    watcher.start()
    _requests.installed = True
    try:
        yield
    finally:
        signal.set_wakeup_fd(kept)
        for each, handler in before.items():
            signal.signal(each, handler)
        _requests.installed = _requests.asked = False
        os.close(write)
        watcher.join()
        os.close(read)


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Within it a request to stop waits: the function that it yields tells whether there is one.

    Where the program has not called `install`, a second Ctrl-C is a KeyboardInterrupt at once.

    Raises:
        Interrupted: at its end, where there has been a request.
    """
    if not _in_main_thread():
        yield lambda: False
        return
    alone = not _requests.installed and _is_free(signal.SIGINT)
    _requests.deferring += 1
    before = signal.signal(signal.SIGINT, _meet_first) if alone else None
    try:
        yield _ask
    finally:
        if alone:
            signal.signal(signal.SIGINT, before)
        _requests.deferring -= 1
        asked = _requests.asked
        if alone:
            _requests.asked = False
    if asked:
        raise Interrupted


def requested() -> bool:
    """Tells whether there has been a request that `install` or `deferred` knows of."""
    return _requests.asked


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _is_free(number: signal.Signals) -> bool:
    """Returns whether a signal is handled as Python does at its start."""
    return signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


def _meet(number, frame):
    _requests.asked = True
    if not _requests.deferring:
        raise Interrupted


def _meet_first(number, frame):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _requests.asked = True


def _ask() -> bool:
    if _requests.asked and not _requests.installed:
        logging.info("%s", NOTICE)
    return _requests.asked


def _watch(read: int, signals: Sequence[signal.Signals]) -> None:
    """Gives notice of the first signal, and ends the process at the second SIGINT."""
    received: list[int] = []
    while number := os.read(read, 1):
        if number[0] not in signals:
            continue
        received += number
        if received.count(signal.SIGINT) > 1:
            if sys.stdout.isatty():
                os.write(sys.stdout.fileno(), SHOW_CURSOR)
            os._exit(STOPPED_AT_ONCE)
        if _requests.deferring and len(received) == 1:
            again = " Ctrl-C again stops at once." if number[0] == signal.SIGINT else ""
            logging.info("%s%s", NOTICE, again)
