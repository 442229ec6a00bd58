"""A request to stop, SIGTERM or Ctrl-C, takes effect at the next point a run can resume from.

    with interruption.install():                          # the program: both signals
        with interruption.deferred() as stop_requested:   # the run: a signal has to wait
            …                                             # train a while
            if stop_requested():
                …                                         # save
                raise interruption.Interrupted

Without `install`, in a library or a notebook, `deferred` handles Ctrl-C alone and leaves SIGTERM to
the owner of the program.
"""

import contextlib
import dataclasses
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence

from absl import logging

NOTICE = "Stopping: writing a checkpoint."
# What a shell reports of a program that a SIGINT has ended.
STOPPED_AT_ONCE = 128 + signal.SIGINT
SHOW_CURSOR = b"\x1b[?25h\n"  # which a progress bar hides


class Interrupted(KeyboardInterrupt):
    """A run was stopped on request; started again, it goes on where it stopped."""


@dataclasses.dataclass
class _Requests:
    """The requests of this process: a signal has one handler, however many runs there are.

    Attributes:
        installed: whether the program handles both signals.
        deferring: how many blocks a request has to wait for.
        received: whether there has been a request.
    """

    installed: bool = False
    deferring: int = 0
    received: bool = False


_requests = _Requests()


@contextlib.contextmanager
def install() -> Iterator[None]:
    """Within it SIGTERM and SIGINT raise `Interrupted`, or wait where a block is `deferred`.

    A second SIGINT ends the process at once, with the exit code 130. It does nothing outside the
    main thread, to which Python delivers signals, and leaves alone a signal that is ignored or has
    a handler of the program's own.
    """
    if not _in_main_thread():
        yield
        return
    signals = [each for each in (signal.SIGTERM, signal.SIGINT) if _is_free(each)]
    before = {each: signal.signal(each, _handle) for each in signals}
    # Python calls a handler only when TensorFlow returns. It writes to this pipe as soon as the
    # signal arrives, so that a thread can read it while TensorFlow computes.
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
        _requests.installed = _requests.received = False
        os.close(write)
        watcher.join()
        os.close(read)


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Within it a request to stop waits. Yields a function that returns whether there is one.

    If the program has not called `install`, a second Ctrl-C is a KeyboardInterrupt at once.

    Raises:
        Interrupted: at the end of the block, if there has been a request.
    """
    if not _in_main_thread():
        yield lambda: False
        return
    alone = not _requests.installed and _is_free(signal.SIGINT)
    _requests.deferring += 1
    before = signal.signal(signal.SIGINT, _handle_first) if alone else None
    try:
        yield _stop_requested
    finally:
        if alone:
            signal.signal(signal.SIGINT, before)
        _requests.deferring -= 1
        received = _requests.received
        if alone:
            _requests.received = False
    if received:
        raise Interrupted


def requested() -> bool:
    """Whether there has been a request that `install` or `deferred` has handled."""
    return _requests.received


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _is_free(number: signal.Signals) -> bool:
    """Whether a signal still has the handler that Python starts with."""
    return signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


def _handle(number: int, frame: types.FrameType | None) -> None:
    _requests.received = True
    if not _requests.deferring:
        raise Interrupted


def _handle_first(number: int, frame: types.FrameType | None) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _requests.received = True


def _stop_requested() -> bool:
    if _requests.received and not _requests.installed:
        logging.info("%s", NOTICE)
    return _requests.received


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
