import pytest

from tfbp.errors import UserError, mistake


def test_a_mistake_names_the_argument_the_rule_and_what_was_received():
    error = mistake("rate", "must be positive.", -0.5)
    assert isinstance(error, UserError)
    assert isinstance(error, ValueError)
    assert str(error) == "`rate` must be positive. Received: -0.5."


def test_a_close_name_is_suggested_and_the_known_ones_are_listed_in_order():
    error = mistake("recipe", "must be known", "vgg61", ["vgg16", "mlp"])
    assert str(error) == (
        "`recipe` must be known. Received: 'vgg61'. Did you mean 'vgg16'?\nKnown:\n - mlp\n - vgg16"
    )


def test_a_name_that_is_close_to_none_gets_no_suggestion():
    assert "Did you mean" not in str(mistake("recipe", "must be known", "zzz", ["vgg16", "mlp"]))


@pytest.mark.parametrize(("count", "more"), [(40, ""), (43, "… and 3 more")])
def test_a_long_list_of_known_names_is_cut(count, more):
    text = str(mistake("layer", "must be known", "?", (f"layer_{i:03}" for i in range(count))))
    assert text.count("\n - layer_") == 40
    assert text.endswith(more)
