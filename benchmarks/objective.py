"""What logits cost: at all positions, at the selected ones, and there in pieces.

    python benchmarks/objective.py
    KERAS_BACKEND=jax python benchmarks/objective.py --short

`head` is the loss and its gradient alone, from hidden states on; `step` is a training step of
a `MaskedLanguageModel` with an encoder of two layers of 128. Lengths differ, tokens per batch do
not. Seconds are medians of rounds in which the ways take turns: of all cores on a CPU, of the
clock on a GPU. Memory is that of a fresh process: what the compiler plans for (`head` on JAX),
the peak on the GPU, or what the process' peak grew by. A way whose logits, held four times, are
larger than `--memory` is skipped. Writes `benchmarks/results/objective.csv`.
"""

import argparse
import functools
import json
import pathlib
import sys
import time

from measure import in_fresh_process, in_turn, median, median_ratio, peak_mebibytes, place, write
from measure import table as markdown

WAYS = ("all", "selected", "pieces")
VOCABULARIES, LENGTHS = (8_000, 30_522, 256_000), (128, 512, 2048, 8192)
DIM, RATE = 128, 0.15
RESULTS = pathlib.Path(__file__).parent / "results" / "objective.csv"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="one vocabulary, one length")
    parser.add_argument("--vocabularies", type=int, nargs="+", default=VOCABULARIES)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--tokens", type=int, default=8192, help="of a batch (%(default)s)")
    parser.add_argument("--memory", type=float, default=8.0, help="GiB for logits (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS, help="(%(default)s)")
    arguments = parser.parse_args()
    tokens = 1024 if arguments.short else arguments.tokens
    lengths = arguments.lengths[:1] if arguments.short else arguments.lengths
    vocabularies = VOCABULARIES[1:2] if arguments.short else arguments.vocabularies
    cells = [("head", vocabulary, lengths[0]) for vocabulary in vocabularies]
    cells += [("step", vocabulary, length) for vocabulary in vocabularies for length in lengths]
    device = in_fresh_process(__file__, "device", "{}")
    print(f"{place()}; {device}; {tokens} tokens a batch, rate {RATE}\n")
    arguments.output.parent.mkdir(exist_ok=True)
    rows = []
    for cell in cells:
        rows.append({**row(*cell, tokens, arguments), "device": device})
        write(arguments.output, rows)  # a run that is stopped has measured what it has
    print(markdown(rows))


def row(part, vocabulary, length, tokens, arguments):
    """One line of the table: the ways' seconds and mebibytes, and what pieces gain."""
    limit = arguments.memory * 2**30
    fits = {way: 16 * logits(way, tokens, vocabulary) < limit for way in WAYS}
    ways = [way for way in WAYS if fits[way]]
    cell = {"part": part, "vocabulary": vocabulary, "length": length, "tokens": tokens}

    def measure(ways, rounds):
        what = json.dumps({**cell, "ways": ways, "rounds": rounds})
        return in_fresh_process(__file__, "cell", what)

    seconds = measure(ways, 3 if arguments.short else arguments.rounds)
    memory = {way: measure([way], 0) for way in ways}
    found = {"part": part, "vocabulary": vocabulary, "length": length, "batch": tokens // length}
    found |= {f"{way} s": median(seconds[way]) if fits[way] else "skipped" for way in WAYS}
    found["s, selected / pieces"] = median_ratio(seconds["selected"], seconds["pieces"])
    found |= {f"{way} MiB": memory[way] if fits[way] else "skipped" for way in WAYS}
    found["MiB, selected / pieces"] = memory["selected"] / memory["pieces"]
    print(found, file=sys.stderr, flush=True)
    return found


def logits(way, tokens, vocabulary):
    """How many numbers are held at a time."""
    words = 4096 if way == "pieces" else vocabulary
    return words * (tokens if way == "all" else int(tokens * RATE))


# What a fresh process measures.


def of_cell(part, vocabulary, length, tokens, ways, rounds):
    """Seconds of each way, a list per round; or with no rounds, mebibytes of the only one."""
    make = {"head": head, "step": step}[part]
    if rounds:
        clock = time.perf_counter if on_gpu() else time.process_time
        contenders = {way: make(vocabulary, length, tokens, way)[0] for way in ways}
        return in_turn(contenders, rounds, clock)
    run, planned = make(vocabulary, length, tokens, ways[0])
    if planned is not None:
        return planned
    before = peak_mebibytes()
    run()
    return gpu_peak_mebibytes() if on_gpu() else peak_mebibytes() - before


def head(vocabulary, length, tokens, way):
    """The loss of the head and its gradient, as a function; and MiB planned for, if known."""
    import numpy as np
    from keras import ops

    from keras_dynmask.objective import hits, states_at, token_losses
    from keras_dynmask.pieces import losses_in_pieces

    random, batch, count = np.random.default_rng(0), tokens // length, int(length * RATE)
    shapes = ((batch, length, DIM), (vocabulary, DIM), (vocabulary,))
    arrays = [random.standard_normal(shape, "float32") / DIM**0.5 for shape in shapes]
    positions = np.sort(random.random((batch, length)).argsort(axis=1)[:, :count], axis=1)
    ids = random.integers(0, vocabulary, (batch, length)).astype("int32")
    if way != "all":
        ids = np.take_along_axis(ids, positions, axis=1)

    def loss(hidden, embedding, bias):
        features = hidden if way == "all" else states_at(hidden, positions.astype("int32"))
        if way == "pieces":
            losses, right = losses_in_pieces(features, embedding, bias, ids)
        else:
            logits = ops.matmul(features, ops.transpose(embedding)) + bias
            losses, right = token_losses(logits, ids), hits(logits, ids)
        return ops.mean(losses), ops.mean(right)

    return gradient(loss, arrays)


def gradient(loss, arrays):
    import keras

    if keras.backend.backend() == "jax":
        import jax

        run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
        arrays = jax.device_put(arrays)
        run = run.lower(*arrays).compile()
        planned = run.memory_analysis().temp_size_in_bytes / 2**20
        return lambda: jax.block_until_ready(run(*arrays)), planned
    if keras.backend.backend() == "torch":
        import torch

        device = "cuda" if on_gpu() else "cpu"
        tensors = [torch.tensor(array, device=device, requires_grad=True) for array in arrays]
        return functools.partial(torch_gradient, loss, tensors), None
    import tensorflow as tf

    tensors = [tf.constant(array) for array in arrays]

    @tf.function
    def run(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value, right = loss(*tensors)
        return value, right, tape.gradient(value, tensors)

    return lambda: float(run(*tensors)[0]), None


def torch_gradient(loss, tensors):
    import torch

    value, right = loss(*tensors)
    gradients = torch.autograd.grad(value, tensors)
    return float(value.detach()), right, float(gradients[-1][0])  # a number waits for the GPU


def step(vocabulary, length, tokens, way):
    """A step of training, as a function."""
    import keras
    import numpy as np

    import keras_dynmask.model
    from keras_dynmask import DynamicMasking, MaskedLanguageModel, TransformerEncoder

    keras.utils.set_random_seed(0)
    encoder = TransformerEncoder(vocabulary, 2, 2, DIM, 4 * DIM, dropout=0.0)
    targets = length if way == "all" else int(length * RATE) + 1
    masking = DynamicMasking(vocabulary, RATE, 4, targets, unselectable_token_ids=(0, 4), seed=0)
    model = MaskedLanguageModel(encoder, masking)
    model.compile(keras.optimizers.SGD(0.01))
    ids = np.random.default_rng(0).integers(5, vocabulary, (tokens // length, length))

    def run():
        keras_dynmask.model.LARGE = 0 if way == "pieces" else vocabulary  # whatever the size
        model.train_on_batch(ids.astype("int32"))

    return run, None


def on_gpu():
    import keras

    if keras.backend.backend() == "jax":
        import jax

        return jax.default_backend() != "cpu"
    if keras.backend.backend() == "torch":
        import torch

        return torch.cuda.is_available()
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def gpu_peak_mebibytes():
    import keras

    if keras.backend.backend() == "jax":
        import jax

        return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"] / 2**20
    if keras.backend.backend() == "torch":
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    import tensorflow as tf

    return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**20


def device():
    """The backend, its version and what it runs on."""
    import importlib.metadata

    import keras

    backend = keras.backend.backend()
    name = "GPU" if on_gpu() else "CPU"
    if backend == "torch" and on_gpu():
        import torch

        name = torch.cuda.get_device_name()
    if backend == "jax":
        import jax

        name = jax.local_devices()[0].device_kind
    return f"{backend} {importlib.metadata.version(backend)} on {name}"


if __name__ == "__main__":
    if sys.argv[1:2] in (["cell"], ["device"]):
        work = {"cell": of_cell, "device": device}[sys.argv[1]]
        print(json.dumps(work(**json.loads(sys.argv[2]))))
    else:
        main()
