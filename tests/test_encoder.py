"""The reference encoder: what a Transformer encoder owes its caller."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_dynmask import TransformerEncoder
from keras_dynmask.encoder import rotate, turns_at

IDS = np.array([[5, 6, 7, 8, 9, 0, 0], [4, 3, 2, 0, 0, 0, 0]], "int32")


def small_encoder(**kwargs):
    keras.utils.set_random_seed(1)
    return TransformerEncoder(
        20, num_layers=2, num_heads=2, hidden_dim=16, intermediate_dim=24, **kwargs
    )


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def test_it_gives_a_state_per_token_at_any_length():
    encoder = small_encoder()
    assert encoder(IDS).shape == (2, 7, 16)
    assert encoder(np.ones((1, 300), "int32")).shape == (1, 300, 16)


def test_padding_changes_nothing_for_real_tokens():
    encoder = small_encoder()
    short, padded = encoder(IDS[:, :5]), encoder(np.pad(IDS, ((0, 0), (0, 9))))
    np.testing.assert_allclose(numpy(padded)[0, :5], numpy(short)[0], atol=1e-5)
    np.testing.assert_allclose(numpy(padded)[1, :3], numpy(short)[1, :3], atol=1e-5)


def test_a_padding_mask_takes_the_place_of_the_padding_id():
    encoder = small_encoder()
    other = np.where(IDS == 0, 11, IDS)
    masked = encoder({"token_ids": other, "padding_mask": IDS != 0})
    np.testing.assert_allclose(numpy(masked)[0, :5], numpy(encoder(IDS))[0, :5], atol=1e-6)
    assert not np.allclose(numpy(encoder(other))[0, :5], numpy(encoder(IDS))[0, :5], atol=1e-3)


def test_without_a_padding_id_every_token_is_attended_to():
    encoder = small_encoder(padding_token_id=None)
    assert not np.allclose(numpy(encoder(IDS))[0, :5], numpy(encoder(IDS[:, :5]))[0], atol=1e-3)


def test_every_token_sees_both_sides_and_the_order():
    encoder = small_encoder()
    base = numpy(encoder(np.array([[5, 6, 7, 8]])))
    for changed in ([[5, 6, 7, 9]], [[9, 6, 7, 8]]):
        assert (np.abs(numpy(encoder(np.array(changed))) - base).max(axis=-1) > 1e-4).all()
    swapped = numpy(encoder(np.array([[6, 5, 7, 8]])))
    assert np.abs(swapped[0, 3] - base[0, 3]).max() > 1e-5


def test_tokens_may_come_in_any_order_with_their_positions():
    encoder = small_encoder()
    order = np.random.default_rng(0).permutation(7)
    shuffled = encoder({"token_ids": IDS[:, order], "positions": np.stack([order, order])})
    np.testing.assert_allclose(numpy(shuffled), numpy(encoder(IDS))[:, order], atol=1e-5)
    assert np.abs(numpy(encoder(IDS[:, order])) - numpy(shuffled)).max() > 1e-3


def test_rotated_products_depend_on_distance_alone():
    states = np.tile(np.random.default_rng(0).normal(size=(1, 1, 1, 8)), (1, 50, 1, 1))
    turns = turns_at(ops.arange(50)[None], 8, 1e4)
    turned = numpy(rotate(ops.convert_to_tensor(states, "float32"), turns))[0, :, 0]
    products = turned @ turned.T
    for distance in (0, 1, 7):
        diagonal = np.diagonal(products, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4)
    assert abs(products[0, 0] - products[0, 7]) > 0.1


def test_dropout_is_active_in_training_only():
    encoder = small_encoder(dropout=0.5)
    np.testing.assert_array_equal(numpy(encoder(IDS)), numpy(encoder(IDS)))
    assert not np.allclose(numpy(encoder(IDS, training=True)), numpy(encoder(IDS, training=True)))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_computes_in_half_and_stores_in_full(policy):
    encoder = small_encoder(dtype=policy)
    assert keras.backend.standardize_dtype(encoder(IDS).dtype) == policy.removeprefix("mixed_")
    assert {weight.dtype for weight in encoder.weights} >= {"float32"}
    full = numpy(small_encoder()(IDS))
    np.testing.assert_allclose(numpy(ops.cast(encoder(IDS), "float32")), full, atol=0.15)


def test_a_row_of_padding_alone_is_finite():
    assert np.isfinite(numpy(small_encoder()(np.zeros((1, 4), "int32")))).all()


def test_it_comes_back_from_its_config_and_from_a_file(tmp_path):
    encoder = small_encoder(dropout=0.3, padding_token_id=3, rotary_base=500.0)
    assert TransformerEncoder.from_config(encoder.get_config()).get_config() == encoder.get_config()
    encoder.save(tmp_path / "encoder.keras")
    loaded = keras.models.load_model(tmp_path / "encoder.keras")
    np.testing.assert_array_equal(numpy(loaded(IDS)), numpy(encoder(IDS)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_dim": 15}, "`hidden_dim` must be a multiple of 2 \\* `num_heads`.*hidden_dim=15"),
        ({"num_layers": 0}, "`num_layers` must be a whole number, at least 1.*num_layers=0"),
        ({"num_heads": 2.5}, "`num_heads` must be a whole number.*num_heads=2.5"),
        ({"dropout": 1.0}, "`dropout` must be a number.*dropout=1.0"),
        ({"padding_token_id": 20}, "`padding_token_id` must be .*\\[0, 19\\].*=20"),
        ({"vocabulary_size": "20"}, "`vocabulary_size` must be a whole number.*='20'"),
        ({"rotary_base": 0.0}, "`rotary_base` must be a number, at least 1.*rotary_base=0.0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    good = {
        "vocabulary_size": 20,
        "num_layers": 1,
        "num_heads": 2,
        "hidden_dim": 16,
        "intermediate_dim": 8,
    }
    with pytest.raises(ValueError, match=message):
        TransformerEncoder(**{**good, **arguments})
