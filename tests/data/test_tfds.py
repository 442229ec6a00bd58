import numpy as np
import pytest
import tensorflow as tf

from tfbp.data import catalog
from tfbp.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")


def pixels(part, number):
    edge = 6 + number % 2
    generator = np.random.default_rng([len(part), number])
    return generator.integers(0, 256, (edge, 6, 3), np.uint8)


class LittleImages(tfds.core.GeneratorBasedBuilder):
    """Lossless images of two sizes in three classes; there is no validation split."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["ant", "bee", "cat"]),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples("train", 30),
            "test": self._generate_examples("test", 6),
        }

    def _generate_examples(self, part, count=0):
        for number in range(count):
            yield number, {"image": pixels(part, number), "label": number % 3}


class LittleNumbers(tfds.core.GeneratorBasedBuilder):
    """Not labelled images."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"number": np.float32})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"number": 1.0}


@pytest.fixture(scope="module", params=["tfrecord", "array_record"])
def prepared(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    for builder in (LittleImages, LittleNumbers):
        builder(data_dir=folder, file_format=request.param).download_and_prepare()
    return folder


def test_prepared_images_are_read_by_index(prepared):
    splits = catalog.load_data(f"tfds:little_images?dir={prepared}&size=6", seed=0)
    assert [part.size for part in (splits.train, splits.validation, splits.test)] == [27, 3, 6]
    assert splits.classes == ("ant", "bee", "cat")
    images, labels = splits.test.read(range(6))
    assert images.shape == (6, 6, 6, 3)
    # TFDS shuffles once when it prepares; the three images of another size were resized.
    label_of = {pixels("test", number).tobytes(): number % 3 for number in (0, 2, 4)}
    for image, label in zip(images.numpy().astype(np.uint8), labels.numpy(), strict=True):
        assert label_of.pop(image.tobytes(), label) == label
    assert not label_of
    assert splits.test.name(2) == "test[2]"


def test_both_ways_of_storage_give_the_same_examples(prepared, tmp_path):
    other = "tfrecord" if prepared.name.startswith("array") else "array_record"
    LittleImages(data_dir=tmp_path, file_format=other).download_and_prepare()
    here, there = (
        catalog.load_data(f"tfds:little_images?dir={folder}&size=6", seed=0)
        for folder in (prepared, tmp_path)
    )
    assert set(here.train.hashes) == set(there.train.hashes)
    assert set(here.test.hashes) == set(there.test.hashes)


def test_images_are_read_in_a_pipeline_graph(prepared):
    test = catalog.load_data(f"tfds:little_images?dir={prepared}&size=6", seed=0).test
    batches = list(tf.data.Dataset.range(6).batch(4).map(test.read))
    together = np.concatenate([x for x, _ in batches])
    assert np.array_equal(together, test.read(range(6))[0])


def test_classes_are_chosen_and_ordered_by_the_caller(prepared):
    spec = f"tfds:little_images?dir={prepared}&size=6&classes=cat,ant&per_class=4&validation=0"
    splits = catalog.load_data(spec, seed=0)
    assert splits.classes == ("cat", "ant")
    assert np.bincount(splits.train.labels).tolist() == [4, 4]
    assert np.bincount(splits.test.labels).tolist() == [2, 2]
    assert splits.validation is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tfds:little_imagse?dir={}&size=6", "Did you mean 'little_images'"),
        ("tfds:little_numbers?dir={}", "must be a data set of labelled images"),
        ("tfds:little_images?dir={}", "`size` must be given"),
        ("tfds:little_images?dir={}/other&size=6", "tfds build little_images"),
        ("tfds:little_images?dir={}&size=6&classes=ant,cow", "Received: 'cow'"),
    ],
)
def test_what_cannot_be_read_is_refused(prepared, spec, message):
    with pytest.raises(UserError, match=message):
        catalog.load_data(spec.format(prepared), seed=0)
