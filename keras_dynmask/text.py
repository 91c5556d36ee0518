"""Text to rows of token ids: documents, a WordPiece tokenizer, packing, rows in a file.

The tokenizer is Hugging Face's `tokenizers`, which comes with the extra `text`.
"""

import contextlib
import glob
import itertools
import json
import math
import pathlib
import zlib

import numpy as np

from keras_dynmask.errors import require
from keras_dynmask.inputs import check_ids

PADDING, UNKNOWN, SEPARATOR, MASK = "[PAD]", "[UNK]", "[SEP]", "[MASK]"
SPECIAL_TOKENS = (PADDING, UNKNOWN, SEPARATOR, MASK)  # ids 0 to 3

# Long files are cut into sections of about so many words, of which some are held out.
SECTION_WORDS = 500
DOCUMENTS_AT_ONCE = 1000  # about 600,000 ids; the tokenizer holds 100 bytes for each
IDS_AT_ONCE = 2**20
CHECKSUM_BYTES = 4


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
    from tokenizers import models, trainers

    learner = _wordpiece(models.WordPiece(unk_token=UNKNOWN))
    split, normalize = learner.pre_tokenizer.pre_tokenize_str, learner.normalizer.normalize_str
    continuing_letters = {
        f"##{letter}"
        for document in documents
        for word, _ in split(normalize(document))
        for letter in word[1:]
    }
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[*SPECIAL_TOKENS, *sorted(continuing_letters)],
        show_progress=False,
    )
    learner.train_from_iterator(documents, trainer)
    return _tokenizer_of(learner.get_vocab())


def load_tokenizer(path):
    """The tokenizer of a `pretrain` directory.

    Raises:
        ValueError: where the file is missing, broken or of another make.
    """
    from tokenizers import Tokenizer

    with reading(path, "a tokenizer file that pretrain wrote"):
        tokenizer = Tokenizer.from_file(str(path))
        vocabulary = tokenizer.get_vocab()
        ids = sorted(vocabulary.values())
        require(ids == list(range(len(ids))), "Ids must be numbered through.", ids=ids)
        special = [vocabulary.get(token) for token in SPECIAL_TOKENS]
        require(special == [0, 1, 2, 3], f"{SPECIAL_TOKENS} must be ids 0 to 3.", ids=special)
        found, made = (json.loads(each.to_str()) for each in (tokenizer, _tokenizer_of(vocabulary)))
        other = [name for name in made if found.get(name) != made[name]]
        require(not other, "It must split text as pretrain does.", other=other)
    return tokenizer


@contextlib.contextmanager
def reading(path, expected):
    """Whatever goes wrong with a file in the block, it is refused as not `expected`."""
    try:
        yield
    except Exception as error:  # archives, HDF5, CSV and JSON each have their own
        reason = " ".join(str(error).split()) or "nothing"
        reason = reason if len(reason) <= 300 else f"{reason[:300]}..."
        if not isinstance(error, ValueError):
            reason = f"{type(error).__name__}: {reason}"
        raise ValueError(f"`{path}` must be {expected}. Received: {reason}") from error


def special_ids(tokenizer):
    """The ids that are never masked and never swapped in."""
    return [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]


def pack(tokenizer, documents, length):
    """The rows of `packed` in one array `[rows, length]`."""
    return np.concatenate(list(packed(tokenizer, documents, length)))


def packed(tokenizer, documents, length):
    """Rows of `length` ids in blocks `[rows, length]`, as they come: documents end to end, a
    separator after each, int32. The last row is filled up with padding.

    Args:
        tokenizer: a `tokenizers.Tokenizer` with the special tokens of `train_tokenizer`.
        documents: strings. Never more than a few are held at once.
        length: int.
    """
    separator = tokenizer.token_to_id(SEPARATOR)
    documents, left = iter(documents), np.zeros(0, "int32")
    while some := list(itertools.islice(documents, DOCUMENTS_AT_ONCE)):
        ids = [[*encoding.ids, separator] for encoding in tokenizer.encode_batch(some)]
        stream = np.concatenate([left, *(np.asarray(each, "int32") for each in ids)])
        full = len(stream) // length * length
        yield stream[:full].reshape(-1, length)
        left = stream[full:]
    if len(left):
        rest = length - len(left)
        yield np.pad(left, (0, rest), constant_values=tokenizer.token_to_id(PADDING))[np.newaxis]


def write_rows(path, blocks):
    """Blocks of rows `[rows, length]`, one after the other, as one file to map into memory.

    It is a `.npy` file of int32 that `np.load(path, mmap_mode="r")` reads. A checksum of
    the ids follows them: a bit that has turned over makes an id like any other.

    Args:
        path: where to write.
        blocks: integers `[rows, length]` each, all of one length; one at least.
    """
    blocks = (np.ascontiguousarray(block, "<i4") for block in blocks)
    first = next(blocks)
    rows, length, checksum = 0, first.shape[1], 0

    def header():  # NumPy leaves room in it for the number of rows to grow
        fields = {"descr": "<i4", "fortran_order": False, "shape": (rows, length)}
        np.lib.format.write_array_header_1_0(file, fields)

    with open(path, "wb") as file:
        header()
        for block in itertools.chain([first], blocks):
            file.write(block.data)
            rows, checksum = rows + len(block), zlib.crc32(block, checksum)
        file.write(checksum.to_bytes(CHECKSUM_BYTES, "little"))
        file.seek(0)
        header()


def read_rows(path, length, vocabulary_size):
    """The rows of a file that `write_rows` wrote, int32 `[rows, length]`, mapped into memory.

    All are read once, block by block, to check them; from then on only what is asked for.

    Args:
        path: of the file.
        length: int, of a row.
        vocabulary_size: int. Ids lie below it.

    Raises:
        ValueError: where the file is broken, or holds other rows.
    """
    with reading(path, f"rows of {length} ids that pretrain packed"):
        rows = np.lib.format.open_memmap(path, mode="r")  # takes no pickled objects
        require(
            rows.dtype == "<i4" and rows.ndim == 2 and rows.shape[1] == length and rows.size,
            f"Rows must be int32 [rows, {length}].",
            dtype=rows.dtype,
            shape=rows.shape,
        )
        checksum = 0
        for block in in_blocks(rows):
            checksum = zlib.crc32(block, checksum)
            check_ids(block, vocabulary_size)
        with open(path, "rb") as file:
            file.seek(rows.offset + rows.nbytes)
            end = file.read(CHECKSUM_BYTES + 1)
        whole = end == checksum.to_bytes(CHECKSUM_BYTES, "little")
        require(whole, "It must end with the checksum of its ids.", end=end.hex())
    return rows


def in_blocks(rows):
    """Rows, a few megabytes at a time."""
    size = max(1, IDS_AT_ONCE // rows.shape[1])
    return (np.asarray(rows[start : start + size]) for start in range(0, len(rows), size))


def unigram_loss(train_rows, held_out_rows, vocabulary_size, ignored_ids):
    """What a guess from token frequencies alone costs on held-out rows, in nats.

    The baseline any language model must beat. Counts are smoothed by one.
    """

    def counted(rows):
        blocks = in_blocks(rows)
        counts = sum(np.bincount(block.reshape(-1), minlength=vocabulary_size) for block in blocks)
        counts[list(ignored_ids)] = 0
        return counts

    counts, held_out = counted(train_rows) + 1.0, counted(held_out_rows)
    counts[list(ignored_ids)] = 0
    found = held_out > 0
    return float(-(held_out[found] @ np.log(counts[found] / counts.sum())) / held_out.sum())


def _tokenizer_of(vocabulary):
    """The tokenizer with this vocabulary, a dict from token to id."""
    from tokenizers import models

    tokenizer = _wordpiece(models.WordPiece(vocabulary, unk_token=UNKNOWN))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def _wordpiece(model):
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers

    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


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
