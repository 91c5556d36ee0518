"""What PyTorch loops and Hugging Face's models take: labels of -100, and batches of rows.

In a loop of one's own:

    collator = MaskingCollator(masking, tokenizer.pad_token_id)
    loader = torch.utils.data.DataLoader(rows, batch_size=32, shuffle=True, collate_fn=collator)
    for epoch in range(3):
        collator.set_epoch(epoch)
        for batch in loader:
            model(**batch).loss.backward()
"""

import inspect
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from keras_dynmask.arrays import numpy_in_force, ops, ops_of
from keras_dynmask.errors import need_extra, require, whole
from keras_dynmask.inputs import PER_POSITION, check_ids
from keras_dynmask.masking import DynamicMasking
from keras_dynmask.vocabulary import word_begins

IGNORED = -100  # what PyTorch's and Hugging Face's losses leave out
NOT_SAID = -1  # the epoch, before anybody does
KINDS = {"i": "int64", "u": "int64", "f": "float32", "b": "bool"}  # what goes on as what


def ignore_index_labels(masked, ignore_index=IGNORED):
    """Labels as PyTorch's losses take them: the original id where selected, else -100.

    Weights other than 1 cannot be told so: with `inverse_rate_weights=True`, and wherever
    weights count, hand over `mask_weights` beside the labels.

    Args:
        masked: what `DynamicMasking` returns, dense or at `mask_positions`: NumPy arrays, or
            tensors of the backend or of tf.data, none of them ragged.
        ignore_index: int, what stands where nothing is selected.

    Returns:
        `[..., length]`, of the kind that came in; int64 where the ids are, else int32.

    Example:

    >>> masking = DynamicMasking(100, 0.5, mask_token_id=1, mask_selection_length=3, seed=7)
    >>> masked = masking.mask_arrays([[11, 12, 13, 14]])
    >>> masked["mask_positions"].tolist(), masked["mask_ids"].tolist()
    ([[2, 3, 0]], [[13, 14, 0]])
    >>> ignore_index_labels(masked).tolist()
    [[-100, -100, 13, 14]]
    """
    ids = masked["mask_ids"]
    with numpy_in_force() if isinstance(ids, np.ndarray) else ops_of(ids):
        selected = masked["mask_weights"] > 0
        is_long = keras.backend.standardize_dtype(ids.dtype).endswith("64")
        ids = ops.cast(ids, "int64" if is_long else "int32")
        if "mask_positions" not in masked:
            return ops.where(selected, ids, ignore_index)
        shape = ops.shape(masked["token_ids"])
        slots = ops.where(selected, masked["mask_positions"], shape[-1])  # behind the row
        return ignore_index + _scattered(ids - ignore_index, slots, shape)


def _scattered(values, slots, shape):
    """`[..., K] -> [..., length]`, 0 elsewhere; what lies behind the row is left out."""
    size = shape[-1] + 1
    slots = ops.reshape(slots, (-1, slots.shape[-1]))
    rows = ops.shape(slots)[0]
    slots = slots + ops.expand_dims(ops.arange(rows, dtype="int32"), 1) * size
    flat = ops.scatter(ops.reshape(slots, (-1, 1)), ops.reshape(values, (-1,)), (rows * size,))
    return ops.reshape(ops.reshape(flat, (rows, size))[:, :-1], shape)


class MaskingCollator:
    """Makes a batch of examples and masks it, for PyTorch's `DataLoader` and `Trainer`.

    Stands where `transformers.DataCollatorForLanguageModeling` does. A mask is a pure
    function of the seed, the epoch and the row, which is known by its own tokens or, where
    the examples bring them, by its `row_ids`. So masks are fresh in every epoch, and the same
    for any number of workers and processes, order, batch size and padding, and in a run that
    is resumed in mid-epoch. Workers need no Keras backend's help: all is done in NumPy, with
    the bits of `DynamicMasking.mask_arrays(..., step=epoch, replica=0)`.

    Say the epoch before each: `set_epoch`, which workers hear of that live on, too
    (`persistent_workers=True`); or give `Trainer` the callback that does.

    Args:
        masking: a `DynamicMasking` layer, whose weights are 1: labels tell no others. A
            schedule is read at the epoch.
        pad_token_id: int, what fills up the rows, on the right.
        pad_to_multiple_of: int or None, what a batch's length is a multiple of.

    Call arguments:
        examples: a list of dicts with the same keys. `input_ids`: ints `[length]`, as list or
            array; optionally of the same length `attention_mask`; `special_tokens_mask` (1 =
            never select); `word_ids`, as of a fast tokenizer's encoding, to mask whole words
            of any tokenizer; `begins`, `selectable`, `selection_weights`, `segment_ids` as in
            `DynamicMasking`; and `row_ids`, an int: rows of the same tokens then differ.
            `labels` say that an example is masked already, by `mask_fixed`; any others are
            refused. Other keys are passed on, filled up with 0 where they are as long as the
            ids.

    Returns:
        A dict of tensors: `input_ids` as shown, `attention_mask`, `labels` (the original id
        where selected, else -100), `[batch, length]` int64; and the other keys.

    Raises:
        ImportError: where PyTorch is missing.
        ValueError: naming the argument, what was expected and what was received.

    Example:

    >>> masking = DynamicMasking(100, 0.5, mask_token_id=1, mask_token_rate=1.0,
    ...                          random_token_rate=0.0, seed=7)
    >>> collator = MaskingCollator(masking, pad_token_id=0)
    >>> collator.set_epoch(0)
    >>> batch = collator([{"input_ids": [11, 12, 13, 14]}, {"input_ids": [15, 16]}])
    >>> batch["input_ids"].tolist()
    [[1, 12, 13, 1], [15, 1, 0, 0]]
    >>> batch["labels"].tolist()
    [[11, -100, -100, 14], [-100, 16, -100, -100]]
    """

    def __init__(self, masking, pad_token_id, pad_to_multiple_of=None):
        need_extra("torch", "torch")
        import torch

        require(
            not masking.inverse_rate_weights,
            "`masking` must weigh all by 1: labels tell no weights.",
            inverse_rate_weights=True,
        )
        self.masking = masking
        self.pad_token_id = whole("pad_token_id", pad_token_id, 0, masking.vocabulary_size - 1)
        multiple = 1 if pad_to_multiple_of is None else pad_to_multiple_of
        self.pad_to_multiple_of = whole("pad_to_multiple_of", multiple, 1)
        # Shared, so that it reaches workers that were started in an earlier epoch.
        self._epoch = torch.tensor(NOT_SAID).share_memory_()

    def __getstate__(self):
        kind = type(self.masking)
        if kind is DynamicMasking:
            # Its arguments: Keras imports TensorFlow to pickle a layer, or to write its config.
            names = inspect.signature(kind).parameters.keys() - {"kwargs"}
            config = {name: getattr(self.masking, name) for name in sorted(names)}
        else:  # whose own arguments need not be those of the layer
            config = self.masking.get_config()
        return self.__dict__ | {"masking": (kind, config)}

    def __setstate__(self, state):
        kind, config = state["masking"]
        self.__dict__ |= state | {"masking": kind.from_config(config)}

    def set_epoch(self, epoch):
        """Say which epoch begins, before its first batch is asked for."""
        self._epoch.fill_(whole("epoch", epoch, 0))

    def trainer_callback(self):
        """What tells the epoch, for `transformers.Trainer(callbacks=[...])`.

        Also in a run that is resumed, and in several processes, where `Trainer` tells it to no
        dataset (`DataLoaderShard.set_epoch` of Accelerate stops at the sampler).
        """
        from transformers import TrainerCallback

        collator = self

        class Epochs(TrainerCallback):
            def on_train_begin(self, args, state, control, **kwargs):
                self.epoch = int(state.epoch or 0)  # 1.5 in the midst of the second

            def on_epoch_begin(self, args, state, control, **kwargs):
                collator.set_epoch(self.epoch)
                self.epoch += 1

        return Epochs()

    def __call__(self, examples):
        import torch

        batch, features = self._batch(examples)
        if "labels" in batch:
            _check_labels(examples)
        else:
            epoch = int(self._epoch)
            require(
                epoch != NOT_SAID,
                "The epoch must be said before the first batch: call `set_epoch(epoch)`, or give "
                "`Trainer` `callbacks=[collator.trainer_callback()]`.",
                epoch=None,
            )
            if "row_ids" not in features:
                features["row_ids"] = self._identities(features)
            masked = self.masking.mask_arrays(features, step=epoch, replica=0)
            batch |= _shown(masked)
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def mask_fixed(self, example):
        """An example masked for validation: by the seed and its own tokens alone.

        It then holds `labels`, and a batch of such is only filled up: losses compare between
        epochs, also in `Trainer`, which has one collator for training and evaluation. Say
        `dataset.map(collator.mask_fixed)`, or the like.

        Args:
            example: as in a call.

        Returns:
            The example with `input_ids` as shown and `labels`, as lists.
        """
        _, features = self._batch([example])
        with numpy_in_force():
            masked = self.masking.mask_fixed(features)
        length = len(example["input_ids"])
        shown = {name: array[0, :length].tolist() for name, array in _shown(masked).items()}
        return {**example, **shown}

    def _batch(self, examples):
        """What the model takes, and what the masking does, as arrays."""
        are_dicts = isinstance(examples, Sequence) and all(isinstance(e, Mapping) for e in examples)
        keys = [sorted(example) for example in examples] if are_dicts and examples else [[]]
        require(
            "input_ids" in keys[0] and all(each == keys[0] for each in keys),
            "`examples` must be a list of dicts with `input_ids`, and all with the same keys.",
            **({"keys": keys[:3]} if keys[0] else {"examples": examples}),
        )
        lengths = [len(example["input_ids"]) for example in examples]
        length = -(-max(lengths) // self.pad_to_multiple_of) * self.pad_to_multiple_of
        if "attention_mask" not in keys[0]:
            real = [{"attention_mask": np.ones(number, "int64")} for number in lengths]
            examples = [{**example, **each} for example, each in zip(examples, real, strict=True)]
        fillings = {"input_ids": self.pad_token_id, "labels": IGNORED}
        batch = {
            name: _joined(name, [each[name] for each in examples], lengths, length, fillings)
            for name in examples[0]
            if name != "offset_mapping"
        }
        features = {name: batch.pop(name) for name in (*PER_POSITION, "row_ids") if name in batch}
        ids, real = batch["input_ids"], batch["attention_mask"]
        require(
            real.shape == ids.shape,
            f"`attention_mask` must have the shape of `input_ids`, {ids.shape}.",
            shape=real.shape,
        )
        features |= {"token_ids": ids, "padding_mask": real}
        if "special_tokens_mask" in batch:
            ordinary = batch.pop("special_tokens_mask") == 0
            features["selectable"] = ordinary & (features.get("selectable", 1) != 0)
        if "word_ids" in batch:
            features["begins"] = word_begins(batch.pop("word_ids"))
        return batch, features

    def _identities(self, features):
        """A number for each row, of its own tokens: int64 `[batch]`."""
        check_ids(features["token_ids"], self.masking.vocabulary_size)
        with numpy_in_force():
            low, high = self.masking.content(features)
        return (low.astype("uint32") | high.astype("int64") << 32)[:, 0]


def _check_labels(examples):
    """That they may be those of `mask_fixed`: neither classes nor the ids once more."""
    pairs = [(np.asarray(each["labels"]), np.asarray(each["input_ids"])) for each in examples]
    longer = [(labels, ids) for labels, ids in pairs if ids.size > 1]  # one token may be kept
    require(
        all(labels.shape == ids.shape for labels, ids in pairs)
        and not (longer and all(np.array_equal(labels, ids) for labels, ids in longer)),
        "`labels` must be those of `mask_fixed`: examples that are not masked yet bring none.",
        labels=examples[0]["labels"],
    )


def _shown(masked):
    return {"input_ids": masked["token_ids"], "labels": ignore_index_labels(masked)}


def _joined(name, values, lengths, length, fillings):
    """One array of what the examples hold: filled up where it is as long as the ids."""
    arrays = [_array(name, value) for value in values]
    if all(a.ndim and len(a) == number for a, number in zip(arrays, lengths, strict=True)):
        shape = (len(arrays), length, *arrays[0].shape[1:])
        joined = np.full(shape, fillings.get(name, 0), np.result_type(*arrays))
        for row, array in zip(joined, arrays, strict=True):
            row[: len(array)] = array
    else:
        require(
            len({array.shape for array in arrays}) == 1,
            f"`{name}` must be as long as `input_ids`, or of the same shape in every example.",
            shapes=[array.shape for array in arrays],
        )
        joined = np.stack(arrays)
    return joined.astype(KINDS[joined.dtype.kind])


def _array(name, value):
    try:
        array = np.asarray(value)
        if array.dtype == object:  # the None of `word_ids`
            array = np.asarray([-1 if item is None else item for item in value])
    except (TypeError, ValueError):  # of None, or of lists of unequal length
        array = np.asarray("")
    require(
        array.dtype.kind in KINDS,
        f"`{name}` must be numbers: leave it out of the examples.",
        **{name: value},
    )
    return array if array.size else array.astype("int64")
