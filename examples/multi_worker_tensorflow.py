"""Train on TensorFlow in several workers, in a loop of your own: Keras' `fit` fails there.

    python examples/multi_worker_tensorflow.py

starts two workers on this machine. On machines of their own, start one on each and describe them
in `TF_CONFIG`. Each prints a digest of its masks of rows that are the same for both: they differ;
and of its weights at the end: they are equal.
"""

import argparse
import json
import os
import sys

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import loopback


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", help="a .npz file for the weights, before and after")
    arguments = parser.parse_args()
    if "TF_CONFIG" in os.environ:
        return train(arguments.output)
    cluster = {"worker": loopback.free_addresses(2)}
    tasks = [{"type": "worker", "index": index} for index in range(2)]
    settings = [{"cluster": cluster, "task": task} for task in tasks]
    return loopback.run_here([{"TF_CONFIG": json.dumps(each)} for each in settings])


def train(output):
    import keras
    import tensorflow as tf
    import toy

    strategy = tf.distribute.MultiWorkerMirroredStrategy()  # before anything else
    worker = strategy.cluster_resolver.task_id
    with strategy.scope():
        model = toy.build_model()
        optimizer = keras.optimizers.SGD(0.5, momentum=0.9)
        optimizer.build(model.trainable_variables)

    def step_of_replica(token_ids):
        with tf.GradientTape() as tape:
            masked = model(token_ids, training=True)
            # A part of the loss: divided by what all replicas selected. The optimizer adds up
            # the gradients of the parts.
            part = model.compute_loss(token_ids, y_pred=masked)
        optimizer.apply(tape.gradient(part, model.trainable_variables))
        return part, masked["mask_positions"]

    @tf.function
    def step(token_ids):
        parts, positions = strategy.run(step_of_replica, args=(token_ids,))
        return strategy.reduce("sum", parts, axis=None), positions

    before = model.get_weights()
    results = [step(tf.constant(token_ids)) for token_ids in toy.halves(worker)]
    losses, masks = zip(*results, strict=True)
    toy.report(worker, losses, masks[0], before, model.get_weights(), output)


if __name__ == "__main__":
    sys.exit(main())
