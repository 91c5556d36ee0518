"""Text to rows of token ids: documents, a WordPiece tokenizer, packing.

The tokenizer is Hugging Face's `tokenizers`, which comes with the extra `text`.
"""

import glob
import math
import pathlib

import numpy as np

from keras_dynmask.errors import require

PADDING, UNKNOWN, SEPARATOR, MASK = "[PAD]", "[UNK]", "[SEP]", "[MASK]"
SPECIAL_TOKENS = (PADDING, UNKNOWN, SEPARATOR, MASK)  # ids 0 to 3

# Long files are cut into sections of about so many words, of which some are held out.
SECTION_WORDS = 500


def embedded_corpus():
    """The Python language reference that ships inside CPython: a list of documents."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def read_corpus(patterns):
    """Documents from text files: a long file is cut into sections at line ends.

    Args:
        patterns: file names or glob patterns.

    Raises:
        ValueError: where a pattern matches no file, a file can't be read or is not
            UTF-8, or all of them are empty.
    """
    documents = []
    for pattern in map(str, patterns):
        names = [pattern] if pathlib.Path(pattern).is_file() else glob.glob(pattern, recursive=True)
        names = sorted(name for name in names if not pathlib.Path(name).is_dir())
        require(names, "`corpus` must name readable text files.", corpus=pattern)
        for name in names:
            documents += _sections(_read(name))
    require(documents, "`corpus` must hold text, but every file is empty.", corpus=list(patterns))
    return documents


def split_documents(documents, validation_share):
    """Training and validation documents: every so many-th is held out, evenly spread."""
    needed = math.ceil(1 / validation_share)
    require(
        len(documents) >= needed,
        f"`corpus` must hold at least {needed} documents or sections of {SECTION_WORDS} words, "
        "of which one is held out.",
        documents=len(documents),
    )
    parts = [], []
    for i, document in enumerate(documents):
        is_held_out = int((i + 1) * validation_share) > int(i * validation_share)
        parts[is_held_out].append(document)
    return parts


def train_tokenizer(documents, vocabulary_size):
    """A lower-casing WordPiece `tokenizers.Tokenizer`, learnt from the documents.

    The same documents give the same tokenizer. The library breaks ties by the order in
    which it first meets the continuing letters, and that order is random: so they are
    given to it beforehand, sorted.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    words = pre_tokenizers.BertPreTokenizer()

    def tokenizer(model):
        new = Tokenizer(model)
        new.normalizer, new.pre_tokenizer = normalizer, words
        new.decoder = decoders.WordPiece()
        return new

    continuing_letters = {
        f"##{letter}"
        for document in documents
        for word, _ in words.pre_tokenize_str(normalizer.normalize_str(document))
        for letter in word[1:]
    }
    learner = tokenizer(models.WordPiece(unk_token=UNKNOWN))
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[*SPECIAL_TOKENS, *sorted(continuing_letters)],
        show_progress=False,
    )
    learner.train_from_iterator(documents, trainer)
    learnt = tokenizer(models.WordPiece(learner.get_vocab(), unk_token=UNKNOWN))
    learnt.add_special_tokens(list(SPECIAL_TOKENS))
    return learnt


def load_tokenizer(path):
    """The tokenizer of a `pretrain` directory.

    Raises:
        ValueError: where the file is missing, broken or of another make.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"`{path}` must be a tokenizer file. Received: {error}") from error
    missing = [token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is None]
    require(not missing, f"`{path}` must be a tokenizer that pretrain wrote.", missing=missing)
    return tokenizer


def special_ids(tokenizer):
    """The ids that are never masked and never swapped in."""
    return [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]


def pack(tokenizer, documents, length):
    """Rows of `length` ids: documents end to end, a separator after each. int32.

    The last row is filled up with padding.
    """
    separator = tokenizer.token_to_id(SEPARATOR)
    ids = [[*encoding.ids, separator] for encoding in tokenizer.encode_batch(documents)]
    stream = np.concatenate([np.asarray(document, "int32") for document in ids])
    rows = np.full((-(-len(stream) // length), length), tokenizer.token_to_id(PADDING), "int32")
    rows.reshape(-1)[: len(stream)] = stream
    return rows


def unigram_loss(train_rows, held_out_rows, vocabulary_size, ignored_ids):
    """What a guess from token frequencies alone costs on held-out rows, in nats.

    The baseline any language model must beat. Counts are smoothed by one.
    """
    counts = np.bincount(train_rows.reshape(-1), minlength=vocabulary_size) + 1.0
    counts[list(ignored_ids)] = 0
    tokens = held_out_rows[~np.isin(held_out_rows, list(ignored_ids))]
    return float(-np.log(counts[tokens] / counts.sum()).mean())


def _read(name):
    try:
        return pathlib.Path(name).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"`corpus` must be UTF-8 text. Received: {name}, which is not at byte {error.start}"
        ) from error
    except OSError as error:
        raise ValueError(
            f"`corpus` must name readable text files. Received: {name}, {error.strerror}"
        ) from error


def _sections(text):
    sections, lines, words = [], [], 0
    for line in _lines(text):
        lines.append(line)
        words += len(line.split())
        if words >= SECTION_WORDS:
            sections.append("\n".join(lines))
            lines, words = [], 0
    return sections + (["\n".join(lines)] if words else [])


def _lines(text):
    """The lines of a text, those of more words than a section in pieces."""
    for line in text.splitlines():
        if len(line) < SECTION_WORDS:  # then it has fewer words, too
            yield line
        else:
            words = line.split()
            for start in range(0, len(words), SECTION_WORDS):
                yield " ".join(words[start : start + SECTION_WORDS])
