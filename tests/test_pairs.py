"""Pairs in rows: the layout, what fits, and what is held out."""

import numpy as np
import pytest

from keras_dynmask import pairs, text

PAIRS = [(f"the cat number {n}", f"katze {n}") for n in range(40)]


@pytest.fixture(scope="module")
def tokenizer():
    return text.train_tokenizer([side for pair in PAIRS for side in pair], 90)


def test_the_source_stands_to_the_right_and_the_target_ends(tokenizer):
    ((row,),) = pairs.packed_pairs(tokenizer, PAIRS[7:8], 10, 4)
    words = [tokenizer.id_to_token(index) for index in row]
    expected = "[PAD] the cat number 7 [SEP] katze 7 [SEP] [SEP]"
    assert " ".join(words).replace("[PAD] [PAD]", "[PAD]") == expected
    assert row.dtype == "int32" and len(row) == 10
    assert pairs.target_text(tokenizer, row, 4) == "katze 7"


def test_a_row_to_generate_for_has_masks_for_a_target(tokenizer):
    row = pairs.source_row(tokenizer, "the cat number 7", 10, 4)
    ((whole,),) = pairs.packed_pairs(tokenizer, PAIRS[7:8], 10, 4)
    assert row == [*whole[:6], *[tokenizer.token_to_id(text.MASK)] * 4]
    assert pairs.target_text(tokenizer, np.array(row), 4) == "[MASK] [MASK] [MASK] [MASK]"
    with pytest.raises(ValueError, match="`source` must have at most 2 tokens.*Received: tokens=4"):
        pairs.source_row(tokenizer, "the cat number 7", 7, 4)


def test_what_does_not_fit_is_left_out(tokenizer):
    few = [*PAIRS[:2], ("the cat " * 9, "katze 1"), ("the", "katze " * 4), *PAIRS[2:4]]
    (rows,) = pairs.packed_pairs(tokenizer, few, 10, 4)
    assert len(rows) == 4
    assert list(pairs.packed_pairs(tokenizer, few[2:4], 10, 4))[0].shape == (0, 10)


def test_the_target_can_be_told_from_the_column():
    features = pairs.with_target(np.arange(12).reshape(2, 6), 2)
    assert features["selectable"].tolist() == [[False] * 4 + [True] * 2] * 2


def test_a_source_is_on_one_side_with_all_its_targets():
    twice = [(source, target + again) for source, target in PAIRS for again in ("", " zwei")]
    training, held_out = pairs.split_pairs(twice, 0.25)
    assert len(held_out) == 20 and len(training) == 60
    assert not {source for source, _ in training} & {source for source, _ in held_out}
    with pytest.raises(ValueError, match="`pairs` must hold enough sources to hold some out.*=1"):
        pairs.split_pairs(twice[:2], 0.25)


def test_files_are_read_and_further_columns_left_out(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("\ufeffone cat\ten katt\tby nobody\n\ntwo\ttvå\n", encoding="utf-8")
    assert pairs.read_pairs(path) == [("one cat", "en katt"), ("two", "två")]


@pytest.mark.parametrize(
    "content",
    [
        "one cat\ten katt\r\ntwo\ttvå\r\n",
        "one cat\ten katt\t\ntwo\ttvå\t\t",
        'one cat\ten katt\n\n"two\t"två',
        "one\u2028cat\ten\x0c\x85katt\ntwo\ttvå",  # end lines in Python, not in a file
    ],
    ids=["CRLF", "tabs at the end", "quotes", "separators"],
)
def test_a_line_is_a_line_of_the_file(content, tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_bytes(content.encode())
    first, second = content.replace("\r", "").strip().replace("\n\n", "\n").split("\n")
    assert pairs.read_pairs(path) == [tuple(line.split("\t")[:2]) for line in (first, second)]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"one\ttwo\n\nthree", "Line 3 must hold both.*three"),
        (b"one\t \n", "Line 1 must hold both"),
        (b"\n", "It must hold pairs"),
        (b"\xff\t\xfe", "can't decode byte 0xff"),
    ],
)
def test_other_files_are_refused(content, message, tmp_path):
    (tmp_path / "pairs.tsv").write_bytes(content)
    with pytest.raises(ValueError, match=f"must be pairs of a source and a target.*{message}"):
        pairs.read_pairs(tmp_path / "pairs.tsv")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="`pairs` must name a readable file.*nowhere.tsv"):
        pairs.read_pairs(tmp_path / "nowhere.tsv")
