"""Pairs of a source and a target in one row, for translation and summaries.

    [PAD PAD the cat | [SEP] | die katze [SEP] [SEP]]
     source, to the right     target, ended by end tokens

The target begins at one column in every row, so which tokens are to be predicted needs no file.
End tokens fill it up; they are masked and predicted like all others, and so its length is learnt.
"""

import itertools
import pathlib

import numpy as np

from keras_dynmask.errors import require
from keras_dynmask.text import IDS_AT_ONCE, MASK, PADDING, SEPARATOR, reading

END = SEPARATOR  # of a target; one stands between source and target, too


def read_pairs(path):
    """Pairs of strings from a UTF-8 file: source, tab, target; what else a line has is left out.

    Lines end as text files do, and nowhere else. Quotes are text like any other.

    Raises:
        ValueError: where it can't be read, or a line has no tab or an empty part.
    """
    require(pathlib.Path(path).is_file(), "`pairs` must name a readable file.", pairs=str(path))
    pairs = []
    with (
        reading(path, "pairs of a source and a target, tab separated, in UTF-8"),
        open(path, encoding="utf-8-sig") as lines,
    ):
        for number, line in enumerate(lines, start=1):
            if line.strip():
                pair = tuple(line.rstrip("\n").split("\t")[:2])
                both = len(pair) == 2 and all(map(str.strip, pair))
                require(both, f"Line {number} must hold both.", line=line)
                pairs.append(pair)
        require(pairs, "It must hold pairs.", pairs=len(pairs))
    return pairs


def split_pairs(pairs, validation_share):
    """Pairs to train on and pairs held out; all pairs of one source are on the same side."""
    sources = {source: number for number, source in enumerate(dict.fromkeys(s for s, _ in pairs))}
    parts = [], []
    for source, target in pairs:
        number = sources[source]
        is_held_out = int((number + 1) * validation_share) > int(number * validation_share)
        parts[is_held_out].append((source, target))
    require(
        all(parts),
        "`pairs` must hold enough sources to hold some out.",
        sources=len(sources),
        validation_share=validation_share,
    )
    return parts


def packed_pairs(tokenizer, pairs, length, target_length):
    """Rows `[rows, length]`, int32, in blocks; pairs that do not fit are left out."""
    pairs, size = iter(pairs), max(1, IDS_AT_ONCE // length)
    while some := list(itertools.islice(pairs, size)):
        sources, targets = zip(*some, strict=True)
        sides = (tokenizer.encode_batch(list(side)) for side in (sources, targets))
        yield np.array(
            [
                row_of(tokenizer, source.ids, target.ids, length, target_length)
                for source, target in zip(*sides, strict=True)
                if len(source.ids) <= length - target_length - 1 and len(target.ids) < target_length
            ],
            "int32",
        ).reshape(-1, length)


def row_of(tokenizer, source, target, length, target_length):
    """One row of ids: a list of `length`. What is missing of the target is end tokens."""
    padding, end = tokenizer.token_to_id(PADDING), tokenizer.token_to_id(END)
    before = [padding] * (length - target_length - 1 - len(source))
    return [*before, *source, end, *target, *[end] * (target_length - len(target))]


def with_target(rows, target_length):
    """What a model is given of rows: the ids, and which of them are a target."""
    is_target = np.arange(rows.shape[1]) >= rows.shape[1] - target_length
    return {"token_ids": rows, "selectable": np.broadcast_to(is_target, rows.shape)}


def source_row(tokenizer, source, length, target_length):
    """A row to generate a target for: a source, and mask tokens.

    Raises:
        ValueError: where the source is too long.
    """
    ids, room = tokenizer.encode(source).ids, length - target_length - 1
    require(
        len(ids) <= room,
        f"`source` must have at most {room} tokens.",
        tokens=len(ids),
        source=source,
    )
    target = [tokenizer.token_to_id(MASK)] * target_length
    return row_of(tokenizer, ids, target, length, target_length)


def target_text(tokenizer, row, target_length):
    """The target of a row as text: what stands before the first end token."""
    target = [int(index) for index in row[-target_length:]]
    end = tokenizer.token_to_id(END)
    target = target[: target.index(end)] if end in target else target
    return tokenizer.decode(target, skip_special_tokens=False)
