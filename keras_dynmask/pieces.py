"""The objective of a large vocabulary, a piece of it at a time."""

import keras
import numpy as np
from keras import ops

# The words whose logits are held at a time. At 1,229 selected tokens (15 % of 8,192) that is
# 19 MiB, which a two-core CPU's caches hold: 16,384 took 1.5 times the time of 4,096 on PyTorch,
# where an allocation above 32 MiB begins with fresh pages, and 0.9 to 1.0 on JAX and TensorFlow.
PIECE = 4096

# Larger vocabularies are walked through in pieces. In three pieces or fewer little is saved.
LARGE = 4 * PIECE


def losses_in_pieces(features, embedding, bias, token_ids, piece=PIECE):
    """`token_losses` and `hits`, without ever holding the logits of the whole vocabulary.

    A piece of the vocabulary at a time gives its logits to a running maximum and sum, and
    is forgotten; the gradient computes it again. The numbers are those of the plain
    functions, as is the gradient by all three arrays; one matrix product of four is
    done twice. Pieces of the vocabulary, not of the tokens: their number is known when a
    graph is traced, and each row of the embedding gets its gradient at one go.

    Args:
        features: `[..., dim]`, what is multiplied by the embedding.
        embedding: `[vocabulary, dim]` of the features' dtype.
        bias: `[vocabulary]` of that dtype.
        token_ids: integers `[...]`.
        piece: int, how many words make a piece. The vocabulary is cut into equal ones;
            where it does not divide, the last begins early and skips what was seen.

    Returns:
        Losses and hits, float32 `[...]`.

    References:
        Milakov and Gimelshein 2018 (the running sum), Wijmans et al. 2024 (with
        recomputation, for large vocabularies).
    """
    vocabulary, dim = embedding.shape
    pieces = -(-vocabulary // piece)
    width = -(-vocabulary // pieces)
    firsts = np.arange(pieces, dtype="int32") * width
    shape = ops.shape(token_ids)
    token_ids = ops.reshape(ops.cast(token_ids, "int32"), (-1,))

    def logits_of(first, features, embedding, bias):
        start = ops.minimum(first, vocabulary - width)
        words = ops.arange(width, dtype="int32") + start
        embedding = ops.slice(embedding, (start, 0), (width, dim))
        bias = ops.slice(bias, (start,), (width,))
        new = words >= first
        bias = ops.where(new, bias, ops.cast(-np.inf, bias.dtype))
        logits = ops.matmul(features, ops.transpose(embedding)) + bias
        return ops.cast(logits, "float32"), ops.where(new, words, -1), embedding

    @ops.custom_gradient
    def losses_and_hits(features, embedding, bias):
        def add(running, first):
            maximum, total, best, right = running  # [tokens]
            logits, _, _ = logits_of(first, features, embedding, bias)  # [tokens, width]
            start = ops.minimum(first, vocabulary - width)
            best_here = ops.argmax(logits, axis=-1)
            of_best = _at(logits, best_here)
            larger = ops.maximum(maximum, of_best)
            total = total * ops.exp(maximum - larger)
            total = total + ops.sum(ops.exp(logits - ops.expand_dims(larger, 1)), axis=1)
            best = ops.where(of_best > maximum, ops.cast(best_here, "int32") + start, best)
            place = token_ids - start
            here = (token_ids >= first) & (place < width)
            right = ops.where(here, _at(logits, ops.clip(place, 0, width - 1)), right)
            return (larger, total, best, right), ()

        nothing = ops.zeros_like(token_ids, dtype="float32")
        running = (nothing - np.inf, nothing, ops.zeros_like(token_ids), nothing)
        (maximum, total, best, right), _ = _in_sequence(add, running, firsts)
        normaliser = maximum + ops.log(total)
        hits = ops.cast(ops.equal(best, token_ids), "float32")

        def gradient(*arguments, upstream=None):  # PyTorch names it, the others do not
            upstream = (arguments[0] if upstream is None else upstream)[0]  # [tokens]
            by_token = ops.expand_dims(upstream, 1)
            pulled = features * ops.cast(by_token, features.dtype)

            def add(by_features, first):
                logits, words, rows = logits_of(first, features, embedding, bias)
                errors = ops.exp(logits - ops.expand_dims(normaliser, 1))
                is_right = ops.equal(words, ops.expand_dims(token_ids, 1))
                errors = ops.where(is_right, errors - 1.0, errors)
                by_bias = ops.matmul(upstream, errors)  # [width]
                errors = ops.cast(errors, features.dtype)
                by_rows = ops.matmul(ops.transpose(errors), pulled)  # [width, dim]
                by_features = by_features + ops.cast(ops.matmul(errors, rows), "float32")
                return by_features, (by_rows, by_bias)

            by_features = ops.zeros_like(features, dtype="float32")
            of_pieces = [((width, dim), features.dtype), ((width,), "float32")]
            by_features, (by_rows, by_bias) = _in_sequence(add, by_features, firsts, of_pieces)
            return (
                ops.cast(by_features * by_token, features.dtype),
                _joined(by_rows, vocabulary),
                ops.cast(_joined(by_bias, vocabulary), bias.dtype),
            )

        return ops.stack([normaliser - right, hits]), gradient  # PyTorch takes one array

    both = losses_and_hits(ops.reshape(features, (-1, dim)), embedding, bias)
    return ops.reshape(both[0], shape), ops.reshape(both[1], shape)


def _at(logits, words):
    """One logit of each row."""
    return ops.squeeze(ops.take_along_axis(logits, ops.expand_dims(words, 1), axis=1), 1)


def _joined(pieces, size):
    """`[pieces, width, ...] -> [size, ...]`, the last piece without what it repeats."""
    count, width = pieces.shape[:2]
    if count * width == size:
        return ops.reshape(pieces, (size, *pieces.shape[2:]))
    whole = ops.reshape(pieces[:-1], ((count - 1) * width, *pieces.shape[2:]))
    return ops.concatenate([whole, pieces[-1, count * width - size :]])


def _in_sequence(step, carry, numbers, outputs=()):
    """`ops.scan`, save on TensorFlow: there it wants outputs of the carry's shapes.

    One piece must be done before the next begins. XLA computes the logits of all pieces
    first where Python unrolls the loop (292 MiB instead of 51 at a vocabulary of 30,522),
    and `ops.while_loop` may run ten rounds at once in a graph without XLA.

    Args:
        outputs: shape and dtype of each output of a step.
    """
    if keras.backend.backend() != "tensorflow":
        return ops.scan(step, carry, ops.convert_to_tensor(numbers))
    import tensorflow as tf

    def turn(index, carry, arrays):
        carry, values = step(carry, tf.constant(numbers)[index])
        return index + 1, carry, [a.write(index, v) for a, v in zip(arrays, values, strict=True)]

    arrays = [tf.TensorArray(dtype, len(numbers), element_shape=shape) for shape, dtype in outputs]
    _, carry, arrays = tf.while_loop(
        lambda index, *_: index < len(numbers), turn, (0, carry, arrays), parallel_iterations=1
    )
    return carry, [array.stack() for array in arrays]
