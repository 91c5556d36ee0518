"""The laws of the mask, for every setting of the dials, and the mutants that break them.

A law is a function that draws masks and returns a p-value, or whether the law held. The
seeds are fixed, so a test never flakes; a new stream of noise fails one with probability
1e-6. Every law shows its power on a mutant: the package, broken on purpose.

Samples are 65,536 rows of 64 positions, 60 of them selectable, 9 of those selected.
"""

import functools
import itertools
from types import SimpleNamespace

import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
from keras import ops
from scipy import stats

from keras_dynmask import DynamicMasking, masking, noise
from keras_dynmask.replacements import RandomTokens
from keras_dynmask.selection import select_independently
from keras_dynmask.units import unit_begins

ALPHA = 1e-6
RATE = 0.15
VOCABULARY = 100
PAD, CLS, SEP, MASK = 0, 2, 3, 4
PROTECTED = (PAD, CLS, SEP, 50, 77)
CONTINUATIONS = tuple(range(60, 90))
POOL = np.setdiff1d(np.arange(VOCABULARY), [*PROTECTED, MASK])
SELECTABLE = [*range(1, 31), *range(32, 62)]  # [CLS] 30 tokens [SEP] 30 tokens [SEP] [PAD]
BATCH, STEPS = 4096, 16

TOKENS = {}
WORDS = {"continuation_token_ids": CONTINUATIONS}
SPANS = {"mean_span_length": 3.0}
SPANS_OF_WORDS = WORDS | SPANS
DIALS = {"tokens": TOKENS, "words": WORDS, "spans": SPANS, "spans of words": SPANS_OF_WORDS}

every_dial = pytest.mark.parametrize("dial", DIALS.values(), ids=DIALS)
exact_or_not = pytest.mark.parametrize("exact_count", [True, False], ids=["exact", "independent"])


def some_ids(batch=BATCH, seed=0):
    ids = np.full((batch, 64), PAD, "int32")
    ids[:, SELECTABLE] = np.random.default_rng(seed).choice(POOL, (batch, 60))
    ids[:, 0], ids[:, [31, 62]] = CLS, SEP
    return ids


IDS = some_ids()


def layer(**settings):
    defaults = {
        "vocabulary_size": VOCABULARY,
        "mask_selection_rate": RATE,
        "mask_token_id": MASK,
        "unselectable_token_ids": PROTECTED,
        "seed": 1,
    }
    return DynamicMasking(**defaults | settings)


def numpy(outputs):
    return {name: ops.convert_to_numpy(value) for name, value in outputs.items()}


def fresh_draw(steps=STEPS, jit=True, weights=None, **settings):
    """Masks of the same ids at `steps` steps: arrays `[steps, batch, 64]`."""
    drawer = layer(**settings)
    features = {"token_ids": IDS}
    if weights is not None:
        features["selection_weights"] = np.tile(np.float32(weights), (BATCH, 1))
    one_step = tf.function(lambda step, inputs: drawer(inputs, step=step), jit_compile=jit)
    drawn = [numpy(one_step(tf.constant(step), features)) for step in range(steps)]
    return SimpleNamespace(
        selected=np.stack([outputs["mask_weights"] > 0 for outputs in drawn]),
        shown=np.stack([outputs["token_ids"].astype("uint8") for outputs in drawn]),
    )


draw = functools.cache(fresh_draw)


# Statistics


def two_sided(z, tries=1):
    return min(1.0, float(2 * stats.norm.sf(np.max(np.abs(z))) * tries))


def p_of_mean(values, mean):
    """Whether independent values have this mean; their spread is their own."""
    spread = max(np.std(values), 1e-9)
    return two_sided((np.mean(values) - mean) / spread * len(values) ** 0.5)


def p_of_overlap(masks, others):
    """Independent masks `[rows, 60]` share f * f of the positions; power .99 at 1 % more."""
    shared = (masks & others).sum(axis=1)
    return p_of_mean(shared, 60 * RATE**2)


def p_of_uniform_counts(values, cells):
    return stats.chisquare(np.bincount(values, minlength=cells)).pvalue


def chosen(sample):
    """`[steps, batch, 60]`, without the protected positions."""
    return sample.selected[..., SELECTABLE]


def rank_in_pool(ids):
    return np.searchsorted(POOL, ids)


# Laws of where: each takes `draw`, or a mutant's


def p_of_positions(draw, **dial):
    """Largest |z| of 60 positions: sees 5 % at any one, first, last or beside a special."""
    masks = chosen(draw(**dial)).reshape(-1, 60)
    rows, share = len(masks), RATE
    z = (masks.sum(axis=0) - rows * share) / (rows * share * (1 - share)) ** 0.5
    return two_sided(z, tries=60)


def p_of_all_positions(draw):
    """X2 for an exact count of tokens, where rows are drawn without replacement.

    Sees a bias of 2-3 % that is spread over the positions.
    """
    masks = chosen(draw()).reshape(-1, 60)
    rows, share = len(masks), RATE
    squares = (masks.sum(axis=0) - rows * share) ** 2 / (rows * share * (1 - share))
    return float(stats.chi2.sf(59 / 60 * squares.sum(), 59))


def p_of_counts(draw, **dial):
    """The mean share of selected tokens; power .99 at 1 % more or fewer."""
    return p_of_mean(chosen(draw(**dial)).sum(axis=2).ravel(), 60 * RATE)


def p_of_rows(draw, **dial):
    masks = chosen(draw(**dial))
    return p_of_overlap(masks[:, 0::2].reshape(-1, 60), masks[:, 1::2].reshape(-1, 60))


def p_of_steps(draw, **dial):
    masks = chosen(draw(**dial))
    return p_of_overlap(masks[0::2].reshape(-1, 60), masks[1::2].reshape(-1, 60))


def p_of_seeds(draw, **dial):
    ones, others = (chosen(draw(seed=seed, **dial)).reshape(-1, 60) for seed in (1, 2))
    return p_of_overlap(ones, others)


def p_of_replicas(draw, **dial):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masking, "replica_id", lambda: 1)
        second = chosen(fresh_draw(steps=4, **dial))
    first = chosen(draw(steps=4, **dial))
    return p_of_overlap(first.reshape(-1, 60), second.reshape(-1, 60))


def p_of_neighbours(draw):
    """Tokens do not clump: 58 pairs of neighbours, each selected with chance 9 * 8 / 60 * 59."""
    masks = chosen(draw()).reshape(-1, 2, 30)
    pairs = (masks[..., 1:] & masks[..., :-1]).sum(axis=(1, 2))
    return p_of_mean(pairs, 58 * 9 * 8 / (60 * 59))


def p_of_word_lengths(draw, **settings):
    """Words of 1, 2, 3 and 4 pieces are selected equally often; sees 4 % at any length."""
    masks = draw(**WORDS, **settings).selected
    continues = np.isin(IDS, CONTINUATIONS)
    begins = np.isin(np.arange(64), SELECTABLE) & (~continues | np.isin(np.arange(64), [1, 32]))
    ends = np.roll(begins, -1, axis=1) | np.isin(np.arange(64), [30, 61])
    p_values = []
    for length in range(1, 5):
        is_word = begins & np.roll(ends, 1 - length, axis=1)
        for inner in range(1, length):
            is_word &= ~np.roll(ends, 1 - inner, axis=1)
        assert is_word.sum() > BATCH / 4
        missed = ((masks - RATE) * is_word).sum(axis=2).ravel()
        p_values.append(p_of_mean(missed, 0))
    return min(1.0, 4 * min(p_values))


def p_of_span_lengths(mean=3.0):
    """The first span of each of 20,000 rows is geometric; sees a mean 3 % too long."""
    rows = ops.arange(20_000, dtype="int32")
    keys = noise.row_keys(5, (0, 0), noise.words(rows))
    coin = noise.uniform(noise.bits(keys, ops.arange(40, dtype="int32"), noise.BEGIN))
    nowhere = ops.zeros((20_000, 40), "bool")
    begins = ops.convert_to_numpy(masking.unit_begins(~nowhere, nowhere, nowhere, coin, mean))
    lengths = np.argmax(begins[:, 1:], axis=1) + 1
    lengths[~begins[:, 1:].any(axis=1)] = 40
    expected = (1 - 1 / mean) ** np.arange(15) / mean
    expected = 20_000 * np.append(expected, 1 - expected.sum())
    return stats.chisquare(np.bincount(np.minimum(lengths, 16), minlength=17)[1:], expected).pvalue


def p_of_weights(draw):
    """One token of ten is selected, in proportion to its weight."""
    weights = np.zeros(64)
    weights[SELECTABLE[:10]] = np.arange(1, 11)
    sample = draw(weights=tuple(weights), mask_selection_rate=0.1, steps=4)
    assert (sample.selected.sum(axis=2) == 1).all()
    counts = sample.selected.sum(axis=(0, 1))
    assert counts[weights == 0].sum() == 0
    expected = counts.sum() * weights / weights.sum()
    return stats.chisquare(counts[weights > 0], expected[weights > 0]).pvalue


# Laws of what is shown


def p_of_shares(draw, **dial):
    """Hidden, visibly swapped, and the rest of the selected; sees .805 / .0975 / .0975."""
    sample = draw(**dial)
    shown, original = sample.shown[sample.selected], np.tile(IDS, (STEPS, 1, 1))[sample.selected]
    hidden, unchanged = np.sum(shown == MASK), np.sum(shown == original)
    by_chance = 0.1 / len(POOL)
    expected = len(shown) * np.array([0.8, 0.1 - by_chance, 0.1 + by_chance])
    return stats.chisquare([hidden, len(shown) - hidden - unchanged, unchanged], expected).pvalue


def all_swapped(draw):
    sample = draw(mask_token_rate=0.0, random_token_rate=1.0)
    original = np.tile(IDS, (STEPS, 1, 1))[sample.selected]
    return rank_in_pool(sample.shown[sample.selected]), rank_in_pool(original)


def p_of_swapped_ids(draw):
    """Every id of the pool is swapped in equally often: 6,000 times, so 1 % off is seen."""
    return p_of_uniform_counts(all_swapped(draw)[0], len(POOL))


def p_of_swaps_given_the_original(draw):
    """The distance round the pool from the original to what is shown is uniform."""
    shown, original = all_swapped(draw)
    return p_of_uniform_counts((shown - original) % len(POOL), len(POOL))


# Laws that hold or do not


def is_nested(dial, **settings):
    """Whatever is selected at one rate is selected at every higher one."""
    masks = [
        numpy(layer(mask_selection_rate=rate, **dial, **settings)(IDS[:512], step=3))
        for rate in (0.0, 0.1, 0.15, 0.5, 0.9, 1.0)
    ]
    weights = [outputs["mask_weights"] for outputs in masks]
    return all((low <= high).all() for low, high in itertools.pairwise(weights))


def is_exact(draw):
    return bool((chosen(draw()).sum(axis=2) == 9).all())


def units_of(drawer, ids, step):
    """The units a call makes, as the package numbers them, and its outputs."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        number = masking.unit_numbers
        patch.setattr(masking, "unit_numbers", lambda *begins: (
            seen.append(number(*begins)) or seen[0]))  # fmt: skip
        outputs = numpy(drawer(ids, step=step))
    if not seen:  # each position is one
        return np.indices(outputs["token_ids"].shape)[1], outputs
    return ops.convert_to_numpy(seen[0]), outputs


def is_uncut(dial, **settings):
    """No word is selected in part, no unit either; rows miss their count by less than a unit."""
    ids = IDS[:256]
    units, outputs = units_of(layer(**dial, **settings), ids, step=0)
    selected = outputs["mask_weights"] > 0
    same_word = np.isin(ids, dial.get("continuation_token_ids", ()))
    same_word[:, [1, 32]] = False
    same_word[:, 1:] |= (units[:, 1:] == units[:, :-1]) & same_word[:, 1:]
    whole_words = (selected[:, 1:] == selected[:, :-1])[same_word[:, 1:]].all()
    same_unit = units[:, 1:] == units[:, :-1]
    whole_units = (selected[:, 1:] == selected[:, :-1])[same_unit].all()
    longest = np.array([np.bincount(row).max() for row in units])
    near = (np.abs(selected.sum(axis=1) - 9) < longest).all()
    return bool(whole_words and whole_units and (near or not settings.get("exact_count", True)))


def respects_the_protected(draw, **dial):
    """Never selected, never changed, never swapped in; the mask token is not swapped in."""
    sample = draw(**dial)
    protected = np.isin(IDS, PROTECTED)
    swapped = sample.shown[sample.shown != np.tile(IDS, (STEPS, 1, 1))]
    return bool(
        not sample.selected[:, protected].any()
        and (sample.shown[:, protected] == IDS[protected]).all()
        and np.isin(swapped, [*POOL, MASK]).all()
        and (sample.shown == IDS)[~sample.selected].all()
    )


def is_identity_in_inference(**settings):
    outputs = numpy(layer(**settings)(IDS, training=False))
    targets = settings.get("mask_selection_length") is None
    return bool(
        np.array_equal(outputs["token_ids"], IDS)
        and not outputs["mask_weights"].any()
        and (np.array_equal(outputs["mask_ids"], IDS) if targets else not outputs["mask_ids"].any())
    )


def fixed(ids, **settings):
    return numpy(layer(**settings).mask_fixed({"token_ids": ops.convert_to_tensor(ids)}))


def depends_on_content_alone(**settings):
    """Evaluation masks do not see the order, the batch or the padding."""
    ids = some_ids(64, seed=3)
    shown = fixed(ids, **settings)["token_ids"]
    order = np.random.default_rng(0).permutation(64)
    longer = np.pad(ids, ((0, 0), (0, 9)))
    return bool(
        (shown != ids).any()
        and np.array_equal(fixed(ids[order], **settings)["token_ids"], shown[order])
        and np.array_equal(fixed(ids[5:6], **settings)["token_ids"], shown[5:6])
        and np.array_equal(fixed(longer, **settings)["token_ids"][:, :64], shown)
    )


# The laws, for every dial


@every_dial
@exact_or_not
def test_no_position_is_favoured(dial, exact_count):
    assert p_of_positions(draw, **dial, exact_count=exact_count) > ALPHA


def test_positions_are_uniform_together():
    assert p_of_all_positions(fixed_count_draw) > ALPHA


def fixed_count_draw(**settings):
    return draw(exact_count=True, **settings)


@every_dial
@exact_or_not
def test_the_mean_count_is_the_rate(dial, exact_count):
    if dial or not exact_count:  # an exact count of tokens has no spread
        assert p_of_counts(draw, **dial, exact_count=exact_count) > ALPHA
    else:
        assert is_exact(fixed_count_draw)


@every_dial
@exact_or_not
@pytest.mark.parametrize("law", [p_of_rows, p_of_steps])
def test_rows_and_steps_are_independent(law, dial, exact_count):
    assert law(draw, **dial, exact_count=exact_count) > ALPHA


def test_seeds_are_independent():
    assert p_of_seeds(draw, exact_count=True) > ALPHA


def test_replicas_are_independent():
    assert p_of_replicas(draw, exact_count=True) > ALPHA


def test_tokens_do_not_clump():
    assert p_of_neighbours(fixed_count_draw) > ALPHA


@exact_or_not
def test_words_of_every_length_are_selected_equally_often(exact_count):
    assert p_of_word_lengths(draw, exact_count=exact_count) > ALPHA


@pytest.mark.parametrize("mean", [1.5, 3.0, 10.0])
def test_span_lengths_are_geometric(mean):
    assert p_of_span_lengths(mean) > ALPHA


def test_tokens_are_selected_in_proportion_to_their_weight():
    assert p_of_weights(draw) > ALPHA


@every_dial
@exact_or_not
def test_the_selected_are_hidden_swapped_and_kept_by_their_shares(dial, exact_count):
    assert p_of_shares(draw, **dial, exact_count=exact_count) > ALPHA


def test_swapped_ids_are_uniform_over_the_unprotected():
    assert p_of_swapped_ids(draw) > ALPHA


def test_swapped_ids_do_not_depend_on_the_original():
    assert p_of_swaps_given_the_original(draw) > ALPHA


@every_dial
@exact_or_not
def test_masks_are_nested_in_the_rate(dial, exact_count):
    assert is_nested(dial, exact_count=exact_count)


@every_dial
@exact_or_not
def test_units_are_never_cut(dial, exact_count):
    assert is_uncut(dial, exact_count=exact_count)


@every_dial
def test_no_unit_is_cut_where_the_targets_overflow(dial):
    drawer = layer(mask_selection_rate=0.5, mask_selection_length=8, **dial)
    units, outputs = units_of(drawer, IDS[:256], step=0)
    for row, positions, real in zip(
        units, outputs["mask_positions"], outputs["mask_weights"], strict=True
    ):
        selected = set(positions[real > 0])
        assert selected == {p for p in range(64) if row[p] in row[list(selected)]}


@every_dial
@exact_or_not
def test_the_protected_are_never_selected_or_swapped_in(dial, exact_count):
    assert respects_the_protected(draw, **dial, exact_count=exact_count)


@every_dial
@pytest.mark.parametrize("capacity", [None, 12])
def test_inference_is_the_identity(dial, capacity):
    assert is_identity_in_inference(mask_selection_length=capacity, **dial)


@every_dial
@pytest.mark.parametrize("capacity", [None, 12])
def test_evaluation_masks_depend_on_content_alone(dial, capacity):
    assert depends_on_content_alone(mask_selection_length=capacity, **dial)


def test_masks_are_fresh_at_each_step_and_the_same_for_the_same_seed():
    first, second = layer(), layer()
    stream = [numpy(first(IDS[:8]))["token_ids"] for _ in range(4)]
    again = [numpy(second(IDS[:8]))["token_ids"] for _ in range(4)]
    assert np.array_equal(stream, again)
    assert len({masked.tobytes() for masked in stream}) == 4


# Weights

WEIGHED = {"mask_selection_rate": (0.1, 0.9), "inverse_rate_weights": True}


def p_of_estimates(**dial):
    """The weighted losses of what is selected estimate the sum of all, without bias.

    Sees 1 % at any dial: an estimate spreads by less than its mean, over 16,384 rows.
    """
    drawer = layer(**WEIGHED | dial)
    losses = np.random.default_rng(3).exponential(size=IDS.shape)
    truth = losses[:, SELECTABLE].sum(axis=1)
    weights = [numpy(drawer(IDS, step=step))["mask_weights"] for step in range(4)]
    return p_of_mean(np.concatenate([(w * losses).sum(axis=1) / truth for w in weights]), 1.0)


def weights_of_a_row_sum_to_its_tokens():
    """The law of an exact count: n / count, and not 1 / rate, which is only its mean."""
    weights = numpy(layer(**WEIGHED)(IDS, step=0))["mask_weights"]
    return np.allclose(weights.sum(axis=1), 60, rtol=1e-5)


@exact_or_not
@every_dial
def test_weighted_losses_are_unbiased(dial, exact_count):
    assert p_of_estimates(**dial, exact_count=exact_count) > ALPHA


def test_the_weights_of_a_row_sum_to_its_tokens():
    assert weights_of_a_row_sum_to_its_tokens()


# The four ways, against the oracle

CASES = {
    "tokens": {},
    "tokens, independent": {"exact_count": False},
    "tokens, fixed size": {"mask_selection_length": 3},
    "tokens, a rate per row": {"mask_selection_rate": (0.1, 0.9), "mask_selection_length": 30},
    "words": {**WORDS, "mask_selection_length": 7},
    "words, independent": {**WORDS, "exact_count": False, "mask_selection_rate": (0.1, 0.9)},
    "spans": {**SPANS, "mask_selection_rate": 0.5},
    "spans, independent": {**SPANS, "exact_count": False, "mask_selection_length": 5},
    "spans of words": {**SPANS_OF_WORDS, "mask_selection_length": 8},
    "spans of words, independent": {**SPANS_OF_WORDS, "exact_count": False},
    "words, weighed": {**WORDS, "inverse_rate_weights": True, "mask_selection_length": 9},
    "tokens, a rate per row, weighed": {
        "mask_selection_rate": (0.1, 0.9), "inverse_rate_weights": True},
    "spans, independent, weighed": {**SPANS, "exact_count": False, "inverse_rate_weights": True},
}  # fmt: skip
SMALL = some_ids(8, seed=9)[:, :40]
SMALL[6], SMALL[7] = PAD, [CLS, *[9] * 39]
EVERY = np.arange(SMALL.size).reshape(SMALL.shape)
FEATURES = {
    "none": {},
    "padding": {"padding_mask": np.arange(40) < np.arange(33, 41)[:, None]},
    "selectable": {"selectable": EVERY % 3 > 0},
    "begins": {"begins": EVERY % 5 == 0},
    "row ids": {"row_ids": np.array([7, 7, 1, 2**40, 2**31, 0, 5, 3])},
    "weights": {"selection_weights": (EVERY % 7).astype("float32")},
}


def eager(call, inputs):
    return call(inputs)


def graph(call, inputs):
    return tf.function(call)(inputs)


def xla(call, inputs):
    return tf.function(call, jit_compile=True)(inputs)


def tf_data(call, inputs):
    return next(iter(tf.data.Dataset.from_tensors(inputs).map(call)))


def assert_equal(got, expected):
    got = numpy(got)
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("way", [eager, graph, xla, tf_data])
def test_masks_equal_the_oracle(way, case):
    drawer = layer(**case)
    got = way(lambda inputs: drawer(inputs, step=5), {"token_ids": tf.constant(SMALL)})
    assert_equal(got, oracle.mask_batch(SMALL, drawer.get_config(), step=5))


@pytest.mark.parametrize("case", [SPANS_OF_WORDS, {"exact_count": False}])
@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
@pytest.mark.parametrize("way", [eager, xla])
def test_masks_with_features_equal_the_oracle(way, features, case):
    drawer = layer(**case)
    inputs = {name: tf.constant(value) for name, value in features.items()}
    got = way(lambda inputs: drawer(inputs, step=5), inputs | {"token_ids": tf.constant(SMALL)})
    assert_equal(got, oracle.mask_batch(SMALL, drawer.get_config(), step=5, **features))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_evaluation_masks_equal_the_oracle(case):
    drawer = layer(**case)
    got = drawer.mask_fixed({"token_ids": tf.constant(SMALL)}, drawer.mask_selection_length)
    assert_equal(got, oracle.mask_batch(SMALL, drawer.get_config()))


# Mutants


def with_moment(change):
    def break_it(patch):
        row_keys = noise.row_keys
        patch.setattr(noise, "row_keys", lambda seed, moment, rows: row_keys(
            seed, change(moment), rows))  # fmt: skip

    return break_it


def with_bits(change):
    """Change the bits that select."""

    def break_it(patch):
        bits = noise.bits
        patch.setattr(noise, "bits", lambda keys, positions, stream: (
            change(bits, keys, positions) if stream == noise.SELECT
            else bits(keys, positions, stream)))  # fmt: skip

    return break_it


def the_same_mask_for_every_row(patch):
    words = noise.words
    patch.setattr(noise, "words", lambda numbers: words(numbers * 0))


def favour_position_7(bits, keys, positions):
    drawn = bits(keys, positions, noise.SELECT)
    favoured = (positions == 7) & (noise.uniform(drawn) < RATE + 0.01)
    return ops.where(favoured, 0, drawn)


def sliding_minimum(bits, keys, positions):
    """What shares noise without a gather: threshold .15 then selects 39 %."""
    neighbours = [bits(keys, positions + shift, noise.SELECT) for shift in range(3)]
    lowest = functools.reduce(ops.minimum, (noise._shift_right(drawn, 1) for drawn in neighbours))
    return lowest * 2


def smoothed(bits, keys, positions):
    """Neighbours pull each other a little: a quarter of each key is its neighbour's."""
    drawn, beside = (noise._shift_right(bits(keys, positions + shift, noise.SELECT), 2)
                     for shift in (0, 1))  # fmt: skip
    return drawn * 3 // 4 + beside // 4


def text_order(bits, keys, positions):
    return ops.zeros_like(keys[0]) + positions


def shares_of_80_5(patch):
    corrupt = masking.corrupt
    patch.setattr(masking, "corrupt", lambda *arrays: corrupt(*arrays[:5], 0.805, 0.0975))


def role_from_the_selecting_stream(patch):
    patch.setattr(noise, "ROLE", noise.SELECT)


def last_id_never_drawn(patch):
    below = noise.below
    patch.setattr(noise, "below", lambda words, bound: below(words, bound - 1))


def swapped_for_the_next_id(patch):
    def corrupt(ids, selected, *_):
        pool = tf.constant(POOL, "int32")
        rank = tf.searchsorted(pool, tf.reshape(ids, [-1]))
        following = tf.reshape(tf.gather(pool, (rank + 1) % len(POOL)), tf.shape(ids))
        return tf.where(selected, following, ids)

    patch.setattr(masking, "corrupt", corrupt)


def protected_ids_in_the_pool(patch):
    create = DynamicMasking.__init__

    def create_broken(self, *args, **kwargs):
        create(self, *args, **kwargs)
        self._random_tokens = RandomTokens(np.ones(VOCABULARY, "int32"), False)

    patch.setattr(DynamicMasking, "__init__", create_broken)


def window_always_at_the_start(patch):
    select = masking.select_exactly
    patch.setattr(masking, "select_exactly", lambda keys, selectable, count, turn, *rest: (
        select(keys, selectable, count, ops.zeros_like(turn), *rest)))  # fmt: skip


def skip_words_that_overflow(patch):
    """BERT's rule: words in random order, leaving out those that do not fit any more."""

    def skip(keys, selectable, count):
        selected = np.zeros_like(selectable)
        for row in range(len(keys)):
            places = np.flatnonzero(selectable[row])
            places = places[np.argsort(keys[row, places], kind="stable")]
            room = count[row, 0]
            for unit in np.split(places, np.flatnonzero(np.diff(keys[row, places])) + 1):
                if len(unit) <= room:
                    selected[row, unit] = True
                    room -= len(unit)
        return selected

    patch.setattr(masking, "compiled", lambda function, *arguments: function(*arguments))
    patch.setattr(masking, "select_exactly", lambda keys, selectable, count, *_: (
        tf.ensure_shape(tf.numpy_function(skip, [keys, selectable, count], tf.bool), (BATCH, 64))
    ))  # fmt: skip


def count_by_independent_draws(patch):
    patch.setattr(masking, "select_lowest", lambda keys, selectable, *_: (
        select_independently(noise.uniform(keys), selectable, RATE)))  # fmt: skip


def window_behind_the_count(patch):
    select = masking.select_exactly
    patch.setattr(masking, "select_exactly", lambda keys, selectable, count, turn, *_: (
        select(keys, selectable, count, (turn + ops.divide(
            count, ops.maximum(masking.count_positions(selectable), 1))) % 1.0)))  # fmt: skip


def weights_ignored(patch):
    patch.setattr(masking, "weighted_order", lambda noise, weights: ops.view(noise, "int32"))


def spans_5_percent_too_long(patch):
    patch.setattr(masking, "unit_begins", lambda may, boundary, edges, coin, mean: unit_begins(
        may, boundary, edges, coin, mean * 1.05))  # fmt: skip


def noise_by_position_in_words(patch):
    patch.setattr(
        masking, "unit_numbers", lambda begins: ops.cumsum(ops.ones_like(begins, "int32"), axis=1)
    )


def masks_in_inference(patch):
    patch.setattr(DynamicMasking, "_untouched", lambda self, inputs: self.mask(inputs))


def content(change):
    def break_it(patch):
        patch.setattr(DynamicMasking, "content", lambda self, inputs: change(inputs["token_ids"]))

    return break_it


def place_in_the_batch(ids):
    return noise.words(ops.arange(ops.shape(ids)[0], dtype="int32"))


def with_its_padding(ids):
    return noise.content_words(ids, ids == ids)


def fewer_steps(**settings):
    return fresh_draw(**{"steps": 4, "jit": False} | settings)


def t5_without_its_roll(patch):
    """One stretch in the order of the text, at the same place in every row."""
    with_bits(text_order)(patch)
    window_always_at_the_start(patch)


def one_over_the_rate(patch):
    select = DynamicMasking._select
    patch.setattr(DynamicMasking, "_select", lambda self, inputs, keys, units, budget: (
        select(self, inputs, keys, units, budget)[0], 1 / budget.rate))  # fmt: skip


def no_weights_at_all(patch):
    select = DynamicMasking._select
    patch.setattr(DynamicMasking, "_select", lambda *arguments: (select(*arguments)[0], 1.0))


INDEPENDENT = {"exact_count": False}
MUTANTS = {
    "1 / rate for an exact count": (one_over_the_rate, weights_of_a_row_sum_to_its_tokens),
    "selected tokens of weight 1": (no_weights_at_all, lambda: p_of_estimates(**INDEPENDENT)),
    "the same mask for every row": (the_same_mask_for_every_row, lambda: p_of_rows(fresh_draw)),
    "a mask frozen at one step": (
        with_moment(lambda moment: (0, moment[1])), lambda: p_of_steps(fresh_draw)),
    "the same stream on two replicas": (
        with_moment(lambda moment: (moment[0], 0)), lambda: p_of_replicas(fresh_draw)),
    "one position favoured by .01": (
        with_bits(favour_position_7), lambda: p_of_positions(fresh_draw, **INDEPENDENT)),
    "sliding minimum": (
        with_bits(sliding_minimum), lambda: p_of_counts(fresh_draw, **INDEPENDENT)),
    "smoothed keys": (with_bits(smoothed), lambda: p_of_neighbours(fresh_draw)),
    "one stretch of text": (with_bits(text_order), lambda: p_of_neighbours(fresh_draw)),
    "T5 without its roll": (t5_without_its_roll, lambda: p_of_positions(fresh_draw)),
    "80.5 / 9.75 / 9.75": (shares_of_80_5, lambda: p_of_shares(fresh_draw)),
    "role from the selecting stream": (
        role_from_the_selecting_stream, lambda: p_of_shares(fresh_draw, **INDEPENDENT)),
    "random id off by one": (last_id_never_drawn, lambda: p_of_swapped_ids(fresh_draw)),
    "swapped for the next id": (
        swapped_for_the_next_id, lambda: p_of_swaps_given_the_original(fresh_draw)),
    "protected ids in the pool": (
        protected_ids_in_the_pool, lambda: respects_the_protected(fresh_draw)),
    "window always at the start": (
        window_always_at_the_start, lambda: p_of_word_lengths(fresh_draw)),
    "BERT skips what overflows": (skip_words_that_overflow, lambda: p_of_word_lengths(fewer_steps)),
    "independent draws for a count": (count_by_independent_draws, lambda: is_exact(fresh_draw)),
    "window behind the count": (window_behind_the_count, lambda: is_nested(WORDS)),
    "weights ignored": (weights_ignored, lambda: p_of_weights(fresh_draw)),
    "spans 5 % too long": (spans_5_percent_too_long, p_of_span_lengths),
    "noise by position in words": (noise_by_position_in_words, lambda: is_uncut(WORDS)),
    "masks in inference": (masks_in_inference, is_identity_in_inference),
    "evaluation by place in the batch": (content(place_in_the_batch), depends_on_content_alone),
    "evaluation sees the padding": (content(with_its_padding), depends_on_content_alone),
}  # fmt: skip


@pytest.mark.parametrize(("break_it", "law"), MUTANTS.values(), ids=MUTANTS)
@pytest.mark.slow
def test_a_law_rejects_the_mutant(break_it, law, monkeypatch):
    """A law that holds returns True or a p-value above 1e-6; a broken one False or less."""
    break_it(monkeypatch)
    verdict = law()
    print(f"{verdict:.1e}")
    assert verdict < ALPHA


def test_the_laws_are_tested_on_tensorflow():
    assert keras.backend.backend() == "tensorflow"
