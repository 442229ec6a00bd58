"""Low-rank adapters (LoRA): Keras's own, frozen rightly in phases, and merged where a model leaves.

model = tfbp.add_lora(model, "vgg16/.*", rank=4)
phase = tfbp.Phase("adapt", trainable="vgg16/.*|head", epochs=5, learning_rate=1e-3)
"""

import contextlib
import itertools
from collections.abc import Iterator

import keras

from tfbp.errors import mistake
from tfbp.modeling import keras_graph, paths

ADAPTABLE = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.Embedding,
)


def add_lora(model: keras.Model, layers: str, rank: int, *, biases: bool = False) -> keras.Model:
    """Gives layers adapters: their kernel W [..., n] becomes W + AB (Hu et al. 2022, eq. 3).

    A [..., rank] starts at random, drawn from Keras's global seed, and B [rank, n] at zero, both
    float32, so that the model answers as before. In a phase whose pattern matches such a layer A
    and B learn and W stays what it is. Exports and the saved model of a run hold W + AB alone.

    Args:
        model: a built model, which is changed. Inside `strategy.scope()` where there are several
            devices, and before `tfbp.fit`.
        layers: regular expression, matched against whole layer paths. Of a layer that consists of
            others, such as keras.layers.MultiHeadAttention, each one gets adapters.
        rank: columns of A, at least 1.
        biases: whether phases train the biases of these layers too.

    Returns:
        The same model.

    Raises:
        tfbp.UserError: a rank below 1; the pattern matches no layer, one that has adapters already,
            or one that Keras cannot adapt. The model is then as it was.
    """
    if not (isinstance(rank, int) and rank >= 1):
        raise mistake("rank", "must be a whole number of at least 1", rank)
    matched = paths.select(model, layers, "layers")
    inside = {path: keras_graph.all_layers(layer) for path, layer in matched.items()}
    if twice := [path for path, parts in inside.items() if any(map(adapted, parts))]:
        raise mistake("layers", "must not match layers that have adapters already", twice)
    adaptable = {path: list(filter(_adaptable, parts)) for path, parts in inside.items()}
    if unfit := [path for path, layer in matched.items() if not _covers(adaptable[path], layer)]:
        raise mistake(
            "layers",
            "must match no other layers than those that Keras can adapt (Dense, EinsumDense, "
            "Conv1D to Conv3D and Embedding, not quantized and without a constraint)",
            unfit,
        )
    for layer in itertools.chain(*adaptable.values()):
        layer.enable_lora(rank)
        layer.lora_biases = biases
    return model


def adapted(layer: keras.layers.Layer) -> bool:
    """Tells whether the layer itself, not one inside it, has adapters."""
    return getattr(layer, "lora_enabled", False)


def learning(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Returns the variables of an adapted layer that learn: A, B and, with `biases`, the bias."""
    bias = getattr(layer, "bias", None) if getattr(layer, "lora_biases", False) else None
    adapters = [getattr(layer, name) for name in _names(layer)]
    return adapters if bias is None else [*adapters, bias]


@contextlib.contextmanager
def merged(model: keras.Model) -> Iterator[None]:
    """Within it, the model has no adapters: its kernels are W + AB, rounded to the dtype of W.

    Graphs that were traced before must not run in it. Afterwards the model is, bit for bit, what
    it was.
    """
    with contextlib.ExitStack() as stack:
        for layer in filter(adapted, keras_graph.all_layers(model)):
            stack.enter_context(_merged(layer))
        yield


@contextlib.contextmanager
def _merged(layer: keras.layers.Layer) -> Iterator[None]:
    kernel = getattr(layer, keras_graph.kernel_name(layer))
    a, b = adapters = [getattr(layer, name) for name in _names(layer)]
    before = keras.ops.copy(kernel.value)
    rank, alpha = layer.lora_rank, layer.lora_alpha
    kernel.assign(keras.ops.cast(before, a.dtype) + alpha / rank * keras.ops.matmul(a, b))
    # Without them a saved configuration has no adapters, which would be zero when loaded.
    layer.lora_enabled, layer.lora_rank, layer.lora_alpha = False, None, None
    try:
        with keras_graph.without_variables(layer, adapters):
            yield
    finally:
        kernel.assign(before)
        layer.lora_enabled, layer.lora_rank, layer.lora_alpha = True, rank, alpha


def _adaptable(layer: keras.layers.Layer) -> bool:
    return (
        isinstance(layer, ADAPTABLE)
        and layer.quantization_mode is None
        and not getattr(layer, f"{_kernel(layer)}_constraint")
    )


def _covers(parts: list[keras.layers.Layer], layer: keras.layers.Layer) -> bool:
    covered = {id(variable) for part in parts for variable in part.weights}
    return all(id(variable) in covered for variable in layer.weights)


def _kernel(layer: keras.layers.Layer) -> str:
    return keras_graph.kernel_name(layer).removeprefix("_")


def _names(layer: keras.layers.Layer) -> tuple[str, str]:
    return f"lora_{_kernel(layer)}_a", f"lora_{_kernel(layer)}_b"
