"""`mask_dataset`: the step travels with the element."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_dynmask import DynamicMasking, MaskedLanguageModel, TransformerEncoder, mask_dataset

ROWS = np.random.default_rng(0).integers(2, 60, (24, 16)).astype("int32")


def masking(**kwargs):
    return DynamicMasking(60, 0.25, 1, **{"mask_selection_length": 4, "seed": 8, **kwargs})


def dataset(batch_size=4):
    rows = tf.data.Dataset.from_tensor_slices(ROWS)
    return rows.batch(batch_size) if batch_size else rows


def shown(masked):
    return [x["token_ids"].numpy().tolist() for x, _, _ in masked]


@pytest.mark.parametrize("batch_size", [4, None])
def test_it_gives_features_labels_and_weights(batch_size):
    for (x, y, weights), row in zip(
        mask_dataset(dataset(batch_size), masking()), dataset(batch_size), strict=True
    ):
        assert set(x) == {"token_ids", "padding_mask", "mask_positions"}
        np.testing.assert_array_equal(
            tf.gather(row, x["mask_positions"], batch_dims=row.ndim - 1), y
        )
        assert weights.shape == y.shape and x["padding_mask"].numpy().all()


def test_dense_targets_need_no_positions():
    x, y, weights = next(iter(mask_dataset(dataset(), masking(mask_selection_length=None))))
    assert set(x) == {"token_ids", "padding_mask"}
    np.testing.assert_array_equal(y, ROWS[:4])
    np.testing.assert_array_equal((weights.numpy() > 0).sum(axis=1), 4)


def test_each_iteration_is_fresh_and_each_run_equal():
    once = mask_dataset(dataset(), masking())
    first, second = shown(once), shown(once)
    assert first != second
    again = mask_dataset(dataset(), masking())
    assert [shown(again), shown(again)] == [first, second]
    assert shown(mask_dataset(dataset(), masking(seed=9))) != first


def test_epochs_follow_each_other_and_can_start_anywhere():
    whole = shown(mask_dataset(dataset(), masking(), epochs=3))
    assert len(whole) == 18
    epochs = [whole[:6], whole[6:12], whole[12:]]
    assert epochs[0] != epochs[1] != epochs[2]
    for start in range(4):
        rest = shown(mask_dataset(dataset(), masking(), epochs=3, initial_epoch=start))
        assert rest == whole[6 * start :]


def test_the_pipeline_masks_as_the_layer_does():
    layer = masking()
    for step, (x, y, _) in enumerate(mask_dataset(dataset(), layer, epochs=2)):
        batch = ROWS[4 * (step % 6) :][:4]
        alone = layer(batch, step=step)
        np.testing.assert_array_equal(alone["token_ids"], x["token_ids"])
        np.testing.assert_array_equal(alone["mask_ids"], y)
    assert int(layer.step) == 0


@pytest.mark.parametrize("epochs", [None, 2])
def test_parallel_calls_change_nothing(epochs):
    rows = tf.data.Dataset.from_tensor_slices(np.tile(ROWS, (20, 1)))
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    serial = mask_dataset(rows, masking(), epochs=epochs).with_options(options)
    parallel = mask_dataset(rows, masking(), epochs=epochs)
    reference = shown(serial)
    assert shown(parallel) == reference
    assert len({str(row) for row in reference}) > 0.99 * len(reference)


def test_sizes_are_known():
    assert int(mask_dataset(dataset(), masking()).cardinality()) == 6
    assert int(mask_dataset(dataset(), masking(), epochs=3, initial_epoch=1).cardinality()) == 12
    unknown = dataset().filter(lambda row: row[0, 0] > 0)
    assert len(list(mask_dataset(unknown, masking(), epochs=2))) == 12


@pytest.mark.parametrize("epochs", [None, 1])
def test_one_epoch_of_any_dataset_ends_where_the_dataset_does(epochs):
    for rows in (dataset(), dataset().filter(lambda row: row[0, 0] > 0)):
        assert len(list(mask_dataset(rows, masking(), epochs=epochs))) == 6


def test_a_dict_of_features_keeps_what_it_brings():
    features = {
        "token_ids": ROWS,
        "padding_mask": ROWS > 10,
        "label": np.arange(24),
        "row_ids": np.arange(24),
    }
    rows = tf.data.Dataset.from_tensor_slices(features).batch(4)
    x, _, _ = next(iter(mask_dataset(rows, masking())))
    np.testing.assert_array_equal(x["label"], np.arange(4))
    np.testing.assert_array_equal(x["padding_mask"], ROWS[:4] > 10)


def test_an_iterator_can_be_saved_and_restored(tmp_path):
    masked = mask_dataset(dataset(), masking(), epochs=2)
    iterator = iter(masked)
    for _ in range(7):
        next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "iterator"))
    rest = shown(iterator)
    fresh = iter(mask_dataset(dataset(), masking(), epochs=2))
    tf.train.Checkpoint(iterator=fresh).read(path)
    assert shown(fresh) == rest and len(rest) == 5


def test_a_cache_behind_it_freezes_the_masks():
    frozen = mask_dataset(dataset(), masking()).cache()
    assert shown(frozen) == shown(frozen)


def test_a_model_trains_on_it():
    layer = masking()
    model = MaskedLanguageModel(TransformerEncoder(60, 1, 2, 16, 24), layer)
    model.compile(keras.optimizers.Adam(1e-2))
    masked = mask_dataset(dataset(), layer)
    history = model.fit(masked, epochs=10, verbose=0, shuffle=False).history
    assert history["masked_loss"][-1] < history["masked_loss"][0]
    assert history["selection_rate"] == pytest.approx([0.25] * 10)
    assert int(layer.step) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"initial_epoch": 1}, "`initial_epoch` needs `epochs`.*initial_epoch=1"),
        ({"epochs": 2, "initial_epoch": 3}, "`epochs` must be .* at least 3.*epochs=2"),
        ({"epochs": 1.5}, "`epochs` must be a whole number.*epochs=1.5"),
        ({"dataset": "repeat", "epochs": 2}, "`dataset` must be finite.*infinite"),
        ({"rate": "schedule"}, "`epochs` must be given where the rate follows a schedule.*None"),
    ],
)
def test_misuse_is_named(arguments, message):
    arguments = dict(arguments)
    rows = dataset().repeat() if arguments.pop("dataset", None) else dataset()
    layer = masking()
    if arguments.pop("rate", None):
        schedule = keras.optimizers.schedules.PolynomialDecay(0.3, 10, 0.15)
        layer = DynamicMasking(60, schedule, 1)
    with pytest.raises(ValueError, match=message):
        mask_dataset(rows, layer, **arguments)
