"""What masking costs inside a training step: its own CPU time, and the step with and without it.

    python benchmarks/masking_in_the_step.py            (five minutes on two cores)
    python benchmarks/masking_in_the_step.py --short    (no whole steps: a minute)

The layer's own time is that of many masks drawn in one compiled loop, so no call from Python is
in it; of the loop around nothing it is told as `floor`. The step is that of an encoder of 4 layers,
256 wide, on 32 x 128 tokens: masked in the step, and masked beforehand. A difference of whole
steps under 3 % can't be told from noise.
"""

import argparse
import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from measure import in_fresh_process, in_turn, median, place, table, write

BATCH, LENGTH, VOCABULARY, MASK = 32, 128, 30_522, 4
DRAWS = 200
RESULTS = pathlib.Path(__file__).parent / "results"
SETTINGS = {
    "exact": {},
    "exact, fixed size": {"mask_selection_length": 20},
    "independent": {"exact_count": False},
    "words": {"continuation_token_ids": range(22_522, VOCABULARY)},
    "spans": {"mean_span_length": 3.0},
}
WAYS = {"graph": "tensorflow", "XLA": "tensorflow", "JAX": "jax"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="the layer's own time only")
    parser.add_argument("--rounds", type=int, default=7, help="(%(default)s)")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        rows = own_time(arguments.way, arguments.rounds)
        steps = {} if arguments.short else whole_step(arguments.way, arguments.rounds)
        print(json.dumps([rows, steps]))
        return
    print(place("jax"), "\n")
    own, steps = [], []
    for way, backend in WAYS.items():
        options = ["--way", way, "--rounds", arguments.rounds, *["--short"] * arguments.short]
        rows, step = in_fresh_process(__file__, *options, KERAS_BACKEND=backend)
        own += rows
        steps += [step] if step else []
    print(table(own))
    if steps:
        print(f"\n{table(steps)}")
        write(RESULTS / "masking_in_the_step.csv", own)
        write(RESULTS / "masking_in_the_step_whole.csv", steps)


def token_ids(rows=BATCH):
    return np.random.default_rng(0).integers(5, VOCABULARY, (rows, LENGTH)).astype("int32")


def masking(**settings):
    from keras_dynmask import DynamicMasking

    return DynamicMasking(
        VOCABULARY, 0.15, MASK, unselectable_token_ids=range(5), seed=0, **settings
    )


def own_time(way, rounds):
    """CPU milliseconds for each 4,096 tokens."""
    contenders = {"floor": loop(way, lambda ids, step: {"token_ids": ids + step})}
    for name, settings in SETTINGS.items():
        mask = masking(**settings).mask
        contenders[name] = loop(
            way, lambda ids, step, mask=mask: mask({"token_ids": ids}, step=step)
        )
    seconds = in_turn(contenders, rounds, clock=time.process_time)
    return [
        {"way": way, "masking": name, "CPU ms for 4,096 tokens": 1e3 * median(each) / DRAWS}
        for name, each in seconds.items()
    ]


def loop(way, mask):
    """A compiled function that masks many times, each at another step."""
    from keras import ops

    def draw(step, total):
        outputs = mask(ids + 0 * step, step)
        return total + sum(ops.sum(ops.cast(each, "float32")) for each in outputs.values())

    def draws():
        return ops.fori_loop(0, DRAWS, draw, ops.zeros(()))

    ids = ops.convert_to_tensor(token_ids())
    if way == "JAX":
        import jax

        compiled = jax.jit(draws)
        return lambda: compiled().block_until_ready()
    import tensorflow as tf

    return tf.function(draws, jit_compile=way == "XLA")


def whole_step(way, rounds):
    """CPU milliseconds of a training step, masked in it and masked beforehand."""
    import keras

    from keras_dynmask import MaskedLanguageModel, TransformerEncoder

    rows, steps = token_ids(BATCH * 4), 4
    layer = masking(mask_selection_length=20)
    masked = layer.mask_arrays(rows)
    labels, weights = masked.pop("mask_ids"), masked.pop("mask_weights")

    def model():
        keras.utils.set_random_seed(0)
        encoder = TransformerEncoder(VOCABULARY, 4, 4, 256, 512)
        model = MaskedLanguageModel(encoder, layer)
        model.compile("adam", jit_compile=way != "graph")
        return model

    inside, beforehand = model(), model()
    options = {"batch_size": BATCH, "verbose": 0}
    seconds = in_turn(
        {
            "masked in the step": lambda: inside.fit(rows, **options),
            "masked beforehand": lambda: beforehand.fit(
                masked, labels, sample_weight=weights, **options
            ),
        },
        rounds,
        clock=time.process_time,
    )
    pairs = zip(*seconds.values(), strict=True)
    return {
        "way": way,
        **{f"CPU ms, {name}": 1e3 * median(each) / steps for name, each in seconds.items()},
        "in the step / beforehand": round(median(a / b for a, b in pairs), 3),
    }


if __name__ == "__main__":
    main()
