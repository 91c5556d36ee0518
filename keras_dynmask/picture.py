"""One text under several masks as a picture: a box per token."""

from keras_dynmask.errors import require

FONT, SIZE = "DejaVu Sans Mono", 9  # comes with matplotlib
LETTER, ROW, GAP = 0.602 * SIZE, 2.2 * SIZE, 0.3 * SIZE  # in points
LETTERS, ROWS = 120, 300  # in a row, in a picture: drawn in seconds


class Pen:
    """Writes on a sheet measured in letters, from the left, and points, from the top."""

    def __init__(self, letters, points):
        from matplotlib.figure import Figure

        width = letters * LETTER
        self.figure = Figure(figsize=(width / 72, points / 72), facecolor="white")
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(points, 0))
        self.axes.axis("off")

    def write(self, x, top, words, ink="0.45", align="left"):
        font = {"family": FONT, "size": SIZE, "color": ink, "ha": align}
        self.axes.text(x * LETTER, top + 0.62 * ROW, words, parse_math=False, **font)

    def box(self, x, top, size, word, fate):
        from matplotlib.patches import FancyBboxPatch

        corner, sides = (x * LETTER + 1, top + 1), (size * LETTER - 2, ROW - 2)
        shape = FancyBboxPatch(corner, *sides, "round,pad=0,rounding_size=3", linewidth=0)
        shape.set_facecolor(fate.fill)
        self.axes.add_patch(shape)
        self.write(x + size / 2, top, word, fate.ink, "center")


def picture(lines, legend):
    """A `matplotlib.figure.Figure`: a box per token, below itself from step to step.

    Raises:
        ValueError: where the text is too long, or in letters that the font lacks.
    """
    from matplotlib.font_manager import findfont, get_font

    letters = {letter for line in lines for word, _ in line.tokens for letter in word}
    lacking = sorted(letters - set(map(chr, get_font(findfont(FONT)).get_charmap())))
    require(not lacking, "A picture can't show these letters, a page (.html) can.", lacking=lacking)

    columns = zip(*(line.tokens for line in lines), strict=True)
    sizes = [max(len(word) for word, _ in column) + 2 for column in columns]
    places, height = _flow(sizes)
    left = max(len(line.title) for line in lines) + 2
    right = left + max(x + size for (x, _), size in zip(places, sizes, strict=True)) + 1
    below = sum(len(word) + len(fate.meaning) + 6 for word, fate in legend)
    width = max(right + max(len(line.tally) for line in lines), left + below) + 1
    rows = len(lines) * height + 2
    require(
        rows <= ROWS and width <= 3 * LETTERS,
        f"A picture holds {ROWS} rows of {3 * LETTERS} letters at most, a page (.html) more.",
        rows=rows,
        letters=width,
    )

    pen, top = Pen(width, rows * ROW + len(lines) * GAP), ROW / 2
    for line in lines:
        pen.write(1, top, line.title)
        for (x, y), size, token in zip(places, sizes, line.tokens, strict=True):
            pen.box(left + x, top + y * ROW, size, *token)
        pen.write(right, top, line.tally)
        top += height * ROW + GAP
    for word, fate in legend:
        pen.box(left, top + GAP, len(word) + 2, word, fate)
        pen.write(left + len(word) + 3, top + GAP, fate.meaning)
        left += len(word) + len(fate.meaning) + 6
    return pen.figure


def _flow(sizes):
    """Where boxes go that fill rows of `LETTERS`: `[(x, y)]`, and how many rows it takes."""
    places, x, y = [], 0, 0
    for size in sizes:
        if x and x + size > LETTERS:
            x, y = 0, y + 1
        places.append((x, y))
        x += size
    return places, y + 1
