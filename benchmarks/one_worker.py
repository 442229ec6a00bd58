"""One process of `benchmarks/workers.py`, whose cluster TF_CONFIG names: prints what it measured.

python benchmarks/one_worker.py '{"trained": "head", "images": 256, "batch_size": 128, …}'
"""

import json
import sys
import time

import keras
import numpy as np
import tensorflow as tf
from paced import Pace

import tfbp
from tfbp.data.examples import Examples
from tfbp.data.splits import Splits
from tfbp.modeling import backbones, heads
from tfbp.tasks.classification import Classification
from tfbp.training.phase import Phase
from tfbp.workers import strategy as strategies
from tfbp.workers import workers

CLASSES = tuple("abcdefghij")
TRAINED = {"head": "head.*", "LoRA": "vgg16/.*|head.*", "everything": ".*"}
RANK = 4
# The gradients are as in earnest, and what is random is frozen.
ALLOW = ("random-frozen",)


def measure(trained: str, images: int, batch_size: int, epochs: int) -> dict[str, float]:
    """Trains VGG16 on random images with what belongs to this worker.

    Args:
        trained: "head", "LoRA" or "everything".
        images, batch_size: of all workers together.
        epochs: the first one is not counted.
    """
    strategy = strategies.resolve("auto")
    numbers = np.random.default_rng(0)
    x = numbers.integers(0, 256, (images, 32, 32, 3), np.uint8)
    splits = Splits(Examples.from_arrays(x, np.arange(images) % len(CLASSES)), classes=CLASSES)
    keras.utils.set_random_seed(0)
    with strategy.scope():
        backbone = backbones.load_backbone(keras.applications.VGG16, (32, 32, 3), "random", seed=0)
        model = heads.swap_head(backbone, classes=CLASSES)
        if trained == "LoRA":
            model = tfbp.add_lora(model, "vgg16/.*", rank=RANK)
    pace, phase = Pace(), Phase("fit", TRAINED[trained], epochs=epochs, learning_rate=1e-5)
    settings = tfbp.Settings(batch_size=batch_size, cache=False, allow=ALLOW)
    task = Classification(CLASSES)
    tfbp.fit(model, splits, task, phase, settings, strategy=strategy, callbacks=[pace])
    size = sum(variable.numpy().nbytes for variable in model.trainable_variables)
    return {
        "images a second": images / pace.seconds,
        "seconds a step": pace.seconds * batch_size / images,
        "gradient, MB": size / 1e6,
        "all-reduce, s": _all_reduce(strategy, size // 4),
    }


def _all_reduce(strategy: tf.distribute.Strategy, count: int, times: int = 10) -> float:
    """Returns the seconds that the sum of so many floats over the workers takes, the median."""
    if workers.of(strategy).count == 1:
        return 0.0

    @tf.function
    def total():
        def one():
            own = tf.zeros([count]) + tf.random.uniform([])
            return tf.distribute.get_replica_context().all_reduce("SUM", own)[0]

        return strategy.experimental_local_results(strategy.run(one))[0]

    total()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        total().numpy()
        taken.append(time.perf_counter() - began)
    return float(np.median(taken))


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
