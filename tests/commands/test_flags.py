import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tfbp
from tfbp.commands import flags


@dataclasses.dataclass(frozen=True)
class Config(tfbp.Config):
    rate: float = tfbp.field(0.5, "learning rate", low=0, high=1)
    epochs: int = tfbp.field(3, "passes over the data", low=1)
    bias: bool = tfbp.field(True, "whether there is one")
    cell: str = tfbp.field("lstm", "kind of cell", choices=("lstm", "gru"))
    hidden: tuple[int, ...] = tfbp.field((), "units of the hidden layers", low=1)
    names: tuple[str, ...] = tfbp.field(("a",), "names")


def parse(*arguments):
    return flags.parse(Config, arguments, about="About.")


def mistake(*arguments):
    with pytest.raises(tfbp.UserError) as caught:
        parse(*arguments)
    return str(caught.value)


def test_without_flags_it_is_the_defaults():
    assert parse() == (Config(), [])


def test_each_type_is_read():
    config, rest = parse(
        "--rate=1e-3", "--epochs", "7", "--nobias", "--cell=gru", "--hidden=500,250", "--names=b,c"
    )
    expected = Config(
        rate=1e-3, epochs=7, bias=False, cell="gru", hidden=(500, 250), names=("b", "c")
    )
    assert (config, rest) == (expected, [])
    assert parse("--bias=false")[0] == parse("--bias=0")[0] == Config(bias=False)
    assert parse("--hidden=", "--names=")[0] == Config(names=())


def test_what_is_no_flag_is_left_in_its_order():
    arguments = ("a", "--epochs=2", "-1.5", "b", "--", "--epochs=4")
    assert parse(*arguments) == (Config(epochs=2), ["a", "-1.5", "b", "--epochs=4"])


text = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=20)
configs = st.builds(
    Config,
    data=text,
    rate=st.floats(0, 1),
    epochs=st.integers(1),
    bias=st.booleans(),
    cell=st.sampled_from(["lstm", "gru"]),
    hidden=st.lists(st.integers(1)).map(tuple),
    names=st.lists(text.filter(lambda name: name and "," not in name)).map(tuple),
)


@given(configs)
def test_a_flag_file_repeats_its_config(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("flags") / "flags.txt"
    path.write_text("# a comment\n" + config.flags_text(), encoding="utf-8")
    assert parse(f"--flagfile={path}") == (config, [])


def test_a_flag_behind_a_flag_file_wins(tmp_path):
    path = tmp_path / "flags.txt"
    path.write_text("--epochs=5\n--cell=gru\n")
    assert parse("--flagfile", str(path), "--epochs=6")[0] == Config(epochs=6, cell="gru")


def test_an_unknown_flag_gets_its_close_match():
    message = mistake("--epoch=3")
    assert "'--epoch'" in message
    assert "Did you mean '--epochs'?" in message


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--epochs=many", "`--epochs` must be a whole number. Received: 'many'."),
        ("--epochs=1.5", "`--epochs` must be a whole number. Received: '1.5'."),
        ("--rate=fast", "`--rate` must be a finite number. Received: 'fast'."),
        ("--rate=nan", "`--rate` must be a finite number. Received: 'nan'."),
        ("--bias=perhaps", "`--bias` must be true or false. Received: 'perhaps'."),
        ("--hidden=5,x", "`--hidden` must be a whole number. Received: 'x'."),
        ("--epochs=0", "`epochs` must be at least 1. Received: 0."),
        ("--rate=2", "`rate` must be at most 1. Received: 2.0."),
        ("--hidden=5,0", "`hidden` must be at least 1. Received: 0."),
        ("--epochs", "Missing value for flag --epochs."),
        ("--nobias=1", "--nobias=1 does not take an argument."),
    ],
)
def test_a_wrong_value_says_the_rule(argument, expected):
    assert mistake(argument) == expected


def test_a_choice_gets_its_close_match():
    assert "Did you mean 'lstm'?" in mistake("--cell=lsmt")


def test_a_flag_file_that_is_not_there_is_named(tmp_path):
    message = mistake(f"--flagfile={tmp_path / 'none.txt'}")
    assert message.startswith("`--flagfile` must be a file that can be read (No such file")
    assert "none.txt" in message


@pytest.mark.parametrize("argument", ["--help", "-h"])
def test_help_shows_every_flag_with_its_default_help_and_choices(argument):
    with pytest.raises(flags.Help) as caught:
        parse("--epochs=4", argument)
    message = str(caught.value)
    assert message.startswith("About.\n")
    assert "  --epochs=3\n      passes over the data\n" in message
    assert "  --cell=lstm\n      kind of cell (lstm | gru)\n" in message
    assert all(f"--{item.name}=" in message for item in dataclasses.fields(Config))


def test_a_field_that_cannot_be_a_flag_is_named():
    @dataclasses.dataclass(frozen=True)
    class Odd(tfbp.Config):
        table: object = tfbp.field(None, "no flag")

    with pytest.raises(tfbp.UserError, match="`table`"):
        flags.parse(Odd, [], about="")
