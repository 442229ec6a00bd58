"""The benchmarks of speed, tiny: what they compare is the same work, and rightly counted."""

import subprocess

import keras
import numpy as np
import pytest
import tensorflow as tf

pytestmark = pytest.mark.slow


def test_small_steps_end_alike_on_all_sides(script):
    small_steps = script("small_steps")
    outcomes = small_steps.measure(small_steps.Flags(turns=1, steps=150, batch_size=10))
    # Two whole epochs of 100 steps, from the same start, in another order each.
    slopes = [each[0]["w at the end"] for each in outcomes.values()]
    assert np.ptp(slopes) < 0.02
    assert 1 < slopes[0] < 3
    for (each,) in outcomes.values():
        assert each["steps a second"] * each["seconds"] == pytest.approx(200)


def test_both_sides_of_overhead_report_epochs_within_the_call(script):
    overhead = script("overhead")
    settings = overhead.Flags(turns=1, images=40, batch_size=20, epochs=3, filters=(2,))
    for (each,) in overhead.measure(settings).values():
        assert 0 < 2 * each["epoch, s"] < each["whole call, s"]


def test_both_sides_of_input_read_every_file_once_and_ours_in_order(script, tmp_path):
    benchmark = script("input")
    settings = benchmark.Flags(turns=1, images=30, size=8, batch_size=4)
    assert benchmark._fill(settings, tmp_path) == 30
    outcomes = benchmark.measure(settings, str(tmp_path))
    assert outcomes["tfbp"][0]["labels as ordered"] == 1
    assert all(each[0][benchmark.RATE] > 0 for each in outcomes.values())


def test_input_takes_a_folder_of_ones_own(script, tmp_path):
    benchmark = script("input")
    for label in range(10):
        folder = tmp_path / "from" / "train" / f"class {label}"
        folder.mkdir(parents=True)
        for number in range(3):
            (folder / f"{number}.jpg").write_bytes(b"JPEG")
    (tmp_path / "to").mkdir()
    settings = benchmark.Flags(data=f"folder:{tmp_path / 'from'}", images=20)
    assert benchmark._fill(settings, tmp_path / "to") == 20
    assert sorted(path.name for path in (tmp_path / "to" / "class 3").iterdir()) == [
        "0.jpg",
        "1.jpg",
    ]


def test_growth_tells_a_line_from_a_curve_and_flat_memory_from_growing(script):
    growth = script("growth")
    sizes = np.array([500, 1000, 2000, 4000, 8000])

    def found(seconds, memory):
        outcomes = {
            str(size): [{"seconds": taken, "peak memory, MB": peak}]
            for size, taken, peak in zip(sizes, seconds, memory, strict=True)
        }
        return growth.goals(tuple(sizes), outcomes)

    far, start, each, memory = found(4 + 0.01 * sizes, [1000, 1000, 1010, 1040, 1080])
    assert far.value == pytest.approx(0, abs=1e-9)
    assert (start.value, each.value) == (pytest.approx(4), pytest.approx(10))
    assert memory.value == 1.08
    assert far.row()[-1] == memory.row()[-1] == "yes"
    far, *_, memory = found(1e-6 * sizes**2.0, 900 + sizes)
    assert far.row()[-1] == memory.row()[-1] == "no"


def test_the_random_text_has_the_vocabulary_and_the_length_that_are_asked_for(script):
    benchmark = script("language_model")
    splits = benchmark.random_text(benchmark.Flags(words=1000, vocabulary=100))
    tokens, _ = splits.train.read(tf.range(splits.train.size))
    assert splits.vocabulary.size == 100
    assert tokens.shape == (999 // 35, 35)
    assert set(np.unique(tokens)) == set(range(1, 100))  # each word, and none unknown


def test_the_floor_of_the_language_model_counts_every_product_once(script, monkeypatch):
    benchmark = script("language_model")
    monkeypatch.setattr(benchmark, "_product", lambda rows, inner, columns: rows * inner * columns)
    settings = benchmark.Flags(vocabulary=50, units=8)
    config, rows = settings.config, 32 * 35
    # Keras's own counts of weights: a product with each kernel, and two for its gradients.
    model = benchmark._model(settings, benchmark.random_text(settings))
    kernels = sum(
        variable.shape.num_elements()
        for layer in model.layers
        if not isinstance(layer, keras.layers.Embedding)
        for variable in layer.trainable_variables
        if len(variable.shape) == 2
    )
    assert config.depth == 2
    assert benchmark._floor(settings)[benchmark.RATE] == rows / (3 * rows * kernels)


def test_cached_views_are_compared_with_as_many_epochs_of_fresh_ones(script):
    views = script("views")
    settings = views.Flags(turns=1, images=100, held_out=10, epochs=2, views=1)
    images = script("vgg").load(settings)
    outcomes = views.measure(settings, images)
    assert list(outcomes) == ["fresh views", "1 cached views", "not augmented"]
    accuracy, faster = views.goals(settings, outcomes, images)
    assert accuracy.most > 0
    assert faster.value > 0


def test_images_are_drawn_from_both_parts_and_a_pass_is_the_models_own(script):
    vgg = script("vgg")
    images = vgg.load(vgg.Flags(images=30, held_out=20))
    assert images.x.shape == (30, 32, 32, 3)
    assert images.held_out_x.shape == (20, 32, 32, 3)
    assert not {row.tobytes() for row in images.x} & {row.tobytes() for row in images.held_out_x}
    assert images.splits().train.size == 30
    pixels = keras.Input((32, 32, 3))
    flat = keras.layers.Dense(10)(keras.layers.Flatten()(pixels))
    model = keras.Model(pixels, flat)
    answers, seconds = vgg.forward(model, images.x)
    np.testing.assert_allclose(answers, model.predict(images.x, verbose=0), rtol=1e-4, atol=1e-3)
    assert seconds > 0
    right = model.predict(images.held_out_x, verbose=0).argmax(1) == images.held_out_y
    assert images.accuracy(model) == right.mean()


def test_accuracies_are_equal_within_two_standard_errors(script):
    vgg = script("vgg")
    images = vgg.load(vgg.Flags(images=10, held_out=100))

    def kept(ours, theirs):
        outcomes = {"a": [{"accuracy": ours}], "b": [{"accuracy": theirs}]}
        return vgg.equal_accuracy(outcomes, "a", "b", images).row()[-1]

    # At 0.5 a share of 100 has a standard error of 0.05, the difference of two 0.0707.
    assert kept(0.5, 0.5 + 0.14) == "yes"
    assert kept(0.5, 0.5 + 0.15) == "no"


def test_without_pytorch_its_sides_are_not_there(script, tmp_path):
    without = tmp_path / "python"
    without.write_text("#!/bin/sh\nexit 1\n")
    without.chmod(0o755)
    torch_sides = script("torch_sides")
    assert torch_sides.run("head_swap", str(without)) is None
    assert torch_sides.version(str(without)) is None


def test_the_list_is_timed_and_a_run_that_begins_late_is_told(script):
    start = script("start")
    assert start._list()["seconds"] > 0
    goals = start.goals(
        {
            "list": [{"seconds": 0.2}],
            "run mlp": [{"seconds": 9.0, "over, s": 2.5}],
            "run vgg16": [{"seconds": 9.0, "over, s": 3.5}],
        }
    )
    assert [goal.row()[-1] for goal in goals] == ["yes", "yes", "no"]


def test_a_side_of_pytorch_that_fails_is_an_error(script, tmp_path):
    failing = tmp_path / "python"
    failing.write_text('#!/bin/sh\ntest "$1" = -c\n')
    failing.chmod(0o755)
    with pytest.raises(subprocess.CalledProcessError):
        script("torch_sides").run("head_swap", str(failing), x=np.zeros(1))
