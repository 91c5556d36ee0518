"""The main job: from text to a trained model, a SavedModel and a picture of the loss."""

import contextlib
import csv
import dataclasses
import json
import math
import os
import pathlib
import shutil

import keras
import numpy as np

from keras_dynmask import pairs, text
from keras_dynmask.errors import require
from keras_dynmask.filling import masked_example
from keras_dynmask.inputs import as_features
from keras_dynmask.model import MaskedLanguageModel
from keras_dynmask.recipes import Recipe
from keras_dynmask.watching import MaskingTensorBoard, Progress

ROW_FILES = "rows.npy", "held_out_rows.npy"  # to train on, and to judge by


class Rows(keras.utils.PyDataset):
    """Batches of rows in their order, the last of them smaller where need be.

    Only a batch's rows are read, so the arrays may be mapped from files that are larger
    than the memory (`numpy.load(path, mmap_mode="r")`).

    Args:
        data: arrays with one entry per row, in any structure (a dict, a tuple).
        batch_size: int.
    """

    def __init__(self, data, batch_size):
        super().__init__()
        self.data = data
        self.rows = len(keras.tree.flatten(data)[0])
        self.batch_size = batch_size

    def __len__(self):
        return math.ceil(self.rows / self.batch_size)

    def __getitem__(self, index):
        rows = slice(index * self.batch_size, (index + 1) * self.batch_size)
        return keras.tree.map_structure(lambda array: np.asarray(array[rows]), self.data)


class ShuffledRows(Rows):
    """Equal batches of rows in an order that depends on the seed and the epoch alone.

    So a run that is resumed at an epoch goes on with the batches it would have had.

    Args:
        data: arrays with one entry per row, as `Rows` takes them.
        batch_size: int.
        seed: int.
        epoch: int, the first epoch.
        copies: int. With more than one the data hold every row so often, all rows of a
            copy together, and each epoch reads the next copy.
    """

    def __init__(self, data, batch_size, seed, epoch=0, copies=1):
        super().__init__(data, batch_size)
        self.rows //= copies
        self.copies = copies
        self.seed = seed
        self._shuffle(epoch)

    def __len__(self):
        return max(1, self.rows // self.batch_size)  # equal batches: the rest waits

    def __getitem__(self, index):
        rows = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        return keras.tree.map_structure(lambda array: array[rows], self.data)

    def on_epoch_end(self):
        self._shuffle(self.epoch + 1)

    def _shuffle(self, epoch):
        self.epoch = epoch
        self.order = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        self.order += epoch % self.copies * self.rows


class Checkpoint(keras.callbacks.Callback):
    """After each epoch: the model with all its state, and the history so far.

    Both are written under another name first, so a kill leaves the last whole ones.

    Args:
        directory: a `pathlib.Path`, where `checkpoint.keras` and `history.csv` are written.
        history: a list of what was logged in earlier epochs, a dict each. It grows.
    """

    def __init__(self, directory, history):
        super().__init__()
        self.directory = directory
        self.history = history

    def on_epoch_end(self, epoch, logs=None):
        row = {name: float(value) for name, value in logs.items()}
        self.history.append({"epoch": epoch + 1, **row})
        with replacing(self.directory / "history.csv") as path:
            write_history(path, self.history)
        with replacing(self.directory / "checkpoint.keras") as path:
            self.model.save(path)


def partial_directory(output):
    """Where a run works until it is finished, and `output` is there.

    Raises:
        ValueError: where it is, or can't be.
    """
    require_free(output)
    return output.with_name(output.name + ".partial")


def require_free(output):
    """That there is nothing at `output`, and that a directory can be made there."""
    place = pathlib.Path(os.path.abspath(output))  # of "new/.." too
    require(not os.path.lexists(place), "`output` must not exist yet.", output=str(output))
    require(
        _has_room(place),
        "`output` must lie in a directory that one may write to.",
        output=str(output),
    )


def _has_room(place):
    """Whether one may write to it, or to what is there of the directories above it."""
    there = next(each for each in (place, *place.parents) if os.path.lexists(each))
    return there.is_dir() and os.access(there, os.W_OK)


def train(
    recipe, output, *, resume=False, announce=lambda message: None, live=False, tensorboard=None
):
    """Runs a recipe and leaves everything it made in a directory.

    Works in `output` + ".partial", which an interrupted run leaves behind and
    `resume=True` goes on from: the result is what it would have been. The finished
    directory appears at once and whole. It holds `recipe.json`, `tokenizer.json`,
    `model.keras`, `saved_model/` (where TensorFlow is installed), `history.csv`,
    `loss.png` and `report.json`.

    Args:
        recipe: a `Recipe`.
        output: the directory to make; it must not exist.
        resume: bool, go on with an interrupted run.
        announce: function of a string, such as `print`, told how the run goes.
        live: bool, whether to draw a progress bar on the terminal, too.
        tensorboard: a directory for what TensorBoard shows, or None.

    Returns:
        A dict: the held-out `masked_loss`, `masked_accuracy` and `perplexity`;
        `unigram_loss`, the baseline beside them; and an `example` of the held-out text
        with `[MASK]` in place of its `example_word`. Of pairs the example is a source, with
        its `example_target` and what is generated, `example_generated`; and `exact_match`
        is the share of (up to 1,000) held-out targets that are generated word for word.

    Raises:
        ValueError: naming what was expected and what was received.
    """
    output = pathlib.Path(output)
    partial = partial_directory(output)
    require(
        tensorboard is None or _has_room(pathlib.Path(tensorboard).absolute()),
        "`tensorboard` must be, or lie in, a directory that one may write to.",
        tensorboard=str(tensorboard),
    )
    if resume:
        require(
            (partial / "rows.npy").is_file(),
            f"There is no interrupted run to resume: {partial} has no rows.npy.",
            output=str(output),
        )
    else:
        require(
            not partial.exists(),
            f"`output` is in use by an interrupted run, {partial}: resume it, or remove it.",
            output=str(output),
        )
        prepare(recipe, partial, announce)
    with locked(partial):
        return _train(recipe, partial, output, announce, live, tensorboard)


def prepare(recipe, partial, announce=lambda message: None):
    """Reads the corpus, learns the tokenizer, packs the rows: what a run starts from."""
    if recipe.pairs:
        shares = pairs.split_pairs(recipe.read_corpus(), recipe.validation_share)
        documents = [side for pair in shares[0] for side in pair]
    else:
        shares = text.split_documents(recipe.read_corpus(), recipe.validation_share)
        documents = shares[0]
    tokenizer = text.train_tokenizer(documents, recipe.vocabulary_size)
    recipe.build_model(tokenizer, steps=1)  # refuses what can't be built, before a file is written
    with replacing(partial) as path:
        path.mkdir(parents=True)
        (path / "recipe.json").write_text(json.dumps(dataclasses.asdict(recipe), indent=2))
        # Its own `save` raises a bare Exception where the disk is full.
        (path / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), "utf-8")
        for name, share in zip(ROW_FILES, shares, strict=True):
            text.write_rows(path / name, packed(recipe, tokenizer, share))
        if recipe.pairs:
            rows = [len(np.load(path / name, mmap_mode="r")) for name in ROW_FILES]
            tell_what_does_not_fit(recipe, list(map(len, shares)), rows, announce)


def tell_what_does_not_fit(recipe, counts, rows, announce):
    """Of pairs to train on and of those held out: how many there are, and how many fit."""
    room = recipe.length - recipe.target_length - 1
    fit = f"a source has room for {room} tokens, a target for {recipe.target_length - 1}"
    require(
        all(rows),
        f"`length` and `target_length` must let some pairs fit, of both parts: {fit}.",
        pairs=counts,
        fitting=rows,
    )
    if rows != counts:
        left_out = sum(counts) - sum(rows)
        announce(f"{left_out:,} of {sum(counts):,} pairs are left out as too long: {fit}")


def packed(recipe, tokenizer, share):
    """Rows of documents or pairs in blocks, as they come."""
    if recipe.pairs:
        return pairs.packed_pairs(tokenizer, share, recipe.length, recipe.target_length)
    return text.packed(tokenizer, share, recipe.length)


def load_recipe(directory):
    """The recipe of a directory that `train` made or is making.

    Raises:
        ValueError: where there is none.
    """
    path = _file_of(directory, "recipe.json")
    with text.reading(path, "a recipe that pretrain wrote"):
        settings = json.loads(path.read_text())
        names = {field.name for field in dataclasses.fields(Recipe)}
        require(settings.keys() == names, "It must hold all settings.", names=list(settings))
        return Recipe(**settings)


def load_model(directory):
    """The trained model of a directory that `train` made.

    Raises:
        ValueError: where there is none, or it is broken or of another make.
    """
    return read_model(_file_of(directory, "model.keras"))


def load_trained(directory):
    """The trained model of a directory that `train` made, and its tokenizer.

    Raises:
        ValueError: where one is missing, broken or of another make, or they differ in
            their vocabulary.
    """
    model, path = load_model(directory), _file_of(directory, "tokenizer.json")
    tokenizer = text.load_tokenizer(path)
    _require_vocabulary(path, tokenizer, model)
    return model, tokenizer


def read_model(path):
    """A `MaskedLanguageModel` from a file, of which nothing is run.

    Raises:
        ValueError: where it holds none.
    """
    with text.reading(path, "a whole model file that pretrain wrote"):
        model = keras.models.load_model(path, safe_mode=True)
        is_ours = isinstance(model, MaskedLanguageModel)
        require(is_ours, "It must hold a MaskedLanguageModel.", model=type(model).__name__)
    return model


def _require_vocabulary(path, tokenizer, model):
    size, known = tokenizer.get_vocab_size(), model.masking.vocabulary_size
    require(
        size == known, f"`{path}` must be the model's tokenizer, of {known} ids.", received=size
    )


def _file_of(directory, name):
    path = pathlib.Path(directory) / name
    require(
        path.is_file(),
        f"`directory` must be one that pretrain made, but it has no {name}.",
        directory=str(directory),
    )
    return path


def _train(recipe, partial, output, announce, live, tensorboard):
    tokenizer = text.load_tokenizer(partial / "tokenizer.json")
    vocabulary_size = tokenizer.get_vocab_size()
    rows, held_out_rows = (
        text.read_rows(partial / name, recipe.length, vocabulary_size) for name in ROW_FILES
    )
    steps_per_epoch = len(ShuffledRows(rows, recipe.batch_size, recipe.seed))

    checkpoint = partial / "checkpoint.keras"
    if checkpoint.exists():
        model = read_model(checkpoint)
        _require_vocabulary(partial / "tokenizer.json", tokenizer, model)
        require(model.compiled, f"`{checkpoint}` must hold a compiled model.", compiled=False)
        epoch = int(model.optimizer.iterations) // steps_per_epoch
        history = read_history(partial / "history.csv", epoch, model)
    else:
        model = recipe.build_model(tokenizer, recipe.epochs * steps_per_epoch)
        epoch, history = 0, []

    announce(
        f"{len(rows):,} rows of {recipe.length} tokens, {len(held_out_rows):,} more held out; "
        f"vocabulary {tokenizer.get_vocab_size():,}; {model.count_params():,} weights; "
        f"{recipe.masking} masks; epochs {epoch + 1} to {recipe.epochs}"
    )
    predicted = slice(-recipe.target_length if recipe.pairs else 0, None)
    unigram_loss = text.unigram_loss(
        rows[:, predicted],
        held_out_rows[:, predicted],
        tokenizer.get_vocab_size(),
        recipe.protected_ids(tokenizer),
    )
    data, held_out = (
        pairs.with_target(each, recipe.target_length) if recipe.pairs else {"token_ids": each}
        for each in (rows, held_out_rows)
    )
    tokens_per_step = len(rows[: recipe.batch_size]) * np.mean(
        np.count_nonzero(rows[:10_000] != tokenizer.token_to_id(text.PADDING), axis=1)
    )
    callbacks = [
        Checkpoint(partial, history),
        Progress(announce, unigram_loss, tokens_per_step, live),
    ]
    if tensorboard is not None:
        callbacks.append(_tensorboard(tensorboard, recipe, tokenizer, data))
    if recipe.masking == "static":
        data = masked_once(model.masking, data, recipe.static_copies)
    model.fit(
        ShuffledRows(data, recipe.batch_size, recipe.seed, epoch, recipe.static_copies),
        validation_data=Rows(held_out, recipe.batch_size),
        epochs=recipe.epochs,
        initial_epoch=epoch,
        callbacks=callbacks,
        verbose=0,
        shuffle=False,
    )
    report = {
        **_examples(recipe, model, tokenizer, held_out_rows[:1000]),
        "unigram_loss": unigram_loss,
        **{name: history[-1][f"val_{name}"] for name in REPORTED},
    }
    (partial / "report.json").write_text(json.dumps(report, indent=2))
    model.save(partial / "model.keras")
    saved_model = partial / "saved_model"
    if keras.backend.backend() == "tensorflow" and not saved_model.exists():
        with replacing(saved_model) as path:
            model.export(path)
    draw_losses(history, unigram_loss, partial / "loss.png")
    partial.rename(output)  # first: without what it goes on from, a run could not be resumed
    for leftover in ("checkpoint.keras", *ROW_FILES, "lock"):
        (output / leftover).unlink(missing_ok=True)
    return report


def _tensorboard(directory, recipe, tokenizer, data):
    if recipe.masking == "static":  # there are no masks to come
        return keras.callbacks.TensorBoard(str(directory))
    words = [tokenizer.id_to_token(index) for index in range(tokenizer.get_vocab_size())]
    first = keras.tree.map_structure(lambda array: np.asarray(array[:64]), data)
    return MaskingTensorBoard(first, words, log_dir=str(directory))


REPORTED = ("masked_loss", "masked_accuracy", "perplexity")


def _examples(recipe, model, tokenizer, rows):
    """What the model makes of held-out rows."""
    if not recipe.pairs:
        example, example_word = masked_example(tokenizer, rows)
        return {"example": example, "example_word": example_word}
    generated = model.generate(pairs.with_target(rows, recipe.target_length))
    target, answer = (
        pairs.target_text(tokenizer, each[0], recipe.target_length) for each in (rows, generated)
    )
    return {
        "example": tokenizer.decode(rows[0, : -recipe.target_length].tolist()),
        "example_target": target,
        "example_generated": answer,
        "exact_match": float((generated == rows).all(axis=1).mean()),
    }


def masked_once(masking, data, copies=1):
    """Static masking: the rows with the masks of step 0, as a dataset brings them.

    More copies follow one after the other, with the masks of the steps 1, 2, ...
    """
    inputs = as_features(data)
    inputs = {name: keras.ops.convert_to_tensor(value) for name, value in inputs.items()}
    capacity = masking.selection_capacity(inputs)
    masks = [masking.mask(inputs, step, capacity) for step in range(copies)]
    masked = {
        name: np.concatenate([keras.ops.convert_to_numpy(each[name]) for each in masks])
        for name in masks[0]
    }
    labels, weights = masked.pop("mask_ids"), masked.pop("mask_weights")
    return masked, labels, weights


def draw_losses(history, unigram_loss, path):
    """A picture of the loss against epochs, beside the unigram baseline."""
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(unigram_loss, color="0.6", linestyle="--", label="unigram baseline")
    axes.plot(epochs, [row["masked_loss"] for row in history], label="training, with dropout")
    axes.plot(epochs, [row["val_masked_loss"] for row in history], label="held out, fixed masks")
    axes.set(xlabel="epoch", ylabel="masked-token loss (nats)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def write_history(path, history):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, history[0])
        writer.writeheader()
        writer.writerows(history)


def read_history(path, epochs, model):
    """The first epochs of a history: what `model` logs, by its name.

    Raises:
        ValueError: where the file is broken or of another make.
    """
    logged = [f"{prefix}{metric.name}" for prefix in ("", "val_") for metric in model.metrics]
    with text.reading(path, f"a history of {epochs} epochs that pretrain wrote"):
        content = path.read_bytes().decode()
        require(content.endswith("\n"), "It must end with a line.", end=content[-20:])
        rows = list(csv.DictReader(content.splitlines(), strict=True))[:epochs]
        rows = [{name: float(value) for name, value in row.items()} for row in rows]
        for row in rows:
            expected = "It must name what is logged."
            require(row.keys() == {"epoch", *logged}, expected, names=list(row))
        numbers = [row["epoch"] for row in rows]
        require(numbers == list(range(1, epochs + 1)), "It must hold every epoch.", epochs=numbers)
    return [{**row, "epoch": int(row["epoch"])} for row in rows]


@contextlib.contextmanager
def replacing(path):
    """Gives another name to write to, and renames what was written to `path`."""
    path = pathlib.Path(path)
    temporary = path.with_name(f"{path.stem}.writing{path.suffix}")
    _remove(temporary)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        _remove(temporary)


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(directory):
    """Keeps a second run out of the directory. The lock dies with its process."""
    try:
        import fcntl
    except ImportError:  # Windows: no lock
        yield
        return
    with open(directory / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"`output` is in use by another run, {directory}.") from error
        yield
