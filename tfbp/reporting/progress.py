"""How far a phase is: a live bar on a terminal, plain lines elsewhere.

head 1/2  epoch 3/10  loss 0.4321  accuracy 0.894  val_loss 0.51  left 0:12
"""

import atexit
import time
from collections.abc import Callable

import keras
import rich.console
import rich.progress

# Without a terminal, an epoch that takes longer than this prints lines in between.
SECONDS_BETWEEN_LINES = 10.0
# A phase of more epochs than this prints only every N epochs.
LINES_PER_PHASE = 40


class Console(rich.console.Console):
    """Standard output, whose reader may go: that is an error as of `print`."""

    def on_broken_pipe(self) -> None:
        raise  # the error that rich handles here, instead of SystemExit(1)


class Progress(keras.callbacks.Callback):
    """Shows epoch, step, loss, metrics and the time left of one phase.

    One call may report several steps.

    Args:
        phase: its name.
        number: which phase it is, counted from 1.
        phases: how many phases there are.
        epochs: epochs of the phase.
        steps: steps of an epoch.
        console: where to write; standard output when it is not given.
        clock: returns seconds.
    """

    def __init__(
        self,
        phase: str,
        number: int,
        phases: int,
        epochs: int,
        steps: int,
        *,
        console: rich.console.Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        super().__init__()
        self._title = f"{phase} {number}/{phases}"
        self._epochs, self._steps = epochs, steps
        self._console = console or Console()
        self._clock = clock
        self._epoch = 0
        self._first: tuple[float, int] | None = None
        self._printed = 0.0
        self._bar: rich.progress.Progress | None = None

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        self._first, self._printed = None, self._clock()
        if not self._console.is_interactive:
            return
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(bar_width=20),
            rich.progress.TextColumn("{task.fields[detail]}", markup=False),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task(self._title, total=self._steps, detail="")
        self._bar.start()
        # Training that ends with an error never calls on_train_end, and a bar that is not stopped
        # leaves the terminal without its cursor.
        atexit.register(self._bar.stop)

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        now, done = self._clock(), self._epoch * self._steps + batch + 1
        # The rate is measured from the first report: before it the graph was traced.
        self._first = self._first or (now, done)
        step = f"step {batch + 1}/{self._steps}"
        if self._bar:
            self._bar.update(
                self._task,
                completed=batch + 1,
                description=self._text(),
                detail=_join(step, _metrics(logs), self._left(now, done)),
            )
        elif now - self._printed >= SECONDS_BETWEEN_LINES and batch + 1 < self._steps:
            self._print(self._text(), step, _metrics(logs), self._left(now, done))

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        number = epoch + 1
        every = -(-self._epochs // LINES_PER_PHASE)
        if number % every == 0 or number in (1, self._epochs):
            left = self._left(self._clock(), number * self._steps)
            self._print(self._text(), _metrics(logs), left)

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        if self._bar:
            self._bar.stop()
            atexit.unregister(self._bar.stop)
            self._bar = None

    def _text(self) -> str:
        return f"{self._title}  epoch {self._epoch + 1}/{self._epochs}"

    def _left(self, now: float, done: int) -> str:
        left = self._epochs * self._steps - done
        if self._first is None or done == self._first[1] or left == 0:
            return ""
        began, before = self._first
        return f"left {_duration((now - began) / (done - before) * left)}"

    def _print(self, *parts: str) -> None:
        self._printed = self._clock()
        self._console.print(_join(*parts), markup=False, highlight=False, soft_wrap=True)


class Count:
    """Shows how many of something are done: a live line on a terminal, plain lines elsewhere.

    features of train 640/1400

    Args:
        title: what is counted.
        console, clock: see `Progress`.
    """

    def __init__(
        self,
        title: str,
        *,
        console: rich.console.Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._title = title
        self._console = console or Console()
        self._clock = clock
        self._printed = clock()

    def __call__(self, done: int, total: int) -> None:
        """Shows that `done` of `total` are done."""
        text = f"{self._title} {done}/{total}"
        if self._console.is_interactive:
            end = "\n" if done == total else "\r"
            self._console.print(text, end=end, markup=False, highlight=False, soft_wrap=True)
        elif self._clock() - self._printed >= SECONDS_BETWEEN_LINES:
            self._printed = self._clock()
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _metrics(logs: dict[str, float] | None) -> str:
    logs = logs or {}
    # Keras passes them in alphabetical order.
    names = sorted(logs, key=lambda name: (name.startswith("val_"), "loss" not in name))
    return _join(*(f"{name} {logs[name]:.4g}" for name in names))


def _join(*parts: str) -> str:
    return "  ".join(part for part in parts if part)


def _duration(seconds: float) -> str:
    """Formats 3725.2 as "1:02:05"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
