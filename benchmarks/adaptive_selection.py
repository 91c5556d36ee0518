"""Uniform against adaptive selection: does it help to ask what is not known yet?

    python benchmarks/adaptive_selection.py --runs runs

Trains each arm (about five minutes each on two cores) by the same recipe, and judges both
by the same uniform, fixed masks on held-out text. Finished runs are not repeated. Writes
`docs/adaptive_selection.csv`, epoch by epoch.
"""

import csv
import statistics

from static_against_dynamic import DOCS, run

ARMS = {"dynamic": {}, "adaptive": {"masking": "adaptive"}}
MEASURES = ("val_masked_loss", "val_masked_accuracy")


def main():
    histories = run(ARMS, __doc__)
    with open(DOCS / "adaptive_selection.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["selection", "seed", "epoch", "held_out_loss", "held_out_accuracy"])
        for (arm, seed), rows in sorted(histories.items()):
            for row in rows:
                measured = (f"{row[name]:.4f}" for name in MEASURES)
                writer.writerow([arm, seed, row["epoch"], *measured])
    last = {key: rows[-1] for key, rows in histories.items()}
    seeds = sorted({seed for _, seed in last})
    print("| held out, uniform fixed masks | " + " | ".join(ARMS) + " | adaptive - dynamic |")
    print("|---|---|---|---|")
    for measure in MEASURES:
        arms = [[last[arm, seed][measure] for seed in seeds] for arm in ARMS]
        gains = [after - before for before, after in zip(*arms, strict=True)]
        cells = [", ".join(f"{value:.3f}" for value in values) for values in arms]
        mean = f"{statistics.mean(gains):+.3f} ({min(gains):+.3f} to {max(gains):+.3f})"
        print(f"| {measure.removeprefix('val_')} | {' | '.join(cells)} | {mean} |")


if __name__ == "__main__":
    main()
