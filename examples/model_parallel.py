"""Train on JAX with weights that are split between devices, for a model that one cannot hold.

    python examples/model_parallel.py

runs on four devices, which this machine's processor plays unless there are others: pairs share
the rows of a batch, and the two of a pair share the weights.
"""

import os

os.environ["KERAS_BACKEND"] = "jax"
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from keras_dynmask import DynamicMasking, MaskedLanguageModel, TransformerEncoder

# What a matrix makes is split where it is made and summed where it is used, so that the two of
# a pair exchange sums of hidden states, and no weights.
LAYOUT = {
    ".*/token_embedding/embeddings": ("model", None),  # by ids
    ".*/query_key_value/kernel": (None, "model"),
    ".*/attention_output/kernel": ("model", None),
    ".*/gate_and_value/kernel": (None, "model"),
    ".*/feedforward_output/kernel": ("model", None),
    "head/transform/kernel": (None, "model"),
    "head/bias": ("model",),  # by ids
}


def distribution(batch_devices, model_devices):
    """Splits batches and weights. Set it before any variable is made."""
    mesh = keras.distribution.DeviceMesh((batch_devices, model_devices), ("batch", "model"))
    layout = keras.distribution.LayoutMap(mesh)
    for path, axes in LAYOUT.items():
        layout[path] = axes
    return keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")


def main():
    keras.distribution.set_distribution(distribution(2, 2))
    encoder = TransformerEncoder(1000, 2, num_heads=4, hidden_dim=64, intermediate_dim=128)
    masking = DynamicMasking(1000, 0.15, mask_token_id=3, seed=0)
    model = MaskedLanguageModel(encoder, masking)
    model.compile(keras.optimizers.Adam(1e-3))
    for weight in model.trainable_weights:
        whole, part = weight.shape, weight.value.addressable_shards[0].data.shape
        print(f"{weight.path:60} {whole!s:14}{f'{part} on each' if part != whole else ''}")

    token_ids = np.random.default_rng(0).zipf(1.3, (512, 64)).clip(4, 999).astype("int32")
    model.fit(token_ids, batch_size=32, epochs=3, verbose=2)


if __name__ == "__main__":
    main()
