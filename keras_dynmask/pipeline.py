"""Masking in tf.data: the step travels with the element."""

from keras_dynmask.errors import require, whole


def mask_dataset(dataset, masking, epochs=None, initial_epoch=0, *, padding_token_id=0):
    """Masks a dataset of token ids, freshly in every epoch and equally in every run.

    The mask of an element depends on the seed and on the element's place in the
    stream, so it is the same for any number of parallel calls and from run to run.

    With `epochs` the result holds all epochs from `initial_epoch` to `epochs`, one
    after the other, for one `fit` with `steps_per_epoch`; element i of epoch e is
    masked as `masking(..., step=e * size + i)` would, so a run that starts at
    `initial_epoch` sees the masks it would have seen. Without `epochs` the result
    holds one epoch, and every iteration over it draws other masks.

    Shuffle and batch before, cache before, prefetch after.

    Args:
        dataset: `tf.data.Dataset` of integers `[length]` or `[batch, length]`, or of
            dicts as `DynamicMasking` takes them.
        masking: a `DynamicMasking` layer. Its own counter is left alone.
        epochs: int or None, see above.
        initial_epoch: int, the first epoch to give; needs `epochs`.
        padding_token_id: int, what is not real, where an element brings no
            `padding_mask`.

    Returns:
        A `tf.data.Dataset` of `(x, y, sample_weight)`, as KerasHub's `MaskedLM` models
        and `MaskedLanguageModel.fit` take it: `x` a dict of `token_ids`, `padding_mask`,
        for targets of fixed size `mask_positions`, and whatever else the elements hold
        (BERT's `segment_ids`); `y` the original ids; and weights of 1 where a token is
        selected.

    Raises:
        ValueError: naming the argument, what was expected and what was received.
        ImportError: without TensorFlow.

    Example:

    >>> rows = tf.data.Dataset.from_tensor_slices(np.full((6, 8), 5)).batch(2)
    >>> masking = DynamicMasking(10, 0.25, mask_token_id=1, mask_selection_length=2, seed=0)
    >>> x, y, weights = next(iter(mask_dataset(rows, masking)))
    >>> sorted(x), tuple(y.shape), float(weights.numpy().sum())
    (['mask_positions', 'padding_mask', 'token_ids'], (2, 2), 4.0)
    """
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError("`mask_dataset` is tf.data: install tensorflow to use it.") from error

    initial_epoch = whole("initial_epoch", initial_epoch, 0)
    if epochs is None:
        require(
            initial_epoch == 0,
            "`initial_epoch` needs `epochs`: one dataset that holds them all.",
            initial_epoch=initial_epoch,
            epochs=epochs,
        )
        require(
            isinstance(masking.mask_selection_rate, (float, tuple)),
            "`epochs` must be given where the rate follows a schedule: its step is the "
            "element's place among them.",
            epochs=epochs,
        )
        # The one source in tf.data that differs at each iteration, is equal in each
        # run, and survives an iterator's checkpoint.
        starts = tf.data.Dataset.random(masking.seed % 2**31, rerandomize_each_iteration=True)
        starts, length = starts.take(1), int(dataset.cardinality())
    else:
        epochs, size = whole("epochs", epochs, initial_epoch), _size(dataset)
        starts = tf.data.Dataset.range(initial_epoch, epochs).map(lambda epoch: epoch * size)
        length = size * (epochs - initial_epoch)

    def mask(step, element):
        masked = masking(element, training=True, step=step)
        y, sample_weight = masked.pop("mask_ids"), masked.pop("mask_weights")
        if "padding_mask" not in masked:
            original = element["token_ids"] if isinstance(element, dict) else element
            masked["padding_mask"] = tf.not_equal(original, padding_token_id)
        return masked, y, sample_weight

    stream = starts.flat_map(lambda start: dataset.enumerate(start))
    stream = stream.map(mask, num_parallel_calls=tf.data.AUTOTUNE)
    if length < 0:  # unknown, or infinite
        return stream
    return stream.apply(tf.data.experimental.assert_cardinality(length))


def _size(dataset):
    """How many elements an epoch has, by counting them where the dataset can't say."""
    size = int(dataset.cardinality())
    require(
        size != -1, "`dataset` must be finite: `mask_dataset` repeats it.", cardinality="infinite"
    )
    return size if size >= 0 else int(dataset.reduce(0, lambda count, _: count + 1))
