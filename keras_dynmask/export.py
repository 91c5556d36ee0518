"""The trained model as plain TensorFlow."""

import keras

from keras_dynmask.errors import require
from keras_dynmask.sampling import Unmasking


def export_saved_model(model, filepath, *, dtype="int32", verbose=False):
    """Writes a SavedModel that TensorFlow serves without Keras and without this package.

    Endpoints `serve` (and `serving_default`), token ids to logits `[batch, length,
    vocabulary]`; `encode`, token ids to hidden states `[batch, length, dim]`; and `unmask_step`,
    token ids and a `count` for each row, `[batch]`, to token ids in which so many of the
    mask tokens are filled in, those of which the model is surest: called until none is left, it
    generates as `MaskedLanguageModel.generate` does at temperature 0. For any batch and any
    length. The graph holds no random op and nothing of the masking.

    Args:
        model: a `MaskedLanguageModel`.
        filepath: the directory to write.
        dtype: what the endpoints take, "int32" or "int64". SavedModels are strict.
        verbose: bool, whether Keras prints the endpoints.

    Raises:
        ValueError: for another dtype.
        ImportError: without TensorFlow.
        OSError: where it can't be written.
    """
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError("A SavedModel is TensorFlow's: install tensorflow.") from error

    require(dtype in ("int32", "int64"), "`dtype` must be 'int32' or 'int64'.", dtype=dtype)
    token_ids = [tf.TensorSpec((None, None), dtype, name="token_ids")]
    archive = keras.export.ExportArchive()
    archive.track(model.encoder)
    archive.track(model.head)
    if model.decoder is not None:
        archive.track(model.decoder)
    archive.add_endpoint("serve", lambda ids: model(ids, training=False), token_ids)
    archive.add_endpoint("encode", lambda ids: model.encode(ids, training=False), token_ids)
    count = tf.TensorSpec((None,), "int32", name="count")
    archive.add_endpoint("unmask_step", Unmasking(model).fill_in, [*token_ids, count])
    try:
        archive.write_out(str(filepath), verbose=verbose)
    except tf.errors.OpError as error:  # a full disk, in TensorFlow's own words
        raise OSError(error.message) from error
