"""`MaskedLanguageModel`: where masking, encoder and objective meet."""

import contextlib
import contextvars
import types

import keras
import numpy as np
from keras import layers, ops

from keras_dynmask.adaptive import AdaptiveSelection
from keras_dynmask.corruption import roles
from keras_dynmask.encoder import TransformerDecoder, TransformerEncoder
from keras_dynmask.errors import flag, require, token_ids_below
from keras_dynmask.inputs import check_ids, check_weights, is_integer, is_ragged
from keras_dynmask.masking import DynamicMasking
from keras_dynmask.objective import hits, states_at, token_losses, weighted_mean
from keras_dynmask.pieces import LARGE, losses_in_pieces
from keras_dynmask.replicas import equal_share, replica_count, sum_over_replicas
from keras_dynmask.visible import gather_visible, visible_capacity

# "training" or "evaluation" inside `fit` and `evaluate`. Keras runs a test step and a prediction
# alike, with training=False; this tells them apart. A context variable, because each replica's
# step is traced in its own thread.
_STEP = contextvars.ContextVar("step", default=None)

ROLES = ("hidden", "swapped", "kept")
KEPT_UNMASKINGS = 8  # each holds programs compiled for its settings


@keras.saving.register_keras_serializable(package="keras_dynmask")
class MaskedLanguageModel(keras.Model):
    """Trains an encoder to predict masked tokens, from token ids and nothing else.

    `fit` masks each batch afresh. `evaluate` masks by the rows' own content, so its
    numbers compare between epochs, batch sizes, orders and processes. `predict`, a
    plain call and the exported model leave the ids untouched and give logits for
    every position.

    The loss is the cross-entropy averaged over the selected tokens (0 where a batch
    has none), and logits are computed at those positions only. `compile` takes an
    optimizer and no loss. Logged beside `loss` (the mean over batches) are means over
    selected tokens, which do not move with the batch size: `masked_loss`,
    `masked_accuracy`, `perplexity`; and `selection_rate`, the share of the selectable
    tokens that really was selected. (Callbacks that monitor one want `mode="min"` or
    `"max"`: Keras knows the way up only of metrics given to `compile`.)

    With more than 16,384 words, `fit` and `evaluate` hold the logits of 4,096 at a time:
    the same numbers in less memory, save where `compile` brings metrics, which take all
    logits.

    Saving stores the masks' step and the state of every dropout layer too: a run that
    is stopped and resumed ends as if it had never stopped.

    Args:
        encoder: a `TransformerEncoder`, a Keras model from token ids (or from a dict
            of `token_ids`, `padding_mask`, `segment_ids`) to hidden states `[batch,
            length, dim]`, or a KerasHub backbone. Where it has a `token_embedding`,
            the head shares its weights. Padding is the encoder's `padding_token_id`,
            or 0; inputs that pad with another id bring a `padding_mask`. The masking knows
            padding by `unselectable_token_ids` or that `padding_mask`, and would select it
            otherwise.
        masking: a `DynamicMasking` layer.
        adaptive_selection: an `AdaptiveSelection` layer or None. With it, tokens that
            the model knows by now are selected less often in training.
        visible_only: bool. True shows the encoder, a `TransformerEncoder`, only the tokens
            that are not hidden: nothing it computes depends on what is, not even on where.
            A decoder of one cross-attention block, made like one of the encoder's, answers
            at the selected positions. In training the hidden are left out of the encoder's
            input, which is shorter by as much (see `visible_capacity`: where a row
            shows more than it foresees, evenly spaced tokens are left out, too); elsewhere
            nobody attends to them. That saves most where much is hidden:
            `mask_selection_rate=0.5, mask_token_rate=1.0, random_token_rate=0.0`.
        detailed_metrics: bool. True logs the share of rows in which nothing was selected,
            `empty_rows`, and the loss and accuracy of the hidden, the swapped and the
            kept tokens apart: `hidden_loss`, `hidden_accuracy`, `swapped_loss`, ...
        **kwargs: `name`, `dtype` of `keras.Model`.

    Call arguments:
        inputs: integers `[batch, length]`, or a dict as `DynamicMasking` takes it (a
            `TransformerEncoder` reads `positions`, too). A dict that holds
            `mask_positions` is masked already (see `mask_dataset`): logits are given at
            those positions, and `fit` takes the labels and weights from the dataset.
        training: bool or None. True masks.

    Returns:
        Logits `[batch, length, vocabulary]`. With `training=True` a dict: `logits`
        `[batch, K, vocabulary]` at the selected positions, and `DynamicMasking`'s
        outputs.

    Raises:
        ValueError: naming the argument, what was expected and what was received.

    Example:

    >>> encoder = TransformerEncoder(100, num_layers=1, num_heads=2, hidden_dim=16,
    ...                              intermediate_dim=32)
    >>> masking = DynamicMasking(100, mask_selection_rate=0.15, mask_token_id=1, seed=0)
    >>> model = MaskedLanguageModel(encoder, masking)
    >>> model.compile("adam")
    >>> token_ids = np.random.default_rng(0).integers(2, 100, (64, 20))
    >>> history = model.fit(token_ids, epochs=2, verbose=0)
    >>> sorted(history.history)
    ['loss', 'masked_accuracy', 'masked_loss', 'perplexity', 'selection_rate']

    References:
        Devlin et al. 2019 (the objective), Liu et al. 2019 (a fresh mask each time),
        Press and Wolf 2017 (the shared embedding), Liao et al. 2022 and Meng et al. 2024
        (an encoder that sees only what is not hidden).
    """

    def __init__(
        self,
        encoder,
        masking,
        *,
        adaptive_selection=None,
        visible_only=False,
        detailed_metrics=False,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)  # weights in the inputs stay float32
        require(
            isinstance(masking, DynamicMasking),
            "`masking` must be a DynamicMasking layer.",
            masking=masking,
        )
        require(
            isinstance(encoder, layers.Layer),
            "`encoder` must be a Keras model or layer.",
            encoder=encoder,
        )
        require(
            adaptive_selection is None
            or (
                isinstance(adaptive_selection, AdaptiveSelection)
                and adaptive_selection.vocabulary_size == masking.vocabulary_size
            ),
            "`adaptive_selection` must be an AdaptiveSelection layer of the masking's vocabulary "
            f"size, {masking.vocabulary_size}.",
            adaptive_selection=getattr(adaptive_selection, "vocabulary_size", adaptive_selection),
        )
        require(
            adaptive_selection is None or masking.exact_count,
            "`masking` must have `exact_count=True` with `adaptive_selection`: drawn on their own, "
            "tokens that weigh less and less would be selected less and less.",
            exact_count=False,
        )
        require(
            adaptive_selection is None or not masking.inverse_rate_weights,
            "`masking` must have `inverse_rate_weights=False` with `adaptive_selection`: what "
            "weighs more is selected at a rate of its own.",
            inverse_rate_weights=True,
        )
        require(
            not flag("visible_only", visible_only) or isinstance(encoder, TransformerEncoder),
            "`encoder` must be a TransformerEncoder with `visible_only`: one that is told where "
            "the tokens stand.",
            encoder=encoder,
        )
        self.encoder = encoder
        self.masking = masking
        self.decoder = _decoder_for(encoder) if visible_only else None
        self.adaptive_selection = adaptive_selection
        self.detailed_metrics = flag("detailed_metrics", detailed_metrics)
        hidden = self.encode(keras.Input((None,), dtype="int32"))  # builds the encoder, too
        require(
            len(hidden.shape) == 3 and hidden.shape[-1] is not None,
            "`encoder` must give hidden states of shape [batch, length, dim].",
            shape=tuple(hidden.shape),
        )
        embedding = getattr(encoder, "token_embedding", None)
        self.head = MaskedLanguageModelHead(
            masking.vocabulary_size,
            embedding_dim=None if embedding is None else embedding.embeddings.shape[-1],
            dtype=self.dtype_policy,
            name="head",
        )
        require(
            embedding is None or embedding.embeddings.shape[0] == masking.vocabulary_size,
            "`encoder` and `masking` must have the same vocabulary size.",
            encoder=None if embedding is None else embedding.embeddings.shape[0],
            masking=masking.vocabulary_size,
        )
        self.head.build(hidden.shape)
        self.masked_loss = keras.metrics.Mean(name="masked_loss")
        self.masked_accuracy = keras.metrics.Mean(name="masked_accuracy")
        self.perplexity = Perplexity(name="perplexity")
        self.selection_rate = keras.metrics.Mean(name="selection_rate")
        self.details = {}
        if self.detailed_metrics:
            names = [f"{role}_{what}" for role in ROLES for what in ("loss", "accuracy")]
            self.details = {name: keras.metrics.Mean(name=name) for name in ["empty_rows", *names]}
        # Keras saves no state of dropout. An attribute of the model is a weight of the model, and
        # so in every file; each has its own, as `tf.train.Checkpoint` does not look into lists.
        for index, state in enumerate(self._random_states()):
            setattr(self, f"random_state_{index}", state)
        # Compiled steps of `generate`, where Keras does not look for layers of this model.
        self._unmaskings = types.SimpleNamespace(by_settings={})
        self.built = True

    # Forward.

    def call(self, inputs, training=None):
        features = inputs if isinstance(inputs, dict) else {"token_ids": inputs}
        token_ids = features["token_ids"]
        require(
            is_integer(token_ids) and len(token_ids.shape) == 2 and not is_ragged(token_ids),
            "`token_ids` must be integers of shape [batch, length], padded and not ragged.",
            type=type(token_ids).__name__,
            dtype=token_ids.dtype,
            shape=tuple(token_ids.shape),
        )
        require(
            not training or self.adaptive_selection is None or "mask_positions" not in features,
            "`inputs` must not be masked already with `adaptive_selection`: leave the masking to "
            "the model.",
            keys=list(features),
        )
        if "mask_positions" in features or not (training or _STEP.get() == "evaluation"):
            outputs = self._outputs(features, training)
            return outputs.get("logits", outputs)
        if training and self.adaptive_selection is not None:
            weights = self.adaptive_selection(token_ids)
            weights = weights * ops.cast(features.get("selection_weights", 1.0), "float32")
            features = {**features, "selection_weights": weights}
        mask = self.masking.mask if training else self.masking.mask_fixed
        capacity = self.masking.selection_capacity(features, training=bool(training))
        masked = mask(features, selection_length=capacity)
        # What is padding is read off the ids before any of them is swapped.
        masked.setdefault("padding_mask", self._padding_mask(features))
        return {**masked, **self._outputs(masked, training)}

    def encode(self, inputs, training=None):
        """Hidden states `[batch, length, dim]` of untouched token ids.

        With `visible_only` nobody attends to a mask token among them.
        """
        features = inputs if isinstance(inputs, dict) else {"token_ids": inputs}
        if self.decoder is not None:
            features = {**features, "padding_mask": self._visible(features)}
        expected = getattr(self.encoder, "input", None) if self.encoder.built else None
        if isinstance(self.encoder, TransformerEncoder):
            expected = ("token_ids", "padding_mask", "positions")
            arguments = {name: features[name] for name in expected if name in features}
        elif isinstance(expected, dict):
            known = {
                "token_ids": lambda: features["token_ids"],
                "padding_mask": lambda: self._padding_mask(features),
                "segment_ids": lambda: features.get(
                    "segment_ids", ops.zeros_like(features["token_ids"])
                ),
            }
            require(
                known.keys() >= expected.keys(),
                f"`encoder` must take no other inputs than {', '.join(known)}.",
                inputs=list(expected),
            )
            arguments = {name: known[name]() for name in expected}
        else:
            arguments = features["token_ids"]
        hidden = self.encoder(arguments, training=training)
        return hidden["sequence_output"] if isinstance(hidden, dict) else hidden

    def _padding_mask(self, features):
        if "padding_mask" in features:
            return features["padding_mask"]
        padding = getattr(self.encoder, "padding_token_id", 0)
        if padding is None:
            return ops.ones_like(features["token_ids"], dtype="bool")
        return ops.not_equal(features["token_ids"], padding)

    def _visible(self, features):
        """Real and not hidden: bool `[batch, length]`."""
        real = ops.cast(self._padding_mask(features), "bool")
        return real & ops.not_equal(features["token_ids"], self.masking.mask_token_id)

    def _outputs(self, features, training):
        """`logits`; or, for a loss that is computed in pieces, the `features` behind them."""
        hidden = self._states(features, training)
        large = self.masking.vocabulary_size > LARGE
        if large and _STEP.get() is not None and self._compile_metrics is None:
            return {"features": self.head.features(hidden)}
        return {"logits": self.to_logits(hidden)}

    def _states(self, features, training):
        """Hidden states at the selected positions, or at all where none are named."""
        if self.decoder is not None:
            return self._decoded(features, training)
        hidden = self.encode(features, training=training)
        if "mask_positions" in features:
            hidden = states_at(hidden, features["mask_positions"])
        return hidden

    def _decoded(self, features, training):
        token_ids, seen = features["token_ids"], self._visible(features)
        positions = ops.zeros_like(token_ids, dtype="int32")
        positions += ops.arange(ops.shape(token_ids)[1], dtype="int32")
        positions = ops.cast(features.get("positions", positions), "int32")
        queries = positions
        if "mask_positions" in features:
            queries = ops.take_along_axis(positions, features["mask_positions"], axis=1)
        if training:
            capacity = visible_capacity(self.masking, features)
            shown = gather_visible(token_ids, positions, seen, capacity)
            states = self.encoder(shown, training=True)
            seen, positions = shown["padding_mask"], shown["positions"]
        else:
            states = self.encode(features, training=training)
        return self.decoder(queries, states, positions, seen, training=training)

    def to_logits(self, hidden):
        """Hidden states `[..., dim]` to logits `[..., vocabulary]`."""
        return self.head(hidden, self._embedding())

    def _embedding(self):
        embedding = getattr(self.encoder, "token_embedding", None)
        return None if embedding is None else embedding.embeddings

    # Training and evaluation.

    def fit(self, x=None, y=None, *args, sample_weight=None, **kwargs):
        """Keras' `fit`, of ids without labels, or of what `mask_dataset` gives.

        Beside ids, `sample_weight` holds a weight for each row.
        """
        x, sample_weight = self._checked(x, y, sample_weight)
        if isinstance(kwargs.get("validation_data"), tuple):
            held_out, labels, weights = (*kwargs["validation_data"], None, None)[:3]
            held_out, weights = self._checked(held_out, labels, weights)
            data = (held_out,) if labels is None else (held_out, labels, weights)
            kwargs["validation_data"] = data
        return super().fit(x, y, *args, sample_weight=sample_weight, **kwargs)

    def evaluate(self, x=None, y=None, *args, sample_weight=None, **kwargs):
        """Keras' `evaluate`, of what `fit` takes: ids are masked by `mask_fixed`."""
        x, sample_weight = self._checked(x, y, sample_weight)
        return super().evaluate(x, y, *args, sample_weight=sample_weight, **kwargs)

    def _checked(self, x, y, sample_weight):
        """Ids in an array are checked here, once: a compiled step does not look.

        Row weights travel inside the features: Keras drops weights without labels.
        """
        token_ids = x.get("token_ids") if isinstance(x, dict) else x
        if isinstance(token_ids, np.ndarray):
            check_ids(token_ids, self.masking.vocabulary_size)
        if isinstance(x, dict) and isinstance(x.get("selection_weights"), np.ndarray):
            check_weights(x["selection_weights"])
        if sample_weight is None or y is not None:
            return x, sample_weight
        weights = np.asarray(sample_weight, "float32")
        require(
            weights.size == len(weights),
            "`sample_weight` must hold one weight per row.",
            shape=weights.shape,
        )
        features = x if isinstance(x, dict) else {"token_ids": x}
        return {**features, "sample_weight": weights}, None

    def train_step(self, *args, **kwargs):
        with _in_step("training"):
            return super().train_step(*args, **kwargs)

    def test_step(self, *args, **kwargs):
        with _in_step("evaluation"):
            return super().test_step(*args, **kwargs)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        require(
            self._compile_loss is None,
            "`compile` must leave `loss` unset: the model brings its own.",
            loss=self.loss,
        )
        masked_here = isinstance(y_pred, dict) and "mask_ids" in y_pred
        require(
            not masked_here or y is None,
            "`y` must be left out: the labels are the masked tokens. (A dataset that is masked "
            "already must hold `mask_positions`: give its masking a `mask_selection_length`.)",
            y=y,
        )
        _, labels, weights = _targets(x, y, y_pred, sample_weight)
        losses, right = self._losses_and_hits(y_pred, labels)
        total = ops.sum(weights)
        loss = weighted_mean(losses, weights)
        self.masked_loss.update_state(loss, sample_weight=total)
        self.perplexity.update_state(loss, sample_weight=total)
        self.masked_accuracy.update_state(weighted_mean(right, weights), sample_weight=total)
        if masked_here or (isinstance(x, dict) and "mask_positions" in x):
            masked = y_pred if masked_here else {**x, "mask_weights": weights}
            share, selectable = self._selection_rate(masked)
            self.selection_rate.update_state(share, sample_weight=selectable)
            if self.detailed_metrics:
                self._update_details(masked, labels, losses, right, weights)
        if masked_here and training and self.adaptive_selection is not None:
            self.adaptive_selection.update(labels, losses, weights)
        # Replicas' gradients are summed, so each divides by what all of them selected.
        loss = weighted_mean(losses, weights, sum_over_replicas(total))
        extra = sum(ops.sum(each) for each in self.losses) / replica_count()
        return equal_share(loss + extra)

    def _losses_and_hits(self, outputs, labels):
        if isinstance(outputs, dict) and "features" in outputs:
            weights = self.head.output_weights(self._embedding())
            return losses_in_pieces(outputs["features"], *weights, labels)
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs
        return token_losses(logits, labels), hits(logits, labels)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        logits, labels, weights = _targets(x, y, y_pred, sample_weight)
        return super().compute_metrics(x, labels, logits, weights)

    def _selection_rate(self, masked):
        """The selected as a share of the selectable, and the number of the latter.

        The ids are masked by now, and the mask token may be protected: count the
        selected, and what is still selectable beside them.
        """
        real = masked["mask_weights"] > 0
        left, weights = self.masking.selectable(masked), self.masking.token_weights(masked)
        left = ops.cast(left if weights is None else left & (weights > 0), "float32")
        left_at_selected = ops.take_along_axis(left, masked["mask_positions"], axis=1)
        selected = ops.sum(ops.cast(real, "float32"))
        selectable = selected + ops.sum(left) - ops.sum(ops.where(real, left_at_selected, 0.0))
        return ops.divide_no_nan(selected, selectable), selectable

    def _update_details(self, masked, labels, losses, right, weights):
        real = masked["mask_weights"] > 0
        self.details["empty_rows"].update_state(~ops.any(real, axis=1))
        shown = ops.take_along_axis(masked["token_ids"], masked["mask_positions"], axis=1)
        of_roles = roles(shown, ops.cast(labels, shown.dtype), self.masking.mask_token_id)
        for role, theirs in zip(ROLES, of_roles, strict=True):
            of_role = ops.where(theirs, weights, 0.0)
            for what, values in (("loss", losses), ("accuracy", right)):
                self.details[f"{role}_{what}"].update_state(
                    weighted_mean(values, of_role), sample_weight=ops.sum(of_role)
                )

    # Generation.

    def generate(
        self,
        inputs,
        steps=None,
        *,
        temperature=0.0,
        top_k=None,
        top_p=None,
        order="confidence",
        revise=False,
        block_length=None,
        forbidden_token_ids=(),
        outputs=1,
        every_step=False,
        batch_size=32,
        seed=0,
    ):
        """Fills in mask tokens by iterative unmasking, and touches nothing else.

        Each step predicts all that is masked, keeps some of it, the surest first, and masks
        the rest again. After step i of T floor(n * i / T) of a row's n positions are
        kept; a row of fewer positions than `steps` is finished after n, unless it revises. Rows
        are independent of each other and of their batch. Protected ids and the mask token are
        never generated.

        A model trained at one low rate has hardly seen rows that are mostly masked: train
        with `mask_selection_rate=(0.0, 1.0)` to generate much.

        `temperature`, `top_k`, `top_p`, `order`, `revise`, `block_length` and
        `forbidden_token_ids` are those of `keras_dynmask.sampling.Unmasking`.

        Args:
            inputs: integers `[length]` or `[batch, length]` in which the mask token stands
                where something is to be generated; or a dict of `token_ids` and,
                optionally, of the same shape `padding_mask`, `segment_ids`, `positions` as
                the encoder reads them, and `selectable`: True = generate here, whatever
                stands there; False = never touch.
            steps: int, how many predictions; None: as many as a row has positions to fill, one
                at a time. Fewer are faster, and where the model wavers between answers
                mix them up.
            outputs: int, how many for each row, side by side: those of the first row come first.
                They differ where something is drawn: by a `temperature` above 0, or in
                `order="random"`.
            every_step: bool. True returns the rows before the first step and after each.
            batch_size: int, rows at once.
            seed: int in [0, 2**64). The same seed gives the same rows, as far as the
                backend computes the same logits; it shares no noise with masks.

        Returns:
            NumPy integers `[batch * outputs, length]` (`[length]` for one unbatched row and
            one output); with `every_step` an axis more in front: before the first step, and after
            each until the last row is finished. Of the dtype of the ids, or int32 where that
            can't hold the vocabulary.

        Raises:
            ValueError: naming the argument, what was expected and what was received.

        Example:

        >>> encoder = TransformerEncoder(100, num_layers=1, num_heads=2, hidden_dim=16,
        ...                              intermediate_dim=32)
        >>> model = MaskedLanguageModel(encoder, DynamicMasking(100, (0.0, 1.0), mask_token_id=1))
        >>> row = model.generate([7, 9, 1, 1, 1, 8], steps=2)
        >>> row[[0, 1, 5]].tolist(), 1 in row
        ([7, 9, 8], False)

        References:
            Ghazvininejad et al. 2019 (mask-predict), Chang et al. 2022 (MaskGIT), Nie et al.
            2025 (LLaDA), Holtzman et al. 2020 (top-p).
        """
        from keras_dynmask.sampling import Unmasking, generate

        settings = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "order": order,
            "revise": revise,
            "block_length": block_length,
            "forbidden_token_ids": token_ids_below(
                "forbidden_token_ids", forbidden_token_ids, self.masking.vocabulary_size
            ),
        }
        key, known = repr(settings), self._unmaskings.by_settings  # in repr, 1 is not True
        unmasking = known.pop(key, None) or Unmasking(self, **settings)
        known[key] = unmasking  # behind those that were used before
        if len(known) > KEPT_UNMASKINGS:
            del known[next(iter(known))]
        return generate(
            unmasking,
            inputs,
            steps,
            outputs=outputs,
            every_step=every_step,
            batch_size=batch_size,
            seed=seed,
        )

    # Saving.

    def export(
        self,
        filepath,
        format="tf_saved_model",
        *,
        dtype="int32",
        masking_endpoints=False,
        verbose=False,
    ):
        """Writes a SavedModel with endpoints `serve` (ids to logits) and `encode`; or `serve` for
        ONNX Runtime, LiteRT or OpenVINO: `format` "onnx", "litert" or "openvino".

        See `keras_dynmask.export.export`.
        """
        from keras_dynmask.export import export

        options = {"dtype": dtype, "masking_endpoints": masking_endpoints, "verbose": verbose}
        export(self, filepath, format, **options)

    def _random_states(self):
        """The state of every random generator below the model: what is no weight of a layer."""
        known = {id(weight) for weight in self.weights}
        return [variable for variable in self.variables if id(variable) not in known]

    def get_config(self):
        return {
            **super().get_config(),
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "masking": keras.saving.serialize_keras_object(self.masking),
            "adaptive_selection": keras.saving.serialize_keras_object(self.adaptive_selection),
            "visible_only": self.decoder is not None,
            "detailed_metrics": self.detailed_metrics,
        }

    @classmethod
    def from_config(cls, config):
        parts = {
            name: keras.saving.deserialize_keras_object(config[name])
            for name in ("encoder", "masking", "adaptive_selection")
        }
        return cls(**{**config, **parts})


@keras.saving.register_keras_serializable(package="keras_dynmask")
class MaskedLanguageModelHead(layers.Layer):
    """Hidden states to logits, through an embedding that may be the encoder's own.

    Args:
        vocabulary_size: int.
        embedding_dim: int, the size of the embedding that the call brings; or None for
            a head with output weights of its own.
    """

    def __init__(self, vocabulary_size, embedding_dim=None, **kwargs):
        super().__init__(**kwargs)
        self.vocabulary_size = vocabulary_size
        self.embedding_dim = embedding_dim

    def build(self, input_shape):
        dim = input_shape[-1] if self.embedding_dim is None else self.embedding_dim
        self.transform = layers.Dense(
            dim, activation="gelu", dtype=self.dtype_policy, name="transform"
        )
        self.transform.build(input_shape)
        self.normalization = layers.RMSNormalization(
            epsilon=1e-6, dtype=self.dtype_policy, name="normalization"
        )
        self.normalization.build((*input_shape[:-1], dim))
        self.bias = self.add_weight(name="bias", shape=(self.vocabulary_size,), initializer="zeros")
        if self.embedding_dim is None:
            self.output_embedding = self.add_weight(
                name="output_embedding",
                shape=(self.vocabulary_size, dim),
                initializer=keras.initializers.TruncatedNormal(stddev=0.02),
            )
        self.built = True

    def call(self, hidden, embedding=None):
        embedding, bias = self.output_weights(embedding)
        return ops.matmul(self.features(hidden), ops.transpose(embedding)) + bias

    def features(self, hidden):
        """What is multiplied by the embedding: `[..., dim]`."""
        return self.normalization(self.transform(hidden))

    def output_weights(self, embedding=None):
        """Embedding `[vocabulary, dim]` and bias `[vocabulary]`, as they are computed with."""
        embedding = self.output_embedding if embedding is None else embedding
        return ops.cast(embedding, self.compute_dtype), ops.cast(self.bias, self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "embedding_dim": self.embedding_dim,
        }


@keras.saving.register_keras_serializable(package="keras_dynmask")
class Perplexity(keras.metrics.Mean):
    """exp of the mean loss in nats: how many tokens the model wavers between."""

    def result(self):
        return ops.exp(super().result())


def _decoder_for(encoder):
    """One block as wide as the encoder's. One is enough: see benchmarks/visible_only.py."""
    decoder = TransformerDecoder(
        1,
        encoder.num_heads,
        encoder.hidden_dim,
        encoder.intermediate_dim,
        dropout=encoder.dropout,
        rotary_base=encoder.rotary_base,
        dtype=encoder.dtype_policy,
        name="decoder",
    )
    decoder.build()
    return decoder


def _targets(x, y, y_pred, sample_weight):
    """Logits (if there are any), labels and weights, all at the same positions."""
    if isinstance(y_pred, dict) and "mask_ids" in y_pred:  # masked by the model
        weights = y_pred["mask_weights"]
        sample_weight = y_pred.get("sample_weight", sample_weight)
        if sample_weight is not None:  # one weight per row
            weights = weights * ops.reshape(ops.cast(sample_weight, weights.dtype), (-1, 1))
        return y_pred.get("logits"), y_pred["mask_ids"], weights
    if y is not None:  # masked by the dataset
        weights = ops.ones_like(y) if sample_weight is None else sample_weight
        return y_pred, y, ops.cast(weights, "float32")
    token_ids = x["token_ids"] if isinstance(x, dict) else x  # Keras tries the shapes
    return y_pred, token_ids, ops.zeros_like(token_ids, dtype="float32")


@contextlib.contextmanager
def _in_step(step):
    token = _STEP.set(step)
    try:
        yield
    finally:
        _STEP.reset(token)
