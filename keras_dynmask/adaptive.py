"""`AdaptiveSelection`: masks that follow the learner."""

import math

import keras
from keras import ops

from keras_dynmask.errors import real, whole
from keras_dynmask.replicas import sum_over_replicas


@keras.saving.register_keras_serializable(package="keras_dynmask")
class AdaptiveSelection(keras.layers.Layer):
    """Selects tokens that the model still gets wrong more often than those it knows.

    In training a `MaskedLanguageModel` that holds this layer hands it the loss of every
    selected token, and takes from it the weights by which the next batch's tokens are
    selected. Evaluation neither reads nor changes it: its masks stay uniform, so its
    numbers compare with those of a model without.

    Each id keeps a moving average of its loss, which begins as a uniform guess,
    log(vocabulary_size), and drifts back to it where the id is not asked for long. An id
    of average loss a weighs (a / log(vocabulary_size)) ** (1 / temperature), and never
    less than the floor. The average is a weight of the layer: it is saved with the model,
    and equal on every replica of `tf.distribute`.

    Measure before you rely on it. On the embedded corpus it does not help: after 40 epochs
    the held-out loss under uniform masks is the same, the accuracy a point lower (three
    seeds, `benchmarks/adaptive_selection.py`).

    Args:
        vocabulary_size: int, as in the masking.
        temperature: float > 0. At 1 an id weighs in proportion to its loss; the higher,
            the nearer to uniform.
        floor: float in (0, 1], the least weight, where a uniform guess weighs 1.
        momentum: float in [0, 1), how much of the past is left after a step.
        **kwargs: `name` of `keras.layers.Layer`.

    Call arguments:
        token_ids: integer array or tensor of any shape.

    Returns:
        Selection weights, float32, of the same shape.

    Raises:
        ValueError: naming the argument, what was expected and what was received.

    Example:

    >>> adaptive = AdaptiveSelection(vocabulary_size=100, floor=0.2)
    >>> adaptive.update(np.array([7, 7, 8]), losses=np.array([0.0, 0.0, 9.0]))
    >>> (adaptive(np.array([7, 8, 9])).numpy() > [0.2, 1.0, 0.99]).tolist()
    [True, True, True]

    References:
        Hou et al. 2022 (token dropping: the running loss of each vocabulary id says how
        much it matters), Yang et al. 2023 (masks that vary with training, by the losses
        of parts of speech), Sadeq et al. 2022 (InforMask: informative tokens first).
    """

    def __init__(self, vocabulary_size, temperature=1.0, floor=0.1, momentum=0.999, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.vocabulary_size = whole("vocabulary_size", vocabulary_size, 2)
        self.temperature = real("temperature", temperature, 1e-3)
        self.floor = real("floor", floor, 1e-6, 1)
        self.momentum = real("momentum", momentum, 0, 1 - 1e-6)
        # What was asked lately: the sum of losses and their number, for each id.
        self.evidence = self.add_weight(
            name="evidence",
            shape=(2, self.vocabulary_size),
            dtype="float32",
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
        )
        self.built = True

    def call(self, token_ids):
        guess = math.log(self.vocabulary_size)
        losses, count = self.evidence[0], self.evidence[1]
        average = (losses + guess) / (count + 1.0)  # the guess counts as one observation
        weights = (average / guess) ** (1 / self.temperature)
        weights = ops.clip(weights, self.floor, 2.0**60)
        return ops.take(weights, ops.cast(token_ids, "int32"), axis=0)

    def update(self, token_ids, losses, weights=None):
        """Takes in the losses of tokens that were asked.

        Losses that are not finite are left out, so that a step which overflows, and
        which a loss scale then skips, does no harm; and none counts for more than 1000.

        Args:
            token_ids: integers of any shape, the original ids.
            losses: floats of the same shape, in nats.
            weights: floats of the same shape, 0 where nothing was asked; None: 1 each.
        """
        losses = ops.reshape(ops.stop_gradient(ops.cast(losses, "float32")), (-1,))
        asked = ops.isfinite(losses)
        if weights is not None:
            asked = asked & (ops.cast(ops.reshape(weights, (-1,)), "float32") > 0)
        losses = ops.where(asked, ops.minimum(losses, 1000.0), 0.0)
        new = ops.stack([losses, ops.cast(asked, "float32")], axis=1)
        ids = ops.reshape(ops.cast(token_ids, "int32"), (-1,))
        new = ops.segment_sum(new, ids, self.vocabulary_size)  # [vocabulary, 2]
        new = sum_over_replicas(ops.transpose(new))
        self.evidence.assign(self.momentum * self.evidence + new)

    def get_config(self):
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "temperature": self.temperature,
            "floor": self.floor,
            "momentum": self.momentum,
        }
