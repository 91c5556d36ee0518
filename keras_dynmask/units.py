"""Where a unit begins: the only thing in which masking strategies differ.

A unit is what is masked together: a token, a whole word, a span, a span of whole
words. Two dials make all four, and data from the caller makes any other.
"""

from keras import ops


def unit_begins(may_begin, boundary, coin, mean_span_length):
    """True where a unit begins. Args are `[batch, length]`, bool and noise in [0, 1).

    A unit begins where it may (not inside a word) and a coin of 1 / mean length
    says so, which makes spans of geometric length; and always at a boundary
    (special token, padding), after one, and at the first position:

        may_begin      [T T F T T T]
        boundary       [F F F F T F]
        coin < 1/mean  [F T T F F F]
        begins         [T T F F T T]
    """
    first = ops.arange(ops.shape(boundary)[1]) == 0
    after_boundary = ops.roll(boundary, 1, axis=1)
    drawn = may_begin & (coin < 1.0 / mean_span_length)
    return drawn | boundary | after_boundary | first


def unit_numbers(begins):
    """Number the units of each row: `[T F T F F T] -> [0 0 1 1 1 2]`."""
    return ops.cumsum(ops.cast(begins, "int32"), axis=1) - 1


def heaviest_in_unit(weights, numbers):
    """Every position takes the largest weight of its unit.

    All arrays are `[batch, length]`:

        weights  [1. 5. 2. 0. 3.]
        numbers  [0  0  1  1  2 ]
        heaviest [5. 5. 2. 2. 3.]
    """
    batch, length = ops.shape(weights)
    rows = ops.expand_dims(ops.arange(batch, dtype="int32"), 1)
    segments = ops.reshape(numbers + rows * length, (-1,))
    heaviest = ops.segment_max(ops.reshape(weights, (-1,)), segments, batch * length)
    return ops.reshape(ops.take(heaviest, segments), (batch, length))
