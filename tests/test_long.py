"""Long rows: a model of 8,192 tokens, masks of 131,072, and memory that grows as the row does."""

from pathlib import Path

import numpy as np
import pytest
from elsewhere import on

from keras_dynmask import DynamicMasking, MaskedLanguageModel, TransformerEncoder

TESTS = Path(__file__).parent
LONGEST = 131_072
CONTINUES = range(80, 100)  # a fifth of the ids
SETTINGS = {
    "tokens": {},
    "fixed size": {"mask_selection_length": 10_000},
    "words": {"continuation_token_ids": CONTINUES},
}


def row(length):
    return np.random.default_rng(0).integers(5, 100, (1, length)).astype("int32")


def build(**settings):
    return DynamicMasking(100, 0.125, 4, unselectable_token_ids=range(5), seed=3, **settings)


@pytest.mark.slow
def test_a_model_of_8192_tokens_is_trained_exported_and_served(tmp_path):
    import tensorflow as tf

    ids = row(8192)
    encoder = TransformerEncoder(100, 1, 1, 32, 48)
    model = MaskedLanguageModel(encoder, build())
    model.compile("adam", jit_compile=False)
    before = encoder.token_embedding.embeddings.numpy()
    first = model.train_on_batch(ids, return_dict=True)
    assert first["masked_loss"] == pytest.approx(np.log(100), rel=0.05)  # it knows nothing yet
    assert first["selection_rate"] == pytest.approx(0.125)
    assert (encoder.token_embedding.embeddings.numpy() != before)[5:].any(axis=1).all()

    model.export(tmp_path / "saved_model")
    loaded = tf.saved_model.load(tmp_path / "saved_model")
    logits = loaded.serve(tf.constant(ids))
    np.testing.assert_allclose(logits, model.predict(ids, verbose=0), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_131072_tokens_are_masked_alike_in_a_graph_and_in_numpy(setting):
    import tensorflow as tf

    ids, masking = row(LONGEST), build(**SETTINGS[setting])
    in_numpy = masking.mask_arrays(ids, step=7)
    in_graph = tf.function(lambda ids: masking(ids, step=7))(tf.constant(ids))
    for name, values in in_numpy.items():
        np.testing.assert_array_equal(in_graph[name], values, err_msg=name)

    (weights,) = in_numpy["mask_weights"]
    if setting == "tokens":
        assert weights.sum() == LONGEST / 8
    elif setting == "fixed size":
        (positions,) = in_numpy["mask_positions"]
        assert weights.tolist() == [1] * 10_000 and (np.diff(positions) > 0).all()
        assert positions[0] < 200 and positions[-1] > LONGEST - 200  # from end to end
        np.testing.assert_array_equal(in_numpy["mask_ids"], ids[:, positions])
    else:
        begins = np.flatnonzero(~np.isin(ids[0], CONTINUES) | (np.arange(LONGEST) == 0))
        lengths = np.diff([*begins, LONGEST])
        selected = np.add.reduceat(weights, begins)
        assert np.isin(selected / lengths, (0, 1)).all()  # no word is cut
        assert abs(weights.sum() - LONGEST / 8) < lengths.max()


def planned_bytes():
    """What XLA plans for beside inputs and outputs, for an eighth of the length and for all of it,
    for each setting."""
    import jax

    def of(masking, length):
        program = jax.jit(lambda ids, step: masking.mask({"token_ids": ids}, step))
        return program.lower(row(length), 0).compile().memory_analysis().temp_size_in_bytes

    return [
        {name: of(build(**settings), length) for name, settings in SETTINGS.items()}
        for length in (LONGEST // 8, LONGEST)
    ]


@pytest.mark.slow
def test_masking_takes_memory_in_proportion_to_the_row():
    short, long = on("jax", planned_bytes)
    for setting in SETTINGS:
        assert 0 < long[setting] <= 8 * 1.1 * short[setting], (setting, short, long)
        assert long[setting] <= 8 * row(LONGEST).nbytes, (setting, long)
