"""`MaskedLanguageModel`: where masking, encoder and objective meet."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_dynmask import (
    AdaptiveSelection,
    DynamicMasking,
    MaskedLanguageModel,
    TransformerEncoder,
    mask_dataset,
)
from keras_dynmask.pieces import losses_in_pieces

VOCABULARY, MASK = 50, 1
DIALS = {
    "tokens": {},
    "fixed size": {"mask_selection_length": 5},
    "independent": {"exact_count": False},
    "spans": {"mean_span_length": 3.0},
    "whole words": {"continuation_token_ids": range(30, 50)},
}


def build(dropout=0.0, **masking):
    keras.utils.set_random_seed(3)
    return MaskedLanguageModel(
        TransformerEncoder(VOCABULARY, 1, 2, 16, 24, dropout=dropout),
        DynamicMasking(VOCABULARY, 0.2, MASK, seed=9, **masking),
    )


def rows(count=32, length=20, padding=4):
    ids = np.random.default_rng(0).integers(2, VOCABULARY, (count, length)).astype("int32")
    ids[:, length - padding :] = 0
    return ids


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def fitted(compile_arguments=None, fit_arguments=None, **kwargs):
    model = build(**kwargs)
    model.compile(**{"optimizer": keras.optimizers.Adam(1e-2), **(compile_arguments or {})})
    arguments = {"batch_size": 8, "epochs": 2, "verbose": 0, "shuffle": False}
    history = model.fit(rows(), **{**arguments, **(fit_arguments or {})}).history
    return model, history


@pytest.mark.parametrize("dials", DIALS.values(), ids=DIALS)
def test_logits_are_those_of_the_selected_positions(dials):
    model, ids = build(**dials), rows()
    out = {name: numpy(value) for name, value in model(ids, training=True).items()}
    real = out["mask_weights"] > 0
    assert out["logits"].shape == (*real.shape, VOCABULARY)
    assert 0 < real.sum() < real.size or dials == {}
    everywhere = numpy(model(out["token_ids"]))
    at_selected = np.take_along_axis(everywhere, out["mask_positions"][..., None], axis=1)
    np.testing.assert_allclose(out["logits"][real], at_selected[real], atol=1e-5)
    originals = np.take_along_axis(ids, out["mask_positions"], axis=1)
    np.testing.assert_array_equal(out["mask_ids"][real], originals[real])


def test_the_loss_is_the_mean_over_selected_tokens():
    model, ids = build(mask_selection_length=6), rows()
    model.compile("adam")
    out = model(ids, training=True)
    logits, weights = numpy(out["logits"]).astype("float64"), numpy(out["mask_weights"])
    log_normaliser = np.log(np.exp(logits).sum(-1))
    right = np.take_along_axis(logits, numpy(out["mask_ids"])[..., None], axis=-1)[..., 0]
    expected = ((log_normaliser - right) * weights).sum() / weights.sum()
    assert float(model.compute_loss(ids, None, out)) == pytest.approx(expected, rel=1e-5)


def test_a_batch_without_targets_costs_nothing_and_breaks_nothing():
    model = build()
    model.compile("adam")
    before = model.get_weights()
    history = model.fit(np.zeros((8, 6), "int32"), verbose=0).history
    assert history["loss"] == [0.0] and history["selection_rate"] == [0.0]
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
    assert len(before) == len(model.get_weights())


def test_the_masked_loss_falls_on_text_that_repeats():
    ids = np.tile(np.arange(2, 22, dtype="int32"), (64, 1))
    model = build()
    model.compile(keras.optimizers.Adam(1e-2))
    history = model.fit(ids, epochs=80, batch_size=16, verbose=0).history
    assert history["masked_loss"][0] > 3.5 and history["masked_loss"][-1] < 1.0
    assert history["masked_accuracy"][0] < 0.1 and history["masked_accuracy"][-1] > 0.7
    assert history["perplexity"][-1] == pytest.approx(np.exp(history["masked_loss"][-1]), rel=1e-3)


@pytest.mark.parametrize("dials", DIALS.values(), ids=DIALS)
def test_the_selection_rate_is_measured(dials):
    model = build(unselectable_token_ids=(0, 7, MASK), **dials)
    model.compile("adam")
    ids = rows(256)
    rate = model.evaluate(ids, verbose=0, return_dict=True)["selection_rate"]
    masked = model.masking.mask_fixed({"token_ids": ops.convert_to_tensor(ids)}, 20)
    selectable = (~np.isin(ids, [0, 7, MASK])).sum()
    if "mask_selection_length" not in dials:  # there the model's targets are smaller than 20
        assert rate == pytest.approx(numpy(masked["mask_weights"]).sum() / selectable, rel=2e-3)
    assert 0.15 < rate < 0.25


@pytest.mark.parametrize("masked_by", ["model", "dataset"])
def test_details_are_those_of_the_hidden_the_swapped_and_the_kept(masked_by):
    masking = DynamicMasking(
        VOCABULARY, 0.5, MASK, 12, mask_token_rate=0.4, random_token_rate=0.4, seed=9
    )
    keras.utils.set_random_seed(3)
    encoder = TransformerEncoder(VOCABULARY, 1, 2, 16, 24, dropout=0.0)
    model = MaskedLanguageModel(encoder, masking, detailed_metrics=True)
    model.compile("adam")
    ids = rows(64)
    ids[:16] = 0  # nothing to select
    masked = masking.mask_fixed({"token_ids": ops.convert_to_tensor(ids)}, 12)
    data = tf.data.Dataset.from_tensors(ids)
    if masked_by == "dataset":
        x = {name: masked[name] for name in ("token_ids", "mask_positions")}
        x["padding_mask"] = ids != 0
        data = tf.data.Dataset.from_tensors((x, masked["mask_ids"], masked["mask_weights"]))
    got = model.evaluate(data, verbose=0, return_dict=True)
    assert got["empty_rows"] == pytest.approx(0.25)

    logits = numpy(model(numpy(masked["token_ids"]))).astype("float64")
    losses = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, ids[..., None], -1)[..., 0]
    selected = np.zeros(ids.shape, bool)
    real = numpy(masked["mask_weights"]) > 0
    selected[np.nonzero(real)[0], numpy(masked["mask_positions"])[real]] = True
    shown = numpy(masked["token_ids"])
    for role, theirs in {
        "hidden": selected & (shown == MASK),
        "swapped": selected & (shown != MASK) & (shown != ids),
        "kept": selected & (shown == ids),
    }.items():
        assert theirs.sum() > 50
        hits = logits.argmax(-1) == ids
        assert got[f"{role}_loss"] == pytest.approx(losses[theirs].mean(), rel=1e-4)
        assert got[f"{role}_accuracy"] == pytest.approx(hits[theirs].mean(), abs=1e-6)


def test_details_are_reset_saved_and_left_out(tmp_path):
    model, history = fitted()
    assert not any("hidden" in name for name in history)
    detailed = MaskedLanguageModel(model.encoder, model.masking, detailed_metrics=True)
    detailed.compile("adam")
    detailed.fit(rows(), verbose=0)
    first, second = (detailed.evaluate(rows(), verbose=0, return_dict=True) for _ in range(2))
    assert first == second and "kept_accuracy" in first
    detailed.save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").detailed_metrics


def test_the_selection_rate_leaves_out_what_weighs_nothing():
    weights = [0.0] * 25 + [1.0] * 25
    model = build(selection_weights=weights)
    model.compile("adam")
    rate = model.evaluate(rows(256), verbose=0, return_dict=True)["selection_rate"]
    assert rate == pytest.approx(0.2, abs=0.01)


def test_targets_have_room_for_one_of_every_document():
    """Or the weights of a row would not add up to its tokens."""
    model = build(count_per_document=True, inverse_rate_weights=True)
    segments = np.tile(np.arange(20) // 2, (32, 1))
    inputs = {"token_ids": rows(padding=0), "segment_ids": segments}
    out = model(inputs, training=True)
    np.testing.assert_allclose(numpy(out["mask_weights"]).sum(axis=1), 20)
    model = build(inverse_rate_weights=True, evaluation_rate=0.0)
    assert model.masking.selection_capacity({"token_ids": rows()}, training=False) == 1


def test_evaluation_does_not_depend_on_order_batches_or_padding():
    model, _ = fitted()
    ids = rows(50)
    reference = model.evaluate(ids, batch_size=50, verbose=0, return_dict=True)
    del reference["loss"]  # Keras' mean over batches
    for variant, batch_size in ((ids, 7), (ids[::-1], 16), (np.pad(ids, ((0, 0), (0, 5))), 50)):
        again = model.evaluate(variant, batch_size=batch_size, verbose=0, return_dict=True)
        assert {name: again[name] for name in reference} == pytest.approx(reference, rel=1e-5)
    assert int(model.masking.step) == 8  # what fit counted, and evaluate left alone


def test_predictions_are_for_untouched_input():
    model, _ = fitted()
    ids = rows()
    predicted = model.predict(ids, batch_size=8, verbose=0)
    assert predicted.shape == (*ids.shape, VOCABULARY)
    np.testing.assert_allclose(
        predicted, numpy(model.to_logits(model.encode(ids))), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(predicted, numpy(model(ids)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "compile_arguments",
    [{"jit_compile": True}, {"steps_per_execution": 2}, {"run_eagerly": True}],
    ids=str,
)
def test_every_way_to_run_trains_alike(compile_arguments):
    _, reference = fitted({"jit_compile": False})
    model, history = fitted(compile_arguments)
    assert int(model.masking.step) == 8
    for name, values in reference.items():
        np.testing.assert_allclose(history[name], values, rtol=2e-3, atol=1e-4)


def test_gradient_accumulation_counts_micro_batches_as_steps():
    optimizer = keras.optimizers.Adam(1e-2, gradient_accumulation_steps=2)
    model, history = fitted({"optimizer": optimizer}, {"epochs": 6})
    assert int(model.masking.step) == 24 and int(optimizer.iterations) == 12
    assert history["masked_loss"][-1] < history["masked_loss"][0]


def test_mixed_precision_trains():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model, history = fitted()
    finally:
        keras.config.set_dtype_policy("float32")
    assert keras.backend.standardize_dtype(model(rows()).dtype) == "bfloat16"
    _, reference = fitted()
    np.testing.assert_allclose(history["masked_loss"], reference["masked_loss"], rtol=0.02)


@pytest.fixture
def in_pieces(monkeypatch):
    """From when it is called on, losses are computed in pieces; the list counts how often."""
    walked = []

    def walk(*arrays):
        walked.append(1)
        return losses_in_pieces(*arrays, piece=16)

    def begin():
        monkeypatch.setattr("keras_dynmask.model.LARGE", 0)
        monkeypatch.setattr("keras_dynmask.model.losses_in_pieces", walk)
        return walked

    return begin


def of_kind(kind):
    """A model and what it is fitted on."""
    keras.utils.set_random_seed(3)
    masking = DynamicMasking(VOCABULARY, 0.2, MASK, 6 if kind == "dataset" else None, seed=9)
    encoder = TransformerEncoder(VOCABULARY, 1, 2, 16, 24, dropout=0.0)
    if kind == "untied":
        embedding = keras.layers.Embedding(VOCABULARY, 16)
        encoder = keras.Sequential([embedding, keras.layers.Dense(12, activation="tanh")])
    adaptive = AdaptiveSelection(VOCABULARY) if kind == "adaptive" else None
    model = MaskedLanguageModel(
        encoder, masking, adaptive_selection=adaptive, detailed_metrics=True
    )
    if kind != "dataset":
        return model, {"x": rows(), "sample_weight": np.linspace(0, 1, 32), "batch_size": 8}
    return model, {"x": mask_dataset(tf.data.Dataset.from_tensor_slices(rows()).batch(8), masking)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, jit", [("tied", True), ("untied", False), ("adaptive", False), ("dataset", False)]
)
def test_a_large_vocabulary_trains_alike_in_pieces(kind, jit, in_pieces):
    found = []
    for begin in (list, in_pieces):
        walked = begin()
        model, data = of_kind(kind)
        # Not Adam, which divides by the size of a gradient, and so enlarges its rounding.
        model.compile(keras.optimizers.SGD(0.5), jit_compile=jit)
        history = model.fit(**data, epochs=1, steps_per_epoch=4, shuffle=False, verbose=0).history
        found.append((history, model.evaluate(rows(), verbose=0), model.get_weights()))
    assert len(walked) == 2  # a step of training and one of evaluation, each traced once
    (history, held_out, weights), (history_in_pieces, held_out_in_pieces, weights_in_pieces) = found
    for name, (value,) in history.items():
        assert history_in_pieces[name] == [pytest.approx(value, rel=1e-5)]
    assert held_out_in_pieces == pytest.approx(held_out, rel=1e-5)
    for ours, theirs in zip(weights_in_pieces, weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_who_wants_logits_gets_them_at_any_vocabulary(in_pieces):
    walked = in_pieces()
    model = build(mask_selection_length=5)
    accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    model.compile("adam", weighted_metrics=[accuracy])
    history = model.fit(rows(), verbose=0).history
    assert history["accuracy"] == pytest.approx(history["masked_accuracy"], rel=1e-5)
    model.compile("adam")
    assert model(rows(), training=True)["logits"].shape == (32, 5, VOCABULARY)
    assert model.predict(rows(), verbose=0).shape == (32, 20, VOCABULARY)
    assert walked == []


def test_rows_of_no_weight_do_not_count():
    ids, model = rows(), build()
    model.compile("adam")
    weights = np.repeat([1.0, 0.0], 16)
    weighted = model.evaluate(ids, sample_weight=weights, verbose=0, return_dict=True)
    alone = model.evaluate(ids[:16], verbose=0, return_dict=True)
    for name in ("masked_loss", "masked_accuracy", "perplexity"):
        assert weighted[name] == pytest.approx(alone[name], rel=1e-5)


def test_weights_count_in_validation_too():
    model = build()
    model.compile("adam")
    held_out = (rows(16), None, np.zeros(16))
    history = model.fit(rows(), validation_data=held_out, verbose=0).history
    assert history["val_masked_loss"] == [0.0] and history["val_selection_rate"][0] > 0.1


def test_units_of_the_callers_own_all_find_room():
    ids = rows(200, 48, padding=0)
    begins = np.zeros(ids.shape, bool)
    begins[:, ::20] = True
    model = build()
    model.compile("adam")
    inputs = {"token_ids": ids, "begins": begins}
    assert model.evaluate(inputs, verbose=0, return_dict=True)["selection_rate"] > 0.17


def test_a_swapped_in_padding_id_is_still_attended_to():
    model = build(unselectable_token_ids=(), mask_token_rate=0.0, random_token_rate=1.0)
    ids = np.full((64, 20), 7, "int32")
    out = model(ids, training=True)
    assert (numpy(out["token_ids"]) == 0).any() and numpy(out["padding_mask"]).all()


def test_a_dict_brings_padding_and_what_may_be_selected():
    model, ids = build(), rows()
    selectable = np.zeros(ids.shape, bool)
    selectable[:, 3:8] = True
    inputs = {"token_ids": ids, "padding_mask": ids != 0, "selectable": selectable}
    out = model(inputs, training=True)
    chosen = numpy(out["mask_positions"])[numpy(out["mask_weights"]) > 0]
    assert set(chosen) <= set(range(3, 8)) and len(chosen) == 32
    model.compile("adam")
    assert model.fit(inputs, verbose=0).history["selection_rate"][0] == pytest.approx(0.2, abs=0.02)


def test_any_keras_model_is_an_encoder():
    names = ("token_ids", "padding_mask", "segment_ids")
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in names}
    embedded = keras.layers.Embedding(VOCABULARY, 8)(inputs["token_ids"])
    embedded += keras.layers.Embedding(2, 8)(inputs["segment_ids"])
    hidden = embedded * ops.expand_dims(ops.cast(inputs["padding_mask"], "float32"), -1)
    backbone = keras.Model(inputs, {"sequence_output": keras.layers.Dense(12)(hidden)})
    plain = keras.Sequential([keras.layers.Embedding(VOCABULARY, 8), keras.layers.Dense(12)])
    for encoder in (backbone, plain):
        model = MaskedLanguageModel(encoder, DynamicMasking(VOCABULARY, 0.2, MASK, seed=0))
        model.compile("adam")
        assert np.isfinite(model.fit(rows(), verbose=0).history["loss"][0])
        assert model.predict(rows(), verbose=0).shape == (32, 20, VOCABULARY)


def test_the_head_shares_the_embedding():
    model = build()
    embedding = model.encoder.token_embedding.embeddings
    assert sum(tuple(w.shape)[0] == VOCABULARY for w in model.trainable_weights) == 2  # and a bias
    before = numpy(model(rows(1)))
    embedding.assign(embedding * 2.0)
    assert not np.allclose(before, numpy(model(rows(1))))


def test_a_saved_model_goes_on_as_if_never_stopped(tmp_path):
    whole, _ = fitted(dropout=0.2, fit_arguments={"epochs": 4})
    half, _ = fitted(dropout=0.2, fit_arguments={"epochs": 2})
    half.save(tmp_path / "half.keras")
    resumed = keras.models.load_model(tmp_path / "half.keras")
    assert int(resumed.masking.step) == 8
    resumed.fit(rows(), batch_size=8, epochs=2, verbose=0, shuffle=False)
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_evaluation_is_equal_in_another_process(tmp_path):
    model, _ = fitted()
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "rows.npy", rows())
    script = (
        "import keras, numpy, keras_dynmask;"
        f"model = keras.models.load_model({str(tmp_path / 'model.keras')!r});"
        f"rows = numpy.load({str(tmp_path / 'rows.npy')!r});"
        "print(model.evaluate(rows, batch_size=5, verbose=0, return_dict=True)['masked_loss'])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    here = model.evaluate(rows(), verbose=0, return_dict=True)["masked_loss"]
    assert float(run.stdout.split()[-1]) == pytest.approx(here, rel=1e-5)


def test_misuse_is_named():
    masking = DynamicMasking(VOCABULARY, 0.2, MASK)
    encoder = TransformerEncoder(VOCABULARY, 1, 2, 16, 24)
    with pytest.raises(ValueError, match="`masking` must be a DynamicMasking layer.*'BERT'"):
        MaskedLanguageModel(encoder, "BERT")
    with pytest.raises(ValueError, match="`encoder` must be a Keras model or layer.*None"):
        MaskedLanguageModel(None, masking)
    with pytest.raises(ValueError, match="same vocabulary size.*encoder=60, masking=50"):
        MaskedLanguageModel(TransformerEncoder(60, 1, 2, 16, 24), masking)
    with pytest.raises(ValueError, match=r"`encoder` must give hidden states.*shape=\(None, 8\)"):
        pooled = [keras.layers.Embedding(VOCABULARY, 8), keras.layers.GlobalMaxPooling1D()]
        MaskedLanguageModel(keras.Sequential(pooled), masking)
    with pytest.raises(ValueError, match="`encoder` must take no other inputs.*'input_ids'"):
        ids = {"input_ids": keras.Input((None,), dtype="int32", name="input_ids")}
        states = keras.layers.Embedding(VOCABULARY, 8)(ids["input_ids"])
        MaskedLanguageModel(keras.Model(ids, states), masking)
    model = build()
    for bad in (rows().astype("float32"), rows()[0], tf.ragged.constant([[5, 6], [7]])):
        with pytest.raises(ValueError, match="`token_ids` must be integers of shape"):
            model(bad)
    model.compile("adam")
    with pytest.raises(ValueError, match=r"`token_ids` must lie in \[0, 49\].*Received"):
        model.fit(rows() + 48, verbose=0)
    with pytest.raises(
        ValueError, match=r"`sample_weight` must hold one weight per row.*\(32, 20\)"
    ):
        model.fit(rows(), sample_weight=np.ones((32, 20)), verbose=0)
    model = build()
    model.compile("adam", loss="mse")
    with pytest.raises(ValueError, match="`compile` must leave `loss` unset.*loss='mse'"):
        model.fit(rows(), rows(), verbose=0)
    model = build()
    model.compile("adam")
    with pytest.raises(ValueError, match="`y` must be left out"):
        model.fit(rows(), rows(), verbose=0)
