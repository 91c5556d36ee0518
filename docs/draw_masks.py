"""Draws `docs/masks.png`: one sentence under 12 masks.

python docs/draw_masks.py
"""

import pathlib

from keras_dynmask.cli import main

TEXT = "every step hides other words so no gap is learnt by heart"

if __name__ == "__main__":
    picture = pathlib.Path(__file__).with_name("masks.png")
    options = ["--rate", "0.25", "--steps", "12", "--seed", "17", "--output", str(picture)]
    main(["preview", TEXT, *options])
