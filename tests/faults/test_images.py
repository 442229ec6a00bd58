"""Images of every kind, from the folder through a run to what its export answers."""

import io
import logging
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import tfbp
from tfbp import commands, recipe

RECIPES = pathlib.Path(__file__).parents[2] / "recipes"


def encoded(kind, seed=0, mode="RGB", **settings):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **settings)
    return file.getvalue()


def pixels_16_bit():
    values = np.random.default_rng(5).integers(0, 2**16, (6, 6), np.uint16)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


TURNED = Image.Exif()
TURNED[0x0112] = 6
# Each is named as if it were a JPEG.
KINDS = {
    "cmyk": encoded("JPEG", 1, "CMYK"),
    "animated": encoded(
        "GIF", 2, save_all=True, append_images=[Image.new("RGB", (6, 6), (9, 200, 50))] * 2
    ),
    "sixteen_bits": pixels_16_bit(),
    "grey": encoded("PNG", 3, "L"),
    "palette": encoded("PNG", 4, "P", transparency=2),
    "palette_bmp": encoded("BMP", 6, "P"),
    "turned": encoded("JPEG", 7, exif=TURNED),
}
BAD = {"empty.png": b"", "truncated.jpg": encoded("JPEG", 8)[:-40]}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Returns an empty folder, the current one, with images of two classes in `pets`."""
    for label, name in enumerate(("cat", "dog")):
        folder = tmp_path / "pets" / name
        folder.mkdir(parents=True)
        for number in range(100):
            file = folder / f"{number}.png"
            file.write_bytes(encoded("PNG", 100 * label + number + 10))
    for name, content in KINDS.items():
        (tmp_path / "pets" / "cat" / f"{name}.jpg").write_bytes(content)
    for name, content in BAD.items():
        (tmp_path / "pets" / "dog" / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config_of(module, **settings):
    return module.Config(data="folder:pets?validation=0.1&test=0.1&size=6", **settings)


@pytest.mark.slow
def test_an_export_answers_images_of_every_kind_as_they_were_trained_on(here):
    mlp = recipe.load("mlp", RECIPES)
    settings = {"layers": (36, 4, 2), "epochs": 1, "on_bad_example": "skip"}
    run = tfbp.run(mlp, config_of(mlp, **settings))
    ask = tf.saved_model.load(str(here / "saved_models" / "mlp" / "1"))
    contents = tf.constant([*KINDS.values(), *BAD.values()])
    answers = ask.signatures["image_bytes"](image_bytes=contents)
    found = {
        pathlib.Path(part.name(index)).stem: image
        for part in run.splits.parts().values()
        for index, image in enumerate(part.read(range(part.size))[0])
    }
    expected = run.model(tf.stack([found[name] for name in KINDS])).numpy()
    np.testing.assert_allclose(answers["logits"][: len(KINDS)], expected, rtol=1e-5, atol=1e-5)
    assert answers["class"].numpy()[len(KINDS) :].tolist() == [b"", b""]
    assert not {"empty", "truncated"} & set(found)


@pytest.mark.parametrize("name", ["mlp", "backprop", "vgg16"])
def test_every_recipe_of_images_does_with_bad_ones_what_its_flag_says(here, name, caplog):
    module = recipe.load(name, RECIPES)
    settings = {} if name == "vgg16" else {"layers": (36, 2)}
    with pytest.raises(tfbp.UserError, match="pets that are no whole images, 2 of 209"):
        module.data(config_of(module, **settings))
    with caplog.at_level(logging.WARNING, logger="absl"):
        splits = module.data(config_of(module, on_bad_example="skip", **settings))
    assert sum(part.size for part in splits.parts().values()) == 207
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2  # what is left out, and what carries an orientation
    assert "dog/empty.png" in said[0] and "dog/truncated.jpg" in said[0]
    assert said[1].startswith("Image files in pets with an EXIF orientation other than 1: 1.")


def test_the_command_line_reports_all_bad_images_before_it_writes_anything(here, capsys):
    argv = ["run", "mlp", "--data=folder:pets", "--layers=36,2"]
    assert commands.main(RECIPES, argv) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert " - dog/empty.png: it is empty\n - dog/truncated.jpg: it is truncated\n" in message
    assert [path.name for path in here.iterdir()] == ["pets"]
