"""From keys to selected positions, and from those to targets of fixed size.

Every position carries the key of its unit: 32 random bits as int32. A unit is
selected because its key lies in a range, never because of where it stands, so no
position is favoured, whatever the setting.
"""

import numpy as np

from keras_dynmask.arrays import ops
from keras_dynmask.units import count_in_unit, running_count


def count_positions(chosen, documents=None):
    """How many positions are chosen of each row, int32 `[batch, 1]`; or, given the numbers
    of documents that have a count each, of each position's document, `[batch, length]`."""
    if documents is None:
        return ops.sum(ops.cast(chosen, "int32"), axis=1, keepdims=True)
    return count_in_unit(chosen, documents)


def select_independently(noise, selectable, rate):
    """Select each unit on its own with probability `rate`.

    `[batch, length]`; `noise` in [0, 1) is equal inside a unit.
    """
    return selectable & (noise < rate)


def select_lowest(keys, selectable, count, documents=None):
    """Select the units of lowest key, as many whole ones as fit in `count` positions.

    Tokens are selected exactly, and each with probability count / selectable.

        keys      [30 30 10 20 20]
        count     4
        selected  [F  F  T  T  T ]

    Args:
        keys: int32 `[batch, length]`, equal inside a unit.
        selectable: bool `[batch, length]`.
        count: int32 `[batch, 1]`, or a number.
        documents: None, or the number of each position's document, int32 `[batch,
            length]`, where each has a count of its own: `count` is then `[batch,
            length]`, equal inside a document.
    """
    all_fit = count_positions(selectable, documents) <= count
    return selectable & (all_fit | (keys < key_with_below(keys, selectable, count, documents)))


def select_exactly(keys, selectable, count, turn, documents=None):
    """Select `count` selectable positions of each row, in whole units.

    Lay the units in the order of their keys on a circle of the row's selectable
    positions. A unit is selected when it ends in the window of `count` places that
    begins at a place drawn by `turn`. So each unit is selected with probability
    count / selectable, whatever its length; no unit is cut; and the row misses its
    count by less than one unit.

        keys                     [30 30 10 20 20]
        places on the circle      3  4  0  1  2     (units end at 0, 2 and 4)
        turn=.2 of 5, count=2     the place is 1, the window is {1, 2}
        selected                 [F  F  F  T  T ]

    Units end in the order of their keys, so the window is a range of keys and its two
    edges are found by bisection: no sorting. A document that has a count of its own
    has a circle of its own: nothing above asks what else is in the row.

    Args:
        keys, selectable, documents: as in `select_lowest`.
        count: as there, at most the number of selectable positions.
        turn: noise in [0, 1), float32, in the shape of `count`.
    """
    circle = count_positions(selectable, documents)
    place = scaled(circle, in_shares(turn))
    end = place + count
    wraps = end >= circle
    end = ops.where(wraps, end - circle, end)
    after_place = ~select_lowest(keys, selectable, place, documents)
    before_end = select_lowest(keys, selectable, end, documents)
    window = ops.where(wraps, after_place | before_end, after_place & before_end)
    return selectable & window


def select_first(order, keys, selectable, count, turn, documents=None):
    """Select `count` selectable positions of each row, in whole units, first by `order`.

    The last unit may overrun the count. It is kept with probability room / length, so
    that the mean count is exact. Where units are equal in `order`, their keys decide.
    All are as in `select_exactly`, and `order` like `keys`.
    """
    before = select_lowest(order, selectable, count, documents)
    level = first_unit(order, selectable & ~before, documents)
    room = count - count_positions(before, documents)
    before = before | select_lowest(keys, level, room, documents)
    last_unit = first_unit(keys, level & ~before, documents)
    room = count - count_positions(before, documents)
    kept = scaled(count_positions(last_unit, documents), in_shares(turn)) < room
    return before | (last_unit & kept)


def first_unit(keys, counted, documents=None):
    """The counted positions of lowest key in each row, or in each document."""
    return counted & (keys == key_with_below(keys, counted, 0, documents))


def weighted_order(noise, weights):
    """An order in which the units are a weighted draw without replacement, as int32.

    Each unit gets an exponential number whose rate is its weight; the smallest come
    first (Efraimidis and Spirakis 2006). So the first is drawn in proportion to the
    weights, the second in proportion to those that are left, and so on.

    It is the logarithm of that number, in integers, because a compiler's `log` is not
    the next compiler's. Weights count from 2**-64 to 2**64.
    """
    return log2(ops.cast(exponential(in_shares(noise)), "float32")) - log2(
        ops.clip(weights, 2.0**-64, 2.0**64)
    )


def weighted_edge(rate):
    """Where independent draws of `weighted_order` end: a unit of weight w comes before
    with probability 1 - (1 - rate)**w."""
    shares = in_shares(rate)
    edge = log2(ops.cast(exponential(shares), "float32"))
    edge = ops.where(shares > 0, edge, -(2**31))
    return ops.where(shares < 2**24, edge, 2**31 - 1)


def exponential(shares):
    """-log2(1 - shares / 2**24), an exponential number, in 2**-24ths and at least one."""
    left = ops.cast(ops.maximum(2**24 - shares, 1), "float32")
    return ops.maximum(24 * 2**24 - log2(left), 1)


def log2(numbers):
    """The logarithm to base 2 of positive float32, as a whole number of 2**-24ths.

    Exponent and mantissa are read off the bits; the mantissa's logarithm comes from a
    table with 4,096 steps and a straight line between them. Integers only.
    """
    # The last axis is one, because Keras' `view` wants its size, and lengths may be dynamic.
    float_bits = ops.squeeze(ops.view(ops.expand_dims(numbers, -1), "int32"), -1)
    exponent = ops.right_shift(float_bits, 23) - 127
    step, rest = ops.right_shift(float_bits, 11) & 0xFFF, float_bits & 0x7FF
    low, high = ops.take(_LOG2_TABLE, step), ops.take(_LOG2_TABLE, step + 1)
    return exponent * 2**24 + low + ops.right_shift((high - low) * rest, 11)


_LOG2_TABLE = np.round(np.log2(1 + np.arange(4097) / 4096) * 2**24).astype("int32")


def drop_overflow(order, selected, capacity, spared=None):
    """Keep at most `capacity` selected positions per row, dropping whole units.

    The last in `order` go first, int32 `[batch, length]` and equal inside a unit; those
    that are spared, bool, go after all others.
    """
    if spared is not None:
        order = ops.right_shift(order, 1)
        order = ops.where(spared, order - 2**30, order + 2**30)
    return select_lowest(order, selected, capacity)


def key_with_below(keys, counted, number, documents=None):
    """The highest key that at most `number` counted positions lie below.

    Bisection: 32 rounds, one for each bit from the highest, each a comparison and
    a sum. Under XLA this is several times faster than any sort.
    """
    keys = ops.where(counted, keys, 2**31 - 1)  # below nothing
    if isinstance(keys, np.ndarray) and documents is None and keys.size:
        # NumPy sorts 32,768 keys 40 times faster than it bisects them.
        at = np.broadcast_to(np.minimum(number, keys.shape[1] - 1), (len(keys), 1))
        return np.take_along_axis(np.sort(keys, axis=1), at, axis=1)
    count_below = _counter(keys, documents)

    def raise_bit(round_, edge):
        trial = edge + ops.left_shift(ops.ones_like(edge), 31 - round_)
        return ops.where(count_below(trial) <= number, trial, edge)

    lowest = ops.zeros_like(count_positions(counted, documents)) + -(2**31)
    return ops.fori_loop(0, 32, raise_bit, lowest)  # as `number`


def _counter(keys, documents):
    """A function of a key that counts the lower ones in each row, or document."""
    batch, length = ops.shape(keys)
    if documents is not None or not isinstance(length, int):
        return lambda key: count_positions(keys < key, documents)
    # Eight comparisons to each sum: under XLA on a CPU 2 to 4 times faster than one.
    keys = ops.pad(keys, ((0, 0), (0, -length % 8)), constant_values=2**31 - 1)
    keys = ops.reshape(keys, (batch, 8, (length + 7) // 8))

    def count_below(key):
        eighths = (ops.cast(keys[:, eighth] < key, "int32") for eighth in range(8))
        return ops.sum(sum(eighths), axis=1, keepdims=True)

    return count_below


def selected_count(selectable_count, rate, coin, row_count=None):
    """rate * selectable_count, rounded up or down by a coin: its mean is exact.

    A product within rounding error of a whole number is that number, so that 15 %
    of 20 is always 3.

    Args:
        selectable_count: int32 `[batch, 1]`, under 2**24.
        rate: float32 in [0, 1], scalar or `[batch, 1]`.
        coin: noise in [0, 1), float32 `[batch, 1]`.
        row_count: the selectable positions of the whole row, where `selectable_count`
            is that of its beginning: with one coin, the beginnings' counts then add
            up to the row's.
    """
    row_count = selectable_count if row_count is None else row_count
    coin = ops.cast(coin * 2.0**24, "int32")
    coin = ops.clip(coin, row_count, 2**24 - 1 - row_count)
    return scaled(selectable_count, in_shares(rate), coin)


def in_shares(rate):
    """A rate as a whole number of 2**-24ths."""
    return ops.cast(ops.round(ops.cast(rate, "float32") * 2.0**24), "int32")


def scaled(amount, shares, carry=0):
    """floor((amount * shares + carry) / 2**24), exactly, for amounts under 2**24.

    Long multiplication in digits of 12 bits, because a compiler may fuse a float
    product with a sum and round it otherwise than the next compiler does.
    """
    high, low = ops.right_shift(amount, 12), amount & 0xFFF
    high_shares, low_shares = ops.right_shift(shares, 12), shares & 0xFFF
    ones = ops.right_shift(low * low_shares + (carry & 0xFFF), 12)
    middle = high * low_shares + low * high_shares + ops.right_shift(carry, 12) + ones
    return high * high_shares + ops.right_shift(middle, 12)


def selected_positions(selected, capacity):
    """The positions of what is selected, ascending, padded with 0: int32 `[batch, capacity]`.

        selected   [F T F T F]
        capacity   3
        positions  [1 3 0]

    Args:
        selected: bool `[batch, length]`, at most `capacity` of each row.
        capacity: int K.
    """
    batch, length = ops.shape(selected)
    rank = running_count(selected) - 1
    slot = ops.where(selected, rank, capacity)  # one slot more, for what is not selected
    row = ops.expand_dims(ops.arange(batch, dtype="int32"), 1) * (capacity + 1)
    positions = ops.broadcast_to(ops.arange(length, dtype="int32"), (batch, length))
    slots = ops.scatter(
        ops.reshape(slot + row, (-1, 1)), ops.reshape(positions, (-1,)), (batch * (capacity + 1),)
    )
    return ops.reshape(slots, (batch, capacity + 1))[:, :capacity]


def values_at(values, positions):
    """What stands at the positions: `[batch, length], [batch, K] -> [batch, K]`."""
    values = ops.pad(values, ((0, 0), (0, 1)))  # an empty row has a position 0, too
    batch, length = ops.shape(values)
    row = ops.expand_dims(ops.arange(batch, dtype="int32"), 1) * length
    return ops.take(ops.reshape(values, (-1,)), positions + row)
