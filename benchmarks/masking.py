"""Masking alone: ours beside KerasHub's generator, Hugging Face's collator, ELECTRA's function
and NumPy.

    python benchmarks/masking.py            (about ten minutes on two cores)
    python benchmarks/masking.py --short    (one shape, about a minute)

Four places, each against peers that stand there: in tf.data, as a compiled function, on JAX,
and on the host. Prints milliseconds a batch and how many times faster than the peer, the median
of rounds in turn, and writes `benchmarks/results/masking.csv`. `pass-through` is the same harness
around nothing. Peers: `pip install keras-hub transformers torch jax`.
"""

import argparse
import itertools
import json
import os
import pathlib
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from measure import in_fresh_process, in_turn, median, median_ratio, place, require_peers, write
from measure import table as markdown

SHAPES = ((32, 128), (256, 128), (32, 512), (8, 4096), (1, 32768))
VOCABULARY, RATE, MASK, SPECIAL = 30_522, 0.15, 4, [0, 1, 2, 3, 4]
CONTINUING = range(22_522, VOCABULARY)  # a quarter of the pieces, as in BERT's own vocabulary
RESULTS = pathlib.Path(__file__).parent / "results"

PLACES = ("data", "function", "host", "jax")
EXACT = {}
INDEPENDENT = {"exact_count": False}
WORDS = {"continuation_token_ids": CONTINUING}
SPANS = {"mean_span_length": 3.0}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="one shape, fewer rounds")
    parser.add_argument("--rounds", type=int, default=9, help="(%(default)s)")
    parser.add_argument("--output", default=RESULTS / "masking.csv", help="CSV (%(default)s)")
    parser.add_argument("--where", choices=PLACES, nargs="+", default=PLACES, metavar="PLACE")
    parser.add_argument("--jax", type=int, nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.jax:
        print(json.dumps(on_jax(tuple(arguments.jax[:2]), arguments.jax[2])))
        return
    print(place("keras-hub", "transformers", "torch", "jax"), "\n")
    peers = require_peers(keras_hub="keras-hub", transformers="transformers torch", jax="jax")
    rows = []
    for shape in SHAPES[1:2] if arguments.short else SHAPES:
        rounds = 5 if arguments.short else arguments.rounds
        for name in PLACES[:3]:
            if name in arguments.where:
                measure = {"data": in_tf_data, "function": as_a_function, "host": on_the_host}
                rows += measure[name](shape, rounds, peers)
        if peers["jax"] and "jax" in arguments.where:
            program = (__file__, "--jax", *shape, rounds)
            rows += in_fresh_process(*program, KERAS_BACKEND="jax")
    for where in dict.fromkeys(row["where"] for row in rows):
        print(f"\n{where}\n\n{markdown([row for row in rows if row['where'] == where])}")
    if not arguments.short:
        write(arguments.output, rows)


def batch_of(shape):
    """Token ids with a special one at each end, a quarter of the rest continuing a word."""
    ids = np.random.default_rng(0).integers(len(SPECIAL), VOCABULARY, shape).astype("int32")
    ids[:, 0], ids[:, -1] = 2, 3
    return ids


def target_size(shape):
    return -(-shape[1] * 15 // 100)


def ours(shape, fixed=False, **settings):
    from keras_dynmask import DynamicMasking

    size = 2 * target_size(shape) if "mean_span_length" in settings else target_size(shape) + 8
    return DynamicMasking(
        VOCABULARY,
        RATE,
        MASK,
        mask_selection_length=(size if settings else target_size(shape)) if fixed else None,
        unselectable_token_ids=SPECIAL,
        seed=0,
        **settings,
    )


def strategies(shape):
    """What ours is asked for. The first gives what KerasHub's generator gives."""
    return {
        "ours, exact, fixed size": ours(shape, fixed=True),
        "ours, exact, dense": ours(shape),
        "ours, independent, dense": ours(shape, **INDEPENDENT),
        "ours, words, fixed size": ours(shape, fixed=True, **WORDS),
        "ours, words, dense": ours(shape, **WORDS),
        "ours, spans, fixed size": ours(shape, fixed=True, **SPANS),
        "ours, spans, dense": ours(shape, **SPANS),
    }


def generator(shape):
    """KerasHub's: exact counts, targets of fixed size."""
    import keras_hub

    return keras_hub.layers.MaskedLMMaskGenerator(
        VOCABULARY,
        RATE,
        MASK,
        mask_selection_length=target_size(shape),
        unselectable_token_ids=SPECIAL,
    )


def electra(ids):
    """ELECTRA's masking (Clark et al. 2020): positions drawn with replacement, so a token
    drawn twice counts twice; 85 % of them hidden, the rest kept; no random tokens."""
    import tensorflow as tf

    batch, length = ids.shape
    size = target_size((batch, length))
    allowed = ~tf.reduce_any(ids[..., None] == tf.constant(SPECIAL), axis=-1)
    number = tf.reduce_sum(tf.cast(allowed, tf.float32), axis=1, keepdims=True)
    number = tf.cast(tf.round(number * RATE), tf.int32)
    logits = tf.where(allowed, 0.0, -1e9)
    drawn = tf.random.categorical(logits, size, dtype=tf.int32)
    weights = tf.cast(tf.range(size) < tf.minimum(number, size), tf.float32)
    drawn = drawn * tf.cast(weights, tf.int32)
    targets = tf.gather(ids, drawn, batch_dims=1)
    hidden = (tf.random.uniform((batch, size)) < 0.85) & (weights > 0)
    rows = tf.broadcast_to(tf.range(batch)[:, None], (batch, size))
    where = tf.stack([rows, tf.where(hidden, drawn, length)], axis=-1)  # one column more
    hits = tf.scatter_nd(where, tf.ones((batch, size), tf.int32), (batch, length + 1))
    shown = tf.where(hits[:, :-1] > 0, MASK, ids)
    return {
        "token_ids": shown,
        "mask_positions": drawn,
        "mask_ids": targets,
        "mask_weights": weights,
    }


WARM_UP, BATCHES = 50, 200


def in_tf_data(shape, rounds, peers):
    """Batches through `Dataset.map`, with what parallel calls bring.

    Each round in a pipeline of its own that ends with the last batch: one that waits for
    its turn would go on filling its buffer while the next is timed.
    """
    import tensorflow as tf

    def stream(function):
        stored = tf.data.Dataset.from_tensors(batch_of(shape)).repeat(WARM_UP + BATCHES)
        masked = stored.enumerate().map(function, num_parallel_calls=tf.data.AUTOTUNE)
        return masked.prefetch(tf.data.AUTOTUNE)

    def masked_by(masking):
        return stream(lambda step, ids: masking(ids, training=True, step=step))

    contenders = {name: masked_by(masking) for name, masking in strategies(shape).items()}
    contenders["pass-through"] = stream(lambda step, ids: ids)
    contenders["ELECTRA's function"] = stream(lambda step, ids: electra(ids))
    if peers["keras_hub"]:
        hub = generator(shape)
        contenders["KerasHub"] = stream(lambda step, ids: hub(ids))
    seconds = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, masked in contenders.items():
            seconds[name].append(seconds_a_batch(masked))
    return rows_of("tf.data", shape, seconds)


def seconds_a_batch(masked):
    batches = iter(masked)
    for _ in itertools.islice(batches, WARM_UP):
        pass
    began = time.perf_counter()
    for _ in batches:
        pass
    return (time.perf_counter() - began) / BATCHES


def as_a_function(shape, rounds, peers):
    """Calls of a `tf.function`, one after the other."""
    import tensorflow as tf

    ids, step = tf.constant(batch_of(shape)), tf.constant(3)

    def call(function):
        return lambda: function(ids, step)

    contenders = {
        name: call(tf.function(masking_call(masking), jit_compile=True))
        for name, masking in strategies(shape).items()
    }
    in_xla = tf.function(lambda ids, step: electra(ids), jit_compile=True)
    contenders["ELECTRA's function, XLA"] = call(in_xla)
    contenders["pass-through"] = call(
        tf.function(lambda ids, step: {n: ids + n for n in range(4)}, jit_compile=True)
    )
    if peers["keras_hub"]:
        hub = generator(shape)  # it does not compile under XLA
        contenders["KerasHub"] = call(tf.function(lambda ids, step: hub(ids)))
    return rows_of("compiled function, TensorFlow", shape, in_turn(contenders, rounds))


def masking_call(masking):
    return lambda ids, step: masking(ids, training=True, step=step)


def on_jax(shape, rounds):
    import jax

    ids = jax.numpy.asarray(batch_of(shape))

    def call(masking):
        mask = jax.jit(lambda ids, step: masking.mask({"token_ids": ids}, step=step))
        return lambda: jax.block_until_ready(mask(ids, np.int32(3)))

    contenders = {name: call(masking) for name, masking in strategies(shape).items()}
    contenders["NumPy"] = lambda: in_numpy(batch_of_cached(shape), np.random.default_rng(0))
    return rows_of("compiled function, JAX", shape, in_turn(contenders, rounds))


_BATCHES = {}


def batch_of_cached(shape):
    return _BATCHES.setdefault(shape, batch_of(shape))


def in_numpy(ids, random):
    """The usual twenty lines: exact counts by sorting, dense targets."""
    allowed = ~np.isin(ids, SPECIAL)
    keys = np.where(allowed, random.random(ids.shape, "float32"), 2.0)
    rank = keys.argsort(axis=1).argsort(axis=1)
    selected = rank < np.round(allowed.sum(axis=1, keepdims=True) * RATE)
    role = random.random(ids.shape, "float32")
    swaps = random.integers(len(SPECIAL), VOCABULARY, ids.shape, "int32")
    shown = np.where(selected & (role < 0.8), MASK, ids)
    shown = np.where(selected & (role >= 0.8) & (role < 0.9), swaps, shown)
    return shown, ids, selected.astype("float32")


def on_the_host(shape, rounds, peers):
    """Batches in Python: what a PyTorch `DataLoader`'s worker or Grain does."""
    ids = batch_of_cached(shape)
    exact, independent, words = (ours(shape, **each) for each in (EXACT, INDEPENDENT, WORDS))
    contenders = {
        "ours, exact, dense": lambda: exact.mask_arrays(ids),
        "ours, independent, dense": lambda: independent.mask_arrays(ids),
        "ours, words, dense": lambda: words.mask_arrays(ids),
        "NumPy": lambda: in_numpy(ids, np.random.default_rng(0)),
    }
    if peers["transformers"]:
        contenders |= collators(ids)
    return rows_of("host (NumPy, PyTorch)", shape, in_turn(contenders, rounds))


def collators(ids):
    """Hugging Face's, from tensors, and from lists with the mask of special tokens that its
    tokenizers give; the latter also for whole words, told by offsets."""
    import tokenizers
    import torch
    import transformers

    special = {
        f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")
    }
    pieces = [*special.values(), *map(str, range(len(special), VOCABULARY))]
    model = tokenizers.models.WordLevel({piece: id_ for id_, piece in enumerate(pieces)}, "[UNK]")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(model),
        **special,
    )
    masks = np.isin(ids, SPECIAL).astype(int).tolist()
    lists = [
        {"input_ids": row, "special_tokens_mask": mask}
        for row, mask in zip(ids.tolist(), masks, strict=True)
    ]
    offsets = [offsets_of(row) for row in ids]
    with_offsets = [
        {**row, "offset_mapping": each} for row, each in zip(lists, offsets, strict=True)
    ]
    tensors = list(torch.tensor(ids, dtype=torch.long))
    tokens = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=RATE)
    words = transformers.DataCollatorForLanguageModeling(
        tokenizer, mlm_probability=RATE, whole_word_mask=True
    )
    return {
        "Hugging Face, from tensors": lambda: tokens(tensors),
        "Hugging Face, from lists": lambda: tokens([dict(row) for row in lists]),
        "Hugging Face, words": lambda: words([dict(row) for row in with_offsets]),
    }


def offsets_of(row):
    """Where each piece would stand in a text: pieces of a word touch."""
    offsets, end = [], 0
    for token in row:
        start = end if token in CONTINUING else end + 1
        end = start + 3
        offsets.append((start, end))
    return offsets


def rows_of(where, shape, seconds):
    peers = [name for name in seconds if "ours" not in name and "pass" not in name]
    return [
        {
            "where": where,
            "shape": "x".join(map(str, shape)),
            "masking": name,
            "ms": round(1e3 * median(each), 4),
            **{f"x {peer}": round(median_ratio(seconds[peer], each), 2) for peer in peers},
        }
        for name, each in seconds.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
