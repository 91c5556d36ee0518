"""One text under several masks, in a terminal, on a page or in a picture."""

import inspect
import io
import json
import pathlib
import re
from typing import NamedTuple

import numpy as np
from keras import ops
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from keras_dynmask import text
from keras_dynmask.corruption import roles
from keras_dynmask.errors import require
from keras_dynmask.masking import DynamicMasking
from keras_dynmask.picture import picture

EXAMPLE = (
    "A fresh mask at every step: the model never sees the same gaps twice, so it can not learn "
    "them by heart and has to learn the language."
)
# The text itself says how many ids there are.
DIALS = list(inspect.signature(DynamicMasking).parameters)[1:-1]
BY_TOKEN = ("selection_weights", "random_token_weights")


class Fate(NamedTuple):
    """What became of a token. Its mark says so where there are no colours."""

    mark: str
    style: str  # in a terminal
    fill: str  # in a picture
    ink: str
    meaning: str


UNTOUCHED = Fate("{}", "", "#ececec", "#222222", "not selected")
HIDDEN = Fate("[MASK]", "bold red", "#1f3a5f", "white", "hidden")
SWAPPED = Fate("*{}*", "bold yellow", "#e9973a", "black", "swapped for another")
KEPT = Fate("_{}_", "bold green", "#7cc08a", "black", "kept, and predicted too")
FATES = (UNTOUCHED, HIDDEN, SWAPPED, KEPT)
LEGEND = [(fate.mark.format("word"), fate) for fate in FATES[1:]]


class Line(NamedTuple):
    """The text under one mask."""

    title: str
    tokens: list[tuple[str, Fate]]  # as shown to the model, marked
    tally: str  # "4 of 27, 15%"


class Words:
    """Splits text into words, for previews without a trained tokenizer."""

    def __init__(self, sentences):
        words = set(re.findall(r"[a-z]{3,}", " ".join(text.embedded_corpus()).lower()))
        words.update(*map(self._split, sentences))
        self.tokens = [*text.SPECIAL_TOKENS, *sorted(words)]
        self.ids = {token: index for index, token in enumerate(self.tokens)}

    def encode(self, sentence):
        return [self.ids[word] for word in self._split(sentence)]

    @staticmethod
    def _split(sentence):
        return re.findall(r"\w+|[^\w\s]", sentence)


class Pieces:
    """Splits text by a trained tokenizer."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.ids = tokenizer.get_vocab()
        self.tokens = sorted(self.ids, key=self.ids.get)

    def encode(self, sentence):
        return self.tokenizer.encode(sentence).ids


def settings_of(assignments, splitter):
    """Arguments of `DynamicMasking` from strings `NAME=JSON`.

    Tokens stand for their ids, and an object `{token: weight}` for a weight of every
    id: 1 where it names none.
    """
    settings = {}
    for assignment in assignments:
        name, _, written = assignment.partition("=")
        require(
            name in DIALS, f"`--set NAME=VALUE` must name one of: {', '.join(DIALS)}.", NAME=name
        )
        try:
            value = json.loads(written)
        except json.JSONDecodeError as error:
            raise ValueError(
                f'`--set {name}` must be JSON: 0.5, true, [1, 2], "word". Received: {written}'
            ) from error
        if name in BY_TOKEN and isinstance(value, dict):
            unknown = [token for token in value if token not in splitter.ids]
            require(not unknown, f"`{name}` must name tokens of the vocabulary.", unknown=unknown)
            value = [value.get(token, 1) for token in splitter.tokens]
        settings[name] = _in_ids(value, splitter.ids)
    return settings


def masking_of(splitter, **arguments):
    """A `DynamicMasking` for the tokens of a splitter."""
    special = {
        "mask_token_id": splitter.ids[text.MASK],
        "unselectable_token_ids": [splitter.ids[token] for token in text.SPECIAL_TOKENS],
    }
    try:
        return DynamicMasking(len(splitter.tokens), **{**special, **arguments})
    except TypeError as error:  # JSON of another shape than anybody thought of
        raise ValueError(f"`--set` must be what `DynamicMasking` takes. {error}") from error


def preview(masking, splitter, sentences, steps):
    """The sentences as the model would be shown them: a `Line` per step.

    Several are packed in one row, with a separator after each and a segment id of its
    own. Where `masking` has an `evaluation_rate`, a last line shows the fixed mask.
    """
    rows = [splitter.encode(sentence) for sentence in sentences]
    require(all(rows), "`sentence` must hold a word.", sentences=sentences)
    if len(rows) > 1:
        rows = [[*row, splitter.ids[text.SEPARATOR]] for row in rows]
    ids = np.concatenate(rows)
    segments = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    row = {"token_ids": ids, "segment_ids": segments}
    row = {name: ops.convert_to_tensor(value[None], "int32") for name, value in row.items()}
    selectable = ops.convert_to_numpy(masking.selectable(row))[0]

    def line(title, masked):
        masked = {name: ops.convert_to_numpy(value)[0] for name, value in masked.items()}
        # With K given: positions padded with 0, where they weigh 0.
        positions = masked.get("mask_positions", np.arange(len(ids)))
        weights = np.bincount(positions, masked["mask_weights"], minlength=len(ids))
        shown = masked["token_ids"]
        became = map(ops.convert_to_numpy, roles(shown, ids, masking.mask_token_id))
        fates = np.select(list(became), (1, 2, 3)) * (weights > 0)
        tokens = [
            (FATES[fate].mark.format(splitter.tokens[seen]), FATES[fate])
            for seen, fate in zip(shown, fates, strict=True)
        ]
        return Line(title, tokens, _tally(weights, selectable, segments))

    lines = [line(f"step {step}", masking(row, True, step)) for step in range(steps)]
    if masking.evaluation_rate is not None:
        lines.append(line("evaluate", masking.mask_fixed(row, masking.mask_selection_length)))
    return lines


class Terminal(Console):
    def on_broken_pipe(self):
        raise  # as `print` does: Rich would end the program, and say nothing


def show(lines, console=None):
    """Prints the lines and the legend; where nobody looks, each on a line of its own."""
    console = console or Terminal(highlight=False)
    legend = [Text.assemble((word, fate.style), f" {fate.meaning}") for word, fate in LEGEND]
    for row in [*map(_assembled, lines), Text(), Text("   ").join(legend)]:
        console.print(row, soft_wrap=not console.is_terminal)


def checked_output(output):
    """The path of a file that `write` can make.

    Raises:
        ValueError: where it is neither .png nor .html, or its directory is missing.
    """
    path = pathlib.Path(output)
    require(path.suffix in WRITERS, "`output` must end in .png or .html.", output=str(output))
    require(
        path.parent.is_dir(), "`output` must lie in a directory that exists.", output=str(output)
    )
    return path


def write(lines, path):
    """The lines as a picture or a page, as the path's suffix says."""
    WRITERS[path.suffix](lines, path)


# On white or black, as the reader's browser is light or dark: our colours are readable on both,
# but not on the greys that browsers call dark. Without a script all lines stand below each other;
# with it one at a time, chosen by a slider.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>keras-dynmask preview</title>
<style>
html {{ background: light-dark(white, black) }}
main {{ font: 1rem/1.8 monospace; margin: 2rem auto; max-width: 60rem; padding: 0 1rem }}
pre {{ font: inherit; white-space: pre-wrap }}
input {{ vertical-align: middle }}
#step {{ width: 50% }}
{stylesheet}
</style>
</head>
<body>
<main>
<p id="controls" hidden>
<label>mask <input id="step" type="range" min="0" value="0" autofocus></label>
<label><input id="all" type="checkbox"> all</label>
</p>
<pre aria-live="polite">{code}</pre>
</main>
<script>
const [controls, step, all] = ["controls", "step", "all"].map(id => document.getElementById(id));
const pre = document.querySelector("pre");
const lines = pre.innerHTML.trimEnd().split("\\n");
const legend = lines.splice(-2).join("\\n");
function show() {{
  step.disabled = all.checked;
  const shown = all.checked ? lines : [lines[step.value]];
  pre.innerHTML = [...shown, legend].join("\\n");
  step.setAttribute("aria-valuetext", pre.textContent.match(/^\\w+ ?\\d*/)[0]);
}}
step.max = lines.length - 1;
step.oninput = all.onchange = show;
controls.hidden = false;
show();
</script>
</body>
</html>
"""
GREY = (118, 118, 118)
COLOURS = [GREY, (217, 58, 58), (42, 133, 64), (160, 108, 0)]  # grey, red, green, yellow


def _write_page(lines, path):
    # No terminal, whatever FORCE_COLOR says: it would break the lines that the slider counts.
    console = Console(record=True, file=io.StringIO(), highlight=False, force_terminal=False)
    show(lines, console)
    theme = TerminalTheme(GREY, GREY, COLOURS)  # what is dim lies between the first two
    path.write_text(console.export_html(theme=theme, code_format=PAGE), encoding="utf-8")


def _write_picture(lines, path):
    picture(lines, LEGEND).savefig(path, dpi=144)


WRITERS = {".png": _write_picture, ".html": _write_page}


def _tally(weights, selectable, segments):
    """`4 of 27, 15%`; of two documents `1+3 of 9+18, 15%`; and the weights, if not 1."""
    selected = weights > 0
    numbers, totals = (
        "+".join(f"{count:.0f}" for count in np.bincount(segments, chosen))
        for chosen in (selected, selectable)
    )
    tally = f"{numbers} of {totals}, {selected.sum() / max(1, selectable.sum()):.0%}"
    if (weights[selected] != 1).any():
        tally += f", weight {' or '.join(f'{w:.3g}' for w in np.unique(weights[selected]))}"
    return tally


def _assembled(line):
    """A line for a terminal, where untouched pieces and points touch what is before them."""
    parts = [(line.title, "dim")]
    for word, fate in line.tokens:
        is_glued = fate is UNTOUCHED and re.match(r"##|[.,:;!?]$", word)
        parts += ["" if is_glued else " ", (word.removeprefix("##"), fate.style)]
    return Text.assemble(*parts, (f"  {line.tally}", "dim"))


def _in_ids(value, ids):
    """JSON with ids in place of tokens."""
    if isinstance(value, list):
        return [_in_ids(part, ids) for part in value]
    return ids.get(value, value) if isinstance(value, str) else value
