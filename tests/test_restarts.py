"""Restarts: what a stopped run leaves, and how it goes on."""

import contextlib
import functools
import json
import os
import pathlib
import re
import subprocess
import sys

import keras
import killed
import numpy as np
import pytest
import tensorflow as tf
import test_cli

from keras_dynmask import DynamicMasking, MaskedLanguageModel, TransformerEncoder, cli, training

TESTS = pathlib.Path(__file__).parent


def nested():
    """Generators in a model in a model, and in a layer of a layer; one that is never drawn from."""
    inner = keras.Input((None, 8))
    attention = keras.layers.MultiHeadAttention(2, 4, dropout=0.2)
    inner = keras.Model(inner, keras.layers.GaussianNoise(0.1)(attention(inner, inner)))
    ids = keras.Input((None,), dtype="int32")
    hidden = keras.layers.Embedding(killed.VOCABULARY, 8)(ids)
    hidden = keras.Sequential([keras.layers.Dense(8), keras.layers.Dropout(0.2)])(hidden)
    return keras.Model(ids, keras.layers.SpatialDropout1D(0.3)(inner(hidden)))


class Listed(keras.layers.Layer):
    """Layers in a list, which are made when the first input comes."""

    def build(self, input_shape):
        dropouts = [keras.layers.Dropout(0.1) for _ in range(3)]
        self.parts = [keras.layers.Embedding(killed.VOCABULARY, 8), *dropouts]
        self.built = True

    def call(self, hidden, training=False):
        for part in self.parts:
            hidden = part(hidden)
        return hidden


ENCODERS = {
    "ours": (lambda: TransformerEncoder(killed.VOCABULARY, 2, 2, 8, 8, dropout=0.1), 2),
    "without dropout": (lambda: TransformerEncoder(killed.VOCABULARY, 2, 2, 8, 8, dropout=0.0), 0),
    "nested": (nested, 4),
    "listed": (Listed, 3),
}


def model_of(encoder):
    return MaskedLanguageModel(encoder, DynamicMasking(killed.VOCABULARY, 0.3, 1, seed=9))


def state_of(model):
    return [each.numpy() for each in (*model.weights, *model.optimizer.variables)]


def assert_equal(model, other):
    for one, another in zip(state_of(model), state_of(other), strict=True):
        np.testing.assert_array_equal(one, another)


@pytest.mark.parametrize("encoder, generators", ENCODERS.values(), ids=ENCODERS)
def test_random_states_are_weights(encoder, generators, tmp_path):
    model = model_of(encoder())
    states = [each for each in model.weights if "seed_generator" in each.path]
    assert len(states) == generators and not any(each.trainable for each in states)
    for collection in (model.weights, model.variables):
        assert len({id(each) for each in collection}) == len(collection)
    model(killed.ROWS, training=True)
    assert all(each.numpy()[1] > 0 for each in states)

    model.save_weights(tmp_path / "model.weights.h5")
    fresh = model_of(encoder())
    fresh.load_weights(tmp_path / "model.weights.h5")
    for one, another in zip(model.get_weights(), fresh.get_weights(), strict=True):
        np.testing.assert_array_equal(one, another)


def test_two_models_may_share_an_encoder():
    encoder = TransformerEncoder(killed.VOCABULARY, 1, 2, 8, 8)
    assert len(model_of(encoder).weights) == len(model_of(encoder).weights)


def test_a_tensorflow_checkpoint_holds_every_weight_without_an_optimizer(tmp_path):
    model, fresh = (model_of(ENCODERS["ours"][0]()) for _ in range(2))
    path = tf.train.Checkpoint(model).save(tmp_path / "checkpoint")
    tf.train.Checkpoint(fresh).restore(path).assert_consumed()
    for one, another in zip(model.get_weights(), fresh.get_weights(), strict=True):
        np.testing.assert_array_equal(one, another)


class Interrupted(Exception):
    pass


class Interrupt(keras.callbacks.Callback):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.masking.step) == self.step:
            raise Interrupted


def fit(model, *callbacks, epoch=0, epochs=killed.EPOCHS):
    rows = training.ShuffledRows(killed.ROWS, killed.BATCH_SIZE, 1, epoch)
    arguments = {"initial_epoch": epoch, "epochs": epochs, "callbacks": callbacks}
    with contextlib.suppress(Interrupted):
        model.fit(rows, **arguments, verbose=0, shuffle=False)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("way", [{"run_eagerly": True}, {"jit_compile": True}], ids=str)
def test_eager_and_compiled_runs_go_on(way, tmp_path):
    def compiled(seed):
        model = killed.build(seed)
        optimizer = keras.optimizers.Adam(1e-2)
        optimizer.build(model.trainable_variables)
        model.compile(optimizer, **way)
        return model

    whole = compiled(seed=0)
    save = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True)
    fit(whole, save, epochs=3)
    resumed = compiled(seed=5)
    resumed.load_weights(tmp_path / "2.weights.h5")
    assert_equal(whole, fit(resumed, epoch=2, epochs=3))


@pytest.mark.slow
def test_a_backup_in_mid_epoch_begins_the_epoch_again_under_new_masks(tmp_path):
    """So the rows before the backup come once more, and the run is so many steps longer."""

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path, save_freq=4, delete_checkpoint=False)

    fit(killed.build(seed=0), backup(), Interrupt(9))  # saved at 8: three steps into epoch 1
    resumed, begins = killed.build(seed=5), []
    note = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: begins.append((epoch, int(resumed.masking.step)))
    )
    fit(resumed, backup(), note, epoch=1, epochs=3)
    assert begins == [(1, 8), (2, 13)] and int(resumed.masking.step) == 18

    expected = fit(killed.build(seed=0), Interrupt(8))
    assert_equal(resumed, fit(expected, epoch=1, epochs=3))


@pytest.mark.slow
def test_tf_data_goes_on_at_any_step(tmp_path):
    """The way to save more often than once in an epoch: call fewer steps an epoch."""

    def rows(done):
        tf.random.set_seed(2)  # it changes the order of `shuffle(seed=1)`, too
        each = tf.data.Dataset.from_tensor_slices(killed.ROWS)
        return each.shuffle(20, seed=1).batch(killed.BATCH_SIZE).repeat().skip(done)

    batches = [batch.tolist() for batch in rows(0).take(10).as_numpy_iterator()]
    epochs = np.reshape(batches, (2, *killed.ROWS.shape)).tolist()
    assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1])

    def fit(model, first, last):
        arguments = {"epochs": last, "initial_epoch": first, "shuffle": False, "verbose": 0}
        model.fit(rows(4 * first), steps_per_epoch=4, **arguments)
        return model

    half, resumed = fit(killed.build(seed=0), 0, 2), killed.build(seed=5)
    path = tf.train.Checkpoint(half).save(tmp_path / "checkpoint")
    tf.train.Checkpoint(resumed).restore(path).assert_consumed()
    assert_equal(fit(resumed, 2, 4), fit(killed.build(seed=0), 0, 4))


@pytest.mark.slow
def test_the_documented_way_goes_on(tmp_path):
    block = re.search(r"```python\n(.*?)```", (TESTS.parent / "docs/restarts.md").read_text(), re.S)
    rows = np.random.default_rng(0).integers(2, killed.VOCABULARY, (96, 8)).astype("int32")
    new = functools.partial(killed.build, seed=0)
    for run, epochs, build in (("whole", 3, new), ("stopped", 1, new), ("stopped", 3, None)):
        (tmp_path / run).mkdir(exist_ok=True)
        names = {"keras": keras, "directory": tmp_path / run, "token_ids": rows, "build": build}
        exec(block[1].replace("epochs=30", f"epochs={epochs}"), names)
    models = [
        keras.models.load_model(tmp_path / f"{run}/checkpoint.keras")
        for run in ("whole", "stopped")
    ]
    assert int(models[0].masking.step) == 9
    assert_equal(*models)


def tell(*arguments, backend="tensorflow", **environment):
    command = [sys.executable, TESTS / "killed.py", *map(str, arguments)]
    environment = os.environ | environment | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend, ways",
    [
        ("tensorflow", list(killed.WAYS)),
        ("jax", ["backup", "weights_file"]),
        ("torch", ["backup", "checkpoint"]),
    ],
)
def test_killed_runs_end_with_the_weights_of_one_that_nobody_killed(backend, ways, tmp_path):
    """Twenty kills in all."""
    if backend != "tensorflow":
        pytest.importorskip(backend)
    cache = {  # or JAX compiles the same step in every process
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    found = tell("runs", tmp_path, 2, *ways, backend=backend, **cache)
    assert found == {way: {"kills": 2, "equal": True} for way in ways}


@pytest.mark.slow
def test_a_kill_while_saving_leaves_a_whole_checkpoint(tmp_path):
    found = tell("saving", tmp_path, 12)
    assert found["saved"] > 0 and found["broken"] == 0


@contextlib.contextmanager
def no_file_above(size):
    """What a full disk does: a write fails in the midst of a file."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path):
    model = model_of(ENCODERS["ours"][0]())
    save = training.Checkpoint(tmp_path, [])
    save.set_model(model)
    model.masking.step.assign(7)
    save.on_epoch_end(0, {"loss": 2.5})
    model.masking.step.assign(14)
    for size in (10, 5000):
        with no_file_above(size), pytest.raises(OSError, match="File too large"):
            save.on_epoch_end(1, {"loss": 1.5})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.keras", "history.csv"]
    assert int(keras.models.load_model(tmp_path / "checkpoint.keras").masking.step) == 7


@pytest.mark.slow
def test_pretraining_gets_over_a_full_disk_and_a_stop_at_its_last_steps(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "corpus.txt").write_text(test_cli.words(6000))
    output, partial = tmp_path / "run", tmp_path / "run.partial"
    command = ["pretrain", "--corpus", str(tmp_path / "corpus.txt"), "--output", str(output)]
    command += [*test_cli.SMALL, "--epochs", "1"]
    for size, stays in ((1000, False), (150_000, True)):
        with no_file_above(size):
            assert cli.main(command) == 2
        said = capsys.readouterr().err
        assert said.startswith("keras-dynmask: ") and said.count("\n") == 1
        assert "File too large" in said and partial.exists() == stays and not output.exists()
    # What did not fit was first the tokenizer, then the SavedModel.
    assert (partial / "model.keras").exists() and not (partial / "saved_model").exists()

    def stop(*arguments):
        raise Interrupted

    for last in ((training, "draw_losses"), (pathlib.Path, "rename")):
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(*last, stop)
            cli.main([*command, "--resume"])
    assert cli.main([*command, "--resume"]) == 0 and not partial.exists()
    assert sorted(path.name for path in output.iterdir()) == test_cli.FINISHED
    assert not [path for path in output.rglob("*") if "tmp" in path.name]
