import csv

from hypothesis import given
from hypothesis import strategies as st

from tfbp.reporting.history import History


def add(history, rows, row):
    rows.append(row)
    history.on_epoch_end(row["epoch"] - 1, {})


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_an_epoch_is_a_row(tmp_path):
    rows, path = [], tmp_path / "history.csv"
    history = History(path, rows)
    history.on_train_begin()
    add(history, rows, {"phase": "head", "epoch": 1, "seconds": 0.5, "loss": 2.0})
    add(history, rows, {"phase": "head", "epoch": 2, "seconds": 0.25, "loss": 1.0})
    assert path.read_text().splitlines() == [
        "phase,epoch,seconds,loss",
        "head,1,0.5,2.0",
        "head,2,0.25,1.0",
    ]


def test_columns_may_grow_in_a_later_phase(tmp_path):
    rows, path = [], tmp_path / "history.csv"
    for phase, logs in (("head", {"loss": 2.0}), ("tune", {"loss": 1.0, "val_loss": 3.0})):
        history = History(path, rows)
        history.on_train_begin()
        add(history, rows, {"phase": phase, "epoch": 1} | logs)
    assert [row["val_loss"] for row in read(path)] == ["", "3.0"]
    assert [row["phase"] for row in read(path)] == ["head", "tune"]


def test_a_run_that_goes_on_from_an_earlier_point_leaves_no_row_twice(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("phase,epoch,loss\nhead,1,2.0\nhead,2,1.5\nhead,3,1.")
    rows = [{"phase": "head", "epoch": 1, "loss": 2.0}]
    history = History(path, rows)
    history.on_train_begin()
    add(history, rows, {"phase": "head", "epoch": 2, "loss": 1.25})
    assert [(row["epoch"], row["loss"]) for row in read(path)] == [("1", "2.0"), ("2", "1.25")]


@given(st.lists(st.floats(), min_size=1))
def test_numbers_read_back_equal(tmp_path_factory, values):
    rows, path = [], tmp_path_factory.mktemp("history") / "history.csv"
    history = History(path, rows)
    history.on_train_begin()
    for epoch, value in enumerate(values):
        add(history, rows, {"phase": "head", "epoch": epoch + 1, "loss": value})
    assert [str(float(row["loss"])) for row in read(path)] == list(map(str, values))
