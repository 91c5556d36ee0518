"""Processes that are killed again and again, and what they leave.

python killed.py runs FOLDER KILLS WAY...
    Trains; SIGKILL at random steps; resumes. Prints for each way to save how often the run was
    killed, and whether it ended with the weights of a run that nobody killed.

python killed.py saving FOLDER KILLS
    Saves in a tight loop; SIGKILL at random moments. Prints how often, how many checkpoints were
    written, and how many kills left anything else than the last or the next whole one.
"""

import json
import os
import pathlib
import signal
import sys
import threading
import time
import traceback

import keras
import numpy as np

from keras_dynmask import DynamicMasking, MaskedLanguageModel, TransformerEncoder, training

VOCABULARY, LENGTH, BATCH_SIZE, EPOCHS = 40, 8, 4, 4
ROWS = np.random.default_rng(0).integers(2, VOCABULARY, (20, LENGTH)).astype("int32")
STEPS = len(ROWS) // BATCH_SIZE  # of an epoch


def build(seed):
    """A new model. One that goes on comes from another seed: nothing may depend on it."""
    keras.utils.set_random_seed(seed)
    model = MaskedLanguageModel(
        TransformerEncoder(VOCABULARY, 1, 2, 8, 8, dropout=0.2),
        DynamicMasking(VOCABULARY, 0.3, 1, seed=9),
    )
    model.compile(keras.optimizers.Adam(1e-2))
    model.optimizer.build(model.trainable_variables)  # or its state would not be loaded
    return model


# Each way to save takes a folder, and gives the model that goes on (None: a new one), its epoch
# (None: as the model's step says), and the callback that saves it.


def model_file(folder):
    saved = sorted(folder.glob("*.keras"))
    model = keras.models.load_model(saved[-1]) if saved else None
    return model, None, keras.callbacks.ModelCheckpoint(folder / "{epoch:03d}.keras")


def weights_file(folder):
    saved, model = sorted(folder.glob("*.weights.h5")), None
    if saved:
        model = build(seed=5)
        model.load_weights(saved[-1])
    path = folder / "{epoch:03d}.weights.h5"
    return model, None, keras.callbacks.ModelCheckpoint(path, save_weights_only=True)


def backup(folder):
    metadata, model, epoch = folder / "backup/training_metadata.json", None, None
    if metadata.exists():  # the order of the rows is asked for before `fit` loads the rest
        model, epoch = build(seed=5), json.loads(metadata.read_text())["epoch"]
    save = keras.callbacks.BackupAndRestore(folder / "backup", delete_checkpoint=False)
    return model, epoch, save


def checkpoint(folder):
    path = folder / "checkpoint.keras"
    model = keras.models.load_model(path) if path.exists() else None
    return model, None, training.Checkpoint(folder, [])


def tensorflow_checkpoint(folder):
    import tensorflow as tf

    started = (folder / "checkpoint").exists()
    model = build(seed=5 if started else 0)
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(model), folder, max_to_keep=2)
    if started:
        manager.checkpoint.restore(manager.latest_checkpoint).assert_consumed()
    return model, None, EachEpoch(lambda model: manager.save())


def arrays(folder):
    path, model = folder / "arrays.npz", None
    if path.exists():
        model, saved = build(seed=5), list(np.load(path).values())
        count = len(model.get_weights())
        model.set_weights(saved[:count])
        for variable, value in zip(model.optimizer.variables, saved[count:], strict=True):
            variable.assign(value)

    def save(model):
        state = [keras.ops.convert_to_numpy(each) for each in model.optimizer.variables]
        with training.replacing(path) as unfinished:
            np.savez(unfinished, *model.get_weights(), *state)

    return model, None, EachEpoch(save)


WAYS = {
    way.__name__: way
    for way in (backup, model_file, weights_file, checkpoint, arrays, tensorflow_checkpoint)
}


class EachEpoch(keras.callbacks.Callback):
    def __init__(self, save):
        super().__init__()
        self.save = save

    def on_epoch_end(self, epoch, logs=None):
        self.save(self.model)


class Kill(keras.callbacks.Callback):
    """SIGKILL at a step, or so many seconds after it."""

    def __init__(self, step, seconds):
        super().__init__()
        self.step, self.seconds = step, seconds

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch * STEPS + batch == self.step:
            kill = os.kill, (os.getpid(), signal.SIGKILL)
            threading.Timer(self.seconds, *kill).start() if self.seconds else kill[0](*kill[1])


def run(way, folder, *kill):
    model, epoch, save = way(folder)
    model = model or build(seed=0)
    if epoch is None:
        epoch = int(model.masking.step) // STEPS
    model.fit(
        training.ShuffledRows(ROWS, BATCH_SIZE, 1, epoch),
        initial_epoch=epoch,
        epochs=EPOCHS,
        callbacks=[save, *kill],
        verbose=0,
        shuffle=False,  # or Keras shuffles the batches again, by the global random state
    )
    with training.replacing(folder / "ended.npz") as path:
        np.savez(path, *model.get_weights())


def start(work, *arguments):
    """The id of a process that works. It is a fork: libraries are loaded, nothing is in use yet."""
    child = os.fork()
    if child == 0:
        try:
            work(*arguments)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return child


def was_killed(child):
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status > 0:
        sys.exit("What was to be killed failed before.")
    return status == -signal.SIGKILL


def runs(folder, kills, *names):
    draw, found = np.random.default_rng(3), {}

    def ended(name):
        return list(np.load(folder / name / "ended.npz").values())

    (folder / "whole").mkdir()
    was_killed(start(run, arrays, folder / "whole"))
    for name in names:
        (folder / name).mkdir()
        # Not in the first epoch: nothing is saved by then. Our own checkpoint is killed at any
        # moment after a step, while it saves, too.
        anywhere = name == "checkpoint"
        count, last = 0, (EPOCHS - anywhere) * STEPS
        for step in sorted(draw.integers(STEPS, last, kills).tolist()):
            kill = Kill(step, draw.uniform(0.0, 0.05) * anywhere)
            count += was_killed(start(run, WAYS[name], folder / name, kill))
        was_killed(start(run, WAYS[name], folder / name))
        equal = all(map(np.array_equal, ended("whole"), ended(name)))
        found[name] = {"kills": count, "equal": equal}
    return found


def save_on_and_on(folder, told):
    """Says the number of the checkpoint that it found, then of each that it wrote."""
    path = folder / "checkpoint.keras"
    model = keras.models.load_model(path) if path.exists() else build(seed=0)
    save = training.Checkpoint(folder, [])
    save.set_model(model)
    while True:
        number = int(model.masking.step)
        os.write(told, b"%d\n" % number)
        model.masking.step.assign(number + 1)
        save.on_epoch_end(number, {"loss": 0.0})


def saving(folder, kills):
    draw, number, broken = np.random.default_rng(3), 0, 0
    for _ in range(kills):
        tell, told = os.pipe()
        child = start(save_on_and_on, folder, told)
        os.close(told)
        with os.fdopen(tell) as lines:
            found = int(lines.readline() or -1)
            time.sleep(draw.uniform(0.0, 0.5))
            os.kill(child, signal.SIGKILL)
            was_killed(child)
            broken += found not in (number, number + 1)
            number = [found, *map(int, lines)][-1]
    return {"kills": kills, "saved": number, "broken": broken}


if __name__ == "__main__":
    mode, folder, kills, *names = sys.argv[1:]
    work = {"runs": runs, "saving": saving}[mode]
    print(json.dumps(work(pathlib.Path(folder), int(kills), *names)))
