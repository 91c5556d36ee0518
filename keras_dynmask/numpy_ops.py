"""`keras.ops` for NumPy arrays, as far as masking needs it.

What NumPy itself has by the same name and meaning comes from there.
"""

import numpy as np


def __getattr__(name):
    return getattr(np, name)


def cast(x, dtype):
    return np.asarray(x).astype(dtype)


def convert_to_tensor(x, dtype=None):
    return np.asarray(x, dtype)


def cumsum(x, axis):
    return np.cumsum(x, axis, x.dtype)  # int32 stays int32


def divide_no_nan(x, y):
    return np.divide(x, y, out=np.zeros_like(x + y), where=y != 0)


def fori_loop(lower, upper, body, value):
    for round_ in range(lower, upper):
        value = body(round_, value)
    return value


def from_host(function, number, dtype):
    """What a Python function says of a number, as a scalar."""
    return np.asarray(function(number), dtype)


def scatter(indices, values, shape):
    scattered = np.zeros(shape, values.dtype)
    np.add.at(scattered, tuple(indices.T), values)
    return scattered


def segment_max(values, segments, number):
    highest = np.full(number, values.min(initial=0), values.dtype)
    np.maximum.at(highest, segments, values)
    return highest


def segment_sum(values, segments, number):
    total = np.zeros(number, values.dtype)
    np.add.at(total, segments, values)
    return total


def sum(x, axis=None, keepdims=False):
    return np.sum(x, axis, x.dtype, keepdims=keepdims)


def view(x, dtype):
    return x.view(dtype)
