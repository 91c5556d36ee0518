"""Visible only against the standard model: cost of a training step, and what is learnt for it.

    python benchmarks/visible_only.py
    python benchmarks/visible_only.py --quality --runs runs

Both models compute logits at the selected positions only, hide all that is selected, and
have the same depth: four blocks, or three over the visible tokens and one that decodes. The first
command measures memory and arithmetic as XLA counts them for Keras on JAX, and CPU seconds
of a step on TensorFlow, in a graph and under XLA, in turn; it writes
`benchmarks/results/visible_only.csv`. The second trains on the embedded corpus by the same
recipe for the same steps, and judges all arms by the same fixed masks at 15 %.
"""

import argparse
import itertools
import json
import pathlib
import statistics
import sys
import time

from measure import in_fresh_process, in_turn, median, median_ratio, place, table, write

RESULTS = pathlib.Path(__file__).parent / "results"
RATES = (0.15, 0.5)
SHAPES = {128: 16, 512: 8, 2048: 2, 8192: 1}  # length: rows
LAYERS, HEADS, HIDDEN, INTERMEDIATE, VOCABULARY = 4, 4, 128, 256, 8000

# Of --quality: what differs in the recipe, and how many times the epochs. The last arm takes
# about as many CPU seconds as the first.
ARMS = {
    "standard, .15": ({"mask_selection_rate": 0.15}, 1),
    "standard, .5": ({"mask_selection_rate": 0.5}, 1),
    "visible only, .5": ({"mask_selection_rate": 0.5, "visible_only": True}, 1),
    "visible only, .5, longer": ({"mask_selection_rate": 0.5, "visible_only": True}, 1.4),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="rate .5 at length 512, under XLA")
    parser.add_argument("--rounds", type=int, default=7, help="of the timing (%(default)s)")
    parser.add_argument("--quality", action="store_true", help="train, and compare the losses")
    parser.add_argument("--runs", type=pathlib.Path, help="where finished runs are kept")
    parser.add_argument("--seeds", type=int, default=5, help="of each arm (%(default)s)")
    parser.add_argument("--epochs", type=int, default=15, help="(%(default)s)")
    parser.add_argument("--inside", nargs="+", help=argparse.SUPPRESS)  # a process of its own
    arguments = parser.parse_args()
    if arguments.inside:
        what, *values = arguments.inside
        print(json.dumps({"cost": cost, "learn": learn}[what](*map(json.loads, values))))
    elif arguments.quality:
        if arguments.runs is None:
            parser.error("--quality needs --runs DIR")
        quality(arguments.runs, arguments.seeds, arguments.epochs)
    else:
        speed(arguments.short, arguments.rounds)


def inside(what, *values, **environment):
    values = map(json.dumps, values)
    return in_fresh_process(__file__, "--inside", what, *values, **environment)


# Cost of a step.


def speed(short, rounds):
    cases = [(512, 0.5)] if short else itertools.product(SHAPES, RATES)
    rows = []
    for length, rate in cases:
        peer, ours = (
            inside("cost", length, rate, visible, KERAS_BACKEND="jax") for visible in (False, True)
        )
        row = {
            "length": length,
            "rows": SHAPES[length],
            "rate": rate,
            "GFLOP": _pair(peer["flops"] / 1e9, ours["flops"] / 1e9),
            "fewer": peer["flops"] / ours["flops"],
            "MiB": _pair(peer["bytes"] / 2**20, ours["bytes"] / 2**20),
            "less": peer["bytes"] / ours["bytes"],
        }
        for name, jit_compile in {"graph": False, "XLA": True}.items():
            row |= {f"{name}, CPU s": "", f"{name}, faster": ""}
            if length <= 2048 and (jit_compile or not short):
                std, vis = step_seconds(length, rate, jit_compile, rounds)
                row[f"{name}, CPU s"] = _pair(median(std), median(vis))
                row[f"{name}, faster"] = median_ratio(std, vis)
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    print(f"\n{place('jax')}; medians of {rounds} rounds. Standard / visible only.\n")
    print(table(rows))
    if not short:
        RESULTS.mkdir(exist_ok=True)
        write(RESULTS / "visible_only.csv", [{**row, "place": place("jax")} for row in rows])


def _pair(standard, visible_only):
    return f"{standard:.3g} / {visible_only:.3g}"


def build(length, rate, visible_only):
    """A compiled model without dropout, and a batch of ids."""
    import keras
    import numpy as np

    from keras_dynmask import DynamicMasking, MaskedLanguageModel, TransformerEncoder

    keras.utils.set_random_seed(0)
    layers = LAYERS - visible_only
    encoder = TransformerEncoder(VOCABULARY, layers, HEADS, HIDDEN, INTERMEDIATE, dropout=0.0)
    masking = DynamicMasking(
        VOCABULARY, rate, 1, mask_token_rate=1.0, random_token_rate=0.0, seed=0
    )
    model = MaskedLanguageModel(encoder, masking, visible_only=visible_only)
    ids = np.random.default_rng(0).integers(2, VOCABULARY, (SHAPES[length], length))
    return model, ids.astype("int32")


def step_seconds(length, rate, jit_compile, rounds):
    """CPU seconds of each round on TensorFlow: of the standard model, and of visible only."""
    contenders = {}
    for visible_only in (False, True):
        model, ids = build(length, rate, visible_only)
        model.compile("adam", jit_compile=jit_compile)
        contenders[visible_only] = lambda model=model, ids=ids: model.train_on_batch(ids)
    return in_turn(contenders, rounds, time.process_time, at_least=0.0).values()


def cost(length, rate, visible_only):
    """FLOPs and bytes of temporary memory of a step, as XLA compiles it for Keras on JAX."""
    compiled = compiled_step(*build(length, rate, visible_only))
    return {
        "flops": compiled.cost_analysis()["flops"],
        "bytes": compiled.memory_analysis().temp_size_in_bytes,
    }


def compiled_step(model, ids):
    """A training step with Adam, compiled and not run."""
    import jax

    model.compile("adam")
    model.optimizer.build(model.trainable_variables)
    held = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    state = tuple([variable.value for variable in variables] for variables in held)
    return jax.jit(model.train_step).lower(state, (ids,)).compile()


# What is learnt.


def quality(runs, seeds, epochs):
    runs.mkdir(parents=True, exist_ok=True)
    found = {}
    for seed, arm in itertools.product(range(seeds), ARMS):  # arms in turn
        path = runs / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}-{epochs}.json"
        if not path.exists():
            path.write_text(json.dumps(inside("learn", arm, seed, epochs)))
        found[arm, seed] = json.loads(path.read_text())
        print(f"{arm}, seed {seed}: {found[arm, seed]}", file=sys.stderr, flush=True)

    first, *_ = ARMS
    rows = []
    for arm in ARMS:
        pairs = [(found[arm, seed], found[first, seed]) for seed in range(seeds)]
        gains = [ours["loss"] - peer["loss"] for ours, peer in pairs]
        rows.append(
            {
                "arm": arm,
                "steps": pairs[0][0]["steps"],
                "held-out loss at .15": ", ".join(f"{ours['loss']:.3f}" for ours, _ in pairs),
                "minus the first arm's": f"{statistics.mean(gains):+.3f} "
                f"({min(gains):+.3f} to {max(gains):+.3f})",
                "CPU s": ", ".join(f"{ours['seconds']:.0f}" for ours, _ in pairs),
                "times the first arm's": statistics.median(
                    ours["seconds"] / peer["seconds"] for ours, peer in pairs
                ),
            }
        )
    print(f"\n{place()}; {seeds} seeds, {epochs} epochs of the embedded corpus\n")
    print(table(rows))
    RESULTS.mkdir(exist_ok=True)
    results = [{"arm": arm, "seed": seed, **values} for (arm, seed), values in found.items()]
    write(RESULTS / "visible_only_quality.csv", results)


def learn(arm, seed, epochs):
    """The held-out loss, and the CPU seconds of all epochs (of the median one, so many times).

    Arms differ in nothing but what `ARMS` says: all hide what is selected, too.
    """
    import keras

    from keras_dynmask import DynamicMasking, MaskedLanguageModel, text
    from keras_dynmask.training import Recipe, ShuffledRows

    options, times = ARMS[arm]
    epochs = round(times * epochs)
    depth = LAYERS - options.get("visible_only", False)
    recipe = Recipe(num_layers=depth, length=128, batch_size=16, seed=seed, **options)
    parts = text.split_documents(recipe.read_corpus(), recipe.validation_share)
    tokenizer = text.train_tokenizer(parts[0], recipe.vocabulary_size)
    rows, held_out = (text.pack(tokenizer, part, recipe.length) for part in parts)
    batches = ShuffledRows(rows, recipe.batch_size, seed)

    made = recipe.build_model(tokenizer, epochs * len(batches))
    shares = {"mask_token_rate": 1.0, "random_token_rate": 0.0, "evaluation_rate": 0.15}
    masking = DynamicMasking.from_config({**made.masking.get_config(), **shares})
    model = MaskedLanguageModel(made.encoder, masking, visible_only=recipe.visible_only)
    model.compile(made.optimizer, jit_compile=True)
    ends = []
    end = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: ends.append(time.process_time()))
    model.fit(batches, epochs=epochs, callbacks=[end], verbose=0, shuffle=False)
    seconds = [after - before for before, after in itertools.pairwise(ends)]  # all but the first
    return {
        "loss": model.evaluate(held_out, verbose=0, return_dict=True)["masked_loss"],
        "steps": int(model.optimizer.iterations),
        "seconds": statistics.median(seconds) * epochs,
    }


if __name__ == "__main__":
    main()
