"""Rates and schedules: the same recipe, steps and batches, judged by the same 15 % masks.

    python benchmarks/rates_and_schedules.py --runs runs

A fixed rate of 15, 30 or 40 %, one that falls from 30 to 15 %, and one for each row between
10 and 50 %. Arms of one seed begin with the same weights, see the same batches, and are judged
after every epoch by the same held-out tokens. About two CPU minutes a run; finished runs
are not repeated. Writes `benchmarks/results/rates_and_schedules.csv`, and prints the
differences to the first arm beside the spread of the seeds.
"""

import argparse
import itertools
import os
import pathlib
import statistics

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from measure import place, read, table, write

from keras_dynmask import DynamicMasking, MaskedLanguageModel, text, training

RESULTS = pathlib.Path(__file__).resolve().parent / "results"
ARMS = {
    "15 %": lambda steps: 0.15,
    "30 %": lambda steps: 0.30,
    "40 %": lambda steps: 0.40,
    "30 to 15 %": lambda steps: keras.optimizers.schedules.PolynomialDecay(0.30, steps, 0.15),
    "10 to 50 %, by row": lambda steps: (0.10, 0.50),
}
MEASURES = {"held_out_loss": "val_masked_loss", "held_out_accuracy": "val_masked_accuracy"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=pathlib.Path, required=True, help="where runs are kept")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each arm (%(default)s)")
    parser.add_argument("--epochs", type=int, default=12, help="(%(default)s)")
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed, (number, arm) in itertools.product(range(arguments.seeds), enumerate(ARMS)):
        path = arguments.runs / f"rate-{number}-{seed}-{arguments.epochs}.csv"
        if not path.exists():
            write(path, learn(arm, seed, arguments.epochs))
        rows += read(path)
        print(f"{arm}, seed {seed}: {rows[-1]['held_out_loss']:.3f}", flush=True)
    print(f"\n{place()}; {arguments.epochs} epochs, held out under 15 % masks\n")
    print(table([compared(rows, arm, arguments.epochs) for arm in ARMS]))
    write(RESULTS / "rates_and_schedules.csv", rows)


def learn(arm, seed, epochs):
    """A row for every epoch."""
    recipe = training.Recipe(seed=seed, epochs=epochs)
    parts = text.split_documents(recipe.read_corpus(), recipe.validation_share)
    tokenizer = text.train_tokenizer(parts[0], recipe.vocabulary_size)
    rows, held_out = (text.pack(tokenizer, part, recipe.length) for part in parts)
    batches = training.ShuffledRows(rows, recipe.batch_size, seed)
    steps = epochs * len(batches)

    made = recipe.build_model(tokenizer, steps)
    rates = {"mask_selection_rate": ARMS[arm](steps), "evaluation_rate": 0.15}
    masking = DynamicMasking(
        recipe.vocabulary_size,
        mask_token_id=tokenizer.token_to_id(text.MASK),
        unselectable_token_ids=text.special_ids(tokenizer),
        seed=seed,
        **rates,
    )
    model = MaskedLanguageModel(made.encoder, masking)
    model.compile(made.optimizer, jit_compile=True)
    history = model.fit(
        batches,
        validation_data=training.Rows(held_out, recipe.batch_size),
        epochs=epochs,
        shuffle=False,
        verbose=0,
    ).history
    return [
        {
            "rate": arm,
            "seed": seed,
            "epoch": epoch + 1,
            "share selected": round(history["selection_rate"][epoch], 4),
            **{name: round(history[logged][epoch], 4) for name, logged in MEASURES.items()},
        }
        for epoch in range(epochs)
    ]


def compared(rows, arm, epoch):
    """The last epoch of an arm, and its differences to the first arm, seed by seed."""
    first, *_ = ARMS
    ours, theirs = (
        [row["held_out_loss"] for row in rows if row["rate"] == each and row["epoch"] == epoch]
        for each in (arm, first)
    )
    gains = [after - before for after, before in zip(ours, theirs, strict=True)]
    return {
        "rate": arm,
        "held-out loss": ", ".join(f"{loss:.3f}" for loss in ours),
        "standard deviation": statistics.stdev(ours) if len(ours) > 1 else float("nan"),
        f"minus that of {first}": f"{statistics.mean(gains):+.3f} "
        f"({min(gains):+.3f} to {max(gains):+.3f})",
    }


if __name__ == "__main__":
    main()
