"""From keys to selected positions, and from those to targets of fixed size.

Every position carries the key of its unit: 32 random bits as int32. A unit is
selected because its key lies in a range, never because of where it stands, so no
position is favoured, whatever the setting.
"""

from keras import ops


def select_independently(noise, selectable, rate):
    """Select each unit on its own with probability `rate`.

    `[batch, length]`; `noise` in [0, 1) is equal inside a unit.
    """
    return selectable & (noise < rate)


def select_exactly(keys, selectable, count, turn):
    """Select `count` selectable positions per row, in whole units.

    Lay the units in the order of their keys on a circle of the row's selectable
    positions. A unit is selected when its start lies in the window of `count`
    places that follow a place drawn by `turn`. So each unit is selected with
    probability count / selectable, whatever its length; no unit is cut; and the
    row misses its count by less than one unit (for tokens: by nothing).

        keys                     [30 30 10 20 20]
        places on the circle      3  4  0  1  2     (units start at 0, 1 and 3)
        turn=.1 of 5, count=2     the place is 0, the window is {1, 2}
        selected                 [F  F  F  T  T ]

    A unit's start grows with its key, so the window is a range of keys and its two
    edges are found by bisection: no sorting.

    Args:
        keys: int32 `[batch, length]`, equal inside a unit.
        selectable: bool `[batch, length]`.
        count: int32 `[batch, 1]`, at most the number of selectable positions.
        turn: noise in [0, 1), float32 `[batch, 1]`.
    """
    circle = count_positions(selectable)
    place = scaled(circle, in_shares(turn))
    end = place + count
    wraps = end >= circle
    after_place = keys > largest_key_with_below(keys, selectable, place)
    end = ops.where(wraps, end - circle, end)
    before_end = keys <= largest_key_with_below(keys, selectable, end)
    window = ops.where(wraps, after_place | before_end, after_place & before_end)
    return selectable & window


def select_first(order, keys, selectable, count):
    """Select `count` selectable positions per row, in whole units, first by `order`.

    Where units are equal in `order`, their keys decide. All are as in `select_exactly`,
    and `order` like `keys`.
    """
    last = largest_key_with_below(order, selectable, count - 1)
    before, level = selectable & (order < last), selectable & (order == last)
    rest = count - count_positions(before)
    return before | (level & (keys <= largest_key_with_below(keys, level, rest - 1)))


def weighted_order(noise, weights):
    """An order in which the units are a weighted draw without replacement, as int32.

    Each unit gets an exponential number whose rate is its weight; the smallest come
    first (Efraimidis and Spirakis 2006). Positive floats and their bits, read as
    int32, have the same order.
    """
    exponential = -ops.log(1.0 - noise) / ops.maximum(weights, 1e-30)
    return ops.view(exponential, "int32")


def drop_overflow(keys, selected, capacity):
    """Keep at most `capacity` selected positions per row, dropping whole units.

    The units with the largest keys go, which is a random choice.
    """
    edge = largest_key_with_below(keys, selected, capacity)
    return selected & ((keys < edge) | (count_positions(selected) <= capacity))


def largest_key_with_below(keys, counted, limit):
    """The largest key t with at most `limit` counted positions whose key is under t.

    Bisection: 32 rounds, one for each bit from the highest, each a comparison and
    a sum. Under XLA this is several times faster than any sort.
    """

    def raise_bit(round_, edge):
        trial = edge + ops.left_shift(ops.ones_like(edge), 31 - round_)
        below = count_positions(counted & (keys < trial))
        return ops.where(below <= limit, trial, edge)

    lowest = ops.zeros_like(count_positions(counted)) + -(2**31)
    return ops.fori_loop(0, 32, raise_bit, lowest)  # [batch, 1]


def selected_count(selectable_count, rate, coin):
    """rate * selectable_count, rounded up or down by a coin: its mean is exact.

    A product within rounding error of a whole number is that number, so that 15 %
    of 20 is always 3.

    Args:
        selectable_count: int32 `[batch, 1]`, under 2**24.
        rate: float32 in [0, 1], scalar or `[batch, 1]`.
        coin: noise in [0, 1), float32 `[batch, 1]`.
    """
    coin = ops.cast(coin * 2.0**24, "int32")
    coin = ops.clip(coin, selectable_count, 2**24 - 1 - selectable_count)
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


def at_selected(values, selected, capacity):
    """The values at the selected positions, ascending, padded with 0.

        values    [7 8 9 6 5]
        selected  [F T F T F]
        capacity  3
        result    [8 6 0]

    Args:
        values: `[batch, length]`, int32 or float32.
        selected: bool `[batch, length]`, at most `capacity` of each row.
        capacity: int K.
    """
    batch = ops.shape(selected)[0]
    rank = ops.cumsum(ops.cast(selected, "int32"), axis=1) - 1
    slot = ops.where(selected, rank, capacity)  # one slot more, for what is not selected
    row = ops.expand_dims(ops.arange(batch, dtype="int32"), 1)
    slots = ops.scatter(
        ops.reshape(slot + row * (capacity + 1), (-1, 1)),
        ops.reshape(values, (-1,)),
        (batch * (capacity + 1),),
    )
    return ops.reshape(slots, (batch, capacity + 1))[:, :capacity]


def count_positions(chosen):
    """How many positions of each row are chosen. int32 `[batch, 1]`."""
    return ops.sum(ops.cast(chosen, "int32"), axis=1, keepdims=True)
