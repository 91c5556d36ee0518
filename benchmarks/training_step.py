"""The whole training step, beside KerasHub's BERT and Hugging Face's, and with less to do.

    python benchmarks/training_step.py            about ten minutes on two cores
    python benchmarks/training_step.py --short    under two minutes
    python benchmarks/training_step.py --arms ours-jax hub-jax hf-compiled --dtype bfloat16

Each arm is a process of its own, on `--threads` cores. They take their rounds in turn, so that
what slows the machine slows all of them. On a GPU the arms on JAX and PyTorch run there.

The same vocabulary, layers, heads, width, batch, length, AdamW, dropout of .1, and logits at as
many positions; ours is gated (three matrices), so its feed-forward layer is two thirds as wide, for
as many weights and operations. What remains different: BERT drops attention weights, too (in
the stock KerasHub and Hugging Face models), has biases, and learns its positions, where ours turns
queries and keys. `stock` arms of Hugging Face compute logits everywhere, as `BertForMaskedLM`
does; the others gather the selected positions before its head, which it can't do by itself.

Ours masks in its step. The peers' batches are masked beforehand, and they pay nothing for it.
"""

import argparse
import json
import os
import subprocess
import sys
import time

import measure

VOCABULARY, RATE, MASK_ID = 30522, 0.15, 4
KERAS_ENGINES = {
    "graph": {"KERAS_BACKEND": "tensorflow"},
    "xla": {"KERAS_BACKEND": "tensorflow"},
    "jax": {"KERAS_BACKEND": "jax"},
    "torch": {"KERAS_BACKEND": "torch"},
}
HUGGING_FACE = ("eager", "compiled", "eager-stock", "compiled-stock")
ARMS = {
    **{f"ours-{engine}": engine for engine in KERAS_ENGINES},
    **{f"hub-{engine}": engine for engine in KERAS_ENGINES},
    **{f"hf-{kind}": kind for kind in HUGGING_FACE},
    "padded-xla": "xla",
    "packed-xla": "xla",
    "padded-jax": "jax",
    "packed-jax": "jax",
}
LESS = ("padded-", "packed-")
NEEDS = {"graph": "tensorflow", "xla": "tensorflow", "jax": "jax", "torch": "torch"}
NEEDED_BY = {"hub": "keras_hub", "hf": "transformers", "padded": "tokenizers"}


def main():
    arguments = parsed()
    if arguments.worker:
        return work(arguments.worker, arguments)
    names = [name for name in arguments.arms if is_installed(name)]
    print(measure.place("jax", "torch", "keras-hub", "transformers"))
    print(f"{described(arguments)}\n")
    arms = {}
    try:
        for name in names:  # one after the other: compiling takes all cores
            arms[name] = Arm(name, arguments)
        rounds = [
            {name: arm.steps(arguments.steps) for name, arm in arms.items()}
            for _ in range(arguments.rounds)
        ]
    finally:
        for arm in arms.values():
            arm.process.kill()
    rows = [row_of(name, arm, rounds) for name, arm in arms.items()]
    print(measure.table(rows))
    if arguments.output:
        measure.write(arguments.output, rows)


def parsed():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="four arms, small batches")
    default = [name for name in ARMS if not name.endswith("torch")]
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=default, metavar="ARM")
    numbers = {"layers": 4, "heads": 4, "hidden": 256, "length": 128, "batch": 32}
    numbers |= {"threads": os.cpu_count(), "rounds": 7, "steps": 3}
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value, help="(%(default)s)")
    parser.add_argument("--dropout", type=float, default=0.1, help="(%(default)s)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--output", help="a .csv file to write")
    parser.add_argument("--worker", choices=ARMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.short:
        arguments.arms = ["ours-graph", "ours-xla", "hub-graph", "hub-xla"]
        arguments.batch, arguments.rounds, arguments.steps = 8, 5, 2
    # Three matrices of 2/3 the width hold as many weights as two.
    arguments.feed_forward = arguments.hidden * 9 // 2 // 3 * 3
    arguments.selected = -(-int(RATE * 1000) * arguments.length // 1000)
    return arguments


def is_installed(name):
    maker, _, engine = name.partition("-")
    needed = {NEEDS.get(engine, "torch"), NEEDED_BY.get(maker.replace("packed", "padded"), "keras")}
    return all(measure.require_peers(**{each: each.replace("_", "-") for each in needed}).values())


def described(arguments):
    """What every arm computes, and its matrix products: two operations for each weight and
    token forward, four backward; and the same for attention."""
    each = arguments
    weights = each.layers * (4 * each.hidden**2 + 2 * each.hidden * each.feed_forward)
    attention = 2 * each.layers * each.hidden * each.length
    head = each.hidden**2 + each.hidden * VOCABULARY
    flops = 6 * each.batch * (each.length * (weights + attention) + each.selected * head)
    stock = 6 * each.batch * each.length * (weights + attention + head)
    return (
        f"{each.layers} layers, {each.heads} heads, {each.hidden} wide, feed-forward "
        f"{each.feed_forward} (gated: {each.feed_forward * 2 // 3}), vocabulary {VOCABULARY:,}; "
        f"{each.batch} x {each.length} tokens, {each.selected} selected of each row; dropout "
        f"{each.dropout}; {each.dtype}; {each.threads} threads; AdamW. Matrix products of a step: "
        f"{flops / 1e9:.0f} GFLOP, of a stock step {stock / 1e9:.0f}."
    )


class Arm:
    """A process that trains, and waits for its turn."""

    def __init__(self, name, arguments):
        environment = {
            **os.environ,
            **KERAS_ENGINES.get(ARMS[name], {}),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # arms share the memory of a GPU
            "TF_FORCE_GPU_ALLOW_GROWTH": "true",
            "OMP_NUM_THREADS": str(arguments.threads),
            "OMP_WAIT_POLICY": "passive",  # else PyTorch's threads burn what the others need
        }
        given = [*sys.argv[1:], "--worker", name]
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, __file__, *given],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} failed with status {self.process.wait()}.")
        return json.loads(line)

    def steps(self, count):
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return self.answer()


def row_of(name, arm, rounds):
    """Medians over the rounds; and how many times longer than this arm its peer takes for as
    many useful tokens: KerasHub on the same engine, or the padded rows."""

    def each(arm, what):
        return [found[arm][what] for found in rounds]

    row = {
        "arm": name,
        "weights": f"{arm.facts['weights']:,}",
        "useful tokens/s": round(1 / measure.median(each(name, "seconds per token"))),
        "CPU s/step": measure.median(each(name, "CPU seconds")),
        "peak MiB": round(max(each(name, "peak MiB"))),
        "device MiB": round(max(each(name, "device MiB"))),
    }
    against = f"{'padded' if name.startswith(LESS) else 'hub'}-{ARMS[name]}"
    for what in ("seconds", "CPU seconds"):
        title, per_token = f"peer's {what} / its", f"{what} per token"
        row[title] = "-"
        if against in rounds[0]:
            row[title] = measure.median_ratio(each(against, per_token), each(name, per_token))
    return row


# In the process of an arm


def work(name, arguments):
    """Builds the arm; then for each number read, takes so many steps and tells how it went."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries that print do not disturb
    if hasattr(os, "sched_setaffinity"):  # every library counts its threads by it
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    maker = name.partition("-")[0]
    run, weights, tokens = MAKERS[maker](ARMS[name], arguments)
    run(2)  # compiles
    answers.write(json.dumps({"weights": weights}) + "\n")
    for line in sys.stdin:
        count = int(line)
        began, cpu_began = time.perf_counter(), time.process_time()
        run(count)
        seconds = (time.perf_counter() - began) / count
        cpu_seconds = (time.process_time() - cpu_began) / count
        found = {
            "seconds per token": seconds / tokens,
            "CPU seconds": cpu_seconds,
            "CPU seconds per token": cpu_seconds / tokens,
            "peak MiB": measure.peak_mebibytes(),
            "device MiB": device_peak(),
        }
        answers.write(json.dumps(found) + "\n")


def device_peak():
    """MiB that were held at most on a GPU, as its library counts them; else 0."""
    if "jax" in sys.modules:
        import jax

        found = jax.local_devices()[0].memory_stats() or {}
        return found.get("peak_bytes_in_use", 0) / 2**20
    if "torch" in sys.modules:
        import torch

        return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0
    return 0


def random_ids(arguments):
    import numpy as np

    shape = arguments.batch, arguments.length
    return np.random.default_rng(0).integers(5, VOCABULARY, shape, "int32")


def random_masks(arguments):
    """Ids with a mask token at the selected positions; those positions, ascending; and the ids
    that stood there."""
    import numpy as np

    ids = random_ids(arguments)
    order = np.argsort(np.random.default_rng(1).random(ids.shape), axis=1)
    positions = np.sort(order[:, : arguments.selected], axis=1).astype("int32")
    labels = np.take_along_axis(ids, positions, axis=1)
    shown = ids.copy()
    np.put_along_axis(shown, positions, MASK_ID, axis=1)
    return shown, positions, labels


def ours(engine, arguments, ids=None):
    import keras

    from keras_dynmask import DynamicMasking, MaskedLanguageModel, TransformerEncoder

    set_policy(keras, arguments)
    encoder = TransformerEncoder(
        VOCABULARY,
        arguments.layers,
        arguments.heads,
        arguments.hidden,
        arguments.feed_forward * 2 // 3,
        dropout=arguments.dropout,
    )
    masking = DynamicMasking(VOCABULARY, RATE, MASK_ID, seed=0)
    model = MaskedLanguageModel(encoder, masking)
    model.compile(adamw(keras), jit_compile=is_compiled(engine))
    ids = random_ids(arguments) if ids is None else ids
    return fitting(model, arguments, ids), model.count_params(), int((ids != 0).sum())


def hub(engine, arguments):
    import keras
    import keras_hub
    import numpy as np

    set_policy(keras, arguments)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=VOCABULARY,
        num_layers=arguments.layers,
        num_heads=arguments.heads,
        hidden_dim=arguments.hidden,
        intermediate_dim=arguments.feed_forward,
        dropout=arguments.dropout,
        max_sequence_length=arguments.length,
    )
    masked_lm = keras_hub.models.BertMaskedLM(backbone)
    model = keras.Model(masked_lm.input, masked_lm.output)  # whose `fit` takes any data
    model.compile(
        adamw(keras),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy()],
        jit_compile=is_compiled(engine),
    )
    shown, positions, labels = random_masks(arguments)
    features = {
        "token_ids": shown,
        "segment_ids": np.zeros_like(shown),
        "padding_mask": np.ones_like(shown),
        "mask_positions": positions,
    }
    weights = np.ones(labels.shape, "float32")
    run = fitting(model, arguments, features, labels, weights)
    return run, model.count_params(), shown.size


def set_policy(keras, arguments):
    if arguments.dtype == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")


def adamw(keras):
    return keras.optimizers.AdamW(1e-4, weight_decay=0.01)


def is_compiled(engine):
    return {"graph": False, "xla": True}.get(engine, "auto")


def fitting(model, arguments, x, y=None, sample_weight=None):
    """`fit` on one batch, again and again; it ends with the losses, which wait for the device."""
    import keras

    class Again(keras.utils.PyDataset):
        def __init__(self, steps):
            super().__init__()
            self.steps = steps

        def __len__(self):
            return self.steps

        def __getitem__(self, index):
            return x if y is None else (x, y, sample_weight)

    return lambda steps: model.fit(Again(steps), shuffle=False, verbose=0)


def hf(kind, arguments):
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads,
        intermediate_size=arguments.feed_forward,
        hidden_dropout_prob=arguments.dropout,
        attention_probs_dropout_prob=arguments.dropout,
        max_position_embeddings=arguments.length,
    )
    model = transformers.BertForMaskedLM(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.01, fused=True)
    shown, positions, labels = (
        torch.tensor(each, device=device).long() for each in random_masks(arguments)
    )
    everywhere = torch.full_like(shown, -100).scatter(1, positions, labels)
    attention_mask = torch.ones_like(shown)
    rows = torch.arange(len(shown), device=device)[:, None]

    def loss_of_stock():
        return model(shown, attention_mask=attention_mask, labels=everywhere).loss

    def loss_of_gathered():
        hidden = model.bert(shown, attention_mask=attention_mask).last_hidden_state
        logits = model.cls(hidden[rows, positions])
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    loss_of = loss_of_stock if kind.endswith("stock") else loss_of_gathered
    if kind.startswith("compiled"):
        loss_of = torch.compile(loss_of)

    def run(steps):
        for _ in range(steps):
            with torch.autocast(device, torch.bfloat16, enabled=arguments.dtype == "bfloat16"):
                loss = loss_of()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        loss.item()  # waits for the device

    weights = sum(each.numel() for each in model.parameters())
    return run, weights, shown.size(0) * shown.size(1)


# Less to do: the sentences of the embedded corpus, a row for each, or end to end.


def padded(engine, arguments):
    import numpy as np

    tokenizer, sentences = embedded_sentences()
    ids = np.zeros((arguments.batch, arguments.length), "int32")
    for row, encoding in zip(ids, tokenizer.encode_batch(sentences[: len(ids)]), strict=True):
        found = encoding.ids[: len(row)]
        row[: len(found)] = found
    return ours(engine, arguments, ids)


def packed(engine, arguments):
    from keras_dynmask import text

    tokenizer, sentences = embedded_sentences()
    return ours(
        engine, arguments, text.pack(tokenizer, sentences, arguments.length)[: arguments.batch]
    )


def embedded_sentences():
    """A tokenizer, and the sentences in an order of chance, so that a few are like all."""
    import random
    import re

    from keras_dynmask import text

    documents = text.embedded_corpus()
    sentences = [
        sentence for each in documents for sentence in re.split(r"(?<=[.!?])\s+|\n\n+", each)
    ]
    sentences = [each for each in sentences if len(each.split()) > 2]
    random.Random(0).shuffle(sentences)
    return text.train_tokenizer(documents, 4000), sentences


MAKERS = {"ours": ours, "hub": hub, "hf": hf, "padded": padded, "packed": packed}


if __name__ == "__main__":
    sys.exit(main())
