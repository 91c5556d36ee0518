"""How good generated text is, against steps, temperature and order, beside what it repeats.

    python benchmarks/generation.py --corpus tinyshakespeare.txt

Trains a model of masked diffusion for each seed and one judge, a model of 15 % masks with
weights of its own (a CPU minute each), and writes `benchmarks/results/generation.csv`.
The judge gives each text a pseudo-perplexity: each token's probability where it alone is masked.
Repetition has a low one, so the share of distinct tokens stands beside it, and both stand
beside those of real text and of tokens drawn by frequency.
"""

import argparse
import csv
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from measure import place

from keras_dynmask import recipes, text, training

RESULTS = pathlib.Path(__file__).resolve().parent / "results" / "generation.csv"
COLUMNS = ["text", "seed", "order", "temperature", "steps"]
FOUND = ["pseudo_perplexity", "distinct_tokens", "distinct_pairs"]
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
    parser.add_argument("--corpus", required=True, help="a text file")
    parser.add_argument("--seeds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="of each model (%(default)s)")
    parser.add_argument("--rows", type=int, default=64, help="of each setting (%(default)s)")
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    print(place())

    documents, held_out = text.split_documents(text.read_corpus([arguments.corpus]), 0.125)
    tokenizer = text.train_tokenizer(documents, SHAPE["vocabulary_size"])
    rows, held_out = (text.pack(tokenizer, each, SHAPE["length"]) for each in (documents, held_out))
    print(f"{rows.size:,} tokens to learn from, {held_out.size:,} held out", flush=True)
    common = {**SHAPE, **SMALL, "epochs": arguments.epochs}
    judge = trained(recipes.mlm(**common, seed=JUDGE_SEED), tokenizer, rows, held_out)

    with open(arguments.output, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS + FOUND)

        def write(kind, seed, order, temperature, steps, samples):
            found = [f"{number:.4g}" for number in judged(judge, tokenizer, samples)]
            writer.writerow([kind, seed, order, temperature, steps, *found])
            file.flush()

        for seed in range(arguments.seeds):
            random = np.random.default_rng(seed)
            write("held out", seed, "", "", "", some(held_out, tokenizer, arguments.rows, random))
            drawn = by_frequency(rows, tokenizer, arguments.rows, random)
            write("by frequency", seed, "", "", "", drawn)
            recipe = recipes.diffusion(**common, seed=seed, dropout=0.0)
            model = trained(recipe, tokenizer, rows, held_out)
            empty = np.full((arguments.rows, SHAPE["length"]), tokenizer.token_to_id(text.MASK))
            for order, temperature, steps in settings():
                samples = model.generate(
                    empty.astype("int32"),
                    steps,
                    temperature=temperature,
                    batch_size=arguments.rows,
                    seed=seed,
                    **ORDERS[order],
                )
                write("generated", seed, order, temperature, steps, samples)


def settings():
    """Steps at temperature 1, temperatures at most steps, each in all orders."""
    for order in ORDERS:
        for temperature in TEMPERATURES:
            for steps in STEPS if temperature == 1 else STEPS[-1:]:
                yield order, temperature, steps


def trained(recipe, tokenizer, rows, held_out):
    began = time.process_time()
    batches = training.ShuffledRows({"token_ids": rows}, recipe.batch_size, recipe.seed)
    model = recipe.build_model(tokenizer, recipe.epochs * len(batches))
    model.fit(batches, epochs=recipe.epochs, shuffle=False, verbose=0)
    loss = model.evaluate(held_out, batch_size=recipe.batch_size, verbose=0, return_dict=True)
    spent = time.process_time() - began
    print(
        f"{recipe.name}, seed {recipe.seed}: held-out loss {loss['masked_loss']:.2f} nats, "
        f"{spent:.0f} CPU seconds",
        flush=True,
    )
    return model


def some(rows, tokenizer, count, random):
    """Rows of words alone, as all that is generated."""
    plain = rows[~np.isin(rows, text.special_ids(tokenizer)).any(axis=1)]
    return plain[random.permutation(len(plain))[:count]]


def by_frequency(rows, tokenizer, count, random):
    """Tokens drawn one by one, each as often as in training."""
    counts = np.bincount(rows.ravel(), minlength=tokenizer.get_vocab_size())
    counts[text.special_ids(tokenizer)] = 0
    shape = (count, rows.shape[1])
    return random.choice(len(counts), shape, p=counts / counts.sum()).astype("int32")


def judged(judge, tokenizer, rows):
    """Pseudo-perplexity, and which share of the tokens and of their pairs are distinct."""
    losses = []
    for column in range(rows.shape[1]):
        masked = rows.copy()
        masked[:, column] = tokenizer.token_to_id(text.MASK)
        place = np.full((len(rows), 1), column, "int32")
        logits = judge.predict_on_batch({"token_ids": masked, "mask_positions": place})[:, 0]
        shifted = logits.astype("float64") - logits.max(axis=1, keepdims=True)
        right = np.take_along_axis(shifted, rows[:, column, np.newaxis], axis=1)[:, 0]
        losses.append(np.log(np.exp(shifted).sum(axis=1)) - right)
    pairs = np.stack([rows[:, :-1], rows[:, 1:]], axis=-1).reshape(-1, 2)
    distinct = (len(np.unique(each, axis=0)) / len(each) for each in (rows.reshape(-1), pairs))
    return float(np.exp(np.mean(losses))), *distinct


if __name__ == "__main__":
    main()
