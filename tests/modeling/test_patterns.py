import re

import models
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tfbp
from tfbp.errors import UserError
from tfbp.modeling import paths
from tfbp.modeling.patterns import unmatched

PATHS = ["body/conv_1", "body/conv_2", "body/norm", "head", "head_1"]


@pytest.mark.parametrize(
    ("pattern", "useless"),
    [
        ("head|body/.*", []),
        ("head|vgg16/.*", ["vgg16/.*"]),
        ("vgg16/.*|resnet/.*", ["vgg16/.*", "resnet/.*"]),
        ("head|", [""]),
        ("body/(conv_1|conv_3)", ["conv_3"]),
        ("body/(?:conv_(1|9)|norm)", ["9"]),
        ("(?P<part>head|tail)_1", ["tail"]),
        # a bar that separates nothing
        (r"head[|]?|body/norm", []),
        (r"head|body\|norm", [r"body\|norm"]),
        ("head|[]|x]+", ["[]|x]+"]),
        # what looks ahead matches nothing itself, and repeats match together
        ("(?!head|tail).*", []),
        ("(?<!x|y)head.*", []),
        ("(h|e|a|d)+", []),
        ("head(_1|_2)?", []),
        # flags stand at the front
        ("(?i)HEAD|BODY/NORM", []),
        ("(?i)HEAD|TAIL", ["TAIL"]),
    ],
)
def test_alternatives_that_match_nothing_are_found(pattern, useless):
    assert unmatched(re.compile(pattern), PATHS) == useless


@given(st.lists(st.sampled_from([*map(re.escape, PATHS), "x", "body/y", ".*/z"]), min_size=1))
@settings(max_examples=100, deadline=None)
def test_of_plain_alternatives_those_are_found_that_match_no_path(parts):
    expected = (
        []
        if len(parts) == 1
        else [part for part in parts if not any(re.fullmatch(part, path) for path in PATHS)]
    )
    assert unmatched(re.compile("|".join(parts)), PATHS) == expected


def model():
    return models.classifier(models.backbone())


def test_a_phase_and_adapters_refuse_a_pattern_of_which_a_part_matches_nothing():
    message = r"`trainable` must match .* each alternative of 'head\|rear/.*'. Received: 'rear/.*'"
    with pytest.raises(UserError, match=message) as error:
        paths.select(model(), "head|rear/.*")
    assert "\n - body/conv_1" in str(error.value)
    with pytest.raises(UserError, match=r"`layers` must match .* each alternative"):
        tfbp.add_lora(model(), "head|neck", rank=2)
    assert list(paths.select(model(), "head|body/norm")) == ["body/norm", "head"]


def test_a_pattern_that_matches_nothing_because_nothing_is_built_says_so():
    keras = models.keras

    class Net(keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.inner = keras.layers.Dense(4, name="inner")
            self.outer = keras.layers.Dense(2, name="outer")

        def build(self, shape):
            self.built = True

        def call(self, x):
            return self.outer(self.inner(x))

    net = Net()
    net.build((None, 3))
    with pytest.raises(UserError, match=r"without weights as yet: inner, outer\. Call it once"):
        paths.select(net, ".*")
    net(keras.ops.ones((1, 3)))
    assert list(paths.select(net, "inner|outer")) == ["inner", "outer"]
