"""The whole package on every backend, a file from one on another, and other people's arrays."""

import hashlib
import pathlib
import pickle

import keras
import numpy as np
import pytest
from elsewhere import on
from keras import ops
from test_noise import SETTINGS

from keras_dynmask import (
    DynamicMasking,
    MaskedLanguageModel,
    TransformerEncoder,
    ignore_index_labels,
    mask_dataset,
)

TESTS = pathlib.Path(__file__).parent
RANDOM = np.random.default_rng(0)
IDS = RANDOM.integers(5, 100, (64, 48)).astype("int32")
DOCUMENTS = np.sort(RANDOM.integers(0, 4, IDS.shape), axis=1).astype("int32")
SCHEDULE = keras.optimizers.schedules.PolynomialDecay(0.3, 10, 0.1)


def md5(*arrays):
    digest = hashlib.md5()
    for array in arrays:
        digest.update(ops.convert_to_numpy(array).astype("float64").tobytes())
    return digest.hexdigest()


# One layer, three kinds of arrays.


def labelled(masked):
    return masked | {"labels": ignore_index_labels(masked)}


def in_keras(masking, inputs):
    return labelled(masking(inputs, step=5))


def in_tf_data(masking, inputs):
    import tensorflow as tf

    def mask(inputs):
        return labelled(masking(inputs, step=tf.constant(5, "int64")))

    return next(iter(tf.data.Dataset.from_tensors(inputs).map(mask)))


def differ_from_numpy(mask, settings):
    """The settings and outputs for which `mask` does not give NumPy's bits and dtype."""
    differing = []
    for setting in settings:
        arguments = {"mask_selection_rate": 0.15, "mask_token_id": 4, "seed": 2**40 + 1}
        arguments |= {"unselectable_token_ids": (0, 2, 97), **setting}
        masking, inputs = DynamicMasking(100, **arguments), {"token_ids": IDS}
        if masking.count_per_document:
            inputs["segment_ids"] = DOCUMENTS
        if masking.selection_weights is not None:
            inputs["selection_weights"] = (IDS % 7 + 0.25).astype("float32")
        masked = mask(masking, inputs)
        for name, expected in labelled(masking.mask_arrays(inputs, step=5)).items():
            array = ops.convert_to_numpy(masked[name])
            if array.dtype != expected.dtype or not np.array_equal(array, expected):
                differing.append([str(setting), name])
    return differing


def fixed_masks():
    """md5 of the masks of evaluation, in Keras; and that tf.data gives them, too."""
    import tensorflow as tf

    masking = DynamicMasking(100, 0.15, 4, mask_selection_length=8, seed=1)
    in_keras = masking.mask_fixed(IDS)
    in_tf_data = next(iter(tf.data.Dataset.from_tensors(IDS).map(masking.mask_fixed)))
    found = [md5(*[masked[name] for name in sorted(masked)]) for masked in (in_keras, in_tf_data)]
    assert found[0] == found[1]
    return found[0]


def test_numpy_gives_the_bits_of_the_layer():
    assert differ_from_numpy(in_keras, [{"mask_selection_rate": SCHEDULE}, *SETTINGS]) == []


def bare_maps():
    """How many batches are distinct after three epochs; ragged rows; where the counter stands."""
    import tensorflow as tf

    masking = DynamicMasking(100, 0.15, 4, seed=1)
    dataset = tf.data.Dataset.from_tensor_slices(IDS).batch(8).map(masking, num_parallel_calls=4)
    seen = {x["token_ids"].numpy().tobytes() for _ in range(3) for x in dataset}
    ragged = tf.data.Dataset.from_tensors(tf.ragged.constant([[7, 8, 9], [7]])).map(masking)
    lengths = next(iter(ragged))["token_ids"].row_lengths().numpy().tolist()
    return [len(seen), lengths, int(masking.step)]


def pipelines():
    """md5 of two epochs of `mask_dataset`; and a model is trained on them."""
    import tensorflow as tf

    masking = DynamicMasking(100, 0.15, 4, mask_selection_length=8, seed=1)
    rows = tf.data.Dataset.from_tensor_slices(IDS).batch(16)
    masked = mask_dataset(rows, masking, epochs=2)
    elements = [keras.tree.flatten(keras.tree.map_structure(np.asarray, e)) for e in masked]
    model = small_model(masking)
    history = model.fit(masked, epochs=2, steps_per_epoch=4, shuffle=False, verbose=0).history
    assert np.isfinite(history["masked_loss"]).all()
    return md5(*[array for element in elements for array in element])


def under_tf_data():
    few = [{"mask_selection_rate": SCHEDULE}, *SETTINGS[::3]]  # tracing takes seconds
    return [differ_from_numpy(in_tf_data, few), bare_maps(), pipelines(), fixed_masks()]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_tf_data_masks_alike_on(backend):
    assert on(backend, under_tf_data) == [[], [24, [3, 1], 25], pipelines(), fixed_masks()]


def test_bare_maps_count_and_stay_fresh():
    assert bare_maps()[:2] == [24, [3, 1]]  # here parallel calls race for the counter


# A model from one backend on another.


def small_model(masking=None):
    keras.utils.set_random_seed(0)
    encoder = TransformerEncoder(100, 1, 2, 16, 32, dropout=0.1)
    masking = masking or DynamicMasking(100, (0.1, 0.4), 4, seed=2**63 + 5)
    model = MaskedLanguageModel(encoder, masking)
    model.compile(keras.optimizers.Adam(0.01))
    return model


def numbers_of(model):
    """What must agree: exactly, the next masks and the fixed ones; nearly, losses and logits."""
    step = int(model.masking.step)
    shown = [model.masking(IDS, step=step), model.masking.mask_fixed(IDS)]
    held_out = model.evaluate(IDS, batch_size=32, verbose=0, return_dict=True)["masked_loss"]
    logits = model.predict(IDS[:2], verbose=0)
    return {
        "step": step,
        "masks": md5(*[masked[name] for masked in shown for name in sorted(masked)]),
        "held_out": held_out,
        "logits": logits.ravel()[::97].tolist(),
    }


def go_on(directory):
    """Loads what another backend saved, trains on, and saves for the way back."""
    directory = pathlib.Path(directory)
    model = keras.models.load_model(directory / "there.keras")
    found = numbers_of(model)
    weights_only = small_model()
    weights_only.load_weights(directory / "there.weights.h5")
    assert int(weights_only.masking.step) == found["step"]
    losses = model.fit(IDS, batch_size=16, epochs=6, verbose=0).history["masked_loss"]
    assert losses[-1] < losses[0]
    assert md5(pickle.loads(pickle.dumps(model.masking))(IDS)["token_ids"]) == md5(
        model.masking.mask_arrays(IDS, step=int(model.masking.step))["token_ids"]
    )
    model.save(directory / "back.keras")
    model.save_weights(directory / "back.weights.h5")
    return [found, numbers_of(model)]


def agree(some, others):
    assert (some["step"], some["masks"]) == (others["step"], others["masks"])
    # Float rounding of one forward pass, in another order of summation.
    np.testing.assert_allclose(some["held_out"], others["held_out"], rtol=1e-5)
    np.testing.assert_allclose(some["logits"], others["logits"], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_model_goes_on_where_tensorflow_is_not_installed(backend, tmp_path):
    model = small_model()
    model.fit(IDS, batch_size=16, verbose=0)
    model.save(tmp_path / "there.keras")
    model.save_weights(tmp_path / "there.weights.h5")
    there, back = on(backend, go_on, tmp_path, without_tensorflow=True)
    agree(there, numbers_of(model))
    assert back["step"] == there["step"] + 24
    agree(back, numbers_of(keras.models.load_model(tmp_path / "back.keras")))
    model.load_weights(tmp_path / "back.weights.h5")
    agree(back, numbers_of(model))
