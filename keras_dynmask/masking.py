"""`DynamicMasking`: draws noise, and calls the ground floor with it."""

import math
import secrets
import sys

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_dynmask import noise
from keras_dynmask.corruption import corrupt
from keras_dynmask.errors import flag, is_real, real, require, token_ids_below, whole
from keras_dynmask.inputs import as_features, checked_step, standardize
from keras_dynmask.selection import (
    at_selected,
    count_positions,
    drop_overflow,
    in_shares,
    scaled,
    select_exactly,
    select_first,
    select_independently,
    selected_count,
    weighted_order,
)
from keras_dynmask.units import heaviest_in_unit, unit_begins, unit_numbers
from keras_dynmask.vocabulary import id_table


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
        vocabulary_size: int, the number of ids; `token_ids` lie below it. In eager
            mode arrays and lists are checked, in a graph they are not.
        mask_selection_rate: float in [0, 1], the share of the selectable tokens
            that is selected; or a pair `(low, high)`, one rate per row, uniform
            between them; or a `keras.optimizers.schedules.LearningRateSchedule`,
            the rate at each step (clipped to [0, 1]).
        mask_token_id: int, the id that hides a token.
        mask_selection_length: int or None, the size K of the targets. Never more
            than K tokens are selected: units that overflow are dropped at random.
            Long units overflow first, so leave room for one more than the count,
            or they are selected less often than short ones. With None the targets
            are dense, as long as the row.
        unselectable_token_ids: ints, protected ids: never selected, never swapped
            in, and never part of a longer unit. The mask token is never swapped in
            either.
        mask_token_rate: float, the share of the selected that is hidden.
        random_token_rate: float, the share of the selected that is swapped for an
            unprotected id, drawn uniformly. The rest is kept.
        exact_count: bool. True selects exactly `rate * selectable` tokens of every
            row, rounded up or down by a coin so that the mean is exact; units
            longer than a token miss that count by less than one unit, so a row
            with a count below that length may have none selected. False selects
            every unit on its own.
        mean_span_length: float >= 1, the mean number of tokens (or words) that are
            masked together. Lengths are geometric.
        continuation_token_ids: ints or None, the ids that continue a word. With
            them whole words are masked.
        inverse_rate_weights: bool. True weighs each selected token by one over its
            probability of selection: selectable / count where counts are exact, else
            1 / rate. The weighted sum of losses over a row is then an unbiased estimate
            of the sum over all its tokens, at any rate: with `(low, high)` rates, the
            objective of masked diffusion (Sahoo et al. 2024). False weighs by 1.
        seed: int in [0, 2**64) or None for one drawn from the operating system,
            which `seed` then holds.
        **kwargs: `name`, `dtype`, `trainable` of `keras.layers.Layer`.

    Call arguments:
        inputs: integers `[length]` or `[batch, length]` (list, array, tensor, or
            `tf.RaggedTensor` outside compiled models), or a dict of `token_ids`
            and, optionally, of the same shape: `padding_mask` (True or 1 = a real
            token), `selectable` (False = never select), `selection_weights` (>= 0:
            tokens are drawn in proportion, without replacement; a longer unit
            weighs as much as its heaviest token), `begins` (True = a unit begins
            here, in place of `continuation_token_ids`); and `row_ids` `[batch]`
            (ints: whose noise a row takes, in place of its number in the batch).
            Other keys pass through.
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
        Spirakis 2006 (weights). The first seven arguments are those of KerasHub's
        `MaskedLMMaskGenerator`.
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
        mean_span_length=1.0,
        continuation_token_ids=None,
        inverse_rate_weights=False,
        seed=None,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True

        self.vocabulary_size = whole("vocabulary_size", vocabulary_size, 1)
        self.mask_selection_rate = _rate(mask_selection_rate)
        self.mask_token_id = whole("mask_token_id", mask_token_id, 0, self.vocabulary_size - 1)
        if mask_selection_length is not None:
            mask_selection_length = whole("mask_selection_length", mask_selection_length, 1)
        self.mask_selection_length = mask_selection_length
        self.unselectable_token_ids = token_ids_below(
            "unselectable_token_ids", unselectable_token_ids, self.vocabulary_size
        )
        self.mask_token_rate = real("mask_token_rate", mask_token_rate, 0, 1)
        self.random_token_rate = real("random_token_rate", random_token_rate, 0, 1)
        require(
            self.mask_token_rate + self.random_token_rate <= 1 + 1e-9,
            "`mask_token_rate` + `random_token_rate` must be at most 1.",
            mask_token_rate=mask_token_rate,
            random_token_rate=random_token_rate,
        )
        self.exact_count = flag("exact_count", exact_count)
        self.mean_span_length = real("mean_span_length", mean_span_length, 1)
        if continuation_token_ids is not None:
            continuation_token_ids = token_ids_below(
                "continuation_token_ids", continuation_token_ids, self.vocabulary_size
            )
        self.continuation_token_ids = continuation_token_ids
        self.inverse_rate_weights = flag("inverse_rate_weights", inverse_rate_weights)
        self.seed = whole("seed", secrets.randbits(63) if seed is None else seed, 0, 2**64 - 1)

        self._protected = id_table(self.unselectable_token_ids, self.vocabulary_size)
        self._continues = id_table(self.continuation_token_ids or (), self.vocabulary_size)
        swappable = ~self._protected & ~id_table([self.mask_token_id], self.vocabulary_size)
        require(
            self.random_token_rate == 0 or swappable.any(),
            "`random_token_rate` must be 0 where every id is protected.",
            random_token_rate=random_token_rate,
            vocabulary_size=vocabulary_size,
        )
        self._swap_pool = np.flatnonzero(swappable if swappable.any() else ~swappable)
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

    def get_config(self):
        rate = self.mask_selection_rate
        if isinstance(rate, LearningRateSchedule):
            rate = keras.saving.serialize_keras_object(rate)
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "mask_selection_rate": rate,
            "mask_token_id": self.mask_token_id,
            "mask_selection_length": self.mask_selection_length,
            "unselectable_token_ids": self.unselectable_token_ids,
            "mask_token_rate": self.mask_token_rate,
            "random_token_rate": self.random_token_rate,
            "exact_count": self.exact_count,
            "mean_span_length": self.mean_span_length,
            "continuation_token_ids": self.continuation_token_ids,
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
            tensors, restore = standardize(features, self.vocabulary_size)
            masked = super().__call__(tensors, **_given(arguments))
            return {**features, **restore(masked)}
        finally:
            self._maybe_reset_call_context()

    def call(self, inputs, training=None, step=None):
        features = as_features(inputs)
        if training:
            return self.mask(features, step, self.mask_selection_length)
        return self._untouched(features)

    def compute_mask(self, inputs, previous_mask=None):
        return None  # Keras' own mask is about padding: `padding_mask` says it

    def mask(self, inputs, step=None, selection_length=None):
        """The call in training, on a dict of tensors `[batch, length]`.

        `selection_length` stands in for the constructor's `mask_selection_length`.
        """
        ids = inputs["token_ids"]
        rows = inputs.get("row_ids", ops.arange(ops.shape(ids)[0], dtype="int32"))
        moment = self.step + 0 if step is None else step  # a copy: the counter moves on
        keys = noise.row_keys(self.seed, (moment, replica_id()), noise.words(rows))
        if step is None:
            self.step.assign_add(1)
            if _in_tf_data():
                # Parallel calls race for the counter: they may read the same step,
                # but they do not mask the same row.
                keys = noise.threefry(keys, self._content(inputs))
        return self._mask(inputs, keys, self._rate_at(moment, keys), selection_length)

    def mask_fixed(self, inputs, selection_length=None):
        """The call in evaluation, on a dict of tensors `[batch, length]`.

        Masks depend on the seed and the row's own content: the same example has the
        same mask in every epoch, order, batch size and process, and at any padding
        length. A schedule stands at its first step.
        """
        keys = noise.row_keys(self.seed, noise.TIMELESS, self._content(inputs))
        return self._mask(inputs, keys, self._rate_at(0, keys), selection_length)

    def selectable(self, inputs):
        """Which positions may be selected: bool `[batch, length]`, for a dict of tensors."""
        return self._is_token(inputs) & ops.cast(inputs.get("selectable", True), "bool")

    def selection_capacity(self, inputs):
        """A size for the targets that is small and holds what is selected of `inputs`.

        Exact counts of tokens never overflow it. For longer units there is room for
        one of eight times the mean length, two tokens a word; for independent draws for
        six standard deviations; and for all where the caller says how long a unit is,
        or how likely.

        Args:
            inputs: a dict of tensors `[batch, length]`, as `mask` takes it.
        """
        if self.mask_selection_length is not None:
            return self.mask_selection_length
        length = ops.shape(inputs["token_ids"])[1]
        if "begins" in inputs or ("selection_weights" in inputs and not self.exact_count):
            return length
        rate = self.mask_selection_rate
        highest = rate if isinstance(rate, float) else rate[1] if isinstance(rate, tuple) else 1.0
        unit = self.mean_span_length * (1 if self.continuation_token_ids is None else 2)
        room = 0 if unit == 1 else 8 * unit
        size = length if isinstance(length, int) else ops.cast(length, "float32")
        if not self.exact_count:
            room += 6 * (size * highest * (1 - highest) * unit) ** 0.5
        if isinstance(length, int):
            return min(length, math.ceil(size * highest + room))
        return ops.cast(ops.minimum(size, ops.ceil(size * highest + room)), "int32")

    def _mask(self, inputs, keys, rate, capacity):
        """Begin, number, share, select, corrupt; then the targets."""
        ids = ops.cast(inputs["token_ids"], "int32")  # [batch, length]
        positions = ops.arange(ops.shape(ids)[1], dtype="int32")
        role, coin = (
            noise.uniform(noise.bits(keys, positions, stream))
            for stream in (noise.ROLE, noise.BEGIN)
        )
        may_begin = ops.cast(inputs.get("begins", ~ops.take(self._continues, ids)), "bool")
        units = unit_numbers(
            unit_begins(may_begin, ~self._is_token(inputs), coin, self.mean_span_length)
        )
        selected, weight = self._select(inputs, keys, units, rate, capacity)

        drawn = noise.below(noise.bits(keys, positions, noise.REPLACEMENT), len(self._swap_pool))
        shown = corrupt(
            ids,
            selected,
            role,
            ops.take(self._swap_pool, drawn),
            self.mask_token_id,
            self.mask_token_rate,
            self.random_token_rate,
        )
        return self._outputs(inputs, shown, selected, weight, capacity)

    def _select(self, inputs, keys, units, rate, capacity):
        """What is selected, bool `[batch, length]`, and what each selected token weighs."""
        selectable = self.selectable(inputs)
        unit_keys = noise.bits(keys, units, noise.SELECT)  # equal inside a unit
        weights = inputs.get("selection_weights")
        if weights is not None:
            weights = ops.cast(weights, "float32")
            weights = ops.where(selectable & (weights > 0), weights, 0.0)  # so NaN is 0
            weights = heaviest_in_unit(weights, units)
            selectable = selectable & (weights > 0)
        unit_noise = noise.uniform(unit_keys)
        order = unit_keys if weights is None else weighted_order(unit_noise, weights)
        if self.exact_count:
            round_up, turn, _ = noise.row_uniforms(keys)
            size = count_positions(selectable)
            count = selected_count(size, rate, round_up)
            if capacity is not None:
                count = ops.minimum(count, capacity)
            tokens, drawn_of_them = (ops.cast(number, "float32") for number in (size, count))
            if weights is None:
                selected = select_exactly(unit_keys, selectable, count, turn)
            else:
                selected = select_first(order, unit_keys, selectable, count)
        else:
            if weights is not None:
                rate = 1.0 - (1.0 - rate) ** weights
            selected = select_independently(unit_noise, selectable, rate)
            tokens, drawn_of_them = 1.0, ops.cast(rate, "float32")
        if capacity is not None:
            selected = drop_overflow(order, selected, capacity)
        weight = 1.0
        if self.inverse_rate_weights:
            weight = ops.divide_no_nan(tokens, drawn_of_them)
        return selected, weight

    def _outputs(self, inputs, shown, selected, weight, capacity):
        original = inputs["token_ids"]
        outputs = {**inputs, "token_ids": ops.cast(shown, original.dtype)}
        weights = ops.where(selected, weight, 0.0)
        if capacity is None:
            outputs["mask_ids"] = original
            outputs["mask_weights"] = ops.cast(weights, "float32")
            return outputs
        positions = ops.broadcast_to(
            ops.arange(ops.shape(original)[1], dtype="int32"), ops.shape(original)
        )
        ids = at_selected(ops.cast(original, "int32"), selected, capacity)
        outputs["mask_positions"] = at_selected(positions, selected, capacity)
        outputs["mask_ids"] = ops.cast(ids, original.dtype)
        outputs["mask_weights"] = ops.cast(at_selected(weights, selected, capacity), "float32")
        return outputs

    def _untouched(self, inputs):
        none = ops.zeros_like(inputs["token_ids"], dtype="bool")
        return self._outputs(inputs, inputs["token_ids"], none, 1.0, self.mask_selection_length)

    def _is_token(self, inputs):
        """Neither protected nor padding: what units are made of."""
        protected = ops.take(self._protected, ops.cast(inputs["token_ids"], "int32"))
        return ~protected & ops.cast(inputs.get("padding_mask", True), "bool")

    def _content(self, inputs):
        ids = ops.cast(inputs["token_ids"], "int32")
        return noise.content_words(ids, self._is_token(inputs))

    def _rate_at(self, step, keys):
        """The rate as a float32: for all rows, or `[batch, 1]`."""
        rate = self.mask_selection_rate
        if isinstance(rate, LearningRateSchedule):
            return ops.clip(ops.cast(rate(step), "float32"), 0.0, 1.0)
        if isinstance(rate, float):
            return rate
        low, high = (round(edge * 2**24) for edge in rate)
        _, _, drawn = noise.row_uniforms(keys)
        return ops.cast(low + scaled(in_shares(drawn), high - low), "float32") * 2.0**-24


def replica_id():
    """Which copy of the model runs: copies of one seed must not share noise."""
    context = _replica_context()
    if context is not None:
        return context.replica_id_in_sync_group
    if keras.backend.backend() == "torch":
        import torch.distributed

        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank()
    return 0  # JAX sees one batch, however many devices hold it


def sum_over_replicas(total):
    """`total` added up over the replicas of a `tf.distribute` strategy, if there is one."""
    context = _replica_context()
    return total if context is None else context.all_reduce("sum", total)


def _replica_context():
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    return tf.distribute.get_replica_context() if tf.distribute.has_strategy() else None


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


def _rate(rate):
    if isinstance(rate, dict):  # out of a config
        rate = keras.saving.deserialize_keras_object(rate)
    if isinstance(rate, LearningRateSchedule):
        return rate
    if not isinstance(rate, (tuple, list)):
        return real("mask_selection_rate", rate, 0, 1)
    require(
        len(rate) == 2 and all(is_real(edge, 0, 1) for edge in rate) and rate[0] <= rate[1],
        "`mask_selection_rate` must be a number in [0, 1], or a pair of them with low <= high.",
        mask_selection_rate=rate,
    )
    return float(rate[0]), float(rate[1])


def _given(arguments):
    return {name: value for name, value in arguments.items() if value is not None}
