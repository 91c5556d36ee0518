"""The masked-token objective: what is computed at selected positions, and averaged."""

from keras import ops


def states_at(hidden, positions):
    """Hidden states at the selected positions: `[batch, K, dim]`.

    Everything that follows costs K / length of what it would at all positions, and
    with a large vocabulary that is most of the step.

    Args:
        hidden: `[batch, length, dim]`.
        positions: int32 `[batch, K]`.
    """
    batch, length, dim = ops.shape(hidden)
    rows = ops.expand_dims(ops.arange(batch, dtype="int32"), 1) * length
    return ops.take(ops.reshape(hidden, (-1, dim)), positions + rows, axis=0)


def token_losses(logits, token_ids):
    """Cross-entropy in nats of each token, float32: `[..., vocabulary], [...] -> [...]`."""
    return ops.sparse_categorical_crossentropy(
        token_ids, ops.cast(logits, "float32"), from_logits=True
    )


def hits(logits, token_ids):
    """1.0 where the most probable token is the right one."""
    best = ops.argmax(logits, axis=-1)
    return ops.cast(ops.equal(best, ops.cast(token_ids, best.dtype)), "float32")


def weighted_mean(values, weights, total=None):
    """sum(values * weights) / sum(weights), and 0 where nothing has weight.

    `total` stands in for sum(weights) where other replicas hold a part of the batch.
    """
    total = ops.sum(weights) if total is None else total
    return ops.divide_no_nan(ops.sum(values * weights), total)
