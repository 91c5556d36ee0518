"""Text to rows: documents, tokenizer, packing, the unigram baseline."""

import math
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from keras_dynmask import continuation_ids, text, training

DOCUMENTS = [f"the cat number {n} sat on the mat and the dog sat on the cat" for n in range(20)]


@pytest.fixture(scope="module")
def tokenizer():
    return text.train_tokenizer(DOCUMENTS, 60)


def test_the_embedded_corpus_is_the_language_reference():
    documents = text.embedded_corpus()
    assert len(documents) > 60 and sum(len(each.split()) for each in documents) > 50_000
    assert documents == text.embedded_corpus()


def test_long_files_are_cut_into_sections_and_short_ones_are_not(tmp_path):
    (tmp_path / "long.txt").write_text("one two three four\n" * 300)
    (tmp_path / "short.txt").write_text("åäö is text too")
    documents = text.read_corpus([tmp_path / "*.txt"])
    words = [len(document.split()) for document in documents]
    assert words == [500, 500, 200, 4]
    assert "åäö" in documents[-1]


def test_one_long_line_is_cut_too_and_a_byte_order_mark_is_left_out(tmp_path):
    (tmp_path / "a[1].txt").write_text("\ufeff" + "word " * 1200, encoding="utf-8")
    documents = text.read_corpus([tmp_path / "a[1].txt"])
    assert [len(document.split()) for document in documents] == [500, 500, 200]
    assert documents[0].startswith("word")


def test_every_so_many_th_document_is_held_out():
    documents = [str(n) for n in range(10)]
    training, held_out = text.split_documents(documents, 0.25)
    assert held_out == ["3", "7"] and training == ["0", "1", "2", "4", "5", "6", "8", "9"]
    assert text.split_documents(documents, 0.4)[1] == ["2", "4", "7", "9"]


def test_special_tokens_come_first_and_masks_are_read(tokenizer):
    assert text.special_ids(tokenizer) == [0, 1, 2, 3]
    assert tokenizer.encode("the [MASK] sat").tokens == ["the", "[MASK]", "sat"]
    assert tokenizer.encode("The CAT").tokens == ["the", "cat"]


def test_continuations_are_the_pieces_inside_words(tokenizer):
    continuing = set(continuation_ids(tokenizer))
    encoding = tokenizer.encode("the catand")
    words = encoding.word_ids
    expected = [i > 0 and words[i] == words[i - 1] for i in range(len(words))]
    assert [index in continuing for index in encoding.ids] == expected and any(expected)


def test_packing_loses_nothing(tokenizer):
    rows = text.pack(tokenizer, DOCUMENTS[:3], 16)
    assert rows.dtype == "int32" and rows.shape[1] == 16
    expected = []
    for document in DOCUMENTS[:3]:
        expected += [*tokenizer.encode(document).ids, tokenizer.token_to_id("[SEP]")]
    stream = rows.reshape(-1)
    assert stream[: len(expected)].tolist() == expected
    assert (stream[len(expected) :] == 0).all() and len(stream) - len(expected) < 16


def test_rows_come_out_of_a_file_as_they_went_in(tokenizer, tmp_path, monkeypatch):
    whole = text.pack(tokenizer, DOCUMENTS, 16)
    monkeypatch.setattr(text, "DOCUMENTS_AT_ONCE", 3)
    monkeypatch.setattr(text, "IDS_AT_ONCE", 40)
    blocks = list(text.packed(tokenizer, DOCUMENTS, 16))
    assert len(blocks) == 8  # seven times three documents or fewer, and the filled up row
    text.write_rows(tmp_path / "rows.npy", blocks)
    for read in (
        text.read_rows(tmp_path / "rows.npy", 16, 60),
        np.load(tmp_path / "rows.npy", mmap_mode="r"),
        np.load(tmp_path / "rows.npy"),
    ):
        assert read.dtype == "int32"
        np.testing.assert_array_equal(read, whole)


@pytest.mark.parametrize(
    ("rows", "length", "vocabulary_size", "message"),
    [
        ([[1, 2, 3]], 4, 9, r"must be rows of 4 ids .* int32 \[rows, 4\].*shape=\(1, 3\)"),
        ([[1, 2, 9]], 3, 9, r"must lie in \[0, 8\].*token_ids=\[9\]"),
        ([[1, 2, -1]], 3, 9, r"must lie in \[0, 8\].*token_ids=\[-1\]"),
        (np.zeros((0, 3)), 3, 9, "int32"),
    ],
)
def test_other_rows_are_refused(rows, length, vocabulary_size, message, tmp_path):
    text.write_rows(tmp_path / "rows.npy", [np.array(rows, "int32")])
    with pytest.raises(ValueError, match=message):
        text.read_rows(tmp_path / "rows.npy", length, vocabulary_size)


def test_rows_that_something_else_wrote_are_refused(tmp_path):
    """So is a file in which an id was changed, or which was cut or grew."""
    path = tmp_path / "rows.npy"
    np.save(path, np.ones((5, 4), "int32"))
    written = path.read_bytes()
    text.write_rows(path, [np.ones((5, 4))])
    whole = path.read_bytes()
    changed = whole[:-8] + b"\2" + whole[-7:]  # the last id is 2
    for content in (written, changed, whole[:-1], whole + b"\0"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="must end with the checksum of its ids"):
            text.read_rows(path, 4, 1000)


def test_rows_need_little_memory_however_many_they_are(tmp_path):
    """Written, checked, counted and shuffled block by block: NumPy reports what it allocates."""
    drawn = np.random.default_rng(0)
    blocks = (drawn.integers(4, 100, (8192, 64), "int32") for _ in range(32))
    tracemalloc.start()
    try:
        text.write_rows(tmp_path / "rows.npy", blocks)
        rows = text.read_rows(tmp_path / "rows.npy", 64, 100)
        text.unigram_loss(rows, rows, 100, [0, 1, 2, 3])
        batches = training.ShuffledRows(rows, 32, seed=0)
        held_out = training.Rows(rows, 32)
        for index in range(50):
            assert batches[index].shape == held_out[index].shape == (32, 64)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert rows.nbytes == 2**26 and peak < rows.nbytes / 4


def test_the_unigram_baseline_by_hand():
    train, held_out = np.array([[4, 4, 4, 5]]), np.array([[4, 5, 0, 6]])
    expected = -(math.log(4 / 7) + math.log(2 / 7) + math.log(1 / 7)) / 3  # counts + 1
    assert text.unigram_loss(train, held_out, 7, [0, 1, 2, 3]) == pytest.approx(expected)


@pytest.mark.slow
def test_the_same_text_gives_the_same_tokenizer_in_every_process():
    script = (
        "from keras_dynmask import text;"
        "print(text.train_tokenizer(text.embedded_corpus()[:20], 600).to_str())"
    )
    outputs = {
        subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
        for _ in range(2)
    }
    assert len(outputs) == 1


def test_bad_files_are_named(tmp_path):
    (tmp_path / "latin.txt").write_bytes("smörgåsbord".encode("latin-1"))
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "broken.json").write_text("{")
    for pattern, message in (
        ("missing.txt", "must name readable text files.*missing.txt"),
        ("latin.txt", "must be UTF-8 text.*latin.txt, which is not at byte 2"),
        ("empty.txt", "must hold text, but every file is empty"),
        (".", "must name readable text files"),
    ):
        with pytest.raises(ValueError, match=message):
            text.read_corpus([tmp_path / pattern])
    with pytest.raises(ValueError, match="at least 8 documents or sections.*documents=2"):
        text.split_documents(["a", "b"], 0.125)
    for name in ("broken.json", "nowhere.json"):
        with pytest.raises(ValueError, match=f"{name}. must be a tokenizer file"):
            text.load_tokenizer(tmp_path / name)
