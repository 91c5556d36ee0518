"""From keys to selected positions and targets: tables to check by eye."""

import numpy as np
import oracle
import pytest
from keras import ops

from keras_dynmask.selection import (
    count_positions,
    drop_overflow,
    in_shares,
    key_with_below,
    scaled,
    select_exactly,
    select_first,
    select_independently,
    select_lowest,
    selected_count,
    selected_positions,
    values_at,
    weighted_order,
)

T, F = True, False


def row(values, dtype="int32"):
    return ops.convert_to_tensor([values], dtype=dtype)


def flags(text):
    """`"F T" -> [[F T]]`"""
    return row([letter == "T" for letter in text.split()], "bool")


def listed(tensor):
    return ops.convert_to_numpy(tensor)[0].tolist()


def spelled(selected):
    return " ".join("T" if chosen else "F" for chosen in listed(selected))


TOKENS = [40, -7, 30, 10]  # places on the circle: 3 0 2 1
WORDS = [30, 30, 10, 20, 20]  # units end at 4, 0 and 2


@pytest.mark.parametrize(
    ("keys", "selectable", "count", "place", "selected"),
    [
        (TOKENS, "T T T T", 0, 2, "F F F F"),
        (TOKENS, "T T T T", 1, 0, "F T F F"),  # window {0}
        (TOKENS, "T T T T", 2, 0, "F T F T"),  # window {0, 1}
        (TOKENS, "T T T T", 2, 2, "T F T F"),  # window {2, 3}
        (TOKENS, "T T T T", 2, 3, "T T F F"),  # window {3, 0}: it wraps round
        (TOKENS, "T T T T", 3, 3, "T T F T"),  # window {3, 0, 1}
        (TOKENS, "T T T T", 4, 0, "T T T T"),
        (TOKENS, "T T T T", 4, 3, "T T T T"),
        (TOKENS, "T F T T", 1, 2, "T F F F"),  # places 2 - 1 0, window {2}
        (TOKENS, "T F F F", 1, 0, "T F F F"),
        (TOKENS, "F F F F", 0, 0, "F F F F"),
        (WORDS, "T T T T T", 2, 1, "F F F T T"),  # the picture in the docstring
        (WORDS, "T T T T T", 1, 1, "F F F F F"),  # window {1}: no unit ends there
        (WORDS, "T T T T T", 2, 3, "T T F F F"),  # window {3, 4}
        (WORDS, "T T T T T", 3, 2, "T T F T T"),  # window {2, 3, 4}
        (WORDS, "T T T T T", 2, 4, "T T T F F"),  # window {4, 0}
        (WORDS, "T T T T T", 5, 2, "T T T T T"),
        (WORDS, "T F T T T", 1, 2, "F F F T T"),  # half a word is selectable: ends 3 0 2
        ([-(2**31), 2**31 - 1], "T T", 1, 0, "T F"),  # the extreme keys
        ([-(2**31), 2**31 - 1], "T T", 1, 1, "F T"),
        ([2**31 - 1], "T", 1, 0, "T"),
        ([-(2**31)], "T", 0, 0, "F"),
        ([5], "T", 0, 0, "F"),
        ([], "", 0, 0, ""),
    ],
)
def test_units_that_end_in_the_window_are_selected(keys, selectable, count, place, selected):
    turn = row([(place + 0.5) / max(1, selectable.count("T"))], "float32")
    got = select_exactly(row(keys), flags(selectable), row([count]), turn)
    assert spelled(got) == selected


@pytest.mark.parametrize(
    ("keys", "selectable", "count", "selected"),
    [
        (TOKENS, "T T T T", 0, "F F F F"),
        (TOKENS, "T T T T", 1, "F T F F"),
        (TOKENS, "T T T T", 3, "F T T T"),
        (TOKENS, "T T T T", 9, "T T T T"),
        (TOKENS, "T F T T", 1, "F F F T"),
        (WORDS, "T T T T T", 2, "F F T F F"),  # the next would be cut
        (WORDS, "T T T T T", 4, "F F T T T"),  # the picture in the docstring
        (WORDS, "T T F T F", 3, "T T F T F"),
        ([-(2**31), 2**31 - 1], "T T", 1, "T F"),
        ([-(2**31), 2**31 - 1], "T T", 2, "T T"),
        ([-(2**31)], "T", 0, "F"),
        (list(range(20)), " ".join("T" * 20), 3, " ".join("TTT" + 17 * "F")),
        ([], "", 0, ""),
    ],
)
def test_the_lowest_units_are_selected_that_fit_whole(keys, selectable, count, selected):
    assert spelled(select_lowest(row(keys), flags(selectable), row([count]))) == selected


@pytest.mark.parametrize("lengths", [[1] * 12, [3, 1, 2, 5, 1], [12], [4, 4, 4]])
def test_selecting_exactly_equals_the_direct_rule_at_every_count_and_place(lengths):
    keys = np.random.default_rng(0).integers(-(2**31), 2**31, len(lengths))
    keys = np.repeat(keys, lengths)
    units = [tuple(np.flatnonzero(keys == key)) for key in np.unique(keys)]
    cases = [(count, place) for count in range(13) for place in range(12)]
    table = ops.convert_to_tensor(np.tile(keys, (len(cases), 1)), dtype="int32")
    counts, places = np.transpose(cases)[..., None]
    turns = ops.convert_to_tensor((places + 0.5) / 12, "float32")
    counts = ops.convert_to_tensor(counts, "int32")
    selected = ops.convert_to_numpy(select_exactly(table, table == table, counts, turns))
    for (count, place), chosen in zip(cases, selected, strict=True):
        expected = [place for unit in oracle.circle_rule(units, count, place) for place in unit]
        assert np.flatnonzero(chosen).tolist() == sorted(expected)


@pytest.mark.parametrize(
    ("rate", "selected"),
    [(0.0, "F F F F"), (0.25, "T F F F"), (0.5, "T T F F"), (1.0, "T T T T")],
)
def test_units_are_selected_independently_when_their_key_is_below_the_rate(rate, selected):
    noise = row([0.0, 0.25, 0.5, 0.99], "float32")
    expected = {0.5: "T T F F"}.get(rate, selected)
    assert spelled(select_independently(noise, flags("T T T T"), rate)) == expected
    assert spelled(select_independently(noise, flags("F F F F"), rate)) == "F F F F"


@pytest.mark.parametrize(
    ("keys", "selected", "capacity", "kept"),
    [
        (TOKENS, "T T T T", 4, "T T T T"),
        (TOKENS, "T T T T", 2, "F T F T"),  # the largest keys go
        (TOKENS, "T T F T", 2, "F T F T"),
        (TOKENS, "T F F F", 1, "T F F F"),
        (WORDS, "T T T T T", 3, "F F T T T"),
        (WORDS, "T T T T T", 4, "F F T T T"),  # a word of two does not fit the last place
        (WORDS, "T T T T T", 2, "F F T F F"),
        (WORDS, "T T F T T", 1, "F F F F F"),  # no unit fits: none is cut
        ([9, 9, 9], "T T T", 2, "F F F"),
        ([2**31 - 1, -(2**31)], "T T", 1, "F T"),
        ([5], "F", 1, "F"),
        ([], "", 1, ""),
    ],
)
def test_units_that_overflow_the_capacity_are_dropped_whole(keys, selected, capacity, kept):
    assert spelled(drop_overflow(row(keys), flags(selected), capacity)) == kept


@pytest.mark.parametrize(
    ("limit", "largest"),
    [(0, -7), (1, 10), (2, 30), (3, 40), (4, 2**31 - 1), (9, 2**31 - 1), (-1, -(2**31))],
)
def test_largest_key_with_so_many_below(limit, largest):
    got = key_with_below(row(TOKENS), flags("T T T T"), limit)
    assert listed(got) == [largest]


@pytest.mark.parametrize(
    ("size", "rate", "coin", "count"),
    [
        (20, 0.15, 0.0, 3),  # exactly 3, whatever the coin and however .15 is rounded
        (20, 0.15, 1 - 2**-24, 3),
        (10, 0.25, 0.49, 2),  # 2.5: half the coins round up
        (10, 0.25, 0.5, 3),
        (1, 0.25, 0.74, 0),
        (1, 0.25, 0.75, 1),
        (0, 0.5, 1 - 2**-24, 0),
        (7, 0.0, 1 - 2**-24, 0),
        (7, 1.0, 0.0, 7),
        (1, 1.0, 1 - 2**-24, 1),
        (2**20, 1.0, 1 - 2**-24, 2**20),
    ],
)
def test_the_count_is_the_product_rounded_by_a_coin(size, rate, coin, count):
    assert listed(selected_count(row([size]), rate, row([coin], "float32"))) == [count]


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 1 / 3, 0.5, 0.7, 0.9, 0.999, 1.0])
def test_the_mean_count_is_exact(rate):
    """All coins k / 4096 in one go: the mean misses rate * size by less than 1 / 4096."""
    coins = np.arange(4096, dtype="float32")[:, None] / 4096
    for size in (1, 2, 7, 20, 62, 510):
        sizes = ops.full((4096, 1), size, "int32")
        counts = ops.convert_to_numpy(selected_count(sizes, rate, ops.convert_to_tensor(coins)))
        assert abs(counts.mean() - rate * size) < 1 / 4096 + size * 2**-24
        assert counts.min() >= np.floor(rate * size - 1e-6)
        assert counts.max() <= np.ceil(rate * size - 1e-4)


def test_fifteen_percent_of_twenty_is_three_for_every_row_and_rate():
    coins = ops.convert_to_tensor(np.random.default_rng(0).random((4096, 1)), "float32")
    for percent in range(5, 100, 5):
        counts = selected_count(ops.full((4096, 1), 20, "int32"), percent / 100, coins)
        assert np.unique(ops.convert_to_numpy(counts)).tolist() == [percent // 5]


def test_a_rate_may_differ_by_row():
    sizes, rates = ops.full((3, 1), 8, "int32"), ops.convert_to_tensor([[0.0], [0.25], [1.0]])
    counts = selected_count(sizes, rates, ops.full((3, 1), 0.5))
    assert ops.convert_to_numpy(counts).ravel().tolist() == [0, 2, 8]


def test_scaling_equals_the_product_of_big_integers():
    random = np.random.default_rng(0)
    amounts = np.append(random.integers(0, 2**24, 2000), [0, 1, 2**24 - 1, 2**24 - 1, 2**12])
    shares = np.append(random.integers(0, 2**24 + 1, 2000), [2**24, 0, 2**24, 2**24 - 1, 2**12])
    carries = np.append(random.integers(0, 2**24, 2000), [2**24 - 1, 0, 0, 2**24 - 1, 0])
    got = scaled(*(ops.convert_to_tensor(part, "int32") for part in (amounts, shares, carries)))
    expected = [
        (a * s + c) >> 24
        for a, s, c in zip(amounts.tolist(), shares.tolist(), carries.tolist(), strict=True)
    ]
    assert ops.convert_to_numpy(got).tolist() == expected


@pytest.mark.parametrize(
    ("rate", "shares"), [(0, 0), (1, 2**24), (0.5, 2**23), (2**-24, 1), (0.15, 2516582)]
)
def test_a_rate_in_shares(rate, shares):
    assert int(in_shares(rate)) == shares == oracle.shares(rate)


@pytest.mark.parametrize(
    ("selected", "capacity", "positions"),
    [
        ("F T F T F", 3, [1, 3, 0]),
        ("F T F T F", 2, [1, 3]),
        ("F F F", 2, [0, 0]),
        ("T T T", 3, [0, 1, 2]),
        ("F F T", 5, [2, 0, 0, 0, 0]),
        ("T", 1, [0]),
        ("", 2, [0, 0]),
    ],
)
def test_positions_are_in_order_and_padded_with_zero(selected, capacity, positions):
    assert listed(selected_positions(flags(selected), capacity)) == positions


def test_positions_and_values_of_rows_do_not_mix():
    selected = ops.convert_to_tensor([[T, T, F], [F, F, F], [F, F, T]])
    positions = selected_positions(selected, 2)
    assert ops.convert_to_numpy(positions).tolist() == [[0, 1], [0, 0], [2, 0]]
    values = ops.convert_to_tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]], "int32")
    taken = ops.convert_to_numpy(values_at(values, positions))
    assert taken.tolist() == [[1, 2], [4, 4], [9, 7]]


def test_count_positions():
    assert listed(count_positions(flags("T F T T"))) == [3]
    assert listed(count_positions(flags(""))) == [0]


NO_TURN = row([0.0], "float32")  # keeps the last unit


def test_heavier_units_come_earlier():
    noise = row([0.25] * 3, "float32")
    order = listed(weighted_order(noise, row([1.0, 4.0, 2.0], "float32")))
    assert order[1] < order[2] < order[0]


def test_a_weighted_order_is_that_of_its_noise_where_weights_are_equal():
    noise = np.random.default_rng(0).integers(0, 2**24, (1, 1000)) / 2**24
    order = weighted_order(ops.convert_to_tensor(noise, "float32"), ops.ones((1, 1000)))
    expected = np.argsort(noise[0], kind="stable")
    assert np.argsort(listed(order), kind="stable").tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("count", "selected"),
    [(0, "F F F F F"), (1, "F F T F F"), (2, "F F T F T"), (3, "T F T F T"), (5, "T T T T T")],
)
def test_equal_places_in_the_order_are_told_apart_by_the_keys(count, selected):
    order, keys = row([5, 5, 1, 5, 5]), row([20, 40, 90, 30, 10])
    chosen = select_first(order, keys, flags("T T T T T"), row([count]), NO_TURN)
    assert spelled(chosen) == selected


@pytest.mark.parametrize(("turn", "selected"), [(0.24, "F T T T T"), (0.26, "F F F F F")])
def test_the_last_unit_is_kept_with_probability_room_over_length(turn, selected):
    order = keys = row([9, 5, 5, 5, 5])
    got = select_first(order, keys, flags("T T T T T"), row([1]), row([turn], "float32"))
    assert spelled(got) == selected


def test_a_unit_in_an_order_is_not_cut():
    order, keys = row([5, 5, 1, 1, 5]), row([20, 20, 90, 90, 10])
    for count, selected in ((1, "F F T T F"), (3, "F F T T T"), (4, "T T T T T")):
        assert (
            spelled(select_first(order, keys, flags("T T T T T"), row([count]), NO_TURN))
            == selected
        )
