"""What ids mean: lookup tables over the vocabulary, and where its words begin.

How often each id occurs needs NumPy alone. Frequent tokens are then swapped in more
often, and rare ones selected more often:

>>> rows = np.array([[5, 6, 5, 0], [5, 7, 6, 0]])  # ids [batch, length]
>>> counts = np.bincount(rows.ravel(), minlength=9)
>>> counts.tolist()
[2, 0, 0, 0, 0, 3, 2, 1, 0]
>>> masking = DynamicMasking(9, 0.15, mask_token_id=8, random_token_weights=counts,
...                          selection_weights=1 / np.maximum(counts, 1))
"""

import re
import string

import numpy as np

from keras_dynmask.errors import require, token_ids_below, whole

# WordPiece marks the pieces that continue a word, SentencePiece and byte-level BPE
# those that begin one: with the space before it.
MARKERS = ("##", "▁", "Ġ")
SPACES = {"▁": "▁ \n\r\t", "Ġ": "ĠĊčĉ"}  # the second as byte-level BPE writes them
WORD_ENDS = ("</w>", "@@", "▁")

MASKS = ("[MASK]", "<mask>", "<|mask|>")
NAMED = re.compile(r"</?\|?\w+\|?>|\[/?\w+\]")  # what a special token is called, if nobody says
SPECIAL = re.compile(r"<.*>|\[.*\]", re.DOTALL)  # <s>, [MASK], <|endoftext|>
BYTE = re.compile(r"<0x([0-9A-F]{2})>")

# A marker that so many times fewer pieces have is a character like any other: GPT-2's
# vocabulary holds "##", and multilingual ones "Ġ", which is a letter of Maltese.
RARER = 10


def id_table(token_ids, vocabulary_size):
    """Bool `[vocabulary_size]`, True at the given ids: `[1, 3], 5 -> [F T F T F]`."""
    table = np.zeros(vocabulary_size, bool)
    table[list(token_ids)] = True
    return table


def weight_table(name, weights, vocabulary_size):
    """One weight per id as float32 `[vocabulary_size]`, checked."""
    try:
        weights = weights if hasattr(weights, "__array__") else list(weights)
        with np.errstate(over="ignore"):
            values = np.asarray(weights, "float32")
    except (TypeError, ValueError):
        values = np.zeros(())
    expected = (
        f"`{name}` must hold a finite number >= 0 for each of {vocabulary_size} ids, not all 0."
    )
    require(values.shape == (vocabulary_size,), expected, shape=values.shape)
    wrong = values[~(np.isfinite(values) & (values >= 0))]
    require(wrong.size == 0 and values.any(), expected, **{name: wrong[:3].tolist() or "all 0"})
    return values


def masking_arguments(tokenizer, mask_token=None, whole_words=False):
    """What `DynamicMasking` has to know of a tokenizer, as its arguments.

    Args:
        tokenizer: as in `continuation_ids`. In a bare list or dict, special tokens are those
            that are written `[NAME]`, `<name>`, `</name>` or `<|name|>`.
        mask_token: str, or None for the one that the tokenizer names, or else "[MASK]",
            "<mask>" or "<|mask|>".
        whole_words: bool, whether the ids of pieces that continue a word are among them.

    Returns:
        A dict of `vocabulary_size`, `mask_token_id`, `unselectable_token_ids` and, where
        asked for, `continuation_token_ids`.

    Raises:
        ValueError: where the tokenizer has no such mask token; or as `continuation_ids`. Where
            that asks for a `marker`, call it yourself.

    >>> tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "mask", "##ing"]
    >>> arguments = masking_arguments(tokens, whole_words=True)
    >>> arguments["mask_token_id"], arguments["continuation_token_ids"]
    (4, [6])
    >>> masking = DynamicMasking(mask_selection_rate=0.15, **arguments)
    """
    pieces = _pieces(tokenizer)
    mask_token_id = _mask_id(tokenizer, dict(pieces), mask_token)
    special = _special_ids(tokenizer, pieces)
    arguments = {
        # The mask token may stand behind the pieces: DeBERTa's.
        "vocabulary_size": 1 + max(mask_token_id, *(index for _, index in pieces)),
        "mask_token_id": mask_token_id,
        "unselectable_token_ids": sorted({mask_token_id, *map(int, special)}),
    }
    if whole_words:
        arguments["continuation_token_ids"] = continuation_ids(tokenizer)
    return arguments


def continuation_ids(tokenizer, marker=None):
    """The ids of the pieces that continue a word, for `DynamicMasking`'s whole words.

    With "##" those are the pieces that begin with it. With "▁" and "Ġ" they are all
    others, bytes (`<0xE2>`) among them, but for: special tokens (`<s>`, `[MASK]`, and
    what the tokenizer says was added to its vocabulary), white space, and pieces of
    ASCII punctuation alone, which WordPiece, too, takes off the word before. Of
    `▁mask ing ,` the second piece continues a word.

    A table says it once for all places where a piece stands. So with "▁" and "Ġ" what
    follows a line break, an opening quote or a hyphen without a space is masked with
    it. Ids among `unselectable_token_ids` have no such company: hand over those of
    special tokens and, where you like, of line breaks. Where that is not exact enough,
    hand over `begins` for every row instead: see `word_begins`.

    **Languages written without spaces** (Chinese, Japanese, Thai, Khmer) have no mark
    where a word begins: with "▁" and "Ġ" whole clauses would be masked together, and
    BERT's WordPiece cuts Chinese into single characters. Let a segmenter of the
    language find the words (as Cui et al. 2021 do for Chinese), and hand over
    `begins`: `word_begins` has an example.

    Args:
        tokenizer: a list of tokens in the order of their ids, a dict from token to
            id, a `tokenizers.Tokenizer`, a tokenizer of Transformers or KerasHub, or
            a `sentencepiece.SentencePieceProcessor`.
        marker: "##" (WordPiece), "▁" (SentencePiece), "Ġ" (byte-level BPE), or None:
            the prefix of continuing pieces that the tokenizer itself names, or else
            the marker that its pieces have.

    Returns:
        A sorted list of ints.

    Raises:
        ValueError: where no piece has the marker; where none was given and more than
            one is found; or where the vocabulary marks the ends of words (`</w>` of
            the first BPE, `@@`). There a piece continues a word or not as the piece
            before it says, so no table can: make `begins` True after each piece that
            ends a word.

    >>> continuation_ids(["[PAD]", "[MASK]", "mask", "##ing", ","])
    [3]
    >>> continuation_ids({"<pad>": 0, "▁mask": 1, "ing": 2, ",": 3, "▁": 4, "<0xE2>": 5})
    [2, 5]
    >>> continuation_ids(["<s>", "Ġmask", "ing", ",", "Ċ"], marker="Ġ")
    [2]

    References:
        Wu et al. 2016 (WordPiece; "##" is Devlin et al. 2019's), Kudo and Richardson
        2018 (SentencePiece), Radford et al. 2019 (byte-level BPE), Sennrich et al.
        2016 (BPE, `</w>` and `@@`). Whole words were first masked in a later release
        of BERT.
    """
    pieces = _pieces(tokenizer)
    tokens = [token for token, _ in pieces]
    if marker is None:
        marker = _prefix_named_by(tokenizer) or _marker_of(tokens)
    else:
        require(marker in MARKERS, "`marker` must be '##', '▁', 'Ġ' or None.", marker=marker)
        require(
            any(token.startswith(marker) for token in tokens),
            f"`marker` must begin some of the tokens: write another, or None. Of {len(tokens)} "
            "none does.",
            marker=marker,
            tokens=tokens[:3],
        )
    if marker in SPACES:
        apart = _words_of_their_own(tokenizer)
        continuing = [
            index
            for token, index in pieces
            if index not in apart and not _begins_a_word(token, SPACES[marker])
        ]
    else:
        continuing = [
            index for token, index in pieces if token.startswith(marker) and token != marker
        ]
    return sorted(map(int, continuing))


def word_begins(word_ids):
    """True where a word begins, from the number of the word that each token is part of.

    For `DynamicMasking`'s input `begins`, of the same shape. To pack documents into
    one row, join what this function returns for each of them: the numbers begin anew.

    Args:
        word_ids: ints `[length]` or `[batch, length]`, as list, list of lists or
            array, equal inside a word and different in the next; None, or below 0, is
            no word, as the special tokens in `word_ids` of a Hugging Face encoding,
            and begins one of its own.

    Returns:
        Bool array of the same shape.

    Raises:
        ValueError: where there is anything but integers and None, or rows differ in
            length.

    >>> word_begins([None, 0, 0, 1, None, None]).tolist()
    [True, True, False, True, True, True]

    A segmenter's words, and one token per character:

    >>> words = ["我们", "喜欢", "猫"]
    >>> word_begins(np.repeat([0, 1, 2], [len(word) for word in words])).tolist()
    [True, False, True, False, True]
    """
    try:
        words = np.asarray(word_ids)
        if words.dtype == object:
            words = np.asarray(np.where(np.equal(words, None), -1, words).tolist())
    except ValueError:  # rows of different lengths
        words = np.zeros(())
    require(
        words.ndim in (1, 2) and (words.dtype.kind in "iu" or words.size == 0),
        "`word_ids` must be integers or None, [length] or [batch, length] with rows of one length.",
        word_ids=word_ids,
    )
    begins = np.ones(words.shape, bool)
    begins[..., 1:] = (words[..., 1:] != words[..., :-1]) | (words[..., 1:] < 0)
    return begins


def words_of(rows, continuation_token_ids, unselectable_token_ids=(0,), minimum_count=1):
    """The distinct words in rows of ids, most frequent first: `DynamicMasking`'s `random_words`.

    A word begins and ends where the layer says so, given the same two lists of ids.
    Left out is what was cut: the rest of a word, which begins with a piece that
    continues one, at the beginning of a row or after a protected id; and the last word
    of a row as long as the longest, which the next row may continue. Where a separator
    stands after a cut, nothing tells, but `minimum_count` helps.

    Args:
        rows: ints `[batch, length]`, or a list of rows, which may differ in length.
        continuation_token_ids: ints, as in `DynamicMasking`, or None.
        unselectable_token_ids: ints, as in `DynamicMasking`: never part of a word.
        minimum_count: int, leave out words that are found less often.

    Returns:
        A list of tuples of ids. Equally frequent words come in the order of their ids.

    Raises:
        ValueError: naming the argument, what was expected and what was received.

    >>> rows = [[1, 5, 12, 7, 5, 12, 2, 0], [1, 12, 6, 7, 2, 0, 0, 0]]
    >>> words_of(rows, continuation_token_ids=[12], unselectable_token_ids=[0, 1, 2])
    [(5, 12), (7,), (6,)]
    """
    ids, lengths = _stream(rows)
    minimum_count = whole("minimum_count", minimum_count, 1)
    continues = _is_any("continuation_token_ids", continuation_token_ids, ids)
    protected = _is_any("unselectable_token_ids", unselectable_token_ids, ids)

    lengths = lengths[lengths > 0]
    row_ends = np.cumsum(lengths)
    begins = ~continues | protected  # what goes on after a protected id falls with it
    begins[row_ends - lengths] = True
    ends_cut = np.zeros(len(ids), bool)
    ends_cut[row_ends - 1] = lengths == lengths.max(initial=0)

    begin = np.flatnonzero(begins)
    end = np.append(begin, len(ids))[1:]
    is_word = ~(protected[begin] | continues[begin] | ends_cut[end - 1])
    begin, end = begin[is_word], end[is_word]

    counts = {}
    for length in np.unique(end - begin):
        starts = begin[end - begin == length]
        words = ids[starts[:, None] + np.arange(length)]  # [words, length]
        distinct, number = _distinct_rows(words)
        often = number >= minimum_count
        counts |= zip(map(tuple, distinct[often].tolist()), number[often].tolist(), strict=True)
    return sorted(counts, key=lambda word: (-counts[word], word))


def _pieces(tokenizer):
    """Pairs of token and id."""
    tokens = tokenizer
    if hasattr(tokenizer, "get_vocab"):
        tokens = tokenizer.get_vocab()
    elif hasattr(tokenizer, "get_vocabulary"):
        tokens = tokenizer.get_vocabulary()
        if not isinstance(tokens, list | dict):  # KerasHub's BPE: not in the order of ids
            tokens = {token: tokenizer.token_to_id(token) for token in tokens}
    elif hasattr(tokenizer, "id_to_piece"):
        tokens = [tokenizer.id_to_piece(index) for index in range(tokenizer.get_piece_size())]
    pieces = []
    if isinstance(tokens, dict):
        pieces = list(tokens.items())
    elif isinstance(tokens, list | tuple | np.ndarray):
        pieces = [(token, index) for index, token in enumerate(tokens)]
    require(
        pieces and all(isinstance(t, str) and isinstance(i, int | np.integer) for t, i in pieces),
        "`tokenizer` must be a list of tokens in the order of their ids, a dict from token to id, "
        "or a tokenizer that gives one of them.",
        tokenizer=pieces[:3] or tokenizer,
    )
    return pieces


def _mask_id(tokenizer, ids, mask_token):
    if mask_token is None:
        named = getattr(tokenizer, "mask_token_id", None)  # Transformers, KerasHub
        if named is not None:
            return int(named)
        mask_token = next((token for token in MASKS if token in ids), None)
    require(
        mask_token in ids,
        "`mask_token` must be a token of the vocabulary. Where there is none, add one to the "
        "tokenizer, or take a token that is never used.",
        mask_token=mask_token,
    )
    return int(ids[mask_token])


def _special_ids(tokenizer, pieces):
    if hasattr(tokenizer, "all_special_ids"):  # Transformers
        # Of a file's special tokens it counts only those that it was told the use of.
        added = getattr(tokenizer, "added_tokens_decoder", {})
        return [*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)]
    if hasattr(tokenizer, "get_added_tokens_decoder"):  # tokenizers
        added = tokenizer.get_added_tokens_decoder()
        return [index for index, token in added.items() if token.special]
    if hasattr(tokenizer, "is_control"):  # sentencepiece
        return _words_of_their_own(tokenizer)
    names = (token for token, _ in pieces if NAMED.fullmatch(token) and not BYTE.fullmatch(token))
    ids = dict(pieces)
    # Of a model of KerasHub's, which counts [UNK] and [unused7] as words.
    own = getattr(tokenizer, "special_token_ids", ())
    return [*own, *(ids[name] for name in names)]


def _prefix_named_by(tokenizer):
    """What the tokenizer itself puts before continuing pieces, or None."""
    # KerasHub's WordPiece says it, and so does a Hugging Face model, maybe wrapped.
    model = getattr(getattr(tokenizer, "backend_tokenizer", tokenizer), "model", None)
    suffix = getattr(model, "end_of_word_suffix", None)
    _refuse_word_ends([suffix] if suffix else [])
    named = getattr(tokenizer, "suffix_indicator", None)
    return named or getattr(model, "continuing_subword_prefix", None)


def _marker_of(tokens):
    """The one marker that the tokens have."""
    # `strip`: "####" is a piece, but no word that goes on after a marker.
    begin = {m: sum(t.startswith(m) and t.strip(m) != "" for t in tokens) for m in MARKERS}
    end = {m: sum(t.endswith(m) and t.strip(m) != "" for t in tokens) for m in WORD_ENDS}
    least = max(1, *(count / RARER for count in (*begin.values(), *end.values())))
    begin = {marker: count for marker, count in begin.items() if count >= least}
    _refuse_word_ends([marker for marker, count in end.items() if count >= least])
    require(
        begin,
        "`tokenizer` must hold tokens that begin with '##', '▁' or 'Ġ' and go on. Without them "
        "leave `continuation_token_ids` out, or hand over `begins` with the ids: see "
        "`word_begins`.",
        tokens=tokens[:3],
    )
    choices = " or ".join(f"marker={marker!r}" for marker in begin)
    require(
        len(begin) == 1,
        f"`marker` must say which of the marks found begins or continues words: write {choices}.",
        tokens_that_begin_so=begin,
    )
    return next(iter(begin))


def _refuse_word_ends(word_ends):
    require(
        not word_ends,
        "`tokenizer` must mark where words begin or go on. This one marks where they end, so "
        "whether a piece continues a word depends on the piece before: hand over `begins` with the "
        "ids, see `word_begins`.",
        word_ends=word_ends,
    )


def _words_of_their_own(tokenizer):
    """The ids that the tokenizer itself says are special, or were added to its vocabulary."""
    if hasattr(tokenizer, "get_added_tokens_decoder"):  # tokenizers
        return set(tokenizer.get_added_tokens_decoder())
    if hasattr(tokenizer, "added_tokens_decoder"):  # Transformers
        return set(tokenizer.added_tokens_decoder)
    if hasattr(tokenizer, "is_control"):  # sentencepiece
        ids = range(tokenizer.get_piece_size())
        return {
            index for index in ids if tokenizer.is_control(index) or tokenizer.is_unknown(index)
        }
    return set()


def _begins_a_word(token, spaces):
    byte = BYTE.fullmatch(token)
    if byte:
        token = chr(int(byte[1], 16))
    is_special = SPECIAL.fullmatch(token) is not None
    return is_special or token[:1] in spaces or not token.strip(spaces + string.punctuation)


def _stream(rows):
    """The ids of all rows in one array, and the length of each row."""
    try:
        rows = np.asarray(rows) if hasattr(rows, "__array__") else rows
        parts = [np.asarray(row) for row in rows]
    except (TypeError, ValueError):
        parts = []
    require(
        parts and all(p.ndim == 1 and (p.dtype.kind in "iu" or p.size == 0) for p in parts),
        "`rows` must be integers [batch, length], or a list of rows of integers.",
        rows=rows,
    )
    return np.concatenate(parts).astype("int64"), np.array([len(part) for part in parts])


def _is_any(name, token_ids, ids):
    """Bool, True where `ids` are one of `token_ids`."""
    wanted = token_ids_below(name, () if token_ids is None else token_ids, 2**31)
    return np.isin(ids, np.array(wanted, "int64"))


def _distinct_rows(words):
    """The distinct rows of an array, and how often each occurs."""
    # As one long number each, which sort faster than rows do.
    items = np.ascontiguousarray(words).view(f"V{words.itemsize * words.shape[1]}")[:, 0]
    distinct, number = np.unique(items, return_counts=True)
    return distinct.view(words.dtype).reshape(-1, words.shape[1]), number
