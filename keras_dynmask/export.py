"""The trained model as plain TensorFlow."""

import keras


def export_saved_model(model, filepath, *, dtype="int32"):
    """Writes a SavedModel that TensorFlow serves without Keras and without this package.

    Endpoints `serve` (and `serving_default`), token ids to logits `[batch, length,
    vocabulary]`, and `encode`, token ids to hidden states `[batch, length, dim]`, for
    any batch and any length. The graph holds no random op and nothing of the masking.

    Args:
        model: a `MaskedLanguageModel`.
        filepath: the directory to write.
        dtype: what the endpoints take, "int32" or "int64". SavedModels are strict.

    Raises:
        ImportError: without TensorFlow.
    """
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError("A SavedModel is TensorFlow's: install tensorflow.") from error

    token_ids = [tf.TensorSpec((None, None), dtype, name="token_ids")]
    archive = keras.export.ExportArchive()
    archive.track(model.encoder)
    archive.track(model.head)
    archive.add_endpoint(
        "serve", lambda ids: model.to_logits(model.encode(ids, training=False)), token_ids
    )
    archive.add_endpoint("encode", lambda ids: model.encode(ids, training=False), token_ids)
    archive.write_out(str(filepath), verbose=False)
