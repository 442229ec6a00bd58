import re

import h5py
import keras
import models
import numpy as np
import pytest

from tfbp import storage
from tfbp.errors import UserError
from tfbp.modeling import backbones, heads


def network(*widths, name="tiny"):
    return models.blocks(*(widths or (4, 5)), dropout=0.1, name=name)  # it keeps a random seed


def distinct(model):
    """Gives every weight of a model a value of its own, and returns them."""
    numbers = np.random.default_rng(7)
    model.set_weights([numbers.uniform(0.1, 1, weight.shape) for weight in model.weights])
    return model.get_weights()


def write_like_keras_applications(model, path):
    """Writes a weights-only `.h5` file as Keras 2 did: the form of the published files."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        file.attrs["backend"], file.attrs["keras_version"] = b"tensorflow", b"2.0.0"
        for layer in model.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{weight.name}:0" for weight in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, weight in zip(names, layer.get_weights(), strict=True):
                group[name] = weight


def write_run(model, folder):
    folder.mkdir()
    model.save(folder / "model.keras")
    storage.write_manifest(folder, ["model.keras"])


def test_every_kind_of_source_gives_the_backbone_its_weights(tmp_path):
    source = network()
    expected = distinct(source)
    source.compile("adam", "mse")
    source.optimizer.build(source.trainable_variables)  # its state is written, too
    source.save_weights(tmp_path / "tiny.weights.h5")
    write_like_keras_applications(source, tmp_path / "tiny_notop.h5")
    write_run(heads.swap_head(source, 3, preprocess=None), tmp_path / "run")

    for name in ("tiny.weights.h5", "tiny_notop.h5", "run"):
        backbone = network()
        backbones.load_backbone_weights(backbone, str(tmp_path / name))
        for ours, theirs in zip(backbone.get_weights(), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("widths", [(4,), (4, 5, 6), (4, 7)], ids=["fewer", "more", "wider"])
@pytest.mark.parametrize("kind", ["weights.h5", "h5", "run", "run_whole"])
def test_the_weights_of_another_architecture_are_refused(tmp_path, widths, kind):
    other, path = network(*widths), tmp_path / f"other.{kind}"
    if kind == "weights.h5":
        other.save_weights(path)
    elif kind == "h5":
        write_like_keras_applications(other, path)
    elif kind == "run":
        write_run(heads.swap_head(other, 3, preprocess=None), path)
    else:
        write_run(other, path)
    load = backbones.load_weights if kind == "run_whole" else backbones.load_backbone_weights
    with pytest.raises(UserError, match="`weights` must hold the weights of 'tiny'") as caught:
        load(network(), str(path))
    assert repr(str(path)) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.weights.h5", None, "or the directory of an earlier run"),
        ("bad.weights.h5", b"no HDF5", "must hold the weights of 'tiny'"),
        ("bad.h5", b"no HDF5", "must hold the weights of 'tiny'"),
        ("weights.npz", b"", "must be a file that ends with .weights.h5 or .h5"),
        ("model.keras", b"no zip", "must be a run whose model"),
        ("config.json", b"{}", "must be a run that has ended"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
        storage.write_manifest(tmp_path, [name])
    source = tmp_path if name in ("model.keras", "config.json") else path
    with pytest.raises(UserError, match="`weights` ") as caught:
        backbones.load_backbone_weights(network(), str(source))
    assert message in str(caught.value)


def test_a_run_without_a_backbone_of_that_name_lists_those_it_has(tmp_path):
    write_run(heads.swap_head(network(name="small"), 3, preprocess=None), tmp_path / "run")
    with pytest.raises(UserError, match=r"whose model contains 'tiny'[^$]*\n - small"):
        backbones.load_backbone_weights(network(), str(tmp_path / "run"))


def test_a_run_of_a_model_class_of_its_own_is_refused(tmp_path):
    class Own(keras.Model):
        pass

    x = keras.Input((3,))
    write_run(Own(x, keras.layers.Dense(2)(x)), tmp_path / "run")
    with pytest.raises(UserError, match="must be a run whose model is of Keras's own classes"):
        backbones.load_backbone_weights(network(), str(tmp_path / "run"))


def test_a_he_start_has_the_variance_of_he_and_repeats_by_its_seed():
    def start(seed):
        model = keras.Sequential([keras.Input((8, 8, 16)), keras.layers.Conv2D(64, 3)])
        backbones.he_start(model, seed)
        return model.get_weights()[0]

    kernel = start(1)
    assert kernel.std() == pytest.approx(np.sqrt(2 / (3 * 3 * 16)), rel=0.03)
    np.testing.assert_array_equal(kernel, start(1))
    assert not np.array_equal(kernel, start(2))


def test_a_he_start_keeps_the_signal_through_vgg16_where_keras_own_loses_it():
    x = np.random.default_rng(0).normal(0, 60, (2, 32, 32, 3)).astype(np.float32)

    def last_layer(model):
        return np.abs(keras.Model(model.input, model.get_layer("block5_conv3").output)(x)).mean()

    he = backbones.load_backbone(keras.applications.VGG16, (32, 32, 3), "none", seed=0)
    plain = keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3))
    assert last_layer(he) > 10
    assert last_layer(plain) < 1


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((31, 32, 3), r"`size` must suit the backbone \(.*at least 32x32.*Received: \(31, 32\)"),
        ((32, 32, 1), r"`data` must be images of three channels. Received: \(32, 32, 1\)"),
        ((64,), r"`data` must be images of three channels. Received: \(64,\)"),
    ],
)
def test_images_that_the_backbone_cannot_take_are_refused(shape, message):
    with pytest.raises(UserError, match=message):
        backbones.load_backbone(keras.applications.VGG16, shape, "none", seed=0)


def test_imagenet_weights_that_cannot_be_downloaded_are_one_error_with_the_other_ways(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(keras.src.backend.config, "_KERAS_DIR", str(tmp_path))  # as at import
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens: refused at once
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(UserError) as caught:
        backbones.load_backbone(keras.applications.VGG16, (32, 32, 3), "imagenet", seed=0)
    file = tmp_path / "models" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    assert f"{file} is not there" in str(caught.value)
    ways = re.findall(r"`--weights=(\w+)`", str(caught.value))
    assert ways == ["FILE", "RUN", "none"]
    assert not file.exists()
