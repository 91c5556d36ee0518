"""The objective against numbers worked out by hand."""

import math

import numpy as np
from keras import ops

from keras_dynmask.objective import hits, states_at, token_losses, weighted_mean


def test_states_are_taken_at_each_rows_own_positions():
    hidden = np.arange(12, dtype="float32").reshape(2, 3, 2)
    taken = states_at(ops.convert_to_tensor(hidden), np.array([[0, 2], [1, 1]], "int32"))
    expected = [[[0, 1], [4, 5]], [[8, 9], [8, 9]]]
    np.testing.assert_array_equal(ops.convert_to_numpy(taken), expected)


def test_token_losses_are_cross_entropies_in_nats():
    logits = np.log(np.array([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]], "float32"))
    losses = ops.convert_to_numpy(token_losses(logits, np.array([[1, 2]])))
    np.testing.assert_allclose(losses, [[math.log(4), -math.log(0.8)]], rtol=1e-6)


def test_a_hit_is_the_most_probable_token():
    logits = np.array([[[0.1, 0.9], [0.9, 0.1]]])
    np.testing.assert_array_equal(ops.convert_to_numpy(hits(logits, np.array([[1, 1]]))), [[1, 0]])


def test_the_mean_is_over_weights_and_zero_without_any():
    losses, weights = np.array([[2.0, 100.0], [4.0, 1.0]]), np.array([[1.0, 0.0], [1.0, 2.0]])
    assert float(weighted_mean(losses, weights)) == 2.0
    assert float(weighted_mean(losses, weights, total=16.0)) == 0.5
    assert float(weighted_mean(losses, np.zeros((2, 2)))) == 0.0
