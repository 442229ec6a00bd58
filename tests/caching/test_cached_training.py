"""Training on cached features ends as training on the examples does, whatever the phases are."""

import contextlib
import dataclasses
import gc
import json
import logging
import os
import pathlib

import keras
import numpy as np
import processes
import pytest
import tensorflow as tf

from tfbp.caching import cache as feature_cache
from tfbp.caching import examples as cached_examples
from tfbp.caching import row_file
from tfbp.data.augmentation import augmentation
from tfbp.data.examples import Examples
from tfbp.data.splits import Splits
from tfbp.modeling import heads
from tfbp.resuming import checkpoints as run_checkpoints
from tfbp.running import phases as phase_training
from tfbp.running.run import Run
from tfbp.settings import Settings
from tfbp.tasks.classification import Classification
from tfbp.training import loop
from tfbp.training.phase import Phase
from tfbp.workers import interruption, strategy

layers = keras.layers
CLASSES = ("a", "b", "c")
TASK = Classification(CLASSES)
ONE = tf.distribute.get_strategy()
# More than one block of rows, and no whole number of batches.
TRAIN, HELD_OUT = 70, 11


@pytest.fixture(autouse=True)
def worth_it(monkeypatch):
    """Even the features of tiny models are cached."""
    monkeypatch.setattr(feature_cache, "seconds_saved", lambda *arguments: 1.0)


def splits(size=8, train=TRAIN, transform=None):
    numbers = np.random.default_rng(0)
    y = np.arange(train + 2 * HELD_OUT) % len(CLASSES)
    x = numbers.integers(0, 128, (len(y), size, size, 3), dtype=np.uint8)
    x[np.arange(len(y)), :, :, y] += 100
    cuts = np.split(np.arange(len(y)), [train, train + HELD_OUT])
    first, *others = (Examples.from_arrays(x[cut], y[cut]) for cut in cuts)
    return Splits(first.augmented(transform), *others, classes=CLASSES)


def body(x):
    """Returns three blocks: plain, residual, and of branches that are joined."""
    x = layers.Rescaling(1 / 255)(x)
    x = layers.Conv2D(4, 3, strides=2, padding="same", name="one_conv")(x)
    x = layers.BatchNormalization(name="one_norm")(x)
    y = layers.Conv2D(4, 3, padding="same", activation="relu", name="two_conv")(x)
    y = layers.BatchNormalization(name="two_norm")(y)
    x = layers.Add()([x, y])
    sides = [layers.Conv2D(3, n, padding="same", name=f"three_conv_{n}")(x) for n in (1, 3)]
    return layers.BatchNormalization(name="three_norm")(layers.Concatenate()([x, *sides]))


class Noise(layers.Layer):
    """Draws from the generator that Keras has for the whole process."""

    def call(self, x, training=False):
        return x + keras.random.normal(keras.ops.shape(x)) if training else x


def network(noise=False):
    """Returns a nested backbone with dropout and a penalty in its head, with equal weights."""
    keras.utils.set_random_seed(1)
    images = keras.Input((8, 8, 3))
    nested = keras.Model(images, body(images), name="body")
    x = images = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(nested(x))
    x = Noise()(x) if noise else x
    x = layers.Dropout(0.4)(layers.Dense(6, activation="tanh", name="head_hidden")(x))
    x = layers.Dense(len(CLASSES), kernel_regularizer="l2", name="head")(x)
    return keras.Model(images, x)


def three(**settings):
    settings = {"epochs": 2, "learning_rate": 0.01} | settings
    return (
        Phase("head", "head.*", **settings),
        Phase("last", "head.*|body/three_.*", **settings),
        Phase("more", "head.*|body/t.*", **settings),
    )


def train(
    folder,
    phases,
    *,
    model=None,
    data=None,
    task=None,
    where=ONE,
    cache=True,
    directory=None,
    batch_size=16,
    **settings,
):
    """Returns a run that has ended; without the audit and what it takes."""
    if model is None:
        with where.scope():
            model = network()
    settings = Settings(batch_size=batch_size, seed=3, cache=cache, cache_dir=folder, **settings)
    run = Run(model, data or splits(), task or TASK, phases, settings, where)
    run.directory = directory
    if directory:
        directory.mkdir(exist_ok=True)
    phase_training.train(run, ())
    return run


def without_seconds(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def assert_alike(run, other, tolerance=1e-6):
    weights = [each.model.get_weights() for each in (run, other)]
    for ours, theirs in zip(*weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(run.history, other.history, strict=True):
        numbers = ours.keys() - {"phase", "seconds"}
        assert ours["phase"] == theirs["phase"]
        assert [ours[name] for name in numbers] == pytest.approx(
            [theirs[name] for name in numbers], rel=1e-5
        )
    for split, metrics in run.result["metrics"].items():
        expected = other.result["metrics"][split]
        assert metrics["accuracy"] == expected["accuracy"]
        assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def caches(folder):
    return sorted(path.name for path in pathlib.Path(folder).iterdir() if row_file.is_cache(path))


@pytest.fixture(scope="module")
def uncached():
    return train("unused", three(), cache=False)


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """Returns a run of three phases on features, and the folder of these."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_cache, "seconds_saved", lambda *arguments: 1.0)
        return train(folder, three()), folder


SETTINGS = {
    "accumulated and averaged": {"accumulate": 2, "ema": 0.5, "batch_norm": "affine"},
    "with early stopping, statistics that move": {
        "early_stopping": 1,
        "epochs": 4,
        "learning_rate": 1.0,
        "batch_norm": "train",
        # Adam would make steps of what is nothing but rounding: gradients of biases before a
        # BatchNormalization.
        "optimizer": "sgd",
    },
}


def test_cached_training_ends_like_uncached_training(cached, uncached):
    run, folder = cached
    assert_alike(run, uncached)
    assert len(caches(folder)) == 2 * len(run.phases)  # of training and of validation examples


@pytest.mark.parametrize("name", SETTINGS)
def test_it_ends_alike_whatever_the_phases_are(tmp_path, name):
    phases = three(**SETTINGS[name])[1:]
    plain = train(tmp_path, phases, cache=False)
    assert not caches(tmp_path)
    run = train(tmp_path, phases)
    assert_alike(run, plain)
    assert caches(tmp_path)
    if "early_stopping" in SETTINGS[name]:
        assert any(phase["stopped_epoch"] for phase in run.result["phases"])


@pytest.mark.slow
def test_draws_from_the_generator_of_the_process_are_the_same(tmp_path):
    phases = three()[:2]
    plain, cached = (
        train(tmp_path, phases, model=network(noise=True), cache=cache) for cache in (False, True)
    )
    assert caches(tmp_path)
    assert_alike(cached, plain)


@pytest.mark.slow
def test_two_devices_train_alike_on_features(tmp_path):
    phases = three()[1:2]
    plain = train(tmp_path, phases, where=strategy.resolve("mirrored"), cache=False)
    cached = train(tmp_path, phases, where=strategy.resolve("mirrored"))
    assert caches(tmp_path)
    assert_alike(cached, plain)


@pytest.mark.slow
def test_every_cut_of_vgg16_trains_alike(tmp_path):
    keras.utils.set_random_seed(1)
    backbone = keras.applications.VGG16(weights=None, include_top=False, input_shape=(32, 32, 3))
    model = heads.swap_head(backbone, CLASSES, dropout=0.5)
    begin = [variable.numpy() for variable in model.variables]  # the seed of dropout too
    settings = {"epochs": 2, "learning_rate": 1e-4}
    tuned = [f"head.*|vgg16/block[{block}-5].*" for block in (5, 4, 3, 2)]
    phases = [Phase(f"{i}", each, **settings) for i, each in enumerate(["head.*", *tuned])]
    data = Splits(splits(size=32, train=12).train, classes=CLASSES)
    runs = []
    for on in (False, True):
        for variable, value in zip(model.variables, begin, strict=True):
            variable.assign(value)
        run = train(tmp_path, phases, model=model, data=data, cache=on)
        runs.append((run, [variable.numpy() for variable in model.variables]))
    assert len(caches(tmp_path)) == len(phases)
    (plain, expected), (cached, found) = runs
    assert any((a != b).any() for a, b in zip(expected, begin, strict=True))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    for name, metrics in plain.result["metrics"].items():
        assert cached.result["metrics"][name]["accuracy"] == metrics["accuracy"]


class Counted:
    """Counts how often x of an example is computed; its first pixel says which one it is."""

    def __init__(self):
        self.counts = np.zeros(256, int)

    def __call__(self, x):
        def count(x):
            np.add.at(self.counts, x[:, 0, 0, 0].astype(int), 1)
            return x

        return tf.ensure_shape(tf.numpy_function(count, [x], tf.float32, stateful=False), x.shape)


def counted_splits():
    x = np.random.default_rng(0).integers(0, 255, (TRAIN, 8, 8, 3), dtype=np.uint8)
    x[:, 0, 0, 0] = np.arange(TRAIN)
    counted = Counted()
    examples = Examples.from_arrays(x, np.arange(TRAIN) % 3)
    examples = examples.mapped(counted, examples.spec[0], preparation="counted")
    return Splits(examples, classes=CLASSES), counted.counts


def inputs(folder, data, phases=None, model=None, progress=None):
    """Returns what a run's first phase learns from; its caches are closed."""
    phases = phases or three()[:1]
    cache = feature_cache.FeatureCache(
        Settings(seed=3, cache_dir=folder), model or network(), data, TASK, phases
    )
    with cache:
        return cache.inputs(0, cache._freeze(0), *([progress] if progress else []))


def test_one_pass_over_the_examples_fills_the_cuts_of_all_phases(tmp_path):
    data, counts = counted_splits()
    train(tmp_path / "cache", three(), data=data)
    assert (counts[1:TRAIN] == 1).all()
    assert counts[0] <= 1 + len(three())  # each phase's metrics are built on it
    data, again = counted_splits()
    inputs(tmp_path / "cache", data, three())
    assert not again.any()


@pytest.mark.parametrize("named", [False, True], ids=["its x are read", "its name is read"])
def test_another_preparation_of_one_example_is_another_cache(tmp_path, named):
    def brightened(by):
        examples = Examples.from_arrays(np.arange(TRAIN)[:, None, None, None], labels)
        change = tf.one_hot(TRAIN // 2, TRAIN) * by
        names = {"preparation": f"brighter by {by}"} if named else {}

        def brighter(x):
            return x + tf.gather(change, tf.cast(x[:, 0, 0, 0], tf.int32))[:, None, None, None]

        return examples.mapped(brighter, examples.spec[0], **names)

    labels = np.arange(TRAIN) % 3
    keys = [cached_examples.fingerprint_of_x(brightened(by), 0) for by in (0.0, 1.0, 0.0)]
    assert keys[0] == keys[2] != keys[1]


def test_a_task_that_measures_by_the_images_gets_them(tmp_path):
    class ByBrightness(Classification):
        def per_example(self, x, y, outputs):
            return super().per_example(x, y, outputs) | {"brightness": tf.reduce_mean(x, (1, 2, 3))}

        def evaluate(self, per_example, examples):
            brightness = float(np.mean(per_example["brightness"]))
            return super().evaluate(per_example, examples) | {"brightness": brightness}

    data = splits()
    run = train(tmp_path, three()[:1], data=data, task=ByBrightness(CLASSES))
    assert not caches(tmp_path)
    images = data.validation.read(tf.range(HELD_OUT))[0]
    assert run.result["metrics"]["validation"]["brightness"] == pytest.approx(np.mean(images))


@pytest.mark.slow
def test_views_are_cached_and_cycled_through_like_uncached_ones(tmp_path):
    data = splits(transform=augmentation(flip=True, shift=0.3, colour=0.2))
    phases = three(epochs=5)[:2]
    plain = train(tmp_path, phases, data=data, cache=False, cached_views=2)
    cached = train(tmp_path, phases, data=data, cached_views=2)
    assert_alike(cached, plain)
    sizes = [
        json.loads((tmp_path / name / row_file.LAYOUT).read_text()) for name in caches(tmp_path)
    ]
    assert sorted(each["count"] for each in sizes) == [HELD_OUT] * 2 + [2 * TRAIN] * 2
    fresh = train(tmp_path, phases, data=data)
    assert fresh.history[1]["loss"] == pytest.approx(cached.history[1]["loss"], rel=1e-5)
    assert fresh.history[2]["loss"] != pytest.approx(cached.history[2]["loss"], rel=1e-4)


def test_examples_without_room_are_computed_each_time(tmp_path, caplog):
    phases = three()[1:2]
    plain = train(tmp_path / "none", phases, cache=False)
    row = 4 * 4 * 4 * 4  # bytes: what `three_conv_1`, `three_conv_3` and `concatenate` read
    with caplog.at_level(logging.WARNING):
        cached = train(tmp_path, phases, cache_gb=(TRAIN - 1) * row / 1e9)
    assert "can hold 64 of 70 examples" in caplog.text
    assert "can hold 0 of 11 examples" in caplog.text
    assert_alike(cached, plain)


@pytest.mark.slow
def test_without_any_room_a_run_is_uncached(tmp_path):
    plain = train(tmp_path / "none", three()[:1], cache=False)
    assert_alike(train(tmp_path, three()[:1], cache_gb=0), plain)


def test_half_rows_train_nearly_alike(tmp_path, cached):
    halved = train(tmp_path, three()[:1], cache_half=True)
    losses = [row["loss"] for row in halved.history]
    expected = [row["loss"] for row in cached[0].history[:2]]
    np.testing.assert_allclose(losses, expected, rtol=1e-2)
    assert losses != expected


@pytest.mark.slow
def test_files_are_closed_when_a_run_is_let_go(tmp_path):
    def files():
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    before = [files() for _ in range(2) if train(tmp_path, three()[:1])][1]
    train(tmp_path, three()[:1])
    assert files() <= before


def test_the_result_says_what_was_cached_or_why_not(tmp_path):
    phases = [three()[0], Phase("all", ".*", epochs=2, learning_rate=0.01)]
    run = train(tmp_path, phases)
    head, every = (phase["features"] for phase in run.result["phases"])
    assert head["rows"] == TRAIN
    assert 0 < head["saves"] < 1
    assert every == {"obstacle": "no part of the model gives the same in each epoch"}
    run = train(tmp_path, phases[:1], cache=False)
    assert run.result["phases"][0]["features"] == {"obstacle": "the cache is off"}


class Stop(Exception):
    pass


def test_a_fill_that_was_stopped_goes_on_with_what_is_missing(tmp_path):
    data, counts = counted_splits()

    def stopping(split):
        def told(done, total):
            raise Stop

        return told

    with pytest.raises(Stop):
        inputs(tmp_path, data, progress=stopping)
    assert counts[:TRAIN].tolist() == [1] * 64 + [0] * (TRAIN - 64)
    inputs(tmp_path, data)
    assert counts[:TRAIN].tolist() == [1] * TRAIN


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(3, id="first phase"),
        pytest.param(17, marks=pytest.mark.slow, id="second phase"),
    ],
)
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(tmp_path, monkeypatch, cached, steps):
    monkeypatch.setattr(loop, "SECONDS_PER_CALL", 0)
    monkeypatch.setattr(run_checkpoints.Checkpoints, "due", lambda self: True)
    whole, cache = cached
    phases = three()
    left = [steps]
    save = run_checkpoints.Checkpoints.save

    def save_and_stop(self, model, place, **more):
        save(self, model, place, **more)
        left[0] -= bool(place.step)
        if not left[0]:
            self.wait()
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(run_checkpoints.Checkpoints, "save", save_and_stop)
        with pytest.raises(Stop):
            train(cache, phases, directory=tmp_path / "run")
    resumed = train(cache, phases, directory=tmp_path / "run")
    assert without_seconds(resumed.history) == without_seconds(whole.history)
    for ours, theirs in zip(resumed.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_a_request_to_stop_is_met_while_features_are_computed(tmp_path, cached):
    whole, _ = cached
    folder, run = tmp_path / "cache", tmp_path / "run"

    @contextlib.contextmanager
    def asked():
        yield lambda: True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interruption, "deferred", asked)
        with pytest.raises(interruption.Interrupted):
            train(folder, three(), directory=run)
    place, _ = run_checkpoints.Checkpoints(run / "checkpoints").newest()
    assert (place.phase, place.step) == (0, 0)
    filled = [
        (np.fromfile(path, "<u8") != 0).tolist() for path in folder.glob(f"*/{row_file.MARKS}")
    ]
    assert [True, False] in filled  # the first block of 64 rows, and no more
    resumed = train(folder, three(), directory=run)
    for ours, theirs in zip(resumed.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def changed_pixel(data):
    x, y = data.train.read(tf.range(TRAIN))
    x = x.numpy()
    x[7, 3, 3, 1] += 1
    return dataclasses.replace(data, train=Examples.from_arrays(x, y.numpy()))


def inverted(data):
    """Returns other images whose hashes are those of the old ones, as when they are resized."""
    train = data.train.mapped(lambda x: 255 - x, data.train.spec[0])
    return dataclasses.replace(data, train=train)


@pytest.mark.parametrize("change", [changed_pixel, inverted])
def test_other_examples_are_not_taken_for_those_that_are_cached(tmp_path, change):
    inputs(tmp_path, splits())
    before = caches(tmp_path)
    inputs(tmp_path, change(splits()))
    assert len(set(caches(tmp_path)) - set(before)) == 1  # validation is as it was


def test_other_weights_are_another_key_but_another_head_is_not(tmp_path):
    inputs(tmp_path, splits())
    before = caches(tmp_path)
    model = network()
    model.get_layer("head").kernel.assign_add(np.ones((6, 3)))
    inputs(tmp_path, splits(), model=model)
    assert caches(tmp_path) == before
    kernel = model.get_layer("body").get_layer("one_conv").kernel
    kernel.assign(kernel + np.eye(4)[0] * 1e-6)
    inputs(tmp_path, splits(), model=model)
    assert len(set(caches(tmp_path)) - set(before)) == 2


def test_image_files_are_not_read_again_once_their_features_are_there(tmp_path):
    files = []
    for i in range(24):
        files.append(str(tmp_path / f"{i}.png"))
        image = np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        tf.io.write_file(files[-1], tf.io.encode_png(image))
    names = tf.constant(files)

    def decode(name):
        image = tf.io.decode_png(tf.io.read_file(name), 3)
        return tf.cast(tf.ensure_shape(image, (8, 8, 3)), tf.float32)

    def read(indices):
        chosen = tf.gather(names, indices)
        return tf.map_fn(decode, chosen, fn_output_signature=tf.float32), indices % 3

    spec = tf.TensorSpec((8, 8, 3), tf.float32), tf.TensorSpec((), tf.int64)
    hashes = np.array([f"{i:064}" for i in range(24)], "S64")
    examples = Examples(read, spec=spec, hashes=hashes, targets=np.arange(24) % 3)
    model, phases = network(), three()[:1]
    cache = feature_cache.FeatureCache(
        Settings(cache_dir=tmp_path / "cache"), model, Splits(examples), TASK, phases
    )
    with cache:
        inputs = cache.inputs(0, cache._freeze(0))
        for file in files:
            os.unlink(file)
        batch = next(iter(tf.data.Dataset.range(4).batch(4).map(inputs.train.read)))
    assert batch[1].numpy().tolist() == [0, 1, 2, 0]
    assert batch[0][0].shape[0] == 4


PROGRAM = """
import os, pathlib, sys, time
import numpy as np
from tests.caching import test_cached_training as here
here.feature_cache.seconds_saved = lambda *arguments: 1.0
data, counts = here.counted_splits()
model, phases = here.network(), here.three()[:1]
pathlib.Path(sys.argv[2]).touch()
while not all(map(os.path.exists, sys.argv[2:])):
    time.sleep(0.01)
settings = here.Settings(seed=3, cache_dir=sys.argv[1])
with here.feature_cache.FeatureCache(settings, model, data, here.TASK, phases) as cache:
    rows = cache.inputs(0, cache._freeze(0)).train
    read = here.tf.function(lambda: rows.read(here.tf.range(here.TRAIN))[0])
    np.savez(sys.argv[2] + ".npz", *read(), counts=counts)
"""


@pytest.mark.slow
def test_two_processes_fill_one_cache_and_read_the_same(tmp_path):
    ready = [tmp_path / "first", tmp_path / "second"]
    started = [
        processes.start(PROGRAM, tmp_path / "cache", *each, log=each[0].with_suffix(".log"))
        for each in (ready, ready[::-1])
    ]
    for process, path in zip(started, ready, strict=True):
        assert process.wait(300) == 0, path.with_suffix(".log").read_text()
    first, second = (dict(np.load(path.with_suffix(".npz"))) for path in ready)
    counts = [each.pop("counts") for each in (first, second)]
    assert sum(counts)[:TRAIN].tolist() == [1] * TRAIN
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name])
