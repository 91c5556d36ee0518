"""The two functions that dynamic masking is often explained with: 0 means masked.

They are for reading and for experiments with arrays. For a model take
`DynamicMasking`, which knows of special tokens, targets and training steps.
"""

import secrets
import sys

from keras import ops

from keras_dynmask import noise
from keras_dynmask.errors import flag, real, require, whole
from keras_dynmask.inputs import checked_step
from keras_dynmask.selection import (
    count_positions,
    select_exactly,
    select_independently,
    selected_count,
)
from keras_dynmask.units import unit_begins, unit_numbers


def generate_masking_sequence(
    sequence_length,
    mask_rate=0.15,
    *,
    batch_size=None,
    exact_count=True,
    mean_span_length=1.0,
    seed=None,
    step=0,
):
    """Draws which positions of a sequence are masked: 0 masked, 1 visible.

    Without a seed every call draws afresh; with one the result is a pure function of
    seed and step, equal on every backend, and masks are nested in the rate. A compiled
    function is traced once, so there a seed must be given, and a step that changes.

    Args:
        sequence_length: int, the number of positions.
        mask_rate: float in [0, 1], the share of positions that is masked.
        batch_size: int or None, the number of sequences; None for one alone.
        exact_count: bool. True masks exactly `mask_rate * sequence_length` positions,
            rounded up or down by a coin; False each unit on its own.
        mean_span_length: float >= 1, the mean length of what is masked together.
        seed: int in [0, 2**64) or None.
        step: int or int tensor, which of the seed's masks.

    Returns:
        int32 `[sequence_length]` or `[batch_size, sequence_length]`.

    Raises:
        ValueError: naming the argument, what was expected and what was received.

    Example:

    >>> mask = generate_masking_sequence(8, mask_rate=0.25, seed=1)
    >>> int(ops.sum(mask))
    6
    """
    length = whole("sequence_length", sequence_length, 0)
    rate = real("mask_rate", mask_rate, 0, 1)
    batch = 1 if batch_size is None else whole("batch_size", batch_size, 0)
    span = real("mean_span_length", mean_span_length, 1)
    require(
        seed is not None or not _is_traced(),
        "`seed` must be given in a compiled function, or its mask would never change.",
        seed=seed,
    )
    seed = whole("seed", secrets.randbits(63) if seed is None else seed, 0, 2**64 - 1)

    rows, positions = ops.arange(batch, dtype="int32"), ops.arange(length, dtype="int32")
    keys = noise.row_keys(seed, (checked_step(step), 0), noise.words(rows))
    everywhere = ops.ones((batch, length), "bool")
    coin = noise.uniform(noise.bits(keys, positions, noise.BEGIN))
    units = unit_numbers(unit_begins(everywhere, ~everywhere, positions == 0, coin, span))
    unit_keys = noise.bits(keys, units, noise.SELECT)
    if flag("exact_count", exact_count):
        round_up, turn, _ = noise.row_uniforms(keys)
        count = selected_count(count_positions(everywhere), rate, round_up)
        masked = select_exactly(unit_keys, everywhere, count, turn)
    else:
        masked = select_independently(noise.uniform(unit_keys), everywhere, rate)
    visible = ops.cast(~masked, "int32")
    return visible[0] if batch_size is None else visible


def apply_masking(input_sequence, mask_sequence, mask_token_id=0):
    """Replaces what a mask sequence hides: where it is 0, `mask_token_id` is shown.

    Args:
        input_sequence: array or tensor `[length]` or `[batch, length]`, of any dtype;
            or with feature axes behind.
        mask_sequence: 0 masked, 1 visible, of a shape that broadcasts to the input's:
            `[length]` serves every row of a batch, `[..., length, 1]` masks vectors.
        mask_token_id: number, in the dtype of the input.

    Returns:
        A tensor of the input's shape and dtype. The input is left alone.

    Raises:
        ValueError: naming the argument, what was expected and what was received.

    Example:

    >>> apply_masking([11, 12, 13], [1, 0, 1], mask_token_id=4).numpy().tolist()
    [11, 4, 13]
    """
    inputs = ops.convert_to_tensor(input_sequence)
    visible = ops.not_equal(ops.convert_to_tensor(mask_sequence), 0)
    shape, mask_shape = tuple(inputs.shape), tuple(visible.shape)
    trailing = shape[len(shape) - len(mask_shape) :]
    require(
        len(mask_shape) <= len(shape)
        and all(
            mask in (1, None, size) or size is None
            for mask, size in zip(mask_shape, trailing, strict=True)
        ),
        "`mask_sequence` must have a shape that broadcasts to that of `input_sequence`.",
        mask_sequence=mask_shape,
        input_sequence=shape,
    )
    return ops.where(visible, inputs, ops.cast(mask_token_id, inputs.dtype))


def _is_traced():
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and not tensorflow.executing_eagerly()
