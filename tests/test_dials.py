"""The laws of the dials: how many, which, and how shown. And the mutants that break them.

As in `test_laws`: a law draws masks at fixed seeds and returns a p-value, or whether it
held; a new stream of noise fails one with probability 1e-6; and each rejects the package
broken on purpose. "Sees 3 %" says what bias a law detects with probability .99.
"""

import functools
import importlib.util
import itertools
import os
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
import tensorflow as tf
from keras import ops
from keras.optimizers.schedules import PiecewiseConstantDecay
from scipy import stats
from test_laws import (
    ALPHA,
    CLS,
    DIALS,
    IDS,
    MASK,
    PAD,
    POOL,
    PROTECTED,
    SELECTABLE,
    SEP,
    SMALL,
    SPANS,
    SPANS_OF_WORDS,
    VOCABULARY,
    WORDS,
    assert_equal,
    eager,
    every_dial,
    exact_or_not,
    graph,
    layer,
    numpy,
    p_of_mean,
    p_of_uniform_counts,
    rank_in_pool,
    tf_data,
    two_sided,
    units_of,
    xla,
)

from keras_dynmask import DynamicMasking, masking, noise, rates
from keras_dynmask.replacements import RandomTokens, RandomWords
from keras_dynmask.selection import selected_count

same = np.testing.assert_array_equal

UNIT_LENGTHS = np.array([1, 2, 3, 4] * 6)  # of the words in a row of 60 pieces
UNIT_BEGINS = np.cumsum(UNIT_LENGTHS) - UNIT_LENGTHS
UNIT_OF = np.repeat(np.arange(24), UNIT_LENGTHS)
FIRST_PIECES = np.setdiff1d(POOL, WORDS["continuation_token_ids"])
OTHER_PIECES = np.intersect1d(POOL, WORDS["continuation_token_ids"])
SEGMENTS = np.repeat([7, 4, 9, 4], [10, 20, 20, 10])  # whole words, whatever the document
DOCUMENTS = np.repeat(np.arange(4), [10, 20, 20, 10])
DOCUMENT_BEGINS = [0, 10, 30, 50]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def some_words(batch, seed=0):
    """Rows of 24 words each, of 1, 2, 3, 4, 1, 2, ... pieces, and nothing else."""
    random = np.random.default_rng(seed)
    ids = random.choice(OTHER_PIECES, (batch, 60)).astype("int32")
    ids[:, UNIT_BEGINS] = random.choice(FIRST_PIECES, (batch, 24))
    return ids


def dense(outputs):
    """The weights of every position, wherever the targets hold them."""
    weights = outputs["mask_weights"]
    if "mask_positions" not in outputs:
        return weights
    everywhere = np.zeros(outputs["token_ids"].shape, "float32")
    rows, slots = np.nonzero(weights)
    everywhere[rows, outputs["mask_positions"][rows, slots]] = weights[rows, slots]
    return everywhere


def sampled(ids, steps=4, jit=False, **settings):
    """Masks of `ids`, which may be a dict, at each step: arrays `[steps * batch, length]`."""
    drawer = layer(**settings)
    features = ids if isinstance(ids, dict) else {"token_ids": ids}
    one_step = tf.function(lambda step, inputs: drawer(inputs, step=step), jit_compile=jit)
    drawn = [numpy(one_step(tf.constant(step), features)) for step in range(steps)]
    weights = np.concatenate([dense(outputs) for outputs in drawn])
    return SimpleNamespace(
        ids=np.tile(features["token_ids"], (steps, 1)),
        shown=np.concatenate([outputs["token_ids"] for outputs in drawn]),
        weights=weights,
        selected=weights > 0,
    )


def in_rows(values, ids):
    """A feature that is the same in every row."""
    return np.tile(values, (len(ids), 1))


def whole_words(selected):
    """Which of the 24 words are selected; no word may be cut."""
    some = np.logical_or.reduceat(selected, UNIT_BEGINS, axis=1)
    assert np.array_equal(some, np.logical_and.reduceat(selected, UNIT_BEGINS, axis=1))
    return some


def p_of_columns(chosen, chances):
    """Largest |z| of the columns of independent rows, each chosen with its own chance."""
    chances = np.broadcast_to(chances, chosen.shape[1])
    spread = np.sqrt(len(chosen) * chances * (1 - chances))
    return two_sided((chosen.sum(axis=0) - len(chosen) * chances) / spread, len(chances))


def p_of_lengths(words, rate):
    """Whether words of 1, 2, 3 and 4 pieces are selected at this rate."""
    columns = [words[:, length == UNIT_LENGTHS].mean(axis=1) for length in range(1, 5)]
    return min(1.0, 4 * min(p_of_mean(column, rate) for column in columns))


def worst(*p_values):
    """The smallest of some p-values, as one: Bonferroni's."""
    return min(1.0, len(p_values) * min(p_values))


# Rates that are spread over the batch


def drawn_rates(batch, steps, spread=True, rate=(0.0, 1.0)):
    """`[steps, batch]`"""

    def of_step(step):
        rows = noise.words(ops.arange(batch, dtype="int32"))
        keys = noise.row_keys(1, (step, 0), rows)
        return rates.rate_at(rate, step, keys, spread=spread)[:, 0]

    of_step = tf.function(of_step, jit_compile=True)
    return np.stack([of_step(tf.constant(step)) for step in range(steps)]).astype("float64")


def lie_one_in_each_part(batch, low=0.0, high=1.0):
    places = (drawn_rates(batch, 100, rate=(low, high)) - low) / (high - low)
    parts = np.ceil(places * batch) - 1
    return bool((np.sort(parts, axis=1) == np.arange(batch)).all())


def p_of_rates(batch=8, steps=3_000):
    """Kolmogorov-Smirnov over the steps: where in its part a rate lies, and the rate of
    each row. Sees a shift by 8 % of the range."""
    drawn = drawn_rates(batch, steps)
    offset = drawn[:, 0] * batch % 1
    assert np.allclose(drawn * batch % 1, offset[:, None], atol=1e-5)
    return worst(*(stats.kstest(column, "uniform").pvalue for column in [offset, *drawn.T]))


def p_of_rates_of_neighbours(spread=False):
    """Chi-square of the pairs of rates of neighbouring rows, in 8 x 8 cells."""
    drawn = np.floor(drawn_rates(64, 400, spread).clip(0, 1 - 1e-9) * 8).astype(int)
    return p_of_uniform_counts((drawn[:, 0::2] * 8 + drawn[:, 1::2]).ravel(), 64)


def counts_are_a_permutation():
    """64 rows of 64 tokens at rates of (0, 1), rounded up: 1, 2, ... 64 are selected."""
    ids = np.random.default_rng(0).choice(POOL, (64, 64))
    drawer = layer(mask_selection_rate=(0, 1), at_least_one=True)
    weights = np.stack([drawer(ids, step=step)["mask_weights"] for step in range(8)])
    return bool((np.sort(weights.sum(axis=2), axis=1) == np.arange(1, 65)).all())


@pytest.mark.parametrize("batch", [1, 2, 3, 100, 1024])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), slow(0.3, 0.8)])
def test_one_rate_lies_in_each_part_of_the_range(batch, low, high):
    assert lie_one_in_each_part(batch, low, high)


def test_each_row_draws_every_rate_equally_often():
    assert p_of_rates() > ALPHA


def test_the_counts_of_a_batch_are_spread():
    assert counts_are_a_permutation()


def test_rates_drawn_from_the_row_alone_are_independent():
    assert p_of_rates_of_neighbours() > ALPHA


@pytest.mark.parametrize("rate", [0.0, 0.15, 1.0])
def test_a_pair_of_equal_rates_is_one_rate(rate):
    one = numpy(layer(mask_selection_rate=rate)(IDS[:64], step=3))
    pair = numpy(layer(mask_selection_rate=(rate, rate))(IDS[:64], step=3))
    same(pair["token_ids"], one["token_ids"])


def test_with_row_ids_and_in_evaluation_a_row_draws_its_rate_whatever_the_batch():
    drawer = layer(mask_selection_rate=(0.1, 0.9))
    features = {"token_ids": IDS[:16], "row_ids": np.arange(100, 116)}
    alone = {name: value[5:6] for name, value in features.items()}
    same(drawer(alone, step=1)["mask_weights"], drawer(features, step=1)["mask_weights"][5:6])
    fixed, fixed_alone = (
        drawer.mask_fixed({"token_ids": tf.constant(ids)}) for ids in (IDS[:16], IDS[5:6])
    )
    same(fixed_alone["mask_weights"], fixed["mask_weights"][5:6])


def test_evaluation_has_a_rate_of_its_own():
    features = {"token_ids": tf.constant(IDS[:64])}
    own = layer(mask_selection_rate=(0.2, 1), evaluation_rate=0.15)
    same(own.mask_fixed(features)["token_ids"], layer().mask_fixed(features)["token_ids"])
    without = layer(mask_selection_rate=(0.2, 1))
    same(own(IDS[:64], step=2)["token_ids"], without(IDS[:64], step=2)["token_ids"])


# Counts that are uniform, and weights of one over the chance

DIFFUSION = {"mask_selection_rate": (0.0, 1.0), "inverse_rate_weights": True}


def p_of_diffusion_counts():
    """Rows of 60 tokens with a rate of their own select 1, 2, ... 60, each as often; sees
    a count drawn 35 % too rarely."""
    features = {"token_ids": IDS, "row_ids": np.arange(len(IDS))}
    counts = sampled(features, 16, **DIFFUSION).selected.sum(axis=1)
    assert counts.min() > 0
    return p_of_uniform_counts(counts - 1, 60)


def weights_are_the_number_over_the_count():
    sample = sampled(IDS, 2, **DIFFUSION)
    counts = sample.selected.sum(axis=1, keepdims=True)
    return bool(
        np.allclose(sample.weights, 60 / counts * sample.selected, rtol=1e-6)
        and np.allclose(sample.weights.sum(axis=1), 60, rtol=1e-5)
    )


def p_of_diffusion_estimates(**settings):
    """The weighted losses estimate the sum of all, for a fixed table of them; sees 2 %."""
    losses = np.random.default_rng(3).exponential(size=VOCABULARY)
    sample = sampled(IDS, 4, **DIFFUSION | settings)
    table = losses[sample.ids]
    estimates = (sample.weights * table).sum(axis=1) / table[:, SELECTABLE].sum(axis=1)
    return p_of_mean(estimates, 1)


def test_counts_of_diffusion_are_uniform():
    assert p_of_diffusion_counts() > ALPHA


def test_weights_of_diffusion_are_the_number_over_the_count():
    assert weights_are_the_number_over_the_count()


@pytest.mark.parametrize("settings", [{}, {"mask_selection_length": 20}, WORDS])
def test_diffusion_losses_are_unbiased(settings):
    assert p_of_diffusion_estimates(**settings) > ALPHA


# At least one


def selects_where_it_can(**settings):
    """No row without a target, if a unit of it fits; and rows that had some keep them."""
    held = []
    for capacity, rate in itertools.product((None, 1, 3), (0.0, 0.05)):
        dials = settings | {"mask_selection_length": capacity, "mask_selection_rate": rate}
        drawer = layer(at_least_one=True, **dials)
        units, outputs = units_of(drawer, IDS[:128], step=0)
        selected, weights = dense(outputs) > 0, dense(numpy(layer(**dials)(IDS[:128], step=0)))
        lengths = [np.bincount(row[SELECTABLE]) for row in units]
        fits = [(row[row > 0] <= (capacity or 64)).any() for row in lengths]
        cut = (selected[:, 1:] != selected[:, :-1]) & (units[:, 1:] == units[:, :-1])
        held += [(selected.any(axis=1) == fits).all(), not cut.any()]
        if settings and capacity is None:  # a count of tokens is raised, and so moves
            held += [(selected == (weights > 0))[weights.any(axis=1)].all()]
    return all(held)


def p_of_one_of_words(rate=1 / 30, exact_count=True):
    """Two of 60 pieces are asked for. A window of two has no start inside a word of three
    at one place of 60, and of four at two: then, as likely, any word. Sees 14 % at a word.
    """
    ids = np.tile(some_words(1), (8192, 1))
    sample = sampled(
        ids, 8, mask_selection_rate=rate, exact_count=exact_count, at_least_one=True, **WORDS
    )
    empty = (6 * 1 + 6 * 2) / 60 if exact_count else (1 - rate) ** 24
    return p_of_columns(whole_words(sample.selected), rate + empty / 24)


@every_dial
@exact_or_not
def test_something_is_selected_where_something_fits(dial, exact_count):
    assert selects_where_it_can(exact_count=exact_count, **dial)


@exact_or_not
def test_the_one_is_any_word_whatever_its_length(exact_count):
    assert p_of_one_of_words(exact_count=exact_count) > ALPHA


# A count for every document


def documents_of(ids):
    return {"token_ids": ids, "segment_ids": in_rows(SEGMENTS, ids)}


def per_document(selected):
    return np.add.reduceat(selected.astype(int), DOCUMENT_BEGINS, axis=1)


def add_up_to_the_rows_count(rate=0.17):
    """Each document misses rate * size by less than one token, and together they have what
    the row has without them."""
    features = documents_of(some_words(4096))
    counts = per_document(
        sampled(features, 2, mask_selection_rate=rate, count_per_document=True).selected
    )
    of_row = sampled(features, 2, mask_selection_rate=rate).selected.sum(axis=1)
    missed = np.abs(counts - rate * np.bincount(DOCUMENTS))
    return bool((counts.sum(axis=1) == of_row).all() and (missed < 1).all())


def fresh_documents(**dial):
    features = documents_of(some_words(4096))
    return sampled(features, 8, jit=True, count_per_document=True, **dial).selected


draw_documents = functools.cache(fresh_documents)


def p_of_documents(draw, **dial):
    """The mean count of each document; sees 2 % of tokens, 5 % of words."""
    counts = per_document(draw(**dial))
    sizes = np.bincount(DOCUMENTS)
    return worst(*(p_of_mean(counts[:, d] / sizes[d], 0.15) for d in range(4)))


def p_of_places_in_documents(draw, **dial):
    """Largest |z| of 60 positions, among them the first and last of a document; sees 10 %."""
    return p_of_columns(draw(**dial), 0.15)


def p_of_words_in_documents(draw):
    """Words of every length; sees 4 %."""
    return p_of_lengths(whole_words(draw(**WORDS)), 0.15)


def p_of_two_documents(draw):
    """Two documents of 20 tokens, 3 of each selected, share 9 / 20 of a place; sees 6 %."""
    selected = draw()
    shared = (selected[:, 10:30] & selected[:, 30:50]).sum(axis=1)
    return p_of_mean(shared, 9 / 20)


def no_unit_crosses_an_edge(**settings):
    """Edges that cut words: every fifth position begins a document."""
    ids = IDS[:128]
    features = {"token_ids": ids, "segment_ids": in_rows(np.arange(64) // 5, ids)}
    units, outputs = units_of(layer(mean_span_length=5.0, **settings), features, step=0)
    selected = outputs["mask_weights"] > 0
    cut = (selected[:, 1:] != selected[:, :-1]) & (units[:, 1:] == units[:, :-1])
    return bool((units[:, 5::5] != units[:, 4:-1:5]).all() and not cut.any())


def every_document_has_one(capacity=None, **dial):
    features = documents_of(some_words(256))
    settings = {"count_per_document": True, "at_least_one": True, "mask_selection_length": capacity}
    drawers = (layer(mask_selection_rate=rate, **settings | dial) for rate in (0.0, 0.02, 0.5))
    drawn = [per_document(dense(numpy(drawer(features, step=0))) > 0) for drawer in drawers]
    return bool((np.array(drawn) > 0).all())


def test_the_counts_of_documents_add_up():
    assert add_up_to_the_rows_count()


def test_documents_share_what_there_is_no_room_for():
    """60 tokens at half the rate are 30: of 20 that fit, each document has its third."""
    settings = {"mask_selection_rate": 0.5, "mask_selection_length": 20}
    diffusion = {"count_per_document": True, "inverse_rate_weights": True}
    sample = sampled(documents_of(some_words(512)), 2, **settings | diffusion)
    missed = np.abs(per_document(sample.selected) - np.bincount(DOCUMENTS) / 3)
    assert (sample.selected.sum(axis=1) == 20).all() and (missed < 1).all()
    np.testing.assert_allclose(sample.weights.sum(axis=1), 60, rtol=1e-5)


@pytest.mark.parametrize("law", [p_of_documents, p_of_places_in_documents])
@pytest.mark.parametrize("dial", [{}, WORDS, slow(SPANS), slow(SPANS_OF_WORDS)], ids=DIALS)
def test_every_document_has_its_share_and_every_place_in_it(law, dial):
    assert law(draw_documents, **dial) > ALPHA


@pytest.mark.slow
def test_weighted_documents_have_their_share():
    weights = {"selection_weights": np.random.default_rng(0).random(VOCABULARY)}
    assert p_of_documents(fresh_documents, **WORDS, **weights) > ALPHA


def test_words_in_documents_are_selected_equally_often():
    assert p_of_words_in_documents(draw_documents) > ALPHA


def test_documents_of_a_row_are_independent():
    assert p_of_two_documents(draw_documents) > ALPHA


@pytest.mark.parametrize("settings", [{}, WORDS, {"count_per_document": True}])
def test_no_unit_crosses_the_edge_of_a_document(settings):
    assert no_unit_crosses_an_edge(**settings)


@pytest.mark.parametrize(("dial", "capacity"), [({}, 4), (WORDS, 16), (WORDS, None)])
def test_every_document_has_at_least_one(dial, capacity):
    assert every_document_has_one(capacity, **dial)


def test_as_many_documents_have_one_as_there_is_room_for():
    settings = {"count_per_document": True, "at_least_one": True, "mask_selection_length": 2}
    features = documents_of(some_words(512))
    selected = sampled(features, 1, mask_selection_rate=0.5, **settings).selected
    assert (selected.sum(axis=1) == 2).all()
    assert (np.count_nonzero(per_document(selected), axis=1) == 2).all()


# Weights

SEVEN_WEIGHTS = np.array([1, 0, 2, 3, 4.5, 6, 0.5])  # one of nothing: six are drawn from
SEVEN_IDS = np.tile(np.array([11, 12, 13, 14, 15, 16, 17]), (32_768, 1))


def chances_of_subsets(count):
    """Of each subset, the sum over the orders in which it may be drawn."""
    chances = {}
    for order in itertools.permutations(np.flatnonzero(SEVEN_WEIGHTS), count):
        chance, left = 1.0, SEVEN_WEIGHTS.sum()
        for drawn in order:
            chance *= SEVEN_WEIGHTS[drawn] / left
            left -= SEVEN_WEIGHTS[drawn]
        chances[frozenset(order)] = chances.get(frozenset(order), 0) + chance
    return chances


def p_of_subsets(count):
    """Chi-square of all subsets of so many; sees weights to the power of 1.05."""
    features = {"token_ids": SEVEN_IDS, "selection_weights": in_rows(SEVEN_WEIGHTS, SEVEN_IDS)}
    drawn = sampled(features, 4, mask_selection_rate=count / 6).selected
    chances = chances_of_subsets(count)
    codes = np.bincount(drawn @ (1 << np.arange(7)), minlength=128)
    found = [codes[sum(1 << place for place in subset)] for subset in chances]
    if sum(found) < len(drawn):
        return 0.0  # too many, or what weighs nothing
    return stats.chisquare(found, len(drawn) * np.array([*chances.values()])).pvalue


def p_of_independent_weights(rate=0.3):
    features = {"token_ids": SEVEN_IDS, "selection_weights": in_rows(SEVEN_WEIGHTS, SEVEN_IDS)}
    drawn = sampled(features, 4, mask_selection_rate=rate, exact_count=False).selected
    weighed = SEVEN_WEIGHTS > 0
    if drawn[:, ~weighed].any():
        return 0.0
    return p_of_columns(drawn[:, weighed], 1 - (1 - rate) ** SEVEN_WEIGHTS[weighed])


def word_weights(ids):
    """Long words weigh more, and so come first."""
    return {"token_ids": ids, "selection_weights": in_rows(UNIT_LENGTHS[UNIT_OF] ** 2, ids)}


def p_of_weighted_counts():
    """The mean count of long weighted words; sees 1 %."""
    selected = sampled(word_weights(some_words(4096)), 8, **WORDS).selected
    whole_words(selected)
    return p_of_mean(selected.sum(axis=1), 9)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_weighted_draws_are_successive(count):
    assert p_of_subsets(count) > ALPHA


@pytest.mark.parametrize("rate", [0.3, slow(0.9)])
def test_independent_draws_are_raised_by_their_weight(rate):
    assert p_of_independent_weights(rate) > ALPHA


def test_the_mean_count_of_weighted_words_is_exact():
    assert p_of_weighted_counts() > ALPHA


@every_dial
@exact_or_not
def test_a_weight_of_an_id_is_that_of_its_positions(dial, exact_count):
    table = np.random.default_rng(1).random(VOCABULARY).astype("float32")
    ids, dials = IDS[:64], dial | {"exact_count": exact_count}
    by_id = layer(selection_weights=table, **dials)(ids, step=1)
    by_position = {"token_ids": ids, "selection_weights": table[ids]}
    same(by_id["mask_weights"], layer(**dials)(by_position, step=1)["mask_weights"])
    doubled = {"token_ids": ids, "selection_weights": np.full(ids.shape, 2.0)}
    both = layer(selection_weights=table / 2, **dials)(doubled, step=1)
    same(both["mask_weights"], by_id["mask_weights"])


@every_dial
@exact_or_not
def test_rates_of_zero_and_one_select_nothing_and_all_that_weighs(dial, exact_count):
    weights = np.where(IDS[:64] % 3 > 0, 1e-6, 0)
    features = {"token_ids": IDS[:64], "selection_weights": weights}
    for rate in (0.0, 1.0):
        drawer = layer(mask_selection_rate=rate, exact_count=exact_count, **dial)
        units, outputs = units_of(drawer, features, step=0)
        weighs = [np.unique(row[weight > 0]) for row, weight in zip(units, weights, strict=True)]
        expected = [np.isin(row, own) for row, own in zip(units, weighs, strict=True)]
        expected &= ~np.isin(IDS[:64], PROTECTED)
        same(outputs["mask_weights"], rate * expected)


@pytest.mark.parametrize("scale", [0.25, 3.0, 1e6])
def test_only_the_ratio_of_weights_counts(scale):
    weights = np.random.default_rng(2).random((512, 64))
    one, scaled = (
        layer()({"token_ids": IDS[:512], "selection_weights": weights * by}, step=1)["mask_weights"]
        for by in (1, scale)
    )
    same(scaled, one)


# What random tokens are

ALL_SWAPPED = {"mask_selection_rate": 0.5, "mask_token_rate": 0.0, "random_token_rate": 1.0}
FREQUENCIES = np.random.default_rng(4).uniform(0.2, 1, VOCABULARY)  # of protected ids, too
FREQUENCIES[[8, 60, 98]] = 0


def chances_of_tokens(frequencies, excludes):
    """`[original, shown]`, by their rank in the pool."""
    weights = np.ones(len(POOL)) if frequencies is None else frequencies[POOL]
    chances = np.tile(weights, (len(POOL), 1))
    if excludes:
        np.fill_diagonal(chances, 0)
    return chances / chances.sum(axis=1, keepdims=True)


def p_of_random_tokens(frequencies=FREQUENCIES, excludes=True):
    """Chi-square of every pair of original and shown, and largest |z| of the shown; sees an
    id that comes 10 % too often. What must never come makes it zero.
    """
    settings = {"random_token_weights": frequencies, "random_excludes_original": excludes}
    sample = sampled(IDS, 4, **ALL_SWAPPED | settings)
    shown, original = sample.shown[sample.selected], sample.ids[sample.selected]
    if not np.isin(shown, POOL).all():
        return 0.0
    table = np.zeros((len(POOL), len(POOL)))
    np.add.at(table, (rank_in_pool(original), rank_in_pool(shown)), 1)
    chances, totals = chances_of_tokens(frequencies, excludes), table.sum(axis=1, keepdims=True)
    possible = chances > 0
    if table[~possible].any():
        return 0.0
    squares = (table - totals * chances)[possible] ** 2 / (totals * chances)[possible]
    drawn = possible.any(axis=0)
    spread = np.sqrt((totals * chances * (1 - chances)).sum(axis=0))[drawn]
    z = (table - totals * chances).sum(axis=0)[drawn] / spread
    of_pairs = stats.chi2.sf(squares.sum(), possible.sum() - len(POOL))
    return worst(float(of_pairs), two_sided(z, len(z)))


@pytest.mark.parametrize("frequencies", [None, FREQUENCIES], ids=["uniform", "by frequency"])
@pytest.mark.parametrize("excludes", [True, False], ids=["another", "any"])
def test_random_tokens_come_by_their_share_and_never_for_themselves(frequencies, excludes):
    assert p_of_random_tokens(frequencies, excludes) > ALPHA


def test_what_weighs_next_to_nothing_is_still_drawn_and_nothing_is_not():
    weights = np.zeros(VOCABULARY)
    weights[[7, 8, 9]] = 1, 1e-30, 1e-30
    places = oracle.places_of_ids(layer(random_token_weights=weights).get_config())
    assert (places[7], places[8], places[9], sum(places)) == (2**23 - 100, 1, 1, 2**23 - 98)
    sample = sampled(IDS, 1, **ALL_SWAPPED, random_token_weights=weights)
    assert np.isin(sample.shown[sample.selected], [7, 8, 9]).all()


# Units that are shown as one

KNOWN = {
    1: [(piece,) for piece in FIRST_PIECES[:8]],
    2: [(first, 60 + first % 7) for first in FIRST_PIECES[5:14]],
    3: [(first, 70, 80 + first % 3) for first in FIRST_PIECES[10:17]],
}
WORDS_FOR_WORDS = {
    **WORDS,
    "corrupt_whole_units": True,
    "random_words": [word for words in KNOWN.values() for word in words],
}


def known_words(batch):
    """Rows as of `some_words`, their words of up to three pieces out of `KNOWN`."""
    ids = some_words(batch)
    random = np.random.default_rng(1)
    for begin, length in zip(UNIT_BEGINS, UNIT_LENGTHS, strict=True):
        if length in KNOWN:
            ids[:, begin : begin + length] = random.choice(KNOWN[length], batch)
    return ids


def rank_in_known(words, length):
    """The place of each of `words` `[..., length]` among those known, or -1."""
    codes = np.array(KNOWN[length]) @ 100 ** np.arange(length)
    order = np.argsort(codes)
    found = words @ 100 ** np.arange(length)
    rank = np.searchsorted(codes[order], found).clip(0, len(codes) - 1)
    return np.where(codes[order][rank] == found, rank, -1)


def words_of_length(sample, length):
    """The selected words of a length, original and as shown: `[words, length]` each."""
    places = UNIT_BEGINS[length == UNIT_LENGTHS, None] + np.arange(length)
    selected = sample.selected[:, places[:, 0]]
    return sample.ids[:, places][selected], sample.shown[:, places][selected]


def p_of_random_words(excludes=True):
    """Words are shown as others of as many pieces, any as often: the distance to the
    original, and the word, are uniform. Sees 20 %. Those of four pieces, of which none is
    known, are shown as random tokens."""
    settings = ALL_SWAPPED | WORDS_FOR_WORDS | {"random_excludes_original": excludes}
    sample = sampled(known_words(2048), 4, **settings)
    p_values = []
    for length, known in KNOWN.items():
        ranks = [rank_in_known(words, length) for words in words_of_length(sample, length)]
        distance = (ranks[1] - ranks[0]) % len(known)
        if min(ranks[1]) < 0 or (excludes and min(distance) == 0):
            return 0.0
        p_values.append(p_of_uniform_counts(ranks[1], len(known)))
        p_values.append(p_of_uniform_counts(distance - excludes, len(known) - excludes))
    original, shown = words_of_length(sample, 4)
    if not np.isin(shown, POOL).all() or (excludes and (shown == original).any()):
        return 0.0
    return worst(*p_values, p_of_uniform_counts(rank_in_pool(shown).ravel(), len(POOL)))


def p_of_roles_of_words(**settings):
    """One role for a word, shares of .8, .1 and .1 for words of every length; sees
    .82 / .09 / .09. A word that is shown in two ways makes it zero."""
    dials = WORDS | {"corrupt_whole_units": True, "random_excludes_original": True} | settings
    sample = sampled(known_words(2048), 4, mask_selection_rate=0.5, **dials)
    p_values = []
    for length in range(1, 5):
        original, shown = words_of_length(sample, length)
        hidden, kept = shown == MASK, (shown == original).all(axis=1)
        swapped = ~hidden.any(axis=1) & ~kept
        counts = [np.count_nonzero(role) for role in (hidden.all(axis=1), swapped, kept)]
        if sum(counts) < len(shown):
            return 0.0
        p_values.append(stats.chisquare(counts, len(shown) * np.array([0.8, 0.1, 0.1])).pvalue)
    return worst(*p_values)


@pytest.mark.parametrize("excludes", [True, False], ids=["another", "any"])
def test_random_words_are_any_of_as_many_pieces(excludes):
    assert p_of_random_words(excludes) > ALPHA


def test_a_part_of_a_word_is_not_shown_as_a_part_of_another():
    ids = known_words(256)
    last_pieces = in_rows(np.roll(UNIT_OF, -1) != UNIT_OF, ids)
    features = {"token_ids": ids, "selectable": ~last_pieces}
    settings = ALL_SWAPPED | WORDS_FOR_WORDS | {"mask_selection_rate": 1.0}
    _, shown = words_of_length(sampled(features, 1, **settings), 2)
    known = set(map(tuple, KNOWN[2]))
    first_pieces = {first for first, _ in known}
    assert np.isin(shown[:, 0], POOL).all() and not set(shown[:, 0]) <= first_pieces


@pytest.mark.parametrize("settings", [{}, slow(WORDS_FOR_WORDS)], ids=["tokens", "words"])
def test_a_word_is_hidden_swapped_or_kept_as_one(settings):
    assert p_of_roles_of_words(**settings) > ALPHA


# Targets that are too small


def stays_within(capacity, **settings):
    """At most so many; whole units; none that is longer."""
    drawer = layer(mask_selection_rate=0.5, mask_selection_length=capacity, **settings)
    units, outputs = units_of(drawer, IDS[:128], step=0)
    selected = dense(outputs) > 0
    cut = (selected[:, 1:] != selected[:, :-1]) & (units[:, 1:] == units[:, :-1])
    within = selected.sum(axis=1) <= capacity
    return bool(within.all() and selected.any() and not cut.any())


def p_of_overflow(**settings):
    """Twenty units of three pieces; ten are selected, and one of those is dropped: any.
    Sees 7 % at a unit."""
    ids = {"token_ids": some_words(2048), "begins": in_rows(np.arange(60) % 3 == 0, range(2048))}
    overflow = {"mask_selection_rate": 0.5, "mask_selection_length": 29}
    sample = sampled(ids, 8, **overflow | settings)
    kept = sample.selected[:, ::3]
    if (kept.sum(axis=1) != 9).any():
        return 0.0
    return p_of_columns(kept, 9 / 20)


def p_of_independent_overflow():
    """Tokens that are drawn on their own, 18 on average, and at most 15; sees 11 %."""
    overflow = {"mask_selection_rate": 0.3, "mask_selection_length": 15, "exact_count": False}
    selected = sampled(some_words(4096), 4, **overflow).selected
    mean = np.minimum(np.arange(61), 15) @ stats.binom.pmf(np.arange(61), 60, 0.3)
    return p_of_columns(selected, mean / 60)


def p_of_lengths_with_room():
    """Room for 3 more than the count, a piece less than the longest word; sees 4 %."""
    sample = sampled(some_words(4096), 8, mask_selection_length=9 + 3, **WORDS)
    return p_of_lengths(whole_words(sample.selected), 0.15)


def inclusion(words):
    return np.array([words[:, length == UNIT_LENGTHS].mean() for length in range(1, 5)])


def unevenness_without_room():
    """How much more often the most selected length comes than the least, over the mean.

    With a count of 9 of 60 and no room for more, words of 1, 2, 3 and 4 pieces are selected
    with probability .137, .135, .132 and .130. BERT's rule gives .262, .174, .138 and .119;
    dropping by the selecting key, .147, .141, .132 and .119; and room for 3 more, .15 to all.
    """
    sample = sampled(some_words(4096), 8, mask_selection_length=9, **WORDS)
    tight = inclusion(whole_words(sample.selected))
    return np.ptp(tight) / tight.mean()


def unevenness_of_bert(rows=8192):
    """Words in random order, leaving out those that do not fit any more."""
    random, words = np.random.default_rng(0), np.zeros((rows, 24), bool)
    for row in words:
        room = 9
        for word in random.permutation(24):
            if UNIT_LENGTHS[word] <= room:
                row[word] = True
                room -= UNIT_LENGTHS[word]
    return np.ptp(inclusion(words)) / inclusion(words).mean()


def is_ten_times_as_even_as_bert():
    return bool(unevenness_without_room() < unevenness_of_bert() / 10)


@every_dial
@exact_or_not
@pytest.mark.parametrize("capacity", [1, 4])
def test_never_more_than_fit_and_nothing_cut(dial, exact_count, capacity):
    assert stays_within(capacity, exact_count=exact_count, **dial)


def test_units_that_overflow_are_dropped_at_random():
    assert p_of_overflow() > ALPHA


def test_independent_draws_that_overflow_are_dropped_at_random():
    assert p_of_independent_overflow() > ALPHA


def test_with_room_for_one_more_long_words_are_selected_as_often():
    assert p_of_lengths_with_room() > ALPHA


def test_without_room_long_words_suffer_less_than_from_skipping():
    assert is_ten_times_as_even_as_bert()


# The grid: every length, rate and unit, in all four ways

LENGTHS = (1, 2, 3, 7, 64, 1000)
RATES = (0.0, 0.01, 0.15, 0.5, 1.0)
BY_STEP = PiecewiseConstantDecay([0, 1, 2, 3], list(RATES))
GRID = {f"{name}, exact": dial for name, dial in DIALS.items()}
GRID |= {f"{name}, independent": dial | {"exact_count": False} for name, dial in DIALS.items()}
GRID["spans of words, at most 12"] = SPANS_OF_WORDS | {"mask_selection_length": 12}
IN_XLA = {
    "tokens, exact": (1, 3, 1000),  # a compilation for each length
    "spans of words, at most 12": (2, 7, 64),
}


def grid_rows(length, batch):
    """Rows of which one is protected throughout, and others at an end or in the middle."""
    ids = np.random.default_rng(length).choice(POOL, (batch, length)).astype("int32")
    ids[1::6, 0], ids[2::6] = CLS, PAD
    ids[3::6, length // 2], ids[4::6, -1], ids[5::6, ::4] = SEP, PAD, 50
    return ids


def at_any_length(drawer):
    """Traced once."""
    spec = tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([], tf.int32)
    return tf.function(lambda ids, step: drawer(ids, step=step), input_signature=spec)


def is_lawful(ids, units, outputs, rate, settings):
    selectable, selected = ~np.isin(ids, PROTECTED), dense(outputs) > 0
    capacity = settings.get("mask_selection_length")
    counts, sizes = selected.sum(axis=1), selectable.sum(axis=1)
    longest = max(np.bincount(row[real]).max(initial=1)
                  for row, real in zip(units, selectable, strict=True))  # fmt: skip
    same_unit = units[:, 1:] == units[:, :-1]
    held = [
        not selected[~selectable].any(),
        (outputs["token_ids"] == ids)[~selected].all(),
        np.isin(outputs["token_ids"][selected], [*POOL, MASK]).all(),
        np.isin(outputs["mask_weights"], [0, 1]).all(),
        (selected[:, 1:] == selected[:, :-1])[same_unit].all(),
        rate > 0 or not selected.any(),
    ]
    if capacity is None:
        held += [
            (outputs["mask_ids"] == ids).all(),
            rate < 1 or (counts == sizes).all(),
            not settings.get("exact_count", True) or (abs(counts - rate * sizes) < longest).all(),
        ]
    else:
        real = outputs["mask_weights"] > 0
        positions = outputs["mask_positions"]
        at_positions = np.take_along_axis(ids, positions, axis=1)
        held += [
            (counts <= capacity).all(),
            (np.diff(positions, axis=1) > 0)[real[:, 1:]].all(),
            (real == (np.arange(capacity) < counts[:, None])).all(),
            (outputs["mask_ids"] == at_positions * real).all(),
            not positions[~real].any(),
        ]
    return all(held)


def outputs_on_the_grid(name, length, step):
    """The outputs of an eager call, and whether they are lawful."""
    ids, settings = grid_rows(length, 6), GRID[name]
    units, outputs = units_of(layer(mask_selection_rate=RATES[step], **settings), ids, step)
    return outputs, is_lawful(ids, units, outputs, RATES[step], settings)


@pytest.mark.slow
@pytest.mark.parametrize("name", GRID)
def test_all_ways_are_lawful_and_equal_on_the_grid(name):
    drawer = layer(mask_selection_rate=BY_STEP, **GRID[name])
    in_graph = at_any_length(drawer)
    points = list(itertools.product(LENGTHS, range(len(RATES))))
    rows = tf.data.Dataset.from_generator(
        lambda: ((grid_rows(length, 6), step) for length, step in points),
        output_signature=in_graph.input_signature,
    )
    mapped = rows.map(lambda ids, step: drawer(ids, step=step)).as_numpy_iterator()
    compiled = tf.function(lambda ids, step: drawer(ids, step=step), jit_compile=True)
    for (length, step), from_data in zip(points, mapped, strict=True):
        outputs, lawful = outputs_on_the_grid(name, length, step)
        assert lawful, (length, step)
        arguments = tf.constant(grid_rows(length, 6)), tf.constant(step)
        ways = [numpy(in_graph(*arguments)), from_data]
        ways += [numpy(compiled(*arguments))] if length in IN_XLA.get(name, ()) else []
        for way, (key, value) in itertools.product(ways, outputs.items()):
            same(way[key], value, err_msg=f"{key} at {length}, {step}")


def p_of_counts_on_the_grid(**settings):
    """Of 4,080 rows, or 240 of the longest: sees 2 % of tokens, 4 % of spans, at a
    rate of .5 and a length of 64."""
    in_graph, p_values = at_any_length(layer(mask_selection_rate=BY_STEP, **settings)), []
    for length, (step, rate) in itertools.product(LENGTHS, enumerate(RATES)):
        ids = grid_rows(length, 240 if length == 1000 else 4080)
        outputs = numpy(in_graph(tf.constant(ids), tf.constant(step)))
        expected = rate * (~np.isin(ids, PROTECTED)).sum(axis=1)
        p_values.append(p_of_mean(outputs["mask_weights"].sum(axis=1) - expected, 0))
    return worst(*p_values)


@pytest.mark.slow
@every_dial
@exact_or_not
def test_mean_counts_are_the_rate_on_the_grid(dial, exact_count):
    assert p_of_counts_on_the_grid(exact_count=exact_count, **dial) > ALPHA


# The four ways, against the oracle

FEW_WORDS = [(7,), (8,), (9,), (7, 61), (8, 62), (9, 63), (7, 61, 62), (8, 8, 8), (9, 9, 9)]
TABLE = np.random.default_rng(6).choice([0, 0.5, 1, 4], VOCABULARY)
CASES = {
    "rates of the batch, weighed": DIFFUSION | {"random_excludes_original": True},
    "words, at least one": {
        **WORDS, "at_least_one": True, "mask_selection_rate": (0, 1), "mask_selection_length": 7,
        "corrupt_whole_units": True},
    "spans, independent, at least one": {
        **SPANS, "at_least_one": True, "exact_count": False, "mask_selection_rate": 0.03,
        "mask_selection_length": 6, "evaluation_rate": 0.3},
    "documents, weighed": {"count_per_document": True, "inverse_rate_weights": True},
    "documents of words, at least one": {
        **WORDS, "count_per_document": True, "at_least_one": True, "mask_selection_length": 9},
    "documents of spans, by weight": {
        **SPANS, "count_per_document": True, "selection_weights": TABLE,
        "mask_selection_rate": (0.1, 0.9)},
    "words, by weight": {
        **WORDS, "selection_weights": TABLE, "at_least_one": True, "mask_selection_length": 12},
    "spans, independent, by weight": {
        **SPANS, "exact_count": False, "selection_weights": TABLE, "at_least_one": True},
    "frequencies": ALL_SWAPPED | {"random_token_weights": FREQUENCIES},
    "frequencies, another token": ALL_SWAPPED | {
        "random_token_weights": FREQUENCIES, "random_excludes_original": True},
    "words for words": SPANS_OF_WORDS | ALL_SWAPPED | {
        "corrupt_whole_units": True, "random_words": FEW_WORDS},
    "another word for a word": WORDS | ALL_SWAPPED | {
        "corrupt_whole_units": True, "random_words": FEW_WORDS, "random_excludes_original": True},
}  # fmt: skip
SMALL_FEATURES = {
    "token_ids": SMALL.copy(),
    "segment_ids": np.sort(np.random.default_rng(8).integers(0, 5, SMALL.shape), axis=1),
}
SMALL_FEATURES["token_ids"][:, 10:20] = np.tile([7, 61, 8, 62, 9, 63, 7, 8, 9, 9], (8, 1))
SMALL_WEIGHTS = {"selection_weights": np.arange(SMALL.size).reshape(SMALL.shape) % 7 / 2}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("way", [eager, graph, slow(xla), slow(tf_data)])
def test_masks_equal_the_oracle(way, name):
    drawer = layer(**CASES[name])
    features = SMALL_FEATURES | (SMALL_WEIGHTS if "by weight" in name else {})
    inputs = {key: tf.constant(value) for key, value in features.items()}
    got = way(lambda inputs: drawer(inputs, step=5), inputs)
    rows, others = features["token_ids"], {k: v for k, v in features.items() if k != "token_ids"}
    assert_equal(got, oracle.mask_batch(rows, drawer.get_config(), step=5, **others))


@pytest.mark.parametrize("name", CASES)
def test_evaluation_masks_equal_the_oracle(name):
    drawer = layer(**CASES[name])
    inputs = {key: tf.constant(value) for key, value in SMALL_FEATURES.items()}
    got = drawer.mask_fixed(inputs, drawer.mask_selection_length)
    rows, segments = SMALL_FEATURES["token_ids"], SMALL_FEATURES["segment_ids"]
    assert_equal(got, oracle.mask_batch(rows, drawer.get_config(), segment_ids=segments))


# Nothing is compiled twice

NEVER_AGAIN = """
import os, numpy as np, keras
from keras_dynmask import DynamicMasking
from keras.optimizers.schedules import PolynomialDecay

def compiled(call):
    if keras.backend.backend() == "jax":
        import jax
        return jax.jit(call)
    import tensorflow as tf
    return tf.function(call, jit_compile=True)

def compilations():
    dumped = os.listdir(os.environ["DUMP"])
    return sum(name.endswith("before_optimizations.txt") for name in dumped)

def inputs(step, length=24):
    random = np.random.default_rng(step)
    return {
        "token_ids": keras.ops.convert_to_tensor(random.integers(5, 50, (4, length)), "int32"),
        "segment_ids": keras.ops.convert_to_tensor(random.integers(0, 2, (4, length)), "int32"),
        "selection_weights": keras.ops.convert_to_tensor(random.random((4, length)), "float32"),
    }

for rate in (PolynomialDecay(0.5, 100, 0.1), (0.1, 0.9)):
    masking = DynamicMasking(50, rate, 4, 12, count_per_document=True, mean_span_length=3.0)
    call = compiled(lambda inputs, step: masking(inputs, step=step))
    steps = [keras.ops.convert_to_tensor(step, "int32") for step in range(4)]
    many, longer = [inputs(step) for step in range(4)], inputs(0, length=32)
    call(many[0], steps[0])
    once, shown = compilations(), []
    for features, step in zip(many, steps):
        shown.append(keras.ops.convert_to_numpy(call(features, step)["token_ids"]).tobytes())
    again = compilations()
    call(longer, steps[0])
    print("compiled", once > 0, again - once, compilations() > again, len(set(shown)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_rates_steps_and_weights_change_without_another_compilation(backend, tmp_path):
    """XLA writes down each module that it compiles; another length is another module."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "PYTHONPATH": str(pathlib.Path(__file__).parent.parent),
        "XLA_FLAGS": f"--xla_dump_to={tmp_path}",
        "DUMP": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", NEVER_AGAIN], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = [line for line in done.stdout.splitlines() if line.startswith("compiled")]
    assert found == ["compiled True 0 True 4"] * 2


# Mutants


def replaced(owner, name, by):
    """`by` takes what stood there, and then what that takes."""

    def break_it(patch):
        original = getattr(owner, name)
        patch.setattr(owner, name, lambda *arguments, **named: by(original, *arguments, **named))

    return break_it


def with_stream(stream, change):
    """Change the bits of one stream; `change` takes a function of positions, and them."""

    def bits(original, keys, positions, drawn_stream):
        if drawn_stream != stream:
            return original(keys, positions, drawn_stream)
        return change(lambda places: original(keys, places, stream), positions)

    return replaced(noise, "bits", bits)


def both(*breaks):
    def break_it(patch):
        for break_one in breaks:
            break_one(patch)

    return break_it


def with_budget(change):
    return replaced(
        DynamicMasking,
        "_budget",
        lambda budget, *arguments: change(budget(*arguments), arguments[2]),
    )


rates_of_rows_alone = replaced(rates, "rate_at", lambda rate_at, *arguments, spread: (
    rate_at(*arguments, spread=False)))  # fmt: skip
rates_from_zero = replaced(noise, "row_uniforms", lambda uniforms, keys: (
    *uniforms(keys)[:2], ops.zeros_like(keys[0], "float32")))  # fmt: skip
a_part_too_many = replaced(rates, "even_shares", lambda shares, batch: shares(batch + 1)[:-1])
rounded_by_a_coin = with_budget(lambda budget, keys: (
    budget._replace(round_up=noise.row_uniforms(keys)[0])))  # fmt: skip
one_over_the_rate = replaced(DynamicMasking, "_select", lambda select, *arguments: (
    select(*arguments)[0], 1 / arguments[-1].rate))  # fmt: skip
none_for_want = replaced(masking, "first_unit", lambda first, order, *_: order != order)


def places(like):
    return ops.zeros_like(like, "int32") + ops.arange(ops.shape(like)[1], dtype="int32")


def first_in_the_text(first, keys, selectable, *_):
    before = ops.min(ops.where(selectable, places(keys), 2**30), axis=1, keepdims=True)
    key = ops.max(ops.where(places(keys) == before, keys, -(2**31)), axis=1, keepdims=True)
    return selectable & (keys == key)


def its_first_piece(first, *arguments):
    chosen = first(*arguments)
    return chosen & (ops.cumsum(ops.cast(chosen, "int32"), axis=1) == 1)


def always_rounded_down(count, size, rate, coin, *row):
    return count(size, rate, ops.zeros_like(coin), *row)


def a_coin_of_its_own(_, layer, selectable, size, budget):
    return selected_count(size, budget.rate, budget.turn)


def one_count_for_the_row(budget, _):
    return budget._replace(documents=None, turn=budget.turn[:, :1])


same_noise_in_two_documents = (
    with_stream(noise.SELECT, lambda bits, numbers: bits(ops.mod(numbers - 10, 20))),
    with_stream(noise.TURN, lambda bits, numbers: bits(ops.zeros_like(numbers))),
)
edges_ignored = replaced(masking, "begins_at_changes", lambda _, ids: places(ids) == 0)
none_is_spared = replaced(masking, "drop_overflow", lambda drop, *arguments: drop(*arguments[:3]))


def with_weights(change):
    return replaced(masking, "weighted_order", lambda order, drawn, weights: (
        order(drawn, change(weights))))  # fmt: skip


def noise_over_weight(_, drawn, weights):
    return ops.cast(drawn / ops.maximum(weights, 1e-6) * 2.0**24, "int32")


def always_from_the_start(uniforms, keys):
    round_up, turn, drawn = uniforms(keys)
    return round_up, ops.zeros_like(turn), drawn


circles_at_their_start = with_stream(noise.TURN, lambda bits, numbers: bits(numbers) * 0)
text_order = with_stream(noise.SELECT, lambda bits, numbers: bits(numbers) * 0 + numbers)


def everything_weighs(weights_of, layer, inputs, selectable, units):
    return weights_of(layer, inputs, selectable, units) + 0.01


at_most_the_rate_times_weight = (
    replaced(masking, "weighted_order", lambda _, drawn, weights: drawn / (weights + 1e-9)),
    replaced(masking, "weighted_edge", lambda _, rate: rate),
)


def last_unit_at(turn):
    return replaced(masking, "select_first", lambda select, *arguments: (
        select(*arguments[:4], ops.zeros_like(arguments[4]) + turn, *arguments[5:])))  # fmt: skip


def with_shares(change):
    return replaced(masking, "token_shares", lambda shares_of, weights: (
        shares_of(change(weights))))  # fmt: skip


one_of_ten_too_many = with_shares(lambda weights: (
    weights * np.where(np.arange(VOCABULARY) == 20, 1.1, 1)))  # fmt: skip
itself_at_times = replaced(masking, "RandomTokens", lambda create, shares, _: create(shares, False))


def the_next_in_place_of_itself(draw, tokens, words, ids):
    tokens.excludes_original = False
    drawn, following = draw(tokens, words, ids), np.zeros(VOCABULARY, "int32")
    following[POOL] = np.roll(POOL, -1)
    return ops.where(drawn == ids, ops.take(following, ids), drawn)


last_word_never = replaced(noise, "below", lambda below, words, bound: (
    below(words, ops.maximum(bound - 1, 1))))  # fmt: skip
the_next_word = replaced(RandomWords, "draw", lambda draw, self, words, more, *arguments, **named: (
    draw(self, words, more * 0, *arguments, **named)))  # fmt: skip


a_word_for_itself = replaced(masking, "RandomWords", lambda create, words, _: create(words, False))
shares_of_82 = replaced(masking, "corrupt", lambda corrupt, *arguments: (
    corrupt(*arguments[:5], 0.82, 0.09)))  # fmt: skip
a_role_for_each_token = with_stream(noise.ROLE, lambda bits, numbers: bits(places(numbers)))


def dropped_from_the_end(drop, order, selected, capacity, *_):
    return selected & (ops.cumsum(ops.cast(selected, "int32"), axis=1) <= capacity)


dropped_late_in_the_text = with_stream(noise.DROP, lambda bits, numbers: numbers)


def dropped_by_the_selecting_key(patch):
    """The lowest keys go first: so does what ends in the window and begins before it."""
    patch.setattr(noise, "DROP", noise.SELECT)
    drop = masking.drop_overflow
    patch.setattr(masking, "drop_overflow", lambda order, *rest: drop(~order, *rest))


MUTANTS = {
    "rates of rows alone": (rates_of_rows_alone, lambda: lie_one_in_each_part(64)),
    "one part too many": (a_part_too_many, lambda: lie_one_in_each_part(64)),
    "rates spread from zero": (rates_from_zero, p_of_rates),
    "spread rates taken as independent": (
        replaced(rates, "rate_at", lambda rate_at, *arguments, spread: (
            rate_at(*arguments, spread=True))), p_of_rates_of_neighbours),
    "counts of one part too many": (a_part_too_many, counts_are_a_permutation),
    "counts rounded by a coin": (rounded_by_a_coin, p_of_diffusion_counts),
    "1 / rate for a count": (one_over_the_rate, weights_are_the_number_over_the_count),
    "1 / rate, estimated": (  # from .1, as below it one row outweighs all others
        one_over_the_rate, lambda: p_of_diffusion_estimates(mask_selection_rate=(0.1, 1.0))),
    "none for want of another": (none_for_want, lambda: selects_where_it_can(**WORDS)),
    "a piece for want of a word": (
        replaced(masking, "first_unit", its_first_piece), lambda: selects_where_it_can(**WORDS)),
    "the first word for want of another": (
        replaced(masking, "first_unit", first_in_the_text), p_of_one_of_words),
    "documents rounded down": (
        replaced(masking, "selected_count", always_rounded_down),
        lambda: p_of_documents(fresh_documents)),
    "a coin for each document": (
        replaced(DynamicMasking, "_count", a_coin_of_its_own), add_up_to_the_rows_count),
    "one count for all documents": (with_budget(one_count_for_the_row), add_up_to_the_rows_count),
    "the same noise in two documents": (
        both(*same_noise_in_two_documents), lambda: p_of_two_documents(fresh_documents)),
    "windows at the start of documents": (
        circles_at_their_start, lambda: p_of_words_in_documents(fresh_documents)),
    "the first tokens of documents": (
        both(circles_at_their_start, text_order),
        lambda: p_of_places_in_documents(fresh_documents)),
    "units across edges": (edges_ignored, no_unit_crosses_an_edge),
    "a document loses its one": (none_is_spared, lambda: every_document_has_one(16, **WORDS)),
    "weights ignored": (with_weights(ops.ones_like), lambda: p_of_subsets(1)),
    "weights to the power of 1.05": (
        with_weights(lambda weights: weights**1.05), lambda: p_of_subsets(1)),
    "noise over weight": (
        replaced(masking, "weighted_order", noise_over_weight), lambda: p_of_subsets(2)),
    "everything weighs something": (
        replaced(DynamicMasking, "_unit_weights", everything_weighs), lambda: p_of_subsets(3)),
    "rate * weight for independent draws": (
        both(*at_most_the_rate_times_weight), p_of_independent_weights),
    "the last weighted word always kept": (last_unit_at(0.0), p_of_weighted_counts),
    "the last weighted word never kept": (last_unit_at(1 - 2**-24), p_of_weighted_counts),
    "frequencies ignored": (
        replaced(masking, "token_shares", lambda _, weights: (weights > 0).astype("int32")),
        p_of_random_tokens),
    "one id 10 % too often": (one_of_ten_too_many, p_of_random_tokens),
    "protected ids drawn": (with_shares(lambda _: FREQUENCIES), p_of_random_tokens),
    "itself at times": (itself_at_times, p_of_random_tokens),
    "the next in place of itself": (
        replaced(RandomTokens, "draw", the_next_in_place_of_itself), p_of_random_tokens),
    "the last word never": (last_word_never, lambda: p_of_random_words(False)),
    "the next word in place of itself": (the_next_word, p_of_random_words),
    "a word for itself": (a_word_for_itself, p_of_random_words),
    "a role for each token": (a_role_for_each_token, p_of_roles_of_words),
    "82 / 9 / 9": (shares_of_82, p_of_roles_of_words),
    "a unit is cut to fit": (
        replaced(masking, "drop_overflow", dropped_from_the_end), lambda: stays_within(4, **WORDS)),
    "the last of the text dropped": (dropped_late_in_the_text, p_of_overflow),
    "the last of the text dropped, independent": (
        dropped_late_in_the_text, p_of_independent_overflow),
    "windows at the start of rows": (
        replaced(noise, "row_uniforms", always_from_the_start), p_of_lengths_with_room),
    "a unit is cut on the grid": (
        replaced(masking, "drop_overflow", dropped_from_the_end),
        lambda: outputs_on_the_grid("spans of words, at most 12", 64, 3)[1]),
    "counts rounded down on the grid": (
        replaced(masking, "selected_count", always_rounded_down), p_of_counts_on_the_grid),
    "dropped by the selecting key": (dropped_by_the_selecting_key, is_ten_times_as_even_as_bert),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("break_it", "law"), MUTANTS.values(), ids=MUTANTS)
def test_a_law_rejects_the_mutant(break_it, law, monkeypatch):
    """A law that holds returns True or a p-value above 1e-6; a broken one False or less."""
    break_it(monkeypatch)
    verdict = law()
    print(f"{verdict:.1e}")
    assert verdict < ALPHA
