"""The objective in pieces is the objective, on every backend, and holds one piece at a time."""

import functools

import keras
import numpy as np
import pytest
from elsewhere import on
from keras import ops

from keras_dynmask.objective import hits, token_losses, weighted_mean
from keras_dynmask.pieces import losses_in_pieces

# The losses in pieces against the plain ones.

RANDOM = np.random.default_rng(0)
ARRAYS = [RANDOM.normal(size=size).astype("float32") for size in ((3, 5, 8), (50, 8), (50,))]
IDS = RANDOM.integers(0, 50, (3, 5)).astype("int32")
IDS[0] = [0, 49, 48, 24, 25]  # the first, the last, and the edges of pieces
WEIGHTS = RANDOM.uniform(size=(3, 5)).astype("float32")
PIECES = {"one": 50, "two equal": 25, "overlapping": 7, "single words": 1}


def plain(features, embedding, bias, token_ids):
    logits = ops.matmul(features, ops.transpose(embedding)) + bias
    return token_losses(logits, token_ids), hits(logits, token_ids)


def in_tensorflow(function, arrays, ids, weights, how):
    """Weighted mean, losses, hits and the gradients by features, embedding and bias."""
    import tensorflow as tf

    unknown = [tf.TensorSpec((None, None, 8), arrays[0].dtype)]
    unknown += [tf.TensorSpec(array.shape, array.dtype) for array in arrays[1:]]
    unknown += [tf.TensorSpec((None, None), dtype) for dtype in ("int32", "float32")]

    def run(features, embedding, bias, ids, weights):
        with tf.GradientTape() as tape:
            tape.watch((features, embedding, bias))
            losses, right = function(features, embedding, bias, ids)
            loss = weighted_mean(losses, weights)
        return loss, losses, right, *tape.gradient(loss, (features, embedding, bias))

    if how != "eager":
        run = tf.function(run, input_signature=unknown, jit_compile=how == "jit")
    return run(*[tf.constant(each) for each in (*arrays, ids, weights)])


def in_jax(function, arrays, ids, weights):
    import jax

    def loss(features, embedding, bias):
        losses, right = function(features, embedding, bias, ids)
        return weighted_mean(losses, weights), (losses, right)

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (loss, others), gradients = run(*arrays)
    return loss, *others, *gradients


def in_torch(function, arrays, ids, weights):
    import torch

    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    losses, right = function(*tensors, torch.tensor(ids))
    loss = weighted_mean(losses, torch.tensor(weights))
    loss.backward()
    return loss.detach(), losses.detach(), right.detach(), *[tensor.grad for tensor in tensors]


def all_close(run, piece, weights=WEIGHTS):
    expected = run(plain, ARRAYS, IDS, weights)
    got = run(functools.partial(losses_in_pieces, piece=piece), ARRAYS, IDS, weights)
    for theirs, ours in zip(expected, got, strict=True):
        theirs, ours = ops.convert_to_numpy(theirs), ops.convert_to_numpy(ours)
        assert theirs.shape == ours.shape and theirs.dtype == ours.dtype
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("piece", PIECES.values(), ids=PIECES)
@pytest.mark.parametrize("how", ["eager", "graph", "jit"])
def test_pieces_give_the_numbers_and_gradients_of_the_whole(how, piece):
    all_close(functools.partial(in_tensorflow, how=how), piece)


def test_without_selected_tokens_pieces_give_no_gradient():
    run = functools.partial(in_tensorflow, how="graph")
    all_close(run, 7, np.zeros_like(WEIGHTS))
    gradients = run(functools.partial(losses_in_pieces, piece=7), ARRAYS, IDS, 0 * WEIGHTS)[3:]
    assert not any(ops.convert_to_numpy(gradient).any() for gradient in gradients)


def test_the_first_of_equal_words_is_the_most_probable_one():
    """As in `ops.argmax`, and with bfloat16 words often are equal."""
    features, embedding = np.ones((1, 2, 3), "float32"), np.ones((9, 3), "float32")
    right = losses_in_pieces(features, embedding, np.zeros(9, "float32"), [[0, 4]], piece=4)[1]
    np.testing.assert_array_equal(ops.convert_to_numpy(right), [[1, 0]])


def test_pieces_in_half_precision_round_like_the_whole():
    arrays = [keras.ops.cast(array, "bfloat16") for array in ARRAYS]
    run = functools.partial(in_tensorflow, ids=IDS, weights=WEIGHTS, how="graph")
    expected = run(plain, arrays)
    got = run(functools.partial(losses_in_pieces, piece=7), arrays)
    for theirs, ours in zip(expected, got, strict=True):
        assert theirs.dtype == ours.dtype
        theirs, ours = (ops.convert_to_numpy(ops.cast(each, "float32")) for each in (theirs, ours))
        # Two roundings to 8 bits, of what is as large as the largest.
        np.testing.assert_allclose(ours, theirs, rtol=2**-7, atol=2**-7 * abs(theirs).max())


def close_on_jax():
    """Then mebibytes of a training gradient, and whether it holds all logits at some time."""
    for piece in PIECES.values():
        all_close(in_jax, piece)
    import jax

    shapes = [jax.ShapeDtypeStruct(shape, "float32") for shape in ((256, 8), (20000, 8), (20000,))]
    ids, found = np.zeros(256, "int32"), []
    for function in (plain, functools.partial(losses_in_pieces, piece=1000)):
        loss = jax.grad(lambda *x, f=function: ops.sum(f(*x, ids)[0]), argnums=(0, 1, 2))
        compiled = jax.jit(loss).lower(*shapes).compile()
        mebibytes = compiled.memory_analysis().temp_size_in_bytes / 2**20
        found.append([mebibytes, "f32[256,20000]" in compiled.as_text()])
    return found


def close_on_torch():
    for piece in PIECES.values():
        all_close(in_torch, piece)
    return "close"


def test_on_jax_pieces_are_close_and_all_that_is_held():
    (of_whole, whole_is_held), (of_pieces, pieces_are_held) = on("jax", close_on_jax)
    assert whole_is_held and not pieces_are_held
    assert of_whole > 19  # 256 * 20,000 logits of 4 bytes
    assert of_pieces < of_whole / 5  # a 20th of the logits, and the gradient of the embedding


def test_on_torch_pieces_are_close():
    assert on("torch", close_on_torch) == "close"
