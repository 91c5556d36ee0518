"""What callers hand in, as tensors `[batch, length]`; and the way back."""

import sys

import keras
import numpy as np

from keras_dynmask.arrays import ops
from keras_dynmask.errors import require, whole

# What the masking reads beside `token_ids`, of the same shape.
PER_POSITION = ("padding_mask", "selectable", "selection_weights", "begins", "segment_ids")
READ = ("token_ids", *PER_POSITION, "row_ids")
NUMBERS = ("bool", "int", "uint", "float16", "float32", "float64", "bfloat16")
MADE = ("token_ids", "mask_positions", "mask_ids", "mask_weights")


def as_features(inputs):
    """A new dict of features for ids alone or for a dict of them, less those of None."""
    if not isinstance(inputs, dict):
        return {"token_ids": inputs}
    features = {k: v for k, v in inputs.items() if v is not None or k not in READ}
    require("token_ids" in features, "`inputs` must hold `token_ids`.", keys=list(inputs))
    return features


def standardize(features, vocabulary_size):
    """Tensors `[batch, length]` of what the masking reads: lists, ragged, unbatched or not.

    Returns:
        A dict of tensors, and a function that takes from the outputs what the masking
        made, in the caller's form: unbatched or ragged again.
    """
    features = {name: as_array(name, features[name]) for name in READ if name in features}
    ragged = is_ragged(features["token_ids"])
    check_ids(features["token_ids"], vocabulary_size)
    _check_companions(features)
    if ragged:
        features, lengths = _padded(features)
    features = {name: ops.convert_to_tensor(value) for name, value in features.items()}
    unbatched = len(features["token_ids"].shape) == 1
    if unbatched:
        features = {name: ops.expand_dims(value, 0) for name, value in features.items()}

    def restore(outputs):
        made = {name: outputs[name] for name in MADE if name in outputs}
        if unbatched:
            made = {name: ops.squeeze(value, 0) for name, value in made.items()}
        return _cut(made, lengths) if ragged else made

    return features, restore


def checked_step(step):
    """A step, as given: a whole number or an integer tensor."""
    if hasattr(step, "dtype") and hasattr(step, "shape"):
        shape = tuple(step.shape)
        require(
            is_integer(step) and all(size in (1, None) for size in shape),
            "`step` must be an integer.",
            dtype=step.dtype,
            shape=shape,
        )
        return step
    return whole("step", step, 0)


def is_integer(value):
    """Whether an array or tensor holds integers, and no bools."""
    return _dtype(value).startswith(("int", "uint"))


def _dtype(value):
    """The name of an array's or a tensor's dtype, also of one that Keras does not know."""
    dtype = getattr(value, "dtype", None)
    try:
        return "none" if dtype is None else keras.backend.standardize_dtype(dtype)
    except ValueError:
        return str(dtype)


def is_ragged(value):
    """Whether `value` is a `tf.RaggedTensor`, without importing TensorFlow to ask."""
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and isinstance(value, tensorflow.RaggedTensor)


def as_array(name, value):
    """Lists as arrays; rows of unequal length as a `tf.RaggedTensor`."""
    if not isinstance(value, (list, tuple)):
        return value
    try:
        nested = [np.ndim(row) for row in value]
    except ValueError:  # a row of rows of unequal length
        nested = [0, 1]
    require(len(set(nested)) < 2, f"`{name}` must be one row, or a list of rows.", **{name: value})
    if any(nested) and len({len(row) for row in value}) > 1:
        require(
            keras.backend.backend() == "tensorflow",
            f"`{name}` must have rows of equal length on this backend: pad them and pass a "
            "`padding_mask`.",
            backend=keras.backend.backend(),
        )
        import tensorflow as tf

        return tf.ragged.constant([np.asarray(row).tolist() for row in value])
    array = np.asarray(value)
    return array if array.size else array.astype("int32")


def check_ids(token_ids, vocabulary_size):
    """That ids are integers, in rows, and where their values are at hand, known ids."""
    shape, dtype = getattr(token_ids, "shape", None), str(getattr(token_ids, "dtype", None))
    dtype = getattr(getattr(token_ids, "dtype", None), "name", dtype).removeprefix("torch.")
    require(
        dtype.startswith(("int", "uint")) and len(shape) in (1, 2),
        "`token_ids` must be integers of shape [length] or [batch, length].",
        dtype=dtype,
        shape=None if shape is None else tuple(shape),
    )
    known = _known(token_ids)
    if known is not None:
        outside = known[(known < 0) | (known >= vocabulary_size)]
        require(
            outside.size == 0,
            f"`token_ids` must lie in [0, {vocabulary_size - 1}], below `vocabulary_size`.",
            token_ids=outside[:3].tolist(),
        )


def check_weights(weights):
    """That weights are finite and not negative, where their values are at hand."""
    known = _known(weights)
    if known is not None:
        with np.errstate(over="ignore"):
            known = np.asarray(known, "float32")
        wrong = known[~(np.isfinite(known) & (known >= 0))]
        require(
            wrong.size == 0,
            "`selection_weights` must be finite and at least 0.",
            selection_weights=wrong[:3].tolist(),
        )


def _known(values):
    """An array, where the values are at hand: not in a graph."""
    flat = values.flat_values if is_ragged(values) else values
    kind = type(flat).__name__
    at_hand = (
        isinstance(flat, np.ndarray)
        or kind == "EagerTensor"
        or (kind == "ArrayImpl" and flat.is_fully_addressable)  # JAX; not another process's
    )
    return np.asarray(flat) if at_hand else None


def _check_companions(features):
    """That what stands beside the ids has their shape, as far as it is known."""
    shape = tuple(features["token_ids"].shape)
    for name in PER_POSITION:
        if name in features:
            _check_shape(name, features[name], shape, "`token_ids`")
            _check_row_lengths(name, features[name], features["token_ids"])
            is_number = _dtype(features[name]).startswith(NUMBERS)
            require(is_number, f"`{name}` must be numbers.", dtype=_dtype(features[name]))
    if "selection_weights" in features:
        check_weights(features["selection_weights"])
    if "row_ids" in features:
        _check_shape("row_ids", features["row_ids"], shape[:-1], "`token_ids` without its length")
        row_ids = features["row_ids"]
        require(is_integer(row_ids), "`row_ids` must be integers.", dtype=_dtype(row_ids))
        row_ids = ops.convert_to_tensor(row_ids)
        known = _known(features["row_ids"])
        if known is not None and known.size:
            bounds = np.iinfo(keras.backend.standardize_dtype(row_ids.dtype))
            require(
                bounds.min <= known.min() and known.max() <= bounds.max,
                f"`row_ids` must lie in [{bounds.min}, {bounds.max}] on this backend.",
                row_ids=[int(known.min()), int(known.max())],
            )


def _check_shape(name, value, expected, like):
    shape = tuple(value.shape) if hasattr(value, "shape") else np.shape(value)
    require(
        len(shape) == len(expected)
        and all(a is None or b is None or a == b for a, b in zip(shape, expected, strict=True)),
        f"`{name}` must have the shape of {like}, {expected}.",
        shape=shape,
    )


def _check_row_lengths(name, value, token_ids):
    if is_ragged(value):
        require(is_ragged(token_ids), f"`{name}` must be ragged only where `token_ids` are.")
        lengths, expected = value.row_lengths(), token_ids.row_lengths()
        if type(lengths).__name__ == "EagerTensor":
            require(
                np.array_equal(lengths, expected),
                f"`{name}` must have rows as long as those of `token_ids`, "
                f"{expected.numpy().tolist()}.",
                row_lengths=lengths.numpy().tolist(),
            )


def _padded(features):
    """Ragged features as rectangles, and a `padding_mask` that says what is padding."""
    import tensorflow as tf

    lengths = features["token_ids"].row_lengths()
    features = {
        name: value.to_tensor() if is_ragged(value) else value for name, value in features.items()
    }
    real = tf.sequence_mask(lengths, tf.shape(features["token_ids"])[1])
    if "padding_mask" in features:
        real = real & tf.cast(features["padding_mask"], tf.bool)
    return {**features, "padding_mask": real}, lengths


def _cut(made, lengths):
    import tensorflow as tf

    dense = {"mask_positions", "mask_ids", "mask_weights"} if "mask_positions" in made else set()
    return {
        name: value if name in dense else tf.RaggedTensor.from_tensor(value, lengths=lengths)
        for name, value in made.items()
    }
