import types

import keras
import models
import numpy as np
import pytest

from tfbp.caching import cache as feature_cache
from tfbp.caching.cache import FeatureCache
from tfbp.caching.prefix import find
from tfbp.data.augmentation import augmentation
from tfbp.data.examples import Examples
from tfbp.data.splits import Splits
from tfbp.errors import UserError
from tfbp.modeling import freezing
from tfbp.settings import Settings
from tfbp.tasks.classification import Classification
from tfbp.training.phase import Phase

layers = keras.layers
TASK = Classification(("a", "b"))


class ByImage(Classification):
    def per_example(self, x, y, outputs):
        return super().per_example(x, y, outputs) | {"mean": keras.ops.mean(x, (1, 2, 3))}


def network(channels=32):
    """Returns a model whose body makes 8 × 8 × (27 + 9 · channels) · channels multiply-adds."""
    return models.classifier(models.blocks(channels, channels), classes=2)


def splits(count=20, transform=None):
    x = np.random.default_rng(0).integers(0, 255, (count, 8, 8, 3), dtype=np.uint8)
    examples = Examples.from_arrays(x, np.arange(count) % 2)
    return Splits(examples.augmented(transform), examples.take(np.arange(5)), classes=("a", "b"))


def outlook(folder, trainable="head", *, data=None, epochs=9, phases=1, task=TASK, **settings):
    model = network()
    planned = [Phase(f"{i}", trainable, epochs=epochs, learning_rate=0.1) for i in range(phases)]
    settings = Settings(cache_dir=folder, **settings)
    frozen = freezing.freeze(model, trainable)
    with FeatureCache(settings, model, data or splits(), task, planned) as cache:
        return cache.outlook(0, frozen)


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(feature_cache, "SECONDS_TO_OPEN", 0.0)


@pytest.mark.usefixtures("fast")
def test_the_outlook_says_where_the_split_falls_what_it_takes_and_saves(tmp_path):
    found = outlook(tmp_path / "cache")
    body, head = 8 * 8 * 9 * (3 * 32 + 32 * 32), 32 * 2
    assert found.cut == ("pool",)
    assert found.saves == pytest.approx(body / (body + head))
    assert (found.rows, found.bytes) == (25, 25 * 32 * 4)
    assert (found.cached, found.obstacle) == (True, "")
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("fast")
def test_half_rows_take_half(tmp_path):
    assert outlook(tmp_path, cache_half=True).bytes * 2 == outlook(tmp_path).bytes


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(
    ("changes", "obstacle"),
    [
        ({"cache": False}, "the cache is off"),
        ({"trainable": ".*"}, "no part of the model gives the same in each epoch"),
        ({"epochs": 1, "phases": 2}, "each example is read only once"),
        ({"data": splits(transform=augmentation(flip=True))}, "augmentation makes each epoch's"),
        ({"task": ByImage(("a", "b"))}, "the task measures what the model is given"),
        ({"trainable": "head|body/conv_2"}, "reading it would take longer than computing it"),
    ],
)
def test_the_outlook_says_what_keeps_a_phase_from_being_cached(tmp_path, changes, obstacle):
    found = outlook(tmp_path, **changes)
    assert found.obstacle.startswith(obstacle)
    assert not found.cached


@pytest.mark.usefixtures("fast")
def test_the_outlook_says_how_many_rows_fit(tmp_path):
    found = outlook(tmp_path, cache_gb=7 * 32 * 4 / 1e9)
    assert found.cached
    assert found.obstacle == "only 7 fit, the others are computed each time"


@pytest.mark.usefixtures("fast")
def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path, caplog):
    (tmp_path / ".opening").mkdir()  # where a file is due
    found = outlook(tmp_path)
    assert not found.cached
    assert str(tmp_path) in found.obstacle
    model, data = network(), splits()
    phases = [Phase("head", "head", epochs=9, learning_rate=0.1)]
    with FeatureCache(Settings(cache_dir=tmp_path), model, data, TASK, phases) as cache:
        inputs = cache.inputs(0, freezing.freeze(model, "head"))
    assert (inputs.model, inputs.train) == (model, data.train)
    assert "Features are not cached." in caplog.text


def test_a_tiny_model_is_not_worth_opening_a_cache(tmp_path):
    assert outlook(tmp_path).obstacle == "reading it would take longer than computing it"


def test_the_time_that_a_cache_saves_is_that_of_computing_less_that_of_reading():
    model = network()
    found = find(model, freezing.freeze(model, "head"))
    prefixed = types.SimpleNamespace(multiply_adds=6e9, specs=found.specs)
    # 0.1 s each to compute, and 128 bytes to write once and to read once more than it is used.
    due = 1000 * (4 * 0.1 - 7 * 128e-9) - 0.5
    assert feature_cache.seconds_saved(prefixed, False, 1000, 5) == pytest.approx(due)


@pytest.mark.parametrize(
    "settings", [{"cache_gb": -1.0}, {"cached_views": -1}, {"cached_views": 0.5}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(UserError, match="cache"):
        Settings(**settings)


def test_without_a_folder_caches_stand_where_the_desktop_standard_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert feature_cache.folder_of(Settings()) == tmp_path / "tfbp"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert feature_cache.folder_of(Settings()) == tmp_path / ".cache" / "tfbp"
