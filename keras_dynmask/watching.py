"""What a run tells while it trains: on a terminal, and in TensorBoard."""

import re
import time

import keras
import numpy as np

from keras_dynmask.corruption import roles
from keras_dynmask.errors import need_extra, require, whole
from keras_dynmask.inputs import as_features
from keras_dynmask.masking import DynamicMasking

# In Markdown: a token that is not selected, hidden, swapped for another, kept.
MARKS = ("{}", "`[MASK]`", "**{}**", "*{}*")
LEGEND = "{1} hidden, {2} swapped, {3} kept".format(*(mark.format("word") for mark in MARKS))


class Progress(keras.callbacks.Callback):
    """A line per epoch; on a terminal it grows with the steps and says how long it will take.

    Args:
        announce: function of a string.
        unigram_loss: float, the baseline to show beside the held-out loss.
        tokens_per_step: float, how many tokens are read in a step.
        live: bool, whether to redraw the line at each step.
    """

    def __init__(self, announce, unigram_loss, tokens_per_step, live):
        super().__init__()
        self.announce = announce
        self.unigram_loss = unigram_loss
        self.tokens_per_step = tokens_per_step
        self.live = live
        self.first_step_ended = None  # the first compiles: no measure for the others
        self.steps = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.began = time.monotonic()
        self.title = f"epoch {epoch + 1:3}/{self.params['epochs']}"
        self.epochs_left = self.params["epochs"] - epoch - 1

    def on_train_batch_end(self, batch, logs=None):
        self.trained = time.monotonic()
        self.first_step_ended = self.first_step_ended or self.trained
        self.steps += 1
        if self.live:
            done = (batch + 1) / self.params["steps"]
            line = f"{self.title}  [{'#' * round(20 * done):20}]  loss {logs['masked_loss']:.3f}"
            print(f"{CLEARED}{line}{self._left(batch)}", end="", flush=True)

    def on_epoch_end(self, epoch, logs=None):
        speed = self.params["steps"] * self.tokens_per_step / (self.trained - self.began)
        self.announce(
            f"{CLEARED if self.live else ''}{self.title}  loss {logs['masked_loss']:.3f}"
            f"  held out {logs['val_masked_loss']:.3f} (by frequency {self.unigram_loss:.3f})"
            f"  accuracy {logs['val_masked_accuracy']:.1%}"
            f"  {time.monotonic() - self.began:.1f} s, {speed:,.0f} tokens/s"
        )

    def _left(self, batch):
        if self.steps < 2:
            return ""
        steps = self.params["steps"] * (self.epochs_left + 1) - batch - 1
        seconds = steps * (self.trained - self.first_step_ended) / (self.steps - 1)
        minutes, seconds = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"  {hours}:{minutes:02}:{seconds:02} left"


CLEARED = "\r\033[K"  # the line of a terminal


class MaskingTensorBoard(keras.callbacks.TensorBoard):
    """Keras' TensorBoard callback, which shows what the masks do as well.

    Beside the metrics (`selection_rate` is one of `MaskedLanguageModel`'s) it logs after each
    epoch how the next step would mask some rows: as text, `masks`, and as a histogram of the
    positions, `selected_positions`. (Under `mask_dataset` the layer counts no steps, so these
    stay as they are.) Looking changes nothing: a run ends with the weights that it would have
    without.

    Args:
        rows: integers `[rows, length]`, or a dict of arrays as `DynamicMasking` takes it. The
            histogram is of them all.
        tokens: how each id is written: a list of strings, by id; or None for the ids.
        shown: int, how many of the rows are logged as text.
        masking: a `DynamicMasking` layer, or None for the model's `masking`.
        **kwargs: of `keras.callbacks.TensorBoard`: `log_dir`, `update_freq`, ...

    Raises:
        ValueError: naming the argument, what was expected and what was received.
        ImportError: where tensorflow or tensorboard is not installed.

    Example:

    >>> callback = MaskingTensorBoard(np.full((32, 6), 5), log_dir="logs")
    >>> # model.fit(rows, callbacks=[callback]), and beside it: tensorboard --logdir logs
    """

    def __init__(self, rows, tokens=None, *, shown=4, masking=None, **kwargs):
        need_extra("tensorboard", "tensorflow", "tensorboard")
        super().__init__(**kwargs)
        self.rows = {name: np.asarray(value) for name, value in as_features(rows).items()}
        self.tokens = tokens
        self.shown = whole("shown", shown, 0)
        self.given_masking = masking

    def set_model(self, model):
        self.masking = self.given_masking or getattr(model, "masking", None)
        require(
            isinstance(self.masking, DynamicMasking),
            "`masking` must be a DynamicMasking layer, where the model has none of that name.",
            masking=self.masking,
        )
        size = self.masking.vocabulary_size
        self.masking.mask_arrays(self.rows)  # refuses what it would after the first epoch
        shape = self.rows["token_ids"].shape
        require(len(shape) == 2, "`rows` must be integers [rows, length].", shape=shape)
        require(
            self.tokens is None or len(self.tokens) == size,
            f"`tokens` must hold a string for each of {size} ids.",
            tokens=self.tokens,
        )
        super().set_model(model)

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        shown, selected = self._masked()
        text = [LEGEND, *map(self._written, shown[: self.shown], self._fates(shown, selected))]
        with self._train_writer.as_default():
            self.summary.text("masks", text, step=epoch)
            self.summary.histogram("selected_positions", np.nonzero(selected)[1], step=epoch)

    def _masked(self):
        """The rows as the next step would show them, and where it would select."""
        rows = self.rows
        adaptive = getattr(self.model, "adaptive_selection", None)
        if adaptive is not None:
            weights = keras.ops.convert_to_numpy(adaptive(rows["token_ids"]))
            rows = {**rows, "selection_weights": weights * rows.get("selection_weights", 1)}
        step = int(keras.ops.convert_to_numpy(self.masking.step))
        masked = self.masking.mask_arrays(rows, step=step)
        selected = masked["mask_weights"] > 0
        if "mask_positions" in masked:
            row, target = np.nonzero(selected)
            selected = np.zeros(masked["token_ids"].shape, bool)
            selected[row, masked["mask_positions"][row, target]] = True
        return masked["token_ids"], selected

    def _fates(self, shown, selected):
        """Of each token the number of its mark."""
        became = roles(shown, self.rows["token_ids"], self.masking.mask_token_id)
        return np.select(list(map(keras.ops.convert_to_numpy, became)), (1, 2, 3)) * selected

    def _written(self, ids, fates):
        words = map(str, ids) if self.tokens is None else (self.tokens[index] for index in ids)
        escaped = (re.sub(r"([\\`*_{}\[\]<>#|~!])", r"\\\1", word) for word in words)
        return " ".join(MARKS[fate].format(word) for word, fate in zip(escaped, fates, strict=True))
