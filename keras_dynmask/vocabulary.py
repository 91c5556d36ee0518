"""What ids mean, as lookup tables over the vocabulary."""

import numpy as np

from keras_dynmask.errors import require


def id_table(token_ids, vocabulary_size):
    """Bool `[vocabulary_size]`, True at the given ids: `[1, 3], 5 -> [F T F T F]`."""
    table = np.zeros(vocabulary_size, bool)
    table[list(token_ids)] = True
    return table


def wordpiece_continuations(vocabulary, prefix="##"):
    """The ids of a WordPiece vocabulary's pieces that continue a word.

    Args:
        vocabulary: a list of tokens in the order of their ids, or a dict from token
            to id (as `tokenizers.Tokenizer.get_vocab()` returns it).
        prefix: what a continuing piece begins with.

    >>> wordpiece_continuations(["[PAD]", "mask", "##ing"])
    [2]
    """
    if not isinstance(vocabulary, dict):
        vocabulary = {token: index for index, token in enumerate(vocabulary)}
    require(
        all(isinstance(token, str) for token in vocabulary),
        "`vocabulary` must hold strings: a list of tokens, or a dict from token to id.",
        vocabulary=list(vocabulary)[:3],
    )
    return sorted(index for token, index in vocabulary.items() if token.startswith(prefix))
