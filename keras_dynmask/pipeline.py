"""Masking in input pipelines: the step travels with the element."""

import sys

from keras_dynmask.errors import require, whole
from keras_dynmask.replicas import replica_id


def mask_dataset(dataset, masking, epochs=None, initial_epoch=0, *, padding_token_id=0):
    """Masks a dataset of token ids, freshly in every epoch and equally in every run.

    The mask of an element depends on the seed and on the element's place in the
    stream, so it is the same for any number of parallel calls or workers and from run
    to run, and an iterator's checkpoint holds all that is needed to go on.

    With `epochs` the result holds all epochs from `initial_epoch` to `epochs`, one
    after the other, for one `fit` with `steps_per_epoch`; element i of epoch e is
    masked as `masking(..., step=e * size + i)` would, so a run that starts at
    `initial_epoch` sees the masks it would have seen. Without `epochs`, a
    `tf.data.Dataset` gives one epoch, and every iteration over it draws other masks; a
    `grain.MapDataset` is masked by index, so `repeat` it before.

    Shuffle and batch before, cache before, prefetch after. What is cached or
    snapshotted after keeps its masks. tf.data's `shuffle` begins with its first order
    again in a process that starts at a later epoch: give a function of the epoch instead,
    `lambda epoch: rows.shuffle(10_000, seed=epoch).batch(32)`. For validation data,
    whose masks should depend on their content alone, see `DynamicMasking.mask_fixed`.

    Args:
        dataset: `tf.data.Dataset` or `grain.MapDataset` of integers `[length]` or
            `[batch, length]`, or of dicts as `DynamicMasking` takes them; or, with
            `epochs`, a function from the epoch, an int64 scalar, to a `tf.data.Dataset`.
        masking: a `DynamicMasking` layer. Its own counter is left alone.
        epochs: int or None, see above.
        initial_epoch: int, the first epoch to give; needs `epochs`.
        padding_token_id: int, what is not real, where an element brings no
            `padding_mask`; or None for none at all, which models like KerasHub's f-net
            want: they take no such input.

    Returns:
        A dataset of the same kind, of `(x, y, sample_weight)`, as KerasHub's `MaskedLM`
        models and `MaskedLanguageModel.fit` take it: `x` a dict of `token_ids`,
        `padding_mask`, for targets of fixed size `mask_positions`, and whatever else the
        elements hold (BERT's `segment_ids`); `y` the original ids; and weights of 1 where a
        token is selected. Grain's elements are NumPy arrays, masked in NumPy.

    Raises:
        ValueError: naming the argument, what was expected and what was received.

    Example:

    >>> rows = tf.data.Dataset.from_tensor_slices(np.full((6, 8), 5)).batch(2)
    >>> masking = DynamicMasking(10, 0.25, mask_token_id=1, mask_selection_length=2, seed=0)
    >>> x, y, weights = next(iter(mask_dataset(rows, masking)))
    >>> sorted(x), tuple(y.shape), float(weights.numpy().sum())
    (['mask_positions', 'padding_mask', 'token_ids'], (2, 2), 4.0)
    """
    initial_epoch = whole("initial_epoch", initial_epoch, 0)
    require(
        initial_epoch == 0 or epochs is not None,
        "`initial_epoch` needs `epochs`: one dataset that holds them all.",
        initial_epoch=initial_epoch,
        epochs=epochs,
    )
    if epochs is not None:
        epochs = whole("epochs", epochs, initial_epoch)

    def in_graph(step, element):
        return _labelled(masking(element, training=True, step=step), element, padding_token_id)

    replica = replica_id()  # of this process, which Grain's workers need not know

    def in_numpy(step, element):
        masked = masking.mask_arrays(element, step=step, replica=replica)
        return _labelled(masked, element, padding_token_id)

    if _is_a(dataset, "grain", "MapDataset"):
        return _mask_grain(dataset, in_numpy, epochs, initial_epoch)
    require(
        _is_a(dataset, "tensorflow", "data.Dataset") or (callable(dataset) and epochs is not None),
        "`dataset` must be a tf.data.Dataset, a grain.MapDataset (mask before `to_iter_dataset`), "
        "or with `epochs` a function from the epoch to a tf.data.Dataset.",
        dataset=type(dataset).__name__,
    )
    return _mask_tf_data(dataset, masking, in_graph, epochs, initial_epoch)


def _labelled(masked, element, padding_token_id):
    """`(x, y, sample_weight)`."""
    y, sample_weight = masked.pop("mask_ids"), masked.pop("mask_weights")
    if padding_token_id is not None:
        original = element["token_ids"] if isinstance(element, dict) else element
        masked.setdefault("padding_mask", original != padding_token_id)
    return masked, y, sample_weight


def _mask_tf_data(dataset, masking, mask, epochs, initial_epoch):
    import tensorflow as tf

    if epochs is None:
        require(
            isinstance(masking.mask_selection_rate, (float, tuple)),
            "`epochs` must be given where the rate follows a schedule: its step is the "
            "element's place among them.",
            epochs=epochs,
        )
        # The one source in tf.data that differs at each iteration, is equal in each
        # run, and survives an iterator's checkpoint.
        starts = tf.data.Dataset.random(masking.seed % 2**31, rerandomize_each_iteration=True)
        stream = starts.take(1).flat_map(dataset.enumerate)
        length = int(dataset.cardinality())
    else:
        of_epoch = dataset if callable(dataset) else lambda epoch: dataset
        size, is_known = _size(of_epoch(tf.constant(initial_epoch, "int64")))
        stream = tf.data.Dataset.range(initial_epoch, epochs).flat_map(
            lambda epoch: of_epoch(epoch).enumerate(epoch * size)
        )
        length = size * (epochs - initial_epoch) if is_known else -1
    stream = stream.map(mask, num_parallel_calls=tf.data.AUTOTUNE)
    if length < 0:  # unknown, or infinite
        return stream
    return stream.apply(tf.data.experimental.assert_cardinality(length))


def _size(dataset):
    """How many elements an epoch has, and whether the dataset says so: else they are counted."""
    size = int(dataset.cardinality())
    require(
        size != -1, "`dataset` must be finite: `mask_dataset` repeats it.", cardinality="infinite"
    )
    if size >= 0:
        return size, True
    return int(dataset.reduce(0, lambda count, _: count + 1)), False


def _mask_grain(dataset, mask, epochs, initial_epoch):
    if epochs is None:
        return dataset.map_with_index(mask)
    size = len(dataset)
    require(size < sys.maxsize, "`dataset` must be finite: `mask_dataset` repeats it.", size=size)
    return dataset.repeat(epochs).map_with_index(mask)[initial_epoch * size :]


def _is_a(value, package, name):
    """Whether a value is of a class of a package, without importing it to ask."""
    kind = sys.modules.get(package)
    for part in name.split("."):
        kind = getattr(kind, part, None)
    return kind is not None and isinstance(value, kind)
