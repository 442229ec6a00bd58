"""What belongs together stays on one side, and a new group moves few others."""

import datetime
import itertools

import numpy as np
import pandas
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tfbp.data import grouping, splitting, times
from tfbp.data.folders import image_folder
from tfbp.data.splits import Splits
from tfbp.errors import UserError

# The sizes of groups, with the class that each is of.
GROUPS = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 2)), min_size=1, max_size=40)
FRACTIONS = st.sampled_from([0.0, 0.05, 0.1, 0.25, 0.4])
quick = settings(max_examples=150, deadline=None)


def examples_of(groups, start=0):
    """Returns (hashes, labels, names) of examples with different contents."""
    sizes = [size for size, _ in groups]
    names = np.repeat([f"g{start + number}" for number in range(len(groups))], sizes)
    labels = np.repeat([label for _, label in groups], sizes)
    hashes = np.array([f"{name}-{row}" for row, name in enumerate(names)], "S64")
    return hashes, labels, names


def parts_of(hashes, labels, names, validation, test, seed=0):
    """Returns the set of groups of each part."""
    rows = splitting.cut(hashes, labels, validation, test, seed, names)
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(names)))
    return [set(names[part].tolist()) for part in rows]


@given(GROUPS, FRACTIONS, FRACTIONS, st.integers(0, 5))
@quick
def test_no_group_is_on_two_sides(groups, validation, test, seed):
    train, held_out, judged = parts_of(*examples_of(groups), validation, test, seed)
    assert not (train & held_out or train & judged or held_out & judged)
    assert len(train) + len(held_out) + len(judged) == len(groups)


@given(GROUPS, FRACTIONS, FRACTIONS)
@quick
def test_the_fractions_are_those_of_the_groups_as_near_as_their_number_allows(
    groups, validation, test
):
    parts = parts_of(*examples_of(groups), validation, test)
    for label in {label for _, label in groups}:
        of_class = {f"g{number}" for number, (_, own) in enumerate(groups) if own == label}
        counts = [len(part & of_class) for part in parts]
        assert counts[0] >= 1
        wanted = (validation > 0) + (test > 0)
        for count, fraction in zip(counts[1:], (validation, test), strict=True):
            if not fraction:
                assert count == 0
            elif len(of_class) > wanted:
                assert count >= 1  # a class that is large enough is in every split
        ideal = test * len(of_class)
        if len(of_class) > 2 and ideal >= 1:
            assert abs(counts[2] - ideal) <= 0.5
        both = (validation + test) * len(of_class)
        if len(of_class) > 2 and validation and test and min(validation, test) * len(of_class) >= 1:
            assert abs(counts[1] + counts[2] - both) <= 1


@given(GROUPS, st.integers(1, 500), st.integers(0, 2), FRACTIONS, FRACTIONS, st.integers(0, 9))
@quick
def test_a_new_group_of_any_size_moves_at_most_one_other_at_each_cut(
    groups, size, label, validation, test, seed
):
    hashes, labels, names = examples_of(groups)
    before = parts_of(hashes, labels, names, validation, test, seed)
    more = examples_of([(size, label)], start=len(groups))
    together = [np.concatenate(pair) for pair in zip((hashes, labels, names), more, strict=True)]
    after = parts_of(*together, validation, test, seed)
    new = {f"g{len(groups)}"}
    # The test split is what lies before the first cut; with validation, before the second.
    for one, other in (
        (before[2], after[2]),
        (before[1] | before[2], after[1] | after[2]),
    ):
        assert len((one ^ other) - new) <= 1


@given(GROUPS, st.integers(1, 9))
@quick
def test_more_examples_of_known_groups_move_nothing(groups, more):
    before = parts_of(*examples_of(groups), 0.2, 0.2)
    larger = [(size + more, label) for size, label in groups]
    assert parts_of(*examples_of(larger), 0.2, 0.2) == before


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 12)), min_size=1, max_size=30),
    FRACTIONS,
)
@quick
def test_groups_that_share_a_content_stay_together(pairs, test):
    names = np.array([f"g{group}" for group, _ in pairs])
    hashes = np.array([f"c{content}" for _, content in pairs], "S64")
    part_of = np.empty(len(pairs), int)
    for part, rows in enumerate(splitting.cut(hashes, None, 0.2, test, 0, names)):
        part_of[rows] = part
    for key in (names, hashes):
        for value in set(key.tolist()):
            assert len(set(part_of[key == value].tolist())) == 1


def test_groups_of_arrays_are_text_or_numbers_in_rows_or_a_column():
    x, y = np.arange(200.0), np.arange(200) % 2
    number = np.arange(200) // 5
    splits = Splits.from_arrays(x, y, groups=number)
    sides = [
        set((part.read(range(part.size))[0].numpy()[:, 0] // 5).tolist())
        for part in splits.parts().values()
    ]
    assert sum(map(len, sides)) == 40 == len(set.union(*sides))
    for groups in (number[:, None], number.astype(str), pandas.Series(number), number.tolist()):
        again = Splits.from_arrays(x, y, groups=groups)
        assert np.array_equal(again.train.hashes, splits.train.hashes)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["a"] * 19, r"one for each of the 20 examples. Received: \(19,\)"),
        (["a"] * 18 + [None, "b"], r"a group in every row \(row 18 has none\). Received: None"),
        ([1.0] * 4 + [np.nan] * 16, r"row 4 has none"),
    ],
)
def test_groups_that_do_not_fit_are_refused(groups, message):
    with pytest.raises(UserError, match=message):
        Splits.from_arrays(np.arange(20.0), np.arange(20) % 2, groups=groups)


def test_groups_of_very_different_sizes_are_said(monkeypatch):
    lines = []
    monkeypatch.setattr("absl.logging.warning", lambda text, *values: lines.append(text % values))
    x, groups = np.arange(400.0), [*range(20)] + [20] * 380
    for seed in range(20):
        splits = Splits.from_arrays(x, x, groups=groups, validation=0, seed=seed)
        if splits.test.size > 300:
            break
    assert any("`test` holds 95" in line for line in lines)


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def test_a_pattern_finds_the_groups_of_image_files(tmp_path):
    for seed in range(80):
        kind = ("ash", "oak")[seed % 2]
        picture(tmp_path / kind / f"tree{seed // 8:02d}-{seed}.png", seed)
    splits = image_folder(tmp_path, size=6, group="(tree[0-9]+)-", validation=0.2, test=0.2)
    sides = [
        {part.name(index).split("/")[1][:6] for index in range(part.size)}
        for part in splits.parts().values()
    ]
    assert sum(map(len, sides)) == 10 == len(set.union(*sides))
    with pytest.raises(UserError, match="must find a group in the name of every file, 'ash/tree"):
        image_folder(tmp_path, size=6, group="shrub[0-9]+")
    with pytest.raises(UserError, match="`group` must be a regular expression"):
        image_folder(tmp_path, size=6, group="(tree")


def test_a_group_of_image_files_on_two_sides_of_given_splits_is_refused(tmp_path):
    for seed in range(24):
        part, kind = ("train", "test")[seed // 12], ("ash", "oak")[seed % 2]
        picture(tmp_path / part / kind / f"t{seed % 5}-{seed}.png", seed)
    with pytest.raises(UserError, match=r"alone\. Received: 't0' in `train` and in `test`"):
        image_folder(tmp_path, size=6, group="(t[0-9])-")


@pytest.mark.parametrize(
    ("pattern", "groups"),
    [
        ("p[0-9]+", ["p1", "p2", "p1"]),
        ("p([0-9]+)_(.)", ["1/a", "2/b", "1/b"]),
        ("^([^/]+)/", ["cat", "cat", "dog"]),
    ],
)
def test_a_group_is_what_the_parentheses_hold_or_the_whole_match(pattern, groups):
    assert grouping.from_names(["cat/p1_a.png", "cat/p2_b.png", "dog/p1_b.png"], pattern) == groups


@example(order=[0, 0, 0, 1, 2], validation=0.1, test=0.3)  # The test split would begin at 1.
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=60),
    st.sampled_from([0.0, 0.1, 0.3]),
    st.sampled_from([0.0, 0.1, 0.3]),
)
@quick
def test_a_cut_in_time_holds_out_the_last(order, validation, test):
    order = np.array(order)
    train, held_out, judged = splitting.cut_in_order(order, validation, test)
    sides = [order[rows] for rows in (train, held_out, judged) if len(rows)]
    assert sum(map(len, sides)) == len(order) and len(train)
    for earlier, later in itertools.pairwise(sides):
        assert earlier.max() < later.min()
    moments = np.unique(order)
    if len(moments) > 2:
        assert (len(held_out) > 0) == (validation > 0) and (len(judged) > 0) == (test > 0)
    # No other cut between two times is nearer to the fraction.
    if test and len(judged) and not validation:
        others = [np.count_nonzero(order >= moment) for moment in moments[1:]]
        ideal = test * len(order)
        assert abs(len(judged) - ideal) <= min(abs(other - ideal) for other in others) + 1e-9


def test_times_are_numbers_or_dates_of_any_kind():
    days = [datetime.date(2023, 1, 1) + datetime.timedelta(days=7 * n) for n in (3, 0, 2, 1)]
    for order in (
        days,
        [day.isoformat() for day in days],
        pandas.Series(pandas.to_datetime(days)),
        np.array(days, "datetime64[D]")[:, None],
        [f"{day.isoformat()}T10:30:00+02:00" for day in days],
        ["21", "0", "14.5", "7"],
        [21, 0, 14, 7],
    ):
        assert np.argsort(times.numbers(order, 4)).tolist() == [1, 3, 2, 0]


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (["1/2/2024"] * 4, r"dates as 2024-05-31 .* \(row 0\)"),
        ([1, 2, None, 4], r"row 2 has none"),
        (["2024-01-01", "", "2024-01-02", "2024-01-03"], "row 1 has none"),
        ([1, 2, 3], r"each of the 4 examples. Received: \(3,\)"),
    ],
)
def test_times_that_cannot_be_put_in_order_are_refused(order, message):
    with pytest.raises(UserError, match=message):
        Splits.from_arrays(np.arange(4.0), np.arange(4.0), order=order)


def test_groups_and_an_order_exclude_each_other():
    with pytest.raises(UserError, match="`groups` and `order` must not both be given"):
        Splits.from_arrays(np.arange(4.0), np.arange(4.0), groups=[0, 0, 1, 1], order=[1, 2, 3, 4])


@pytest.mark.parametrize(("one", "other"), [(2, 2.0), (1, True), ("p1", b"p1"), (np.int64(3), 3.0)])
def test_groups_that_are_equal_are_one_however_they_are_written(one, other):
    for groups in ([one, other, "q"], [other, one, "q"]):
        first, second, third = grouping.names(np.array(groups, object), 3)
        assert first == second != third
    names = {
        grouping.names(np.array(groups, object), 2)[0] for groups in ([one, other], [other, one])
    }
    assert len(names) == 1


def test_a_list_is_no_group():
    groups = np.array(["a", ["b"], "c"], object)
    with pytest.raises(UserError, match=r"`groups` must be text or whole numbers \(row 1\)"):
        grouping.names(groups, 3)
