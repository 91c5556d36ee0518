"""What callers hand in, as tensors `[batch, length]`; and the way back."""

import sys

import keras
import numpy as np
from keras import ops

from keras_dynmask.errors import require

# What the masking reads beside `token_ids`, and of the same shape.
PER_POSITION = ("padding_mask", "selectable", "selection_weights", "begins")


def standardize(features, vocabulary_size):
    """Tensors `[batch, length]` for a dict of lists, arrays, tensors, ragged or unbatched.

    Returns:
        The new dict (the caller's is left alone), and a function that gives the
        outputs the caller's form: unbatched or ragged again.
    """
    features = {name: _as_array(name, value) for name, value in features.items()}
    token_ids = features["token_ids"]
    _check_ids(token_ids, vocabulary_size)
    if is_ragged(token_ids):
        return _from_ragged(features)
    _check_companions(features, token_ids)
    read = [name for name in ("token_ids", *PER_POSITION, "row_ids") if name in features]
    features |= {name: ops.convert_to_tensor(features[name]) for name in read}
    if len(token_ids.shape) == 2:
        return features, lambda outputs: outputs
    features |= {name: ops.expand_dims(features[name], 0) for name in read}
    return features, lambda outputs: _unbatch(outputs, read)


def is_ragged(value):
    """Whether `value` is a `tf.RaggedTensor`, without importing TensorFlow to ask."""
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and isinstance(value, tensorflow.RaggedTensor)


def _as_array(name, value):
    """Lists as arrays; rows of unequal length as a `tf.RaggedTensor`."""
    if not isinstance(value, (list, tuple)):
        return value
    lengths = {len(row) for row in value if isinstance(row, (list, tuple))}
    if len(lengths) > 1:
        require(
            keras.backend.backend() == "tensorflow",
            f"`{name}` must have rows of equal length on this backend: pad them and pass a "
            "`padding_mask`.",
            backend=keras.backend.backend(),
        )
        import tensorflow as tf

        return tf.ragged.constant(value)
    array = np.asarray(value)
    return array if array.size else array.astype("int32")


def _check_ids(token_ids, vocabulary_size):
    shape = getattr(token_ids, "shape", None)
    dtype = keras.backend.standardize_dtype(token_ids.dtype) if shape is not None else "none"
    require(
        dtype.startswith(("int", "uint")) and len(shape) in (1, 2),
        "`token_ids` must be integers of shape [length] or [batch, length].",
        dtype=dtype,
        shape=None if shape is None else tuple(shape),
    )
    if isinstance(token_ids, np.ndarray) or type(token_ids).__name__ == "EagerTensor":
        known = np.asarray(token_ids)
        outside = known[(known < 0) | (known >= vocabulary_size)]
        require(
            outside.size == 0,
            f"`token_ids` must lie in [0, {vocabulary_size - 1}], below `vocabulary_size`.",
            token_ids=outside[:3].tolist(),
        )


def _check_companions(features, token_ids):
    for name in PER_POSITION:
        if name in features:
            _check_shape(name, features[name], tuple(token_ids.shape), "`token_ids`")
    if "row_ids" in features:
        _check_shape("row_ids", features["row_ids"], tuple(token_ids.shape)[:-1], "its rows")
        dtype = keras.backend.standardize_dtype(ops.convert_to_tensor(features["row_ids"]).dtype)
        require(dtype.startswith(("int", "uint")), "`row_ids` must be integers.", dtype=dtype)


def _check_shape(name, value, expected, like):
    shape = tuple(np.shape(value) if not hasattr(value, "shape") else value.shape)
    require(
        len(shape) == len(expected)
        and all(a is None or b is None or a == b for a, b in zip(shape, expected, strict=True)),
        f"`{name}` must have the shape of {like}, {expected}.",
        shape=shape,
    )


def _from_ragged(features):
    """Pad, and say in `padding_mask` what is padding; cut it off again afterwards."""
    import tensorflow as tf

    token_ids = features["token_ids"]
    lengths = token_ids.row_lengths()
    features = {
        name: value.to_tensor() if is_ragged(value) else value for name, value in features.items()
    }
    real = tf.sequence_mask(lengths, tf.shape(features["token_ids"])[1])
    had_padding_mask = "padding_mask" in features
    if had_padding_mask:
        real = real & tf.cast(features["padding_mask"], tf.bool)
    features["padding_mask"] = real

    def restore(outputs):
        if not had_padding_mask:
            del outputs["padding_mask"]
        per_position = ["token_ids", *PER_POSITION]
        if "mask_positions" not in outputs:
            per_position += ["mask_ids", "mask_weights"]
        cut = {
            name: tf.RaggedTensor.from_tensor(outputs[name], lengths=lengths)
            for name in per_position
            if name in outputs
        }
        return {**outputs, **cut}

    return features, restore


def _unbatch(outputs, read):
    added = ("mask_positions", "mask_ids", "mask_weights")
    return {
        name: ops.squeeze(value, 0) if name in read or name in added else value
        for name, value in outputs.items()
    }
