"""A fully connected network whose gradients are the chain rule written out by hand, without a tape.

    python -m recipes run backprop
    python -m recipes run backprop --layers=100,500,250,10 --data='random?shape=100&classes=10'

Test accuracy on `digits`, mean of seeds 0 to 4: 0.977, of `mlp` on the same splits 0.983; 11
to 16 seconds a seed on 2 busy cores.
"""

import dataclasses
import math

import keras
import tensorflow as tf

import tfbp

# Each activation's derivative, from its output a = f(z).
DERIVATIVES = {
    "sigmoid": lambda a: a * (1 - a),
    "tanh": lambda a: 1 - tf.square(a),
    "relu": lambda a: tf.cast(a > 0, a.dtype),
}


@dataclasses.dataclass(frozen=True)
class Config(tfbp.Config):
    data: str = tfbp.field("digits", "images or vectors with labels")
    layers: tuple[int, ...] = tfbp.field((784, 128, 10), "inputs, hidden units…, classes", low=1)
    activation: str = tfbp.field("sigmoid", "of the hidden layers", choices=tuple(DERIVATIVES))
    class_weights: str = tfbp.field(
        "none", "of the loss; balanced: rare classes count more", choices=("none", "balanced")
    )
    precision: str = tfbp.field("float32", "of its own gradients", choices=("float32",))
    learning_rate: float = tfbp.field(0.5, "learning rate of SGD", low=1e-8, high=100)
    epochs: int = tfbp.field(30, "passes over the training examples", low=1)


class Backprop(keras.Model):
    """Dense layers with softmax cross-entropy, trained by its own backward pass."""

    def gradients(
        self, x: tf.Tensor, y: tf.Tensor, weight: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        """Returns (logits, loss per example, gradients) of the weighted mean loss.

        With a_0 = x, z_l = a_{l-1} W_l + b_l and a_l = f(z_l), the error δ_l = ∂L/∂z_l goes
        backwards by the chain rule (Rumelhart, Hinton & Williams 1986, eqs. 4 to 7):
        δ_last = softmax(z_last) - onehot(y), δ_l = (δ_{l+1} W_{l+1}ᵀ) ⊙ f'(z_l); then
        ∂L/∂W_l = a_{l-1}ᵀ δ_l and ∂L/∂b_l = Σ δ_l over the batch.

        Args:
            x: inputs [batch, …]; y: int64 labels [batch]; weight: float32 [batch].

        Returns:
            Gradients in the order kernel, bias of each layer.
        """
        dense = [layer for layer in self.layers if isinstance(layer, keras.layers.Dense)]
        activations = [self.flatten(x)]
        for layer in dense:
            z = activations[-1] @ layer.kernel + layer.bias
            activations.append(layer.activation(z))
        logits = activations.pop()

        target = tf.one_hot(y, logits.shape[-1], dtype=logits.dtype)
        losses = -tf.reduce_sum(target * tf.nn.log_softmax(logits), axis=1)
        weight = tf.cast(weight, logits.dtype)[:, tf.newaxis]
        delta = weight * (tf.nn.softmax(logits) - target) / tf.cast(tf.shape(y)[0], logits.dtype)
        gradients: list[tf.Tensor] = []
        for layer, a in zip(reversed(dense), reversed(activations), strict=True):
            gradients = [tf.matmul(a, delta, transpose_a=True), tf.reduce_sum(delta, 0), *gradients]
            if layer is not dense[0]:
                delta = tf.matmul(delta, layer.kernel, transpose_b=True) * self.derivative(a)
        return logits, losses, gradients

    def train_step(self, data: tuple[tf.Tensor, ...]) -> dict[str, tf.Tensor]:
        x, y, weight = data
        logits, losses, gradients = self.gradients(x, y, weight)
        # tf.distribute sums the replicas' gradients, and the loss is their mean.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        gradients = [gradient / replicas for gradient in gradients]
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        self.metrics[0].update_state(losses, sample_weight=weight)
        return self.compute_metrics(x, y, logits)


def data(config: Config) -> tfbp.Splits:
    if len(config.layers) < 2:
        raise tfbp.UserError(
            f"`layers` must be at least inputs and classes. Received: {config.layers}."
        )
    return tfbp.load_data(
        config.data,
        seed=config.seed,
        size=math.isqrt(config.layers[0]),
        channels=1,
        on_bad_example=config.on_bad_example,
    )


def task(config: Config, splits: tfbp.Splits) -> tfbp.Task:
    weights = None if config.class_weights == "none" else config.class_weights
    return tfbp.Classification(splits.classes, class_weights=weights)


def model(config: Config, splits: tfbp.Splits) -> keras.Model:
    shape = splits.train.spec[0].shape
    if shape.num_elements() != config.layers[0]:
        raise tfbp.UserError(
            f"`layers` must begin with the {shape.num_elements()} values of an example. "
            f"Received: {config.layers}."
        )
    inputs = keras.Input(shape)
    flat = keras.Sequential(name="flatten")
    if len(shape) == 3:  # images, 0 to 255
        flat.add(keras.layers.Rescaling(1 / 255))
    flat.add(keras.layers.Flatten())
    x = flat(inputs)
    *hidden, classes = config.layers[1:]
    for number, units in enumerate(hidden, start=1):
        x = keras.layers.Dense(units, activation=config.activation, name=f"dense_{number}")(x)
    network = Backprop(inputs, keras.layers.Dense(classes, name="logits")(x), name="backprop")
    network.flatten, network.derivative = flat, DERIVATIVES[config.activation]
    return tfbp.load_weights(network, config.weights)


def phases(config: Config) -> list[tfbp.Phase]:
    return [
        tfbp.Phase(
            "fit",
            trainable=".*",
            epochs=config.epochs,
            learning_rate=config.learning_rate,
            optimizer="sgd",
        )
    ]
