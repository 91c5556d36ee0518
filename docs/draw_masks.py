"""Draws `docs/masks.png`: one sentence under 16 masks.

python docs/draw_masks.py
"""

import pathlib

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from keras_dynmask import DynamicMasking

TEXT = "a fresh mask at every step so the model can not learn the gaps by heart"
STEPS = 16
FATES = {
    "untouched": "#e8e8e8",
    "hidden: shown as [MASK]": "#1f3a5f",
    "swapped: shown as a random word": "#e08a1e",
    "kept: shown, and predicted too": "#5aa469",
}


def fates(masking, ids, step):
    masked = masking(ids, step=step)
    selected, shown = masked["mask_weights"].numpy() > 0, masked["token_ids"].numpy()
    hidden, kept = shown == masking.mask_token_id, shown == ids
    return np.where(selected, np.where(hidden, 1, np.where(kept, 3, 2)), 0)


def main():
    words = TEXT.split()
    ids = np.arange(2, 2 + len(words))
    masking = DynamicMasking(1000, 0.25, mask_token_id=1, seed=4)
    grid = [fates(masking, ids, step) for step in range(STEPS)]
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.pcolormesh(grid, cmap=ListedColormap(FATES.values()), vmin=0, vmax=3, edgecolors="white")
    axes.invert_yaxis()
    axes.set_xticks(np.arange(len(words)) + 0.5, words, rotation=40, ha="right")
    axes.set_yticks(np.arange(0, STEPS, 5) + 0.5, range(0, STEPS, 5))
    axes.set(ylabel="training step", title="Every step masks another quarter of the sentence")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    patches = [Patch(color=color, label=fate) for fate, color in FATES.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(pathlib.Path(__file__).parent / "masks.png", dpi=110)


if __name__ == "__main__":
    main()
