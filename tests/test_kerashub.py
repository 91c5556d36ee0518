"""KerasHub's backbones in our model, our masks in its models, and its tokenizers."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from from_kerashub import TEXT, TOKENIZERS, VOCABULARY, backbone, models, tokenizer

from keras_dynmask import DynamicMasking, MaskedLanguageModel, mask_dataset
from keras_dynmask.vocabulary import masking_arguments

# A few steps take less time than their tracing: to train BERT with ids and with a dict and to
# evaluate it took 10 s of CPU in graphs, and 1 eagerly.
pytestmark = [
    pytest.mark.usefixtures("eagerly"),
    pytest.mark.filterwarnings("ignore:Even though .* this option does not apply to tf.data"),
    # Backbones have a pooler, which learns nothing from masked tokens.
    pytest.mark.filterwarnings("ignore:Gradients do not exist for variables .'pooled_dense"),
]

PAD, MASK, NEVER_SEEN = 0, 4, VOCABULARY - 1
PROTECTED = (PAD, 1, 2, 3, MASK)
IDS = np.random.default_rng(0).integers(5, NEVER_SEEN, (8, 12)).astype("int32")
IDS[:, 9:] = PAD
SEGMENTS = np.tile(np.int32([0] * 5 + [1] * 7), (8, 1))
FEATURES = {"token_ids": IDS, "padding_mask": IDS != PAD, "segment_ids": SEGMENTS}


@pytest.fixture
def eagerly():
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def masking(**settings):
    # All that is selected is hidden, so the model meets no id but those of its rows.
    defaults = {"mask_token_rate": 1.0, "random_token_rate": 0.0, "seed": 0}
    return DynamicMasking(
        VOCABULARY, 0.3, MASK, unselectable_token_ids=PROTECTED, **defaults | settings
    )


# `MaskedLanguageModel` over every text backbone. Which of them reads what:

PADDING, SEGMENT = "padding_mask", "segment_ids"
BACKBONES = {
    "Bert": {PADDING, SEGMENT},
    "Roberta": {PADDING},
    "DistilBert": {PADDING},
    "DebertaV3": {PADDING},
    "Albert": {PADDING, SEGMENT},
    "Electra": {PADDING, SEGMENT},
    "XLMRoberta": {PADDING},
    "FNet": {SEGMENT},
}
every_backbone = pytest.mark.parametrize("name", BACKBONES)


@functools.cache
def trained(name):
    """A model after four steps on one batch, and the losses under fixed masks around them."""
    keras.utils.set_random_seed(1)
    model = MaskedLanguageModel(backbone(name), masking())
    model.compile(keras.optimizers.Adam(3e-2))
    losses = [model.evaluate(IDS, verbose=0, return_dict=True)["masked_loss"]]
    untrained = model.encoder.token_embedding.embeddings.numpy()
    model.fit(IDS, epochs=2, verbose=0)
    model.fit(FEATURES, epochs=2, verbose=0)
    losses.append(model.evaluate(FEATURES, verbose=0, return_dict=True)["masked_loss"])
    return model, losses, untrained


def predicted(model, features):
    return model.predict(features, verbose=0)


@every_backbone
def test_a_backbone_learns(name):
    model, (before, after), untrained = trained(name)
    assert set(model.encoder.input) == BACKBONES[name] | {"token_ids"}
    assert before == pytest.approx(np.log(VOCABULARY), abs=0.2) and after < before - 0.1
    assert int(model.masking.step) == 4
    # An id that no row holds moves only where the head shares the embedding.
    embedding = model.encoder.token_embedding.embeddings.numpy()
    assert np.abs(embedding[NEVER_SEEN] - untrained[NEVER_SEEN]).max() > 1e-3
    assert not any(weight.shape == embedding.shape for weight in model.head.weights)


@every_backbone
@pytest.mark.parametrize("features", [IDS, FEATURES], ids=["ids", "dict"])
def test_predictions_are_those_of_the_backbone(name, features):
    model, reads = trained(name)[0], BACKBONES[name]
    segments = SEGMENTS if features is FEATURES else np.zeros_like(SEGMENTS)
    known = {"token_ids": IDS, PADDING: IDS != PAD, SEGMENT: segments}
    hidden = model.encoder({name: known[name] for name in ("token_ids", *reads)})
    hidden = hidden["sequence_output"] if isinstance(hidden, dict) else hidden
    np.testing.assert_allclose(predicted(model, features), model.to_logits(hidden), atol=1e-5)


@every_backbone
def test_segments_and_padding_are_seen_by_who_reads_them(name):
    model, reads = trained(name)[0], BACKBONES[name]
    reference = predicted(model, FEATURES)

    def change(features):
        return np.abs(predicted(model, FEATURES | features) - reference)[:, :9].max()

    assert (change({SEGMENT: 1 - SEGMENTS}) > 1e-4) == (SEGMENT in reads)
    # f-net alone mixes over all positions, whatever stands there.
    other_padding = np.where(IDS == PAD, 7, IDS)
    assert (change({"token_ids": other_padding}) < 1e-5) == (PADDING in reads)
    shorter = predicted(model, {name: value[:, :10] for name, value in FEATURES.items()})
    unmoved = np.abs(shorter - reference[:, :10])[:, :9].max() < 1e-5
    assert unmoved == (PADDING in reads)


@every_backbone
def test_a_saved_model_goes_on_as_if_it_had_not_stopped(name, tmp_path):
    model = trained(name)[0]
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(predicted(again, IDS), predicted(model, IDS))
    weights = model.get_weights()
    for each in (again, model):  # the next mask, the next dropout, the optimizer's moments
        each.fit(IDS, shuffle=False, verbose=0)
    np.testing.assert_array_equal(predicted(again, IDS), predicted(model, IDS))
    assert np.abs(predicted(again, IDS) - predicted(with_weights(model, weights), IDS)).max() > 1e-3


def with_weights(model, weights):
    """The same model, for the tests that share it, as it was."""
    model.set_weights(weights)
    return model


@pytest.mark.parametrize("name", ["Bert", "DebertaV3", "FNet"])
def test_an_exported_backbone_predicts_the_same(name, tmp_path):
    model = trained(name)[0]
    model.export(tmp_path)
    served = tf.saved_model.load(tmp_path)
    for ids in (IDS, IDS[:3, :7]):
        np.testing.assert_allclose(served.serve(ids), predicted(model, ids), atol=1e-5)


@pytest.mark.slow
def test_a_graph_trains_a_backbone_as_eager_steps_do():
    def losses():
        keras.utils.set_random_seed(1)
        model = MaskedLanguageModel(backbone("DebertaV3"), masking())
        model.compile(keras.optimizers.Adam(1e-2))
        return model.fit(FEATURES, epochs=3, shuffle=False, verbose=0).history["masked_loss"]

    in_eager_mode = losses()
    tf.config.run_functions_eagerly(False)
    np.testing.assert_allclose(losses(), in_eager_mode, rtol=1e-4)
    assert in_eager_mode[-1] < in_eager_mode[0]


# `mask_dataset` in front of KerasHub's own models, without their preprocessors.

OWN_MODELS = {
    "Albert": BACKBONES["Albert"],
    "Bert": BACKBONES["Bert"],
    "DebertaV3": BACKBONES["DebertaV3"],
    "DistilBert": BACKBONES["DistilBert"],
    "ESM": set(),
    "FNet": BACKBONES["FNet"],
    "Roberta": BACKBONES["Roberta"],
    "RoformerV2": {SEGMENT},
    "XLMRoberta": BACKBONES["XLMRoberta"],
}


@pytest.mark.parametrize(("name", "reads"), OWN_MODELS.items(), ids=OWN_MODELS)
def test_its_own_models_are_fed(name, reads):
    own = getattr(models, f"{name}MaskedPLM" if name == "ESM" else f"{name}MaskedLM")
    keras.utils.set_random_seed(1)
    model = own(backbone(name), preprocessor=None)
    model.compile(
        keras.optimizers.Adam(1e-2),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[],
    )
    rows = {"token_ids": IDS} | ({SEGMENT: SEGMENTS} if SEGMENT in reads else {})
    masked = mask_dataset(
        tf.data.Dataset.from_tensor_slices(rows).batch(8),
        masking(mask_selection_length=4),
        epochs=1,
        padding_token_id=PAD if PADDING in reads else None,
    )
    ((x, y, weights),) = masked.take(1)
    assert set(x) == set(model.input) == reads | {"token_ids", "mask_positions"}
    before = model.get_weights()
    loss = model.fit(masked, shuffle=False, verbose=0).history["loss"][0]
    # Keras averages over the four places for targets: three of them are taken, or two.
    assert loss == pytest.approx(np.log(VOCABULARY) * float(weights.numpy().mean()), rel=0.1)
    assert any((old != new).any() for old, new in zip(before, model.get_weights(), strict=True))
    assert y.shape == weights.shape == (8, 4)


# Its tokenizers.


@pytest.mark.parametrize("name", TOKENIZERS)
def test_one_call_reads_a_tokenizer(name):
    its, special = tokenizer(name), TOKENIZERS[name][1]
    arguments = masking_arguments(its, whole_words=True)
    assert arguments["vocabulary_size"] == its.vocabulary_size()
    assert arguments["mask_token_id"] == its.mask_token_id
    named = [its.id_to_token(index) for index in arguments["unselectable_token_ids"]]
    assert sorted(named) == sorted(special)

    ids = [int(index) for index in its(TEXT)]
    continues = [index in arguments["continuation_token_ids"] for index in ids]
    continues[0] = False  # RoBERTa's first word has no space before it
    starts = np.flatnonzero(~np.array(continues))
    words = ["".join(map(its.id_to_token, word)) for word in np.split(np.array(ids), starts[1:])]
    assert [word.replace("##", "").strip("▁Ġ") for word in words] == TEXT.split()
    assert len(ids) > len(words)
