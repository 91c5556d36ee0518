"""What the users of other maskers take for granted, written anew from what those do.

Each case holds for our layer as it does there. Or its name says that it differs, and it finds the
row that tells a user so, with the reason: under "What changes" of docs/from_kerashub.md or of
docs/from_hugging_face.md. Where the other masker is quick to ask, it is asked the same.

Not taken over, because nothing here answers to it: the collator's `mlm=False` (nothing is masked),
its padding and `pad_to_multiple_of` (of the tokenizer), the permutation collator (its masks are of
attention, and its model XLNet's), `LastNItemSelector` (the first n, turned round), selection of
whole rows or along other axes of a ragged tensor, and presets, which are downloaded.
"""

import itertools
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from keras_dynmask import DynamicMasking, mask_dataset, word_begins
from keras_dynmask.vocabulary import continuation_ids, masking_arguments

DOCS = Path(__file__).parent.parent / "docs"


def tells_what_changes(page, row):
    """That the page has such a row under "What changes"."""
    changes = (DOCS / f"{page}.md").read_text().split("## What changes")[1]
    assert re.search(rf"^(\| )?{re.escape(row)}", changes, re.MULTILINE), row


def all_hidden(mask_token_id=0, **settings):
    """Selects all that it may, and hides it."""
    defaults = {
        "vocabulary_size": 28,
        "mask_selection_rate": 1.0,
        "mask_token_id": mask_token_id,
        "unselectable_token_ids": (),
        "mask_token_rate": 1.0,
        "random_token_rate": 0.0,
        "seed": 1,
    }
    return DynamicMasking(**defaults | settings)


def lists(outputs):
    """Tensors as lists; the ragged, too, which the generator gives as lists."""

    def one(value):
        if isinstance(value, list):
            return value
        return value.to_list() if isinstance(value, tf.RaggedTensor) else np.asarray(value).tolist()

    return {name: one(value) for name, value in outputs.items()}


# KerasHub: `MaskedLMMaskGenerator`


@pytest.fixture(scope="module")
def keras_hub():
    return pytest.importorskip("keras_hub", minversion="0.32")


GENERATED = {  # settings, ids, and what both give for them
    "ragged rows": (
        {"mask_selection_length": 4},
        [[5, 3, 2], [1, 2, 3, 4]],
        {
            "token_ids": [[0, 0, 0], [0, 0, 0, 0]],
            "mask_positions": [[0, 1, 2, 0], [0, 1, 2, 3]],
            "mask_ids": [[5, 3, 2, 0], [1, 2, 3, 4]],
            "mask_weights": [[1, 1, 1, 0], [1, 1, 1, 1]],
        },
    ),
    "dense rows": (
        {"mask_selection_length": 4},
        [[5, 3, 2, 4], [1, 2, 3, 4]],
        {
            "token_ids": [[0] * 4] * 2,
            "mask_positions": [[0, 1, 2, 3]] * 2,
            "mask_ids": [[5, 3, 2, 4], [1, 2, 3, 4]],
            "mask_weights": [[1] * 4] * 2,
        },
    ),
    "one row": (
        {"mask_selection_length": 5},
        [5, 3, 2],
        {
            "token_ids": [0, 0, 0],
            "mask_positions": [0, 1, 2, 0, 0],
            "mask_ids": [5, 3, 2, 0, 0],
            "mask_weights": [1, 1, 1, 0, 0],
        },
    ),
    "rate 0": (
        {"mask_selection_rate": 0.0, "mask_selection_length": 2},
        [[5, 3, 2], [1, 2, 3]],
        {
            "token_ids": [[5, 3, 2], [1, 2, 3]],
            "mask_positions": [[0, 0]] * 2,
            "mask_ids": [[0, 0]] * 2,
            "mask_weights": [[0, 0]] * 2,
        },
    ),
    "protected ids": (
        {"mask_selection_length": 3, "unselectable_token_ids": [1, 2]},
        [[1, 2, 1], [1, 3, 2]],
        {
            "token_ids": [[1, 2, 1], [1, 0, 2]],
            "mask_positions": [[0, 0, 0], [1, 0, 0]],
            "mask_ids": [[0, 0, 0], [3, 0, 0]],
            "mask_weights": [[0, 0, 0], [1, 0, 0]],
        },
    ),
}
every_generated = pytest.mark.parametrize(
    ("settings", "ids", "expected"), GENERATED.values(), ids=GENERATED
)


@every_generated
def test_a_generator_of_kerashub_becomes_our_layer(settings, ids, expected):
    assert lists(all_hidden(**settings)(ids)) == expected


@every_generated
def test_the_generator_gives_the_same(keras_hub, settings, ids, expected):
    generator = keras_hub.layers.MaskedLMMaskGenerator(**{
        "vocabulary_size": 28, "mask_selection_rate": 1.0, "mask_token_id": 0,
        "unselectable_token_ids": [], "mask_token_rate": 1.0, "random_token_rate": 0.0,
    } | settings)  # fmt: skip
    theirs, ours = generator(ids), all_hidden(**settings)(ids)
    assert lists(theirs) == expected and theirs.keys() == ours.keys()


@pytest.mark.parametrize("name", ["ragged rows", "dense rows"])
def test_a_generator_maps_a_dataset(name):
    settings, ids, expected = GENERATED[name]
    ids = tf.ragged.constant(ids) if name == "ragged rows" else tf.constant(ids)
    dataset = tf.data.Dataset.from_tensor_slices(ids).batch(2)
    (masked,) = dataset.map(all_hidden(**settings))
    assert lists(masked) == expected


def test_rows_may_be_batched_before_or_after():
    rows = tf.data.Dataset.from_tensor_slices(tf.ones((20, 10), "int32"))
    masking = all_hidden(mask_selection_rate=0.5, mask_selection_length=5)
    before = rows.batch(8, drop_remainder=True).map(masking)
    after = rows.map(masking).batch(8, drop_remainder=True)
    assert before.element_spec == after.element_spec
    assert before.element_spec["mask_ids"].shape == (8, 5)


def test_every_swap_shows_another_token():
    masking = all_hidden(
        vocabulary_size=10_000, mask_token_rate=0.0, random_token_rate=1.0, mask_selection_length=4
    )
    outputs = lists(masking([5, 3, 2, 4]))
    assert outputs["mask_ids"] == [5, 3, 2, 4] and outputs["mask_positions"] == [0, 1, 2, 3]
    assert not set(outputs["token_ids"]) & {0, 2, 3, 4, 5}


def test_never_more_than_the_length_are_selected():
    outputs = all_hidden(mask_selection_length=2)([[5, 3, 2, 4], [1, 2, 3, 4]])
    assert lists(outputs)["mask_weights"] == [[1, 1]] * 2
    assert (outputs["token_ids"].numpy() == 0).sum(axis=1).tolist() == [2, 2]


def test_a_configuration_makes_the_same_layer_again():
    masking = all_hidden(mask_selection_rate=0.5, unselectable_token_ids=[26, 27])
    again = DynamicMasking.from_config(masking.get_config())
    ids = [[5, 3, 2], [1, 2, 3, 4]]
    assert lists(again(ids)) == lists(masking(ids))
    assert set(masking.get_config()["unselectable_token_ids"]) == {26, 27}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_token_id": 28}, "`mask_token_id` must be"),
        ({"mask_selection_length": 0}, "`mask_selection_length` must be"),  # which differs
        ({"mask_selection_rate": 1.1}, "`mask_selection_rate` must be"),
        ({"mask_token_rate": 0.9, "random_token_rate": 0.2}, "`random_token_rate` must be at most"),
    ],
    ids=str,
)
def test_what_is_no_setting_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        all_hidden(**settings)


def test_a_length_of_0_differs():
    tells_what_changes("from_kerashub", "`mask_selection_length=0`")
    outputs = all_hidden(mask_selection_rate=0.0, mask_selection_length=1)([[5, 3, 2]])
    assert not outputs["mask_weights"].numpy().any()


def test_without_a_length_targets_differ():
    """Theirs are ragged; ours are as long as the row, and of both the selected are the same."""
    page = (DOCS / "from_kerashub.md").read_text()
    assert "in place of ragged" in page.split("## What changes")[0]
    outputs = lists(all_hidden()([[5, 3, 2], [1, 2, 3, 4]]))
    assert outputs["mask_ids"] == [[5, 3, 2], [1, 2, 3, 4]]
    assert outputs["mask_weights"] == [[1, 1, 1], [1, 1, 1, 1]]
    assert "mask_positions" not in outputs


@pytest.mark.parametrize("training", [True, False])
def test_keys_and_types_are_those_of_the_generator(keras_hub, training):
    ids = np.full((2, 6), 5)
    generator = keras_hub.layers.MaskedLMMaskGenerator(28, 0.5, 0, 4, unselectable_token_ids=[])
    masking = all_hidden(mask_selection_rate=0.5, mask_selection_length=4)
    rows = tf.data.Dataset.from_tensors(ids.astype("int32"))
    if training:  # in tf.data
        (theirs,), (ours,) = rows.map(generator), rows.map(masking)
        assert theirs.pop("mask_positions").dtype == "int64"
        assert ours.pop("mask_positions").dtype == "int32"
    else:
        theirs, ours = generator(ids.tolist()), masking(ids.astype("int32"))
    assert {n: (v.dtype, v.shape) for n, v in theirs.items()} == {
        n: (v.dtype, v.shape) for n, v in ours.items()
    }


ROWS, COLUMNS = 2000, 21
SAME = np.full((ROWS, COLUMNS), 5, "int32")  # 15 % of a row are 3.15


def counts(outputs):
    return (np.asarray(outputs["mask_weights"]) > 0).sum(axis=1)


def test_how_many_are_selected_differs(keras_hub):
    """3.15 tokens of 21: four of them there in tf.data, any number eagerly; here three, or four
    in .15 of the rows. Off by 7.2 standard errors of .00798, .058 more or fewer is seen with
    .99, at a false alarm of one in a million."""
    tells_what_changes("from_kerashub", "how many")
    settings = {"vocabulary_size": 28, "mask_selection_rate": 0.15, "mask_token_id": 0}
    generator = keras_hub.layers.MaskedLMMaskGenerator(mask_selection_length=8, **settings)
    (in_tf_data,) = tf.data.Dataset.from_tensors(SAME[:50]).map(generator)
    assert set(counts(in_tf_data)) == {4}
    assert len(set(counts(generator(SAME[:50].tolist())))) > 3

    selected = counts(DynamicMasking(mask_selection_length=8, seed=3, **settings)(SAME))
    assert set(selected) == {3, 4}
    assert abs(selected.mean() - 3.15) < 4.89 * (0.15 * 0.85 / ROWS) ** 0.5
    on_its_own = counts(DynamicMasking(exact_count=False, seed=3, **settings)(SAME))
    assert abs(on_its_own.mean() - 3.15) < 4.89 * (COLUMNS * 0.15 * 0.85 / ROWS) ** 0.5
    assert {0, 1, 6, 7} <= set(on_its_own)


def test_what_a_swap_shows_differs(keras_hub):
    """42,000 swaps show each of 23 ids some 1,800 times; there 2,100 each of 28 some 75 times."""
    tells_what_changes("from_kerashub", "what a swap shows")
    tells_what_changes("from_hugging_face", "what a swap shows")
    swapping = {"mask_token_rate": 0.0, "random_token_rate": 1.0}
    outputs = all_hidden(mask_token_id=4, unselectable_token_ids=range(4), **swapping)(SAME)
    shown = np.unique(outputs["token_ids"].numpy())
    assert shown.tolist() == list(range(5, 28))

    generator = keras_hub.layers.MaskedLMMaskGenerator(28, 1.0, 4, **swapping)
    shown = np.unique(np.asarray(generator(SAME[:100].tolist())["token_ids"]))
    assert shown.tolist() == list(range(28))


def test_inside_a_model_differs():
    tells_what_changes("from_kerashub", "inside a model")
    inputs = keras.Input((COLUMNS,), dtype="int32")
    model = keras.Model(inputs, all_hidden()(inputs)["token_ids"])
    np.testing.assert_array_equal(model(SAME[:2]), SAME[:2])
    assert not model(SAME[:2], training=True).numpy().any()


# KerasHub: the preprocessors, which tokenize, pack and mask


PREPROCESSORS = {  # the packer's separators, and the segments of a row
    "Albert": (1, True),
    "Bert": (1, True),
    "DebertaV3": (1, False),
    "DistilBert": (1, False),
    "FNet": (1, True),
    "Roberta": (2, False),
    "XLMRoberta": (2, False),
}
ONE = ["the quick brown fox jumped", "the fox"]
TWO = (["the quick brown fox", "the fox"], ["the fox jumped", "fox"])
CASES = {
    **{f"{name}, two segments": (name, TWO, 1.0) for name in PREPROCESSORS},
    "one segment": ("Bert", ONE, 1.0),
    "nothing selected": ("Bert", ONE, 0.0),
}


@pytest.mark.parametrize(("name", "texts", "rate"), CASES.values(), ids=CASES)
def test_a_preprocessor_becomes_tokenizer_packer_and_mask_dataset(keras_hub, name, texts, rate):
    """All hidden, or nothing selected, they agree in every number."""
    from from_kerashub import tokenizer

    its, (separators, segmented) = tokenizer(name), PREPROCESSORS[name]
    shares = {"mask_selection_rate": rate, "mask_token_rate": 1.0, "random_token_rate": 0.0}
    preprocessor = getattr(keras_hub.models, f"{name}MaskedLMPreprocessor")(
        its, sequence_length=40, mask_selection_length=36, **shares
    )
    theirs = preprocessor(x=texts)  # a tuple alone it takes for data and labels

    packer = keras_hub.layers.MultiSegmentPacker(
        start_value=its.start_token_id,
        end_value=its.end_token_id,
        sep_value=[its.end_token_id] * separators,
        pad_value=its.pad_token_id,
        sequence_length=40,
    )
    parts = texts if isinstance(texts, tuple) else (texts,)
    token_ids, segment_ids = packer(tuple(its(part) for part in parts))
    row = {"token_ids": token_ids} | ({"segment_ids": segment_ids} if segmented else {})
    masking = DynamicMasking(mask_selection_length=36, **masking_arguments(its), **shares)
    (ours,) = mask_dataset(
        tf.data.Dataset.from_tensors(row),
        masking,
        padding_token_id=None if name == "FNet" else its.pad_token_id,
    )
    assert lists(ours[0]) == lists(theirs[0])
    for one, other in zip(ours[1:], theirs[1:], strict=True):
        np.testing.assert_array_equal(one, other)
    hidden = ours[0]["token_ids"].numpy() == its.mask_token_id
    assert (hidden.sum(axis=1) == ours[2].numpy().sum(axis=1)).all() and hidden.any() == (rate > 0)


def test_an_unknown_word_is_spared_here(keras_hub):
    tells_what_changes("from_kerashub", "`[UNK]`")
    from from_kerashub import tokenizer

    its = tokenizer("Bert")
    unknown = its.token_to_id("[UNK]")
    masking = DynamicMasking(mask_selection_rate=1.0, **masking_arguments(its))
    assert lists(masking([5, unknown, 8]))["mask_weights"] == [1, 0, 1]
    generator = keras_hub.layers.MaskedLMMaskGenerator(
        its.vocabulary_size(), 1.0, its.mask_token_id, 3, its.special_token_ids
    )
    assert lists(generator([5, unknown, 8]))["mask_weights"] == [1, 1, 1]


# Hugging Face: `DataCollatorForLanguageModeling`

BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*"abcdefghij", *(f"##{letter}" for letter in "klmnopqrst")]
PAD, UNK, CLS, SEP, MASK = range(5)
IDS = np.random.default_rng(0).integers(5, 25, (4000, 22))
IDS[:, 0], IDS[:, -2], IDS[:, -1] = CLS, SEP, PAD
SELECTABLE = slice(1, -2)  # 19 tokens
SHARE = {"mask_selection_rate": 0.15, "exact_count": False}


@pytest.fixture(scope="module")
def hugging_face():
    """A tokenizer of pieces, and the collator in NumPy."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {token: index for index, token in enumerate([*BERT, *WORDS])}
    pieces = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    named = {f"{token[1:4].lower()}_token": token for token in BERT[:4]}
    its = transformers.PreTrainedTokenizerFast(
        tokenizer_object=pieces, mask_token="[MASK]", **named
    )

    def collator(**settings):
        return transformers.DataCollatorForLanguageModeling(
            its, return_tensors="np", **{"seed": 0} | settings
        )

    return its, collator


def like_a_collator(masking, ids=IDS, **features):
    """`input_ids` and `labels`, -100 where not selected."""
    masked = masking.mask_arrays({"token_ids": ids, **features})
    labels = np.where(masked["mask_weights"] > 0, masked["mask_ids"], -100)
    return {"input_ids": masked["token_ids"], "labels": labels}


def differ(counts_of_one, counts_of_other):
    """The largest |z| between two samples of independent draws, `[hits, misses]` each."""
    (a, b), (c, d) = counts_of_one, counts_of_other
    pooled = (a + c) / (a + b + c + d)
    spread = (pooled * (1 - pooled) * (1 / (a + b) + 1 / (c + d))) ** 0.5
    return abs(a / (a + b) - c / (c + d)) / spread


def hits(flags):
    return int(flags.sum()), int((~flags).sum())


SHARES = [(0.8, 0.1), (1.0, 0.0), (0.0, 1.0), (0.5, 0.4)]


@pytest.mark.parametrize(("hide", "swap"), SHARES)
def test_the_collator_masks_as_many_and_shows_them_alike(hugging_face, hide, swap):
    """Both by independent draws, of 76,000 tokens: rates .014 apart are seen with .99, at a false
    alarm of one in a million, and so are shares of the 11,400 selected that are .05 apart."""
    its, collator = hugging_face
    theirs = collator(mask_replace_prob=hide, random_replace_prob=swap)(
        [{"input_ids": row} for row in IDS.tolist()]
    )
    masking = DynamicMasking(
        **masking_arguments(its), **SHARE, mask_token_rate=hide, random_token_rate=swap, seed=0
    )
    ours = like_a_collator(masking)
    assert ours.keys() == theirs.keys() - {"attention_mask"}
    roles = []
    for batch in (ours, theirs):
        assert batch["input_ids"].shape == batch["labels"].shape == IDS.shape
        assert batch["input_ids"].dtype == batch["labels"].dtype == "int64"
        selected = batch["labels"] != -100
        shown, original = batch["input_ids"][selected], IDS[selected]
        assert (batch["labels"][selected] == original).all()
        assert (batch["input_ids"] == IDS)[~selected].all()
        assert not selected[:, [0, -2, -1]].any()
        among = selected[:, SELECTABLE]
        hidden = shown[:0] if hide == 0 else shown  # there a swap may show the mask token, too
        roles.append([hits(among), hits(hidden == MASK), hits(shown == original)])
    for one, other in zip(*roles, strict=True):
        assert 0 in (*one, *other) or differ(one, other) < 4.89
        assert (one[0] > 0) == (other[0] > 0)


def test_rows_without_a_target_differ(hugging_face):
    """Of rows of ten tokens .85**10 have none, one in five."""
    tells_what_changes("from_hugging_face", "rows without a target")
    its, collator = hugging_face
    ids = IDS[:, 1:11]
    theirs = collator()([{"input_ids": row} for row in ids.tolist()])
    masking = DynamicMasking(**masking_arguments(its), mask_selection_rate=0.15, at_least_one=True)
    empty = [(b["labels"] == -100).all(axis=1) for b in (theirs, like_a_collator(masking, ids))]
    assert abs(empty[0].mean() - 0.85**10) < 4.89 * (0.197 * 0.803 / len(ids)) ** 0.5
    assert not empty[1].any()


def test_a_seed_gives_the_same_masks_and_no_other_does(hugging_face):
    its, collator = hugging_face
    rows = [{"input_ids": row} for row in IDS[:50].tolist()]
    arguments = masking_arguments(its)

    def theirs(seed):
        return collator(seed=seed)(rows)

    def ours(seed):
        return like_a_collator(DynamicMasking(mask_selection_rate=0.15, seed=seed, **arguments))

    for mask in (theirs, ours):
        one, same, other = mask(1), mask(1), mask(2)
        assert all((one[name] == same[name]).all() for name in ("input_ids", "labels"))
        assert (one["labels"] != other["labels"]).any()


def test_what_stands_beside_the_ids_comes_back():
    """BERT's `token_type_ids`, and the labels of its second task."""
    features = {
        "token_ids": IDS[:2],
        "token_type_ids": np.arange(44).reshape(2, 22),
        "next_sentence_label": np.array([0, 1]),
    }
    before = {name: value.copy() for name, value in features.items()}
    masked = DynamicMasking(25, 0.5, MASK, seed=0)(features)
    for name in ("token_type_ids", "next_sentence_label"):
        np.testing.assert_array_equal(masked[name], before[name])
    for name, value in features.items():  # and what was handed over is as it was
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mlm_probability": 1.5}, {"mask_selection_rate": 1.5}),
        ({"mlm_probability": -0.1}, {"mask_selection_rate": -0.1}),
        ({"mask_replace_prob": 1.1, "random_replace_prob": -0.2}, {"mask_token_rate": 1.1}),
        ({"random_replace_prob": -0.2}, {"random_token_rate": -0.2}),
        ({"mask_replace_prob": 0.9, "random_replace_prob": 0.2}, {"random_token_rate": 0.21}),
    ],
    ids=str,
)
def test_both_refuse_the_same(hugging_face, arguments, message):
    with pytest.raises(ValueError, match="should"):
        hugging_face[1](**arguments)
    with pytest.raises(ValueError, match=f"`{next(iter(message))}` must be"):
        DynamicMasking(**{"vocabulary_size": 25, "mask_selection_rate": 0.1} | message | {
            "mask_token_id": MASK})  # fmt: skip


def test_a_tokenizer_without_a_mask_token_is_refused():
    with pytest.raises(ValueError, match="`mask_token` must be a token of the vocabulary"):
        masking_arguments(["[PAD]", *WORDS])


def test_whole_words_are_those_of_the_collator(hugging_face):
    """No word is cut by either. Both by independent draws, of 10,000 words: rates .037 apart are
    seen with .99, at a false alarm of one in a million."""
    its, collator = hugging_face
    text = "akl b ckln d ek"
    encoding = its([text] * 2000, return_offsets_mapping=True, add_special_tokens=False)
    ids = np.array(encoding["input_ids"])
    rows = [
        {"input_ids": row, "offset_mapping": offsets}
        for row, offsets in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
    ]
    theirs = collator(whole_word_mask=True, mask_replace_prob=1, random_replace_prob=0)(rows)
    settings = {**masking_arguments(its), **SHARE, "seed": 0}
    settings |= {"mask_token_rate": 1.0, "random_token_rate": 0.0}
    by_table = DynamicMasking(continuation_token_ids=continuation_ids(its), **settings)
    begins = word_begins(encoding.word_ids(0))
    word = np.cumsum(begins) - 1
    words = ("".join(encoding.tokens(0)[i] for i in np.flatnonzero(word == w)) for w in range(5))
    assert [each.replace("##", "") for each in words] == text.split()

    shares = []
    for batch in (
        theirs,
        like_a_collator(by_table, ids),
        like_a_collator(DynamicMasking(**settings), ids, begins=np.tile(begins, (2000, 1))),
    ):
        selected = batch["labels"] != -100
        assert (selected == selected[:, begins][:, word]).all()
        assert ((batch["input_ids"] == MASK) == selected).all()
        shares.append(hits(selected[:, begins]))
    assert shares[1] == shares[2] and differ(*shares[:2]) < 4.89


def test_what_a_whole_word_is_differs(hugging_face):
    """There, what stands between two spaces: with its comma. Here the tokenizer says."""
    tells_what_changes("from_hugging_face", "whole words")
    _, collator = hugging_face
    offsets = np.array([[(0, 1), (1, 2), (3, 4)]])  # "a, b"
    its_words, _ = collator()._calc_word_ids_and_prob_mask(offsets, np.zeros((1, 3), int))
    assert its_words.tolist() == [[1, 1, 2]]
    assert continuation_ids(["a", ",", "b", "##c"]) == [3]


def test_whole_words_keep_their_shares_here(hugging_face):
    """There `mask_replace_prob` becomes 1, with a warning."""
    page = (DOCS / "from_hugging_face.md").read_text()
    assert "80/10/10 stays, where the collator sets `mask_replace_prob` to 1" in page
    with pytest.warns(UserWarning, match="Setting mask_replace_prob to 1"):
        hugging_face[1](whole_word_mask=True)
    masking = DynamicMasking(25, 1.0, MASK, continuation_token_ids=range(15, 25), seed=0)
    shown = masking(IDS)["token_ids"].numpy()
    hidden = (shown == MASK)[:, SELECTABLE]
    assert abs(hidden.mean() - 0.8) < 4.89 * (0.8 * 0.2 / hidden.size) ** 0.5


# tensorflow-text: items of a ragged tensor, words of `[row, (words), (pieces)]` among them

VOCABULARY = [
    "[MASK]", "[RANDOM]", "[CLS]", "[SEP]", "##ack", "##ama", "##gers", "##onge", "##pants",
    "##uare", "##vel", "##ven", "A", "Bar", "Hates", "Mar", "Ob", "Patrick", "President", "Sp",
    "Sq", "bob", "box", "has", "highest", "is", "office", "the",
]  # fmt: skip
SPONGE = "Sp ##onge|bob|Sq ##uare ##pants"
BARACK = "Bar ##ack|Ob ##ama"
MARVEL = "Mar ##vel|A ##ven ##gers"
SPANS = "Sp ##onge bob|Sq ##uare ##pants|Hates|Patrick"  # units need be no words


def units_of(row):
    """`Sp ##onge|bob -> ids [19 7 21], begins [T F T]`."""
    units = [[VOCABULARY.index(piece) for piece in unit.split()] for unit in row.split("|")]
    begins = [[True] + [False] * (len(unit) - 1) for unit in units]
    return list(itertools.chain(*units)), list(itertools.chain(*begins))


def first_units(row, count, spared=()):
    """`FirstNItemSelector` by hand: True in the first units that hold no spared piece."""
    chosen, left = [], count
    for unit in row.split("|"):
        taken = left > 0 and not set(unit.split()) & set(spared)
        left -= taken
        chosen += [taken] * len(unit.split())
    return chosen


FIRST_TWO = [  # row, what to spare, and what is hidden of it
    (SPONGE.replace(" ", "|"), (), "Sp ##onge"),
    (BARACK.replace(" ", "|"), (), "Bar ##ack"),
    (SPONGE.replace(" ", "|"), ("[CLS]", "##onge", "Mar"), "Sp bob"),
    (MARVEL.replace(" ", "|"), ("[CLS]", "##onge", "Mar"), "##vel A"),
    (SPONGE, (), "Sp ##onge bob"),
    (BARACK, (), "Bar ##ack Ob ##ama"),
    (MARVEL, (), "Mar ##vel A ##ven ##gers"),
    (SPONGE, ("##onge", "Mar"), "bob Sq ##uare ##pants"),
    (MARVEL, ("##onge", "Mar"), "A ##ven ##gers"),
    (SPANS, (), "Sp ##onge bob Sq ##uare ##pants"),
]


@pytest.mark.parametrize(("row", "spared", "hidden"), FIRST_TWO)
@pytest.mark.parametrize("swap", [False, True])
def test_chosen_items_are_masked_whole(row, spared, hidden, swap):
    """Which items are chosen `selectable` says; with swaps, `[RANDOM]` is all there is to show."""
    ids, begins = units_of(row)
    pool = {"random_token_weights": np.eye(28)[1]} if swap else {}
    masking = all_hidden(mask_token_rate=1.0 - swap, random_token_rate=float(swap), **pool)
    outputs = masking({
        "token_ids": ids, "begins": begins, "selectable": first_units(row, 2, spared)
    })  # fmt: skip
    shown = outputs["token_ids"].numpy()
    selected = shown == int(swap)
    assert " ".join(VOCABULARY[index] for index in np.array(ids)[selected]) == hidden
    assert (shown[~selected] == np.array(ids)[~selected]).all()
    assert (outputs["mask_weights"].numpy() == selected).all()


def test_nothing_chosen_is_nothing_masked():
    ids, begins = units_of(SPONGE)
    chosen = [False] * len(ids)
    outputs = all_hidden()({"token_ids": ids, "begins": begins, "selectable": chosen})
    assert outputs["token_ids"].numpy().tolist() == ids


def drawn(row, steps=200, **settings):
    """Which positions are selected at each step: bool `[steps, length]`."""
    ids, begins = units_of(row)
    features = {"token_ids": np.tile(ids, (steps, 1)), "begins": np.tile(begins, (steps, 1))}
    return all_hidden(**settings)(features)["mask_weights"].numpy() > 0, np.array(begins)


def test_random_items_are_whole_words_and_their_number_differs():
    """`RandomItemSelector` rounds the number of words up; here it is one of tokens."""
    tells_what_changes("from_kerashub", "The words of tensorflow-text")
    tensorflow_text = pytest.importorskip("tensorflow_text")
    selected, begins = drawn(SPONGE, mask_selection_rate=0.4)
    word = np.cumsum(begins) - 1
    assert (selected == selected[:, begins][:, word]).all()
    # .4 of six tokens are 2.4; of three words, two: four pieces of six in the mean.
    assert abs(selected.sum(axis=1).mean() - 2.4) < 4.89 * selected.sum(axis=1).std() / 200**0.5
    selector = tensorflow_text.RandomItemSelector(2**31 - 1, 0.4)
    words = tf.ragged.constant([[[5, 6], [7], [8, 9, 10]]] * 50)
    theirs = selector.get_selection_mask(words, axis=1)
    assert set(tf.reduce_sum(tf.cast(theirs, tf.int32), axis=1).numpy()) == {2}


def test_a_word_with_a_protected_piece_differs():
    """There the word is spared; here the id stands for itself, and `selectable` spares a word."""
    tells_what_changes("from_kerashub", "The words of tensorflow-text")
    onge = VOCABULARY.index("##onge")
    selected, _ = drawn(SPONGE, unselectable_token_ids=[onge])
    assert (selected == [True, False, True, True, True, True]).all()


# ModernBERT: 30 %, by the rule of the collator in NumPy, packed rows, and only padding spared


def test_the_shares_of_modernbert():
    """Of 512,000 tokens that are no padding 30 % are selected, 24 hidden, 3 swapped, 3 kept.

    Independent draws: a rate off by 1.6 % of itself is seen with .99, at a false alarm of one in
    a million, and so is .808 hidden of the 153,600 selected."""
    page = (DOCS / "from_hugging_face.md").read_text()
    assert "Each token is drawn on its own there, which is `exact_count=False` here" in page
    ids = np.random.default_rng(1).integers(5, 1000, (1000, 520)).astype("int32")
    ids[:, 512:] = PAD
    masking = DynamicMasking(1000, 0.3, MASK, unselectable_token_ids=(PAD,), exact_count=False,
                             seed=5)  # fmt: skip
    masked = {name: np.asarray(value) for name, value in masking(ids).items()}
    selected = masked["mask_weights"] > 0
    assert not selected[:, 512:].any()
    of_rows = selected[:, :512].sum(axis=1)
    assert abs(of_rows.sum() - 0.3 * 512_000) < 4.89 * (512_000 * 0.3 * 0.7) ** 0.5
    # On its own: the spread of the rows is binomial, where exact counts are 153 or 154.
    spread = ((of_rows - 153.6) ** 2 / (512 * 0.3 * 0.7)).sum()
    assert stats.chi2.sf(spread, 1000) > 1e-6 and stats.chi2.cdf(spread, 1000) > 1e-6

    shown, original = masked["token_ids"][selected], ids[selected]
    hidden, unchanged = (shown == MASK).sum(), (shown == original).sum()
    seen = [hidden, len(shown) - hidden - unchanged, unchanged]
    by_chance = 0.1 / 998  # a swap shows the same; PAD and MASK are shown by none
    expected = len(shown) * np.array([0.8, 0.1 - by_chance, 0.1 + by_chance])
    assert stats.chisquare(seen, expected).pvalue > 1e-6


def test_an_exact_30_percent():
    ids = np.full((200, 512), 7)
    assert set(counts(DynamicMasking(1000, 0.3, MASK, seed=5)(ids))) == {153, 154}
