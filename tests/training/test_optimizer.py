import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbp.errors import UserError
from tfbp.modeling import freezing
from tfbp.training import optimizer
from tfbp.training.phase import Phase
from tfbp.training.rules import KINDS
from tfbp.training.update import UPDATES_TO_DOUBLE

ONE = tf.distribute.get_strategy()
NUMBERS = np.random.default_rng(0)
START = [NUMBERS.normal(0, 1, shape).astype(np.float32) for shape in ((3, 2), (2,))]
GRADIENTS = [[NUMBERS.normal(0, 3, w.shape).astype(np.float32) for w in START] for _ in range(4)]


def apply(update, gradients=GRADIENTS):
    """Applies a list of gradients and returns the weights after each."""
    variables = [keras.Variable(weight) for weight in START]
    update.build(variables)
    found = []
    for each in gradients:
        update.apply_gradients(zip(map(tf.constant, each), variables, strict=True))
        found.append([variable.numpy() for variable in variables])
    return found


def build(steps=4, **settings):
    return optimizer.build(Phase("fit", ".*", epochs=1, **{"learning_rate": 0.1} | settings), steps)


def assert_close(ours, theirs, **tolerance):
    for one, other in zip(ours, theirs, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, **{"rtol": 1e-6} | tolerance)


def of_keras(name, rate, weight_decay):
    """Returns Keras's own optimizer, with the decay of a phase for all of its weights."""
    if name == "adamw" and not weight_decay:
        name = "adam"
    decay = {"weight_decay": weight_decay or None}
    if name == "muon":  # which decays what it trains by Adam's rule apart
        decay["adam_weight_decay"] = decay["weight_decay"]
    return KINDS[name](rate, **decay)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("name", KINDS)
def test_without_clipping_every_update_is_that_of_keras(name, weight_decay):
    ours = build(optimizer=name, weight_decay=weight_decay)
    keras_own = of_keras(name, 0.1, weight_decay)
    assert_close(apply(ours), apply(keras_own), rtol=0)


def test_weight_decay_shrinks_the_weights_by_the_rate_times_itself():
    still = [[0 * weight for weight in START]]
    found = apply(build(optimizer="sgd", weight_decay=0.3), still)
    assert_close(found, [[weight * (1 - 0.1 * 0.3) for weight in START]])


def test_clipping_is_by_the_norm_of_the_gradient_of_all_variables_together():
    weights, expected, clipped = [w.astype(np.float64) for w in START], [], 0
    gradients = [*GRADIENTS[:3], [g / 100 for g in GRADIENTS[3]]]
    found = apply(build(optimizer="sgd", clip_norm=2.0), gradients)
    for each in gradients:
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in each))
        clipped += norm > 2
        factor = min(1, 2 / norm)
        weights = [w - 0.1 * factor * g for w, g in zip(weights, each, strict=True)]
        expected.append(weights)
    assert clipped == 3
    assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_clipping_takes_the_sparse_gradient_of_an_embedding():
    table = keras.Variable(np.ones((5, 2), np.float32))
    update = build(optimizer="sgd", clip_norm=1.0, learning_rate=1.0)
    update.build([table])
    gradient = tf.IndexedSlices(tf.constant([[3.0, 0.0], [0.0, 4.0]]), tf.constant([1, 3]), [5, 2])
    update.apply_gradients([(gradient, table)])
    expected = np.ones((5, 2))
    expected[1, 0] -= 3 / 5
    expected[3, 1] -= 4 / 5
    np.testing.assert_allclose(table.numpy(), expected, rtol=1e-6)


def test_the_cosine_falls_from_the_rate_to_zero_over_the_phase():
    ones = [[np.ones_like(weight) for weight in START]] * 12
    found = apply(build(steps=10, optimizer="sgd", schedule="cosine"), ones)
    places = [START[1][0], *(step[1][0] for step in found)]
    rates = -np.diff(places)
    expected = 0.1 * (1 + np.cos(np.pi * np.minimum(np.arange(12), 10) / 10)) / 2
    np.testing.assert_allclose(rates, expected, atol=1e-6)
    assert rates[0] == pytest.approx(0.1, rel=1e-5)
    assert rates[10] == rates[11] == 0


def test_the_rate_and_the_count_of_steps_are_those_of_keras_rule():
    update = build(optimizer="sgd", learning_rate=0.5)
    apply(update)
    assert int(update.iterations) == 4
    assert float(update.learning_rate) == 0.5
    update.learning_rate = 0.25
    assert float(update.rule.learning_rate) == 0.25


# ---- clipping


@pytest.mark.parametrize(
    ("ours", "theirs"), [("clip_value", "clipvalue"), ("clip_variable_norm", "clipnorm")]
)
def test_clipping_by_value_and_by_variable_is_that_of_keras(ours, theirs):
    found = apply(build(optimizer="sgd", **{ours: 1.5}))
    assert_close(found, apply(keras.optimizers.SGD(0.1, **{theirs: 1.5})))
    assert not np.allclose(found[-1][0], apply(build(optimizer="sgd"))[-1][0])


@pytest.mark.parametrize("kind", ["clip_value", "clip_variable_norm", "clip_norm"])
def test_what_is_clipped_of_an_embedding_is_the_sum_over_a_repeated_row(kind):
    table = keras.Variable(np.zeros((4, 2), np.float32))
    update = build(optimizer="sgd", learning_rate=1.0, **{kind: 1.0})
    update.build([table])
    rows = tf.constant([[0.8, 0.0], [0.8, 0.0]])
    update.apply_gradients([(tf.IndexedSlices(rows, tf.constant([2, 2]), [4, 2]), table)])
    np.testing.assert_allclose(table.numpy(), [[0, 0], [0, 0], [-1, 0], [0, 0]], rtol=1e-6)


# ---- a rate for each layer


def network():
    """Returns a model of three layers: body/low, body/middle and head."""
    x = keras.Input((3,))
    y = keras.layers.Dense(4, name="low")(x)
    body = keras.Model(x, keras.layers.Dense(4, name="middle")(y), name="body")
    return keras.Sequential([keras.Input((3,)), body, keras.layers.Dense(2, name="head")])


def phase(rate, **settings):
    return Phase("fit", **{"trainable": ".*"} | settings, epochs=1, learning_rate=rate)


def rates(rate, **settings):
    settled = phase(rate, **settings)
    return optimizer.rates(settled, freezing.freeze(network(), settled.trainable))


def test_a_layer_has_the_rate_of_the_first_pattern_that_matches_its_path():
    found = rates({"body/low": 1e-4, "body/.*": 1e-3, "head": 1e-2})
    assert found == {"body/low": 1e-4, "body/middle": 1e-3, "head": 1e-2}
    assert rates({"body/.*": 1, ".*": 2}) == {"body/low": 1, "body/middle": 1, "head": 2}
    assert rates(0.5, trainable="head") == {"head": 0.5}


def test_layer_decay_counts_the_learning_layers_from_the_last_one():
    assert rates(8, layer_decay=0.5) == {"body/low": 2, "body/middle": 4, "head": 8}
    assert rates(8, layer_decay=0.5, trainable="head|.*/low") == {"body/low": 4, "head": 8}
    found = rates({"body/.*": 1, "head": 10}, layer_decay=0.5)
    assert found == {"body/low": 0.25, "body/middle": 0.5, "head": 10}


def test_the_rate_of_a_layer_that_consists_of_others_is_that_of_its_parts():
    attention = keras.layers.MultiHeadAttention(2, 3, name="attention")
    x = keras.Input((5, 4))
    model = keras.Model(x, keras.layers.Dense(2, name="head")(attention(x, x)))
    rate = {".*/query": 3, "attention": 2, "head": 1}
    phase = Phase("fit", ".*", epochs=1, learning_rate=rate)
    found = optimizer.rates(phase, freezing.freeze(model, ".*"))
    parts = {"query": 3, "key": 2, "value": 2, "attention_output": 2}
    assert found == {f"attention/{name}": rate for name, rate in parts.items()} | {"head": 1}


@pytest.mark.parametrize(
    ("rate", "settings", "message"),
    [
        ({"head": 1}, {}, "must have a rate for each layer that learns; none matches 'body/low'"),
        ({".*": 1, "head": 2}, {}, "must not name layers .*Received: 'head'"),
        ({"head": 1, "body/.*": 2}, {"trainable": "head"}, "must not name .*Received: 'body/"),
    ],
)
def test_rates_that_do_not_fit_the_layers_are_refused(rate, settings, message):
    with pytest.raises(UserError, match=f"`learning_rate` {message}"):
        rates(rate, **settings)


@pytest.mark.parametrize("name", KINDS)
def test_each_layer_is_updated_as_by_an_optimizer_of_its_own(name):
    model, other = network(), network()
    other.set_weights(model.get_weights())
    settled = phase(
        {"head": 0.1, ".*": 0.03}, layer_decay=0.5, weight_decay=0.2, optimizer=name, ema=0.9
    )
    update = optimizer.build(settled, 4, freezing.freeze(model, ".*"))
    update.build(model.trainable_variables)
    assert float(update.learning_rate) == pytest.approx(0.1)
    alone = {}
    for rate, part in zip((0.0075, 0.015, 0.1), ("low", "middle", "head"), strict=True):
        for variable in other.trainable_variables:
            if part in variable.path:
                alone[variable.path] = of_keras(name, rate, 0.2)
    for step in range(3):
        numbers = np.random.default_rng(step)
        gradients = [numbers.normal(0, 1, v.shape) for v in model.trainable_variables]
        gradients = [tf.constant(each, tf.float32) for each in gradients]
        update.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        for gradient, variable in zip(gradients, other.trainable_variables, strict=True):
            alone[variable.path].apply_gradients([(gradient, variable)])
        assert_close([model.get_weights()], [other.get_weights()], rtol=1e-5, atol=1e-6)


# ---- accumulation, averages, the scale of the loss


def accumulate(update, variables, gradients, shares):
    for each, share in zip(gradients, shares, strict=True):
        with update.weighing(share):
            update.apply_gradients(zip(map(tf.constant, each), variables, strict=True))
    update.update(ONE)


@pytest.mark.parametrize("clip", [{}, {"clip_norm": 2.0}, {"clip_value": 1.0}])
def test_accumulated_gradients_make_one_update_of_their_weighted_sum(clip):
    update = build(optimizer="adam", accumulate=3, schedule="cosine", **clip)
    variables = [keras.Variable(weight) for weight in START]
    update.build(variables)
    shares, found, sums = (0.5, 0.3, 0.2), [], []
    for first, count in ((0, 3), (1, 2)):  # the second one is an epoch's last, and shorter
        batches = GRADIENTS[first : first + count]
        accumulate(update, variables, batches, shares[:count])
        found.append([variable.numpy() for variable in variables])
        weighed = [[share * g for g in b] for share, b in zip(shares[:count], batches, strict=True)]
        sums.append([sum(parts) for parts in zip(*weighed, strict=True)])
    assert_close(found, apply(build(optimizer="adam", schedule="cosine", **clip), sums))
    assert int(update.iterations) == 2


def test_a_variable_without_a_gradient_stays_as_it_is():
    for settings in ({}, {"accumulate": 2}):
        update = build(optimizer="adam", weight_decay=0.1, ema=0.9, **settings)
        variables = [keras.Variable(weight) for weight in START]
        update.build(variables)
        with update.weighing(1.0):
            update.apply_gradients([(tf.ones_like(START[0]), variables[0]), (None, variables[1])])
        if settings:
            update.update(ONE)
        update.settle()
        assert (variables[0].numpy() != START[0]).all()
        np.testing.assert_array_equal(variables[1].numpy(), START[1])


def test_averages_are_those_of_keras_and_stand_in_for_the_weights_for_a_while():
    update = build(optimizer="adam", ema=0.8)
    theirs = keras.optimizers.Adam(0.1, use_ema=True, ema_momentum=0.8)
    variables, others = ([keras.Variable(weight) for weight in START] for _ in range(2))
    update.build(variables)
    with update.averaged():  # before the first update there is no average yet
        np.testing.assert_array_equal(variables[0].numpy(), START[0])
    for each in GRADIENTS:
        gradients = [tf.constant(gradient) for gradient in each]
        update.apply_gradients(zip(gradients, variables, strict=True))
        theirs.apply_gradients(zip(gradients, others, strict=True))
    weights = [variable.numpy() for variable in variables]
    assert_close([weights], [[variable.numpy() for variable in others]], rtol=0)
    theirs.finalize_variable_values(others)
    averages = [variable.numpy() for variable in others]
    with update.averaged():
        assert_close([[variable.numpy() for variable in variables]], [averages])
    assert_close([[variable.numpy() for variable in variables]], [weights], rtol=0)
    update.settle()
    assert_close([[variable.numpy() for variable in variables]], [averages])


def half():
    """Returns the update of a model that computes in float16, and its variables."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, dtype="mixed_float16")])
    model.set_weights(START)
    settled = phase(0.1, optimizer="adam")
    update = optimizer.build(settled, 4, freezing.freeze(model, ".*"))
    update.build(model.trainable_variables)
    return update, model.trainable_variables


def test_scaled_gradients_are_scaled_back_and_others_are_taken_as_they_are():
    expected = apply(build(optimizer="adam"), GRADIENTS[:2])
    for scaled in (True, False):
        update, variables = half()
        for number, each in enumerate(GRADIENTS[:2]):
            with update.weighing(1.0):
                scale = update.scale_loss(tf.constant(1.0)) if scaled else 1.0
                assert scale == (2.0**15 if scaled else 1)
                gradients = [scale * gradient for gradient in each]
                update.apply_gradients(zip(gradients, variables, strict=True))
            update.update(ONE)
            assert_close([[v.numpy() for v in variables]], [expected[number]], rtol=1e-5)


@pytest.mark.parametrize("wrong", [np.inf, np.nan])
def test_an_update_with_a_gradient_that_is_not_finite_is_left_out(wrong):
    update, variables = half()
    spoilt = [GRADIENTS[0][0], np.array([1, wrong], np.float32)]
    scales = []
    for each in (spoilt, spoilt, GRADIENTS[0], GRADIENTS[1], GRADIENTS[2]):
        accumulate(update, variables, [each], [1.0])
        scales.append(float(update.variables[-2]))
        if each is spoilt:
            np.testing.assert_array_equal(variables[0].numpy(), START[0])
            assert int(update.variables[-1]) == 0
            update.variables[-1].assign(UPDATES_TO_DOUBLE - 2)  # finite updates in a row
    assert scales == [2.0**14, 2.0**13, 2.0**13, 2.0**14, 2.0**14]
    assert int(update.iterations) == 3
    expected = apply(build(optimizer="adam"), GRADIENTS[:3])[-1]
    assert_close([[variable.numpy() for variable in variables]], [expected])


def test_of_updates_to_be_skipped_the_ones_that_are_not_finite_are_counted():
    update = build(optimizer="adam")
    variables = [keras.Variable(weight) for weight in START]
    update.build(variables)
    update.skip_not_finite()
    spoilt = [GRADIENTS[0][0], np.array([1, np.nan], np.float32)]
    for each, loss, sound in (
        (GRADIENTS[0], True, True),
        (spoilt, True, False),  # a gradient of a finite loss
        (GRADIENTS[1], False, False),
        (GRADIENTS[2], True, True),
    ):
        before = [variable.numpy() for variable in (*variables, *update.rule.variables)]
        with update.weighing(1.0):
            update.apply_gradients(zip(map(tf.constant, each), variables, strict=True))
        assert bool(update.update(ONE, loss)) is sound
        for one, other in zip(before, (*variables, *update.rule.variables), strict=True):
            assert sound or np.array_equal(one, other)
    assert update.skipped == 2
    expected = apply(build(optimizer="adam"), [GRADIENTS[0], GRADIENTS[2]])[-1]
    assert_close([[variable.numpy() for variable in variables]], [expected], rtol=0)


def test_only_what_the_scale_has_not_spoilt_is_skipped_in_float16():
    update, variables = half()
    update.skip_not_finite()
    spoilt = [GRADIENTS[0][0], np.array([1, np.inf], np.float32)]
    found = []
    for loss in (False, *[True] * 17):
        with update.weighing(1.0):
            update.apply_gradients(zip(map(tf.constant, spoilt), variables, strict=True))
        sound = bool(update.update(ONE, loss))
        found.append((sound, float(update.variables[-2]), update.skipped))
    halved = [(True, 2.0**power, 1) for power in reversed(range(15))]
    assert found == [(False, 2.0**15, 1), *halved, (False, 1.0, 2), (False, 1.0, 3)]
    np.testing.assert_array_equal(variables[0].numpy(), START[0])
    assert not update.iterations.numpy()


def test_what_computes_otherwise_than_in_float16_needs_no_scale():
    for policy in ("float32", "mixed_bfloat16"):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, dtype=policy)])
        update = optimizer.build(phase(0.1), 4, freezing.freeze(model, ".*"))
        loss = tf.constant(1.0)
        assert update.scale_loss(loss) is loss
        assert not update.deferred


def test_the_owner_gets_a_plain_optimizer_of_the_same_kind():
    found = optimizer.plain(phase({"head": 0.5, ".*": 0.1}, optimizer="adamw", weight_decay=0.3))
    assert type(found) is keras.optimizers.AdamW
    assert float(found.learning_rate) == 0.5
    assert found.weight_decay == 0.3
