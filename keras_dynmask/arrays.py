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


def compiled(function, features, *numbers):
    """`function(features, *numbers)`; in a TensorFlow graph as one XLA program.

    There, operations cost more than what they do: an exact count of 256 x 128 tokens runs 8
    times faster in one program. To make one takes a second for each shape. So the graph
    stays a graph for a batch of few tokens, and where lengths are unknown and many may come.

    Args:
        function: of a dict of tensors and of numbers; it gives a dict of tensors.
        features: a dict of tensors `[batch, length]`, one of them `token_ids`.
        numbers: ints or integer tensors.
    """
    tensorflow, ids = sys.modules.get("tensorflow"), features["token_ids"]
    if tensorflow is None or not tensorflow.is_symbolic_tensor(ids):
        return function(features, *numbers)
    batch, length = ids.shape
    if length is None or (batch is not None and batch * length < 2048):
        return function(features, *numbers)
    program = tensorflow.function(function, jit_compile=True, autograph=False)
    return program(features, *map(tensorflow.convert_to_tensor, numbers))


def from_keras(function, number):
    """`function(number)` in float32, where the function is written in `keras.ops`."""
    if _IN_FORCE.get() is keras.ops:
        return keras.ops.cast(function(number), "float32")

    def on_host(number):
        with _in_force(keras.ops):
            return float(function(int(number)))

    return ops.from_host(on_host, number, "float32")
