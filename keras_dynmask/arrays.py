"""`ops`: the array operations that masking is written in, for whatever holds the ids.

Keras' own tensors come with `keras.ops`. Two other kinds come by: NumPy arrays, in
pipelines that know no framework (Grain), and the tensors of a TensorFlow graph while
Keras runs on JAX or PyTorch, which are what tf.data gives there. Who writes `ops.take`
means whichever is in force, and the bits are the same.
"""

import contextlib
import contextvars
import sys

import keras

_IN_FORCE = contextvars.ContextVar("operations", default=keras.ops)


class _Operations:
    def __getattr__(self, name):
        return getattr(_IN_FORCE.get(), name)


ops = _Operations()


@contextlib.contextmanager
def _in_force(operations):
    token = _IN_FORCE.set(operations)
    try:
        yield
    finally:
        _IN_FORCE.reset(token)


@contextlib.contextmanager
def numpy_in_force():
    """A `with` block in which `ops` takes and gives NumPy arrays."""
    import numpy as np

    from keras_dynmask import numpy_ops

    with _in_force(numpy_ops), np.errstate(over="ignore"):  # integers wrap around
        yield


def ops_of(tensor):
    """A `with` block in which `ops` takes what `tensor` is."""
    if not is_foreign(tensor):
        return contextlib.nullcontext()
    from keras_dynmask import tensorflow_ops

    return _in_force(tensorflow_ops)


def is_foreign(tensor):
    """Whether it belongs to a TensorFlow graph, while Keras runs on another backend."""
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None or keras.backend.backend() == "tensorflow":
        return False
    return tensorflow.is_symbolic_tensor(getattr(tensor, "flat_values", tensor))


def from_keras(function, number):
    """`function(number)` in float32, where the function is written in `keras.ops`."""
    if _IN_FORCE.get() is keras.ops:
        return keras.ops.cast(function(number), "float32")

    def on_host(number):
        with _in_force(keras.ops):
            return float(function(int(number)))

    return ops.from_host(on_host, number, "float32")
