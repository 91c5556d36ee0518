"""Visible only: what is hidden never reaches the encoder, and is answered for all the same."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from test_export import nodes

from keras_dynmask import DynamicMasking, MaskedLanguageModel, TransformerEncoder, mask_dataset
from keras_dynmask.cli import _parser
from keras_dynmask.training import Recipe
from keras_dynmask.visible import gather_visible, visible_capacity

VOCABULARY, MASK = 50, 1
HIDE_ALL = {"mask_token_rate": 1.0, "random_token_rate": 0.0}
SEEN = []


class Recording(TransformerEncoder):
    """Notes what it is shown, and what it makes of it."""

    def call(self, inputs, training=False):
        states = super().call(inputs, training=training)
        SEEN.append((inputs, states))
        return states


def build(rate=0.5, dropout=0.0, encoder=TransformerEncoder, **masking):
    keras.utils.set_random_seed(3)
    model = MaskedLanguageModel(
        encoder(VOCABULARY, 2, 2, 16, 24, dropout=dropout),
        DynamicMasking(VOCABULARY, rate, MASK, seed=9, **{**HIDE_ALL, **masking}),
        visible_only=True,
    )
    for weight in model.trainable_weights:  # so that attention is not the same everywhere
        weight.assign(weight * 8.0 if len(weight.shape) == 2 else weight)
    return model


def rows(count=32, length=24, padding=4):
    ids = np.random.default_rng(0).integers(2, VOCABULARY, (count, length)).astype("int32")
    ids[:, length - padding :] = 0
    ids[0] = 0
    return ids


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def masked(model, ids):
    """The model's call in training, at step 0; and what a `Recording` encoder saw and said."""
    SEEN.clear()
    model.masking.step.assign(0)
    out = {name: numpy(value) for name, value in model(ids, training=True).items()}
    return out, [keras.tree.map_structure(numpy, seen) for seen in SEEN]


# What is gathered.


@pytest.mark.parametrize(
    ("visible", "capacity", "expected_ids", "expected_positions"),
    [
        ("TFTFT", 4, [7, 9, 5, 0], [0, 2, 4, 0]),
        ("TFTFT", 3, [7, 9, 5], [0, 2, 4]),
        ("FFFFF", 2, [0, 0], [0, 0]),
        ("TTTTT", 5, [7, 8, 9, 6, 5], [0, 1, 2, 3, 4]),
        ("TTTTF", 2, [8, 6], [1, 3]),  # of four that are visible every second
        ("FTTTT", 3, [9, 6, 5], [2, 3, 4]),
        ("TTTTT", 1, [5], [4]),
    ],
)
def test_the_visible_stand_side_by_side(visible, capacity, expected_ids, expected_positions):
    seen = np.array([[letter == "T" for letter in visible], [False] * 5])
    ids, positions = np.array([[7, 8, 9, 6, 5]] * 2), np.array([range(5)] * 2, "int32")
    got = gather_visible(*map(ops.convert_to_tensor, (ids, positions, seen)), capacity)
    got = {name: numpy(value) for name, value in got.items()}
    assert got["token_ids"].tolist() == [expected_ids, [0] * capacity]
    assert got["positions"].tolist() == [expected_positions, [0] * capacity]
    filled = min(capacity, visible.count("T"))
    assert got["padding_mask"].tolist() == [
        [slot < filled for slot in range(capacity)],
        [False] * capacity,
    ]


def test_what_does_not_fit_is_left_out_evenly():
    """No place is favoured: where rows differ in length, each loses the same share."""
    lengths = np.arange(400, 1000)
    seen = np.arange(1000) < lengths[:, None]
    positions = np.zeros(seen.shape, "int32") + np.arange(1000, dtype="int32")
    got = gather_visible(*map(ops.convert_to_tensor, (positions, positions, seen)), 300)
    assert numpy(got["padding_mask"]).sum(axis=1).min() >= 299  # rounding may cost one
    for length, kept in zip(lengths, numpy(got["positions"]), strict=True):
        gaps = np.diff(kept[:299])
        assert gaps.min() >= length // 300 and gaps.max() <= -(-length // 300) + 1


@pytest.mark.parametrize(
    ("masking", "extra", "expected"),
    [
        ({}, (), 272),  # 512 - .5 * 494 + 1, in eights
        ({"mask_selection_rate": 0.15}, (), 440),
        ({"mask_selection_rate": (0.5, 0.8)}, (), 272),
        ({"mask_selection_length": 100}, (), 416),
        ({"mask_token_rate": 0.8}, (), 360),
        ({"exact_count": False}, (), 336),
        ({"mean_span_length": 3.0}, (), 296),
        ({"mask_selection_rate": (0.0, 1.0)}, (), 512),
        ({"mask_token_rate": 0.0}, (), 512),
        ({}, ("selectable",), 512),
        ({}, ("begins",), 512),
    ],
)
def test_there_is_room_for_what_will_be_visible(masking, extra, expected):
    arguments = {"mask_selection_rate": 0.5, "mask_token_id": MASK, "seed": 1, **HIDE_ALL}
    masking = DynamicMasking(VOCABULARY, **{**arguments, **masking})
    ids = np.random.default_rng(0).integers(2, VOCABULARY, (64, 512)).astype("int32")
    ids[:, ::32] = 0  # protected
    features = {"token_ids": ids, **dict.fromkeys(extra, np.ones(ids.shape, bool))}
    capacity = visible_capacity(masking, features)
    assert capacity == expected

    @tf.function(input_signature=[tf.TensorSpec((None, None), "int32")])
    def of_unknown_length(ids):
        return visible_capacity(masking, {**features, "token_ids": ids})

    assert int(of_unknown_length(ids)) == expected
    features["padding_mask"] = np.ones(ids.shape, bool)
    shown = numpy(masking(features, step=0)["token_ids"])
    assert (shown != MASK).sum(axis=1).max() <= capacity


# What reaches the encoder.


def test_the_hidden_change_nothing_in_the_encoders_output():
    """Bit for bit: whatever stands where a token is hidden."""
    encoder = build().encoder
    ids, random = rows(padding=0), np.random.default_rng(1)
    hidden = random.random(ids.shape) < 0.5
    positions = np.zeros(ids.shape, "int32") + np.arange(24, dtype="int32")
    others = np.where(hidden, random.integers(0, VOCABULARY, ids.shape), ids).astype("int32")
    assert (others != ids).sum() > 100

    def states(ids):
        shown = gather_visible(*map(ops.convert_to_tensor, (ids, positions, ~hidden)), 20)
        return numpy(encoder(shown))

    np.testing.assert_array_equal(states(ids), states(others))
    np.testing.assert_array_equal(states(ids)[0], states(np.where(hidden, MASK, ids))[0])


def test_neither_what_was_hidden_nor_the_mask_token_reaches_it_in_training():
    model, ids = build(encoder=Recording), rows()
    out, [(shown, states)] = masked(model, ids)
    hidden = out["token_ids"] == MASK
    visible = (ids > 0) & ~hidden
    assert 200 < hidden.sum() == out["mask_weights"].sum()
    assert shown["token_ids"].shape == (32, 16) and MASK not in shown["token_ids"]
    np.testing.assert_array_equal(shown["padding_mask"].sum(axis=1), visible.sum(axis=1))
    for row, seen in enumerate(visible):
        count = seen.sum()
        np.testing.assert_array_equal(shown["token_ids"][row, :count], ids[row, seen])
        np.testing.assert_array_equal(shown["positions"][row, :count], np.flatnonzero(seen))

    others = np.where(hidden, 2 + ids % 40, ids)
    again, [(_, same_states)] = masked(model, others)
    np.testing.assert_array_equal(again["token_ids"], out["token_ids"])  # the same masks
    np.testing.assert_array_equal(same_states, states)
    np.testing.assert_array_equal(again["logits"], out["logits"])

    embedding = model.encoder.token_embedding.embeddings
    embedding.assign(ops.where(ops.arange(VOCABULARY)[:, None] == MASK, 7.0, embedding))
    _, [(_, same_states)] = masked(model, ids)
    np.testing.assert_array_equal(same_states, states)


def test_the_swapped_and_the_kept_are_visible():
    model = build(encoder=Recording, mask_token_rate=0.4, random_token_rate=0.3)
    ids = rows(64, 128, 0)[1:]
    out, [(shown, _)] = masked(model, ids)
    visible = out["token_ids"] != MASK
    assert out["mask_weights"].sum() > 2 * (~visible).sum()
    np.testing.assert_array_equal(shown["padding_mask"].sum(axis=1), visible.sum(axis=1))
    assert sorted(shown["token_ids"][shown["padding_mask"]]) == sorted(out["token_ids"][visible])


# What is answered.


def test_left_out_and_not_attended_to_are_the_same():
    """The encoder's input is shorter in training and whole elsewhere: the logits agree."""
    model, ids = build(), rows()
    ids[1] = MASK  # a row without anything visible
    out, _ = masked(model, ids)
    assert np.isfinite(out["logits"]).all() and np.abs(out["logits"]).max() > 1
    features = {name: out[name] for name in ("token_ids", "padding_mask", "mask_positions")}
    np.testing.assert_allclose(numpy(model(features)), out["logits"], atol=1e-5)
    everywhere = numpy(model(out["token_ids"]))
    assert everywhere.shape == (32, 24, VOCABULARY)
    positions = out["mask_positions"][..., None]
    at_selected = np.take_along_axis(everywhere, positions, axis=1)
    np.testing.assert_allclose(at_selected, out["logits"], atol=1e-5)
    np.testing.assert_allclose(everywhere[1], np.tile(everywhere[1, :1], (24, 1)), atol=1e-5)


def test_inference_attends_to_no_mask_token():
    model, ids = build(), rows(padding=0)
    ids[1:, 5:9] = MASK
    states, logits = numpy(model.encode(ids)), numpy(model(ids))
    embedding = model.encoder.token_embedding.embeddings
    embedding.assign(ops.where(ops.arange(VOCABULARY)[:, None] == MASK, 7.0, embedding))
    others = ids != MASK
    np.testing.assert_array_equal(numpy(model.encode(ids))[others], states[others])
    np.testing.assert_array_equal(np.delete(numpy(model(ids)) - logits, MASK, axis=-1), 0)


def test_an_answer_depends_on_where_it_is_asked_and_where_the_visible_stand():
    model = build()
    ids = np.array([[5, 6, 7, MASK, MASK, 8, 9, 10]], "int32")
    logits = numpy(model(ids))[0]
    assert np.abs(logits[3] - logits[4]).max() > 0.01
    moved = numpy(model({"token_ids": ids, "positions": np.array([[0, 1, 2, 3, 4, 9, 8, 7]])}))[0]
    assert np.abs(moved[3] - logits[3]).max() > 0.01
    shifted = numpy(model({"token_ids": ids, "positions": 30 + np.arange(8)[None]}))[0]
    np.testing.assert_allclose(shifted, logits, atol=1e-4)  # distances alone count
    carried = {"token_ids": rows(), "positions": 30 + np.zeros((32, 1), "int32") + np.arange(24)}
    plain, _ = masked(model, rows())
    again, _ = masked(model, carried)
    np.testing.assert_allclose(again["logits"], plain["logits"], atol=1e-4)


def test_every_weight_is_trained():
    model = build()
    model.compile(keras.optimizers.SGD(1.0))
    before = [numpy(weight).copy() for weight in model.trainable_weights]
    model.fit(rows(), verbose=0)
    for weight, was in zip(model.trainable_weights, before, strict=True):
        assert not np.array_equal(numpy(weight), was), weight.path


def fitted(jit_compile, **kwargs):
    model = build(**kwargs)
    model.compile(keras.optimizers.Adam(1e-3), jit_compile=jit_compile)
    return model, again(model)


def again(model):
    return model.fit(rows(), batch_size=8, verbose=0, shuffle=False).history


def test_a_graph_and_xla_train_alike():
    (_, in_graph), (_, under_xla) = fitted(jit_compile=False), fitted(jit_compile=True)
    for name, values in in_graph.items():
        np.testing.assert_allclose(under_xla[name], values, rtol=2e-3, atol=1e-4)


def test_rows_that_are_masked_already_train_alike():
    ids = rows()[1:]
    model = build(mask_selection_length=12)
    model.compile(keras.optimizers.Adam(1e-3), jit_compile=False)
    alike = build(mask_selection_length=12)
    alike.compile(keras.optimizers.Adam(1e-3), jit_compile=False)
    dataset = tf.data.Dataset.from_tensors(ids)
    already = mask_dataset(dataset, alike.masking, epochs=1)
    from_dataset = alike.fit(already, shuffle=False, verbose=0).history
    from_ids = model.fit(dataset, shuffle=False, verbose=0).history
    assert from_dataset["masked_loss"] == pytest.approx(from_ids["masked_loss"], rel=1e-4)


def test_lengths_may_differ_from_batch_to_batch():
    model = build()
    model.compile(keras.optimizers.Adam(1e-3), jit_compile=False)
    spec = tf.TensorSpec((None, None), "int32")
    batches = [rows(8, length) for length in (24, 40)]
    dataset = tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=spec)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(2))
    assert np.isfinite(model.fit(dataset, shuffle=False, verbose=0).history["loss"]).all()


def test_mixed_precision_answers_alike_and_trains():
    expected, _ = masked(build(), rows())
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        out, _ = masked(model := build(), rows())
        model.compile(keras.optimizers.Adam(1e-3), run_eagerly=True)
        assert np.isfinite(again(model)["loss"]).all()
    finally:
        keras.config.set_dtype_policy("float32")
    assert keras.backend.standardize_dtype(out["logits"].dtype) == "bfloat16"
    error = np.abs(out["logits"].astype("float32") - expected["logits"])
    assert error.mean() < 0.02 * np.abs(expected["logits"]).mean()


def test_it_learns_what_only_the_visible_tell():
    """Every row repeats a token of its own: by position alone, all are as likely."""
    ids = np.tile(np.random.default_rng(0).integers(2, 22, (256, 1)).astype("int32"), 12)
    model = build()
    model.compile(keras.optimizers.Adam(1e-2))
    history = model.fit(ids, epochs=10, batch_size=32, verbose=0).history
    assert history["masked_loss"][0] > 1.0 and history["masked_loss"][-1] < 0.3
    assert model.evaluate(ids, verbose=0, return_dict=True)["masked_accuracy"] > 0.95


# What is saved.


def test_a_saved_model_goes_on_as_if_never_stopped(tmp_path):
    model, _ = fitted(jit_compile=False, dropout=0.2)
    model.save(tmp_path / "half.keras")
    resumed = keras.models.load_model(tmp_path / "half.keras")
    assert again(resumed) == again(model)
    for a, b in zip(model.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_export_answers_for_mask_tokens(tmp_path):
    model, ids = build(dropout=0.1), rows(4, 9, 2)
    ids[:, 3:5] = MASK
    model.export(tmp_path / "saved_model")
    served = tf.saved_model.load(str(tmp_path / "saved_model"))
    for shown in (ids, ids[:1, :4]):
        np.testing.assert_allclose(served.serve(tf.constant(shown)), model(shown), atol=1e-5)
        np.testing.assert_allclose(
            served.encode(tf.constant(shown)), model.encode(shown), atol=1e-5
        )
    assert not [node.op for node in nodes(tmp_path) if "andom" in node.op]


ELSEWHERE = """
import json, sys, keras, numpy as np, keras_dynmask
model = keras.models.load_model(sys.argv[1])
ids = np.load(sys.argv[2])
logits = keras.ops.convert_to_numpy(model(ids, training=True)["logits"])
model.compile(keras.optimizers.Adam(1e-2))
before = model.evaluate(ids, verbose=0, return_dict=True)["masked_loss"]
model.fit(ids, batch_size=8, epochs=20, shuffle=False, verbose=0)
after = model.evaluate(ids, verbose=0, return_dict=True)["masked_loss"]
assert after < before - 0.2, (before, after)
print(json.dumps(logits.ravel()[::97].tolist()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_another_backend_answers_alike(backend, tmp_path):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    environment = {"KERAS_BACKEND": backend, "PYTHONPATH": str(Path(__file__).parent.parent)}
    model = build()
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "ids.npy", rows())
    run = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, tmp_path / "model.keras", tmp_path / "ids.npy"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    expected = numpy(model(rows(), training=True)["logits"]).ravel()[::97]
    np.testing.assert_allclose(json.loads(run.stdout.splitlines()[-1]), expected, atol=1e-4)


# How it is asked for.


def test_a_recipe_hides_all_that_it_selects():
    class Tokenizer:
        def get_vocab_size(self):
            return VOCABULARY

        def token_to_id(self, token):
            return ["[PAD]", "[MASK]", "[SEP]", "[UNK]"].index(token)

    arguments = _parser().parse_args(["pretrain", "--visible-only", "--rate", "0.5"])
    assert arguments.visible_only
    recipe = Recipe(visible_only=True, mask_selection_rate=0.5, num_layers=1, hidden_dim=16)
    model = recipe.build_model(Tokenizer(), steps=1)
    assert model.decoder is not None and model.masking.mask_token_rate == 1.0
    standard = Recipe(num_layers=1, hidden_dim=16).build_model(Tokenizer(), steps=1)
    assert standard.decoder is None and standard.masking.mask_token_rate == 0.8


def test_misuse_is_named():
    masking = DynamicMasking(VOCABULARY, 0.2, MASK)
    plain = keras.Sequential([keras.layers.Embedding(VOCABULARY, 8)])
    with pytest.raises(ValueError, match="`encoder` must be a TransformerEncoder with `visible"):
        MaskedLanguageModel(plain, masking, visible_only=True)
    with pytest.raises(ValueError, match="`visible_only` must be True or False.*=2"):
        MaskedLanguageModel(TransformerEncoder(VOCABULARY, 1, 2, 16, 24), masking, visible_only=2)
    with pytest.raises(ValueError, match="`visible_only` must be True or False"):
        Recipe(visible_only="yes")
