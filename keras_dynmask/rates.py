"""How many: a rate for every row, from a number, a pair or a schedule."""

import re

import keras
import numpy as np
from keras.optimizers.schedules import LearningRateSchedule

from keras_dynmask import noise
from keras_dynmask.arrays import from_keras, ops
from keras_dynmask.errors import is_real, real, require
from keras_dynmask.selection import in_shares, scaled


def checked_rate(name, rate):
    """A rate as a float, a pair of floats or a schedule; also out of a config."""
    if isinstance(rate, dict):
        rate = keras.saving.deserialize_keras_object(rate)
    if isinstance(rate, LearningRateSchedule):
        first = rate(0)
        try:
            is_rate = np.shape(first) == () and is_real(float(first), 0, 1)
        except (TypeError, ValueError):
            is_rate = False
        expected = f"`{name}` must be a schedule of rates, each a number in [0, 1]."
        require(is_rate, expected, **{f"{name}(0)": first})
        return rate
    if not isinstance(rate, (tuple, list)):
        return real(name, rate, 0, 1)
    require(
        len(rate) == 2 and all(is_real(edge, 0, 1) for edge in rate) and rate[0] <= rate[1],
        f"`{name}` must be a number in [0, 1], or a pair of them with low <= high.",
        **{name: rate},
    )
    return float(rate[0]), float(rate[1])


def written_rate(name, written, steps):
    """A rate as it is written: `0.15`, `0.1,0.5` for a pair, `0.3:0.15` for a schedule.

    The schedule goes in a straight line from the first of the steps to the last.
    """
    try:
        rates = [float(rate) for rate in re.split("[,:]", written)]
    except ValueError:
        rates = []
    require(
        len(rates) in (1, 2) and all(0 <= rate <= 1 for rate in rates),
        f"`{name}` must be a number in [0, 1], or two: LOW,HIGH or FIRST:LAST.",
        **{name: written},
    )
    if ":" in written:
        first, last = rates
        return keras.optimizers.schedules.PolynomialDecay(first, max(1, steps - 1), last)
    return rates[0] if len(rates) == 1 else tuple(rates)


def rate_config(rate):
    """A rate as `get_config` writes it."""
    if isinstance(rate, LearningRateSchedule):
        return keras.saving.serialize_keras_object(rate)
    return rate


def highest_rate(rate):
    """The highest that is known before the step is."""
    return rate if isinstance(rate, float) else rate[1] if isinstance(rate, tuple) else 1.0


def lowest_rate(rate):
    """The lowest that is known before the step is."""
    return rate if isinstance(rate, float) else rate[0] if isinstance(rate, tuple) else 0.0


def rate_at(rate, step, keys, spread):
    """The rate of every row as float32: one number for all, or `[batch, 1]`.

    A schedule is clipped to [0, 1], and its NaN counts as 0. Of a pair (low, high) each
    row draws its own rate, uniform in (low, high].

    Args:
        rate: as `checked_rate` returns it.
        step: int or int tensor, the step at which a schedule is read.
        keys: the rows' keys, from `noise.row_keys`.
        spread: bool. True spreads the batch's rates evenly: for a batch of B, one lies
            in each B-th of the range (Kingma et al. 2021). False draws each row's
            from its own key alone.
    """
    if isinstance(rate, LearningRateSchedule):
        rate = from_keras(rate, step)
        return ops.clip(ops.where(ops.isnan(rate), 0.0, rate), 0.0, 1.0)
    if isinstance(rate, float):
        return rate
    low, high = (round(edge * 2**24) for edge in rate)
    _, _, drawn = noise.row_uniforms(keys)
    drawn = in_shares(drawn)
    if spread:
        drawn = drawn[:1] + even_shares(ops.shape(drawn)[0]) & (2**24 - 1)
    lowest = low if low == high else low + 1
    return ops.cast(lowest + scaled(drawn, high - low), "float32") * 2.0**-24


def even_shares(batch):
    """The B-ths of 2**24 as int32 `[batch, 1]`: `0, 2**24 / B, 2 * 2**24 / B, ...`

    Long division in digits of 12 bits, for batches under 2**19.
    """
    rows = ops.expand_dims(ops.arange(batch, dtype="int32"), 1)
    high = ops.left_shift(rows, 12)
    low = ops.left_shift(ops.mod(high, batch), 12)
    return ops.left_shift(ops.floor_divide(high, batch), 12) + ops.floor_divide(low, batch)
