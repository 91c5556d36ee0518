"""How good generated text is, against steps, temperature, order and training.

    python benchmarks/generation.py                              (the embedded corpus)
    python benchmarks/generation.py --corpus tinyshakespeare.txt

Trains for each seed a model of masked diffusion, and one with a quarter of the updates; and a
judge, a model of 15 % masks with weights of its own. The judge gives each text a
pseudo-perplexity: how probable each token is where it alone is masked. Repetition has a low one,
so the share of distinct tokens and pairs stands beside it, and all of them stand beside those of
held-out text and of tokens drawn by frequency. Writes `benchmarks/results/generation.csv`, where
rows of other corpora and seeds stay as they are; each row holds the first text of its setting,
as it came. Ten CPU minutes a corpus.
"""

import argparse
import math
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from measure import place, read, write

from keras_dynmask import recipes, text, training

RESULTS = pathlib.Path(__file__).resolve().parent / "results" / "generation.csv"
SHAPE = {"length": 32, "vocabulary_size": 1000, "batch_size": 64}
SMALL = {"num_layers": 2, "hidden_dim": 64, "intermediate_dim": 128}  # a CPU minute each
ORDERS = {
    "surest first": {},
    "any order": {"order": "random"},
    "left to right": {"block_length": 1},
}
STEPS, TEMPERATURES = (1, 2, 4, 8, 16, 32), (0.0, 0.5, 0.8, 1.0)
JUDGE_SEED = 100


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=pathlib.Path, help="a text file (the embedded corpus)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(0 1 2)")
    parser.add_argument("--updates", type=int, default=1000, help="of each model (%(default)s)")
    parser.add_argument("--rows", type=int, default=64, help="of each setting (%(default)s)")
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    print(place())

    name = arguments.corpus.stem if arguments.corpus else "embedded"
    documents = text.read_corpus([arguments.corpus]) if arguments.corpus else text.embedded_corpus()
    documents, held_out = text.split_documents(documents, 0.125)
    tokenizer = text.train_tokenizer(documents, SHAPE["vocabulary_size"])
    rows, held_out = (text.pack(tokenizer, each, SHAPE["length"]) for each in (documents, held_out))
    special, size = text.special_ids(tokenizer), tokenizer.get_vocab_size()
    unigram = text.unigram_loss(rows, held_out, size, special)
    print(
        f"{name}: {rows.size:,} tokens to learn from, {held_out.size:,} held out; guessing by "
        f"frequency costs {unigram:.2f} nats",
        flush=True,
    )
    judge, _ = trained(recipes.mlm, tokenizer, rows, held_out, arguments.updates, seed=JUDGE_SEED)

    for seed in arguments.seeds:
        found = []

        def judged(kind, samples, seed=seed, found=found, **setting):
            perplexity, tokens, pairs = measured(judge, tokenizer, samples)
            found.append(
                {
                    "corpus": name,
                    "seed": seed,
                    "text": kind,
                    **dict.fromkeys(("updates", "held_out_loss", "order", "temperature", "steps")),
                    **setting,
                    "pseudo_perplexity": float(f"{perplexity:.4g}"),
                    "distinct_tokens": round(tokens, 4),
                    "distinct_pairs": round(pairs, 4),
                    "sample": tokenizer.decode(samples[0].tolist()),
                }
            )

        random = np.random.default_rng(seed)
        judged("held out", some(held_out, special, arguments.rows, random))
        judged("by frequency", by_frequency(rows, special, size, arguments.rows, random))
        empty = np.full((arguments.rows, SHAPE["length"]), tokenizer.token_to_id(text.MASK))
        for updates in (arguments.updates // 4, arguments.updates):
            model, told = trained(
                recipes.diffusion, tokenizer, rows, held_out, updates, seed=seed, dropout=0.0
            )
            for order, temperature, steps in settings(updates == arguments.updates):
                samples = model.generate(
                    empty.astype("int32"),
                    steps,
                    temperature=temperature,
                    batch_size=arguments.rows,
                    seed=seed,
                    **ORDERS[order],
                )
                setting = {"order": order, "temperature": temperature, "steps": steps}
                judged("generated", samples, **told, **setting)
        keep(arguments.output, found)


def settings(all_of_them):
    """Steps at temperature 1, temperatures at most steps; from left to right only both at most."""
    for order in ORDERS:
        for temperature in TEMPERATURES:
            for steps in STEPS:
                most = (temperature == TEMPERATURES[-1]) + (steps == STEPS[-1])
                wanted = 1 if all_of_them and order != "left to right" else 2
                if most >= wanted:
                    yield order, temperature, steps


def keep(path, found):
    """Writes what was found, and leaves the rows of other corpora and seeds."""

    def place_of(row):
        return row["corpus"], row["seed"]

    ours = {place_of(row) for row in found}
    others = [row for row in read(path) if place_of(row) not in ours] if path.exists() else []
    path.parent.mkdir(exist_ok=True)
    write(path, sorted(others + found, key=place_of))


def trained(recipe, tokenizer, rows, held_out, updates, **changes):
    """A model, and how often it was updated (whole epochs) and its held-out loss."""
    began = time.process_time()
    batches = training.ShuffledRows(
        {"token_ids": rows}, SHAPE["batch_size"], changes.get("seed", 0)
    )
    epochs = math.ceil(updates / len(batches))
    recipe = recipe(**SHAPE, **SMALL, **changes, epochs=epochs)
    model = recipe.build_model(tokenizer, epochs * len(batches))
    model.fit(batches, epochs=epochs, shuffle=False, verbose=0)
    loss = model.evaluate(held_out, batch_size=recipe.batch_size, verbose=0, return_dict=True)
    told = {"updates": epochs * len(batches), "held_out_loss": round(loss["masked_loss"], 4)}
    spent = time.process_time() - began
    print(
        f"{recipe.name}, seed {recipe.seed}: {told['updates']:,} updates in {epochs} epochs, "
        f"held-out loss {told['held_out_loss']:.2f} nats, {spent:.0f} CPU seconds",
        flush=True,
    )
    return model, told


def some(rows, special, count, random):
    """Rows of words alone, as all that is generated."""
    plain = rows[~np.isin(rows, special).any(axis=1)]
    return plain[random.permutation(len(plain))[:count]]


def by_frequency(rows, special, vocabulary_size, count, random):
    """Tokens drawn one by one, each as often as in training."""
    counts = np.bincount(rows.ravel(), minlength=vocabulary_size)
    counts[special] = 0
    shape = (count, rows.shape[1])
    return random.choice(len(counts), shape, p=counts / counts.sum()).astype("int32")


def measured(judge, tokenizer, rows):
    """Pseudo-perplexity, and which share of the tokens and of their pairs are distinct."""
    losses = []
    for column in range(rows.shape[1]):
        masked = rows.copy()
        masked[:, column] = tokenizer.token_to_id(text.MASK)
        asked = np.full((len(rows), 1), column, "int32")
        logits = judge.predict_on_batch({"token_ids": masked, "mask_positions": asked})[:, 0]
        shifted = logits.astype("float64") - logits.max(axis=1, keepdims=True)
        right = np.take_along_axis(shifted, rows[:, column, np.newaxis], axis=1)[:, 0]
        losses.append(np.log(np.exp(shifted).sum(axis=1)) - right)
    pairs = np.stack([rows[:, :-1], rows[:, 1:]], axis=-1).reshape(-1, 2)
    distinct = (len(np.unique(each, axis=0)) / len(each) for each in (rows.reshape(-1), pairs))
    return float(np.exp(np.mean(losses))), *distinct


if __name__ == "__main__":
    main()
