"""`DynamicMasking` as its callers see it: what it takes, what it gives, when it masks."""

import inspect
import json
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from keras.optimizers.schedules import CosineDecay, PiecewiseConstantDecay, PolynomialDecay

from keras_dynmask import DynamicMasking

MASK = 1
IDS = np.arange(5, 69).reshape(4, 16)


def layer(**settings):
    defaults = {
        "vocabulary_size": 100,
        "mask_selection_rate": 0.5,
        "mask_token_id": MASK,
        "mask_token_rate": 1.0,
        "random_token_rate": 0.0,
        "seed": 1,
    }
    return DynamicMasking(**defaults | settings)


def hidden(outputs):
    return ops.convert_to_numpy(outputs["token_ids"]) == MASK


def in_a_model(masking, length=16):
    inputs = keras.Input((length,), dtype="int32")
    return keras.Model(inputs, masking(inputs)["token_ids"])


# Inputs


@pytest.mark.parametrize("form", [np.ndarray.tolist, np.asarray, tf.constant])
@pytest.mark.parametrize("ids", [IDS, IDS[0]], ids=["batched", "unbatched"])
def test_lists_arrays_and_tensors_are_masked_alike(form, ids):
    outputs = layer()(form(ids))
    assert outputs["token_ids"].shape == outputs["mask_weights"].shape == ids.shape
    assert np.array_equal(hidden(outputs), hidden(layer()(ids)))
    assert hidden(outputs).sum() == ids.size // 2


def test_unbatched_ids_get_the_mask_of_the_first_row():
    assert np.array_equal(hidden(layer()(IDS[0])), hidden(layer()(IDS))[0])


DTYPES = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("capacity", [None, 10])
@pytest.mark.parametrize("training", [True, False])
def test_ids_keep_their_dtype(dtype, capacity, training):
    outputs = layer(mask_selection_length=capacity)(IDS.astype(dtype), training=training)
    assert outputs["token_ids"].dtype == outputs["mask_ids"].dtype == dtype
    assert outputs["mask_weights"].dtype == "float32"
    assert capacity is None or outputs["mask_positions"].dtype == "int32"


RAGGED = [[5, 6, 7], [8, 9, 10, 11, 12], [], [13]]


@pytest.mark.parametrize("form", [list, tf.ragged.constant])
@pytest.mark.parametrize("capacity", [None, 3])
def test_ragged_rows_come_back_ragged(form, capacity):
    outputs = layer(mask_selection_length=capacity)(form(RAGGED))
    assert outputs["token_ids"].row_lengths().numpy().tolist() == [3, 5, 0, 1]
    assert outputs["mask_weights"].shape == (4, capacity)
    assert "padding_mask" not in outputs
    shown, originals = outputs["token_ids"].values.numpy(), np.concatenate(RAGGED)
    assert set(shown[shown != originals]) == {MASK}


@pytest.mark.parametrize("capacity", [None, 3])
def test_ragged_rows_in_tf_data_are_masked_as_alone(capacity):
    masking = layer(mask_selection_length=capacity)
    dataset = tf.data.Dataset.from_tensors(tf.ragged.constant(RAGGED))
    outputs = next(iter(dataset.map(lambda ids: masking(ids, step=3))))
    alone = masking(tf.ragged.constant(RAGGED), step=3)
    assert outputs["token_ids"].to_list() == alone["token_ids"].to_list()


def test_ragged_companions_are_cut_with_their_rows():
    selectable = [[True] * 3, [False] * 5, [], [True]]
    inputs = {"token_ids": RAGGED, "selectable": selectable}
    outputs = layer(mask_selection_rate=1.0)(inputs)
    assert outputs["token_ids"].to_list() == [[1, 1, 1], RAGGED[1], [], [1]]
    assert outputs["selectable"] == selectable


def test_the_padding_mask_of_ragged_rows_comes_back_as_it_came():
    padding_mask = tf.ragged.constant([[1, 1, 0], [1] * 5, [], [1]])
    inputs = {"token_ids": tf.ragged.constant(RAGGED), "padding_mask": padding_mask}
    outputs = layer()(inputs)
    assert outputs["padding_mask"].dtype == padding_mask.dtype
    assert outputs["padding_mask"].to_list() == padding_mask.to_list()


@pytest.mark.parametrize("padding_mask", [[[True] * 8 + [False] * 8], [[1] * 8 + [0] * 8]])
def test_padding_is_never_selected(padding_mask):
    outputs = layer()({"token_ids": IDS[:1], "padding_mask": padding_mask})
    assert hidden(outputs)[0, :8].sum() == 4
    assert hidden(outputs)[0, 8:].sum() == 0


@pytest.mark.parametrize(
    "value",
    [
        np.arange(4),
        tf.constant([[1.5], [2.5], [3.5], [4.5]]),
        tf.constant(["a", "b", "c", "d"]),
        tf.ragged.constant([[1], [2, 3], [], [4]]),
        {"nested": tf.constant([1, 2])},
        None,
    ],
    ids=["array", "tensor", "strings", "ragged", "nested", "none"],
)
@pytest.mark.parametrize("ids", [IDS, tf.ragged.constant(RAGGED)], ids=["dense ids", "ragged ids"])
def test_other_keys_pass_through(ids, value):
    came_back = layer()({"token_ids": ids, "label": value})["label"]
    if isinstance(value, tf.RaggedTensor):
        assert came_back.to_list() == value.to_list()
    elif value is not None:
        tf.nest.map_structure(np.testing.assert_array_equal, came_back, value)


def test_row_ids_give_a_row_its_noise_wherever_it_stands():
    numbers = np.array([40, 2**40, 7, 0])
    order = [2, 0, 3, 1]
    outputs = layer()({"token_ids": IDS, "row_ids": numbers})
    moved = layer()({"token_ids": IDS[order], "row_ids": numbers[order]})
    assert np.array_equal(hidden(outputs)[order], hidden(moved))
    assert np.array_equal(outputs["row_ids"], numbers)


@pytest.mark.parametrize("training", [True, False])
def test_inputs_are_never_changed(training):
    ids, weights = IDS.copy(), np.ones(IDS.shape)
    inputs = {"token_ids": ids, "selection_weights": weights}
    layer(mask_selection_length=9)(inputs, training=training)
    assert list(inputs) == ["token_ids", "selection_weights"]
    assert np.array_equal(ids, IDS) and (weights == 1).all()


@pytest.mark.parametrize("capacity", [None, 3])
@pytest.mark.parametrize("settings", [{}, {"exact_count": False}, {"mean_span_length": 3.0}])
@pytest.mark.parametrize(
    "ids",
    [[[0, 0, 0]], [[5]], [[0]], [0], [], [[]], [[], []], [[], [5]], np.zeros((0, 5), int)],
    ids=str,
)
def test_where_little_or_nothing_is_selectable_nothing_breaks(ids, settings, capacity):
    masking = layer(mask_selection_length=capacity, **settings)
    for training in (True, False):
        outputs = masking(ids, training=training)
        selected = outputs["mask_weights"]
        assert np.sum(selected.values if hasattr(selected, "values") else selected) <= 1


def test_token_ids_are_left_alone_by_mixed_precision():
    ids = np.array([[257, 30_001, 65_535, 4_097]])
    for policy in ("mixed_bfloat16", "float16"):
        masking = layer(vocabulary_size=70_000, dtype=policy)
        outputs = masking(ids)
        assert np.array_equal(outputs["mask_ids"], ids)
        assert outputs["mask_weights"].dtype == "float32"
        assert set(outputs["token_ids"].numpy()[0]) <= {MASK, *ids[0]}
    model = in_a_model(layer(vocabulary_size=70_000, dtype="mixed_bfloat16"), length=4)
    assert np.array_equal(model(ids), ids)


# When it masks


def test_alone_it_masks_unless_told_otherwise():
    assert hidden(layer()(IDS)).any()
    assert hidden(layer()(IDS, training=True)).any()
    assert not hidden(layer()(IDS, training=False)).any()


def test_in_a_model_it_follows_the_training_flag():
    model = in_a_model(layer())
    assert np.array_equal(model(IDS), IDS)
    assert np.array_equal(model(IDS, training=False), IDS)
    assert np.array_equal(model.predict(IDS, verbose=0), IDS)
    assert (model(IDS, training=True).numpy() == MASK).sum() == IDS.size // 2


def test_in_a_subclassed_model_it_follows_the_training_flag():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.masking = layer()

        def call(self, ids):
            return self.masking(ids)["token_ids"]

    model = Model()
    assert np.array_equal(model(IDS), IDS)
    assert (model(IDS, training=True).numpy() == MASK).any()


@pytest.mark.parametrize("own", [True, False])
def test_its_own_flag_decides_over_the_models(own):
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.masking = layer()

        def call(self, ids):
            return self.masking(ids, training=own)["token_ids"]

    assert (Model()(IDS, training=not own).numpy() == MASK).any() == own


def test_a_failed_call_does_not_switch_masking_on_in_models():
    masking = layer()
    model = in_a_model(masking)
    with pytest.raises(ValueError):
        masking(IDS.astype("float32"))
    assert np.array_equal(model(IDS), IDS)


def test_a_mapped_dataset_is_masked():
    dataset = tf.data.Dataset.from_tensor_slices(IDS)
    assert all(hidden(outputs).sum() == 8 for outputs in dataset.map(layer()))


def test_parallel_maps_never_mask_two_elements_alike_and_are_fresh_in_every_epoch():
    ids = np.tile(np.arange(2, 66), (200, 1))
    ids[:, 0] = np.arange(200) + 100  # elements differ in one token
    dataset = tf.data.Dataset.from_tensor_slices(ids)
    dataset = dataset.map(layer(vocabulary_size=1000), num_parallel_calls=8)
    masks = [hidden(outputs)[1:].tobytes() for _ in range(3) for outputs in dataset]
    assert len(set(masks)) == 600


# The step


def test_each_call_that_masks_counts_one_step():
    masking = layer()
    masking(IDS)
    masking(IDS, training=False)
    masking(IDS, step=7)
    assert int(masking.step) == 1
    masking(IDS)
    assert int(masking.step) == 2


@pytest.mark.parametrize("step", [5, np.int64(5), tf.constant(5), tf.constant(5, tf.int64)])
def test_a_given_step_makes_the_call_pure(step):
    masking = layer()
    first, second = hidden(masking(IDS, step=step)), hidden(masking(IDS, step=step))
    assert np.array_equal(first, second)
    for _ in range(5):
        masking(IDS)
    assert np.array_equal(hidden(masking(IDS)), first)


def reload_by_model_file(model, path):
    model.save(path / "model.keras")
    return keras.models.load_model(path / "model.keras")


def reload_by_weights(model, path):
    model.save_weights(path / "model.weights.h5")
    fresh = in_a_model(layer())
    fresh.load_weights(path / "model.weights.h5")
    return fresh


def reload_by_checkpoint(model, path):
    saved = tf.train.Checkpoint(model=model).save(path / "checkpoint")
    fresh = in_a_model(layer())
    tf.train.Checkpoint(model=fresh).restore(saved).assert_consumed()
    return fresh


@pytest.mark.parametrize("reload", [reload_by_model_file, reload_by_weights, reload_by_checkpoint])
def test_a_resumed_run_goes_on_with_the_masks_it_would_have_had(reload, tmp_path):
    model = in_a_model(layer())
    for _ in range(3):
        model(IDS, training=True)
    resumed = reload(model, tmp_path)
    for _ in range(2):
        assert np.array_equal(model(IDS, training=True), resumed(IDS, training=True))


def test_the_counter_moves_in_compiled_graphs():
    masking = layer()
    call = tf.function(masking, jit_compile=True)
    masks = [hidden(call(tf.constant(IDS))).tobytes() for _ in range(3)]
    assert len(set(masks)) == 3
    assert int(masking.step) == 3


def test_global_seeds_neither_matter_nor_notice():
    keras.utils.set_random_seed(0)
    expected = np.random.random(), float(keras.random.uniform(())), float(tf.random.uniform(()))
    first = hidden(layer()(IDS))
    keras.utils.set_random_seed(0)
    assert np.array_equal(hidden(layer()(IDS)), first)
    layer(seed=None)(IDS)
    assert expected == (
        np.random.random(), float(keras.random.uniform(())), float(tf.random.uniform(()))
    )  # fmt: skip
    keras.utils.set_random_seed(0)
    one = layer(seed=None).seed
    keras.utils.set_random_seed(0)
    assert layer(seed=None).seed != one


# The config

EVERY_ARGUMENT = {
    "vocabulary_size": 50,
    "mask_selection_rate": (0.2, 0.6),
    "mask_token_id": 3,
    "mask_selection_length": 12,
    "unselectable_token_ids": (0, 2),
    "mask_token_rate": 0.5,
    "random_token_rate": 0.25,
    "exact_count": False,
    "at_least_one": False,
    "count_per_document": False,
    "evaluation_rate": (0.15, 0.15),
    "mean_span_length": 2.5,
    "continuation_token_ids": (7, 8),
    "selection_weights": None,
    "random_token_weights": [0.0] * 4 + [0.5] * 46,
    "random_excludes_original": True,
    "corrupt_whole_units": True,
    "random_words": ((9,), (10, 7), (11, 7)),
    "inverse_rate_weights": True,
    "seed": 2**63 + 5,
    "name": "masker",
}


def test_the_config_holds_every_constructor_argument():
    named = set(inspect.signature(DynamicMasking.__init__).parameters) - {"self", "kwargs"}
    assert named == set(EVERY_ARGUMENT) - {"name"}
    config = DynamicMasking(**EVERY_ARGUMENT).get_config()
    assert {name: config[name] for name in EVERY_ARGUMENT} == EVERY_ARGUMENT


def test_a_layer_from_the_config_masks_alike():
    ids = IDS % 50
    original = DynamicMasking(**EVERY_ARGUMENT)
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(original)))
    fresh = keras.saving.deserialize_keras_object(config)
    assert fresh.get_config() == original.get_config()
    masked, again = original(ids), fresh(ids)
    assert all(np.array_equal(masked[name], again[name]) for name in masked)


EVERY_KIND = {
    "units": EVERY_ARGUMENT,
    "weights": {
        "vocabulary_size": 50,
        "mask_selection_rate": CosineDecay(0.3, 10, alpha=0.5),
        "mask_token_id": 3,
        "at_least_one": True,
        "evaluation_rate": PolynomialDecay(0.15, 10, 0.1),
        "selection_weights": (np.arange(50) / 7).tolist(),
        "seed": 4,
        "name": "weighing",
    },
    "documents": {
        "vocabulary_size": 50,
        "mask_selection_rate": PiecewiseConstantDecay([2, 4], [0.1, 0.2, 0.3]),
        "mask_token_id": 3,
        "at_least_one": True,
        "count_per_document": True,
        "seed": 5,
        "name": "counting",
    },
}


@pytest.mark.slow
def test_every_kind_of_argument_survives_a_file_into_a_fresh_process(tmp_path):
    """And goes on with the same masks, with Keras' safe mode on."""
    ids = IDS % 50
    inputs = {"token_ids": ids, "segment_ids": np.repeat([[1, 2]], 8, axis=1) + np.zeros_like(ids)}
    expected = {}
    for kind, arguments in EVERY_KIND.items():
        tensors = {name: keras.Input((16,), dtype="int32", name=name) for name in inputs}
        model = keras.Model(tensors, DynamicMasking(**arguments)(tensors))
        model(inputs, training=True)
        model.save(tmp_path / f"{kind}.keras")
        masked = model(inputs, training=True)
        expected[kind] = [masked[name].numpy().tolist() for name in ("token_ids", "mask_weights")]
    np.savez(tmp_path / "inputs.npz", **inputs)
    script = """
import json, sys
import keras, numpy, keras_dynmask
inputs = dict(numpy.load(sys.argv[1] + "/inputs.npz"))
found = {}
for kind in sys.argv[2:]:
    model = keras.models.load_model(f"{sys.argv[1]}/{kind}.keras", safe_mode=True)
    masked = model(inputs, training=True)
    found[kind] = [masked[name].numpy().tolist() for name in ("token_ids", "mask_weights")]
print(json.dumps(found))
"""
    command = [sys.executable, "-c", script, str(tmp_path), *EVERY_KIND]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert json.loads(run.stdout) == expected


def test_a_drawn_seed_is_held():
    masking = layer(seed=None)
    assert np.array_equal(hidden(masking(IDS)), hidden(layer(seed=masking.seed)(IDS)))


def test_a_schedule_sets_the_rate_of_each_step_and_survives_saving(tmp_path):
    falling = PolynomialDecay(1.0, 4, 0.0)
    model = in_a_model(layer(mask_selection_rate=falling))
    counts = [(model(IDS, training=True).numpy() == MASK).sum(axis=1) for _ in range(3)]
    model = reload_by_model_file(model, tmp_path)
    counts += [(model(IDS, training=True).numpy() == MASK).sum(axis=1) for _ in range(2)]
    assert [set(row) for row in counts] == [{16}, {12}, {8}, {4}, {0}]


def test_a_schedule_is_clipped_and_stands_at_its_first_step_in_evaluation():
    schedule = PiecewiseConstantDecay([0, 1, 2], [1.0, 1.5, -0.5, 0.5])
    masking = layer(mask_selection_rate=schedule)
    assert hidden(masking(IDS, step=1)).all()
    assert not hidden(masking(IDS, step=2)).any()
    assert hidden(masking.mask_fixed({"token_ids": tf.constant(IDS)})).all()


def test_a_pair_draws_one_rate_for_each_row():
    ids = np.full((2000, 100), 5)
    counts = hidden(layer(mask_selection_rate=(0.2, 0.6))(ids)).sum(axis=1)
    assert counts.min() >= 20 and counts.max() <= 60
    assert abs(counts.mean() - 40) < 4.89 * 40 / 12**0.5 / 2000**0.5
    assert len(np.unique(counts)) > 35
    assert set(hidden(layer(mask_selection_rate=(0.3, 0.3))(ids)).sum(axis=1)) == {30}


# Errors: the argument, what was expected, what was received


class OfShapeOne(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return np.array([0.5])


ALL_WEIGHTS = [1.0] * 100
SWAPS = {"mask_token_rate": 0.8, "random_token_rate": 0.1}

BAD_ARGUMENTS = [
    ({"mask_selection_rate": PolynomialDecay(1.5, 10, 0.1)}, "`mask_selection_rate` .* a schedule"),
    ({"mask_selection_rate": OfShapeOne()}, "`mask_selection_rate` .* a schedule"),
    ({"unselectable_token_ids": [True]}, "`unselectable_token_ids` must be a list of ids"),
    ({"continuation_token_ids": [1.0] * 30_000}, "`continuation_token_ids` must be a list"),
    ({"evaluation_rate": 1.5}, r"`evaluation_rate` must be a number, in \[0, 1\]"),
    ({"evaluation_rate": (0.5, 0.1)}, "`evaluation_rate` .* low <= high"),
    ({"at_least_one": 1}, "`at_least_one` must be True or False"),
    ({"at_least_one": True, "inverse_rate_weights": True, "mean_span_length": 2},
     "`at_least_one` must be False with `inverse_rate_weights`"),
    ({"at_least_one": True, "inverse_rate_weights": True, "exact_count": False},
     "`at_least_one` must be False with `inverse_rate_weights`"),
    ({"count_per_document": "yes"}, "`count_per_document` must be True or False"),
    ({"count_per_document": True, "exact_count": False}, "`count_per_document` must be False"),
    ({"selection_weights": [1.0] * 99}, "`selection_weights` .* for each of 100 ids"),
    ({"selection_weights": [ALL_WEIGHTS]}, "`selection_weights` .* for each of 100 ids"),
    ({"selection_weights": "rare"}, "`selection_weights` .* for each of 100 ids"),
    ({"selection_weights": [-1.0] * 100}, "`selection_weights` must hold a finite number >= 0"),
    ({"selection_weights": [float("nan")] * 100}, "`selection_weights` must hold a finite"),
    ({"selection_weights": [1e39] * 100}, "`selection_weights` must hold a finite"),
    ({"selection_weights": [0] * 100}, "`selection_weights` .* not all 0"),
    ({"selection_weights": ALL_WEIGHTS, "inverse_rate_weights": True},
     "`inverse_rate_weights` must be False with `selection_weights`"),
    ({"random_token_weights": [1.0]}, "`random_token_weights` .* for each of 100 ids"),
    ({"random_token_weights": [1.0] + [0.0] * 99} | SWAPS, "`random_token_rate` must be 0 unless"),
    ({"random_token_weights": [0.0] * 99 + [1.0], "random_excludes_original": True} | SWAPS,
     "`random_token_rate` must be 0 unless at least 2 ids"),
    ({"random_excludes_original": None}, "`random_excludes_original` must be True or False"),
    ({"corrupt_whole_units": None}, "`corrupt_whole_units` must be True or False"),
    ({"random_words": [[5]]}, "`corrupt_whole_units` must be True with `random_words`"),
    ({"random_words": [5], "corrupt_whole_units": True}, "`random_words` must be words"),
    ({"random_words": [], "corrupt_whole_units": True}, "`random_words` must be words"),
    ({"random_words": 5, "corrupt_whole_units": True}, "`random_words` must be words"),
    ({"random_words": [[100]], "corrupt_whole_units": True}, "`random_words` must be words"),
    ({"random_words": [[0]], "corrupt_whole_units": True}, "`random_words` must hold neither"),
    ({"inverse_rate_weights": "yes"}, "`inverse_rate_weights` must be True or False"),
    ({"vocabulary_size": 0}, r"`vocabulary_size` must be a whole number, in \[1, 2147483647\]"),
    ({"vocabulary_size": 10.0}, "`vocabulary_size` must be a whole number"),
    ({"vocabulary_size": "10"}, "`vocabulary_size` must be a whole number"),
    ({"vocabulary_size": True}, "`vocabulary_size` must be a whole number"),
    ({"vocabulary_size": None}, "`vocabulary_size` must be a whole number"),
    ({"mask_selection_rate": 1.5}, r"`mask_selection_rate` must be a number, in \[0, 1\]"),
    ({"mask_selection_rate": -0.1}, "`mask_selection_rate` must be a number"),
    ({"mask_selection_rate": float("nan")}, "`mask_selection_rate` must be a number"),
    ({"mask_selection_rate": "0.5"}, "`mask_selection_rate` must be a number"),
    ({"mask_selection_rate": None}, "`mask_selection_rate` must be a number"),
    ({"mask_selection_rate": True}, "`mask_selection_rate` must be a number"),
    ({"mask_selection_rate": (0.1, 0.2, 0.3)}, "`mask_selection_rate` must be .* a pair"),
    ({"mask_selection_rate": (0.5, 0.1)}, "`mask_selection_rate` .* low <= high"),
    ({"mask_selection_rate": (0.5, 1.1)}, "`mask_selection_rate` must be a number"),
    ({"mask_token_id": 100}, r"`mask_token_id` must be a whole number, in \[0, 99\]"),
    ({"mask_token_id": -1}, "`mask_token_id` must be a whole number"),
    ({"mask_token_id": None}, "`mask_token_id` must be a whole number"),
    ({"mask_selection_length": 0}, r"`mask_selection_length` .* in \[1, "),
    ({"mask_selection_length": 2.5}, "`mask_selection_length` must be a whole number"),
    ({"unselectable_token_ids": [100]}, r"`unselectable_token_ids` .* in \[0, 99\]"),
    ({"unselectable_token_ids": [-1]}, "`unselectable_token_ids` must be a list of ids"),
    ({"unselectable_token_ids": 0}, "`unselectable_token_ids` must be a list of ids"),
    ({"unselectable_token_ids": ["0"]}, "`unselectable_token_ids` must be a list of ids"),
    ({"mask_token_rate": 1.1}, "`mask_token_rate` must be a number"),
    ({"mask_token_rate": None}, "`mask_token_rate` must be a number"),
    ({"random_token_rate": -0.1}, "`random_token_rate` must be a number"),
    ({"random_token_rate": 0.3, "mask_token_rate": 0.8}, "`mask_token_rate` .* at most 1"),
    ({"random_token_rate": 0.1, "mask_token_rate": 0.1, "unselectable_token_ids": range(100)},
     "`random_token_rate` must be 0 unless at least 1 ids can be swapped in"),
    ({"exact_count": 1}, "`exact_count` must be True or False"),
    ({"exact_count": None}, "`exact_count` must be True or False"),
    ({"exact_count": "False"}, "`exact_count` must be True or False"),
    ({"mean_span_length": 0.5}, "`mean_span_length` must be a number, at least 1"),
    ({"mean_span_length": float("inf")}, "`mean_span_length` must be a number"),
    ({"continuation_token_ids": [100]}, "`continuation_token_ids` must be a list of ids"),
    ({"continuation_token_ids": 5}, "`continuation_token_ids` must be a list of ids"),
    ({"seed": -1}, "`seed` must be a whole number"),
    ({"seed": 2**64}, "`seed` must be a whole number"),
    ({"seed": 0.5}, "`seed` must be a whole number"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS, ids=lambda case: str(case)[:60])
def test_a_bad_argument_is_named_with_what_was_received(arguments, message):
    with pytest.raises(ValueError, match=f"{message}.* Received: ") as error:
        layer(**arguments)
    assert len(str(error.value)) < 600
    named = re.findall("`(.*?)`", str(error.value))[0]
    assert re.search(rf"Received: ({named}(\(0\))?|shape)=", str(error.value))


def test_a_frequency_table_has_a_place_for_every_id():
    weights = np.ones(2**22 + 1)
    with pytest.raises(ValueError, match=r"`random_token_weights` must be None for more than"):
        DynamicMasking(len(weights), 0.15, 1, random_token_weights=weights)


def test_what_does_not_go_together_in_a_call_is_named():
    with pytest.raises(ValueError, match=r"`inputs` must hold `segment_ids`.*keys=\['token_ids'\]"):
        layer(count_per_document=True)(IDS)
    inputs = {"token_ids": IDS, "begins": np.ones(IDS.shape)}
    with pytest.raises(ValueError, match="`at_least_one` must be False with.*'begins'"):
        layer(at_least_one=True, inverse_rate_weights=True)(inputs)
    inputs = {"token_ids": IDS, "selection_weights": np.ones(IDS.shape)}
    with pytest.raises(ValueError, match="`inverse_rate_weights` must be False with"):
        layer(inverse_rate_weights=True)(inputs)


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("exact_count", [True, False], ids=["exact", "independent"])
def test_weights_are_drawn_alike_where_shapes_are_dynamic(exact_count, jit):
    masking = layer(selection_weights=np.arange(100) % 7, exact_count=exact_count)
    signature = [tf.TensorSpec((None, None), tf.int32)]
    call = tf.function(lambda ids: masking(ids, step=2), jit_compile=jit, input_signature=signature)
    assert np.array_equal(hidden(call(IDS)), hidden(masking(IDS, step=2)))


def test_ids_are_of_a_dtype_that_holds_the_mask_token():
    masking = DynamicMasking(257, 0.3, mask_token_id=256, seed=0)
    ids = np.full((4, 8), 7, "uint8")
    with pytest.raises(ValueError, match="`token_ids` must have a dtype .* up to 256.*'uint8'"):
        masking(ids)
    assert (masking(ids.astype("int16"))["token_ids"].numpy() == 256).any()
    assert DynamicMasking(256, 0.3, mask_token_id=255)(ids)["token_ids"].dtype == "uint8"


def test_what_a_processor_may_take_for_zero_is_zero():
    """Denormal numbers: one backend flushes them, the other does not."""
    known = np.where(np.arange(100) == 7, 1e-30, 1.0)
    ids = np.tile([7, 8, 9, 7], (64, 1))
    inputs = {"token_ids": ids, "selection_weights": np.full(ids.shape, 1e-12)}
    selected = layer(selection_weights=known, mask_selection_rate=1.0)(inputs)["mask_weights"]
    assert np.array_equal(selected.numpy() > 0, ids != 7)


def test_a_schedule_that_is_no_number_selects_nothing():
    class Broken(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return ops.where(ops.equal(step, 3), float("nan"), 0.5)

    masking = layer(mask_selection_rate=Broken())
    assert not hidden(masking(IDS, step=3)).any() and hidden(masking(IDS, step=2)).any()


def test_in_a_graph_bad_weights_count_as_nothing_and_infinity_as_much():
    weights = np.ones(IDS.shape, "float32")
    weights[:, 1:4] = [-1.0, np.nan, np.inf]
    masking = layer(mask_selection_rate=1 / 7)
    call = tf.function(lambda inputs: masking(inputs, step=1))
    selected = call({"token_ids": IDS, "selection_weights": weights})["mask_weights"].numpy() > 0
    assert (selected.sum(axis=1) == 2).all()
    assert not selected[:, 1:3].any() and selected[:, 3].all()


BAD_CALLS = [
    (None, {}, "`token_ids` must be integers"),
    (5, {}, "`token_ids` must be integers"),
    ([[0.5]], {}, "`token_ids` must be integers"),
    ([[True]], {}, "`token_ids` must be integers"),
    ([["a"]], {}, "`token_ids`"),
    ([[[5]]], {}, "`token_ids` must be .* of shape"),
    ([5, [6, 7]], {}, "`token_ids`"),
    ([[5, 100]], {}, r"`token_ids` must lie in \[0, 99\]"),
    (np.array([[-1, 5]]), {}, "`token_ids` must lie in"),
    (tf.constant([[100]]), {}, "`token_ids` must lie in"),
    ([[5], [6, 100]], {}, "`token_ids` must lie in"),
    ({"ids": [[5]]}, {}, "`inputs` must hold `token_ids`"),
    ({"token_ids": [[5, 6]], "padding_mask": [[1]]}, {}, "`padding_mask` must have the shape"),
    ({"token_ids": [[5, 6]], "selectable": [1, 1]}, {}, "`selectable` must have the shape"),
    ({"token_ids": [[5, 6]], "begins": [[1] * 3]}, {}, "`begins` must have the shape"),
    ({"token_ids": [[5]], "selection_weights": [[1.0, 2.0]]}, {}, "`selection_weights` must have"),
    ({"token_ids": [[5]], "selection_weights": [[-1.0]]}, {}, "`selection_weights` must be finite"),
    ({"token_ids": [[5]], "selection_weights": [[np.nan]]}, {}, "`selection_weights` must be fin"),
    ({"token_ids": [[5]], "segment_ids": [[1, 2]]}, {}, "`segment_ids` must have the shape"),
    ({"token_ids": [[5]], "row_ids": [1, 2]}, {}, "`row_ids` must have the shape"),
    ([[5]], {"step": np.arange(3)}, "`step` must be an integer"),
    ({"token_ids": [[5]], "row_ids": [0.5]}, {}, "`row_ids` must be integers"),
    ({"token_ids": [[5], [6, 7]], "padding_mask": [[1, 1], [1]]}, {}, "`padding_mask`"),
    ({"token_ids": [[5], [6, 7]], "row_ids": [0.5, 1.5]}, {}, "`row_ids` must be integers"),
    ([[5]], {"step": 1.5}, "`step`"),
    ([[5]], {"step": "one"}, "`step`"),
]


@pytest.mark.parametrize(("inputs", "options", "message"), BAD_CALLS, ids=str)
def test_a_bad_call_is_named_with_what_was_received(inputs, options, message):
    with pytest.raises(ValueError, match=f"{message}(.|\n)*Received: "):
        layer()(inputs, **options)
