import keras
import numpy as np

from tfbp.caching.calls import calls_of

layers = keras.layers
ROWS = np.random.default_rng(0).normal(0, 1, (6, 5)).astype(np.float32)


def run(calls, x, training):
    values = {calls.given: x}
    for call in calls:
        call.run(values, training)
    return calls.packed(values[edge] for edge in calls.outputs)


def names(calls):
    return [call.operation.name for call in calls if hasattr(call.operation, "name")]


def nested():
    """Returns a model in which a shared one is called twice, and has a sequential one inside."""
    keras.utils.set_random_seed(1)
    stack = [keras.Input((5,)), layers.Dense(5, name="a"), layers.Dropout(0.5, name="drop")]
    stack = keras.Sequential(stack, name="stack")
    x = keras.Input((5,))
    shared = keras.Model(x, layers.Add(name="sum")([stack(x), x]), name="shared")
    x = keras.Input((5,), name="row")
    y = shared(shared(x, training=False))
    outputs = {"twice": y, "last": layers.Dense(2, name="last")(y)}
    return keras.Model({"row": x}, outputs)


def test_the_calls_answer_like_the_model_and_draw_the_same_numbers():
    model = nested()
    expected = [model({"row": ROWS}, training=training) for training in (True, False, True)]
    calls = calls_of(model := nested())
    assert names(calls) == ["a", "drop", "sum"] * 2 + ["last"]
    assert all(len(call.inputs) >= 1 for call in calls)
    for training, answers in zip((True, False, True), expected, strict=True):
        found = run(calls, {"row": ROWS}, training)
        assert found.keys() == answers.keys()
        for name in answers:
            np.testing.assert_array_equal(found[name], answers[name])
    assert (expected[0]["last"] != expected[2]["last"]).numpy().any()


def test_inputs_come_in_with_the_dtype_and_rank_that_a_model_has():
    inside = keras.Input((5,), dtype="float16")
    backbone = keras.Model(inside, layers.Dense(4, dtype="float16")(inside))
    rows = keras.Input((5, 1))
    model = keras.Model(rows, backbone(rows))
    assert run(calls_of(model), ROWS, False).dtype == "float16"
    np.testing.assert_array_equal(run(calls_of(model), ROWS, False), model(ROWS))


class Doubled(keras.Model):
    def call(self, inputs, **settings):
        return 2 * super().call(inputs, **settings)


def test_a_model_with_a_call_of_its_own_is_one_call():
    inside = keras.Input((5,))
    doubled = Doubled(inside, layers.Dense(4, name="inner")(inside), name="doubled")
    rows = keras.Input((5,))
    model = keras.Model(rows, doubled(rows))
    assert names(calls_of(model)) == ["doubled"]
    np.testing.assert_array_equal(run(calls_of(model), ROWS, True), model(ROWS))
    assert calls_of(doubled) is None
