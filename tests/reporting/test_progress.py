import io

import rich.console

from tfbp.reporting.progress import Count, Progress


class Clock:
    """A clock that is set by hand, in seconds."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def lines_of(reports, *, epochs, steps, terminal=False):
    """Returns what is printed when `reports` of (seconds, epoch, step, logs) come in.

    A report without a step is the end of its epoch.
    """
    out, clock = io.StringIO(), Clock()
    console = rich.console.Console(file=out, force_terminal=terminal, width=120, _environ={})
    progress = Progress("head", 1, 2, epochs, steps, console=console, clock=clock)
    progress.on_train_begin()
    for seconds, epoch, step, logs in reports:
        clock.now = seconds
        if step is None:
            progress.on_epoch_end(epoch, logs)
        else:
            progress.on_epoch_begin(epoch)
            progress.on_train_batch_end(step, logs)
    progress.on_train_end()
    return out.getvalue().splitlines()


def test_elsewhere_than_on_a_terminal_an_epoch_is_one_line_with_the_loss_first():
    logs = {"accuracy": 0.5, "loss": 1.23456, "val_accuracy": 0.25, "val_loss": 2.0}
    lines = lines_of([(1, 0, 3, logs), (1, 0, None, logs)], epochs=2, steps=4)
    expected = "loss 1.235  accuracy 0.5  val_loss 2  val_accuracy 0.25"
    assert lines == [f"head 1/2  epoch 1/2  {expected}"]


def test_the_time_left_follows_the_rate_since_the_first_report():
    # 20 s for the trace and one step, then 4 steps in 8 s: 2 s a step, 15 steps to go.
    reports = [(20, 0, 0, {}), (28, 0, 4, {}), (28, 0, None, {})]
    assert lines_of(reports, epochs=4, steps=5)[-1] == "head 1/2  epoch 1/4  left 0:30"


def test_a_run_that_goes_on_does_not_count_the_steps_before_as_its_own():
    reports = [(5, 23, 4, {}), (15, 24, 4, {}), (15, 24, None, {})]
    assert lines_of(reports, epochs=1000, steps=5)[-1].endswith("left 2:42:30")


def test_a_long_epoch_reports_every_ten_seconds():
    reports = [(seconds, 0, seconds * 10 - 1, {"loss": 1.0}) for seconds in range(1, 31)]
    lines = lines_of(reports, epochs=1, steps=1000)
    assert lines == [
        "head 1/2  epoch 1/1  step 100/1000  loss 1  left 1:30",
        "head 1/2  epoch 1/1  step 200/1000  loss 1  left 1:20",
        "head 1/2  epoch 1/1  step 300/1000  loss 1  left 1:10",
    ]


def test_thousands_of_epochs_print_a_few_lines_with_the_first_and_the_last():
    reports = [(0, epoch, 0, {}) for epoch in range(3000)]
    reports = [r for epoch, r in enumerate(reports) for r in (r, (0, epoch, None, {}))]
    lines = lines_of(reports, epochs=3000, steps=1)
    assert len(lines) <= 41
    assert "epoch 1/3000" in lines[0]
    assert "epoch 3000/3000" in lines[-1]


def test_a_terminal_shows_a_bar_and_keeps_a_line_for_each_epoch():
    reports = [(1, 0, 3, {"loss": 1.0}), (2, 0, None, {"loss": 1.0}), (3, 1, 1, {"loss": 0.5})]
    text = "\n".join(lines_of(reports, epochs=2, steps=4, terminal=True))
    assert "head 1/2  epoch 1/2  loss 1" in text
    assert "step 2/4" in text
    assert "\x1b[?25h" in text  # the cursor is shown again


def counted(reports, terminal):
    out, clock = io.StringIO(), Clock()
    console = rich.console.Console(file=out, force_terminal=terminal, width=120, _environ={})
    count = Count("features of train", console=console, clock=clock)
    for clock.now, done in reports:
        count(done, 1400)
    return out.getvalue()


def test_a_count_is_one_live_line_on_a_terminal_and_a_line_every_ten_seconds_elsewhere():
    reports = [(1, 64), (11, 640), (12, 704), (13, 1400)]
    assert counted(reports, terminal=False) == "features of train 640/1400\n"
    lines = counted(reports, terminal=True).split("\r")
    assert [line.strip() for line in lines] == [
        f"features of train {done}/1400" for _, done in reports
    ]
