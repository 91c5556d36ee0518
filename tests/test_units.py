"""Where units begin, how they are numbered, and what they weigh: tables to check by eye."""

import numpy as np
import pytest
from keras import ops

from keras_dynmask.units import (
    begins_at_changes,
    count_in_unit,
    highest_in_unit,
    running_sum,
    unit_begins,
    unit_numbers,
)

T, F = True, False


def row(values, dtype=None):
    return ops.convert_to_tensor([values], dtype=dtype)


def listed(tensor):
    return ops.convert_to_numpy(tensor)[0].tolist()


@pytest.mark.parametrize(
    ("may_begin", "boundary", "coin", "mean", "begins"),
    [
        # The coin must fall under 1 / 2.
        ([T, T, F, T, T, T], [F, F, F, F, T, F], [0.9, 0.1, 0.1, 0.9, 0.9, 0.9], 2,
         [T, T, F, F, T, T]),
        # A mean length of 1: every coin says yes.
        ([T, T, T, T], [F, F, F, F], [0.0, 0.5, 0.9, 0.999], 1, [T, T, T, T]),
        # Inside a word no coin begins a unit.
        ([T, F, F, T], [F, F, F, F], [0.0, 0.0, 0.0, 0.0], 1, [T, F, F, T]),
        # The first position begins a unit, even one that continues a word.
        ([F, F, T], [F, F, F], [0.9, 0.9, 0.9], 3, [T, F, F]),
        # A boundary begins a unit and so does the position after it, against every coin.
        ([F, F, F, F, F], [F, T, F, F, T], [0.9] * 5, 3, [T, T, T, F, T]),
        # Two boundaries together; a boundary at the end does not wrap to the start.
        ([F, F, F, F], [F, T, T, F], [0.9] * 4, 3, [T, T, T, T]),
        # The coin is compared strictly: 1 / 4 itself is no.
        ([T, T, T], [F, F, F], [0.9, 0.25, 0.2], 4, [T, F, T]),
        ([F], [F], [0.9], 9, [T]),
    ],
)  # fmt: skip
def test_units_begin_where_the_coin_or_a_boundary_says(may_begin, boundary, coin, mean, begins):
    edges = row([T] + [F] * (len(coin) - 1))
    got = unit_begins(row(may_begin), row(boundary), edges, row(coin, "float32"), mean)
    assert listed(got) == begins


def test_a_unit_begins_at_an_edge():
    """The picture in the docstring."""
    may_begin, boundary = row([T, T, F, T, T, T, T]), row([F, F, F, F, T, F, F])
    edges = row([T, F, F, F, F, F, T])
    coin = row([0.9, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9], "float32")
    got = unit_begins(may_begin, boundary, edges, coin, 2)
    assert listed(got) == [T, T, F, F, T, T, T]


@pytest.mark.parametrize(
    ("ids", "begins"),
    [
        ([5, 5, 7, 7, 0], [T, F, T, F, T]),
        ([3, 4, 3], [T, T, T]),
        ([1, 1, 1], [T, F, F]),
        ([4], [T]),
    ],
)
def test_documents_begin_where_the_id_changes(ids, begins):
    assert listed(begins_at_changes(row(ids))) == begins


@pytest.mark.parametrize(
    ("begins", "numbers"),
    [
        ([T, F, T, F, F, T], [0, 0, 1, 1, 1, 2]),
        ([T, T, T], [0, 1, 2]),
        ([T, F, F], [0, 0, 0]),
        ([T], [0]),
    ],
)
def test_units_are_numbered_from_the_left(begins, numbers):
    assert listed(unit_numbers(row(begins))) == numbers


@pytest.mark.parametrize(
    ("weights", "numbers", "heaviest"),
    [
        ([1, 5, 2, 0, 3], [0, 0, 1, 1, 2], [5, 5, 2, 2, 3]),
        ([0, 0, 0], [0, 0, 1], [0, 0, 0]),
        ([4], [0], [4]),
    ],
)
def test_a_unit_weighs_as_much_as_its_heaviest_token(weights, numbers, heaviest):
    got = highest_in_unit(row(weights, "float32"), row(numbers, "int32"))
    assert listed(got) == heaviest


def test_positions_are_counted_unit_by_unit():
    """The picture in the docstring."""
    assert listed(count_in_unit(row([T, F, T, T, T]), row([0, 0, 1, 1, 2]))) == [1, 1, 2, 2, 1]


def test_units_of_two_rows_do_not_weigh_on_each_other():
    weights = ops.convert_to_tensor([[1.0, 2.0], [8.0, 9.0]])
    numbers = ops.convert_to_tensor([[0, 0], [0, 1]], dtype="int32")
    assert ops.convert_to_numpy(highest_in_unit(weights, numbers)).tolist() == [[2, 2], [8, 9]]


@pytest.mark.parametrize("shape", [(2, 0), (0, 3), (0, 0)])
def test_empty_rows_and_batches_have_no_units(shape):
    nothing = ops.zeros(shape, "bool")
    begins = unit_begins(nothing, nothing, nothing, ops.zeros(shape), 2.0)
    assert ops.shape(unit_numbers(begins)) == shape
    assert np.shape(begins_at_changes(ops.zeros(shape, "int32"))) == shape
    assert np.shape(count_in_unit(nothing, ops.zeros(shape, "int32"))) == shape
    weights = highest_in_unit(ops.zeros(shape), ops.zeros(shape, "int32"))
    assert np.shape(weights) == shape


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 128, 300, 4097])
def test_sums_are_running(length):
    numbers = np.random.default_rng(length).integers(-9, 9, (2, length)).astype("int32")
    sums = running_sum(ops.convert_to_tensor(numbers))
    assert ops.convert_to_numpy(sums).tolist() == np.cumsum(numbers, axis=1).tolist()
