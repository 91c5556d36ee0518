"""Long sequences: what length costs, and whether what lies far away is found.

    python benchmarks/long_sequences.py --cost      (five minutes on two cores)
    python benchmarks/long_sequences.py --recall    (ten minutes a seed; --short: two)

`--cost` takes a training step of a small model from length 128 to 8,192, standard and visible
only, and masking alone to 131,072, at the same number of tokens per batch: CPU seconds on
TensorFlow under XLA, lengths in turn; and the memory that XLA plans for with Keras on JAX. It
writes `benchmarks/results/long_sequences.csv` and `docs/cost_against_length.png`.

`--recall` hides a symbol, the needle, in filler of other ids; the last eight tokens of the row
repeat it, and are masked. So the model answers what stands up to 4,096 tokens before: chance is
1 in 32. No weight of the encoder depends on the length, so it learns what to look for in short
rows, and to find it among more and more filler in longer ones. Judged on fresh rows of 4,224
tokens, the needle at four ranges of distance. It writes `benchmarks/results/recall.csv`, where
rows of other seeds stay as they are, and `docs/recall.png`.
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
from measure import in_fresh_process, in_turn, median, median_ratio, place, read, table, write

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"

# Of --cost.
STEP_LENGTHS = (128, 512, 1024, 2048, 4096, 8192)
MASKING_LENGTHS = (128, 512, 1024, 4096, 16_384, 65_536, 131_072)
STEP_TOKENS, MASKING_TOKENS = 8192, 131_072  # of a batch, whatever the length
VOCABULARY, MASK = 1000, 1  # small: the logits cost the same at any length
ARMS = {"standard": False, "visible only": True}
SETTINGS = {
    "tokens": lambda length: {},
    "tokens, fixed size": lambda length: {"mask_selection_length": int(0.15 * length)},
    "words": lambda length: {"continuation_token_ids": range(800, VOCABULARY)},
}

# Of --recall.
FILLERS, SYMBOLS, ANSWERS = 32, 32, 8
FARTHEST = 4096
BUCKETS = (0, 512, 1024, 2048, FARTHEST)
STAGES = {128: (32, 200), 512: (16, 100), 2048: (4, 100), 4224: (2, 100)}  # length: rows, steps
SHORT_STAGES = {128: (32, 200), 512: (16, 50)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--cost", action="store_true", help="seconds and memory against length")
    mode.add_argument("--recall", action="store_true", help="find a needle 4,096 tokens before")
    mode.add_argument("--inside", choices=INSIDE, help=argparse.SUPPRESS)  # a process of its own
    parser.add_argument("--short", action="store_true", help="--recall at length 512")
    parser.add_argument("--rounds", type=int, default=5, help="of the timing (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of --recall (0)")
    arguments = parser.parse_args()
    if arguments.inside:
        print(json.dumps(INSIDE[arguments.inside](arguments.rounds)))
    elif arguments.cost:
        cost(arguments.rounds)
    else:
        recall(SHORT_STAGES if arguments.short else STAGES, arguments.seeds)


# What length costs.


def cost(rounds):
    def inside(what, backend):
        options = ("--inside", what, "--rounds", rounds)
        return in_fresh_process(__file__, *options, KERAS_BACKEND=backend)

    rows = []
    for part, tokens in {"step": STEP_TOKENS, "masking": MASKING_TOKENS}.items():
        seconds, planned = (inside(f"{part}_{what}", backend) for what, backend in MEASURES.items())
        for name, of_lengths in seconds.items():
            for length, found in of_lengths.items():
                bytes_, at_1024 = planned[name][length], planned[name]["1024"]
                rows.append(
                    {
                        "part": part,
                        "of": name,
                        "length": int(length),
                        "rows": tokens // int(length),
                        "CPU ms for 1,000 tokens": 1e6 * median(found) / tokens,
                        "times that at 1,024": median_ratio(found, of_lengths["1024"]),
                        "MiB": bytes_ / 2**20,
                        "KiB per token": bytes_ / 2**10 / tokens,
                        "memory, times that at 1,024": bytes_ / at_1024,
                    }
                )
    print(f"{place('jax')}; medians of {rounds} rounds\n")
    print(table(rows))
    masking = [row for row in rows if row["part"] == "masking"]
    for what in ("times that at 1,024", "memory, times that at 1,024"):
        print(f"masking, {what}: at most {max(row[what] for row in masking):.2f}")
    RESULTS.mkdir(exist_ok=True)
    write(RESULTS / "long_sequences.csv", [{**row, "place": place("jax")} for row in rows])
    draw_cost(rows, DOCS / "cost_against_length.png")


def ids_of(length, tokens):
    shape = (tokens // length, length)
    return np.random.default_rng(0).integers(2, VOCABULARY, shape).astype("int32")


def step(length, visible_only):
    """A model without dropout, and a batch of ids."""
    import keras

    from keras_dynmask import DynamicMasking, MaskedLanguageModel, TransformerEncoder

    keras.utils.set_random_seed(0)
    layers = 2 - visible_only  # the decoder is a layer, too
    encoder = TransformerEncoder(VOCABULARY, layers, 2, 128, 256, dropout=0.0)
    masking = DynamicMasking(
        VOCABULARY, 0.5, MASK, mask_token_rate=1.0, random_token_rate=0.0, seed=0
    )
    model = MaskedLanguageModel(encoder, masking, visible_only=visible_only)
    return model, ids_of(length, STEP_TOKENS)


def step_seconds(rounds):
    contenders = {}
    for name, visible_only in ARMS.items():
        for length in STEP_LENGTHS:
            model, ids = step(length, visible_only)
            model.compile("adam", jit_compile=True)
            contenders[name, length] = lambda model=model, ids=ids: model.train_on_batch(ids)
    return by_name(in_turn(contenders, rounds, time.process_time, at_least=0.0))


def step_bytes(_):
    from visible_only import compiled_step

    return {
        name: {
            length: compiled_step(*step(length, visible_only)).memory_analysis().temp_size_in_bytes
            for length in STEP_LENGTHS
        }
        for name, visible_only in ARMS.items()
    }


def masking(name, length):
    """A function of ids and step."""
    from keras_dynmask import DynamicMasking

    layer = DynamicMasking(VOCABULARY, 0.15, MASK, seed=0, **SETTINGS[name](length))
    return lambda ids, step: layer.mask({"token_ids": ids}, step)


def masking_seconds(rounds):
    import tensorflow as tf

    contenders = {}
    for name in SETTINGS:
        for length in MASKING_LENGTHS:
            program = tf.function(masking(name, length), jit_compile=True)
            inputs = tf.constant(ids_of(length, MASKING_TOKENS)), tf.constant(0)
            contenders[name, length] = lambda program=program, inputs=inputs: program(*inputs)
    return by_name(in_turn(contenders, rounds, time.process_time))


def masking_bytes(_):
    import jax

    return {
        name: {
            length: jax.jit(masking(name, length))
            .lower(ids_of(length, MASKING_TOKENS), 0)
            .compile()
            .memory_analysis()
            .temp_size_in_bytes
            for length in MASKING_LENGTHS
        }
        for name in SETTINGS
    }


def by_name(seconds):
    found = {name: {} for name, _ in seconds}
    for (name, length), each in seconds.items():
        found[name][length] = each
    return found


MEASURES = {"seconds": "tensorflow", "bytes": "jax"}
INSIDE = {
    each.__name__: each for each in (step_seconds, step_bytes, masking_seconds, masking_bytes)
}


TITLES = {
    "CPU ms for 1,000 tokens": "CPU ms for 1,000 tokens",
    "KiB per token": "memory planned, KiB per token",
}


def draw_cost(rows, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, what in zip(panels, TITLES, strict=True):
        for part, style in {"step": "o-", "masking": "s--"}.items():
            theirs = [row for row in rows if row["part"] == part]
            for name in dict.fromkeys(row["of"] for row in theirs):
                line = [(row["length"], row[what]) for row in theirs if row["of"] == name]
                label = f"training step, {name}" if part == "step" else f"masking alone, {name}"
                axes.plot(*zip(*line, strict=True), style, markersize=4, label=label)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        lengths = (128, 512, 2048, 8192, 32_768, 131_072)
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axes.set(xlabel="length", title=TITLES[what])
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=150)


# Whether what lies far away is found.


def recall(stages, seeds):
    path, rows = RESULTS / "recall.csv", []
    for seed in seeds:
        rows += [{**row, "seed": seed, "place": place()} for row in learn(stages, seed)]
    print(f"{place()}; {steps_of(stages)}\n")
    print(table([{name: row[name] for name in row if name != "place"} for row in rows]))
    if stages is STAGES:
        RESULTS.mkdir(exist_ok=True)
        others = [row for row in read(path) if row["seed"] not in seeds] if path.exists() else []
        rows = sorted(others + rows, key=lambda row: row["seed"])
        write(path, rows)
        draw_recall(rows, DOCS / "recall.png")


def learn(stages, seed):
    """How well a model finds the needle, after its first stage and after its last."""
    import keras

    from keras_dynmask import DynamicMasking, MaskedLanguageModel, TransformerEncoder

    vocabulary = 2 + FILLERS + SYMBOLS  # padding and mask before them
    keras.utils.set_random_seed(seed)
    # The slowest pair of the rotary positions turns by a third of a degree in 4,096 tokens.
    encoder = TransformerEncoder(vocabulary, 2, 1, 64, 128, dropout=0.0, rotary_base=1e6)
    masking = DynamicMasking(
        vocabulary, 1.0, MASK, ANSWERS, mask_token_rate=1.0, random_token_rate=0.0, seed=seed
    )
    model = MaskedLanguageModel(encoder, masking)
    steps = sum(steps for _, steps in stages.values())
    rate = keras.optimizers.schedules.CosineDecay(3e-3, steps, alpha=0.1)
    model.compile(keras.optimizers.Adam(rate, global_clipnorm=1.0), jit_compile=True)

    random, rows, began, trained = np.random.default_rng(seed), [], time.process_time(), 0.0
    *_, longest = stages
    for length, (batch, steps) in stages.items():
        fit = model.fit(examples(random, batch * steps, length), batch_size=batch, verbose=0)
        trained += time.process_time() - began
        print(
            f"seed {seed}, length {length}: {steps} steps of {batch} rows, accuracy in training "
            f"{fit.history['masked_accuracy'][0]:.3f}; {trained:.0f} CPU s of training so far",
            file=sys.stderr,
            flush=True,
        )
        if length in (min(stages), longest):
            rows += judge(model, length, longest, trained)
        began = time.process_time()
    return rows


def examples(random, rows, length, nearest=1, farthest=FARTHEST):
    """Rows as `fit` takes them: only the answers may be selected.

    The needle stands at a random distance before the first answer.
    """
    first = length - ANSWERS
    ids = random.integers(2, 2 + FILLERS, (rows, length), dtype="int32")
    symbols = random.integers(2 + FILLERS, 2 + FILLERS + SYMBOLS, rows, dtype="int32")
    distances = random.integers(nearest, min(farthest, first), rows, endpoint=True)
    ids[np.arange(rows), first - distances] = symbols
    ids[:, first:] = symbols[:, None]
    return {"token_ids": ids, "selectable": np.tile(np.arange(length) >= first, (rows, 1))}


def judge(model, trained_to, length, seconds, rows=64):
    """Accuracy on fresh rows, for each range of distances."""
    random, found = np.random.default_rng(2**32), []
    for near, far in itertools.pairwise(BUCKETS):
        if near < length - ANSWERS:
            fresh = examples(random, rows, length, near + 1, far)
            scores = model.evaluate(fresh, batch_size=2, verbose=0, return_dict=True)
            found.append(
                {
                    "trained to length": trained_to,
                    "CPU s of training": round(seconds),
                    "judged at length": length,
                    "distance": f"{near + 1} to {min(far, length - ANSWERS)}",
                    "rows": rows,
                    "accuracy": scores["masked_accuracy"],
                }
            )
    return found


def steps_of(stages):
    return ", ".join(f"{n} steps of {rows} x {length}" for length, (rows, n) in stages.items())


def draw_recall(rows, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    seeds = sorted({row["seed"] for row in rows})
    distances = list(dict.fromkeys(row["distance"] for row in rows))
    for trained_to in dict.fromkeys(row["trained to length"] for row in rows):
        theirs = [row for row in rows if row["trained to length"] == trained_to]
        percent = np.array(
            [[100 * row["accuracy"] for row in theirs if row["seed"] == seed] for seed in seeds]
        )
        (line,) = axes.plot(
            distances, percent.mean(axis=0), "o-", label=f"trained to length {trained_to:,}"
        )
        bounds = percent.min(axis=0), percent.max(axis=0)
        axes.fill_between(distances, *bounds, color=line.get_color(), alpha=0.2)
    axes.axhline(100 / SYMBOLS, color="grey", linestyle=":", label="chance")
    axes.set(xlabel="distance of the needle (tokens)", ylabel="answers right (%)", ylim=(0, 104))
    axes.set_title(f"What stands far away is found, in rows of {rows[0]['judged at length']:,}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
