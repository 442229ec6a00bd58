import pytest
import tensorflow as tf

from tfbp.errors import UserError
from tfbp.training import strategy


@pytest.mark.parametrize("name", ["auto", "one", None])
def test_without_several_gpus_the_current_strategy_is_taken(name):
    assert strategy.resolve(name) is tf.distribute.get_strategy()


def test_mirrored_spans_all_devices_of_a_kind():
    mirrored = strategy.resolve("mirrored")
    assert isinstance(mirrored, tf.distribute.MirroredStrategy)
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    assert mirrored.num_replicas_in_sync == len(devices)


def test_a_strategy_is_returned_as_it_is():
    given = tf.distribute.OneDeviceStrategy("CPU:0")
    assert strategy.resolve(given) is given


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match=r"`strategy` must be .*Did you mean 'mirrored'\?"):
        strategy.resolve("miror")
