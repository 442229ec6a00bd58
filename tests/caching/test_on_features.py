import keras
import models
import numpy as np
import pytest
import tensorflow as tf

from tfbp.caching.prefix import find
from tfbp.data.examples import Examples
from tfbp.modeling import freezing, keras_graph
from tfbp.training import batches, loop, optimizer
from tfbp.training.phase import Phase
from tfbp.workers import strategy as strategies

IMAGES = np.random.default_rng(0).uniform(0, 255, (12, 8, 8, 3)).astype(np.float32)
Y = np.arange(12) % 3


def network():
    return models.classifier(models.backbone(), keras.layers.Dropout(0.5))


def compiled(model):
    """Freezes all but the head, and returns how."""
    frozen = freezing.freeze(model, "head")
    phase = Phase("fit", "head", epochs=5, learning_rate=0.01)
    model.compile(
        optimizer.build(phase, 15, frozen),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        auto_scale_loss=False,
    )
    return frozen


@pytest.mark.parametrize("name", ["one", "mirrored"])
def test_the_loop_trains_on_features_and_what_watches_sees_the_whole_model(name):
    strategy = strategies.resolve(name)

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(self.model)

        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 2

    def run(cached):
        keras.utils.set_random_seed(4)
        with strategy.scope():
            model = network()
            frozen = compiled(model)
        learner, x = model, IMAGES
        if cached:
            prefix = find(model, frozen)
            learner, x = prefix.training_model(model), prefix.features(IMAGES)[0].numpy()
        examples = Examples.from_arrays(x, Y)
        loop.build(learner, examples, strategy)
        done = loop.train(
            learner,
            examples,
            strategy,
            loop.Hooks(keras.callbacks.CallbackList([Watch()], model=model)),
            batches.Batching(5, seed=1),
            epochs=5,
        )
        assert done == 9
        assert all(watched is model for watched in seen)
        return model

    ends = []
    for cached in (False, True):
        seen = []
        model = run(cached)
        assert seen
        metrics = {name: float(value) for name, value in model.get_metrics_result().items()}
        ends.append((metrics, model.get_weights(), model.optimizer.iterations.numpy()))
    (metrics, weights, steps), (other_metrics, other_weights, other_steps) = ends
    assert steps == other_steps == 9
    assert metrics == pytest.approx(other_metrics, rel=1e-6)
    for one, other in zip(weights, other_weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_after_a_phase_the_model_is_its_own_as_before(tmp_path):
    model = network()
    owners = [id(layer) for layer in keras_graph.all_layers(model)]
    freezing.freeze(model, "head")
    config = model.get_config()
    prefix = find(model, compiled(model))
    learner, rows = prefix.training_model(model), prefix.features(IMAGES)
    examples, strategy = Examples.from_arrays(rows[0].numpy(), Y), tf.distribute.get_strategy()
    loop.build(learner, examples, strategy)
    hooks = loop.Hooks(keras.callbacks.CallbackList([], model=model))
    loop.train(learner, examples, strategy, hooks, batches.Batching(6, seed=1), epochs=1)
    assert model.get_config() == config
    assert [id(layer) for layer in keras_graph.all_layers(model)] == owners
    assert model.losses == []
    answers = model.predict(IMAGES, verbose=0)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.save(tmp_path / "model.keras")
    model.export(tmp_path / "export", verbose=False)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(IMAGES, verbose=0), answers)
    served = tf.saved_model.load(tmp_path / "export")
    np.testing.assert_allclose(served.serve(IMAGES), answers, rtol=1e-5, atol=1e-6)
    model.fit(IMAGES, Y, verbose=0)
    assert find(model, freezing.freeze(model, "head")) is not None
