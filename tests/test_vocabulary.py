"""Which pieces continue a word, where words begin, and which words there are."""

import collections
import functools
import io

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from keras_dynmask import DynamicMasking
from keras_dynmask.vocabulary import (
    continuation_ids,
    id_table,
    masking_arguments,
    word_begins,
    words_of,
)

SENTENCES = [
    "the masking of whole words is unbelievably simple, and unbelievable things are maskable",
    "a masked word (or half of a word) tells of its other half: so mask whole words!",
    "tokenizers cut rarer words into pieces, and the pieces of a word belong together",
] * 5
SPECIAL = ["<pad>", "<s>", "<mask>", "<unk>"]  # ids 0 to 3
SENTENCE = "unbelievably masked tokenizers tell wholly of half words, maskable and together"


def wordpiece(prefix="##"):
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>", continuing_subword_prefix=prefix))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=90,
        special_tokens=SPECIAL,
        continuing_subword_prefix=prefix,
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def byte_level_bpe():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=310,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=70, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


TRAINED = {"WordPiece": wordpiece, "byte-level BPE": byte_level_bpe, "Unigram": unigram}


@functools.cache
def trained(kind):
    return TRAINED[kind]()


@functools.cache
def sentencepiece_model():
    """A SentencePiece model as bytes, with byte pieces and a symbol of the user's."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=model,
        vocab_size=310,
        byte_fallback=True,
        user_defined_symbols=["<mask>"],
        control_symbols=["SEP"],
        unk_piece="UNK",
        minloglevel=2,
    )
    return model.getvalue()


@functools.cache
def keras_hub():
    return pytest.importorskip("keras_hub")


def pieces(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


# Which pieces continue a word. In each table the tokens come first, then what continues.
TABLES = {
    "##": {
        "[PAD] [UNK] [CLS] [MASK] <s> mask , ## #": "",
        "mask ing": "##ing ##s ##, ##9 ###",
    },
    "▁": {
        "<s> </s> <pad> <unk> <mask> [MASK] [CLS] <|endoftext|> <extra_id_0> [/INST]": "",
        "▁ ▁▁ ▁the ▁, ▁( \n \t ▁\n": "",
        ". , ... !? ( ) ' - _ < > [] <> $ ,▁": "",
        "<0x0A> <0x20> <0x2E> <0x5B>": "<0xE2> <0x80> <0x41> <0xFF>",
        "▁mask": "ing s 's é 。 猫 9 <b [a a] .com x▁",
    },
    "Ġ": {
        "<s> </s> <pad> <unk> <mask> <|endoftext|> <|im_start|> <|begin▁of▁sentence|>": "",
        "Ġ ĠĠ Ġthe Ġ, Ċ ĊĊ ĊĠĠ čĊ ĉ Ċthe": "",
        ". , ... !? ( ) ' - _ ;Ċ .ĊĊ": "",
        "Ġmask": "ing s 's Ã© 9 âĢĶ â .com",
    },
}
CASES = [
    (marker, begin, goes_on) for marker, table in TABLES.items() for begin, goes_on in table.items()
]


@pytest.mark.parametrize(("marker", "begin", "goes_on"), CASES)
def test_which_pieces_continue_a_word(marker, begin, goes_on):
    begin, goes_on = begin.split(" "), goes_on.split(" ") if goes_on else []
    first = {"##": "##x", "▁": "▁x", "Ġ": "Ġx"}[marker]  # so that the marker is there
    tokens = [first, *begin, *goes_on]
    expected = goes_on if marker != "##" else [first, *goes_on]
    assert [tokens[index] for index in continuation_ids(tokens, marker)] == expected


def test_ids_come_sorted_as_ints_and_may_have_holes():
    ids = continuation_ids({"b": np.int64(70), "▁b": 5, "a": 30, "▁a": 6})
    assert ids == [30, 70] and all(type(index) is int for index in ids)


def test_a_token_that_is_there_twice_counts_twice():
    assert continuation_ids(["##a", "b", "##a"]) == [0, 2]


@pytest.mark.parametrize(
    ("tokens", "marker"),
    [
        (["[UNK]", "a", "##b"], "##"),
        (["<s>", "▁a", "b"], "▁"),
        (["<s>", "Ġa", "b"], "Ġ"),
        # Marks in other roles: runs of them, rare ones, and those inside special tokens.
        (["Ġa", "b", "##", "########", "@@@@"], "Ġ"),
        ([f"▁{i}" for i in range(20)] + ["Ġa", "##a", "a@@"], "▁"),
        ([f"##{i}" for i in range(20)] + ["Ġa", "▁a", "a▁"], "##"),
        (["Ġa", "b", "▁"], "Ġ"),
        (["Ġa", "b", "<▁of▁>"], "Ġ"),
    ],
)
def test_the_marker_is_found(tokens, marker):
    assert continuation_ids(tokens) == continuation_ids(tokens, marker)


def test_lists_dicts_and_tokenizers_say_the_same():
    for kind in TRAINED:
        tokenizer = trained(kind)
        vocabulary = tokenizer.get_vocab()
        tokens = sorted(vocabulary, key=vocabulary.get)
        expected = continuation_ids(tokens)
        assert len(expected) > 10
        for same in (vocabulary, tuple(tokens), np.array(tokens), tokenizer):
            assert continuation_ids(same) == expected


@pytest.mark.parametrize("kind", TRAINED)
def test_the_pieces_of_a_word_are_those_of_a_real_tokenizer(kind):
    tokenizer = trained(kind)
    encoding = pieces(tokenizer, SENTENCE.replace(",", ""))  # Unigram leaves it at its word
    continuing = set(continuation_ids(tokenizer))
    begins = word_begins(encoding.word_ids)
    assert [index not in continuing for index in encoding.ids] == begins.tolist()
    assert begins.sum() == 11 and len(begins) > 15


def test_the_prefix_of_a_wordpiece_model_is_used():
    tokenizer = wordpiece("$$")
    tokens = [tokenizer.id_to_token(index) for index in continuation_ids(tokenizer)]
    assert len(tokens) > 10 and all(token.startswith("$$") for token in tokens)
    # A tokenizer that names its prefix need not have such pieces.
    assert continuation_ids(Tokenizer(models.WordPiece({"a": 0}, unk_token="a"))) == []


class LikeTransformers:
    """What Transformers' tokenizers offer of this: the fast ones, and the slow ones."""

    def __init__(self, vocabulary, added=(), backend=None):
        self.vocabulary = vocabulary
        self.added_tokens_decoder = {vocabulary[token]: token for token in added}
        if backend is not None:
            self.backend_tokenizer = backend

    def get_vocab(self):
        return self.vocabulary


def test_transformers_tokenizers_are_read():
    slow = LikeTransformers({"▁a": 0, "b": 1, "SEP": 2}, added=["SEP"])
    assert continuation_ids(slow) == [1]
    backend = wordpiece("$$")
    fast = LikeTransformers(backend.get_vocab(), backend=backend)
    assert continuation_ids(fast) == continuation_ids(backend)


def test_added_tokens_are_words_of_their_own():
    tokenizer = unigram()
    tokenizer.add_tokens(["COVID"])
    tokenizer.add_special_tokens(["SEP"])
    added = {tokenizer.token_to_id("COVID"), tokenizer.token_to_id("SEP")}
    tokens = list(tokenizer.get_vocab())
    assert not added & set(continuation_ids(tokenizer))
    assert {"COVID", "SEP"} <= {tokens[i] for i in continuation_ids(tokens)}  # a list can't say


def test_sentencepiece_processors_are_read():
    sentencepiece = pytest.importorskip("sentencepiece")
    processor = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())
    continuing = {processor.id_to_piece(index) for index in continuation_ids(processor)}
    assert {"s", "ing", "<0xE2>"} <= continuing
    assert not {"<s>", "UNK", "<mask>", "SEP", "▁", "▁the", ",", "<0x0A>"} & continuing
    tokens = processor.encode("half words ☃, tokenizers", out_type=str)
    words = "".join(token if token in continuing else f"|{token}" for token in tokens)
    assert words == "|▁half|▁words|▁<0xE2><0x98><0x83>|,|▁tokenizers"


def test_keras_hub_tokenizers_are_read():
    tokenizers = keras_hub().tokenizers
    word_piece = tokenizers.WordPieceTokenizer(
        ["[PAD]", "[UNK]", "mask", "$$ing", "##ed"], suffix_indicator="$$"
    )
    assert continuation_ids(word_piece) == [3]
    assert continuation_ids(word_piece, "##") == [4]

    # `get_vocabulary()` gives the tokens in an order that is not that of their ids.
    vocabulary = {"b": 2, "a": 0, "Ġb": 1, "<s>": 5, "Ġ": 3, ",": 4}
    byte_pair = tokenizers.BytePairTokenizer(vocabulary, ["Ġ b"], unsplittable_tokens=["<s>"])
    assert continuation_ids(byte_pair) == [0, 2]
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<mask>": 3, "a": 4, "Ġ": 5, "Ġa": 6, "b": 7}
    roberta = keras_hub().models.RobertaTokenizer(vocabulary, ["Ġ a"])
    assert continuation_ids(roberta) == [4, 7]

    sentence_piece = tokenizers.SentencePieceTokenizer(sentencepiece_model())
    continuing = continuation_ids(sentence_piece)
    tokens = [sentence_piece.id_to_token(index) for index in continuing]
    assert {"s", "ing", "<0xE2>"} <= set(tokens) and "▁the" not in tokens

    with pytest.raises(ValueError, match="leave `continuation_token_ids` out"):
        continuation_ids(tokenizers.ByteTokenizer())


@pytest.mark.parametrize(
    ("tokenizer", "marker", "message"),
    [
        (
            "vocab.txt",
            None,
            "`tokenizer` must be a list of tokens.*Received: tokenizer='vocab.txt'",
        ),
        (None, None, "`tokenizer` must be a list.*Received: tokenizer=None"),
        ([], None, "`tokenizer` must be a list"),
        ([1, 2], None, r"`tokenizer` must be a list.*tokenizer=\[\(1, 0\), \(2, 1\)\]"),
        ({0: "a", 1: "##b"}, None, "a dict from token to id"),
        ({"a": "b"}, None, "a dict from token to id"),
        ([b"##a"], None, "`tokenizer` must be a list of tokens"),
        (["a", "b", "####", "▁"], None, r"begin with '##', '▁' or 'Ġ' and go on.*`word_begins`"),
        (["a", "b"], None, r"leave `continuation_token_ids` out.*tokens=\['a', 'b'\]"),
        (
            ["▁a", "##b", "▁c"],
            None,
            r"write marker='##' or marker='▁'. Received: .*\{'##': 1, '▁': 2\}",
        ),
        (["a", "##b"], "_", "`marker` must be '##', '▁', 'Ġ' or None.*marker='_'"),
        (["a", "##b"], "", "`marker` must be '##', '▁', 'Ġ' or None.*marker=''"),
        (["a</w>", "b"], "</w>", "`marker` must be '##'"),
        (["a", "##b"], "▁", "`marker` must begin some of the tokens.*Of 2 none does.*marker='▁'"),
        (["a", "▁b"], "##", "`marker` must begin some of the tokens"),
        (["a</w>", "b", "Ġ", "Ġ</w>"], None, r"marks where they end.*`begins`.*\['</w>'\]"),
        (["a@@", "b"], None, r"depends on the piece before.*word_ends=\['@@'\]"),
        (["a▁", "b▁", "b"], None, r"marks where they end.*word_ends=\['▁'\]"),
    ],
)
def test_what_can_not_be_read_is_named(tokenizer, marker, message):
    with pytest.raises(ValueError, match=message):
        continuation_ids(tokenizer, marker)


def test_a_model_that_marks_the_ends_of_words_is_refused():
    model = models.BPE({"a": 0, "b$": 1, "Ġa": 2}, [], end_of_word_suffix="$")
    with pytest.raises(ValueError, match=r"marks where they end.*word_ends=\['\$'\]"):
        continuation_ids(Tokenizer(model))


# Where words begin.


@pytest.mark.parametrize(
    ("word_ids", "expected"),
    [
        ([0, 0, 1, 2, 2], "T F T T F"),
        ([None, 0, 0, 1, None], "T T F T T"),
        ([None, None, 3, 3, None, None, None], "T T T F T T T"),
        ([None, None], "T T"),
        ([5], "T"),
        ([], ""),
        ([0, 0, None, 0, 0], "T F T T F"),  # a pair of sentences
        (np.array([-1, 4, 4, -1, -1, 2]), "T T F T T T"),
        (np.array([4, 4, 7], "uint8"), "T F T"),
        (np.array([None, 4, 4], object), "T T F"),
        ((None, 1, 1), "T T F"),
    ],
)
def test_where_words_begin(word_ids, expected):
    begins = word_begins(word_ids)
    assert begins.dtype == bool and begins.ndim == 1
    assert " ".join("FT"[begin] for begin in begins.astype(int)) == expected


def test_rows_of_a_batch_begin_anew():
    rows = [[None, 0, 0, 1], [1, 1, 1, None]]
    expected = [[True, True, False, True], [True, False, False, True]]
    assert word_begins(rows).tolist() == expected
    assert word_begins([np.array([-1, 0, 0, 1]), np.array([1, 1, 1, -1])]).tolist() == expected
    assert word_begins([[0, 0], [0, 0]]).tolist() == [[True, False]] * 2


@pytest.mark.parametrize(
    "word_ids",
    [
        [[0, 0], [0]],
        [[None, 0], [None]],
        [0.0, 1.0],
        [None, 0.5],
        ["a", "b"],
        [None, "a"],
        [True, False],
        7,
        None,
        [[[0, 1]]],
        [len],
    ],
)
def test_word_ids_that_are_none_are_named(word_ids):
    with pytest.raises(
        ValueError, match="`word_ids` must be integers or None.*Received: word_ids="
    ):
        word_begins(word_ids)


# Which words there are. 10 to 19 continue a word, 0 and 1 are protected.


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[5, 11, 6, 0]], "5+11 6"),
        ([[5, 11, 6, 7]], "5+11 6"),  # 7 may go on in the next row
        ([[11, 5, 11, 6, 0]], "5+11 6"),  # the row begins inside a word
        ([[11, 12, 5, 0]], "5"),
        ([[5, 11, 1, 5, 1, 0]], "5 5+11"),  # protected ids end words
        ([[1, 11, 5, 1, 12, 13, 1]], "5"),  # and what goes on after them has lost its beginning
        ([[5, 11, 12, 13, 0]], "5+11+12+13"),
        ([[5, 11, 0], [5, 11, 0], [6, 0, 0]], "5+11 6"),  # the most frequent first
        ([[6, 5, 6, 7, 0]], "6 5 7"),
        ([[9, 9, 5, 11, 5, 0]], "9 5 5+11"),  # equal counts: by their ids
        ([[0, 0], [1, 0]], ""),
        ([[5, 6], [7, 0]], "5 7"),
        ([[5, 11, 6, 7], [5, 12]], "5+11 5+12 6"),  # a shorter row is not full
        ([[], [5, 0]], "5"),
        ([[]], ""),
    ],
)
def test_which_words_there_are(rows, expected):
    words = words_of(rows, range(10, 20), [0, 1])
    assert " ".join("+".join(map(str, word)) for word in words) == expected
    if len({len(row) for row in rows}) == 1:
        assert (
            words_of(np.array(rows, "int32").reshape(len(rows), -1), range(10, 20), [0, 1]) == words
        )


def test_without_continuations_every_token_is_a_word():
    assert words_of([[5, 11, 5, 0]], None) == [(5,), (11,)]
    assert words_of([[5, 11, 5, 0]], ()) == [(5,), (11,)]


def test_a_protected_id_that_continues_a_word_ends_it():
    assert words_of([[5, 11, 6, 0]], [11], [0, 11]) == [(5,), (6,)]


def test_rare_words_are_left_out():
    rows = [[5, 11, 6, 6, 7, 5, 11, 6, 0]]
    assert words_of(rows, [11], minimum_count=2) == [(6,), (5, 11)]
    assert words_of(rows, [11], minimum_count=3) == [(6,)]
    assert words_of(rows, [11], minimum_count=4) == []


def words_by_loop(rows, continuing, protected):
    counts = collections.Counter()
    for row in rows:
        word = None  # in none, or in one that has lost its beginning
        for index in row:
            if index in protected:
                counts[word] += 1
                word = None
            elif index not in continuing:
                counts[word] += 1
                word = (index,)
            elif word is not None:
                word += (index,)
    del counts[None]
    return sorted(counts, key=lambda word: (-counts[word], word)), counts


def test_words_are_those_of_a_loop():
    rows = np.random.default_rng(0).integers(0, 12, (300, 17))
    continuing, protected = {7, 8, 9, 10, 11}, {0, 1}
    expected, counts = words_by_loop(rows.tolist(), continuing, protected)
    assert words_of(rows, continuing, protected) == expected
    assert len(expected) > 200 and max(map(len, expected)) > 4 and counts[expected[0]] > 99
    assert all(type(piece) is int for word in expected for piece in word)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": [5, 6]}, "`rows` must be integers.*Received: rows="),
        ({"rows": [[0.5]]}, "`rows` must be integers"),
        ({"rows": [["a"]]}, "`rows` must be integers"),
        ({"rows": []}, "`rows` must be integers"),
        ({"rows": None}, "`rows` must be integers"),
        ({"rows": [[[5]]]}, "`rows` must be integers"),
        ({"continuation_token_ids": [-1]}, "`continuation_token_ids` must be a list of ids"),
        ({"continuation_token_ids": 3}, "`continuation_token_ids` must be a list of ids"),
        ({"unselectable_token_ids": [0.5]}, "`unselectable_token_ids` must be a list of ids"),
        ({"minimum_count": 0}, "`minimum_count` must be a whole number, at least 1"),
    ],
)
def test_wrong_arguments_of_words_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        words_of(**{"rows": [[5, 0]], "continuation_token_ids": []} | arguments)


# Together with the layer.


def encoded(kind):
    """Rows of ids with special tokens around them, the words in them, and the vocabulary."""
    ids = pieces(trained(kind), SENTENCE).ids
    rows = np.array([[1, *ids[shift:], *ids[:shift], 0] for shift in range(4)])
    return rows, trained(kind).get_vocab_size()


def by_table(kind):
    rows, size = encoded(kind)
    return rows, {"continuation_token_ids": continuation_ids(trained(kind))}, {}, size


def by_word_ids(kind):
    tokenizer = trained(kind)
    encoding = pieces(tokenizer, SENTENCE)
    rows = np.array([[1, *encoding.ids, 0]] * 4)
    begins = word_begins([[None, *encoding.word_ids, None]] * 4)
    return rows, {}, {"begins": begins}, tokenizer.get_vocab_size()


@pytest.mark.parametrize("source", [by_table, by_word_ids])
@pytest.mark.parametrize("kind", TRAINED)
def test_a_word_is_masked_together_or_not_at_all(kind, source):
    rows, arguments, inputs, size = source(kind)
    masking = DynamicMasking(
        size, 0.5, 2, unselectable_token_ids=[0, 1, 2, 3], seed=1,
        mask_token_rate=1.0, random_token_rate=0.0, **arguments,
    )  # fmt: skip
    tokens = {index: token for token, index in trained(kind).get_vocab().items()}
    # The reader's own rule, from the text of the pieces: a word ends where the text has
    # a space, and a comma is a word. (Unigram's word ids leave it at its word.)
    comma_apart = kind != "Unigram" or source is by_table
    begins = np.array(
        [[_reads_as_begin(kind, tokens[i], comma_apart) for i in row] for row in rows]
    )
    begins[:, :2] = begins[:, -1:] = True
    seen = set()
    for step in range(20):
        outputs = masking({"token_ids": rows, **inputs}, training=True, step=step)
        selected = outputs["mask_weights"].numpy() > 0
        for row, starts in zip(selected, begins, strict=True):
            for word in np.split(row, np.flatnonzero(starts)[1:]):
                assert word.all() or not word.any()
                seen.add((len(word), bool(word.all())))
    masked = {length for length, together in seen if together}
    assert masked == {length for length, together in seen if not together}
    assert len(masked) >= 3 and max(masked) >= 5


def _reads_as_begin(kind, token, comma_apart):
    if token == "," and comma_apart:
        return True
    if kind == "WordPiece":
        return not token.startswith("##")
    return token.startswith({"byte-level BPE": "Ġ", "Unigram": "▁"}[kind])


@pytest.mark.parametrize("kind", TRAINED)
def test_words_of_rows_serve_as_random_words(kind):
    rows, size = encoded(kind)
    continuing = continuation_ids(trained(kind))
    words = words_of(rows, continuing, [0, 1, 2, 3])
    masking = DynamicMasking(
        size, 1.0, 2, unselectable_token_ids=[0, 1, 2, 3], seed=1,
        mask_token_rate=0.0, random_token_rate=1.0, corrupt_whole_units=True,
        continuation_token_ids=continuing, random_words=words,
    )  # fmt: skip
    shown = masking(rows, training=True)["token_ids"].numpy()
    assert (shown != rows).any() and (shown[:, [0, -1]] == rows[:, [0, -1]]).all()
    # What stands there now is made of the same words.
    assert set(words_of(shown, continuing, [0, 1, 2, 3])) <= set(words)


def test_a_table_of_ids():
    assert id_table([1, 3], 5).tolist() == [False, True, False, True, False]
    assert id_table([], 2).tolist() == [False, False]


# What the layer has to know of a tokenizer.


def test_arguments_of_a_list_go_by_the_names_of_its_tokens():
    tokens = [
        "[PAD]",
        "<s>",
        "[MASK]",
        "<|im_end|>",
        "[unused7]",
        "</s>",
        "[/INST]",
        "<0x0A>",
        "[]",
        "[a",
        "<b",
        "</",
        "a",
        "##b",
    ]
    assert masking_arguments(tokens) == {
        "vocabulary_size": 14,
        "mask_token_id": 2,
        "unselectable_token_ids": [0, 1, 2, 3, 4, 5, 6],
    }
    with_words = masking_arguments(tokens, whole_words=True)
    assert with_words == {**masking_arguments(tokens), "continuation_token_ids": [13]}
    assert masking_arguments({"a": 7, "b": 3}, "b") == {
        "vocabulary_size": 8,
        "mask_token_id": 3,
        "unselectable_token_ids": [3],
    }
    with pytest.raises(ValueError, match=r"`mask_token` must be a token.*mask_token=None"):
        masking_arguments(["a", "b"])
    with pytest.raises(ValueError, match=r"`mask_token` must be a token.*mask_token='<m>'"):
        masking_arguments(tokens, "<m>")


def test_arguments_of_tokenizers_are_read():
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "<a>": 1, "##b": 2}))
    tokenizer.add_special_tokens(["[UNK]", "[MASK]"])
    tokenizer.add_tokens(["plain"])
    assert masking_arguments(tokenizer, whole_words=True) == {
        "vocabulary_size": 5,
        "mask_token_id": 3,
        "unselectable_token_ids": [0, 3],
        "continuation_token_ids": [2],
    }

    transformers = pytest.importorskip("transformers")
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, mask_token="<a>", unk_token="[UNK]"
    )
    arguments = masking_arguments(wrapped)
    assert arguments["mask_token_id"] == 1 and arguments["vocabulary_size"] == 5
    # [MASK], too, which the file has among its special tokens, and no argument names.
    assert arguments["unselectable_token_ids"] == [0, 1, 3]


def test_arguments_of_sentencepiece_are_read():
    sentencepiece = pytest.importorskip("sentencepiece")
    processor = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())
    arguments = masking_arguments(processor)
    assert arguments["vocabulary_size"] == processor.get_piece_size()
    assert processor.id_to_piece(arguments["mask_token_id"]) == "<mask>"
    protected = set(map(processor.id_to_piece, arguments["unselectable_token_ids"]))
    assert {"<s>", "</s>", "UNK", "<mask>"} <= protected and "▁the" not in protected


class LikeXLMRoberta:
    """What KerasHub's tokenizers offer of this, under names that say nothing."""

    mask_token_id = 3
    special_token_ids = [0, 2]

    def get_vocabulary(self):
        return ["BEGIN", "a", "END", "MASK"]


def test_special_ids_are_those_that_the_tokenizer_says():
    assert masking_arguments(LikeXLMRoberta())["unselectable_token_ids"] == [0, 2, 3]


def test_arguments_of_keras_hub_are_read():
    models = keras_hub().models
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<mask>": 3, "a": 4, "Ġ": 5, "Ġa": 6, "b": 7}
    assert masking_arguments(models.RobertaTokenizer(vocabulary, ["Ġ a"]), whole_words=True) == {
        "vocabulary_size": 8,
        "mask_token_id": 3,
        "unselectable_token_ids": [0, 1, 2, 3],
        "continuation_token_ids": [4, 7],
    }
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused]", "a", "##b"]
    assert masking_arguments(models.BertTokenizer(tokens), whole_words=True) == {
        "vocabulary_size": 8,
        "mask_token_id": 4,
        "unselectable_token_ids": [0, 1, 2, 3, 4, 5],
        "continuation_token_ids": [7],
    }
