"""Pretrain on JAX in several processes, each of which feeds its share of every batch.

    python examples/pretrain_on_two_processes.py --output run

starts two processes on this machine, which talk over loopback. On machines of their own, start
one on each, with the same arguments and an `--output` that all of them see, and tell each where
the first one listens, how many they are, and which of them it is:

    KERAS_DISTRIBUTION_JOB_ADDRESSES=10.0.0.1:1234 KERAS_DISTRIBUTION_NUM_PROCESSES=2 \\
    KERAS_DISTRIBUTION_PROCESS_ID=0 python examples/pretrain_on_two_processes.py --output run

Masks and dropout depend on a row's place in the whole batch, so the run equals that of
`--processes 1`: masks bit for bit, losses within the rounding of float sums. Process 0 alone
prints and writes: `history.csv`, `loss.png`, and after each epoch `checkpoint.keras`, from which
the same command goes on after an interruption. The last one is the trained model.
"""

import argparse
import functools
import json
import os
import pathlib
import sys

os.environ["KERAS_BACKEND"] = "jax"  # the backend whose `fit` goes beyond one process
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import keras
import loopback
import numpy as np
from jax.experimental import multihost_utils

from keras_dynmask import text, training
from keras_dynmask.watching import Progress


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, required=True, help="directory to write")
    parser.add_argument("--processes", type=int, default=2, help="to start here (%(default)s)")
    parser.add_argument("--recipe", default="{}", help='JSON: {"epochs": 3, "corpus": ["*.txt"]}')
    arguments = parser.parse_args()
    if "KERAS_DISTRIBUTION_PROCESS_ID" in os.environ:
        join_the_others()
    elif arguments.processes > 1:
        sys.exit(start_here(arguments.processes))
    train(training.Recipe(**json.loads(arguments.recipe)), arguments.output)


def start_here(processes):
    """Runs this very command once for each process."""
    (address,) = loopback.free_addresses(1)
    common = {"JOB_ADDRESSES": address, "NUM_PROCESSES": processes}
    settings = [common | {"PROCESS_ID": process} for process in range(processes)]
    return loopback.run_here(
        [{f"KERAS_DISTRIBUTION_{k}": str(v) for k, v in each.items()} for each in settings]
    )


def join_the_others():
    """Before any variable is made: from here on every process makes the same ones."""
    keras.distribution.initialize()  # reads KERAS_DISTRIBUTION_*
    data_parallel = keras.distribution.DataParallel(auto_shard_dataset=False)
    keras.distribution.set_distribution(data_parallel)


class Share(training.ShuffledRows):
    """What this process feeds of each batch: JAX puts the shares together, in their order."""

    def __getitem__(self, index):
        return np.split(super().__getitem__(index), jax.process_count())[jax.process_index()]


def share_of_held_out(rows, batch_size):
    """The same for rows in an array, filled up with rows of padding: batches must be full, and
    where nothing is selected no mean changes."""
    rows = np.pad(rows, ((0, -len(rows) % batch_size), (0, 0)))
    batches = rows.reshape(-1, jax.process_count(), batch_size // jax.process_count(), len(rows[0]))
    return batches[:, jax.process_index()].reshape(-1, len(rows[0]))


class Checkpoint(training.Checkpoint):
    """Process 0 saves on its own. Keras makes variables as it does so, and those of a
    distribution would wait until every process makes them."""

    def on_epoch_end(self, epoch, logs=None):
        distribution = keras.distribution.distribution()
        keras.distribution.set_distribution(None)
        try:
            super().on_epoch_end(epoch, logs)
        finally:
            keras.distribution.set_distribution(distribution)


def train(recipe, output):
    if recipe.batch_size % jax.device_count():
        sys.exit(f"`batch_size` must be a multiple of the {jax.device_count()} devices.")
    if recipe.masking == "static":
        sys.exit("`masking` must be dynamic or adaptive: static masks need no such run.")

    # Every process reads the corpus and learns the tokenizer: all learn the same.
    documents, held_out = text.split_documents(recipe.read_corpus(), recipe.validation_share)
    tokenizer = text.train_tokenizer(documents, recipe.vocabulary_size)
    rows = text.pack(tokenizer, documents, recipe.length)
    held_out_rows = text.pack(tokenizer, held_out, recipe.length)
    steps = len(rows) // recipe.batch_size

    epoch, history, checkpoint = 0, [], output / "checkpoint.keras"
    if checkpoint.exists():
        model = training.read_model(checkpoint)
        epoch = int(model.optimizer.iterations) // steps
        history = training.read_history(output / "history.csv", epoch, model)
    else:
        model = recipe.build_model(tokenizer, recipe.epochs * steps)
    multihost_utils.assert_equal(epoch, "`--output` must be one directory for all processes.")

    callbacks = []
    if jax.process_index() == 0:
        output.mkdir(parents=True, exist_ok=True)
        print(f"{jax.process_count()} processes with {jax.device_count()} devices in all")
        unigram_loss = text.unigram_loss(
            rows, held_out_rows, tokenizer.get_vocab_size(), text.special_ids(tokenizer)
        )
        announce = functools.partial(print, flush=True)
        callbacks = [
            Checkpoint(output, history),
            Progress(announce, unigram_loss, recipe.batch_size * recipe.length, live=False),
        ]
    model.fit(
        Share(rows, recipe.batch_size, recipe.seed, epoch),
        validation_data=(share_of_held_out(held_out_rows, recipe.batch_size),),
        validation_batch_size=recipe.batch_size // jax.process_count(),
        epochs=recipe.epochs,
        initial_epoch=epoch,
        callbacks=callbacks,
        shuffle=False,
        verbose=0,
    )
    if jax.process_index() == 0:
        training.draw_losses(history, unigram_loss, output / "loss.png")


if __name__ == "__main__":
    main()
