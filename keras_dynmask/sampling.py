"""Generation by iterative unmasking: all is masked, all is predicted, the surest stay.

What is to be generated begins as mask tokens. Each step predicts them all, keeps some,
and masks the rest again, so that the next step sees what was kept:

    [7 9 |  M  M  M  M]   fixed | masks
    [7 9 |  M  4  M  M]   1 of 4 steps: the surest token stays
    [7 9 |  5  4  M  M]
    [7 9 |  5  4  M  2]
    [7 9 |  5  4  8  2]   4 of 4

In one step the tokens know nothing of each other; in as many steps as tokens each knows
all that were kept before it.
"""

import keras
import numpy as np
from keras import ops

from keras_dynmask import noise
from keras_dynmask.arrays import numpy_in_force
from keras_dynmask.errors import flag, real, require, token_ids_below, whole
from keras_dynmask.inputs import as_array, as_features, check_ids, is_ragged
from keras_dynmask.selection import select_first

ORDERS = ("confidence", "random")
GENERATION = -2  # stands in for the replica: no mask in training shares this noise

# Doubt is -log(probability) of a token in 2**-25ths, as int32, up to 31 nats.
NO_DOUBT, LAST = -1, 2**30


class Unmasking(keras.Model):
    """Fills in masked tokens of a batch, the surest first: one step, compiled.

    `generate` is what calls it step by step. It holds no weights of its own and draws from no
    random state: the noise comes as an argument.

    Args:
        model: a `MaskedLanguageModel`.
        temperature: float, 0 or in [1e-6, 1e6]. 0 takes the most probable token; 1 draws
            from the model's distribution; between, from a sharper one.
        top_k: int or None. Draws from the k most probable tokens only.
        top_p: float in (0, 1] or None. Draws from the most probable tokens that together
            have at least this probability, and no others.
        order: "confidence" keeps the tokens that the model gives the highest probability
            (ties are broken by noise); "random" keeps any.
        revise: bool. False keeps for good what is kept once. True masks the least sure
            again at each step, whenever they were predicted (mask-predict); a token's
            confidence is that of the step that predicted it.
        block_length: int or None. Fills so many positions before the ones behind them: 1
            is from left to right. None is one block.
        forbidden_token_ids: ints, never generated. Nor are the masking's protected ids
            (`unselectable_token_ids`) and the mask token.
        **kwargs: `name` of `keras.Model`.

    Call arguments:
        inputs: a dict of `token_ids` `[batch, length]` and what else the model reads; and of
            the slots to fill, in the order of their positions: `mask_positions` `[batch,
            K]`; `fill`, bool `[batch, K]`, which slots are real; `tokens`, ints `[batch, K]`,
            what is in them, where the mask token is what is open; `doubt`, int32 `[batch, K]`, of
            the tokens kept so far; `count`, int32 `[batch, 1]`, how many to keep; and `keys`,
            int32 `[batch, 2]`, the rows' noise.

    Returns:
        `tokens` and `doubt` as they are now.

    Raises:
        ValueError: naming the argument, what was expected and what was received.
    """

    def __init__(
        self,
        model,
        *,
        temperature=0.0,
        top_k=None,
        top_p=None,
        order="confidence",
        revise=False,
        block_length=None,
        forbidden_token_ids=(),
        **kwargs,
    ):
        super().__init__(**kwargs)
        masking = model.masking
        size = self.vocabulary_size = masking.vocabulary_size
        self.temperature = real("temperature", temperature, 0)
        require(
            temperature == 0 or 1e-6 <= temperature <= 1e6,  # else logits overflow
            "`temperature` must be 0, or in [1e-06, 1e+06].",
            temperature=temperature,
        )
        self.top_k = None if top_k is None else whole("top_k", top_k, 1, size)
        self.top_p = None if top_p is None else real("top_p", top_p, 1e-6, 1)
        require(
            self.temperature > 0 or (top_k is None and top_p is None),
            "`temperature` must be above 0 with `top_k` or `top_p`: at 0 nothing is drawn.",
            temperature=temperature,
        )
        require(order in ORDERS, f"`order` must be one of {', '.join(ORDERS)}.", order=order)
        self.order = order
        self.revise = flag("revise", revise)
        self.block_length = None if block_length is None else whole("block_length", block_length, 1)
        forbidden = token_ids_below("forbidden_token_ids", forbidden_token_ids, size)
        self.mask_token_id = masking.mask_token_id
        penalty = np.zeros(size, "float32")
        penalty[[*forbidden, *masking.unselectable_token_ids, masking.mask_token_id]] = -np.inf
        require(
            np.isfinite(penalty).any(),
            "`forbidden_token_ids` must leave a token to generate.",
            forbidden_token_ids=forbidden,
        )
        self.penalty = penalty
        self.model = model
        self.built = True

    def call(self, inputs):
        slots = ("fill", "tokens", "doubt", "count", "keys")
        features = {name: value for name, value in inputs.items() if name not in slots}
        logits = self.model(features, training=False)  # [batch, K, vocabulary]
        keys = ops.split(inputs["keys"], 2, axis=1)
        fill, tokens, doubt, count = (inputs[name] for name in slots[:-1])
        return self.step(logits, tokens, doubt, fill, count, keys)

    def fill_in(self, token_ids, count):
        """Fills in `count` `[batch]` of the mask tokens of each row, the surest: ids
        `[batch, length]`. Needs no state and no noise."""
        fill = ops.equal(token_ids, self.mask_token_id)
        logits = self.model(token_ids, training=False)
        doubt = ops.zeros_like(token_ids, dtype="int32")
        keys = [ops.zeros_like(doubt[:, :1])] * 2
        return self.step(logits, token_ids, doubt, fill, count[:, None], keys)[0]

    def step(self, logits, tokens, doubt, fill, count, keys):
        """Predicts what is masked, keeps `count` tokens of each row and masks the others."""
        masked = ops.equal(tokens, self.mask_token_id)
        logits = ops.cast(logits, "float32") + self.penalty
        drawn = self._draw(logits, keys)
        tokens = ops.where(masked, ops.cast(drawn, tokens.dtype), tokens)
        doubt = ops.where(masked, doubts(logits, drawn), doubt)

        slot = ops.arange(ops.shape(tokens)[1], dtype="int32")
        order = doubt if self.order == "confidence" else ops.where(doubt < 0, doubt, 0)
        if self.block_length is not None:
            block, current = slot // self.block_length, count // self.block_length
            order = ops.where(block < current, NO_DOUBT, ops.where(block > current, LAST, order))
        at_random = noise.bits(keys, slot, noise.SELECT)
        kept = select_first(order, at_random, fill, count, ops.zeros_like(count, dtype="float32"))
        if not self.revise:
            doubt = ops.where(kept, NO_DOUBT, doubt)
        return ops.where(fill & ~kept, self.mask_token_id, tokens), doubt

    def _draw(self, logits, keys):
        """A token id for each slot: the most probable, or one drawn by Gumbel's trick."""
        if self.temperature == 0:
            return ops.argmax(logits, axis=-1)
        scores = logits / self.temperature
        if self.top_k is not None:
            scores = ops.where(
                scores >= ops.top_k(scores, self.top_k)[0][..., -1:], scores, -np.inf
            )
        if self.top_p is not None:
            falling = -ops.sort(-scores, axis=-1)
            shares = ops.softmax(falling, axis=-1)
            needed = ops.cumsum(shares, axis=-1) - shares < self.top_p
            edge = ops.min(ops.where(needed, falling, np.inf), axis=-1, keepdims=True)
            scores = ops.where(scores >= edge, scores, -np.inf)
        slots = ops.arange(ops.shape(logits)[1], dtype="int32")[:, None] * self.vocabulary_size
        places = slots + ops.arange(self.vocabulary_size, dtype="int32")  # [K, vocabulary]
        keys = [ops.expand_dims(key, 1) for key in keys]
        uniform = noise.uniform(noise.bits(keys, places, noise.REPLACEMENT))
        exponential = ops.maximum(-ops.log(1.0 - uniform), 2.0**-25)
        return ops.argmax(scores - ops.log(exponential), axis=-1)


def doubts(logits, tokens):
    """How unsure the model is of each token: 0 for certain, less than `LAST`. int32."""
    taken = ops.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    nats = ops.logsumexp(logits, axis=-1) - taken
    return ops.cast(ops.clip(nats, 0.0, 31.0) * 2.0**25, "int32")


def generate(unmasking, inputs, steps=None, *, outputs=1, every_step=False, batch_size=32, seed=0):
    """Fills in what is masked, step by step. See `MaskedLanguageModel.generate`."""
    features, fill, unbatched, dtype = _checked(inputs, unmasking)
    rows = np.repeat(np.arange(len(fill)), whole("outputs", outputs, 1))
    features, fill = {name: value[rows] for name, value in features.items()}, fill[rows]
    seed, batch_size = whole("seed", seed, 0, 2**64 - 1), whole("batch_size", batch_size, 1)
    wanted = fill.sum(axis=1, keepdims=True)
    steps = wanted if steps is None else np.full_like(wanted, whole("steps", steps, 1))
    if not unmasking.revise:
        steps = np.minimum(steps, wanted)  # more would keep nothing new

    parts = []
    for start in range(0, len(fill), batch_size):
        part = slice(start, start + batch_size)
        some = {name: value[part] for name, value in features.items()}
        numbers = np.arange(start, start + len(fill[part]))
        last = int(steps.max()), int(wanted.max())
        states = _states(unmasking, some, fill[part], steps[part], *last, seed, numbers)
        parts.append(states if every_step else states[-1:].copy())
    result = np.concatenate(parts, axis=1).astype(dtype)
    result = result if every_step else result[0]
    return result[..., 0, :] if unbatched and outputs == 1 else result


def _states(unmasking, features, fill, steps, last, width, seed, rows):
    """The rows before the first step and after each: `[last + 1, batch, length]`.

    Each row has `steps` of its own, `[batch, 1]`: what else is in the batch does not matter.
    """
    ids = np.where(fill, unmasking.mask_token_id, features["token_ids"])
    states = [ids]
    positions = np.argsort(~fill, axis=1, kind="stable")[:, :width].astype("int32")
    wanted = fill.sum(axis=1, keepdims=True)
    slots = {
        "mask_positions": positions,
        "fill": np.arange(width) < wanted,
        "tokens": np.full(positions.shape, unmasking.mask_token_id, "int32"),
        "doubt": np.zeros(positions.shape, "int32"),
    }
    for step in range(last):
        done = np.minimum(step + 1, steps)
        slots["count"] = (wanted * done // np.maximum(steps, 1)).astype("int32")
        with numpy_in_force():
            keys = noise.row_keys(seed, (step, GENERATION), noise.words(rows))
        slots["keys"] = np.concatenate(keys, axis=1)
        tokens, doubt = unmasking.predict_on_batch({**features, "token_ids": ids, **slots})
        slots |= {"tokens": tokens, "doubt": doubt}
        ids = ids.copy()
        shown = np.where(slots["fill"], tokens, np.take_along_axis(ids, positions, axis=1))
        np.put_along_axis(ids, positions, shown, axis=1)
        states.append(ids)
    return np.stack(states)


def _checked(inputs, unmasking):
    """Arrays `[batch, length]` of what the model reads; which positions to fill; whether
    the caller brought one row alone; and the dtype to give back."""
    features = {name: as_array(name, value) for name, value in as_features(inputs).items()}
    require(
        not any(map(is_ragged, features.values())),
        "`inputs` must have rows of equal length: pad them and pass a `padding_mask`.",
        inputs=inputs,
    )
    features = {name: np.asarray(ops.convert_to_numpy(value)) for name, value in features.items()}
    token_ids = features["token_ids"]
    check_ids(token_ids, unmasking.vocabulary_size)
    dtype = token_ids.dtype
    if np.iinfo(dtype).max < unmasking.vocabulary_size - 1:
        dtype = np.dtype("int32")
    features["token_ids"] = token_ids.astype("int32")  # one compiled step for all of them
    for name, value in features.items():
        require(
            value.shape == token_ids.shape,
            f"`{name}` must have the shape of `token_ids`, {token_ids.shape}.",
            shape=value.shape,
        )
    unbatched = token_ids.ndim == 1
    if unbatched:
        features = {name: value[np.newaxis] for name, value in features.items()}
    fill = features["token_ids"] == unmasking.mask_token_id
    if "selectable" in features:
        fill = features.pop("selectable").astype(bool)
    if "padding_mask" in features:
        fill = fill & features["padding_mask"].astype(bool)
    require(
        fill.any(),
        f"`inputs` must hold mask tokens (id {unmasking.mask_token_id}), or say by `selectable` "
        "what to generate.",
        masked=0,
    )
    return features, fill, unbatched, dtype
