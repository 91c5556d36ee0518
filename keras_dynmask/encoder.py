"""`TransformerEncoder`: token ids in, hidden states out. It knows nothing of masking."""

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
        rotary_base: float, the longest wavelength of the positions is 2 pi times it.
        **kwargs: `name`, `dtype` of `keras.Model`.

    Call arguments:
        inputs: integers `[batch, length]`, or a dict of `token_ids` and, optionally,
            `padding_mask` of the same shape (True or 1 = a real token).
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
        self.blocks = [
            TransformerBlock(
                num_heads,
                hidden_dim,
                intermediate_dim,
                dropout=dropout,
                rotary_base=rotary_base,
                dtype=self.dtype_policy,
                name=f"block_{index}",
            )
            for index in range(num_layers)
        ]
        for block in self.blocks:  # `tf.train.Checkpoint` does not look into lists
            setattr(self, block.name, block)
        self.final_normalization = layers.RMSNormalization(
            epsilon=1e-6, dtype=self.dtype_policy, name="final_normalization"
        )
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
            attended = ops.cast(padding_mask, "bool")[:, None, None, :]  # [batch, 1, 1, length]

        hidden = self.token_embedding(token_ids)  # [batch, length, hidden]
        for block in self.blocks:
            hidden = block(hidden, attended=attended, training=training)
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
class TransformerBlock(layers.Layer):
    """Attention, then a gated feed-forward layer, each added to what came in."""

    def __init__(
        self, num_heads, hidden_dim, intermediate_dim, *, dropout=0.1, rotary_base=1e4, **kwargs
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.intermediate_dim = intermediate_dim
        self.rotary_base = rotary_base

        def dense(units, name):
            return layers.Dense(
                units,
                use_bias=False,
                kernel_initializer=_initializer(),
                dtype=self.dtype_policy,
                name=name,
            )

        def normalization(name):
            return layers.RMSNormalization(epsilon=1e-6, dtype=self.dtype_policy, name=name)

        self.attention_normalization = normalization("attention_normalization")
        self.query_key_value = dense(3 * hidden_dim, "query_key_value")
        self.attention_output = dense(hidden_dim, "attention_output")
        self.feedforward_normalization = normalization("feedforward_normalization")
        self.gate_and_value = dense(2 * intermediate_dim, "gate_and_value")
        self.feedforward_output = dense(hidden_dim, "feedforward_output")
        # PyTorch's dropout without a seed draws from a state that no file holds.
        seed = random.randint(1, 10**9) if dropout else None
        self.dropout = layers.Dropout(dropout, seed=seed, dtype=self.dtype_policy, name="dropout")

    def build(self, input_shape):
        for layer in (
            self.attention_normalization,
            self.query_key_value,
            self.attention_output,
            self.feedforward_normalization,
            self.gate_and_value,
            self.dropout,
        ):
            layer.build(input_shape)
        self.feedforward_output.build((*input_shape[:-1], self.intermediate_dim))
        self.built = True

    def call(self, hidden, attended=None, training=False):
        branch = self._attention(self.attention_normalization(hidden), attended)
        hidden = hidden + self.dropout(branch, training=training)
        branch = self._feedforward(self.feedforward_normalization(hidden))
        return hidden + self.dropout(branch, training=training)

    def _attention(self, hidden, attended):
        batch, length, _ = ops.shape(hidden)
        heads = ops.reshape(
            self.query_key_value(hidden),
            (batch, length, 3 * self.num_heads, self.hidden_dim // self.num_heads),
        )
        query, key, value = ops.split(heads, 3, axis=2)  # [batch, length, heads, head_dim]
        mixed = ops.dot_product_attention(
            rotate(query, self.rotary_base), rotate(key, self.rotary_base), value, mask=attended
        )
        return self.attention_output(ops.reshape(mixed, (batch, length, self.hidden_dim)))

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
            "rotary_base": self.rotary_base,
        }


def rotate(states, base):
    """Turn each pair of features by an angle that grows with the position.

    The product of two rotated states depends on their distance alone. The angles are
    float32: in bfloat16 positions beyond 256 would fall together.

    Args:
        states: `[batch, length, heads, head_dim]`; feature i pairs with i + head_dim / 2.
        base: float, the pairs' wavelengths run from 2 pi to almost 2 pi * base.
    """
    length, half = ops.shape(states)[1], states.shape[-1] // 2
    frequencies = base ** (-ops.arange(half, dtype="float32") / half)
    angles = ops.arange(length, dtype="float32")[:, None] * frequencies  # [length, half]
    cosine = ops.cast(ops.cos(angles), states.dtype)[:, None, :]
    sine = ops.cast(ops.sin(angles), states.dtype)[:, None, :]
    first, second = ops.split(states, 2, axis=-1)
    return ops.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=-1
    )


def _initializer():
    return keras.initializers.TruncatedNormal(stddev=0.02)
