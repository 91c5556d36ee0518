"""Clicks and DNA: what the layer learns where tokens are not words, and how to ask for it.

    python benchmarks/not_text.py --runs runs

Both data sets are generated, so that the best possible answer is known. *Clicks*: each user
follows 3 of 12 series of 10 items, in turns drawn by chance. A small model learns from random
masks, and forecasts the last click of 1,000 other users (Sun et al. 2019). *DNA*: a Markov chain
over A, C, G and T, cut into overlapping 3-mers. They are masked one by one, or three of them
together (Ji et al. 2021), and both models are judged by both masks. Half a CPU minute a run;
finished runs are not repeated. Writes `benchmarks/results/not_text.csv`.
"""

import argparse
import itertools
import os
import pathlib
import statistics

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from measure import place, read, table, write

from keras_dynmask import DynamicMasking, MaskedLanguageModel

RESULTS = pathlib.Path(__file__).resolve().parent / "results"
PADDING, MASK, FIRST = range(3)  # ids below FIRST are special

SERIES, EPISODES, FOLLOWED = 12, 10, 3
ITEMS = SERIES * EPISODES
CLICKS = 24  # of each user
STRAY = 0.1  # the share of clicks that nothing foretells
POPULARITY = np.arange(1, SERIES + 1) ** -0.7
POPULARITY /= POPULARITY.sum()

LETTERS, ORDER, K = 4, 3, 3
TOKENS = 15 * K  # of each row: an odd number of units
# How often each letter follows each three others.
FOLLOWS = np.random.default_rng(0).dirichlet([0.5] * LETTERS, LETTERS**ORDER)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=pathlib.Path, required=True, help="where runs are kept")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each arm (%(default)s)")
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed, (name, arm) in itertools.product(range(arguments.seeds), ARMS.items()):
        path = arguments.runs / f"{name}-{seed}.csv"
        if not path.exists():
            measured = [{"arm": name, "seed": seed, **answer} for answer in arm(seed)]
            write(path, measured)
        rows += read(path)
        print(f"{name}, seed {seed}", flush=True)
    write(RESULTS / "not_text.csv", rows)
    print(f"\n{place()}\n")
    print(table(summary(rows)))


def summary(rows):
    kinds = ("arm", "answers", "judged by", "measure")
    values = {}
    for row in rows:
        values.setdefault(tuple(row[kind] for kind in kinds), []).append(row["value"])
    return [
        {**dict(zip(kinds, key, strict=True)), "mean": statistics.mean(found), "seeds": found}
        for key, found in values.items()
    ]


def learn(encoder_of, masking, features, batch_size, epochs, learning_rate=3e-3):
    """A small model that has learnt from rows."""
    keras.utils.set_random_seed(masking.seed)
    model = MaskedLanguageModel(encoder_of(masking.vocabulary_size), masking)
    steps = epochs * len(features["token_ids"]) // batch_size
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=learning_rate, warmup_steps=steps // 10
    )
    model.compile(keras.optimizers.AdamW(rate, weight_decay=0.01))
    model.fit(features, batch_size=batch_size, epochs=epochs, verbose=0)
    return model


# Clicks.


def click_streams(users, seed):
    """Ids `[users, CLICKS]`. A user goes on with one of the followed series, or strays."""
    random = np.random.default_rng(seed)
    series = np.array([_distinct_series(random) for _ in range(users)])  # [users, FOLLOWED]
    upcoming = random.integers(EPISODES, size=series.shape)
    everyone = np.arange(users)
    streams = np.empty((users, CLICKS), "int32")
    for click in range(CLICKS):
        turn = random.integers(FOLLOWED, size=users)
        strays = random.choice(SERIES, users, p=POPULARITY), random.integers(EPISODES, size=users)
        follows = series[everyone, turn], upcoming[everyone, turn]
        astray = random.random(users) < STRAY
        chosen, episode = np.where(astray, strays, follows)
        streams[:, click] = chosen * EPISODES + episode
        upcoming[everyone, turn] = (upcoming[everyone, turn] + ~astray) % EPISODES
    return streams + FIRST


def _distinct_series(random):
    while True:
        drawn = random.choice(SERIES, FOLLOWED, p=POPULARITY)
        if len(set(drawn)) == FOLLOWED:
            return drawn


def best_forecast(clicks):
    """The probability of each item to come next, for one who knows how users behave.

    By Bayes' rule: for each series, how much likelier its clicks are if it is followed and
    such an episode comes next than if all of them are strays; then over all sets of series.
    """
    everyone = np.arange(len(clicks))
    stray, follow = STRAY * POPULARITY / EPISODES, (1 - STRAY) / FOLLOWED
    likelier = np.full((len(clicks), SERIES, EPISODES), 1 / EPISODES)
    for item in clicks.T - FIRST:
        series, episode = divmod(item, EPISODES)
        followed = likelier[everyone, series, episode] * follow / stray[series]
        likelier[everyone, series, (episode + 1) % EPISODES] += followed
    sets = np.array(list(itertools.combinations(range(SERIES), FOLLOWED)))
    odds = likelier.sum(axis=2) * POPULARITY
    of_sets = odds[:, sets].prod(axis=2)  # [users, sets]
    of_sets /= of_sets.sum(axis=1, keepdims=True)
    is_followed = of_sets @ (sets[:, :, None] == np.arange(SERIES)).any(axis=1)
    upcoming = likelier / likelier.sum(axis=2, keepdims=True)
    forecast = is_followed[:, :, None] * upcoming * follow + stray[None, :, None]
    return forecast.reshape(len(clicks), ITEMS)


def by_popularity(streams):
    return np.bincount(streams.ravel() - FIRST, minlength=ITEMS) / streams.size


def by_last_click(streams, clicks):
    """How often each item came right after the last one; popularity decides between equals."""
    pairs = np.zeros((ITEMS, ITEMS))
    np.add.at(pairs, (streams[:, :-1].ravel() - FIRST, streams[:, 1:].ravel() - FIRST), 1)
    return pairs[clicks[:, -1] - FIRST] + by_popularity(streams)


def ranked(scores, items):
    """Hit rates and NDCG of scores `[users, ITEMS]`, for the items that really came."""
    of_item = np.take_along_axis(scores, items[:, None] - FIRST, axis=1)
    equals = (scores == of_item).sum(axis=1)
    # Chance orders equals: the best forecast often has three items of one probability.
    rank = (scores > of_item).sum(axis=1) + np.random.default_rng(0).integers(equals) + 1
    return {
        "hit rate at 1": np.mean(rank <= 1),
        "hit rate at 10": np.mean(rank <= 10),
        "NDCG at 10": np.mean(np.where(rank <= 10, 1 / np.log2(rank + 1), 0)),
    }


def only_last(streams):
    """Features of which nothing but the last click may be selected."""
    selectable = np.zeros(streams.shape, "bool")
    selectable[:, -1] = True
    return {"token_ids": streams, "selectable": selectable}


def masking_of(vocabulary_size, rate, seed, room=None):
    """All that is selected is hidden: a kept k-mer would tell what its neighbours hide."""
    return DynamicMasking(
        vocabulary_size,
        rate,
        MASK,
        room,
        unselectable_token_ids=(PADDING, MASK),
        mask_token_rate=1.0,
        random_token_rate=0.0,
        at_least_one=True,  # the last click, where nothing else is selectable
        seed=seed,
    )


def named(model, features):
    """What is hidden of held-out rows, bool `[rows, length]`, and the scores of all ids."""
    asked = np.asarray(model.masking.mask_fixed(features)["token_ids"])
    return asked == MASK, model.predict(asked, batch_size=500, verbose=0)


def accuracy(model, features):
    hidden, scores = named(model, features)
    return (scores.argmax(axis=2) == features["token_ids"])[hidden].mean()


def recent(size):
    """Clicks of all places count together, each as much as its distance says."""
    token_ids = keras.Input((None,), dtype="int32")
    states = keras.layers.Embedding(size, 128)(token_ids)
    states = keras.layers.DepthwiseConv1D(2 * CLICKS - 1, padding="same")(states)
    return keras.Model(token_ids, states)


def clicks(seed, epochs=16):
    streams, new = click_streams(3200, [seed, 0]), click_streams(1000, [seed, 1])
    masking = masking_of(FIRST + ITEMS, 0.2, seed)  # BERT4Rec's rate for long histories
    model = learn(recent, masking, {"token_ids": streams}, 64, epochs, 1e-2)
    _, scores = named(model, only_last(new))
    answers = {
        "the model": scores[:, -1, FIRST:],
        "popularity": np.tile(by_popularity(streams), (len(new), 1)),
        "the click before": by_last_click(streams, new[:, :-1]),
        "best possible": best_forecast(new[:, :-1]),
    }
    for name, scores in answers.items():
        for measure, value in ranked(scores, new[:, -1]).items():
            yield _answer(name, "the last click", measure, value)
    at_random = accuracy(model, {"token_ids": new})
    yield _answer("the model", "random clicks", "accuracy", at_random)


def _answer(name, judge, measure, value):
    value = round(float(value), 4)
    return {"answers": name, "judged by": judge, "measure": measure, "value": value}


# DNA.


def sequences(rows, length, seed):
    """Letters 0 to 3, `[rows, length]`: each is drawn by the three before it."""
    random = np.random.default_rng(seed)
    letters = random.integers(LETTERS, size=(rows, 50 + length), dtype="int32")
    for at in range(ORDER, letters.shape[1]):
        chances = FOLLOWS[_number(letters[:, at - ORDER : at])].cumsum(axis=1)
        letters[:, at] = (random.random((rows, 1)) > chances[:, :-1]).sum(axis=1)
    return letters[:, 50:]  # by then the chain has forgotten how it began


def _number(letters):
    """The last axis as digits of one number."""
    return letters @ LETTERS ** np.arange(letters.shape[-1])[::-1]


def k_mers(letters, k=K):
    """Token ids: each k letters in a row, so that neighbours share k - 1 of them."""
    windows = np.lib.stride_tricks.sliding_window_view(letters, k, axis=1)
    return (FIRST + _number(windows)).astype("int32")


def together(token_ids, k=K):
    """Features of which k tokens are one unit: k overlapping k-mers share one letter."""
    begins = np.arange(token_ids.shape[1]) % k == 0
    return {"token_ids": token_ids, "begins": np.tile(begins, (len(token_ids), 1))}


def apart(features):
    """The same, where only every other unit may be selected: what lies beside it is shown."""
    units = np.arange(TOKENS) // K
    return {**features, "selectable": np.tile(units % 2 == 1, (len(features["token_ids"]), 1))}


def best_guess(letters, rows, places):
    """The likeliest letter at each place of a row, if all others are known."""
    around = places[:, None] + np.arange(-ORDER, ORDER + 1)
    filled = np.repeat(letters[rows[:, None], around][:, None], LETTERS, axis=1)
    filled[:, :, ORDER] = np.arange(LETTERS)  # [places, candidates, 2 * ORDER + 1]
    chances = np.ones(filled.shape[:2])
    for at in range(ORDER, 2 * ORDER + 1):
        chances *= FOLLOWS[_number(filled[:, :, at - ORDER : at]), filled[:, :, at]]
    return chances.argmax(axis=1)


def best_possible(letters, hidden):
    """The share of hidden k-mers that the best guess gets right, where k together are hidden:
    the last of them begins with the one letter that nobody shows."""
    rows, places = np.nonzero(hidden & (np.arange(TOKENS) % K == K - 1))
    return (best_guess(letters, rows, places) == letters[rows, places]).mean()


def convolution(size):
    """Any Keras model from ids to states is an encoder: here all that matters is near."""
    token_ids = keras.Input((None,), dtype="int32")
    states = keras.layers.Embedding(size, 32)(token_ids)
    states = keras.layers.Conv1D(128, 2 * K + 3, padding="same", activation="gelu")(states)
    return keras.Model(token_ids, keras.layers.Dense(64, activation="gelu")(states))


def dna(seed, unit, epochs=5):
    learnt, new = (sequences(rows, TOKENS - 1 + K, [seed, rows]) for rows in (3200, 1000))
    room = round(0.15 * TOKENS) + K + 1  # for one unit more than the count
    masking = masking_of(FIRST + LETTERS**K, 0.15, seed, room)
    model = learn(convolution, masking, together(k_mers(learnt), unit), 32, epochs)
    asked = {"one by one": {"token_ids": k_mers(new)}, "k together": together(k_mers(new))}
    for judge, features in asked.items():
        yield _answer("the model", judge, "accuracy", accuracy(model, apart(features)))
    hidden, _ = named(model, apart(asked["k together"]))
    yield _answer("best possible", "k together", "accuracy", best_possible(new, hidden))


ARMS = {
    "clicks": clicks,
    "DNA, one by one": lambda seed: dna(seed, unit=1),
    "DNA, k together": lambda seed: dna(seed, unit=K),
}


if __name__ == "__main__":
    main()
