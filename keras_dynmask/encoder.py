"""`TransformerEncoder`: token ids in, hidden states out. It knows nothing of masking.

`TransformerDecoder` answers for positions that an encoder did not see.
"""

import random

import keras
from keras import layers, ops

from keras_dynmask.errors import real, require, whole


@keras.saving.register_keras_serializable(package="keras_dynmask")
class TransformerEncoder(keras.Model):
    """Turns token ids into one hidden state per token, each aware of all the others.

    A bidirectional Transformer as one builds it today: normalisation before each
    branch, rotary positions, a gated feed-forward layer, no biases. No weight
    depends on the length, so any length goes in. Dropout is active in training only;
    inference is deterministic.

    Args:
        vocabulary_size: int, the number of ids.
        num_layers: int, the number of blocks.
        num_heads: int, attention heads; `hidden_dim / num_heads` must be even.
        hidden_dim: int, the size of a hidden state.
        intermediate_dim: int, the size inside the feed-forward layer.
        dropout: float in [0, 1), the share of each branch's output that is dropped.
        padding_token_id: int or None, the id nobody attends to, where the call brings
            no `padding_mask`. With None every token is real.
        rotary_base: float, the longest wavelength of the positions is almost 2 pi times it.
        **kwargs: `name`, `dtype` of `keras.Model`.

    Call arguments:
        inputs: integers `[batch, length]`, or a dict of `token_ids` and, optionally, of
            the same shape: `padding_mask` (True or 1 = a real token; the others are not
            attended to) and `positions` (ints, where each token stands; without them
            0, 1, 2, ...).
        training: bool, whether dropout is active.

    Returns:
        Hidden states `[batch, length, hidden_dim]` in the compute dtype.

    Raises:
        ValueError: naming the argument, what was expected and what was received.

    Example:

    >>> encoder = TransformerEncoder(100, num_layers=2, num_heads=2, hidden_dim=16,
    ...                              intermediate_dim=32)
    >>> tuple(encoder(np.array([[5, 6, 7, 0]])).shape)
    (1, 4, 16)

    References:
        Vaswani et al. 2017 (the encoder), Xiong et al. 2020 (normalise first), Su et al.
        2021 (rotary positions), Shazeer 2020 (gated feed-forward), Zhang and Sennrich
        2019 (RMS normalisation).
    """

    def __init__(
        self,
        vocabulary_size,
        num_layers,
        num_heads,
        hidden_dim,
        intermediate_dim,
        *,
        dropout=0.1,
        padding_token_id=0,
        rotary_base=10_000.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.vocabulary_size = whole("vocabulary_size", vocabulary_size, 1)
        self.num_layers = whole("num_layers", num_layers, 1)
        self.num_heads = whole("num_heads", num_heads, 1)
        self.hidden_dim = whole("hidden_dim", hidden_dim, 2)
        require(
            hidden_dim % (2 * num_heads) == 0,
            "`hidden_dim` must be a multiple of 2 * `num_heads`: rotary positions turn pairs.",
            hidden_dim=hidden_dim,
            num_heads=num_heads,
        )
        self.intermediate_dim = whole("intermediate_dim", intermediate_dim, 1)
        self.dropout = real("dropout", dropout, 0, 1 - 1e-6)
        self.padding_token_id = padding_token_id
        if padding_token_id is not None:
            self.padding_token_id = whole(
                "padding_token_id", padding_token_id, 0, self.vocabulary_size - 1
            )
        self.rotary_base = real("rotary_base", rotary_base, 1)

        self.token_embedding = layers.Embedding(
            vocabulary_size,
            hidden_dim,
            embeddings_initializer=_initializer(),
            dtype=self.dtype_policy,
            name="token_embedding",
        )
        self.blocks = _stacked(TransformerBlock, self)
        self.final_normalization = _normalization("final_normalization", self.dtype_policy)
        self.build((None, None))

    def build(self, input_shape):
        hidden_shape = (None, None, self.hidden_dim)
        self.token_embedding.build((None, None))
        for block in self.blocks:
            block.build(hidden_shape)
        self.final_normalization.build(hidden_shape)
        self.built = True

    def call(self, inputs, training=False):
        features = inputs if isinstance(inputs, dict) else {"token_ids": inputs}
        token_ids = features["token_ids"]
        padding_mask = features.get("padding_mask")
        if padding_mask is None and self.padding_token_id is not None:
            padding_mask = ops.not_equal(token_ids, self.padding_token_id)
        attended = None
        if padding_mask is not None:
            attended = ops.cast(padding_mask, "bool")
            attended = ops.expand_dims(attended, (1, 2))  # [batch, 1, 1, length]

        positions = features.get("positions")
        if positions is None:
            positions = ops.arange(ops.shape(token_ids)[1], dtype="int32")[None]
        turns = turns_at(positions, self.hidden_dim // self.num_heads, self.rotary_base)

        hidden = self.token_embedding(token_ids)  # [batch, length, hidden]
        for block in self.blocks:
            hidden = block(hidden, turns, attended=attended, training=training)
        return self.final_normalization(hidden)

    def get_config(self):
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "hidden_dim": self.hidden_dim,
            "intermediate_dim": self.intermediate_dim,
            "dropout": self.dropout,
            "padding_token_id": self.padding_token_id,
            "rotary_base": self.rotary_base,
        }


@keras.saving.register_keras_serializable(package="keras_dynmask")
class TransformerDecoder(layers.Layer):
    """Gives a hidden state for each position asked for, from the states of other positions.

    A query knows nothing but where it stands; it attends to the states, never to another
    query. So any positions may be asked for, in any number, at a cost linear in it.

    Args:
        num_layers: int, the number of blocks.
        num_heads, hidden_dim, intermediate_dim, dropout, rotary_base: as those of the
            `TransformerEncoder` whose states it reads.
        **kwargs: `name`, `dtype` of `keras.layers.Layer`.

    Call arguments:
        positions: ints `[batch, queries]`, where the queries stand.
        states: `[batch, length, hidden_dim]`.
        state_positions: ints `[batch, length]`, where the states stand.
        attended: bool `[batch, length]`, which of them are attended to. Where a row has
            none, its queries get nothing from the states.
        training: bool, whether dropout is active.

    Returns:
        Hidden states `[batch, queries, hidden_dim]` in the compute dtype.

    References:
        Liao et al. 2022 ("Mask more and mask later"), Meng et al. 2024 (MAE-LM).
    """

    def __init__(
        self,
        num_layers,
        num_heads,
        hidden_dim,
        intermediate_dim,
        *,
        dropout=0.1,
        rotary_base=10_000.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.intermediate_dim = intermediate_dim
        self.dropout = dropout
        self.rotary_base = rotary_base
        self.blocks = _stacked(CrossAttentionBlock, self)
        self.final_normalization = _normalization("final_normalization", self.dtype_policy)

    def build(self, input_shape=None):
        states_shape = (None, None, self.hidden_dim)
        self.query_embedding = self.add_weight(
            name="query_embedding", shape=(self.hidden_dim,), initializer=_initializer()
        )
        for block in self.blocks:
            block.build(states_shape)
        self.final_normalization.build(states_shape)
        self.built = True

    def call(self, positions, states, state_positions, attended, training=False):
        head_dim = self.hidden_dim // self.num_heads
        turns, state_turns = (
            turns_at(each, head_dim, self.rotary_base) for each in (positions, state_positions)
        )
        # A row without a state to attend to attends to all of them alike: to zeros.
        states = ops.where(ops.expand_dims(attended, 2), states, ops.zeros_like(states))
        attended = ops.expand_dims(attended, (1, 2))  # [batch, 1, 1, length]

        # All queries are one vector until they have turned and looked: the first block
        # computes its projection once.
        hidden = ops.cast(self.query_embedding, self.compute_dtype)[None, None]  # [1, 1, hidden]
        for block in self.blocks:
            hidden = block(hidden, turns, states, state_turns, attended, training=training)
        return self.final_normalization(hidden)

    def get_config(self):
        return {
            **super().get_config(),
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "hidden_dim": self.hidden_dim,
            "intermediate_dim": self.intermediate_dim,
            "dropout": self.dropout,
            "rotary_base": self.rotary_base,
        }


@keras.saving.register_keras_serializable(package="keras_dynmask")
class TransformerBlock(layers.Layer):
    """Attention, then a gated feed-forward layer, each added to what came in."""

    PROJECTIONS = {"query_key_value": 3}

    def __init__(self, num_heads, hidden_dim, intermediate_dim, *, dropout=0.1, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.intermediate_dim = intermediate_dim

        def dense(units, name):
            return layers.Dense(
                units,
                use_bias=False,
                kernel_initializer=_initializer(),
                dtype=self.dtype_policy,
                name=name,
            )

        self.attention_normalization = _normalization("attention_normalization", self.dtype_policy)
        for name, parts in self.PROJECTIONS.items():
            setattr(self, name, dense(parts * hidden_dim, name))
        self.attention_output = dense(hidden_dim, "attention_output")
        self.feedforward_normalization = _normalization(
            "feedforward_normalization", self.dtype_policy
        )
        self.gate_and_value = dense(2 * intermediate_dim, "gate_and_value")
        self.feedforward_output = dense(hidden_dim, "feedforward_output")
        # PyTorch's dropout without a seed draws from a state that no file holds.
        seed = random.randint(1, 10**9) if dropout else None
        self.dropout = layers.Dropout(dropout, seed=seed, dtype=self.dtype_policy, name="dropout")

    def build(self, input_shape):
        for layer in (
            self.attention_normalization,
            *(getattr(self, name) for name in self.PROJECTIONS),
            self.attention_output,
            self.feedforward_normalization,
            self.gate_and_value,
            self.dropout,
        ):
            layer.build(input_shape)
        self.feedforward_output.build((*input_shape[:-1], self.intermediate_dim))
        self.built = True

    def call(self, hidden, turns, attended=None, training=False):
        normal = self.attention_normalization(hidden)
        query, key, value = self._heads(self.query_key_value(normal), 3)
        branch = self._attention(rotate(query, turns), rotate(key, turns), value, attended)
        return self._with_branches(hidden, branch, training)

    def _heads(self, projected, parts):
        """`[batch, length, parts * hidden]` as so many `[batch, length, heads, head_dim]`."""
        batch, length, _ = ops.shape(projected)
        head_dim = self.hidden_dim // self.num_heads
        heads = ops.reshape(projected, (batch, length, parts * self.num_heads, head_dim))
        return ops.split(heads, parts, axis=2)

    def _attention(self, query, key, value, attended):
        batch, length, _, _ = ops.shape(query)
        mixed = ops.dot_product_attention(query, key, value, mask=attended)
        return self.attention_output(ops.reshape(mixed, (batch, length, self.hidden_dim)))

    def _with_branches(self, hidden, branch, training):
        hidden = hidden + self.dropout(branch, training=training)
        branch = self._feedforward(self.feedforward_normalization(hidden))
        return hidden + self.dropout(branch, training=training)

    def _feedforward(self, hidden):
        gate, value = ops.split(self.gate_and_value(hidden), 2, axis=-1)
        return self.feedforward_output(ops.gelu(gate) * value)

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "hidden_dim": self.hidden_dim,
            "intermediate_dim": self.intermediate_dim,
            "dropout": self.dropout.rate,
        }


@keras.saving.register_keras_serializable(package="keras_dynmask")
class CrossAttentionBlock(TransformerBlock):
    """A block in which what came in asks, and the states of other positions answer."""

    PROJECTIONS = {"query": 1, "key_value": 2}

    def call(self, hidden, turns, states, state_turns, attended, training=False):
        (query,) = self._heads(self.query(self.attention_normalization(hidden)), 1)
        key, value = self._heads(self.key_value(states), 2)
        branch = self._attention(rotate(query, turns), rotate(key, state_turns), value, attended)
        return self._with_branches(hidden, branch, training)


def turns_at(positions, head_dim, base):
    """How far each pair of features is turned at each position, as cosines and sines.

    The angles are float32: in bfloat16 positions beyond 256 would fall together.

    Args:
        positions: ints `[batch, length]`, or `[1, length]` for all rows.
        head_dim: int, even.
        base: float, the pairs' wavelengths run from 2 pi to almost 2 pi * base.
    """
    half = head_dim // 2
    frequencies = base ** (-ops.arange(half, dtype="float32") / half)
    # Not by [..., None]: of unknown shapes LiteRT has no such slice.
    angles = ops.expand_dims(ops.cast(positions, "float32"), (2, 3)) * frequencies
    return ops.cos(angles), ops.sin(angles)  # [batch, length, 1, half]


def rotate(states, turns):
    """Turn each pair of features by an angle that grows with the position.

    The product of two rotated states depends on their distance alone.

    Args:
        states: `[batch, length, heads, head_dim]`; feature i pairs with i + head_dim / 2.
        turns: from `turns_at`.
    """
    cosine, sine = (ops.cast(turn, states.dtype) for turn in turns)
    first, second = ops.split(states, 2, axis=-1)
    return ops.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=-1
    )


def _stacked(kind, owner):
    """`owner.num_layers` blocks of a kind, each of them an attribute of the owner as well:
    `tf.train.Checkpoint` does not look into lists."""
    blocks = [
        kind(
            owner.num_heads,
            owner.hidden_dim,
            owner.intermediate_dim,
            dropout=owner.dropout,
            dtype=owner.dtype_policy,
            name=f"block_{index}",
        )
        for index in range(owner.num_layers)
    ]
    for block in blocks:
        setattr(owner, block.name, block)
    return blocks


def _normalization(name, dtype):
    return layers.RMSNormalization(epsilon=1e-6, dtype=dtype, name=name)


def _initializer():
    return keras.initializers.TruncatedNormal(stddev=0.02)
