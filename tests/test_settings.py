import dataclasses
import json
import pathlib
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tfbp
from tfbp.settings import DEFAULTS, Fields, Settings, declared, field


@dataclasses.dataclass(frozen=True)
class Example(Fields):
    count: int = field(1, "a count", low=0, counts_for="run")
    share: float = field(0.5, "a share", above=0, below=1, counts_for="workers")
    on: bool = field(True, "a switch")
    folder: str | None = field(None, "a folder", counts_for="process")
    sizes: tuple[int, ...] = field((), "sizes", low=1)
    names: tuple[str, ...] = field((), "names")
    kind: Literal["char", "word"] = field("word", "a kind")
    limit: float | None = field(None, "a limit")


@pytest.mark.parametrize(
    ("name", "wrong", "rule"),
    [
        ("count", 2.5, "must be a whole number. Received: 2.5."),
        ("count", True, "must be a whole number. Received: True."),
        ("count", "3", "must be a whole number. Received: '3'."),
        ("count", None, "must be a whole number. Received: None."),
        ("count", -1, "must be at least 0. Received: -1."),
        ("share", "half", "must be a finite number. Received: 'half'."),
        ("share", True, "must be a finite number. Received: True."),
        ("share", float("inf"), "must be a finite number. Received: inf."),
        ("share", 0, "must be above 0. Received: 0.0."),
        ("share", 1, "must be below 1. Received: 1.0."),
        ("on", 1, "must be true or false. Received: 1."),
        ("folder", 3, "must be text. Received: 3."),
        ("sizes", 3, "must be a tuple, of a whole number each. Received: 3."),
        ("sizes", (1, 0), "must be at least 1. Received: 0."),
        ("names", (1,), "must be text. Received: 1."),
        ("kind", "wrod", "Did you mean 'word'?"),
    ],
)
def test_a_value_of_another_type_or_range_is_refused_by_its_rule(name, wrong, rule):
    with pytest.raises(tfbp.UserError) as caught:
        Example(**{name: wrong})
    assert str(caught.value).startswith(f"`{name}` ")
    assert rule in str(caught.value)


def test_values_are_kept_in_their_plain_type():
    given = Example(
        count=np.int64(3),
        share=np.float32(0.25),
        folder=pathlib.Path("a") / "b",
        sizes=[1, np.int32(2)],
        names="one",
        limit=2,
    )
    assert given == Example(
        count=3, share=0.25, folder="a/b", sizes=(1, 2), names=("one",), limit=2.0
    )
    assert [type(value) for value in (given.count, given.share, given.limit)] == [int, float, float]


def test_none_and_an_empty_text_mean_unset():
    assert Example(folder="").folder is None
    assert Example(folder=None).folder is None
    assert Example(limit=None).limit is None
    assert Example(sizes=()).sizes == ()


def test_settings_count_for_the_run_for_its_workers_or_for_one_process():
    assert set(Example().counting("run")) == {"count", "on", "sizes", "names", "kind", "limit"}
    assert Example().counting("workers") == {"share": 0.5}
    assert Example(folder="a").counting("process") == {"folder": "a"}


def test_where_a_run_is_kept_and_how_often_does_not_make_it_another_run():
    kept = Settings(
        workdir="a", cache_dir="b", cache_gb=1.0, checkpoint_seconds=1.0, gradients=3, restart=True
    )
    assert kept.counting("run") == DEFAULTS.counting("run")
    for change in ({"seed": 1}, {"batch_size": 3}, {"on_nan": "skip"}, {"cached_views": 2}):
        assert Settings(**change).counting("run") != DEFAULTS.counting("run")


text = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters=","), min_size=1)


@given(
    st.builds(
        Example,
        count=st.integers(0, 2**60),
        share=st.floats(0.01, 0.99),
        on=st.booleans(),
        folder=st.none() | text,
        sizes=st.lists(st.integers(1)).map(tuple),
        names=st.lists(text).map(tuple),
        kind=st.sampled_from(["char", "word"]),
        limit=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    )
)
def test_settings_come_back_equal_from_json_and_from_their_texts(example):
    values = example.counting("run", "workers", "process")
    assert Example.from_json(json.loads(json.dumps(values))) == example
    settings = declared(Example).values()
    texts = {each.name: each.text(getattr(example, each.name)) for each in settings}
    assert Example(**{each.name: each.parsed(texts[each.name]) for each in settings}) == example


def test_a_name_that_is_not_declared_is_refused_with_the_close_one():
    with pytest.raises(tfbp.UserError, match=r"'cuont'.* Did you mean 'count'\?"):
        Example.from_json({"cuont": 3})


def test_every_setting_says_what_it_is_for():
    for kind in (Settings, tfbp.Config):
        for name, setting in declared(kind).items():
            assert len(setting.help) > 10, name


MODEL, SPLITS, TASK, PHASES = (None,) * 4  # refused before any of them is looked at


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workdir": "a"}, r"`workdir` must be given as a setting: tfbp\.fit\(…, settings=tfbp\."),
        ({"batch_size": 8}, r"tfbp\.Settings\(batch_size=8\)"),
        ({"callback": []}, r"'callback'\. Did you mean 'callbacks'\?"),
        ({"strategy": "mirrored"}, r"a name is a setting: Settings\(strategy='mirrored'\)"),
        ({"settings": {"seed": 3}}, r"`settings` must be tfbp\.Settings"),
        ({"settings": tfbp.Config(accumulate=2)}, r"a Config says more, and is for `tfbp\.run\("),
        ({"accumulate": 2}, r"`accumulate` must be given to a phase: tfbp\.Phase\(…, accumulate=2"),
        ({"epochs": 2}, r"`epochs` must be given to a phase"),
        ({"export_dir": "x"}, r"`run\.export\(folder\)` exports"),
    ],
)
def test_fit_refuses_what_is_a_setting_with_its_new_spelling(arguments, message):
    with pytest.raises(tfbp.UserError, match=message):
        tfbp.fit(MODEL, SPLITS, TASK, PHASES, **arguments)


def test_a_strategy_is_given_once():
    import tensorflow as tf

    both = {"settings": Settings(strategy="one"), "strategy": tf.distribute.get_strategy()}
    with pytest.raises(tfbp.UserError, match="`strategy` must be given once"):
        tfbp.fit(MODEL, SPLITS, TASK, PHASES, **both)
