"""Static against dynamic masks: the same recipe, steps and batches, several seeds.

    python benchmarks/static_against_dynamic.py --runs runs

Static: every row keeps one mask, or has ten that take turns, an epoch each. Trains each
arm (about four minutes each on two cores), prints the table of the README and writes
`docs/static_against_dynamic.csv` and `.png`. Finished runs are not repeated.
"""

import argparse
import csv
import pathlib
import statistics

from matplotlib.figure import Figure

from keras_dynmask.training import Recipe, partial_directory, train

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"
ARMS = {
    "static": {"masking": "static"},
    "static-10": {"masking": "static", "static_copies": 10},  # BERT's `dupe_factor`
    "dynamic": {},
}
LOOKS = {"static": ("#d9631e", "--"), "static-10": ("#3f9a86", "-."), "dynamic": ("#1d2b56", "-")}
LABELS = {"static": "static, one mask", "static-10": "static, ten masks", "dynamic": "dynamic"}


def main():
    histories = run(ARMS, __doc__)
    print_table(histories)
    write_csv(histories, DOCS / "static_against_dynamic.csv")
    draw(histories, DOCS / "static_against_dynamic.png")


def run(arms, description):
    """The history of each arm and seed, as the command line asks: `{(arm, seed): rows}`.

    Args:
        arms: what each arm changes of a `Recipe`, `{arm: {field: value}}`.
        description: the docstring of the program.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--runs", type=pathlib.Path, required=True, help="where runs are kept")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each arm (%(default)s)")
    parser.add_argument("--epochs", type=int, default=40, help="(%(default)s)")
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    return {
        (arm, seed): history(
            arguments.runs / f"{arm}-{seed}", Recipe(**changes, seed=seed, epochs=arguments.epochs)
        )
        for seed in range(arguments.seeds)
        for arm, changes in arms.items()
    }


def history(output, recipe):
    if not output.exists():
        train(recipe, output, resume=partial_directory(output).exists(), announce=print)
    with open(output / "history.csv", newline="") as file:
        rows = [{name: float(n) for name, n in row.items()} for row in csv.DictReader(file)]
    return [{**row, "epoch": int(row["epoch"])} for row in rows]


def print_table(histories):
    print("| masks | seed | best held-out loss (epoch) | last held-out loss | last training loss |")
    print("|---|---|---|---|---|")
    for (arm, seed), rows in sorted(histories.items()):
        best = min(rows, key=lambda row: row["val_masked_loss"])
        print(
            f"| {arm} | {seed} | {best['val_masked_loss']:.2f} ({best['epoch']}) "
            f"| {rows[-1]['val_masked_loss']:.2f} | {rows[-1]['masked_loss']:.2f} |"
        )
    for arm in ARMS:
        last = [rows[-1]["val_masked_loss"] for (a, _), rows in histories.items() if a == arm]
        spread = statistics.stdev(last) if len(last) > 1 else float("nan")
        print(f"{arm}: {statistics.mean(last):.2f} +- {spread:.2f} nats over {len(last)} seeds")


def write_csv(histories, path):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["masks", "seed", "epoch", "training_loss", "held_out_loss"])
        for (arm, seed), rows in sorted(histories.items()):
            for row in rows:
                losses = (f"{row[name]:.4f}" for name in ("masked_loss", "val_masked_loss"))
                writer.writerow([arm, seed, row["epoch"], *losses])


def draw(histories, path):
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for (arm, seed), rows in histories.items():
        colour, style = LOOKS[arm]
        axes.plot(
            [row["epoch"] for row in rows],
            [row["val_masked_loss"] for row in rows],
            style,
            color=colour,
            label=LABELS[arm] if seed == 0 else None,
        )
    axes.set(xlabel="epoch", ylabel="held-out masked-token loss (nats)")
    axes.set_title("Fixed masks are learnt by heart, fresh ones are not")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
