"""A model and rows that train in seconds, for two processes that each feed a half of a batch."""

import hashlib
import sys

import keras
import numpy as np

from keras_dynmask import DynamicMasking, MaskedLanguageModel, TransformerEncoder

VOCABULARY, STEPS, ROWS, LENGTH = 100, 10, 16, 24


def build_model():
    """The same in each process, and the same seed: masks differ by the process, not by the seed."""
    keras.utils.set_random_seed(0)
    encoder = TransformerEncoder(VOCABULARY, 1, 2, 16, 32, dropout=0.0)
    return MaskedLanguageModel(encoder, DynamicMasking(VOCABULARY, 0.15, mask_token_id=1, seed=0))


def halves(process):
    """The rows that a process feeds, `[steps, rows, length]`. Both have the same first batch;
    later on one has short rows, in which fewer tokens are selected."""
    rows = np.random.default_rng(0).integers(2, 30, (STEPS, 2, ROWS, LENGTH), "int32")
    rows[0, 1] = rows[0, 0]
    rows[1:, 1, :, LENGTH // 2 :] = 0  # padding
    return rows[:, process]


def report(process, losses, first_masks, before, after, output):
    """A line to compare with the other process's; and the weights of process 0, in a file."""
    sys.stdout.write(  # in one piece: two write at once
        f"process {process}: loss {losses[0]:.3f} to {losses[-1]:.3f}, masks of the first batch "
        f"{_digest([first_masks])}, weights {_digest(after)}\n"
    )
    if output and process == 0:
        np.savez(output, *before, *after)


def _digest(arrays):
    return hashlib.md5(b"".join(np.asarray(array).tobytes() for array in arrays)).hexdigest()[:8]
