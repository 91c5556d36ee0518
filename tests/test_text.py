"""Text to rows: documents, tokenizer, packing, the unigram baseline."""

import math
import subprocess
import sys

import numpy as np
import pytest

from keras_dynmask import continuation_ids, text

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
        for _ in range(3)
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
