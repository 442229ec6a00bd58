"""Sides by turns, their medians, and whether what is due is kept."""

import pytest

from tfbp.reporting.table import table


@pytest.fixture
def turns(script):
    return script("turns")


def test_sides_take_turns_and_medians_count(turns):
    order, seconds = [], iter([1.0, 9.0, 2.0, 30.0, 100.0, 10.0])

    def side(name):
        order.append(name)
        return {"seconds": next(seconds)}

    sides = {"ours": lambda: side("ours"), "theirs": lambda: side("theirs")}
    outcomes = turns.by_turns(sides, 3)
    assert order == ["ours", "theirs"] * 3
    assert turns.median(outcomes, "ours", "seconds") == 2  # of 1, 2 and 100
    assert turns.ratio(outcomes, "theirs", "ours") == 5  # 10 of 9, 30 and 10


def test_a_bound_is_kept_on_its_right_side_alone(turns):
    def kept(value, **bound):
        return turns.Goal("", value, **bound).row()[-1]

    assert [kept(value, least=6) for value in (5.9, 6, 7)] == ["no", "yes", "yes"]
    assert [kept(value, most=1.3) for value in (1.2, 1.3, 1.4)] == ["yes", "yes", "no"]
    assert kept(float("nan"), least=6) == kept(float("nan"), most=6) == "no"
    assert kept(3.0) == kept(None, least=6) == ""


def test_a_side_that_is_not_there_is_said_and_has_no_ratio(turns):
    outcomes = {"ours": [{"seconds": 2.0, "accuracy": 0.5}], "torch": [None]}
    goal = turns.Goal("torch / ours", turns.ratio(outcomes, "torch", "ours"), least=1)
    rows = [
        ("side", "seconds", "accuracy", "seconds, all turns"),
        ("ours", "2", "0.5", "2"),
        ("torch", "not installed", "", ""),
    ]
    due = [("", "measured", "due", "kept"), ("torch / ours", "–", "≥ 1", "")]
    shown = turns.report(outcomes, [goal])
    assert shown == f"{table(rows, numbers=[1, 2])}\n\n{table(due, numbers=[1])}"


def test_a_mistake_in_a_flag_is_one_line_and_the_code_2(turns, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmark", "--turns=0"])
    with pytest.raises(SystemExit) as ended:
        turns.settings(turns.Flags, "A benchmark.")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "Error: `turns` must be at least 1. Received: 0.\n"
