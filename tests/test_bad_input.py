"""Each mistake ends with exit code 2 and one message, before any training; nothing is written."""

import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbp
from tfbp import commands

RECIPES = pathlib.Path(__file__).parents[1] / "recipes"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Returns an empty folder, the current one."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def refusal(here, capsys):
    """Returns a function that calls the command line and returns the message of its mistake."""

    def call(*argv):
        before = contents(here)
        capsys.readouterr()
        assert commands.main(RECIPES, argv) == 2
        out, err = capsys.readouterr()
        assert out == ""
        messages = [line for line in err.splitlines() if line.startswith("Error: ")]
        assert len(messages) == 1 and "Traceback" not in err
        assert contents(here) == before
        return err[err.index("Error: ") :]

    return call


@pytest.fixture(scope="module")
def earlier_run(tmp_path_factory):
    """Returns the directory of a run of `linear_regression` that has ended."""
    folder = tmp_path_factory.mktemp("earlier")
    flags = ["--data=proportional", "--epochs=2", f"--export_dir={folder / 'exports'}"]
    argv = ["run", "linear_regression", f"--workdir={folder / 'run'}", *flags]
    assert commands.main(RECIPES, argv) == 0
    return folder / "run"


def contents(folder):
    return {path: path.is_file() and path.read_bytes() for path in sorted(folder.rglob("*"))}


def picture(path, seed=0, size=16):
    image = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tf.io.encode_png(image).numpy())


def pictures(folder, classes=("cat", "dog"), count=4):
    for label, name in enumerate(classes):
        for number in range(count):
            picture(folder / name / f"{number}.png", seed=label * count + number)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        # names that are not known, with the close match
        ("rum mlp", "`command` must be .* 'rum'. Did you mean 'run'?"),
        ("run vgg61", "`recipe` must be .* 'vgg61'. Did you mean 'vgg16'?"),
        ("run missing.py", "`recipe` must be a file that exists. Received: 'missing.py'"),
        ("plan vgg61", "`recipe` must be .* Did you mean 'vgg16'?"),
        ("run mlp --epoch=3", "`flag` must be .* '--epoch'. Did you mean '--epochs'?"),
        ("run mlp --activation=rely", "`activation` must be .* 'rely'. Did you mean 'relu'?"),
        ("run mlp --data=digitz", "`data` must begin .* 'digitz'. Did you mean 'digits'?"),
        ("run lstm_lm --data=referense", "`data` must begin .* Did you mean 'reference'?"),
        ("run mlp --data=digits?per_clas=5", "`data` has a key .* Did you mean 'per_class'?"),
        ("run mlp --data=digits?classes=1,x", "`classes` must be names .* Received: 'x'"),
        # data of another kind than the recipe takes
        ("run lstm_lm --data=digits", "`data` must be text here. Received: 'digits'"),
        ("run mlp --data=reference", "`data` must be images or a table here"),
        ("run mlp --data=line", "`classes` must be .* values to predict, not labels"),
        ("run linear_regression --data=digits", "`examples` must carry numbers to predict"),
        # a rate, a size or a number out of range
        ("run mlp --learning_rate=0", "`learning_rate` must be at least 1e-08. Received: 0.0"),
        ("run mlp --learning_rate=-1", "`learning_rate` must be at least 1e-08. Received: -1.0"),
        ("run mlp --learning_rate=nan", "`--learning_rate` must be a finite number"),
        ("run mlp --dropout=1", "`dropout` must be at most 0.95. Received: 1.0"),
        ("run mlp --epochs=0", "`epochs` must be at least 1. Received: 0"),
        ("run mlp --epochs=few", "`--epochs` must be a whole number. Received: 'few'"),
        ("run mlp --batch_size=0", "`batch_size` must be at least 1. Received: 0"),
        ("run mlp --seed=-1", "`seed` must be at least 0. Received: -1"),
        ("run mlp --layers=784,0,10", "`layers` must be at least 1. Received: 0"),
        ("run mlp --layers=784", "`layers` must be at least inputs and classes"),
        ("run backprop --layers=", "`layers` must be at least inputs and classes"),
        ("run backprop --layers=100,10,10 --data=digits?size=8", "`layers` must begin with the 64"),
        ("run lstm_lm --vocabulary=1", "`vocabulary` must be at least 2. Received: 1"),
        ("run mlp --data=digits?per_class=0", "`per_class` must be .* at least 1. Received: '0'"),
        ("run mlp --data=digits?validation=1", "`validation` must be .* under 1. Received: 1.0"),
        ("run mlp --data=digits?validation=0.6&test=0.6", "`validation` and `test` must leave"),
        ("run mlp --data=random?shape=0", "`shape` must be .* at least 1. Received: '0'"),
        # images that are too small for the backbone
        ("run vgg16 --size=16 --weights=none", "`size` must suit the backbone .*32x32.* (16, 16)"),
        ("run vgg16 --size=16", "`size` must suit the backbone .*32x32"),
        ("plan vgg16 --data=digits?size=8 --weights=random", "`size` must suit .* (8, 8)"),
        # paths that are not there
        ("run mlp --data=folder:missing", "must be a folder that exists. Received: 'missing'"),
        ("run mlp --data=folder:", "`data` must name a folder of images: `folder:PATH`"),
        ("run lstm_lm --data=text:missing", "`data` must name a text file .* 'missing'"),
        ("run mlp --data=csv:missing?target=y", "`data` must name a CSV file .* 'missing'"),
        ("run mlp --flagfile=missing", "`--flagfile` must be a file .* Received: 'missing'"),
        ("run mlp --flagfile", "--flagfile"),
        ("run vgg16 --weights=missing.h5", "`weights` must be .* Received: 'missing.h5'"),
        ("run lstm_lm --weights=missing", "`weights` must be .* Received: 'missing'"),
        ("run linear_regression --weights=missing", "`weights` must be .* Received: 'missing'"),
        ("run mlp --weights=missing", "`weights` must be .* Received: 'missing'"),
        ("run backprop --weights=missing", "`weights` must be .* Received: 'missing'"),
        ("evaluate missing", "`run` must be the directory of a run .* 'missing'"),
        ("export missing", "`run` must be the directory of a run .* 'missing'"),
        ("predict missing 1", "`SAVED_MODEL` must be a SavedModel.* Received: 'missing'"),
        # classes, examples and the head
        ("run mlp --data=digits?classes=3", "`classes` must be two or more. Received: ['3']"),
        ("run mlp --data=random?classes=10&count=5", "one example of each class.* 5 .* 10 classes"),
        ("run mlp --layers=784,128,5", "one logit for each of the 10 classes.* shape [5]"),
    ],
)
def test_a_wrong_command_line(argv, message, refusal):
    assert matches(refusal(*argv.split()), message)


def matches(text, message):
    """Tells whether a message begins as it should; `.*` stands for anything."""
    pattern = ".*".join(map(re.escape, message.split(".*")))
    return re.search(pattern, text, re.DOTALL)


def test_an_empty_class(here, refusal):
    pictures(here / "pets")
    (here / "pets" / "bird").mkdir()
    message = refusal("run", "mlp", "--data=folder:pets")
    assert "`classes` must each hold an image. Received: 'pets/bird'" in message


def test_one_class_only(here, refusal):
    pictures(here / "pets", classes=["cat"])
    message = refusal("run", "mlp", "--data=folder:pets")
    assert "`classes` must be two or more. Received: ['cat']" in message


def test_a_class_that_the_folder_does_not_hold(here, refusal):
    pictures(here / "pets")
    message = refusal("run", "mlp", "--data=folder:pets?classes=cat,bog")
    assert "Received: 'bog'. Did you mean 'dog'?" in message


def test_images_that_cannot_be_read_are_all_named_with_their_reasons(here, refusal):
    pictures(here / "pets")
    (here / "pets" / "cat" / "1.png").write_bytes(b"")
    whole = here / "pets" / "dog" / "2.png"
    whole.write_bytes(whole.read_bytes()[:200])
    message = refusal("run", "vgg16", "--weights=random", "--data=folder:pets")
    assert "Files in pets that are no whole images, 2 of 8:" in message
    assert " - cat/1.png: it is empty\n - dog/2.png: it is truncated\n" in message


def test_a_text_shorter_than_one_window(here, refusal):
    (here / "short.txt").write_text("to be or not to be")
    message = refusal("run", "lstm_lm", "--data=text:short.txt", "--steps=35")
    assert "shorter than one window" in message and "36 are needed" in message


@pytest.mark.parametrize(
    ("table", "target", "message"),
    [
        ("x,y\n1,2\n", "", "`target` must name the column to predict"),
        ("width,y\n1,2\n", "?target=widht", "`target` must .* 'widht'. Did you mean 'width'?"),
        ("x,y\n1,2\n2,two\n", "?target=y", "(row 2, column 'y' of table.csv). Received: 'two'"),
        ("x,y\n1,2\none,3\n", "?target=y", "(row 2, column 'x' of table.csv). Received: 'one'"),
        ("x,y\n1,2\nnan,3\n", "?target=y", "missing cells, 1 of 2:\n - row 2, column 'x': 'nan'\n"),
        ("x,y\n1,2\n2,\n", "?target=y", "missing cells, 1 of 2:\n - row 2, column 'y': ''\n"),
        ("x,y\n1,2\n3,4\n", "?target=y&group=who", "`group` must name one column"),
        ("x,y\n1,2\n2,inf\n", "?target=y", "a finite number (row 2, column 'y'.* Received: 'inf'"),
        ("x,y\n1,2\n3\n", "?target=y", "Row 2 of table.csv must have 2 cells. Received: 1"),
        ("x,y\n", "?target=y", "must hold at least one row"),
    ],
)
def test_a_table_that_cannot_be_used(here, refusal, table, target, message):
    (here / "table.csv").write_text(table)
    text = refusal("run", "linear_regression", f"--data=csv:table.csv{target}")
    assert matches(text, message)


def test_a_work_directory_of_another_run(earlier_run, refusal):
    before = contents(earlier_run)
    message = refusal("run", "mlp", f"--workdir={earlier_run}")
    assert "`workdir` holds another run" in message
    assert "`recipe` ('linear_regression', not 'mlp')" in message
    settings = ["--data=proportional", "--epochs=3"]
    message = refusal("run", "linear_regression", f"--workdir={earlier_run}", *settings)
    assert "differs in `epochs` (2, not 3)" in message
    assert contents(earlier_run) == before


def test_a_work_directory_that_is_none(here, refusal):
    (here / "notes").write_text("mine")
    assert "`workdir` must be a directory. " in refusal("run", "mlp", "--workdir=notes")
    assert "`workdir` must be empty, or hold a run" in refusal("run", "mlp", "--workdir=.")
    assert "`workdir` must be a directory that can be written" in refusal(
        "run", "mlp", "--workdir=notes/run"
    )


def test_an_export_folder_that_cannot_be_written(here, earlier_run, refusal):
    (here / "taken").write_text("mine")
    for argv in (["run", "mlp"], ["export", str(earlier_run)]):
        for folder in ("taken", "taken/below"):
            message = refusal(*argv, f"--export_dir={folder}")
            assert "`export_dir` must be a folder that can be written" in message


def test_weights_of_another_model(here, earlier_run, refusal):
    (here / "noise.h5").write_bytes(b"noise")
    for recipe in ("vgg16", "lstm_lm", "mlp"):
        assert "`weights` must " in refusal("run", recipe, f"--weights={earlier_run}")
    for recipe in ("vgg16", "mlp"):
        assert "`weights` must hold" in refusal("run", recipe, "--weights=noise.h5")


def test_a_split_that_the_data_has_not(earlier_run, refusal):
    assert "Did you mean 'test'?" in refusal("evaluate", str(earlier_run), "--split=tset")
    assert "`split` must be one that the run's data has" in refusal("evaluate", str(earlier_run))


def test_an_input_that_the_model_does_not_take(earlier_run, refusal):
    model = str(earlier_run.parent / "exports" / "linear_regression")
    assert "`INPUT` must be numbers" in refusal("predict", model, "two")
    assert "`INPUT` must be one number" in refusal("predict", model, "1,2")
    assert "`INPUT` must be finite" in refusal("predict", model, "nan")


def test_a_recipe_that_lacks_a_part(here, refusal):
    (here / "half.py").write_text('"""Half a recipe."""\n')
    assert "half.py lacks `Config`, `data`" in refusal("run", "half.py")


def test_a_batch_larger_than_the_data_is_cut_to_it(here, capsys):
    argv = ["plan", "linear_regression", "--data=proportional", "--batch_size=50"]
    assert commands.main(RECIPES, argv) == 0
    assert "`batch_size` is cut from 50 to the 3 training examples" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "value"), [("KERAS_BACKEND", "jax"), ("TF_USE_LEGACY_KERAS", "1")]
)
def test_another_keras_is_refused_by_the_program(here, variable, value):
    environment = os.environ | {variable: value, "PYTHONPATH": str(RECIPES.parent)}
    process = subprocess.run(
        [sys.executable, "-m", "recipes", "run", "mlp"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith(f"Error: `{variable}` must be ")
    assert process.stderr.count("\n") == 1
    assert not contents(here)


# The same through the library.


def images(size=16, classes=2, count=12):
    x = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    return x, np.arange(count) % classes


def fit(model, splits, task, workdir):
    phases = [tfbp.Phase("head", "head.*", epochs=1, learning_rate=1e-3)]
    tfbp.fit(model, splits, task, phases, tfbp.Settings(workdir=workdir))


@pytest.mark.parametrize("pooling", [None, "avg"])
def test_images_too_small_for_a_backbone_of_any_size(here, pooling):
    splits = tfbp.Splits.from_arrays(*images(size=16))
    backbone = keras.applications.VGG16(include_top=False, weights=None, pooling=pooling)
    model = tfbp.swap_head(backbone, classes=splits.classes)
    with pytest.raises(tfbp.UserError, match=r"`size` must be at least 32 .* \(16, 16\)"):
        fit(model, splits, tfbp.Classification(splits.classes), "run")
    assert not contents(here)


def test_labels_outside_the_head(here):
    splits = tfbp.Splits.from_arrays(*images(size=32, classes=3))
    backbone = keras.applications.MobileNetV2(include_top=False, weights=None, pooling="avg")
    two = tfbp.swap_head(backbone, classes=2)
    with pytest.raises(tfbp.UserError, match=r"`labels` must be from 0 to 1.* Received: 2 at row"):
        fit(two, splits, tfbp.Classification(["a", "b"]), "run")
    with pytest.raises(tfbp.UserError, match="one logit for each of the 3 classes"):
        fit(two, splits, tfbp.Classification(splits.classes), "run")
    assert not contents(here)


def test_arrays_that_cannot_be_learnt_from():
    x, y = images()
    not_finite = x.astype(np.float32)
    not_finite[3, 0, 0, 0] = np.nan
    for mistaken, message in (
        ((not_finite, y, None), r"`x` must be finite \(row 3\). Received: nan"),
        ((x, np.zeros(12, int), None), "`classes` must be two or more"),
        ((x, y, ["cat"]), "`classes` must be two or more"),
        ((x, y + 1, ["cat", "dog"]), r"`y` must hold labels from 0 to 1.* Received: 2"),
        ((x, y, ["cat", "dog", "bird"]), "'bird' has none"),
        ((x[:2], y[:2], ["cat", "dog", "bird"]), "2 examples of 3 classes"),
        ((x, y[:5], ["cat", "dog"]), "`y` must have one row for each of the 12 rows"),
    ):
        with pytest.raises(tfbp.UserError, match=message):
            tfbp.Splits.from_arrays(mistaken[0], mistaken[1], classes=mistaken[2])
