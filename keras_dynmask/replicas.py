"""Copies of a model that train together, as TensorFlow and PyTorch run them."""

import keras


def replica_id():
    """Which copy of the model runs: copies of one seed must not share noise."""
    context = _replica_context()
    if context is not None:
        return context.replica_id_in_sync_group
    if keras.backend.backend() == "torch":
        import torch.distributed

        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank()
    return 0  # JAX sees one batch, however many devices hold it


def sum_over_replicas(total):
    """`total` added up over the replicas of a `tf.distribute` strategy, if there is one."""
    context = _replica_context()
    return total if context is None else context.all_reduce("sum", total)


def replica_count():
    """How many replicas of a `tf.distribute` strategy run this step."""
    context = _replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def equal_share(part):
    """A replica's part of a loss, shown as an equal share of the whole.

    The gradient stays that of the part. Only the value changes: Keras logs replicas' losses
    in proportion to their rows, and where a batch leaves one of two without a row, a part
    would count twice.
    """
    context = _replica_context()
    if context is None:
        return part
    share = context.all_reduce("sum", part) / context.num_replicas_in_sync
    return part + keras.ops.stop_gradient(share - part)


def _replica_context():
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    return tf.distribute.get_replica_context() if tf.distribute.has_strategy() else None
