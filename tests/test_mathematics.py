"""The page on mathematics: its code is the package's, and its numbers are what that gives.

Statistical tests have fixed seeds; a new stream of noise fails one with probability 1e-6
(a z of 4.89). Each says what it would see.
"""

import ast
import functools
import itertools
import math
import re
from fractions import Fraction
from pathlib import Path

import keras
import numpy as np
import pytest
from elsewhere import on
from scipy import stats

from keras_dynmask import DynamicMasking, MaskedLanguageModel, TransformerEncoder, noise
from keras_dynmask.arrays import numpy_in_force
from keras_dynmask.corruption import corrupt
from keras_dynmask.pieces import PIECE, losses_in_pieces
from keras_dynmask.selection import (
    select_exactly,
    select_first,
    select_independently,
    selected_count,
    weighted_edge,
    weighted_order,
)
from keras_dynmask.units import unit_begins, unit_numbers
from keras_dynmask.visible import visible_capacity

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "mathematics.md").read_text()
PAGE = " ".join(TEXT.split())  # a sentence may go on in the next line
BENCHMARKS = (ROOT / "benchmarks" / "README.md").read_text()
QUOTED = re.compile(r"(?ms)^`([\w.]+)` in `(\w+\.py)`:\n\n```python\n(.*?)^```$")
LIMIT = 4.89


def z_of(values, mean):
    """How far the mean of independent values is from `mean`, in standard errors."""
    return (np.mean(values) - mean) / (np.std(values) / len(values) ** 0.5)


@pytest.fixture
def in_numpy():
    with numpy_in_force():
        yield


# The page itself


@pytest.mark.parametrize(("name", "file", "code"), QUOTED.findall(TEXT))
def test_the_code_on_the_page_is_that_of_the_package(name, file, code):
    assert "\n" + code in source_of(name, file)


def source_of(name, file):
    source = (ROOT / "keras_dynmask" / file).read_text()
    node = ast.parse(source)
    for part in name.split("."):
        (node,) = (each for each in node.body if getattr(each, "name", None) == part)
    return "\n" + "".join(source.splitlines(keepends=True)[node.lineno - 1 : node.end_lineno])


def test_all_code_on_the_page_says_where_it_is_from():
    assert TEXT.count("```python") == len(QUOTED.findall(TEXT)) > 20


def test_formulas_survive_markdown():
    prose = re.sub(r"```.*?```|`[^`\n]+`", "", TEXT, flags=re.DOTALL)
    displayed = re.findall(r"^\$\$(.+)\$\$$", prose, re.MULTILINE)
    prose = re.sub(r"^\$\$.+\$\$$", "", prose, flags=re.MULTILINE)
    inline = r"(?<![\w$])\$((?! )[^$\n]+(?<! ))\$(?![\w$-])"
    assert "$" not in re.sub(inline, "", prose)
    for formula in displayed + re.findall(inline, prose):
        assert not re.search(r"\\[^A-Za-z]|[})]_|[*<>]", formula), formula


# 1. Keys and units


def test_units_keep_keys_uniform_and_a_sliding_minimum_does_not(in_numpy):
    """Sees 2 % of the rate at each position, over a million rows; the minimum is off by 157 %."""
    rows, positions = 2**20, np.arange(4, dtype="int32")
    keys = noise.row_keys(1, (0, 0), noise.words(np.arange(rows, dtype="int32")))
    coin = noise.uniform(noise.bits(keys, positions, noise.BEGIN))
    nowhere, first = np.zeros_like(coin, dtype=bool), positions == 0
    units = unit_numbers(unit_begins(~nowhere, nowhere, first, coin, 2.0))
    shared = noise.uniform(noise.bits(keys, units, noise.SELECT))
    selected = select_independently(shared, ~nowhere, 0.15)
    assert all(abs(z_of(selected[:, p], 0.15)) < LIMIT for p in positions)

    own = noise.uniform(noise.bits(keys, positions, noise.SELECT))
    below = np.minimum(np.minimum(own[:, 0], own[:, 1]), own[:, 2]) < 0.15
    assert abs(z_of(below, 1 - 0.85**3)) < LIMIT
    assert f"1 - .85^3 = {1 - 0.85**3:.3f}".replace("0.", ".") in PAGE


def test_lengths_of_spans_are_geometric(in_numpy):
    """Sees 2 % of a half and 4 % of an eighth, over 262,144 rows."""
    coin = np.random.default_rng(0).random((2**18, 24), dtype="float32")
    nowhere, first = np.zeros_like(coin, dtype=bool), np.arange(24) == 0
    begins = unit_begins(~nowhere, nowhere, first, coin, 2.0)
    lengths = 1 + begins[:, 1:].argmax(axis=1)  # of the first unit
    for length, share in enumerate([1 / 2, 1 / 4, 1 / 8], 1):
        assert abs(z_of(lengths == length, share)) < LIMIT


# 2. The count, and the circle


@pytest.mark.parametrize(("size", "rate"), [(60, 0.15), (62, 0.15), (512, 0.3)])
def test_the_mean_count_over_all_coins_is_exact(in_numpy, size, rate):
    found = np.zeros(size + 1, "int64")
    for first in range(0, 2**24, 2**21):  # all coins there are
        coins = (np.arange(first, first + 2**21) * 2.0**-24).astype("float32")[:, None]
        counts = selected_count(np.full_like(coins, size, dtype="int32"), rate, coins)
        found += np.bincount(counts[:, 0], minlength=size + 1)
    assert abs(found @ np.arange(size + 1) / 2**24 - rate * size) < 2**-23 * size
    if size == 60:
        assert found[9] == 2**24
    if size == 62:
        assert found[9] / 2**24 == pytest.approx(0.7, abs=1e-5)


def circle(lengths, count):
    """What the rule selects for every order (first axis) and place: bool, and whose
    positions they are."""
    size, units = sum(lengths), np.repeat(np.arange(len(lengths)), lengths)
    orders = np.array(list(itertools.permutations(range(len(lengths)))), "int32")
    keys = np.repeat(orders[:, units], size, axis=0)
    turns = np.tile((np.arange(size) + 0.5) / size, len(orders)).astype("float32")[:, None]
    counts = np.full_like(turns, count, dtype="int32")
    selected = select_exactly(keys, keys == keys, counts, turns)
    return selected.reshape(len(orders), size, size), units


@pytest.mark.parametrize("lengths", [(1, 1, 2), (1, 2, 2), (3, 1, 2, 1), (5, 1, 1), (4, 4, 3)])
def test_the_circle_selects_units_of_every_length_equally_often(in_numpy, lengths):
    size = sum(lengths)
    for count in range(size + 1):
        selected, units = circle(lengths, count)
        for unit in range(len(lengths)):
            of_unit = selected[:, :, units == unit]
            assert (of_unit.all(axis=2) == of_unit.any(axis=2)).all()  # never cut
            assert (of_unit.all(axis=2).sum(axis=1) == count).all()  # of `size` places
        counts = selected.sum(axis=2)
        assert (counts.mean(axis=1) == count).all()
        assert (abs(counts - count) < max(lengths)).all()


def test_the_example_of_the_circle(in_numpy):
    selected, units = circle((1, 2, 2), 2)
    in_order = selected[0]  # the first order is theirs
    for place, chosen in enumerate(in_order):
        names = ", ".join(np.array(["first", "second", "third"])[np.unique(units[chosen])])
        window = f"{place}, {(place + 1) % 5}"
        assert f"| {place} | {window} | {names} | {chosen.sum()} |" in PAGE


def test_who_skips_what_does_not_fit_favours_short_words():
    lengths, found = (1, 1, 2), np.zeros(3)
    for order in itertools.permutations(range(3)):
        room = 2
        for unit in order:
            if lengths[unit] <= room:
                found[unit], room = found[unit] + 1, room - lengths[unit]
    assert (found / 6).tolist() == [2 / 3, 2 / 3, 1 / 3]


# 3. Weighted selection


def odds_of_being_drawn(weights, count):
    """By the definition: one after the other, in proportion to what is left."""
    odds = [Fraction(0)] * len(weights)

    def draw(left, number, chance):
        for unit in left if number else ():
            share = chance * Fraction(weights[unit], sum(weights[each] for each in left))
            odds[unit] += share
            draw([each for each in left if each != unit], number - 1, share)

    draw(range(len(weights)), count, Fraction(1))
    return odds


@pytest.mark.parametrize(
    ("count", "told"), [(1, "1/6, 1/3, 1/2"), (2, "5/12, 11/15 and 17/20")], ids=["one", "two"]
)
def test_weighted_units_are_drawn_one_after_the_other(in_numpy, count, told):
    """Sees 1 % of each probability, over a million rows (2 % of a sixth)."""
    expected = odds_of_being_drawn((1, 2, 3), count)
    assert ", ".join(map(str, expected)) == told.replace(" and", ",")
    assert told in PAGE
    keys = np.random.default_rng(0).integers(-(2**31), 2**31, (2**20, 3)).astype("int32")
    order = weighted_order(noise.uniform(keys), np.float32([[1, 2, 3]]))
    counts = np.full((len(keys), 1), count, "int32")
    selected = select_first(order, keys, keys == keys, counts, np.zeros((len(keys), 1)))
    for unit in range(3):
        assert abs(z_of(selected[:, unit], float(expected[unit]))) < LIMIT


def test_the_last_unit_is_kept_as_often_as_it_has_room(in_numpy):
    turns = (np.arange(3000)[:, None] + 0.5) / 3000
    keys, one = np.zeros((3000, 3), "int32"), np.ones((3000, 1), "int32")
    for room in (0, 1, 2, 3):
        selected = select_first(keys, keys, keys == keys, room * one, turns)
        assert selected.all(axis=1).sum() == selected.any(axis=1).sum() == 1000 * room


@pytest.mark.parametrize("weight", [0.5, 1, 2, 7])
def test_independent_weighted_draws_have_the_probability_of_the_formula(in_numpy, weight):
    uniform = ((np.arange(2**16)[None] + 0.5) / 2**16).astype("float32")
    order = weighted_order(uniform, np.float32(weight))
    selected = select_independently(order, uniform >= 0, weighted_edge(0.15))
    assert abs(selected.mean() - (1 - 0.85**weight)) < 2**-16
    assert f"1 - .85^2 = {1 - 0.85**2:.4f}".replace("0.", ".") in PAGE


# 4. Corruption


def test_a_role_is_hidden_swapped_or_kept_by_the_length_of_its_interval(in_numpy):
    role = np.repeat((np.arange(1000) + 0.5) / 1000, 4)[None].astype("float32")
    pool = np.tile([5, 6, 7, 8], 1000)[None]  # each of four ids for every role
    ids, all_of_them = np.full_like(pool, 5), np.ones_like(pool, dtype=bool)
    shown = corrupt(ids, all_of_them, role, pool, 1, 0.8, 0.1)
    assert (shown == 1).mean() == 0.8
    assert (shown > 5).mean() == pytest.approx(0.1 * 3 / 4)
    assert (shown == 5).mean() == pytest.approx(0.1 + 0.1 / 4)
    assert "four ids, .125 in place of .1" in PAGE


# 5. The loss, and how much it varies

LOSSES = np.arange(1.0, 7)


def of_independent(losses, rate):
    return (1 - rate) / rate * np.sum(losses**2)


def of_exact(losses, count):
    size = len(losses)
    return size**2 * (1 - count / size) / count * np.var(losses, ddof=1)


def test_variances_by_hand():
    pairs = [3 * sum(pair) for pair in itertools.combinations(LOSSES, 2)]
    assert np.mean(pairs) == 21 and np.var(pairs) == pytest.approx(of_exact(LOSSES, 2))
    subsets = np.array(list(itertools.product([0, 1], repeat=6)))
    odds = np.prod(np.where(subsets, 1 / 3, 2 / 3), axis=1)
    sums = 3 * subsets @ LOSSES
    assert odds @ sums == pytest.approx(21)
    assert odds @ (sums - 21) ** 2 == pytest.approx(of_independent(LOSSES, 1 / 3))
    assert of_independent(LOSSES, 1 / 3) == pytest.approx(182)
    assert of_exact(LOSSES, 2) == pytest.approx(42)
    assert "$2 \\cdot 91 = 182$" in PAGE and "3.5 = 42$" in PAGE
    assert f"deviation of {182**0.5:.1f} or of 6.5" in PAGE and f"{182 / 42:.2f}" in PAGE


def estimates(**settings):
    """Weighted losses of 262,144 rows of six tokens, and their mean over the selected."""
    layer = DynamicMasking(20, 1 / 3, 1, inverse_rate_weights=True, seed=5, **settings)
    weights = layer.mask_arrays(np.tile(np.arange(10, 16), (2**18, 1)))["mask_weights"]
    selected = weights > 0
    filled = selected[selected.any(axis=1)]
    return weights @ LOSSES, filled @ LOSSES / filled.sum(axis=1)


def test_the_layer_varies_as_the_formulas_say():
    """Sees 2 % of each variance: a square spreads by 1.1 to 1.3 times its mean."""
    exact, mean_of_exact = estimates()
    independent, mean_of_independent = estimates(exact_count=False)
    for sums, variance in (
        (exact, of_exact(LOSSES, 2)),
        (independent, of_independent(LOSSES, 1 / 3)),
    ):
        assert abs(z_of(sums, 21)) < LIMIT
        assert abs(z_of((sums - 21) ** 2, variance)) < LIMIT
    for means, inverse in (
        (mean_of_exact, 1 / 2),
        (mean_of_independent, mean_inverse(6, 1 / 3)),
    ):
        assert abs(z_of((means - 3.5) ** 2, (inverse - 1 / 6) * 3.5)) < LIMIT


def mean_inverse(size, rate):
    """The mean of 1 / s, where s of `size` are selected independently, and at least one."""
    counts = np.arange(1, size + 1)
    return stats.binom.pmf(counts, size, rate) @ (1 / counts) / (1 - (1 - rate) ** size)


def test_the_ratio_of_the_variances():
    for losses in (LOSSES, np.random.default_rng(0).exponential(size=50)):
        size = len(losses)
        ratio = of_independent(losses, 0.3) / of_exact(losses, 0.3 * size)
        gain = (1 - 1 / size) * (1 + losses.mean() ** 2 / losses.var())
        assert ratio == pytest.approx(gain)


def test_what_independent_draws_cost_the_plain_mean():
    def excess(rows):
        size = 60 * rows
        exact = 1 / (0.15 * size) - 1 / size
        return (mean_inverse(size, 0.15) - 1 / size) / exact - 1

    assert f"the mean of $1 / s$ is {mean_inverse(60, 0.15):.4f}".replace("0.", ".") in PAGE
    assert f"larger by {excess(1):.0%}".replace("%", " %") in PAGE
    assert round(100 * excess(32), 1) == 0.3 and "32 such rows, .3 %" in PAGE
    assert round(0.85**-60, -3) == 17000 and "one row of 17,000" in PAGE


def test_exact_counts_leave_the_variance_inside_the_rows():
    rows = (1, 2, 3), (5, 6, 7)
    any_two = [np.mean(pair) for pair in itertools.combinations(rows[0] + rows[1], 2)]
    one_of_each = [np.mean(pair) for pair in itertools.product(*rows)]
    assert f"5.6 = {np.var(any_two):.2f}$" in PAGE
    assert f"1 = {np.var(one_of_each):.2f}$".replace("0.", ".") in PAGE


# 6. Masked diffusion

# What a model that was never trained says of three tokens: the loss of each, for every set of
# hidden tokens; the bits of a number are a set.
TABLE = np.random.default_rng(0).exponential(size=(8, 3)) + 0.1
SETS = [[i for i in range(3) if hidden >> i & 1] for hidden in range(8)]
OF_SET = np.array([TABLE[hidden, SETS[hidden]].sum() for hidden in range(8)])


def over_orders(table, size):
    """Minus the logarithm of what each order gives."""
    found = []
    for order in itertools.permutations(range(size)):
        hidden = [sum(2**token for token in order[step:]) for step in range(size)]
        found.append(sum(table[s][token] for s, token in zip(hidden, order, strict=True)))
    return np.array(found)


def by_counts(of_set, size, weight):
    """The mean over counts 1 to `size` of what the sets of each count give in the mean."""
    by_count = [[] for _ in range(size + 1)]
    for hidden, value in enumerate(of_set):
        by_count[hidden.bit_count()].append(value)
    return np.mean([weight(k) * np.mean(by_count[k]) for k in range(1, size + 1)])


def test_the_bound_is_the_same_over_times_counts_and_orders():
    bound = over_orders(TABLE, 3).mean()
    assert by_counts(OF_SET, 3, lambda k: 3 / k) == pytest.approx(bound)
    times, shares = np.polynomial.legendre.leggauss(8)  # exact: 1 / t times a polynomial of t
    times, shares = (times + 1) / 2, shares / 2
    size = np.array([len(hidden) for hidden in SETS])
    odds = times[:, None] ** size * (1 - times[:, None]) ** (3 - size)
    assert shares @ (odds @ OF_SET / times) == pytest.approx(bound)
    assert -np.log(np.mean(np.exp(-over_orders(TABLE, 3)))) < bound


def test_the_bound_by_hand():
    table = np.log([[1, 1], [2, 1], [1, 2], [2, 4]])  # nothing, 1, 2 and both hidden
    assert over_orders(table, 2) / math.log(2) == pytest.approx([2, 3])
    of_set = [table[1][0], table[2][1], table[3].sum()]
    assert by_counts([0, *of_set], 2, lambda k: 2 / k) == pytest.approx(2.5 * math.log(2))


@functools.cache
def diffused(**settings):
    """Which sets 262,144 rows of three tokens hide, and the weights; by the call on the page."""
    (call,) = re.findall(r"^DynamicMasking\(\.\.\., (.*?)\)$", TEXT, re.DOTALL | re.MULTILINE)
    settings = eval(f"dict({call})") | settings
    layer = DynamicMasking(20, mask_token_id=1, seed=2, **settings)
    ids = np.tile(np.arange(10, 13), (2**18, 1))
    masked = layer.mask_arrays({"token_ids": ids, "row_ids": np.arange(2**18)})
    assert ((masked["token_ids"] == 1) == (masked["mask_weights"] > 0)).all()
    return (masked["token_ids"] == 1) @ [1, 2, 4], masked["mask_weights"]


@pytest.mark.parametrize(
    "settings", [{}, {"exact_count": False, "at_least_one": False}], ids=["exact", "independent"]
)
def test_the_layer_estimates_the_bound(settings):
    """Sees 2 % with exact counts, and 4 % with independent draws."""
    hidden, weights = diffused(**settings)
    assert abs(z_of((weights * TABLE[hidden]).sum(axis=1), over_orders(TABLE, 3).mean())) < LIMIT


def test_exact_counts_are_uniform_and_their_weights_add_up():
    hidden, weights = diffused()
    counts = np.array([len(tokens) for tokens in SETS])[hidden]
    assert all(abs(z_of(counts == count, 1 / 3)) < LIMIT for count in (1, 2, 3))
    np.testing.assert_allclose(weights.max(axis=1), 3 / counts, rtol=1e-6)
    np.testing.assert_allclose(weights.sum(axis=1), 3, rtol=1e-6)


def test_a_batch_as_large_as_a_row_is_long_has_every_count_once():
    layer = DynamicMasking(20, (0.0, 1.0), 1, inverse_rate_weights=True, seed=2)
    for step in range(20):
        weights = layer.mask_arrays(np.full((8, 8), 10), step=step)["mask_weights"]
        assert sorted((weights > 0).sum(axis=1)) == list(range(1, 9))


def test_the_weight_one_over_rate_is_wrong_for_a_count(in_numpy):
    rates = (np.arange(1, 2**16 + 1)[:, None] * 2.0**-16).astype("float32")
    sizes = np.full_like(rates, 8, dtype="int32")
    counts = selected_count(sizes, rates, np.ones_like(rates))  # rounded up
    for count in range(2, 9):
        wrong = (1 / rates[counts == count]).mean()
        assert wrong == pytest.approx(8 * math.log(count / (count - 1)), rel=1e-3)
        assert wrong > 8 / count
    assert f"${math.log(2):.3f} n$ for $k = 2$".replace("0.", ".") in PAGE


def test_the_variance_of_times_that_are_cut_off():
    cut = 0.001
    variance = -math.log(cut) - 1 + cut  # of n c**2: the integral of (1 - t) / t
    assert f"cut off at .001 it is about ${variance:.1f} n c^2$" in PAGE


# 7. The cost of a step


def of_block(n, d, m):
    return n * (4 * d**2 + 3 * d * m) + 2 * n**2 * d


def of_head(q, d, vocabulary):
    return q * (d**2 + d * vocabulary)


def of_decoder(k, v, d, m):
    return 2 * v * d**2 + k * (d**2 + 3 * d * m) + 2 * k * v * d


def standard(n, k, d, m, layers, vocabulary):
    return layers * of_block(n, d, m) + of_head(k, d, vocabulary)


def visible_only(v, k, d, m, layers, vocabulary):
    blocks = (layers - 1) * of_block(v, d, m)
    return blocks + of_decoder(k, v, d, m) + of_head(k, d, vocabulary)


def multiply_adds(jaxpr):
    """Of all matrix products in what JAX has traced."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            ((contracted, _), _) = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(
                shape[axis] for axis in contracted
            )
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    total += equation.params.get("length", 1) * multiply_adds(inner)
    return total


SIZES = {"d": 128, "m": 256, "layers": 4, "vocabulary": 8000}  # of the benchmark
ROWS, LENGTH, RATE = 16, 128, 0.5


def masking_of(vocabulary, rate):
    return DynamicMasking(vocabulary, rate, 1, mask_token_rate=1.0, random_token_rate=0.0, seed=0)


def counted_on_jax():
    """Multiply-adds of a training step and XLA's own count of it, with the standard model and with
    visible only; and multiply-adds of the objective in pieces."""
    import jax

    arrays = [np.ones(shape, "float32") for shape in ((6, 8), (40, 8), (40,))]
    ids = np.zeros(6, "int32")

    def in_pieces(*arrays):
        return keras.ops.sum(losses_in_pieces(*arrays, ids, piece=10)[0])

    pieces = jax.make_jaxpr(jax.value_and_grad(in_pieces, argnums=(0, 1, 2)))(*arrays)
    return step_on_jax(False), step_on_jax(True), multiply_adds(pieces.jaxpr)


def step_on_jax(only_visible):
    import jax

    d, m, layers, vocabulary = SIZES.values()
    encoder = TransformerEncoder(vocabulary, layers - only_visible, 4, d, m, dropout=0.0)
    masking = masking_of(vocabulary, RATE)
    model = MaskedLanguageModel(encoder, masking, visible_only=only_visible)
    model.compile("sgd")
    model.optimizer.build(model.trainable_variables)
    held = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    state = tuple([variable.value for variable in variables] for variables in held)
    traced = jax.jit(model.train_step).trace(state, (np.full((ROWS, LENGTH), 10, "int32"),))
    return multiply_adds(traced.jaxpr.jaxpr), traced.lower().cost_analysis()["flops"]


def targets_and_room(n, rate):
    masking, features = masking_of(8000, rate), {"token_ids": np.zeros((1, n), "int32")}
    return masking.selection_capacity(features), visible_capacity(masking, features)


@pytest.mark.slow
def test_a_step_multiplies_as_often_as_the_formulas_say():
    """XLA counts what is no product, too: 2.4 and 2.9 % of it."""
    of_standard, of_visible, of_pieces = on("jax", counted_on_jax)
    k, v = targets_and_room(LENGTH, RATE)
    once = SIZES["d"] ** 2  # the queries' projection, for all rows
    for (counted, by_xla), expected in (
        (of_standard, ROWS * standard(LENGTH, k, **SIZES)),
        (of_visible, ROWS * visible_only(v, k, **SIZES) + once),
    ):
        assert counted == 3 * expected
        assert 1 < by_xla / (6 * expected) < 1.04
    # Four products in place of three, and the gradient of the bias is one with a vector.
    assert of_pieces == 6 * 40 * (4 * 8 + 1)


def in_millions(number):
    return f"{round(number / 1e6):,}"


@pytest.mark.parametrize(
    ("n", "rate"), [(128, 0.15), (128, 0.5), (512, 0.15), (512, 0.5), (2048, 0.5), (8192, 0.5)]
)
def test_the_table_of_visible_only(n, rate):
    k, v = targets_and_room(n, rate)
    ours, theirs = visible_only(v, k, **SIZES), standard(n, k, **SIZES)
    name = f"{n:,}, {rate:g}".replace("0.", ".")
    ((_, _, times, *_),) = measured(name)
    cells = [k, v, in_millions(theirs), in_millions(ours), f"{theirs / ours:.1f}", times]
    assert f"| {name} | {' | '.join(map(str, cells))} |".replace("|  |", "| |") in PAGE


def test_the_examples_of_cost():
    wide = SIZES | {"vocabulary": 30522}
    everywhere, selected = (standard(128, k, **wide) for k in (128, 19))
    words = (
        f"a block costs {of_block(128, 128, 256) / 1e6:.1f}, four of them "
        f"{4 * of_block(128, 128, 256) / 1e6:.1f}; the head costs "
        f"{of_head(128, 128, 30522) / 1e6:.1f} at all positions and "
        f"{of_head(19, 128, 30522) / 1e6:.1f} at the selected. Together {everywhere / 1e6:.1f} and "
        f"{selected / 1e6:.1f}: {everywhere / selected:.1f} times as much."
    )
    assert words in PAGE


def measured(line):
    """The numbers of the lines of the benchmarks' tables that begin so."""
    found = re.findall(rf"^\| {re.escape(line)} \|(.*)\|$", BENCHMARKS, re.MULTILINE)
    return [cells.replace("*", "").replace(" ", "").split("|") for cells in found]


def test_the_examples_of_memory():
    mebi, width = 2**20, math.ceil(30522 / math.ceil(30522 / PIECE))
    everywhere, selected = (3 * 4 * q * 30522 / mebi for q in (8192, 64 * 19))
    assert f"3 \\cdot 954 = {everywhere:.0f}$ MiB" in PAGE and f"they make {selected:.0f}." in PAGE
    least, most = (4 * (n * 1216 * width + 30522 * 128) / mebi for n in (1, 2))
    (cells,) = measured("30,522")
    seconds, mebibytes = zip(
        *(re.findall(r"\d[\d.,]*|\.\d+", cell) for cell in cells[:3]), strict=True
    )
    (of_all, of_selected, of_pieces) = mebibytes
    assert f"): {of_all} and {of_selected}." in PAGE
    assert f"$w = {width}$: {least:.0f} to {most:.0f} MiB; measured {of_pieces}." in PAGE
    (of_all, of_selected, of_pieces) = seconds
    assert f"from {of_selected} to {of_pieces} seconds" in PAGE
    times = float(of_all) / float(of_selected)
    assert f"are as {8192 / 1216:.1f} to 1, its time was as {times:.1f} to 1" in PAGE
    k, v = targets_and_room(8192, 0.5)
    factor = 4 * 8192**2 / (3 * v**2 + k * v)
    ((*_, theirs, ours, times),) = measured("8,192, .5")
    assert f"The room for {v:,} makes the factor {factor:.1f}." in PAGE
    assert f"{theirs} MiB and {ours}, a factor of {times}." in PAGE


# 8. Generation


def test_the_examples_of_generation():
    assert ", ".join(str(10 * (i + 1) // 4) for i in range(4)) == "2, 5, 7, 10"
    assert "ten tokens in four steps: 2, 5, 7, 10" in PAGE
    joint, product = {"AA": 1 / 2, "BB": 1 / 2}, 1 / 4
    assert sum(q * math.log(q / product) for q in joint.values()) == pytest.approx(math.log(2))
