"""Dynamic masking for masked language modelling in Keras."""

from keras_dynmask.masking import DynamicMasking

__all__ = ["DynamicMasking"]
