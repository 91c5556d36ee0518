"""What the encoder sees where it sees only what is not hidden: how much, and what."""

import math

from keras import ops

from keras_dynmask.rates import lowest_rate
from keras_dynmask.selection import count_positions, selected_positions, values_at
from keras_dynmask.units import running_count


def visible_capacity(masking, features):
    """How many tokens of a row the encoder has room for, in training.

    A row of n real tokens with s of them protected shows n - rate * (n - s). There is room
    for s = n / 32 + 2, separators and the like; besides for six standard deviations where
    tokens are drawn on their own or not all of the selected are hidden, and for eight mean
    lengths where units are longer than a token. It is the whole row where nobody knows how
    few are hidden: with a schedule, a pair that begins at 0, or `begins` and `selectable` of
    the caller's own. Rounded up to eights, which matrix units like.

    Args:
        masking: a `DynamicMasking`.
        features: a dict of tensors `[batch, length]`, as its `mask` takes it.
    """
    length = ops.shape(features["token_ids"])[1]
    rate, hide = lowest_rate(masking.mask_selection_rate), masking.mask_token_rate
    if rate * hide == 0 or {"begins", "selectable"} & features.keys():
        return length
    is_known = isinstance(length, int)
    ceil, most = (math.ceil, max) if is_known else (ops.ceil, ops.maximum)
    size = length if is_known else ops.cast(length, "float32")

    unit = masking.mean_span_length * (1 if masking.continuation_token_ids is None else 2)
    selectable = most(size * (1 - 1 / 32) - 2, 0.0)
    selected = selectable * rate
    if masking.mask_selection_length is not None:
        selected = -most(-selected, -float(masking.mask_selection_length))
    if masking.exact_count:
        selected = selected - (1 if unit == 1 else 8 * unit)
    else:
        selected = selected - 6 * (selectable * rate * (1 - rate) * unit) ** 0.5
    selected = most(selected, 0.0)
    shown_together = unit if masking.corrupt_whole_units else 1
    hidden = selected * hide - 6 * (selected * hide * (1 - hide) * shown_together) ** 0.5
    capacity = 8 * ceil((size - most(hidden, 0.0)) / 8)
    return min(length, capacity) if is_known else ops.minimum(length, ops.cast(capacity, "int32"))


def gather_visible(token_ids, positions, visible, capacity):
    """The visible tokens of each row, side by side, and where they stand.

        token_ids     [7 1 9 1 5]
        visible       [T F T F T]
        capacity      4
        token_ids     [7 9 5 0]
        positions     [0 2 4 0]
        padding_mask  [T T T F]

    What is not visible is not read. Where a row has more than fit, evenly spaced ones are left
    out, so that no place is favoured.

    Args:
        token_ids: ints `[batch, length]`.
        positions: int32 `[batch, length]`.
        visible: bool `[batch, length]`.
        capacity: int.

    Returns:
        A dict as `TransformerEncoder` takes it, of `[batch, capacity]`.
    """
    rank = running_count(visible)  # from 1
    count = ops.cast(rank[:, -1:], "float32")
    share = ops.minimum(ops.cast(capacity, "float32") / ops.maximum(count, 1.0), 1.0)
    place, before = (ops.floor(ops.cast(each, "float32") * share) for each in (rank, rank - 1))
    fits = visible & (place > before)

    columns = selected_positions(fits, capacity)
    filled = ops.arange(capacity, dtype="int32") < count_positions(fits)

    def gathered(values):
        return ops.where(filled, values_at(values, columns), 0)

    return {
        "token_ids": gathered(token_ids),
        "positions": gathered(positions),
        "padding_mask": filled,
    }
