import keras
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tfbp.reporting.tensorboard import TensorBoard

VECTOR = tf.TensorSpec((3,), tf.float32)
NAMED = {"b": VECTOR, "a": tf.TensorSpec((2,), tf.float32)}


class Subclass(keras.Model):
    def __init__(self):
        super().__init__()
        self.only = keras.layers.Dense(2)

    def call(self, x):
        return self.only(x)


def functional():
    inputs = keras.Input((3,), name="features")
    return keras.Model(inputs, keras.layers.Dense(2)(inputs))


def subclass():
    model = Subclass()
    model(tf.zeros([1, 3]))
    return model


def two_inputs():
    inputs = [keras.Input((3,)), keras.Input((3,))]
    return keras.Model(inputs, keras.layers.Add()(inputs))


def named():
    inputs = {"b": keras.Input((3,), name="b"), "a": keras.Input((2,), name="a")}
    both = keras.layers.Concatenate()([inputs["b"], inputs["a"]])
    return keras.Model(inputs, keras.layers.Dense(2)(both))


def events(folder):
    return EventAccumulator(str(folder)).Reload()


def test_each_epoch_is_a_scalar_of_its_split(tmp_path):
    board = TensorBoard(tmp_path, VECTOR)
    board.set_model(functional())
    board.on_train_begin()
    board.on_epoch_end(0, {"loss": 2.0, "val_loss": 3.0})
    board.on_epoch_end(1, {"loss": 1.0, "val_loss": 2.5})
    board.on_train_end()
    for split, values in (("train", [2.0, 1.0]), ("validation", [3.0, 2.5])):
        tensors = events(tmp_path / split).Tensors("loss")
        assert [event.step for event in tensors] == [1, 2]
        assert [tf.make_ndarray(event.tensor_proto) for event in tensors] == values


@pytest.mark.parametrize(
    ("build", "x"),
    [(functional, VECTOR), (subclass, VECTOR), (two_inputs, (VECTOR, VECTOR)), (named, NAMED)],
)
def test_the_graph_of_the_model_is_there(tmp_path, build, x):
    board = TensorBoard(tmp_path, x)
    board.set_model(build())
    board.on_train_begin()
    board.on_train_end()
    operations = {node.op for node in events(tmp_path / "train").Graph().node}
    assert operations & {"MatMul", "AddV2"}
