"""The input pipeline beside the training step: does the step ever wait?

    python benchmarks/input.py            about two minutes on two cores
    python benchmarks/input.py --short    about a minute

Packed rows lie in a file that is mapped into memory. Printed: seconds for each batch of the
pipelines beside those of a step of the default recipe; how much memory it takes to read all of
a file once, in a fresh process; and how soon the default run takes its first step.
"""

import argparse
import itertools
import json
import os
import pathlib
import sys
import tempfile
import time

import measure

LENGTH, BATCH = 64, 32  # of the default recipe
VOCABULARY = 4000


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a smaller file, fewer rounds")
    parser.add_argument("--mebibytes", type=int, default=512, help="size of the file (%(default)s)")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        question, *rest = arguments.child
        print(json.dumps({"first": first_step, "read": memory_to_read}[question](*rest)))
        return
    size, rounds = (64, 5) if arguments.short else (arguments.mebibytes, 7)
    print(measure.place("grain", "jax", "torch"))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "rows.npy"
        write(path, size)
        print_batches(path, rounds)
        print_memory(path, size)
    print_first_step(3 if arguments.short else 5)


def write(path, mebibytes):
    import numpy as np

    from keras_dynmask import text

    drawn = np.random.default_rng(0)
    blocks = (drawn.integers(4, VOCABULARY, (2**12, LENGTH), "int32") for _ in range(mebibytes))
    text.write_rows(path, blocks)


# Seconds


def print_batches(path, rounds):
    from keras_dynmask import text

    rows = text.read_rows(path, LENGTH, VOCABULARY)
    contenders = {"the training step": training_step(rows), **pipelines(rows)}
    clocks = {"ms": time.perf_counter, "CPU ms": time.process_time}
    seconds = {
        name: measure.in_turn(contenders, rounds, clock, 0.2) for name, clock in clocks.items()
    }
    table = []
    for each in contenders:
        row = {f"a batch of {BATCH} x {LENGTH}": each}
        for name, found in seconds.items():
            row[name] = measure.median(found[each]) * 1e3
            share = 1 / measure.median_ratio(found["the training step"], found[each])
            row[f"share of the step's {name}"] = f"{share:.2%}"
        table.append(row)
    print(f"\n{measure.table(table)}\n")


def training_step(rows):
    model, _ = default_model()
    batch = rows[:BATCH]
    return lambda: model.train_on_batch(batch)


def default_model():
    from keras_dynmask import text, training

    recipe = training.Recipe()
    tokenizer = text.train_tokenizer(recipe.read_corpus(), recipe.vocabulary_size)
    return recipe.build_model(tokenizer, steps=1000), tokenizer


def pipelines(rows):
    """What gives the next batch, by name."""
    from keras.src.trainers.data_adapters import get_data_adapter

    from keras_dynmask import DynamicMasking, training

    def shuffled():
        return training.ShuffledRows(rows, BATCH, seed=0)

    def in_order(batches):
        indices = itertools.cycle(range(len(batches)))
        return lambda: batches[next(indices)]

    def as_in_fit():
        adapter = get_data_adapter(shuffled())
        kind = {"tensorflow": "get_tf_dataset", "jax": "get_jax_iterator"}
        return getattr(adapter, kind.get(backend(), "get_torch_dataloader"))()

    masking = DynamicMasking(VOCABULARY, 0.15, 3, mask_selection_length=10, seed=0)
    found = {
        "`ShuffledRows`, mapped": in_order(shuffled()),
        "the same, as `fit` takes it": endless(as_in_fit),
    }
    if measure.require_peers(tensorflow="tensorflow")["tensorflow"]:
        found["tf.data"] = endless(in_tf_data(shuffled))
        found["tf.data, masked by `mask_dataset`"] = endless(in_tf_data(shuffled, masking))
    if measure.require_peers(grain="grain")["grain"]:
        found["Grain"] = in_order(in_grain(rows))
        found["Grain, masked by `mask_dataset`"] = in_order(in_grain(rows, masking))
    return found


def endless(dataset_of_epoch):
    batches = itertools.chain.from_iterable(dataset_of_epoch() for _ in itertools.count())
    return lambda: next(batches)


def in_tf_data(shuffled, masking=None):
    import tensorflow as tf

    from keras_dynmask import mask_dataset

    batches = shuffled()

    def rows_of(index):
        batch = tf.numpy_function(batches.__getitem__, [index], tf.int32)
        return tf.ensure_shape(batch, (BATCH, LENGTH))

    dataset = tf.data.Dataset.range(len(batches)).map(rows_of)
    dataset = dataset if masking is None else mask_dataset(dataset, masking)
    return lambda: dataset.prefetch(2)


def in_grain(rows, masking=None):
    import grain

    from keras_dynmask import mask_dataset

    dataset = grain.MapDataset.source(rows).seed(0).shuffle().batch(BATCH)
    return dataset if masking is None else mask_dataset(dataset, masking)


def backend():
    import keras

    return keras.backend.backend()


# Memory


def print_memory(path, size):
    table = []
    for name in READERS:
        found = measure.in_fresh_process(__file__, "--child", "read", name, path)
        table.append({f"{size} MiB read once, batch by batch": name, **found})
    print(f"{measure.table(table)}\n")


def memory_to_read(name, path):
    """MiB by which a process grows. What is mapped from a file the system may take back."""
    from keras_dynmask import training

    before = resident()
    rows = READERS[name](path)
    batches = training.ShuffledRows(rows, BATCH, seed=0)
    for index in range(len(batches)):
        batches[index]
    now = resident()
    return {
        "own MiB": now["RssAnon"] - before["RssAnon"],
        "mapped MiB": now["RssFile"] - before["RssFile"],
    }


def resident():
    with open("/proc/self/status") as file:
        found = dict(line.split(":") for line in file)
    return {name: int(found[name].split()[0]) / 2**10 for name in ("RssAnon", "RssFile")}


def read_mapped(path):
    from keras_dynmask import text

    return text.read_rows(path, LENGTH, VOCABULARY)


def read_into_memory(path):
    import numpy as np

    return np.load(path)


READERS = {"`read_rows`, mapped": read_mapped, "`np.load`, an array": read_into_memory}


# The first step


def print_first_step(rounds):
    started = [
        measure.in_fresh_process(__file__, "--child", "first", time.time()) for _ in range(rounds)
    ]
    row = {name: measure.median([each[name] for each in started]) for name in started[0]}
    print(f"Medians of {rounds} fresh starts of the default `pretrain`:\n\n{measure.table([row])}")


def first_step(process_began):
    """Seconds to the end of the first step, of the process and of `fit`."""
    import keras

    from keras_dynmask import MaskedLanguageModel, training

    found = {}

    class First(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            found["s from `fit` to the first step"] = time.time() - self.began
            found["s from the start"] = time.time() - float(process_began)
            found["CPU s"] = time.process_time()
            raise Done

    def fit(model, *data, callbacks, **named):
        first = First()
        first.began = time.time()
        return whole_fit(model, *data, callbacks=[first], **named)

    whole_fit, MaskedLanguageModel.fit = MaskedLanguageModel.fit, fit
    with tempfile.TemporaryDirectory() as folder:
        try:
            training.train(training.Recipe(), pathlib.Path(folder) / "run")
        except Done:
            return found


class Done(Exception):
    """The first step is taken."""


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.exit(main())
