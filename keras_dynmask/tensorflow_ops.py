"""`keras.ops` for TensorFlow's tensors while Keras runs on another backend, as far as
masking needs it.

What TensorFlow itself has by the same name and meaning comes from there.
"""

import numpy as np
import tensorflow as tf

ceil, clip, divide_no_nan = tf.math.ceil, tf.clip_by_value, tf.math.divide_no_nan
floor_divide, isnan, mod = tf.math.floordiv, tf.math.is_nan, tf.math.floormod
left_shift, right_shift = tf.bitwise.left_shift, tf.bitwise.right_shift
scatter, take, view = tf.scatter_nd, tf.gather, tf.bitcast
segment_max, segment_sum = tf.math.unsorted_segment_max, tf.math.unsorted_segment_sum


def __getattr__(name):
    return getattr(tf, name)


def arange(stop, dtype="int32"):
    return tf.range(stop, dtype=dtype)


def fori_loop(lower, upper, body, value):
    return tf.while_loop(
        lambda round_, value: round_ < upper,
        lambda round_, value: (round_ + 1, body(round_, value)),
        (lower, value),
    )[1]


def from_host(function, number, dtype):
    """What a Python function says of a number whenever the graph runs, as a scalar."""

    def said(number):
        return np.asarray(function(number), dtype)

    return tf.ensure_shape(tf.numpy_function(said, [number], dtype), ())


def pad(x, pad_width, constant_values=0):
    return tf.pad(x, pad_width, constant_values=constant_values)


def shape(x):
    """Numbers, where they are known."""
    return tuple(tf.shape(x)[axis] if n is None else n for axis, n in enumerate(x.shape))


def sum(x, axis=None, keepdims=False):
    return tf.reduce_sum(x, axis, keepdims)
