"""`AdaptiveSelection`: what is known is selected less, and evaluation does not notice."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_dynmask import AdaptiveSelection, DynamicMasking, MaskedLanguageModel, TransformerEncoder

VOCABULARY, MASK, EASY = 40, 1, 7


def build(adaptive=True, **masking):
    keras.utils.set_random_seed(3)
    return MaskedLanguageModel(
        TransformerEncoder(VOCABULARY, 1, 2, 16, 24, dropout=0.0),
        DynamicMasking(VOCABULARY, 0.2, MASK, seed=9, **masking),
        adaptive_selection=AdaptiveSelection(VOCABULARY) if adaptive else None,
    )


def rows(count=64, length=20):
    """Every other token is the same one, the rest is random."""
    ids = np.random.default_rng(0).integers(8, VOCABULARY, (count, length)).astype("int32")
    ids[:, ::2] = EASY
    return ids


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def test_the_average_starts_as_a_guess_and_moves_with_the_losses():
    adaptive = AdaptiveSelection(VOCABULARY, momentum=0.5, floor=1e-6)
    guess = np.log(VOCABULARY)
    assert numpy(adaptive(np.arange(VOCABULARY))).tolist() == [1.0] * VOCABULARY
    adaptive.update([[5, 5, 6, 9]], [[1.0, 2.0, 4.0, 8.0]], [[1.0, 2.0, 1.0, 0.0]])
    expected = np.array([(3 + guess) / 3, (4 + guess) / 2, guess]) / guess
    np.testing.assert_allclose(numpy(adaptive(np.array([5, 6, 9]))), expected, rtol=1e-5)
    adaptive.update([[6]], [[1.0]])
    expected = np.array([(1.5 + guess) / 2, (3 + guess) / 2.5]) / guess
    np.testing.assert_allclose(numpy(adaptive(np.array([5, 6]))), expected, rtol=1e-5)
    for _ in range(40):
        adaptive.update([[9]], [[0.0]])
    assert float(adaptive(np.array([5]))[0]) == pytest.approx(1.0)  # back to a guess


@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 0.25), (2.0, 0.5), (0.5, 0.2)])
def test_the_temperature_flattens_and_the_floor_holds(temperature, weight):
    adaptive = AdaptiveSelection(VOCABULARY, temperature, floor=0.2, momentum=0.0)
    adaptive.update(np.full(3, 5), np.zeros(3))
    assert float(adaptive(np.array(5))) == pytest.approx(weight, rel=1e-6)


def test_losses_that_are_not_finite_leave_no_trace():
    adaptive, clean = AdaptiveSelection(VOCABULARY), AdaptiveSelection(VOCABULARY)
    losses = np.array([np.nan, np.inf, 2.0, np.nan], "float32")
    adaptive.update(np.array([5, 6, 7, 8]), losses, np.array([True, True, True, False]))
    clean.update(np.array([7]), np.array([2.0]))
    assert np.array_equal(numpy(adaptive.evidence), numpy(clean.evidence))
    for _ in range(3):
        adaptive.update(np.array([5]), np.array([3e38]))
    assert np.isfinite(numpy(adaptive(np.arange(VOCABULARY)))).all()
    sharp = AdaptiveSelection(VOCABULARY, temperature=1e-3)
    sharp.update(np.array([5, 6]), np.array([9.0, 0.0]))
    weights = numpy(sharp(np.array([5, 6])))
    assert np.isfinite(weights[0]) and weights[1] == np.float32(sharp.floor)


@pytest.mark.parametrize("dtype", ["uint8", "int64"])
def test_ids_of_any_integer_dtype_are_weighed(dtype):
    model = build()
    out = model(tf.constant(rows().astype(dtype)), training=True)
    assert out["token_ids"].dtype == dtype


def test_what_is_easy_is_selected_less_and_evaluation_does_not_notice():
    model, plain, ids = build(), build(adaptive=False), rows()
    for _ in range(20):
        model.adaptive_selection.update(np.full(50, EASY), np.zeros(50))
    drawn, uniform = (
        [numpy(each(ids, training=True)["mask_ids"]) for _ in range(8)] for each in (model, plain)
    )
    assert np.mean(np.array(uniform) == EASY) == pytest.approx(0.5, abs=0.04)
    assert np.mean(np.array(drawn) == EASY) < 0.15  # 1 / (1 + 1 / floor), without replacement
    for each in (model, plain):
        each.compile("adam")
    one, other = (each.evaluate(ids, verbose=0, return_dict=True) for each in (model, plain))
    assert one == other


def test_fit_learns_what_is_easy_and_evaluation_leaves_it():
    model, ids = build(), rows()
    model.compile(keras.optimizers.Adam(1e-2))
    model.fit(ids, epochs=10, batch_size=16, verbose=0)
    weights = numpy(model.adaptive_selection(np.arange(VOCABULARY)))
    assert weights[EASY] < 0.6 * np.median(weights[8:])
    before = numpy(model.adaptive_selection.evidence)
    model.evaluate(ids, verbose=0)
    model.predict(ids, verbose=0)
    assert np.array_equal(before, numpy(model.adaptive_selection.evidence))
    assert before[1].sum() > 0


def test_a_saved_model_goes_on_as_if_never_stopped(tmp_path):
    def fit(model, epochs):
        model.fit(rows(), batch_size=16, epochs=epochs, verbose=0, shuffle=False)

    whole, half = build(), build()
    for model in (whole, half):
        model.compile(keras.optimizers.Adam(1e-2))
    fit(whole, 4)
    fit(half, 2)
    half.save(tmp_path / "half.keras")
    resumed = keras.models.load_model(tmp_path / "half.keras")
    assert resumed.adaptive_selection.get_config() == half.adaptive_selection.get_config()
    fit(resumed, 2)
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_callers_weights_still_count():
    model, ids = build(), rows()
    weights = np.where(ids == EASY, 0.0, 1.0).astype("float32")
    out = model({"token_ids": ids, "selection_weights": weights}, training=True)
    assert not (numpy(out["mask_ids"]) == EASY).any()


def test_misuse_is_named():
    for arguments, message in (
        ({"temperature": 0}, "`temperature` must be a number, at least 0.001.*temperature=0"),
        ({"floor": 0}, "`floor` must be a number.*floor=0"),
        ({"momentum": 1}, "`momentum` must be a number.*momentum=1"),
        ({"vocabulary_size": 1}, "`vocabulary_size` must be a whole number, at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            AdaptiveSelection(**{"vocabulary_size": VOCABULARY} | arguments)
    encoder = TransformerEncoder(VOCABULARY, 1, 2, 16, 24)
    masking = DynamicMasking(VOCABULARY, 0.2, MASK)
    for wrong in (AdaptiveSelection(9), "losses"):
        with pytest.raises(ValueError, match="`adaptive_selection` must be an .*40"):
            MaskedLanguageModel(encoder, masking, adaptive_selection=wrong)
    drawn = DynamicMasking(VOCABULARY, 0.2, MASK, exact_count=False)
    with pytest.raises(ValueError, match="`masking` must have `exact_count=True`"):
        MaskedLanguageModel(encoder, drawn, adaptive_selection=AdaptiveSelection(VOCABULARY))
    masked_already = {"token_ids": rows(), "mask_positions": np.zeros((64, 4), "int32")}
    with pytest.raises(ValueError, match="`inputs` must not be masked already"):
        build()(masked_already, training=True)
    weighted = DynamicMasking(VOCABULARY, 0.2, MASK, inverse_rate_weights=True)
    with pytest.raises(ValueError, match="`masking` must have `inverse_rate_weights=False`"):
        MaskedLanguageModel(encoder, weighted, adaptive_selection=AdaptiveSelection(VOCABULARY))


def test_it_is_compiled_with_the_model():
    model = build()
    model.compile("adam", jit_compile=True)
    model.fit(tf.data.Dataset.from_tensor_slices(rows()).batch(16), verbose=0, shuffle=False)
    asked = numpy(model.adaptive_selection.evidence)[1].sum()
    assert asked == pytest.approx(64 * 4, rel=0.01)  # it fades by a thousandth a step
