"""One text under several masks, coloured by what became of each token."""

import re

import numpy as np
from keras import ops
from rich.text import Text

from keras_dynmask import text

EXAMPLE = (
    "A fresh mask at every step: the model never sees the same gaps twice, so it can not learn "
    "them by heart and has to learn the language."
)
HIDDEN, SWAPPED, KEPT = "bold red", "bold yellow", "bold green"


class Words:
    """Splits text into words, for previews without a trained tokenizer."""

    def __init__(self, sentence):
        words = set(re.findall(r"[a-z]{3,}", " ".join(text.embedded_corpus()).lower()))
        words |= set(self._split(sentence))
        self.tokens = [*text.SPECIAL_TOKENS, *sorted(words)]
        self.ids = {token: index for index, token in enumerate(self.tokens)}

    def encode(self, sentence):
        return [self.ids[word] for word in self._split(sentence)]

    def token(self, index):
        return self.tokens[index]

    @staticmethod
    def _split(sentence):
        return re.findall(r"\w+|[^\w\s]", sentence)


class Pieces:
    """Splits text by a trained tokenizer."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.tokens = range(tokenizer.get_vocab_size())

    def encode(self, sentence):
        return self.tokenizer.encode(sentence).ids

    def token(self, index):
        return self.tokenizer.id_to_token(index)


def preview(masking, splitter, sentence, steps):
    """A `rich.text.Text` per step: the sentence as the model would be shown it.

    Hidden tokens read `[MASK]`, swapped ones stand between stars, kept ones between
    underscores, so that nothing is lost without colours.
    """
    ids = np.array(splitter.encode(sentence), "int32")
    return [_shown(masking, splitter, ids, step) for step in range(steps)]


def legend():
    return Text.assemble(
        ("[MASK]", HIDDEN), " hidden   ", ("*word*", SWAPPED), " swapped for another   ",
        ("_word_", KEPT), " kept, and predicted too",
    )  # fmt: skip


def _shown(masking, splitter, ids, step):
    masked = masking(ids, training=True, step=step)
    shown = ops.convert_to_numpy(masked["token_ids"])
    selected = ops.convert_to_numpy(masked["mask_weights"]) > 0
    line = Text(f"step {step} ", style="dim")
    for original, seen, chosen in zip(ids, shown, selected, strict=True):
        word = splitter.token(int(seen))
        glued = word.startswith("##") or re.fullmatch(r"[.,:;!?]", word)
        line.append("" if glued else " ")
        if not chosen:
            line.append(word.removeprefix("##"), style="default not dim")
        elif seen == masking.mask_token_id:
            line.append(text.MASK, style=f"{HIDDEN} not dim")
        elif seen != original:
            line.append(f"*{word}*", style=f"{SWAPPED} not dim")
        else:
            line.append(f"_{word}_", style=f"{KEPT} not dim")
    return line
