"""Dynamic masking for masked language modelling in Keras."""

from keras_dynmask.quiet import quiet_start

with quiet_start():
    import keras  # noqa: F401

from keras_dynmask.adaptive import AdaptiveSelection
from keras_dynmask.encoder import TransformerEncoder
from keras_dynmask.hugging_face import MaskingCollator, ignore_index_labels
from keras_dynmask.masking import DynamicMasking
from keras_dynmask.model import MaskedLanguageModel
from keras_dynmask.pipeline import mask_dataset
from keras_dynmask.sequences import apply_masking, generate_masking_sequence
from keras_dynmask.vocabulary import continuation_ids, masking_arguments, word_begins, words_of
from keras_dynmask.watching import MaskingTensorBoard

__all__ = [
    "AdaptiveSelection",
    "DynamicMasking",
    "MaskedLanguageModel",
    "MaskingCollator",
    "MaskingTensorBoard",
    "TransformerEncoder",
    "apply_masking",
    "continuation_ids",
    "generate_masking_sequence",
    "ignore_index_labels",
    "mask_dataset",
    "masking_arguments",
    "word_begins",
    "words_of",
]
