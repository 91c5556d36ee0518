"""The two functions for arrays: 0 means masked."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_dynmask import apply_masking, generate_masking_sequence


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def test_one_sequence_or_a_batch():
    assert generate_masking_sequence(12).shape == (12,)
    assert generate_masking_sequence(12, batch_size=3).shape == (3, 12)
    assert generate_masking_sequence(0).shape == (0,)
    assert keras.backend.standardize_dtype(generate_masking_sequence(5).dtype) == "int32"


@pytest.mark.parametrize(("rate", "masked"), [(0, 0), (0.15, 3), (0.5, 10), (1, 20)])
def test_the_count_is_exact(rate, masked):
    sequences = numpy(generate_masking_sequence(20, rate, batch_size=50, seed=1))
    assert set(np.unique(sequences)) <= {0, 1}
    np.testing.assert_array_equal((sequences == 0).sum(axis=1), masked)


def test_independent_draws_have_the_rate_as_their_mean():
    """z of 4.89 at 100,000 draws: finds a rate that is off by 4 %."""
    sequences = numpy(generate_masking_sequence(100, batch_size=1000, exact_count=False, seed=2))
    counts = (sequences == 0).sum(axis=1)
    assert abs(counts.sum() - 15_000) < 4.89 * np.sqrt(100_000 * 0.15 * 0.85)
    assert counts.std() > 2.5


def test_spans_are_longer_than_tokens():
    def run_length(span):
        sequence = numpy(generate_masking_sequence(20_000, 0.2, mean_span_length=span, seed=3))
        return (sequence == 0).sum() / (np.diff(sequence, prepend=1) == -1).sum()

    assert run_length(1) == pytest.approx(1.25, abs=0.05)  # 1 / (1 - rate)
    assert run_length(4) == pytest.approx(5, abs=0.5)  # 4 / (1 - rate)


def test_a_seed_and_a_step_decide():
    def draw(**kwargs):
        return numpy(generate_masking_sequence(64, **kwargs)).tolist()

    assert draw(seed=5) == draw(seed=5)
    assert draw(seed=5) != draw(seed=6)
    assert draw(seed=5, step=1) != draw(seed=5)
    assert draw() != draw()


def test_a_compiled_function_needs_a_seed_and_a_step():
    draw = tf.function(lambda step: generate_masking_sequence(64, seed=5, step=step))
    for step in (0, 3):
        expected = numpy(generate_masking_sequence(64, seed=5, step=step))
        np.testing.assert_array_equal(draw(tf.constant(step)), expected)
    with pytest.raises(ValueError, match="`seed` must be given in a compiled function"):
        tf.function(lambda: generate_masking_sequence(64))()


def test_masks_apply_where_shapes_are_not_known():
    rows = tf.data.Dataset.from_tensors([5, 6, 7]).repeat(2).batch(2)
    shown = next(iter(rows.map(lambda row: apply_masking(row, [1, 0, 1], 9))))
    assert shown.numpy().tolist() == [[5, 9, 7]] * 2


def test_masks_are_nested_in_the_rate():
    masks = [numpy(generate_masking_sequence(50, rate / 10, seed=4)) for rate in range(11)]
    for less, more in itertools.pairwise(masks):
        assert (more <= less).all()


def test_applying_shows_the_mask_where_it_is_zero():
    assert numpy(apply_masking([5, 6, 7], [1, 0, 1])).tolist() == [5, 0, 7]
    ids = np.array([[5, 6], [7, 8]], "uint8")
    shown = apply_masking(ids, [[0, 1], [1, 0]], mask_token_id=3)
    assert numpy(shown).tolist() == [[3, 6], [7, 3]]
    assert numpy(shown).dtype == "uint8" and ids.tolist() == [[5, 6], [7, 8]]
    assert numpy(apply_masking(ids, [0, 1], 9)).tolist() == [[9, 6], [9, 8]]
    vectors = apply_masking(np.ones((2, 3, 4), "float32"), np.array([[[0], [1], [1]]]))
    assert numpy(vectors).sum(axis=-1).tolist() == [[0, 4, 4], [0, 4, 4]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: generate_masking_sequence(-1), "`sequence_length` must be.*sequence_length=-1"),
        (lambda: generate_masking_sequence(5, 1.5), "`mask_rate` must be.*mask_rate=1.5"),
        (lambda: generate_masking_sequence(5, batch_size=2.0), "`batch_size` must be.*=2.0"),
        (lambda: generate_masking_sequence(5, mean_span_length=0), "`mean_span_length` must be"),
        (lambda: generate_masking_sequence(5, seed=-3), "`seed` must be.*seed=-3"),
        (lambda: generate_masking_sequence(5, exact_count="yes"), "`exact_count` must be.*'yes'"),
        (lambda: apply_masking([1, 2, 3], [1, 0]), r"`mask_sequence` must have.*\(2,\).*\(3,\)"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
