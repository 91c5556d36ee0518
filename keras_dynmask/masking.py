"""`DynamicMasking`: draws noise, and calls the ground floor with it."""

import math
import secrets
import sys
import threading
from typing import Any, NamedTuple

import keras
import numpy as np
from keras.optimizers.schedules import LearningRateSchedule

from keras_dynmask import noise
from keras_dynmask.arrays import compiled, is_foreign, numpy_in_force, ops, ops_of
from keras_dynmask.corruption import corrupt
from keras_dynmask.errors import flag, real, require, token_ids_below, whole
from keras_dynmask.inputs import READ, as_features, checked_step, standardize
from keras_dynmask.rates import checked_rate, highest_rate, rate_at, rate_config
from keras_dynmask.replacements import (
    RandomTokens,
    RandomWords,
    token_shares,
    word_list,
)
from keras_dynmask.replicas import replica_id
from keras_dynmask.selection import (
    count_positions,
    drop_overflow,
    first_unit,
    select_exactly,
    select_first,
    select_independently,
    select_lowest,
    selected_count,
    selected_positions,
    values_at,
    weighted_edge,
    weighted_order,
)
from keras_dynmask.units import (
    begins_at_changes,
    count_in_unit,
    highest_in_unit,
    running_count,
    unit_begins,
    unit_numbers,
)
from keras_dynmask.vocabulary import id_table, weight_table

WEIGHTS_HAVE_NO_RATE = (
    "`inverse_rate_weights` must be False with `selection_weights`: what weighs more is selected "
    "at a rate of its own, which no formula gives."
)
ONE_HAS_NO_RATE = (
    "`at_least_one` must be False with `inverse_rate_weights`, unless tokens are selected by an "
    "exact count: what is selected for want of another has no rate to weigh by."
)


_COUNTING = threading.Lock()


class Budget(NamedTuple):
    """How many positions are selected, and out of what."""

    rate: Any  # scalar, or float32 [batch, 1]
    round_up: Any  # noise that rounds the count, [batch, 1]
    turn: Any  # noise that turns the circle, [batch, 1], or [batch, length] for documents
    documents: Any  # their numbers where each has its own count, else None
    capacity: Any  # int K, or None


@keras.saving.register_keras_serializable(package="keras_dynmask")
class DynamicMasking(keras.layers.Layer):
    """Masks token ids for masked language modelling, freshly at every training step.

    In training the layer selects some of the tokens for prediction and shows each
    of them as the mask token (*hidden*), as a random token (*swapped*) or as it is
    (*kept*). In inference it returns `token_ids` bit for bit and weights of zero.
    Called on its own, or as `dataset.map(layer)`, it masks unless `training=False`.
    Inside a model it follows the model's training flag and is inert where that is
    unset, as in a `call` of your own that takes no `training`. `stateless_call` needs
    the flag, too.

    The mask is a pure function of the seed, the step, the replica and the row. The
    step is a weight of the layer, counted up by each call that masks, and saved
    with it: a run that is stopped and resumed goes on with the masks it would have
    had. The same seed gives the same masks in eager mode, in a graph, under XLA,
    in tf.data and on every backend. Global seeds play no part. Parallel calls of
    `dataset.map(layer)` race for the step, so there the row's content counts, too;
    `mask_dataset` has no race.

    Args:
        vocabulary_size: int, the number of ids; `token_ids` lie below it. Eager calls
            refuse others. In a graph nobody looks: TensorFlow on the CPU stops with its own
            error, XLA takes an id above for the last, JAX leaves it unselected.
        mask_selection_rate: float in [0, 1], the share of the selectable tokens
            that is selected; or a pair `(low, high)`, one rate per row, uniform
            between them and in a training batch evenly spread (drawn from the row
            alone where the caller brings `row_ids`); or a
            `keras.optimizers.schedules.LearningRateSchedule`, the rate at each step
            (clipped to [0, 1]).
        mask_token_id: int, the id that hides a token.
        mask_selection_length: int or None, the size K of the targets. Never more
            than K tokens are selected: units that overflow are dropped at random, and
            a unit longer than K is not selectable. Long units overflow more often, so
            leave room for one unit more than the count, or they are selected a little less
            often than short ones. With None the targets are dense, as long as the row.
        unselectable_token_ids: ints, protected ids: never selected, never swapped
            in, and never part of a longer unit. The mask token is never swapped in
            either.
        mask_token_rate: float in [0, 1], the share of the selected that is hidden.
        random_token_rate: float in [0, 1], the share of the selected that is swapped for an
            unprotected id. The rest is kept; both together are at most 1.
        exact_count: bool. True selects exactly `rate * selectable` tokens of every
            row, rounded up or down by a coin so that the mean is exact; units
            longer than a token miss that count by less than one unit, so a row
            with a count below that length may have none selected. False selects
            every unit on its own.
        at_least_one: bool. True selects a unit, drawn uniformly, where a row has
            something selectable and nothing would be selected. Of a pair `(low, high)`
            the count is then rounded up: with `(0, 1)` it is uniform on 1..n.
        count_per_document: bool. True gives every document of a packed row, as
            `segment_ids` name them, a count of its own (and `at_least_one`, as far as
            K allows); the counts of a row still add up to the row's.
        evaluation_rate: float, pair or None, the rate of `mask_fixed` and so of a
            model's `evaluate`; None: `mask_selection_rate`, a schedule at step 0.
        mean_span_length: float >= 1, the mean number of tokens (or words) that are
            masked together. Lengths are geometric.
        continuation_token_ids: ints or None, the ids that continue a word. With
            them whole words are masked. See `continuation_ids`.
        selection_weights: None, or a number >= 0 for every id: units are drawn
            one after the other, without replacement, each in proportion to what it
            weighs among those that are left (weights count from `2**-64` to `2**64`). A longer
            unit weighs as much as its heaviest token; the last drawn is kept with
            probability room / length, so that the mean count is exact. With
            `exact_count=False` a unit of weight w is selected with probability
            `1 - (1 - rate)**w`.
        random_token_weights: None for a uniform draw, or a number >= 0 for every id:
            random tokens are drawn in proportion (`np.bincount` of a corpus, say).
            Below 2**-23 of the total, a weight counts as that. For up to 2**22 ids.
        random_excludes_original: bool. True never swaps a token for itself.
        corrupt_whole_units: bool. True hides, swaps or keeps a unit as a whole (Joshi
            et al. 2020), False each of its tokens on its own (Devlin et al. 2019).
        random_words: None, or words as lists of ids: a swapped word is replaced by
            one of as many pieces, drawn uniformly; where none is as long, by random
            tokens. Needs `corrupt_whole_units`. See `words_of`.
        inverse_rate_weights: bool. True weighs each selected token by one over its
            probability of selection: selectable / count where counts are exact (and
            then at least 1), else 1 / rate. Where K drops nothing, the weighted sum of
            losses over a row is then an unbiased estimate of the sum over all its tokens,
            at any rate: with `(0, 1)` rates, the objective of masked diffusion (Sahoo et
            al. 2024; Nie et al. 2025). False weighs by 1.
        seed: int in [0, 2**64) or None for one drawn from the operating system,
            which `seed` then holds.
        **kwargs: `name`, `dtype`, `trainable` of `keras.layers.Layer`.

    Call arguments:
        inputs: integers `[length]` or `[batch, length]`, of a dtype that holds every id
            (list, array, tensor, or `tf.RaggedTensor` outside compiled models), or a dict
            of `token_ids` and, optionally, of the same shape: `padding_mask` (True or 1 = a
            real token), `selectable` (False = never select), `selection_weights` (>= 0;
            they multiply the constructor's), `begins` (True = a unit begins here, in
            place of `continuation_token_ids`; see `word_begins`), `segment_ids` (ints: no
            unit crosses from one document to the next, where the id changes); and
            `row_ids` `[batch]` (ints: whose noise a row takes, in place of its number
            in the batch). Other keys pass through. Weights that are negative or not
            finite are refused in eager mode; in a graph they count as 0, infinity as
            2**64.
        training: bool or None, see above. True or False always decides.
        step: int or int tensor. With it the call is a pure function, and the
            layer's own counter stays as it is.

    Returns:
        A dict: the input's other keys as they came; `token_ids` as shown, and
        `mask_ids`, the original ids, in the input's dtype; `mask_weights`, float32,
        1 where selected (or as `inverse_rate_weights` says); and with K given also
        `mask_positions`, int32, ascending. With K given the targets are `[..., K]`,
        padded with 0, else `[..., length]`.

    Raises:
        ValueError: naming the argument, what was expected and what was received.

    Example:

    >>> masking = DynamicMasking(vocabulary_size=100, mask_selection_rate=0.5,
    ...                          mask_token_id=1, mask_token_rate=1.0,
    ...                          random_token_rate=0.0, seed=7)
    >>> first = masking([[11, 12, 13, 14, 0, 0]])
    >>> int(first["mask_weights"].numpy().sum())
    2
    >>> int((first["token_ids"].numpy() == 1).sum())
    2
    >>> masking([[11, 12, 13, 14, 0, 0]], training=False)["token_ids"].numpy().tolist()
    [[11, 12, 13, 14, 0, 0]]

    References:
        Devlin et al. 2019 (BERT: 15 %, 80/10/10), Liu et al. 2019 (RoBERTa: a fresh
        mask each time), Joshi et al. 2020 (SpanBERT: spans of words), Efraimidis and
        Spirakis 2006 (weights), Kingma et al. 2021 (evenly spread rates). The first
        seven arguments are those of KerasHub's `MaskedLMMaskGenerator`.
    """

    def __init__(
        self,
        vocabulary_size,
        mask_selection_rate,
        mask_token_id,
        mask_selection_length=None,
        unselectable_token_ids=(0,),
        mask_token_rate=0.8,
        random_token_rate=0.1,
        *,
        exact_count=True,
        at_least_one=False,
        count_per_document=False,
        evaluation_rate=None,
        mean_span_length=1.0,
        continuation_token_ids=None,
        selection_weights=None,
        random_token_weights=None,
        random_excludes_original=False,
        corrupt_whole_units=False,
        random_words=None,
        inverse_rate_weights=False,
        seed=None,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True

        size = self.vocabulary_size = whole("vocabulary_size", vocabulary_size, 1, 2**31 - 1)
        self.mask_selection_rate = checked_rate("mask_selection_rate", mask_selection_rate)
        self.mask_token_id = whole("mask_token_id", mask_token_id, 0, size - 1)
        self.mask_selection_length = _unless_none(
            whole, "mask_selection_length", mask_selection_length, 1, 2**31 - 1
        )
        self.unselectable_token_ids = token_ids_below(
            "unselectable_token_ids", unselectable_token_ids, size
        )
        self.mask_token_rate = real("mask_token_rate", mask_token_rate, 0, 1)
        self.random_token_rate = real("random_token_rate", random_token_rate, 0, 1)
        self.exact_count = flag("exact_count", exact_count)
        self.at_least_one = flag("at_least_one", at_least_one)
        self.count_per_document = flag("count_per_document", count_per_document)
        self.evaluation_rate = _unless_none(checked_rate, "evaluation_rate", evaluation_rate)
        self.mean_span_length = real("mean_span_length", mean_span_length, 1)
        self.continuation_token_ids = _unless_none(
            token_ids_below, "continuation_token_ids", continuation_token_ids, size
        )
        self.selection_weights = _unless_none(
            weight_table, "selection_weights", selection_weights, size
        )
        self.random_token_weights = _unless_none(
            weight_table, "random_token_weights", random_token_weights, size
        )
        self.random_excludes_original = flag("random_excludes_original", random_excludes_original)
        self.corrupt_whole_units = flag("corrupt_whole_units", corrupt_whole_units)
        self.random_words = _unless_none(word_list, "random_words", random_words, size)
        self.inverse_rate_weights = flag("inverse_rate_weights", inverse_rate_weights)
        self.seed = whole("seed", secrets.randbits(63) if seed is None else seed, 0, 2**64 - 1)
        self._check_together()

        self._protected = id_table(self.unselectable_token_ids, size)
        self._continues = id_table(self.continuation_token_ids or (), size)
        self._random_tokens, self._random_words = self._replacements()
        # Created here, not in `build`, which a symbolic build of a distributed model
        # may never reach. "int" is int64 on TensorFlow: it keeps int32 on the CPU.
        self.step = self.add_weight(
            name="step",
            dtype="int",
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
        )
        self.built = True

    def _check_together(self):
        """Arguments that are each right and do not go together."""
        require(
            self.mask_token_rate + self.random_token_rate <= 1 + 1e-9,
            "`mask_token_rate` + `random_token_rate` must be at most 1.",
            mask_token_rate=self.mask_token_rate,
            random_token_rate=self.random_token_rate,
        )
        require(
            self.exact_count or not self.count_per_document,
            "`count_per_document` must be False where `exact_count` is: there is no count.",
            count_per_document=True,
            exact_count=False,
        )
        require(
            self.corrupt_whole_units or self.random_words is None,
            "`corrupt_whole_units` must be True with `random_words`: only a whole word is replaced "
            "by a word.",
            corrupt_whole_units=False,
        )
        require(
            self.selection_weights is None or not self.inverse_rate_weights,
            WEIGHTS_HAVE_NO_RATE,
            inverse_rate_weights=True,
        )
        require(
            (self.exact_count and self._units_are_tokens({}))
            or not (self.at_least_one and self.inverse_rate_weights),
            ONE_HAS_NO_RATE,
            at_least_one=True,
            exact_count=self.exact_count,
            mean_span_length=self.mean_span_length,
        )

    def _replacements(self):
        """What is swapped in: random tokens, and random words where there are any."""
        swappable = ~self._protected
        swappable[self.mask_token_id] = False
        shares = swappable.astype("int32")
        if self.random_token_weights is not None:
            shares = token_shares(np.where(swappable, self.random_token_weights, 0))
        needed = 2 if self.random_excludes_original else 1
        require(
            self.random_token_rate == 0 or np.count_nonzero(shares) >= needed,
            f"`random_token_rate` must be 0 unless at least {needed} ids can be swapped in: not "
            "protected, not the mask token, and of `random_token_weights` > 0.",
            random_token_rate=self.random_token_rate,
            swappable=np.count_nonzero(shares),
        )
        pieces = {piece for word in self.random_words or () for piece in word}
        forbidden = [piece for piece in sorted(pieces) if not swappable[piece]]
        require(
            not forbidden,
            "`random_words` must hold neither protected ids nor the mask token.",
            random_words=forbidden,
        )
        if self.random_token_rate == 0:
            return None, None
        tokens = RandomTokens(shares, self.random_excludes_original)
        if self.random_words is None:
            return tokens, None
        return tokens, RandomWords(self.random_words, self.random_excludes_original)

    @property
    def _counts_one(self):
        """Whether a count is never 0: asked for, or because its inverse is a weight."""
        return self.at_least_one or (self.exact_count and self.inverse_rate_weights)

    def _units_are_tokens(self, inputs):
        alone = self.continuation_token_ids is None and self.mean_span_length == 1
        return alone and "begins" not in inputs

    def get_config(self):
        def listed(weights):
            return None if weights is None else weights.tolist()

        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "mask_selection_rate": rate_config(self.mask_selection_rate),
            "mask_token_id": self.mask_token_id,
            "mask_selection_length": self.mask_selection_length,
            "unselectable_token_ids": self.unselectable_token_ids,
            "mask_token_rate": self.mask_token_rate,
            "random_token_rate": self.random_token_rate,
            "exact_count": self.exact_count,
            "at_least_one": self.at_least_one,
            "count_per_document": self.count_per_document,
            "evaluation_rate": rate_config(self.evaluation_rate),
            "mean_span_length": self.mean_span_length,
            "continuation_token_ids": self.continuation_token_ids,
            "selection_weights": listed(self.selection_weights),
            "random_token_weights": listed(self.random_token_weights),
            "random_excludes_original": self.random_excludes_original,
            "corrupt_whole_units": self.corrupt_whole_units,
            "random_words": self.random_words,
            "inverse_rate_weights": self.inverse_rate_weights,
            "seed": self.seed,
        }

    def __call__(self, inputs, training=None, step=None):
        arguments = {
            "training": None if training is None else flag("training", training),
            "step": None if step is None else checked_step(step),
        }
        # A call with nobody above it has no model to ask, so it does what it is for.
        alone = self._get_call_context().entry_layer is self
        try:
            features = as_features(inputs)
            if any(isinstance(value, keras.KerasTensor) for value in features.values()):
                return super().__call__(features, **_given(arguments))  # a model is being built
            if training is None and alone:
                arguments["training"] = True
            # Keras calls layers on no tensors but its backend's.
            call = self.call if is_foreign(features["token_ids"]) else super().__call__
            return self._on_tensors(features, lambda tensors: call(tensors, **_given(arguments)))
        finally:
            self._maybe_reset_call_context()

    def _on_tensors(self, features, function):
        """What a function makes of features, in the form in which the caller brought them."""
        with ops_of(features["token_ids"]):
            tensors, restore = standardize(features, self.vocabulary_size)
            return {**features, **restore(function(tensors))}

    def call(self, inputs, training=None, step=None):
        features = as_features(inputs)
        return self.mask(features, step) if training else self._untouched(features)

    def compute_mask(self, inputs, previous_mask=None):
        return None  # Keras' own mask is about padding: `padding_mask` says it

    def mask(self, inputs, step=None, selection_length=None, replica=None):
        """The call in training, on a dict of tensors `[batch, length]`.

        `selection_length` stands in for the constructor's `mask_selection_length`, `replica`
        for the number of the replica that calls.
        """
        moment = self._next_step(inputs["token_ids"]) if step is None else step
        # Parallel calls race for the counter: they may read the same step, but they do not
        # mask the same row.
        races = step is None and _in_tf_data()

        def freshly(inputs, moment, replica):
            batch = ops.shape(inputs["token_ids"])[0]
            rows = inputs.get("row_ids", ops.arange(batch, dtype="int32"))
            keys = noise.row_keys(self.seed, (moment, replica), noise.words(rows))
            if races:
                keys = noise.threefry(keys, self.content(inputs))
            return self._mask(inputs, keys, moment, True, self._capacity(selection_length))

        replica = replica_id() if replica is None else replica
        return self._compiled(freshly, inputs, moment, replica)

    def mask_fixed(self, inputs, selection_length=None):
        """Masks as a model's `evaluate` does: by the seed and the row's own content.

        The same example has the same mask in every epoch, order, batch size, process and
        replica, on every backend, and at any padding length. `dataset.map(mask_fixed)`
        makes validation data.

        Args:
            inputs: as in a call.
            selection_length: as in `mask`.
        """

        def fixed(tensors):
            keys = noise.row_keys(self.seed, noise.TIMELESS, self.content(tensors))
            return self._mask(tensors, keys, 0, False, self._capacity(selection_length))

        return self._on_tensors(as_features(inputs), lambda tensors: self._compiled(fixed, tensors))

    def _compiled(self, function, inputs, *numbers):
        """What a function masks, and what else the inputs hold."""
        read = {name: inputs[name] for name in READ if name in inputs}
        follows_schedule = isinstance(self.mask_selection_rate, LearningRateSchedule)
        if is_foreign(inputs["token_ids"]) and follows_schedule:  # on the host
            return {**inputs, **function(read, *numbers)}
        return {**inputs, **compiled(function, read, *numbers)}

    def _capacity(self, selection_length):
        return self.mask_selection_length if selection_length is None else selection_length

    def mask_arrays(self, inputs, training=True, step=0, replica=None):
        """The call on NumPy arrays, in NumPy: the same bits, without the backend's help.

        For input pipelines whose workers know no framework (Grain, a PyTorch
        `DataLoader`). The step is the caller's: the layer's counter stays as it is.

        Args:
            inputs: as in a call; arrays or lists.
            training: bool.
            step: int.
            replica: int or None for the number of the process, which PyTorch's workers know
                or not, as they were started. Say 0 where `row_ids` say all: then any process
                masks a row alike.

        Returns:
            As a call, in arrays.

        Raises:
            ValueError: as a call.

        Example:

        >>> masking = DynamicMasking(100, 0.5, mask_token_id=1, seed=7)
        >>> in_numpy = masking.mask_arrays([[11, 12, 13, 14]], step=3)
        >>> in_keras = masking([[11, 12, 13, 14]], step=3)
        >>> in_numpy["token_ids"].tolist() == in_keras["token_ids"].numpy().tolist()
        True
        """
        training, step = flag("training", training), whole("step", step, 0)
        replica = _unless_none(whole, "replica", replica, 0)

        def call(arrays):
            return self.mask(arrays, step, replica=replica) if training else self._untouched(arrays)

        with numpy_in_force():
            return self._on_tensors(as_features(inputs), call)

    def _next_step(self, ids):
        """The step; and the counter moves on."""
        if is_foreign(ids):
            return ops.from_host(self._count_up, 0, "int32")
        step = self.step + 0  # a copy
        self.step.assign_add(1)
        return step

    def _count_up(self, _):
        with _COUNTING:  # tf.data calls from many threads
            step = int(keras.ops.convert_to_numpy(self.step))
            self.step.assign(step + 1)
            return step

    def _rate_of(self, training):
        its_own = not training and self.evaluation_rate is not None
        return self.evaluation_rate if its_own else self.mask_selection_rate

    def selectable(self, inputs):
        """Which positions may be selected: bool `[batch, length]`, for a dict of tensors."""
        return self._is_token(inputs) & ops.cast(inputs.get("selectable", True), "bool")

    def token_weights(self, inputs):
        """What each position weighs, float32 `[batch, length]`, for a dict of tensors; None
        where all weigh the same."""
        given, known = inputs.get("selection_weights"), self.selection_weights
        if given is None and known is None:
            return None
        weights = 1.0 if given is None else _normal(ops.cast(given, "float32"))
        if known is not None:
            weights = weights * ops.take(known, ops.cast(inputs["token_ids"], "int32"))
        return _normal(weights)

    def selection_capacity(self, inputs, training=True):
        """A size for the targets that is small and holds what is selected of `inputs`.

        Exact counts of tokens never overflow it. For longer units there is room for
        one of eight times the mean length, two tokens a word; for independent draws for
        six standard deviations; and for all where the caller says how long a unit is,
        or how likely, or wants one of every document.

        Args:
            inputs: a dict of tensors `[batch, length]`, as `mask` takes it.
            training: bool, False for `mask_fixed`.
        """
        if self.mask_selection_length is not None:
            return self.mask_selection_length
        length = ops.shape(inputs["token_ids"])[1]
        weighted = self.selection_weights is not None or "selection_weights" in inputs
        one_of_each = self._counts_one and self.count_per_document
        if "begins" in inputs or (weighted and not self.exact_count) or one_of_each:
            return length
        highest = highest_rate(self._rate_of(training))
        unit = self.mean_span_length * (1 if self.continuation_token_ids is None else 2)
        room = (0 if unit == 1 else 8 * unit) + self._counts_one
        size = length if isinstance(length, int) else ops.cast(length, "float32")
        if not self.exact_count:
            room += 6 * (size * highest * (1 - highest) * unit) ** 0.5
        if isinstance(length, int):
            return min(length, math.ceil(size * highest + room))
        return ops.cast(ops.minimum(size, ops.ceil(size * highest + room)), "int32")

    def _mask(self, inputs, keys, step, training, capacity):
        """Begin, number, share, select, corrupt; then the targets."""
        dtype = keras.backend.standardize_dtype(inputs["token_ids"].dtype)
        require(
            np.iinfo(dtype).max >= self.vocabulary_size - 1,
            f"`token_ids` must have a dtype that holds every id up to {self.vocabulary_size - 1}.",
            dtype=dtype,
        )
        ids = ops.cast(inputs["token_ids"], "int32")  # [batch, length]
        positions = ops.arange(ops.shape(ids)[1], dtype="int32")
        units = positions
        if not self._units_are_tokens(inputs):
            coin = noise.uniform(noise.bits(keys, positions, noise.BEGIN))
            units = unit_numbers(self._begins(inputs, coin, self.mean_span_length))

        budget = self._budget(inputs, keys, step, training, capacity)
        selected, weight = self._select(inputs, keys, units, budget)

        shown_together = units if self.corrupt_whole_units else positions
        role = noise.uniform(noise.bits(keys, shown_together, noise.ROLE))
        swaps = ids  # nothing is swapped
        if self._random_tokens is not None:
            swaps = self._random_tokens.draw(noise.bits(keys, positions, noise.REPLACEMENT), ids)
        if self._random_words is not None:
            word_begins = self._begins(inputs, 0.0, 1.0)
            words = unit_numbers(word_begins)
            draws = (noise.bits(keys, words, stream) for stream in (noise.WORD, noise.OTHER_WORD))
            swaps = self._random_words.draw(*draws, ids, selected, word_begins, words, swaps)
        shown = corrupt(
            ids,
            selected,
            role,
            swaps,
            self.mask_token_id,
            self.mask_token_rate,
            self.random_token_rate,
        )
        return self._outputs(inputs, shown, selected, weight, capacity)

    def _begins(self, inputs, coin, mean_span_length):
        """Where a unit begins, bool `[batch, length]`."""
        may_begin = inputs.get("begins")
        if may_begin is None:
            may_begin = ~ops.take(self._continues, ops.cast(inputs["token_ids"], "int32"))
        may_begin = ops.cast(may_begin, "bool")
        boundary, edges = ~self._is_token(inputs), self._edges(inputs)
        return unit_begins(may_begin, boundary, edges, coin, mean_span_length)

    def _edges(self, inputs):
        """Where a row or a document begins: `[length]` or `[batch, length]`."""
        if "segment_ids" in inputs:
            return begins_at_changes(inputs["segment_ids"])
        return ops.arange(ops.shape(inputs["token_ids"])[1], dtype="int32") == 0

    def _budget(self, inputs, keys, step, training, capacity):
        rate = self._rate_of(training)
        round_up, turn, _ = noise.row_uniforms(keys)
        if isinstance(rate, tuple) and self._counts_one:
            # The rate is a draw itself. Rounded up, (0, 1) makes the count uniform on 1..n.
            round_up = ops.ones_like(round_up)
        documents = None
        if self.count_per_document:
            require(
                "segment_ids" in inputs,
                "`inputs` must hold `segment_ids` with `count_per_document`.",
                keys=list(inputs),
            )
            documents = unit_numbers(self._edges(inputs))
            turn = noise.uniform(noise.bits(keys, documents, noise.TURN))
        rate = rate_at(rate, step, keys, spread=training and "row_ids" not in inputs)
        return Budget(rate, round_up, turn, documents, capacity)

    def _select(self, inputs, keys, units, budget):
        """What is selected, bool `[batch, length]`, and what each selected token weighs."""
        units_are_tokens = self._units_are_tokens(inputs)
        counts_tokens = self.exact_count and units_are_tokens
        require(
            counts_tokens or not (self.at_least_one and self.inverse_rate_weights),
            ONE_HAS_NO_RATE,
            at_least_one=True,
            keys=list(inputs),
        )
        selectable = self.selectable(inputs)
        if budget.capacity is not None and not units_are_tokens:
            # What can't be selected is not counted either.
            selectable = selectable & (count_in_unit(selectable, units) <= budget.capacity)
        keys_of_units = noise.bits(keys, units, noise.SELECT)  # equal inside a unit
        noise_of_units = noise.uniform(keys_of_units)
        order, weights = keys_of_units, self._unit_weights(inputs, selectable, units)
        if weights is not None:
            selectable = selectable & (weights > 0)
            order = weighted_order(noise_of_units, weights)

        if self.exact_count:
            size = count_positions(selectable, budget.documents)
            count = self._count(selectable, size, budget)
            drawn = keys_of_units, selectable, count
            if weights is not None:
                selected = select_first(order, *drawn, budget.turn, budget.documents)
            elif units_are_tokens:
                selected = select_lowest(*drawn, budget.documents)
            else:
                selected = select_exactly(*drawn, budget.turn, budget.documents)
            odds = size, count
        else:
            if weights is None:
                selected = select_independently(noise_of_units, selectable, budget.rate)
            else:
                selected = select_independently(order, selectable, weighted_edge(budget.rate))
            odds = 1, budget.rate

        def first(counted):
            counted = first_unit(order, counted, budget.documents)
            return first_unit(keys_of_units, counted, budget.documents)

        if self.at_least_one and not counts_tokens:
            none = count_positions(selected, budget.documents) == 0
            selected = selected | (first(selectable) & none)
        if budget.capacity is not None and not (counts_tokens and budget.documents is None):
            spared = first(selected) if self.at_least_one else None
            at_random = noise.bits(keys, units, noise.DROP)
            selected = drop_overflow(at_random, selected, budget.capacity, spared)
        weight = 1.0
        if self.inverse_rate_weights:
            weight = ops.divide_no_nan(*(ops.cast(number, "float32") for number in odds))
        return selected, weight

    def _unit_weights(self, inputs, selectable, units):
        """What each unit weighs: as much as its heaviest position."""
        weights = self.token_weights(inputs)
        if weights is None:
            return None
        require(not self.inverse_rate_weights, WEIGHTS_HAVE_NO_RATE, inverse_rate_weights=True)
        weights = ops.where(selectable, weights, 0.0)
        return weights if self._units_are_tokens(inputs) else highest_in_unit(weights, units)

    def _count(self, selectable, size, budget):
        """How many positions to select of each row, or of each document of it."""
        whole, rate = count_positions(selectable), budget.rate
        if budget.capacity is not None:  # documents share what K takes away
            room, needed = (ops.cast(n, "float32") for n in (budget.capacity, whole))
            rate = ops.minimum(ops.cast(rate, "float32"), room / ops.maximum(needed, 1.0))
        if budget.documents is None:
            count = selected_count(size, rate, budget.round_up)
        else:
            through = running_count(selectable)
            through = highest_in_unit(through, budget.documents)
            count, before = (
                selected_count(number, rate, budget.round_up, whole)
                for number in (through, through - size)
            )
            count = count - before
        if self._counts_one:
            count = ops.maximum(count, ops.minimum(size, 1))
        return count if budget.capacity is None else ops.minimum(count, budget.capacity)

    def _outputs(self, inputs, shown, selected, weight, capacity):
        original = inputs["token_ids"]
        outputs = {**inputs, "token_ids": ops.cast(shown, original.dtype), "mask_ids": original}
        weights = ops.cast(ops.where(selected, weight, 0.0), "float32")
        if capacity is not None:
            positions = outputs["mask_positions"] = selected_positions(selected, capacity)
            taken = ops.arange(capacity, dtype="int32") < count_positions(selected)
            ids = ops.where(taken, values_at(ops.cast(original, "int32"), positions), 0)
            outputs["mask_ids"] = ops.cast(ids, original.dtype)
            weights = ops.where(taken, values_at(weights, positions), 0.0)
        outputs["mask_weights"] = weights
        return outputs

    def _untouched(self, inputs):
        none = ops.zeros_like(inputs["token_ids"], dtype="bool")
        return self._outputs(inputs, inputs["token_ids"], none, 1.0, self.mask_selection_length)

    def _is_token(self, inputs):
        """Neither protected nor padding: what units are made of."""
        protected = ops.take(self._protected, ops.cast(inputs["token_ids"], "int32"))
        return ~protected & ops.cast(inputs.get("padding_mask", True), "bool")

    def content(self, inputs):
        """What a row's own tokens say of it: two int32 words `[batch, 1]`, for a dict of
        tensors. Padding and protected ids leave no trace."""
        ids = ops.cast(inputs["token_ids"], "int32")
        return noise.content_words(ids, self._is_token(inputs))


def _normal(weights):
    """Weights without NaN and without what some processors take for 0."""
    return ops.where(weights >= 2.0**-126, weights, 0.0)


def _in_tf_data():
    """Whether the call is traced into a function that a `tf.data.Dataset` maps."""
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None:
        return False
    graph = tensorflow.compat.v1.get_default_graph()
    while graph is not None:
        if getattr(graph, "name", "").startswith("Dataset_"):
            return True
        graph = getattr(graph, "outer_graph", None)
    return False


def _given(arguments):
    return {name: value for name, value in arguments.items() if value is not None}


def _unless_none(check, name, value, *arguments):
    return None if value is None else check(name, value, *arguments)
