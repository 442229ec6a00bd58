"""What Keras keeps to itself: the one file that uses its private names.

Each function says why it is needed and which public API is missing. All were seen on Keras 3.15.1.
`tests/test_house.py` lists the private names and looks each of them up in the installed Keras, so
that a new version of Keras is a matter of this file alone.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src.random.seed_generator import global_seed_generator
from keras.src.saving.serialization_lib import SafeModeScope

# Attributes of Keras's callbacks that change while training. Those with an underscore have no
# public counterpart, and a callback that starts without them saves or logs at other steps.
_SAVING = ("best", "_batches_seen_since_last_saving", "_last_batch_seen")
CALLBACK_STATE: dict[type[keras.callbacks.Callback], tuple[str, ...]] = {
    keras.callbacks.EarlyStopping: ("wait", "best", "best_epoch", "stopped_epoch"),
    keras.callbacks.History: ("history", "epoch"),
    keras.callbacks.ModelCheckpoint: _SAVING,
    keras.callbacks.OrbaxCheckpoint: (*_SAVING, "_total_batches_seen"),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
    keras.callbacks.TensorBoard: ("_global_train_batch", "_global_test_batch"),
}


# --- Layers inside layers ---


def all_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns a layer and all layers inside it, at any depth, each once, the outer ones first.

    Public `Model.layers` does not enter layers that consist of others, such as Bidirectional or a
    transformer's block, and other layers have no such property.
    """
    return layer._flatten_layers()


def sublayers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns the layers directly inside a layer, whichever attribute holds them.

    Missing as in `all_layers`.
    """
    return layer._flatten_layers(include_self=False, recursive=False)


def nested_models(model: keras.Model) -> list[keras.Model]:
    """Returns the models inside a model, at any depth, also those that a layer holds."""
    return [each for each in all_layers(model)[1:] if isinstance(each, keras.Model)]


# --- The graph of a model ---


@dataclasses.dataclass(frozen=True, eq=False)
class SymbolicCall:
    """A call of a layer or operation in a model's graph.

    Attributes:
        operation: what is called.
        args, kwargs: what it is called with: any structures, `keras.KerasTensor` in them.
        outputs: the tensors that it makes.
    """

    operation: keras.Operation
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: Sequence[keras.KerasTensor]

    @property
    def inputs(self) -> list[keras.KerasTensor]:
        """The tensors among the arguments; a model's own input has none."""
        given = keras.tree.flatten((self.args, self.kwargs))
        return [each for each in given if isinstance(each, keras.KerasTensor)]


def graph_of(operation: keras.Operation) -> keras.Function | None:
    """Returns the graph of a functional or sequential model; None: it has none.

    A functional model is its graph. A sequential one keeps it, built, in a private attribute.
    """
    if isinstance(operation, keras.Sequential):
        return operation._functional
    return operation if isinstance(operation, keras.Function) else None


def graph_calls(graph: keras.Function) -> Iterator[SymbolicCall]:
    """Yields the calls of a graph in the order in which Keras runs them: greatest depth first.

    Public `Function.operations` lists each layer once, and says neither how often it is called nor
    on what.
    """
    for _, nodes in sorted(graph._nodes_by_depth.items(), reverse=True):
        for node in nodes:
            given = node.arguments
            yield SymbolicCall(node.operation, given.args, given.kwargs, node.outputs)


def graph_ends(graph: keras.Function) -> dict[str, Any]:
    """Returns the structures of tensors that a graph takes ("inputs") and returns ("outputs").

    Public `input` and `output` of a `keras.Function` that is no model are those of its calls.
    """
    return {"inputs": graph._inputs_struct, "outputs": graph._outputs_struct}


def standardized(model: keras.Function, inputs: Any) -> list[tf.Tensor]:
    """Returns the inputs of a functional model as its layers get them: flat, cast and reshaped.

    Keras does so on each call. Running a part of a model needs it apart from the call.
    """
    return model._standardize_inputs(inputs)


def producer(tensor: keras.KerasTensor) -> keras.Operation | None:
    """Returns the layer or operation that made a symbolic tensor; None: there is none.

    Public `layer.output` leads from a layer to its tensor, nothing leads back.
    """
    history = getattr(tensor, "_keras_history", None)
    return history.operation if history else None


def mask_of(tensor: Any) -> tf.Tensor | None:
    """Returns the mask that Keras has attached to a tensor.

    Public `compute_mask` computes what a layer would attach, and does not say what is there.
    """
    return getattr(tensor, "_keras_mask", None)


def set_mask(tensor: tf.Tensor, mask: tf.Tensor) -> None:
    """Attaches a mask to a tensor, where the layers that take it will look for one."""
    tensor._keras_mask = mask


# --- Variables ---


def global_seed() -> keras.Variable:
    """Returns the state of the generator that layers without a seed of their own draw from.

    Public `keras.utils.set_random_seed` starts it anew, nothing reads it.
    """
    return global_seed_generator().state


def kernel_name(layer: keras.layers.Layer) -> str:
    """Returns the attribute of an adaptable layer that holds its stored kernel.

    Public `kernel` of a layer with adapters is kernel and adapters together, rounded to the dtype
    that the layer computes in.
    """
    return "_embeddings" if isinstance(layer, keras.layers.Embedding) else "_kernel"


@contextlib.contextmanager
def without_variables(
    layer: keras.layers.Layer, variables: Sequence[keras.Variable]
) -> Iterator[None]:
    """Within it, variables of a layer do not count as the layer's, so that they are not saved.

    Keras takes a variable from a layer by `del` alone, which collects garbage each time: that takes
    a third of a second.
    """
    trainable = [variable.trainable for variable in variables]
    for variable in variables:
        layer._untrack_variable(variable)
    try:
        yield
    finally:
        layer._tracker.unlock()
        for variable, value in zip(variables, trainable, strict=True):
            # Keras would count a frozen one among the statistics, which it never trains again.
            variable.trainable = True
            layer._track_variable(variable)
            variable.trainable = value
        layer._tracker.lock()


@contextlib.contextmanager
def in_float64(model: keras.Model) -> Iterator[None]:
    """Within it a model, and its compiled loss, have copies of their variables and compute in
    float64.

    Public `dtype_policy` changes what a layer computes in; a variable's dtype, and that of a loss
    that is compiled, are fixed.
    """
    changes = [(layer, "dtype_policy", "float64") for layer in all_layers(model)]
    for variable in model.variables:
        if variable.value.dtype.is_floating:
            copy = tf.Variable(tf.cast(variable.value, tf.float64))
            changes += [(variable, "_value", copy), (variable, "_dtype", "float64")]
    losses = model._compile_loss
    for each in [losses, *(entry.loss for entry in losses._flat_losses)] if losses else ():
        changes.append((each, "_dtype", "float64"))
    before = [getattr(owner, name) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for (owner, name, _), value in zip(changes, before, strict=True):
            setattr(owner, name, value)


# --- Optimizers ---


class GradientsAreSums:
    """Before a Keras optimizer, as a mixin: it takes gradients that are sums over the replicas.

    Keras sums them inside `apply`, and no argument says that they have been summed.

    Attributes:
        knows_sums: whether Keras has asked for its sum, and was given the gradients as they are.
    """

    knows_sums = False

    def _all_reduce_sum_gradients(self, grads_and_vars: list[tuple]) -> list[tuple]:
        self.knows_sums = True
        return grads_and_vars


def save_with_optimizer(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
    """Makes a compiled model that is saved name another optimizer than the one it trains with.

    Public `Model.get_compile_config` could be overridden in a class, but the class is the user's.
    """
    model._compile_config.config["optimizer"] = optimizer


def trained_variables(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Returns the model's variables that an optimizer was built with.

    Public `variables` are the optimizer's own.
    """
    return optimizer._trainable_variables


def variable_index(optimizer: keras.optimizers.Optimizer, variable: Any) -> int:
    """Returns the position of a variable among `trained_variables`.

    `update_step` is given TensorFlow's variable, or one replica's part of it, which only the
    optimizer can tell.
    """
    return optimizer._get_variable_index(variable)


# --- Files ---


def load_safely(file: str | os.PathLike[str]) -> keras.Model:
    """Loads a model without its compilation, and never runs code that the file brings.

    Public `load_model(safe_mode=True)` gives way where the program has switched Keras's safe mode
    off for files of its own, by `keras.config.enable_unsafe_deserialization`.

    Raises:
        Exception: of whatever class, what Keras raises where the file holds a Lambda layer or a
            class that is not known here.
    """
    with SafeModeScope(True):
        return keras.models.load_model(file, compile=False, safe_mode=True)
