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


def test_a_shuffle_of_each_epoch_can_start_anywhere():
    tf.random.set_seed(1)  # TensorFlow fails under 0
    rows = tf.data.Dataset.from_tensor_slices(ROWS)

    def of_epoch(epoch):
        return rows.shuffle(24, seed=epoch, reshuffle_each_iteration=False).batch(4)

    whole = shown(mask_dataset(of_epoch, masking(), epochs=3))
    orders = [
        [row.tolist() for row in of_epoch(epoch).unbatch().as_numpy_iterator()]
        for epoch in range(2)
    ]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])
    for start in range(4):
        assert shown(mask_dataset(of_epoch, masking(), 3, start)) == whole[6 * start :]


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


@pytest.mark.parametrize("epochs", [None, 2])
def test_an_iterator_can_be_saved_and_restored(epochs, tmp_path):
    """In the midst of an epoch, order of the shuffle included."""

    def masked():
        rows = tf.data.Dataset.from_tensor_slices(ROWS).shuffle(24, seed=3).batch(4)
        return mask_dataset(rows, masking(), epochs=epochs)

    iterator = iter(masked())
    for _ in range(4):
        next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "iterator"))
    rest = shown(iterator)
    fresh = iter(masked())
    tf.train.Checkpoint(iterator=fresh).read(path)
    assert shown(fresh) == rest and len(rest) == 6 * (epochs or 1) - 4


def test_a_cache_or_snapshot_before_it_does_no_harm_and_behind_it_freezes_the_masks(tmp_path):
    before = mask_dataset(dataset().cache(), masking())
    assert shown(before) != shown(before)
    assert shown(mask_dataset(dataset().cache(), masking())) == shown(
        mask_dataset(dataset(), masking())
    )
    frozen = mask_dataset(dataset(), masking()).cache()
    assert shown(frozen) == shown(frozen)
    mask_dataset(dataset(), masking(), epochs=2).save(str(tmp_path / "snapshot"))
    stored = tf.data.Dataset.load(str(tmp_path / "snapshot"))
    assert shown(stored) == shown(mask_dataset(dataset(), masking(), epochs=2))


@pytest.fixture(scope="module")
def on_workers():
    """A function that runs a dataset on two workers of a tf.data service."""
    service = tf.data.experimental.service
    dispatcher = service.DispatchServer()
    address = dispatcher.target.split("://")[1]
    config = service.WorkerConfig(dispatcher_address=address, heartbeat_interval_ms=100)
    workers = [service.WorkerServer(config) for _ in range(2)]

    def run(dataset, sharding="DYNAMIC"):
        mode = getattr(service.ShardingPolicy, sharding)
        return dataset.apply(service.distribute(mode, dispatcher.target))

    yield run
    for server in workers:
        server._stop()


ALIKE = np.full((48, 64), 7, "int32")  # nothing but its place distinguishes a row


def service_masking():
    return masking(mask_selection_length=16)


def batches_of(dataset):
    return [x["token_ids"].numpy().tobytes() for x in dataset]


def test_masks_drawn_behind_a_service_are_never_shared(on_workers):
    rows = on_workers(tf.data.Dataset.from_tensor_slices(ALIKE).batch(2))
    seen = batches_of(mask_dataset(rows, service_masking()).map(lambda x, y, weights: x))
    assert len(seen) >= 24 and len(set(seen)) == len(seen)


def test_masks_drawn_on_workers_follow_the_identity_that_the_rows_carry(on_workers):
    layer = service_masking()
    rows = tf.data.Dataset.from_tensor_slices({"token_ids": ALIKE, "row_ids": np.arange(48)})
    epochs = [rows.batch(1).map(lambda row, e=e: layer(row, step=e)) for e in (0, 1)]
    seen = [batches_of(on_workers(epoch)) for epoch in epochs]
    assert all(len(set(rows)) == 48 for rows in seen) and not set(seen[0]) & set(seen[1])
    assert set(seen[0]) == set(batches_of(epochs[0]))  # whoever masks them


def test_a_bare_map_on_workers_follows_content(on_workers):
    rows = tf.data.Dataset.from_tensor_slices(np.tile(ROWS, (1, 4))).map(service_masking())
    seen = batches_of(on_workers(rows))
    assert len(set(seen)) == len(seen) == 24


def test_places_counted_on_each_worker_are_shared(on_workers):
    """Why `mask_dataset` belongs behind the service: there two workers count alike."""
    rows = tf.data.Dataset.from_tensor_slices(ALIKE).batch(2)
    masked = mask_dataset(rows, service_masking(), epochs=1).map(lambda x, y, weights: x)
    seen = batches_of(on_workers(masked, "OFF"))
    assert len(seen) == 48 and len(set(seen)) == 24


# Grain.


def grain_rows(shuffle=True):
    grain = pytest.importorskip("grain")
    rows = grain.MapDataset.source(ROWS)
    return rows.shuffle(seed=1).batch(4) if shuffle else rows.batch(4)


def equal(some, others):
    some, others = (keras.tree.flatten(list(elements)) for elements in (some, others))
    return len(some) == len(others) and all(map(np.array_equal, some, others))


def test_grain_gets_the_same_bits_in_numpy():
    layer = masking()
    masked = mask_dataset(grain_rows(shuffle=False), layer, epochs=2)
    assert len(masked) == 12
    assert all(isinstance(array, np.ndarray) for array in keras.tree.flatten(masked[0]))
    assert equal(masked, mask_dataset(dataset(), layer, epochs=2).as_numpy_iterator())
    assert int(layer.step) == 0


def test_grain_is_fresh_in_each_epoch_and_can_start_anywhere():
    whole = mask_dataset(grain_rows(), masking(), epochs=3)
    assert len({x["token_ids"].tobytes() for x, _, _ in whole}) == 18
    for start in range(3):
        rest = mask_dataset(grain_rows(), masking(), 3, start)
        assert equal(rest, list(whole)[6 * start :])
    endless = mask_dataset(grain_rows().repeat(), masking())
    assert equal([endless[place] for place in range(18)], whole)


def test_a_grain_iterator_goes_on_from_its_state():
    iterator = iter(mask_dataset(grain_rows(), masking(), epochs=2).to_iter_dataset())
    for _ in range(5):
        next(iterator)
    state, rest = iterator.get_state(), list(iterator)
    iterator.set_state(state)
    assert equal(iterator, rest) and len(rest) == 7


@pytest.mark.slow
def test_grain_workers_change_nothing(monkeypatch):
    """And mask for the process that they work for, where PyTorch trains in several."""
    grain = pytest.importorskip("grain")
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers ask for flags
    in_the_first = mask_dataset(grain_rows(), masking(), epochs=2)
    monkeypatch.setattr("keras_dynmask.pipeline.replica_id", lambda: 1)
    masked = mask_dataset(grain_rows(), masking(), epochs=2)
    assert not equal(masked, in_the_first)
    options = grain.MultiprocessingOptions(num_workers=2)
    assert equal(masked.to_iter_dataset().mp_prefetch(options), masked)


def test_a_model_trains_on_grain():
    layer = masking()
    model = MaskedLanguageModel(TransformerEncoder(60, 1, 2, 16, 24), layer)
    model.compile(keras.optimizers.Adam(1e-2))
    rows = mask_dataset(grain_rows(), layer, epochs=10).to_iter_dataset()
    history = model.fit(rows, epochs=10, steps_per_epoch=6, shuffle=False, verbose=0).history
    assert history["masked_loss"][-1] < history["masked_loss"][0]


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
        ({"dataset": "list"}, "`dataset` must be a tf.data.Dataset, a grain.MapDataset.*'list'"),
        ({"dataset": "function"}, "or with `epochs` a function from the epoch.*'function'"),
        ({"rate": "schedule"}, "`epochs` must be given where the rate follows a schedule.*None"),
    ],
)
def test_misuse_is_named(arguments, message):
    arguments = dict(arguments)
    kinds = {"repeat": dataset().repeat(), "list": [1, 2], "function": lambda epoch: dataset()}
    rows = kinds.get(arguments.pop("dataset", None), dataset())
    layer = masking()
    if arguments.pop("rate", None):
        schedule = keras.optimizers.schedules.PolynomialDecay(0.3, 10, 0.15)
        layer = DynamicMasking(60, schedule, 1)
    with pytest.raises(ValueError, match=message):
        mask_dataset(rows, layer, **arguments)
