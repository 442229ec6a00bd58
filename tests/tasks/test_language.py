import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbp.data import text
from tfbp.data.examples import Examples
from tfbp.data.vocabulary import Vocabulary
from tfbp.errors import UserError
from tfbp.tasks import text_functions
from tfbp.tasks.language import LanguageModel
from tfbp.tasks.smoothing import SmoothedCrossentropy
from tfbp.tasks.stepper import Stepper
from tfbp.tasks.text_functions import Limits
from tfbp.training import optimizer
from tfbp.training.phase import Phase

TEXT = "the cat sat on the mat; the dog sat on the cat. " * 4
VOCABULARY = Vocabulary.from_text(TEXT, "char", 50)
STEPS = 12
LAYERS = {
    "lstm": keras.layers.LSTM,
    "gru": keras.layers.GRU,
    "rnn": keras.layers.SimpleRNN,
}


def windows(targets="all"):
    return text.windows(TEXT, VOCABULARY, steps=STEPS, targets=targets)


def network(cell="lstm", targets="all", wrap=lambda layer: layer):
    """Two recurrent layers whose weights are large, so that every token has a clear successor."""
    keras.utils.set_random_seed(1)
    tokens = keras.Input((None,), dtype="int32")
    values = keras.layers.Embedding(VOCABULARY.size, 6, embeddings_initializer="normal")(tokens)
    values = wrap(LAYERS[cell](8, return_sequences=True, dropout=0.2))(values)
    values = keras.layers.Dropout(0.5)(values)
    values = LAYERS[cell](7, return_sequences=targets == "all")(values)
    values = keras.layers.Dense(VOCABULARY.size)(values)
    model = keras.Model(tokens, values)
    model.set_weights([weight * 3 for weight in model.get_weights()])
    return model


def function(name, model, targets="all", limits=text_functions.LIMITS):
    """Returns a signature as an export runs it: traced for any batch."""
    signatures = text_functions.signatures(Stepper(model), VOCABULARY, windows(targets), limits)
    signature = signatures[name]
    traced = tf.function(signature.function).get_concrete_function(**signature.inputs)

    def call(**inputs):
        answer = traced(
            **{key: tf.constant(inputs[key], spec.dtype) for key, spec in signature.inputs.items()}
        )
        return {key: value.numpy() for key, value in answer.items()}

    return call


def write(generate, prompts, length=10, temperature=1.0, top_k=0, seed=0):
    answer = generate(
        prompt=prompts, length=length, temperature=temperature, top_k=top_k, seed=seed
    )
    return [written.decode() for written in answer["text"]]


@pytest.fixture(scope="module")
def lstm():
    return network()


@pytest.fixture(scope="module")
def generate(lstm):
    return function("generate", lstm)


def test_a_uniform_guess_has_the_perplexity_of_the_vocabulary():
    task, examples = LanguageModel(VOCABULARY), windows()
    x, y = examples.read(tf.range(examples.size))
    per_example = task.per_example(x, y, tf.zeros([*y.shape, VOCABULARY.size]))
    results = task.evaluate({name: value.numpy() for name, value in per_example.items()}, examples)
    assert list(results) == ["loss", "perplexity", "bits_per_character"]
    assert results["perplexity"] == pytest.approx(VOCABULARY.size, rel=1e-5)
    assert results["bits_per_character"] == pytest.approx(np.log2(VOCABULARY.size), rel=1e-5)


def test_bits_are_counted_by_the_character():
    words = text.windows(TEXT, Vocabulary.from_text(TEXT, "word", 50), steps=4)
    results = LanguageModel(VOCABULARY).evaluate({"loss": np.float32([2.0])}, words)
    # Twelve words and two marks in a repetition of 48 characters; a nat is 1 / ln 2 bits.
    assert results["bits_per_character"] == pytest.approx(2 / np.log(2) * 14 / 48)


@pytest.mark.parametrize("targets", ["all", "last"])
def test_the_loss_of_each_example_is_the_trained_one(targets):
    task, (x, y) = LanguageModel(VOCABULARY), windows(targets).read(tf.range(3))
    logits = network("rnn", targets)(x)
    per_example = task.per_example(x, y, logits)["loss"]
    assert per_example.shape == [3]
    np.testing.assert_allclose(np.mean(per_example), task.loss()(y, logits), rtol=1e-5)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_by_hand(x, kernel, recurrent, bias):
    """The LSTM of Hochreiter and Schmidhuber with forget gates, in float64: [steps, units]."""
    h = c = np.zeros(recurrent.shape[0])
    outputs = []
    for step in x:
        i, f, g, o = np.split(step @ kernel + h @ recurrent + bias, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    return np.array(outputs)


def test_a_score_is_the_likelihood_computed_by_hand(lstm):
    sentence = TEXT[:20]
    weights = [weight.numpy().astype(np.float64) for weight in lstm.trainable_variables]
    tokens = [VOCABULARY.tokens.index(character) for character in sentence]
    values = lstm_by_hand(weights[0][tokens], *weights[1:4])
    logits = lstm_by_hand(values, *weights[4:7]) @ weights[7] + weights[8]
    logarithms = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    likelihood = sum(logarithms[step, token] for step, token in enumerate(tokens[1:]))

    # Beside shorter texts, which the batch pads.
    answer = function("score", lstm)(text=[sentence[:5], sentence, "t", ""])
    assert answer["tokens"].tolist() == [4, 19, 0, 0]
    np.testing.assert_allclose(answer["log_likelihood"][1], likelihood, rtol=1e-5)
    np.testing.assert_allclose(answer["perplexity"][1], np.exp(-likelihood / 19), rtol=1e-5)
    assert answer["perplexity"][2:].tolist() == [1, 1]


@pytest.mark.parametrize("targets", ["all", "last"])
@pytest.mark.parametrize("cell", list(LAYERS))
def test_greedy_text_is_that_of_calling_the_model_again_for_each_token(cell, targets):
    model = network(cell, targets)
    call = tf.function(model, input_signature=[tf.TensorSpec([1, None], tf.int32)])
    prompts = ["the cat", "do", "n the mat; "]
    expected = []
    for prompt in prompts:
        for _ in range(10):
            tokens = np.int32([[VOCABULARY.tokens.index(character) for character in prompt]])
            logits = call(tokens).numpy().reshape(-1, VOCABULARY.size)[-1]
            prompt += VOCABULARY.tokens[1 + logits[1:].argmax()]
        expected.append(prompt)
    assert write(function("generate", model, targets), prompts, temperature=0.0) == expected


def test_a_row_does_not_depend_on_its_neighbours(generate):
    together = write(generate, ["the cat", "a", "the dog sat"])
    assert together == [write(generate, [prompt])[0] for prompt in ("the cat", "a", "the dog sat")]


def test_a_seed_gives_a_text_and_another_seed_another(generate):
    assert write(generate, ["the"], length=30) == write(generate, ["the"], length=30)
    assert write(generate, ["the"], length=30) != write(generate, ["the"], length=30, seed=1)


def test_the_unknown_token_is_never_written(lstm, generate):
    kernel, bias = lstm.layers[-1].get_weights()
    lstm.layers[-1].set_weights([kernel, bias + 100 * (np.arange(VOCABULARY.size) == 0)])
    written = write(generate, ["the"], length=30)[0]
    lstm.layers[-1].set_weights([kernel, bias])
    assert "[UNK]" not in written


def test_prompts_may_be_empty_and_so_may_what_follows(generate):
    assert write(generate, ["the cat"], length=0) == ["the cat"]
    assert [len(written) for written in write(generate, ["", "a"], length=5)] == [5, 6]
    assert len(write(generate, [""], length=5)[0]) == 5


def test_no_prompts_are_answered_by_no_texts(generate):
    answer = generate(prompt=np.array([], object), length=3, temperature=1.0, top_k=0, seed=0)
    assert answer["text"].shape == (0,)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"length": -1}, "`length` must be 0 to 10000 tokens"),
        ({"length": 10_001}, "`length` must be 0 to 10000 tokens"),
        ({"temperature": -0.1}, "`temperature` must be at least 0"),
        ({"temperature": float("nan")}, "`temperature` must be at least 0"),
        ({"temperature": float("inf")}, "`temperature` must be at least 0 and finite"),
    ],
)
def test_settings_out_of_range_are_refused_in_the_graph(generate, settings, rule):
    with pytest.raises(tf.errors.InvalidArgumentError, match=rule):
        write(generate, ["the"], **settings)


@pytest.mark.parametrize("name", ["score", "init_state", "generate"])
def test_a_text_that_is_too_long_is_refused_in_the_graph(lstm, name):
    given = "text" if name == "score" else "prompt"
    settings = {"length": 1, "temperature": 0.0, "top_k": 0, "seed": 0}
    call = function(name, lstm, limits=Limits(tokens=5, bytes=12))
    call(**{given: ["a", "the c"]}, **settings)
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"`{given}` must have at most 5 tok"):
        call(**{given: ["a", "the ca"]}, **settings)
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"`{given}` must have at most 12 byt"):
        call(**{given: ["a", "the cat sat o"]}, **settings)


@pytest.mark.parametrize(("cell", "targets"), [("lstm", "all"), ("gru", "last")])
def test_what_is_read_in_pieces_is_answered_as_if_read_at_once(cell, targets):
    model = network(cell, targets)
    texts = ["t", "the dog sat on the mat;", "", "the cat", "at the mat"]
    for name, given in (("score", "text"), ("init_state", "prompt")):
        whole = function(name, model, targets, Limits(piece=1000))(**{given: texts})
        # Three steps of five rows.
        pieces = function(name, model, targets, Limits(piece=15))(**{given: texts})
        for key, value in whole.items():
            np.testing.assert_allclose(pieces[key], value, rtol=1e-5, atol=1e-5)


def test_the_logits_of_few_tokens_are_held_at_once():
    sizes = []

    class Noting(Stepper):
        def __call__(self, *arguments):
            logits, states = super().__call__(*arguments)
            sizes.append(logits.shape[0] * logits.shape[1])
            return logits, states

    stepper = Noting(network())
    signatures = text_functions.signatures(stepper, VOCABULARY, windows(), Limits(piece=15))
    signatures["score"].function(tf.constant([TEXT[:50], *["the"] * 4]))
    assert max(sizes) <= 15 and sum(sizes) == 49 + 4 * 2


def test_a_model_that_is_compiled_for_training_writes_as_before(generate):
    model = network()
    phase = Phase("fit", ".*", epochs=1, learning_rate=0.1)
    model.compile(optimizer.build(phase, updates=1), LanguageModel(VOCABULARY).loss())
    assert write(function("generate", model), ["the "]) == write(generate, ["the "])


def test_requests_are_held_out_windows(lstm):
    signatures = LanguageModel(VOCABULARY).signatures(lstm, windows())
    requests = {name: signature.request(3) for name, signature in signatures.items()}
    assert requests["score"]["text"][0].decode() == TEXT[:STEPS]
    assert requests["generate"]["prompt"][0].decode() == TEXT[: STEPS // 2]
    assert VOCABULARY.tokens[requests["step"]["token"][0]] == TEXT[STEPS - 1]
    for name, signature in signatures.items():
        assert requests[name].keys() == signature.inputs.keys()
        assert {len(value) for value in requests[name].values() if np.ndim(value)} == {3}


@pytest.mark.parametrize(("cell", "targets"), [("lstm", "all"), ("gru", "last"), ("rnn", "all")])
def test_a_client_that_keeps_the_state_reads_token_by_token(cell, targets):
    model = network(cell, targets)
    start, step = function("init_state", model, targets), function("step", model, targets)
    texts = [TEXT[:STEPS], TEXT[5 : 5 + STEPS]]
    answer = start(prompt=[text[:3] for text in texts])
    widths = {"lstm": [8, 8, 7, 7]}.get(cell, [8, 7])
    assert {name: value.shape for name, value in answer.items()} == {
        "logits": (2, VOCABULARY.size),
        **{f"state_{number}": (2, width) for number, width in enumerate(widths)},
    }
    for place in range(3, 6):
        tokens = np.int32([[VOCABULARY.tokens.index(c) for c in text[:place]] for text in texts])
        expected = model(tokens).numpy().reshape(2, -1, VOCABULARY.size)[:, -1]
        np.testing.assert_allclose(answer.pop("logits"), expected, rtol=1e-4, atol=1e-5)
        token = [VOCABULARY.tokens.index(text[place]) for text in texts]
        answer = step(token=token, **answer)


def test_no_prompt_is_the_state_of_zeros(lstm):
    answer = function("init_state", lstm)(prompt=["", "the"])
    states = [value for name, value in answer.items() if name != "logits"]
    assert len(states) == 4
    for state in states:
        assert not state[0].any() and state[1].all()


@pytest.mark.parametrize(
    ("model", "targets", "message"),
    [
        (lambda: network("rnn"), "last", r"logits of shape \[\d+\] for each window"),
        (lambda: network("rnn", wrap=keras.layers.Bidirectional), "all", "read forwards"),
    ],
    ids=["targets", "a layer that reads backwards"],
)
def test_what_does_not_fit_is_refused(model, targets, message):
    with pytest.raises(UserError, match=message):
        LanguageModel(VOCABULARY).check(model(), windows(targets))


def test_examples_that_are_no_text_are_refused(lstm):
    numbers = Examples.from_arrays(np.zeros((4, STEPS), np.float32), np.arange(4))
    with pytest.raises(UserError, match="windows of a text"):
        LanguageModel(VOCABULARY).check(lstm, numbers)


def test_a_model_that_starts_from_zero_logits_is_accepted():
    model = network("rnn")
    model.layers[-1].set_weights([weight * 0 for weight in model.layers[-1].get_weights()])
    LanguageModel(VOCABULARY).check(model, windows())


@pytest.mark.parametrize("targets", ["all", "last"])
def test_what_fits_is_accepted(targets):
    LanguageModel(VOCABULARY).check(network("gru", targets), windows(targets))


def test_a_subclass_has_its_own_loss_and_metrics_beside_the_perplexity():
    class Own(LanguageModel):
        def loss(self):
            return SmoothedCrossentropy(0.2)

        def metrics(self):
            return [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]

    examples = windows()
    _, y = examples.read(tf.range(2))
    logits = tf.random.stateless_normal([*y.shape, VOCABULARY.size], seed=[0, 1])
    results = []
    for task in (LanguageModel(VOCABULARY), Own(VOCABULARY)):
        values = task.per_example(None, y, logits)
        values = {name: value.numpy() for name, value in values.items()}
        results.append(task.evaluate(values, examples))
    plain, own = results
    assert own["loss"] == pytest.approx(float(SmoothedCrossentropy(0.2)(y, logits)), rel=1e-5)
    right = np.argmax(logits, axis=-1) == y
    assert own["accuracy"] == pytest.approx(float(tf.reduce_mean(tf.cast(right, tf.float32))))
    assert own["perplexity"] == plain["perplexity"] == pytest.approx(np.exp(plain["loss"]))
