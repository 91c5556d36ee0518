"""Replicas, devices, processes: their masks are their own, or those of one device; sums are of all.

Every engine needs processes of its own, which run the functions of this file (`found_by`) or a
script of `examples/`.
"""

import contextlib
import csv
import importlib.util
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest
from keras import ops

from keras_dynmask import (
    AdaptiveSelection,
    DynamicMasking,
    MaskedLanguageModel,
    TransformerEncoder,
    mask_dataset,
    masking,
    noise,
    recipes,
    training,
)

ROOT = pathlib.Path(__file__).parent.parent
VOCABULARY, MASK, LENGTH, BATCH = 60, 1, 20, 8
# Float32 sums over rows round otherwise when each device adds up its own first: by 6e-8 of their
# size an addition, which a few steps of training hardly magnify.
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


def needs(library):
    missing = importlib.util.find_spec(library) is None
    return pytest.mark.skipif(missing, reason=f"{library} is not installed")


@keras.saving.register_keras_serializable(package="test_replicas")
class Watched(MaskedLanguageModel):
    """Logs a fingerprint of the masks: a sum of 10 bits a row, so the rows may lie anywhere."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.fingerprint = keras.metrics.Sum(name="fingerprint")

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if isinstance(y_pred, dict):
            weights = ops.cast(y_pred["mask_weights"], "int32")
            hashed = hash_of(y_pred["token_ids"]) ^ hash_of(y_pred["mask_positions"] * weights)
            bits = ops.cast(ops.bitwise_and(hashed, 1023), "float32")
            self.fingerprint.update_state(ops.sum(bits))  # exact below 2**24
        return super().compute_loss(x, y, y_pred, sample_weight, training)


def hash_of(rows):
    return noise.content_words(ops.cast(rows, "int32"), ops.ones_like(rows, dtype="bool"))[0]


def rows(count, seed=0):
    """Rows of counting numbers, which can be learnt, half of them short; two are empty."""
    random = np.random.default_rng(seed)
    ids = random.integers(2, 40, (count, 1)) + np.arange(LENGTH) % 7
    ids[np.arange(LENGTH) >= random.integers(LENGTH // 2, 2 * LENGTH, (count, 1))] = 0
    ids[2:4] = 0
    return ids.astype("int32")


def build(rate=0.2, dropout=0.0, adaptive=False, **arguments):
    keras.utils.set_random_seed(3)
    return Watched(
        TransformerEncoder(VOCABULARY, 1, 2, 16, 24, dropout=dropout),
        DynamicMasking(VOCABULARY, rate, MASK, seed=9, **arguments),
        adaptive_selection=AdaptiveSelection(VOCABULARY) if adaptive else None,
    )


def weights_of(model):
    return [ops.convert_to_numpy(weight).tolist() for weight in model.weights]


def masks_of_replica(layer, replica, ids, step):
    """The masks that a replica draws, drawn here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masking, "replica_id", lambda: replica)
        features = {"token_ids": ops.convert_to_tensor(ids)}
        masked = layer.mask(features, step, layer.selection_capacity(features))
    return {name: ops.convert_to_numpy(value) for name, value in masked.items()}


@contextlib.contextmanager
def started(command, timeout=600, **environment):
    """A process and all that it starts, which end with the block, or with the time they have."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "examples"))),
        "PYTHONUNBUFFERED": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        **environment,
    }
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )

    def end():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    late = threading.Timer(timeout, end)
    late.start()
    try:
        yield process
    finally:
        late.cancel()
        end()
        process.wait()
        process.stdout.close()


def finished(command, **environment):
    """What a command prints."""
    with started(command, **environment) as process:
        output = process.stdout.read()
        process.wait()
    assert process.returncode == 0, output[-5000:]
    return output


def found_by(call, **environment):
    """What a call of a function in this file returns in another process."""
    program = f"import json, test_replicas; print('FOUND', json.dumps(test_replicas.{call}))"
    output = finished(["-c", program], **environment)
    return json.JSONDecoder().raw_decode(output, output.index("FOUND ") + 6)[0]


def assert_equal_histories(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        exact = name.endswith("fingerprint")
        tolerance = {"rtol": 0, "atol": 0} if exact else ROUNDING
        np.testing.assert_allclose(found[name], expected[name], **tolerance, err_msg=name)


def assert_equal_weights(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, **ROUNDING)


# One replica, and none.


@pytest.mark.parametrize(
    "setting",
    [
        {"mask_selection_rate": (0.0, 1.0), "mask_selection_length": 5},
        {"exact_count": False, "mean_span_length": 3.0, "at_least_one": True},
        {"count_per_document": True, "selection_weights": range(VOCABULARY)},
        {"corrupt_whole_units": True, "random_words": [(7,), (8,)]},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_a_replica_without_a_row_masks_nothing(setting):
    """As the last batch may leave one: in a graph, where nobody knows before."""
    import tensorflow as tf

    arguments = {"mask_selection_rate": 0.15} | setting
    layer = DynamicMasking(VOCABULARY, mask_token_id=MASK, **arguments)

    @tf.function(input_signature=[tf.TensorSpec((None, LENGTH), "int32")])
    def masked(ids):
        features = {"token_ids": ids, "segment_ids": ids}
        return layer.mask(features), layer.mask_fixed(features)

    for outputs in masked(tf.zeros((0, LENGTH), "int32")):
        assert outputs["token_ids"].shape == (0, LENGTH)
        assert len(outputs["mask_weights"]) == 0


# TensorFlow, replicas in one process.


def on_replicas():
    """What two replicas do, and one device. Runs in a process of its own."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    return {
        "masks": masks_on_replicas(strategy),
        "fits": [fit_all_selected(scope) for scope in (contextlib.nullcontext(), strategy.scope())],
        "masked before": [
            fit_masked_before(scope) for scope in (contextlib.nullcontext(), strategy.scope())
        ],
    }


def masks_on_replicas(strategy):
    import tensorflow as tf

    with strategy.scope():
        model = build()
    ids = rows(BATCH)
    step = tf.function(lambda: model(tf.constant(ids), training=True)["token_ids"])
    drawn = [strategy.experimental_local_results(strategy.run(step)) for _ in range(3)]
    expected = [
        [masks_of_replica(model.masking, replica, ids, step)["token_ids"] for replica in range(2)]
        for step in range(3)
    ]
    lists = {"found": np.array(drawn).tolist(), "expected": np.array(expected).tolist()}
    return {"ids": ids.tolist(), **lists}


def copies_of(model):
    """Every weight, as each replica holds it."""
    local = model.distribute_strategy.experimental_local_results
    return [[copy.numpy().tolist() for copy in local(w.value)] for w in model.weights]


def fit_all_selected(scope):
    """Every token is hidden, so that masks are the same on any replica; held-out rows are masked
    by what they hold. The last batch of 33 rows has one, so that a replica has none."""
    hides_all = {"mask_token_rate": 1.0, "random_token_rate": 0.0, "evaluation_rate": 0.2}
    with scope:
        model = build(1.0, adaptive=True, **hides_all)
        model.head.transform.kernel.regularizer = keras.regularizers.L2(0.1)
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    history = model.fit(
        rows(33),
        batch_size=BATCH,
        epochs=2,
        verbose=0,
        shuffle=False,
        validation_data=(rows(27, seed=1),),
        validation_batch_size=BATCH,
    ).history
    return history, copies_of(model)


def fit_masked_before(scope):
    import tensorflow as tf

    def without_bools(x, y, weights):  # Keras averages the first batch over the replicas
        return {**x, "padding_mask": tf.cast(x["padding_mask"], "int32")}, y, weights

    with scope:
        model = build()
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    layer = DynamicMasking(VOCABULARY, 0.3, MASK, mask_selection_length=7, seed=1)
    dataset = tf.data.Dataset.from_tensor_slices(rows(35)).batch(BATCH)
    dataset = mask_dataset(dataset, layer, epochs=2).map(without_bools)
    history = model.fit(dataset, verbose=0, shuffle=False).history
    return history, copies_of(model)


@pytest.fixture(scope="module")
def replicas():
    return found_by("on_replicas()", KERAS_BACKEND="tensorflow")


@pytest.mark.slow
def test_replicas_draw_masks_of_their_own(replicas):
    masks = {name: np.array(value) for name, value in replicas["masks"].items()}
    np.testing.assert_array_equal(masks["found"], masks["expected"])
    first, second = masks["found"][:, 0], masks["found"][:, 1]  # [steps, rows, length]
    same = (first == second).all(axis=-1)
    np.testing.assert_array_equal(same, np.tile((masks["ids"] == 0).all(axis=-1), (3, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("run", ["fits", "masked before"])
def test_replicas_train_and_evaluate_as_one_device_does(replicas, run):
    (expected, weights), (found, copies) = replicas[run]
    assert_equal_histories(found, expected)
    assert {len(copies_of_weight) for copies_of_weight in copies} == {2}
    assert all(first == second for first, second in copies)
    assert_equal_weights([first for first, _ in copies], [only for (only,) in weights])
    if run == "fits":
        assert expected["masked_loss"][-1] < expected["masked_loss"][0]


# JAX, devices of one process.

FAST_COMPILER = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
ON_JAX = {"KERAS_BACKEND": "jax", "XLA_FLAGS": FAST_COMPILER}
FOUR = {"XLA_FLAGS": f"{FAST_COMPILER} --xla_force_host_platform_device_count=4"}


def on_devices():
    """What JAX does on one device, on four that share rows, and on four that share weights, too;
    without dropout and with it."""
    import model_parallel

    engines = {
        "one device": contextlib.nullcontext,
        "DataParallel": lambda: keras.distribution.DataParallel().scope(),
        "ModelParallel": lambda: model_parallel.distribution(2, 2).scope(),
    }
    return {
        name: {dropout: fit_on(scope, dropout) for dropout in (0.0, 0.3)}
        for name, scope in engines.items()
    }


def fit_on(scope, dropout):
    with scope():
        model = build(dropout=dropout)
        model.compile(keras.optimizers.SGD(0.3, momentum=0.9))
        history = model.fit(
            rows(32),
            batch_size=BATCH,
            epochs=4,
            verbose=0,
            shuffle=False,
            validation_data=(rows(16, seed=1),) if dropout else None,
            validation_batch_size=BATCH,
        ).history
    parts = [len({str(shard.index) for shard in w.value.global_shards}) for w in model.weights]
    return {"history": history, "weights": weights_of(model), "parts": parts}


@pytest.fixture(scope="module")
def devices():
    return found_by("on_devices()", **ON_JAX | FOUR)


@pytest.mark.slow
@needs("jax")
@pytest.mark.parametrize("dropout", ["0.0", "0.3"])
@pytest.mark.parametrize(("engine", "split"), [("DataParallel", 0), ("ModelParallel", 7)])
def test_devices_of_jax_train_and_evaluate_as_one_does(devices, engine, split, dropout):
    expected, found = devices["one device"][dropout], devices[engine][dropout]
    losses = expected["history"]["masked_loss"]
    assert losses[-1] < losses[0]
    assert_equal_histories(found["history"], expected["history"])
    assert_equal_weights(found["weights"], expected["weights"])
    assert sum(parts == 2 for parts in found["parts"]) == split
    assert sum(parts == 1 for parts in found["parts"]) == len(found["parts"]) - split


# JAX, two processes.

RECIPE = {
    "batch_size": 256, "epochs": 2, "length": 32, "vocabulary_size": 300, "num_layers": 1,
    "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 16, "learning_rate": 0.01,
}  # fmt: skip


def pretrain_watched():
    """The example, with a model that logs a fingerprint of its masks."""
    import pretrain_on_two_processes

    recipes.MaskedLanguageModel = training.MaskedLanguageModel = Watched
    pretrain_on_two_processes.main()


def history_of(directory):
    with open(directory / "history.csv", newline="") as file:
        epochs = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in epochs] for name in epochs[0]}


@pytest.mark.slow
@needs("jax")
def test_two_processes_pretrain_as_one_does_and_go_on_after_a_kill(tmp_path):
    program = ["-c", "import test_replicas; test_replicas.pretrain_watched()"]
    arguments = ["--recipe", json.dumps(RECIPE), "--output"]
    one, two = tmp_path / "one", tmp_path / "two"
    finished([*program, *arguments, one, "--processes", 1], **ON_JAX)

    with started([*program, *arguments, two], **ON_JAX) as process:
        said = ""
        while "epoch   1/2" not in said:  # says so when it is saved
            line = process.stdout.readline()
            assert line, said
            said += line
    assert "2 processes with 2 devices" in said and said.count("epoch ") == 1
    assert len(history_of(two)["epoch"]) == 1
    said = finished([*program, *arguments, two], **ON_JAX)
    assert "epoch   2/2" in said and "epoch   1/2" not in said

    expected, found = history_of(one), history_of(two)
    assert expected["fingerprint"][0] != expected["fingerprint"][1]  # fresh masks
    assert expected["val_fingerprint"][0] == expected["val_fingerprint"][1]
    assert expected["val_masked_loss"][1] < expected["val_masked_loss"][0]
    assert_equal_histories(found, expected)
    # Adam magnifies rounding where gradients are small, so weights show it more than losses do.
    models = [training.read_model(path / "checkpoint.keras") for path in (one, two)]
    counts = [[w.numpy().tolist() for w in m.weights if "int" in w.dtype] for m in models]
    assert counts[0] == counts[1] and len(counts[0]) == 2  # the masks' step, dropout's state


# Loops of your own: TensorFlow in two workers, PyTorch in two processes.


def train_on_both_halves(before):
    """What one device makes of both halves of each batch, each masked as its process masks it."""
    import tensorflow as tf
    import toy

    model = toy.build_model()
    model.set_weights(before)
    optimizer = keras.optimizers.SGD(0.5, momentum=0.9)
    for step, of_batch in enumerate(zip(toy.halves(0), toy.halves(1), strict=True)):
        masked = [masks_of_replica(model.masking, *each, step) for each in enumerate(of_batch)]
        x = {name: np.concatenate([half[name] for half in masked]) for name in masked[0]}
        y, weights = x.pop("mask_ids"), x.pop("mask_weights")
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=True), weights)
        optimizer.apply(tape.gradient(loss, model.trainable_weights), model.trainable_weights)
    return [weight.numpy() for weight in model.trainable_weights]


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", ["multi_worker_tensorflow", pytest.param("ddp_torch", marks=needs("torch"))]
)
def test_processes_add_up_to_one(script, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    import toy

    said = finished([ROOT / "examples" / f"{script}.py", "--output", tmp_path / "weights.npz"])
    report = r"process (\d): loss .+, masks of the first batch (\w+), weights (\w+)"
    reports = re.findall(report, said)
    assert sorted(process for process, _, _ in reports) == ["0", "1"], said
    assert len({masks for _, masks, _ in reports}) == 2
    assert len({weights for _, _, weights in reports}) == 1

    arrays = list(np.load(tmp_path / "weights.npz").values())
    before, after = arrays[: len(arrays) // 2], arrays[len(arrays) // 2 :]
    expected = train_on_both_halves(before)
    model = toy.build_model()
    model.set_weights(after)
    assert_equal_weights([weight.numpy() for weight in model.trainable_weights], expected)
    moved = [np.abs(a - b).max() for a, b in zip(before, after, strict=True)]
    assert max(moved) > 0.1
