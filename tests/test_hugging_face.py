"""Labels of -100, and batches for PyTorch's loops and Hugging Face's Trainer."""

import importlib.util
import pickle
import sys

import numpy as np
import pytest
from elsewhere import on

from keras_dynmask import (
    DynamicMasking,
    MaskingCollator,
    hugging_face,
    ignore_index_labels,
    masking,
    noise,
    word_begins,
)
from keras_dynmask.arrays import numpy_in_force

torch = pytest.importorskip("torch")

RANDOM = np.random.default_rng(0)
ROWS = [
    [2, *RANDOM.integers(5, 100, length).tolist(), 3] for length in (9, 14, 4, 30, 22, 13, 7, 18)
]
LONGEST = max(map(len, ROWS))
PROTECTED = (0, 1, 2, 3, 4)
CONTINUES = tuple(range(60, 100))


def layer(**arguments):
    arguments = {"mask_selection_rate": 0.3, "seed": 7} | arguments
    return DynamicMasking(100, mask_token_id=4, unselectable_token_ids=PROTECTED, **arguments)


def numbered(rows=ROWS):
    return [{"input_ids": row, "row_ids": number} for number, row in enumerate(rows)]


def collated(examples, epoch=3, multiple=None, **arguments):
    collator = MaskingCollator(layer(**arguments), 0, pad_to_multiple_of=multiple)
    collator.set_epoch(epoch)
    return collator(examples)


def masks_of(batch):
    """What each row shows and is asked, without its padding."""
    lengths = batch["attention_mask"].sum(1)
    pairs = zip(batch["input_ids"].tolist(), batch["labels"].tolist(), lengths, strict=True)
    return [(ids[:length], labels[:length]) for ids, labels, length in pairs]


def padded(rows, filling=0):
    return np.array([[*row, *[filling] * (LONGEST - len(row))] for row in rows])


# Labels.


@pytest.mark.parametrize(
    ("masked", "labels"),
    [
        ({"mask_ids": [[7, 8, 9]], "mask_weights": [[0, 1, 0]]}, [[-100, 8, -100]]),
        ({"mask_ids": [7, 8, 9], "mask_weights": [2.5, 0, 1]}, [7, -100, 9]),
        (
            {"mask_ids": [[7, 9], [8, 0]], "mask_weights": [[1, 1], [1, 0]]}
            | {"mask_positions": [[0, 2], [1, 0]], "token_ids": [[4, 8, 4], [7, 4, 9]]},
            [[7, -100, 9], [-100, 8, -100]],
        ),
        (
            {"mask_ids": [8, 0], "mask_weights": [1, 0]}
            | {"mask_positions": [0, 0], "token_ids": [4, 5, 6]},
            [8, -100, -100],
        ),
    ],
    ids=["dense", "one row", "positions", "positions of one row"],
)
@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
def test_labels(masked, labels, dtype):
    kinds = {"mask_ids": dtype, "token_ids": dtype, "mask_weights": "float32"}
    masked = {k: np.array(v, kinds.get(k, "int32")) for k, v in masked.items()}
    found = ignore_index_labels(masked)
    assert type(found) is np.ndarray and found.tolist() == labels
    assert found.dtype == ("int64" if dtype == "int64" else "int32")
    other = np.where(np.array(labels) == -100, -1, labels)
    assert ignore_index_labels(masked, ignore_index=-1).tolist() == other.tolist()


# Batches.

WORDS = [[None, *np.sort(RANDOM.integers(0, len(row) // 2, len(row) - 2)), None] for row in ROWS]
SPECIAL = [(RANDOM.random(len(row)) < 0.3).astype(int).tolist() for row in ROWS]
WEIGHTS = [RANDOM.random(len(row)).tolist() for row in ROWS]


@pytest.mark.parametrize(
    ("arguments", "brought", "features"),
    [
        ({}, {}, {}),
        ({"mask_selection_length": 12}, {}, {}),
        ({"mask_selection_rate": (0.1, 0.9)}, {}, {}),
        ({"continuation_token_ids": CONTINUES}, {}, {}),
        (
            {"mean_span_length": 2.0},
            {"word_ids": WORDS},
            {"begins": np.array([word_begins([*w, *[None] * (LONGEST - len(w))]) for w in WORDS])},
        ),
        ({}, {"special_tokens_mask": SPECIAL}, {"selectable": padded(SPECIAL, 1) == 0}),
        (
            {},
            {"special_tokens_mask": SPECIAL, "selectable": [[w > 0.3 for w in r] for r in WEIGHTS]},
            {"selectable": (padded(SPECIAL, 1) == 0) & (padded(WEIGHTS) > 0.3)},
        ),
        ({}, {"selection_weights": WEIGHTS}, {"selection_weights": padded(WEIGHTS)}),
    ],
    ids=["tokens", "K", "rates", "continuations", "words", "special", "both", "weights"],
)
def test_a_batch_holds_the_bits_of_mask_arrays_and_of_the_layer(arguments, brought, features):
    examples = [
        example | {name: values[example["row_ids"]] for name, values in brought.items()}
        for example in numbered()
    ]
    batch = collated(examples, **arguments)
    real = np.arange(LONGEST) < np.array([[len(row)] for row in ROWS])
    inputs = {"token_ids": padded(ROWS), "padding_mask": real, "row_ids": np.arange(len(ROWS))}
    inputs |= features
    in_numpy = layer(**arguments).mask_arrays(inputs, step=3)
    in_keras = {k: np.array(v) for k, v in layer(**arguments)(inputs, step=3).items()}
    for masked in (in_numpy, in_keras):
        assert np.array_equal(batch["input_ids"], masked["token_ids"])
        assert np.array_equal(batch["labels"], ignore_index_labels(masked))
    assert np.array_equal(batch["attention_mask"], real)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


@pytest.mark.parametrize("examples", [numbered(), [{"input_ids": row} for row in ROWS]])
def test_a_mask_depends_on_seed_epoch_and_row_alone(examples, monkeypatch):
    expected = masks_of(collated(examples))
    backwards = masks_of(collated(examples[::-1]))[::-1]
    alone = [masks_of(collated([example]))[0] for example in examples]
    wider = masks_of(collated(examples, multiple=32))
    monkeypatch.setattr(masking, "replica_id", lambda: 1)  # another process
    assert expected == backwards == alone == wider == masks_of(collated(examples))
    for changed in ({"epoch": 2}, {"seed": 8}):
        other = masks_of(collated(examples, **changed))
        assert not any(a == b for a, b in zip(expected, other, strict=True))


def test_equal_rows_differ_by_their_numbers_alone():
    alike = [ROWS[3]] * 4
    by_content = masks_of(collated([{"input_ids": row} for row in alike]))
    by_number = masks_of(collated(numbered(alike)))
    assert len({str(mask) for mask in by_content}) == 1
    assert len({str(mask) for mask in by_number}) == 4


def test_without_numbers_64_bits_of_content_tell_rows_apart():
    ids, is_token = padded(ROWS), ~np.isin(padded(ROWS), PROTECTED)
    with numpy_in_force():
        low, high = noise.content_words(ids.astype("int32"), is_token)
    row_ids = [
        int(h) << 32 | int(b) & 0xFFFFFFFF for b, h in zip(low[:, 0], high[:, 0], strict=True)
    ]
    by_number = [{"input_ids": r, "row_ids": n} for r, n in zip(ROWS, row_ids, strict=True)]
    assert masks_of(collated(by_number)) == masks_of(collated([{"input_ids": r} for r in ROWS]))


def test_fixed_masks_are_those_of_the_layer_whatever_the_epoch_and_the_number():
    collator = MaskingCollator(layer(evaluation_rate=0.5), 0)
    fixed = [collator.mask_fixed(example) for example in numbered()]  # no epoch is said
    expected = layer(evaluation_rate=0.5).mask_fixed(
        {"token_ids": padded(ROWS), "padding_mask": padded(ROWS) > 0}
    )
    batch = collator(fixed)
    assert np.array_equal(batch["input_ids"], expected["token_ids"])
    labels = ignore_index_labels({k: np.array(v) for k, v in expected.items()})
    assert np.array_equal(batch["labels"], labels)
    collator.set_epoch(5)
    assert masks_of(collator(fixed[::-1])) == masks_of(batch)[::-1]
    assert all(type(example["labels"]) is list for example in fixed)
    assert [
        collator.mask_fixed(each | {"labels": each["input_ids"]}) for each in numbered()
    ] == fixed


@pytest.mark.parametrize("row", [[], [7], [7, 8]])
def test_what_is_masked_already_is_taken_as_it_is(row):
    kept = {"mask_selection_rate": 1.0, "mask_token_rate": 0.0, "random_token_rate": 0.0}
    collator = MaskingCollator(layer(**kept if len(row) == 1 else {}), 0)
    fixed = collator.mask_fixed({"input_ids": row})
    assert collator([fixed])["labels"].tolist() == [fixed["labels"]]


def test_other_keys_are_passed_on():
    examples = [
        {
            "input_ids": np.array(row),
            "attention_mask": torch.tensor([0, *[1] * (len(row) - 1)]),
            "token_type_ids": [1] * len(row),
            "offset_mapping": [(0, 1)] * len(row),
            "score": 0.5,
            "domain": [3, 4],
        }
        for row in ROWS
    ]
    batch = collated(examples)
    assert np.array_equal(batch["attention_mask"][:, 1:], padded(ROWS)[:, 1:] > 0)
    assert not batch["attention_mask"][:, 0].any()
    assert np.array_equal(batch["token_type_ids"], padded(ROWS) > 0)
    assert batch["score"].tolist() == [0.5] * 8 and batch["score"].dtype == torch.float32
    assert batch["domain"].tolist() == [[3, 4]] * 8
    assert "offset_mapping" not in batch


def test_rows_are_filled_up_with_what_the_tokenizer_pads():
    collator = MaskingCollator(layer(), pad_token_id=1, pad_to_multiple_of=8)
    collator.set_epoch(0)
    batch = collator([{"input_ids": [7, 8, 9]}, {"input_ids": []}])
    assert batch["input_ids"].shape == (2, 8)
    assert (batch["input_ids"][0, 3:] == 1).all() and (batch["input_ids"][1] == 1).all()
    assert (batch["labels"][:, 3:] == -100).all()


class Whole(DynamicMasking):
    """Of the layer's arguments it names its own, and no seed."""

    def __init__(self, vocabulary_size=100, mask_selection_rate=0.3, mask_token_id=4, **kwargs):
        kwargs |= {"unselectable_token_ids": PROTECTED, "continuation_token_ids": CONTINUES}
        super().__init__(vocabulary_size, mask_selection_rate, mask_token_id, **kwargs)


@pytest.mark.parametrize("masking", [layer(continuation_token_ids=CONTINUES), Whole()])
def test_a_copy_in_another_process_masks_alike(masking):
    collator = MaskingCollator(masking, 0)
    collator.set_epoch(3)
    copy = pickle.loads(pickle.dumps(collator))
    assert masks_of(copy(numbered())) == masks_of(collator(numbered()))


@pytest.mark.parametrize(
    ("examples", "expected"),
    [
        ([[7, 8]], "`examples` must be a list of dicts with `input_ids`.* examples=\\[\\[7, 8\\]"),
        ([], "`examples` must be a list of dicts .* Received: examples=\\[\\]"),
        ({"input_ids": [[7, 8]]}, "`examples` must be a list of dicts .* examples={'input_ids'"),
        ([{"ids": [7]}], "`examples` must be a list of dicts .* keys=\\[\\['ids'\\]\\]"),
        ([{"input_ids": [7]}, {"input_ids": [7], "row_ids": 1}], "all with the same keys"),
        ([{"input_ids": [7], "text": "seven"}], "`text` must be numbers: leave it out"),
        ([{"input_ids": [7], "score": None}], "`score` must be numbers.* score=None"),
        ([{"input_ids": [7], "tags": [[1], [1, 2]]}], "`tags` must be numbers.* tags=\\[\\[1\\], "),
        ([{"input_ids": [7, 8], "attention_mask": [1]}], "`attention_mask` must have the shape"),
        (
            [{"input_ids": [7], "tags": [1, 1]}, {"input_ids": [7, 8], "tags": [1]}],
            "`tags` must be as long as `input_ids`, or of the same shape .*shapes=",
        ),
        # As tutorials of Hugging Face's leave them, where its collator writes over them.
        (
            [{"input_ids": row, "labels": row} for row in ROWS],
            "`labels` must be those of `mask_fixed`: .* labels=\\[2, ",
        ),
        ([{"input_ids": [7, 8], "labels": 1}], "`labels` must be those of `mask_fixed`"),
        ([{"input_ids": [100]}], "`token_ids` must lie in \\[0, 99\\]"),
    ],
)
def test_examples_are_refused(examples, expected):
    with pytest.raises(ValueError, match=expected):
        collated(examples)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"pad_token_id": 100}, "`pad_token_id` must be a whole number, in \\[0, 99\\]"),
        ({"pad_to_multiple_of": 0}, "`pad_to_multiple_of` must be a whole number, at least 1"),
        ({"masking": layer(inverse_rate_weights=True)}, "`masking` must weigh all by 1"),
    ],
)
def test_arguments_are_refused(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        MaskingCollator(**{"masking": layer(), "pad_token_id": 0} | arguments)


def test_the_epoch_must_be_said():
    collator = MaskingCollator(layer(), 0)
    with pytest.raises(ValueError, match="call `set_epoch\\(epoch\\)`, or give `Trainer`"):
        collator(numbered())
    with pytest.raises(ValueError, match="`epoch` must be a whole number, at least 0"):
        collator.set_epoch(-1)


def test_without_pytorch_one_line_says_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match="This needs torch: pip install 'keras-dynmask\\[torch\\]'"
    ):
        MaskingCollator(layer(), 0)
    assert hugging_face.ignore_index_labels  # needs none


# In workers, in two processes' loaders and under Trainer: in a process without TensorFlow.


def seen_by_loaders():
    """Whether each kind of loader gives what one without workers does, in two epochs."""
    collator, examples = MaskingCollator(layer(), 0), numbered()

    def epochs(**arguments):
        loader = torch.utils.data.DataLoader(examples, 2, collate_fn=collator, **arguments)
        for epoch in range(2):
            collator.set_epoch(epoch)
            yield [mask for batch in loader for mask in masks_of(batch)]

    expected = list(epochs())
    samplers = [
        torch.utils.data.DistributedSampler(examples, num_replicas=2, rank=rank, shuffle=False)
        for rank in range(2)
    ]
    halves = [list(epochs(sampler=sampler)) for sampler in samplers]
    together = [[None] * len(ROWS) for _ in range(2)]
    for rank, half in enumerate(halves):
        for epoch in range(2):
            together[epoch][rank::2] = half[epoch]
    pickled = pickle.loads(pickle.dumps(collator))  # as workers take it that are not forked
    return {
        "pickled": masks_of(pickled(examples)) == expected[1],
        "two workers": list(epochs(num_workers=2)) == expected,
        "persistent workers": list(epochs(num_workers=2, persistent_workers=True)) == expected,
        "two processes": together == expected,
        "fresh": expected[0] != expected[1],
    }


def seen_by_trainer(directory):
    """Whether each kind of run shows its model what an uninterrupted one does."""
    import transformers

    class Watched(transformers.BertForMaskedLM):
        def forward(self, input_ids=None, attention_mask=None, labels=None, **others):
            batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
            seen[self.training].append(masks_of(batch))
            return super().forward(**batch, **others)

    class StopAt(transformers.TrainerCallback):
        def __init__(self, step):
            self.step = step

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == self.step:
                control.should_training_stop = control.should_save = True

    def run(name, stop_at=None, resume=False, **arguments):
        seen[True], seen[False] = [], []
        config = transformers.BertConfig(
            vocab_size=100,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=8,
        )
        collator = MaskingCollator(layer(), 0)
        arguments = transformers.TrainingArguments(
            f"{directory}/{name}",
            num_train_epochs=2,
            per_device_train_batch_size=2,
            eval_strategy="epoch",
            save_strategy="no",
            remove_unused_columns=False,
            use_cpu=True,
            disable_tqdm=True,
            report_to=[],
            **arguments,
        )
        transformers.Trainer(
            Watched(config),
            arguments,
            train_dataset=numbered(),
            eval_dataset=[collator.mask_fixed({"input_ids": row}) for row in ROWS],
            data_collator=collator,
            callbacks=[collator.trainer_callback(), StopAt(stop_at)],
        ).train(resume_from_checkpoint=resume)
        return seen[True], seen[False]

    seen = {}
    whole, evaluated = run("whole")
    loaded = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}
    by_hand = [{str(mask) for mask in masks_of(collated(numbered(), epoch))} for epoch in range(2)]
    epochs = [whole[:4], whole[4:]]
    return {
        "as by hand": [{str(mask) for b in e for mask in b} for e in epochs] == by_hand,
        "fixed in evaluation": len(evaluated) == 2 and evaluated[0] == evaluated[1],
        "persistent workers": run("workers", **loaded)[0] == whole,
        "stopped in mid-epoch": run("resumed", stop_at=6)[0] == whole[:6],
        "and resumed": run("resumed", resume=True)[0] == whole[6:],
    }


def seen_by_streams():
    """Whether each kind of `datasets` gives the masks of a list."""
    import datasets

    collator, rows = MaskingCollator(layer(), 0), datasets.Dataset.from_list(numbered())
    collator.set_epoch(3)
    stream = rows.to_iterable_dataset(num_shards=2).shuffle(seed=1, buffer_size=4)
    expected = sorted(map(str, masks_of(collated(numbered()))))

    def as_expected(rows, workers):
        arguments = {"collate_fn": collator, "num_workers": workers}
        loader = torch.utils.data.DataLoader(rows, 3, **arguments)
        return sorted(str(mask) for batch in loader for mask in masks_of(batch)) == expected

    return {
        "rows": as_expected(rows, 0),
        "a stream": as_expected(stream, 0),
        "a stream in two workers": as_expected(stream, 2),
    }


def labels_in_tensors():
    """Whether labels of this backend's tensors are those of arrays."""
    masking, ids = layer(mask_selection_length=12), padded(ROWS)
    found = ignore_index_labels(masking(ids, step=3))
    expected = ignore_index_labels(masking.mask_arrays(ids, step=3))
    return torch.is_tensor(found) and found.tolist() == expected.tolist()


def seen_without_tensorflow(directory):
    seen = {"loaders": seen_by_loaders(), "labels": {"": labels_in_tensors()}}
    if all(map(importlib.util.find_spec, ("accelerate", "datasets", "transformers"))):
        seen |= {"streams": seen_by_streams(), "trainer": seen_by_trainer(directory)}
    return seen | {"no TensorFlow": {"": "tensorflow" not in sys.modules}}


@pytest.mark.slow
def test_masks_under_loaders_and_trainer(tmp_path):
    seen = on("torch", seen_without_tensorflow, tmp_path)
    wrong = [
        (where, what) for where, all_ in seen.items() for what, right in all_.items() if not right
    ]
    assert wrong == []
    if "trainer" not in seen:
        pytest.skip("accelerate, datasets or transformers is not installed: no Trainer was run")
