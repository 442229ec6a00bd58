import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfbp.data import splitting
from tfbp.errors import UserError

FRACTIONS = st.tuples(
    st.sampled_from([0.0, 0.05, 0.1, 0.25, 0.5]), st.sampled_from([0.0, 0.1, 0.2, 0.45])
)
# Few contents and few labels, so that equal contents turn up often, also across classes.
EXAMPLES = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=1, max_size=80)


def hashes_of(contents):
    return np.array([f"{content:064d}" for content in contents], "S64")


def part_of_each_content(contents, labels, fractions, seed):
    parts = splitting.cut(hashes_of(contents), np.array(labels), *fractions, seed)
    return {contents[row]: part for part, rows in enumerate(parts) for row in rows}


@given(EXAMPLES, FRACTIONS, st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_splits_hold_each_example_once_and_share_no_content(examples, fractions, seed):
    contents, labels = map(np.array, zip(*examples, strict=True))
    parts = splitting.cut(hashes_of(contents), labels, *fractions, seed)
    assert sorted(np.concatenate(parts)) == list(range(len(examples)))
    held = [set(contents[rows]) for rows in parts]
    assert not held[0] & held[1]
    assert not held[0] & held[2]
    assert not held[1] & held[2]


@given(EXAMPLES, FRACTIONS, st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_each_class_is_cut_by_the_fractions(examples, fractions, seed):
    contents, labels = zip(*examples, strict=True)
    class_of = {}
    for content, label in examples:
        class_of[content] = min(label, class_of.get(content, label))
    part_of = part_of_each_content(contents, labels, fractions, seed)
    for label in set(class_of.values()):
        members = [content for content in class_of if class_of[content] == label]
        counts = collections.Counter(part_of[content] for content in members)
        assert counts[0] >= 1
        for part, fraction in enumerate(fractions, 1):
            if not fraction:
                assert counts[part] == 0
            elif len(members) >= 3:
                assert counts[part] >= 1
                assert abs(counts[part] - fraction * len(members)) < 1.5


@given(st.sets(st.integers(0, 99), min_size=2, max_size=60), FRACTIONS, st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_a_new_content_moves_at_most_one_other_over_each_cut(contents, fractions, seed):
    *old, new = contents
    before = part_of_each_content(old, [0] * len(old), fractions, seed)
    after = part_of_each_content([*old, new], [0] * len(contents), fractions, seed)
    # 0 is training, 1 validation, 2 test; the cuts stand between 2 and 1, and between 1 and 0.
    for cut in (1, 2):
        assert sum((before[content] >= cut) != (after[content] >= cut) for content in old) <= 1


def test_another_seed_holds_out_others():
    hashes, labels = hashes_of(range(100)), np.zeros(100, np.int64)
    first, again, other = (
        splitting.cut(hashes, labels, 0.1, 0.1, seed)[2].tolist() for seed in (0, 0, 1)
    )
    assert first == again != other


def test_the_order_of_the_files_does_not_matter():
    contents = list(range(50))
    labels = [content % 3 for content in contents]
    forwards = part_of_each_content(contents, labels, (0.2, 0.2), 0)
    backwards = part_of_each_content(contents[::-1], labels[::-1], (0.2, 0.2), 0)
    assert forwards == backwards


def test_what_is_kept_of_each_class_does_not_depend_on_the_order_of_the_files():
    hashes = hashes_of(range(30))
    labels = np.arange(30) % 3
    kept = splitting.first_of_each_class(hashes, labels, 4, seed=0)
    assert np.bincount(labels[kept]).tolist() == [4, 4, 4]
    reverse = splitting.first_of_each_class(hashes[::-1], labels[::-1], 4, seed=0)
    assert sorted(hashes[kept]) == sorted(hashes[::-1][reverse])


@pytest.mark.parametrize("fractions", [(-0.1, 0.1), (0.1, 1.0), (0.5, 0.5), (float("nan"), 0.1)])
def test_fractions_out_of_range_are_refused(fractions):
    with pytest.raises(UserError, match=r"`validation`|`test`"):
        splitting.check_fractions(*fractions)
