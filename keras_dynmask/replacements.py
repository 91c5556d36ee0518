"""What a swapped token is shown as: tables from the constructor's arguments, and draws."""

import numpy as np

from keras_dynmask import noise
from keras_dynmask.arrays import ops
from keras_dynmask.errors import require, token_ids_below
from keras_dynmask.units import count_in_unit, highest_in_unit


def token_shares(weights):
    """Weights as places on a line of at most 2**23; what weighs anything has one."""
    require(
        len(weights) <= 2**22,
        "`random_token_weights` must be None for more than 2**22 ids.",
        vocabulary_size=len(weights),
    )
    weights = weights.astype("float64") / max(weights.max(), 1e-45)
    scale = (2**23 - len(weights)) / max(weights.sum(), 1)
    return np.where(weights > 0, np.maximum(weights * scale, 1), 0).astype("int32")


class RandomTokens:
    """Draws ids from a table of shares, and on request never the one that is replaced.

    Ids lie one after the other on a line of `total` places, each as long as its share.
    A draw is a place; to leave an id out, its places are taken off the line.

    Args:
        shares: int32 `[vocabulary_size]`, the places of each id; 0: never drawn.
        excludes_original: bool.
    """

    def __init__(self, shares, excludes_original):
        self.shares = shares
        self.ends = np.cumsum(shares, dtype="int32")
        self.excludes_original = excludes_original
        # With one place for each id of a pool, the place says the id.
        self.pool = np.flatnonzero(shares).astype("int32") if shares.max() <= 1 else None

    def draw(self, words, token_ids):
        """Ids in place of `token_ids`, for noise `words`. int32 `[batch, length]`."""
        total = int(self.ends[-1])
        left_out = ops.take(self.shares, token_ids) if self.excludes_original else 0
        if self.pool is None:
            place = noise.portion(words, total - left_out)
        else:
            place = noise.below(words, total - left_out)
        if self.excludes_original:
            begin = ops.take(self.ends, token_ids) - left_out
            place = place + ops.where(place >= begin, left_out, 0)
        return self._at(place) if self.pool is None else ops.take(self.pool, place)

    def _at(self, place):
        """The id that lies at a place, by bisection: the first that ends behind it."""
        size = len(self.ends)

        def raise_bit(round_, found):
            trial = found + ops.right_shift(2 ** (size.bit_length() - 1), round_)
            ends = ops.take(self.ends, ops.minimum(trial, size) - 1)
            return ops.where((trial <= size) & (ends <= place), trial, found)

        return ops.fori_loop(0, size.bit_length(), raise_bit, ops.zeros_like(place))


class RandomWords:
    """Draws whole words of as many pieces as the one that is replaced.

    Args:
        words: a list of words, each a list of ids.
        excludes_original: bool.
    """

    def __init__(self, words, excludes_original):
        words = sorted(set(map(tuple, words)), key=lambda word: (len(word), word))
        lengths = np.array([len(word) for word in words])
        self.pieces = np.array([piece for word in words for piece in word], "int32")
        self.counts = np.bincount(lengths).astype("int32")  # [longest + 1]
        self.begins = np.cumsum(self.counts * np.arange(len(self.counts))).astype("int32")
        self.begins -= self.counts * np.arange(len(self.counts), dtype="int32")
        self.excludes_original = excludes_original

    def draw(self, words, more_words, token_ids, selected, begins, numbers, otherwise):
        """Ids in place of `token_ids`, and `otherwise` where no word is as long, or only a
        part of the word is selected.

        All are int32 or bool `[batch, length]`; noise is equal inside a word.

        Args:
            words, more_words: noise.
            token_ids: the ids.
            selected: what is selected of them.
            begins: where a word begins.
            numbers: the number of each position's word.
            otherwise: ids.
        """
        positions = ops.arange(ops.shape(token_ids)[1], dtype="int32")
        first = highest_in_unit(ops.where(begins, positions, -1), numbers)
        length = count_in_unit(ops.ones_like(begins), numbers)
        known = ops.minimum(length, len(self.counts) - 1)
        replaceable = (length == known) & (length == count_in_unit(selected, numbers))
        count = ops.where(replaceable, ops.take(self.counts, known), 0)

        def pieces_of(word):
            piece = ops.take(self.begins, known) + word * known + positions - first
            return ops.take(self.pieces, ops.clip(piece, 0, len(self.pieces) - 1))

        word = noise.below(words, ops.maximum(count, 1))
        drawn, needed = pieces_of(word), 1
        if self.excludes_original:
            # Where the word itself was drawn, one of the others, each as likely.
            another = word + 1 + noise.below(more_words, ops.maximum(count - 1, 1))
            another = pieces_of(ops.mod(another, ops.maximum(count, 1)))
            same = count_in_unit(drawn != token_ids, numbers) == 0
            drawn, needed = ops.where(same, another, drawn), 2
        return ops.where(count >= needed, drawn, otherwise)


def word_list(name, words, vocabulary_size):
    """Words as tuples of ids, checked."""
    given = list(words) if np.iterable(words) else []
    wrong = [word for word in given if not _is_word(word, vocabulary_size)]
    expected = f"`{name}` must be words, each a list of ids in [0, {vocabulary_size - 1}]."
    require(given and not wrong, expected, **{name: wrong[:3] or words})
    return tuple(tuple(map(int, word)) for word in given)


def _is_word(word, vocabulary_size):
    try:
        return np.ndim(word) == 1 and len(token_ids_below("word", word, vocabulary_size)) > 0
    except ValueError:
        return False
