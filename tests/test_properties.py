"""Whatever the settings and whatever the inputs: the outputs keep the contract.

Hypothesis draws both, small and odd on purpose, and looks for a pair that breaks it. What
does not go together must be refused, by a `ValueError` that names an argument.
"""

import functools
import inspect
import math
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from keras_dynmask import DynamicMasking
from keras_dynmask import masking as masking_file
from keras_dynmask.arrays import numpy_in_force
from keras_dynmask.replacements import RandomTokens

INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"]
FRACTIONS = [0.0, 2.0**-24, 0.01, 0.15, 1 / 3, 0.5, 0.9, 1 - 2.0**-24, 1.0]
STEPS = [0, 1, 2, 1000, 2**24 + 1, 2**31 - 1, 2**31, 2**40 + 3]
SEEDS = [0, 1, 7, 2**31, 2**32, 2**63 - 1, 2**64 - 1]


def property_of(strategy, examples, shrink=True):
    """A test of so many examples, the same ones in every run."""
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]

    def decorate(test):
        test = given(example=strategy)(test)
        return settings(
            max_examples=examples,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=phases,
            report_multiple_bugs=False,
        )(test)

    return decorate


class Example(NamedTuple):
    arguments: dict  # of the constructor
    inputs: dict  # arrays `[batch, length]`, or `[length]`
    step: int
    mode: str  # "training", "inference", "evaluation"


# What may be drawn. Strategies are made once: that costs more than to draw from them.

once = functools.cache


@once
def now_and_then(strategy, otherwise=None):
    return st.one_of(st.just(otherwise), st.just(otherwise), strategy)


fractions = st.one_of(st.sampled_from(FRACTIONS), st.floats(0, 1, width=32))
pairs = st.tuples(fractions, fractions).map(lambda pair: tuple(sorted(pair)))
schedules = st.one_of(
    st.builds(
        keras.optimizers.schedules.PolynomialDecay, fractions, st.sampled_from([1, 999]), fractions
    ),
    st.builds(keras.optimizers.schedules.ExponentialDecay, fractions, st.just(3), st.just(1.5)),
)
rates = st.one_of(fractions, fractions, fractions, pairs, pairs, schedules)
maybe_rates = now_and_then(rates)
sizes = st.sampled_from([1, 2, 3, 4, 5, 8, 11, 16, 24, 127, 128, 129, 300, 40_000])
seeds = st.one_of(st.sampled_from(SEEDS), st.integers(0, 2**64 - 1))
steps = st.one_of(st.sampled_from(STEPS), st.integers(0, 2**31))
shares = st.sampled_from([(0.8, 0.1), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.5, 0.5)])
spans = now_and_then(st.sampled_from([1.5, 3.0, 1e9]), 1.0)
FLAGS = ("exact_count", "at_least_one", "count_per_document", "random_excludes_original")
FLAGS += ("corrupt_whole_units", "inverse_rate_weights")


@once
def up_to(highest):
    return st.integers(0, highest)


@once
def bytes_of(size):
    return st.binary(min_size=size, max_size=size)


@once
def some_ids(size, most):
    return st.binary(max_size=most).map(
        lambda drawn: tuple(sorted({byte % size for byte in drawn}))
    )


@once
def some_words(size):
    """Words of up to three ids."""
    drawn = st.binary(min_size=3, max_size=9).map(lambda drawn: [byte % size for byte in drawn])
    return drawn.map(lambda ids: [ids[at : at + 1 + at % 3] for at in range(len(ids))])


@once
def tables(size):
    """A weight for every id, some of them 0."""
    worth = np.array([1, 0, 2, 0.25, 1e-30, 1e30, 3], "float32")
    tables = bytes_of(min(size, 32)).map(
        lambda drawn: np.resize(worth[np.frombuffer(drawn, "uint8") % 7], size)
    )
    return now_and_then(tables.filter(np.any))


@once
def arguments_of(size, length):
    drawn = st.fixed_dictionaries(
        {
            "vocabulary_size": st.just(size),
            "mask_selection_rate": rates,
            "mask_token_id": up_to(size - 1),
            "mask_selection_length": now_and_then(st.integers(1, length + 2)),
            "unselectable_token_ids": some_ids(size, 3),
            "shares": shares,
            "flags": up_to(2 ** len(FLAGS) - 1),
            "evaluation_rate": maybe_rates,
            "mean_span_length": spans,
            "continuation_token_ids": now_and_then(some_ids(size, 12)),
            "selection_weights": tables(size),
            "random_token_weights": tables(size),
            "random_words": now_and_then(some_words(size)),
            "seed": seeds,
        }
    )

    def spread(shares, flags, **drawn):
        hide, swap = shares
        chosen = {name: bool(flags >> number & 1) for number, name in enumerate(FLAGS)}
        return drawn | chosen | {"mask_token_rate": hide, "random_token_rate": swap}

    return drawn.map(lambda drawn: spread(**drawn))


TRUTHS = ("bool", "int32", "uint8", "float32")
WORTH = np.array([1, 0, 2, 0.5, 1e-40, 1e-30, 3e38, 5], "float32")
BESIDE = {
    "padding_mask": (lambda drawn: drawn % 8 < 7, TRUTHS),
    "selectable": (lambda drawn: drawn % 4 < 3, TRUTHS),
    "begins": (lambda drawn: drawn % 2, TRUTHS),
    "segment_ids": (lambda drawn: np.cumsum(drawn % 4 == 1, axis=1), INTEGERS),
    "selection_weights": (lambda drawn: WORTH[drawn % 8], ("float32", "float64")),
}


OPTIONAL = [*BESIDE, "row_ids", "labels"]


@once
def drawn_inputs(shape):
    """What stands beside the ids, by its bit; what it and the ids are made of; their
    dtypes, by number; the first row's id."""
    size = math.prod(shape) * (len(BESIDE) + 1)
    present = st.tuples(up_to(2 ** len(OPTIONAL) - 1), up_to(2 ** len(OPTIONAL) - 1))
    return st.tuples(present, bytes_of(size), bytes_of(len(BESIDE) + 2), steps)


def inputs_of(size, shape, present, drawn, kinds, row):
    """Ids and, now and then, what may stand beside them."""
    chosen = present[0] & present[1]
    present = [name for number, name in enumerate(OPTIONAL) if chosen >> number & 1]
    drawn = np.frombuffer(drawn, "uint8").reshape(len(BESIDE) + 1, *shape)
    dtypes = [dtype for dtype in INTEGERS if np.iinfo(dtype).max >= size - 1]
    ids = drawn[-1].astype("int64") * (257 if size > 256 else 1) % size
    made = {"token_ids": ids.astype(dtypes[kinds[-1] % len(dtypes)])}
    for number, (name, (change, dtypes)) in enumerate(BESIDE.items()):
        if name in present:
            made[name] = change(drawn[number]).astype(dtypes[kinds[number] % len(dtypes)])
    if "row_ids" in present:
        bounds = np.iinfo(["int32", "int64", "uint8"][kinds[-2] % 3])
        row = bounds.min if row == 2**31 else min(row, bounds.max - 3)
        made["row_ids"] = np.arange(row, row + shape[0], dtype=bounds.dtype)
    if "labels" in present:
        made["labels"] = "as they came"
    return made


shapes = st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 2, 3, 5, 8, 9, 12]))
modes = st.sampled_from(["training"] * 4 + ["evaluation", "inference"])


@st.composite
def examples(draw):
    size, shape = draw(sizes), draw(shapes)
    arguments = draw(arguments_of(size, shape[1]))
    inputs = inputs_of(size, shape, *draw(drawn_inputs(shape)))
    if draw(up_to(15)):
        mend(arguments, inputs)
    mode = draw(modes)
    if shape[0] == 1 and draw(st.booleans()):
        inputs = {name: value if name == "labels" else value[0] for name, value in inputs.items()}
    return Example(arguments, inputs, draw(steps), mode)


# What goes together


def swappable(arguments):
    """Which ids may be swapped in: bool `[vocabulary_size]`."""
    table = np.ones(arguments["vocabulary_size"], bool)
    table[[*arguments["unselectable_token_ids"], arguments["mask_token_id"]]] = False
    return table


def pool(arguments):
    """Which ids are random tokens."""
    weights = arguments["random_token_weights"]
    return swappable(arguments) & (True if weights is None else weights > 0)


def of_tokens(arguments, inputs):
    alone = arguments["continuation_token_ids"] is None and arguments["mean_span_length"] == 1
    return alone and "begins" not in inputs


def pieces(arguments):
    return [piece for word in arguments["random_words"] or () for piece in word]


def conflicts(arguments, inputs):
    """The arguments that do not go together, by name."""
    a = arguments
    weighted = a["selection_weights"] is not None or "selection_weights" in inputs
    needed = 1 + a["random_excludes_original"]
    has_words = a["random_words"] is not None
    found = {
        "mask_token_rate": a["mask_token_rate"] + a["random_token_rate"] > 1,
        "count_per_document": a["count_per_document"]
        and not (a["exact_count"] and "segment_ids" in inputs),
        "corrupt_whole_units": has_words and not a["corrupt_whole_units"],
        "inverse_rate_weights": a["inverse_rate_weights"] and weighted,
        "at_least_one": a["at_least_one"]
        and a["inverse_rate_weights"]
        and not (a["exact_count"] and of_tokens(a, inputs)),
        "random_token_rate": a["random_token_rate"] > 0 and pool(a).sum() < needed,
        "random_words": has_words
        and (not all(a["random_words"]) or not swappable(a)[pieces(a)].all()),
    }
    return {name for name, wrong in found.items() if wrong}


def mend(arguments, inputs):
    """Takes out what does not go together."""
    for name in conflicts(arguments, inputs):
        harmless = None if name == "random_words" else False
        arguments[name] = 0.0 if name.endswith("token_rate") else harmless
        if name == "corrupt_whole_units":
            arguments[name] = True


# The contract


def in_numpy(masking, inputs, step, mode):
    if mode == "evaluation":
        with numpy_in_force():
            return masking.mask_fixed(inputs)
    return masking.mask_arrays(inputs, training=mode == "training", step=step)


def in_keras(masking, inputs, step, mode):
    if mode == "evaluation":
        tensors = {
            name: value if name == "labels" else keras.ops.convert_to_tensor(value)
            for name, value in inputs.items()
        }
        outputs = masking.mask_fixed(tensors)
    else:
        outputs = masking(inputs, training=mode == "training", step=step)
    return {
        name: value if name == "labels" else keras.ops.convert_to_numpy(value)
        for name, value in outputs.items()
    }


class Masked(NamedTuple):
    """What came out, and what may be said of it without knowing the noise. Arrays
    `[batch, length]`."""

    arguments: dict
    rate: Any  # (low, high)
    original: Any
    shown: Any
    selected: Any
    weights: Any
    selectable: Any
    words: Any  # the number of each position's word
    documents: Any
    of_tokens: bool


def masked_by(example, outputs):
    arguments = example.arguments
    inputs = {name: np.atleast_2d(value) for name, value in example.inputs.items()}
    original = inputs["token_ids"].astype("int64")
    selected, weights = positions_of(outputs, original)
    is_token = ~np.isin(original, arguments["unselectable_token_ids"])
    is_token &= inputs.get("padding_mask", np.ones(())).astype(bool)
    documents = numbered(changes(inputs.get("segment_ids", np.zeros_like(original))))
    words = words_in(arguments, inputs, original, is_token, documents)
    selectable = is_token & inputs.get("selectable", np.ones(())).astype(bool)
    if arguments["mean_span_length"] == 1:  # else a unit is longer than its word
        weighs = token_weights(arguments, inputs, original) > 0
        selectable &= any_in_word(selectable & weighs, words)
    return Masked(
        arguments,
        (rate, rate) if isinstance(rate := rate_of(example), float) else rate,
        original,
        np.atleast_2d(outputs["token_ids"]).astype("int64"),
        selected,
        weights,
        selectable,
        words,
        documents,
        of_tokens(arguments, inputs),
    )


def positions_of(outputs, original):
    """What is selected and what it weighs, whatever the form of the targets."""
    weights = np.atleast_2d(outputs["mask_weights"])
    if "mask_positions" not in outputs:
        return weights > 0, weights
    dense = np.zeros(original.shape, "float32")
    rows, slots = np.nonzero(weights > 0)
    dense[rows, np.atleast_2d(outputs["mask_positions"])[rows, slots]] = weights[rows, slots]
    return dense > 0, dense


def changes(ids):
    return np.concatenate([np.ones_like(ids[:, :1], bool), ids[:, 1:] != ids[:, :-1]], axis=1)


def numbered(begins):
    return np.cumsum(begins, axis=1) - 1


def words_in(arguments, inputs, original, is_token, documents):
    continuing = np.isin(original, arguments["continuation_token_ids"] or ())
    may_begin = inputs["begins"].astype(bool) if "begins" in inputs else ~continuing
    return numbered(may_begin | ~is_token | changes(is_token) | changes(documents))


def any_in_word(chosen, words):
    """Whether any position of its word is chosen, for every position."""
    return ((words[:, :, None] == words[:, None, :]) & chosen[:, None, :]).any(axis=2)


def token_weights(arguments, inputs, original):
    weights = normal(inputs.get("selection_weights", np.ones(original.shape)))
    known = arguments["selection_weights"]
    with np.errstate(over="ignore"):
        return weights if known is None else normal(weights * known[original])


def normal(weights):
    """float32 without what some processors take for 0."""
    weights = weights.astype("float32")
    return np.where(weights >= 2.0**-126, weights, np.float32(0))


def rate_of(example):
    """A number or a pair."""
    rate, step = example.arguments["mask_selection_rate"], example.step
    if example.mode == "evaluation":
        step, its_own = 0, example.arguments["evaluation_rate"]
        rate = rate if its_own is None else its_own
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return float(np.clip(np.nan_to_num(rate(step)), 0.0, 1.0))
    return rate


def keeps_form(example, outputs):
    """Keys, shapes and dtypes; other keys as they came."""
    ids, capacity = example.inputs["token_ids"], example.arguments["mask_selection_length"]
    targets = ids.shape if capacity is None else (*ids.shape[:-1], capacity)
    made = {
        "token_ids": (ids.shape, ids.dtype),
        "mask_ids": (targets, ids.dtype),
        "mask_weights": (targets, np.dtype("float32")),
    }
    if capacity is not None:
        made["mask_positions"] = (targets, np.dtype("int32"))
    assert outputs.keys() == example.inputs.keys() | made.keys()
    for name, form in made.items():
        assert (outputs[name].shape, outputs[name].dtype) == form, name
    for name in example.inputs.keys() - {"token_ids"}:
        np.testing.assert_array_equal(outputs[name], example.inputs[name])


def keeps_targets(example, outputs):
    """Originals at ascending positions, and nothing but zeros behind them."""
    original, weights = example.inputs["token_ids"], outputs["mask_weights"]
    assert np.isfinite(weights).all() and (weights >= 0).all()
    if example.arguments["mask_selection_length"] is None:
        np.testing.assert_array_equal(outputs["mask_ids"], original)
        return
    names = ("mask_positions", "mask_ids", "mask_weights")
    targets = zip(*(np.atleast_2d(outputs[name]) for name in names), strict=True)
    for row, (positions, ids, weights) in zip(np.atleast_2d(original), targets, strict=True):
        count = np.count_nonzero(weights)
        assert (np.diff(positions[:count]) > 0).all() and (weights[:count] > 0).all()
        np.testing.assert_array_equal(ids[:count], row[positions[:count]])
        assert not (positions[count:].any() or ids[count:].any() or weights[count:].any())


def is_identity(masked):
    np.testing.assert_array_equal(masked.shown, masked.original)
    assert not masked.selected.any()


def selects_the_selectable(masked):
    assert not (masked.selected & ~masked.selectable).any()


def changes_the_selected(masked):
    """Hidden, swapped for what may be swapped in, or kept."""
    arguments, changed = masked.arguments, masked.shown != masked.original
    assert not (changed & ~masked.selected).any()
    hidden = masked.shown == arguments["mask_token_id"]
    may_be_shown = pool(arguments)
    may_be_shown[pieces(arguments)] = True
    assert may_be_shown[masked.shown[changed & ~hidden]].all()
    if arguments["random_token_rate"] == 0:
        assert not (changed & ~hidden).any()
    if arguments["mask_token_rate"] == 0:
        assert not (changed & hidden).any()
    if arguments["mask_token_rate"] == 1:
        assert hidden[masked.selected].all()
    if arguments["random_token_rate"] == 1:
        assert may_be_shown[masked.shown[masked.selected]].all()
        if arguments["random_excludes_original"] and arguments["random_words"] is None:
            assert changed[masked.selected].all()


def cuts_no_word(masked):
    """All that is selectable of a word is selected, or nothing; and shares its fate."""
    changed = masked.shown != masked.original
    hidden = masked.shown == masked.arguments["mask_token_id"]
    for row, word in words_of(masked):
        assert len(set(masked.selected[row, word])) <= 1
        if masked.arguments["corrupt_whole_units"]:
            fates = hidden[row, word][changed[row, word]]
            assert not fates.any() or hidden[row, word].all()


def words_of(masked):
    """The selectable positions of each word of each row."""
    for row, (words, selectable) in enumerate(zip(masked.words, masked.selectable, strict=True)):
        for number in set(words[selectable]):
            yield row, np.flatnonzero(selectable & (words == number))


def keeps_count(masked):
    """As many as the rate says, to less than one unit; at least one; never more than K."""
    arguments, capacity = masked.arguments, masked.arguments["mask_selection_length"]
    capacity = masked.original.shape[1] if capacity is None else capacity
    one = arguments["at_least_one"] or (
        arguments["exact_count"] and arguments["inverse_rate_weights"]
    )
    weighted = arguments["selection_weights"] is not None
    for row, chosen in enumerate(masked.selected):
        assert chosen.sum() <= capacity
        if masked.of_tokens and not weighted and one:
            assert chosen.any() or not masked.selectable[row].any()
        if not (masked.of_tokens and arguments["exact_count"]):
            continue
        size = masked.selectable[row].sum()
        low, high = (min(edge, capacity / max(size, 1)) for edge in masked.rate)
        low, high = math.floor(low * size + 1e-6), math.ceil(high * size - 1e-6)
        if one:
            spare = len(set(masked.documents[row])) if arguments["count_per_document"] else 1
            low, high = max(low, min(size, 1)), min(max(high, 1) + spare - 1, capacity)
        assert low <= chosen.sum() <= high


def weighs_by_the_rate(masked):
    weights = masked.weights[masked.selected]
    if not masked.arguments["inverse_rate_weights"]:
        assert (weights == 1).all()
    elif not masked.arguments["exact_count"]:
        low, high = (1 / max(edge, 2.0**-24) for edge in masked.rate[::-1])
        assert (weights >= low * (1 - 1e-6)).all() and (weights <= high * (1 + 1e-6)).all()
    elif masked.of_tokens and not masked.arguments["count_per_document"]:
        sizes = masked.selectable.sum(axis=1)
        np.testing.assert_allclose(masked.weights.sum(axis=1), sizes, rtol=1e-5)


def equals_the_oracle(example, outputs):
    arguments, step = example.arguments, example.step
    inputs = {name: value for name, value in example.inputs.items() if name != "labels"}
    unbatched = inputs["token_ids"].ndim == 1
    if unbatched:
        inputs = {name: np.expand_dims(value, 0) for name, value in inputs.items()}
    if "selection_weights" in inputs:
        inputs["selection_weights"] = normal(inputs["selection_weights"])
    rate = {"mask_selection_rate": rate_of(example), "evaluation_rate": None}
    with np.errstate(over="ignore"):
        expected = oracle.mask_batch(
            inputs.pop("token_ids"),
            arguments | rate,
            None if example.mode == "evaluation" else step,
            **inputs,
        )
    for name, value in expected.items():
        np.testing.assert_array_equal(outputs[name], value[0] if unbatched else value, name)


LAWS = (
    selects_the_selectable,
    changes_the_selected,
    cuts_no_word,
    keeps_count,
    weighs_by_the_rate,
)


def keeps_the_contract(example, run):
    names = conflicts(example.arguments, example.inputs)
    try:
        masking = DynamicMasking(**example.arguments)
        outputs = run(masking, example.inputs, example.step, example.mode)
    except ValueError as error:
        assert names and names & set(re.findall(r"`(\w+)`", str(error))), error
        return
    if example.mode == "inference":
        assert not names or names <= {"count_per_document", "inverse_rate_weights", "at_least_one"}
    else:
        assert not names
    keeps_form(example, outputs)
    keeps_targets(example, outputs)
    masked = masked_by(example, outputs)
    for law in LAWS if example.mode != "inference" else (is_identity,):
        law(masked)
    if example.mode != "inference" and len(outputs["token_ids"]):
        equals_the_oracle(example, outputs)


@pytest.fixture
def without_counter(monkeypatch):
    """In NumPy the step is the caller's, and a variable would cost more than all the rest."""
    monkeypatch.setattr(DynamicMasking, "add_weight", lambda self, **arguments: None)


@property_of(examples(), 200)
def test_outputs_keep_the_contract(without_counter, example):
    keeps_the_contract(example, in_numpy)


@pytest.mark.slow
@property_of(examples(), 10_000)
def test_outputs_keep_the_contract_thoroughly(without_counter, example):
    keeps_the_contract(example, in_numpy)


def in_both(masking, inputs, step, mode):
    """Refused in both ways, or masked by the same bits."""
    try:
        outputs = in_keras(masking, inputs, step, mode)
    except ValueError:
        with pytest.raises(ValueError):
            in_numpy(masking, inputs, step, mode)
        raise
    for name, value in in_numpy(masking, inputs, step, mode).items():
        np.testing.assert_array_equal(outputs[name], value, name, strict=name != "labels")
    return outputs


@pytest.mark.slow
@property_of(examples(), 300)
def test_keras_and_numpy_give_the_same_bits(example):
    keeps_the_contract(example, in_both)


# Mutants, which the laws must find while the oracle looks away


def with_protected(draw):
    return lambda self, words, token_ids: draw(self, words, token_ids) * 0


def one_more(count):
    return lambda size, *arguments: count(size, *arguments) + 1


def anywhere(selectable):
    return lambda self, inputs: selectable(self, inputs) | True


def last_first(selected_positions):
    return lambda *arguments: selected_positions(*arguments)[:, ::-1]


def dropping_nothing(drop):
    return lambda order, selected, *arguments: selected


def each_alone(unit_numbers):
    return lambda begins: unit_numbers(begins | True)


def hiding_the_unselected(corrupt):
    def mutant(token_ids, selected, role, replacements, mask_token_id, hide, swap):
        return corrupt(
            token_ids, selected | (role > 0.9), role, replacements, mask_token_id, hide, 1
        )

    return mutant


def masking_anyway(untouched):
    return lambda self, inputs: self.mask(inputs, 0)


def without_boundaries(unit_begins):
    return lambda may_begin, boundary, *rest: unit_begins(may_begin, boundary & False, *rest)


MUTANTS = {
    "protected ids swapped in": (RandomTokens, "draw", with_protected),
    "a count too high": (masking_file, "selected_count", one_more),
    "padding selected": (DynamicMasking, "selectable", anywhere),
    "targets descending": (masking_file, "selected_positions", last_first),
    "more than K": (masking_file, "drop_overflow", dropping_nothing),
    "words cut": (masking_file, "unit_numbers", each_alone),
    "unselected tokens hidden": (masking_file, "corrupt", hiding_the_unselected),
    "masked in inference": (DynamicMasking, "_untouched", masking_anyway),
    "units across what is protected": (masking_file, "unit_begins", without_boundaries),
}
NEEDS_THE_ORACLE = ["units across what is protected"]  # whose noise alone tells units in a row


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_is_found(mutant, without_counter, monkeypatch):
    home, name, change = MUTANTS[mutant]
    monkeypatch.setattr(home, name, change(getattr(home, name)))
    if mutant not in NEEDS_THE_ORACLE:
        monkeypatch.setitem(globals(), "equals_the_oracle", lambda example, outputs: None)
    looks = property_of(examples(), 1000, shrink=False)
    with pytest.raises((AssertionError, IndexError)):
        looks(lambda example: keeps_the_contract(example, in_numpy))()


# Whatever else one may hand over


NUMBERS = [-1, 0, 1, 2, 7, 2**63, 10**30, -0.5, 0.5, 1.5, 1e308, 1e-320, math.nan, math.inf, 1j]
NUMBERS += [True, Fraction(1, 2), Decimal("0.5"), np.int8(1), np.float16(0.5), np.float32(np.nan)]
NUMBERS += [np.uint64(2**64 - 1), np.bool_(True), np.datetime64("2020")]
LISTS = [[], (), [0.1, 0.9], (0.9, 0.1), (0, 1), [0, 1, 2], [1] * 8, [-1.0] * 8, ["a"], [None]]
LISTS += [[[1, 2], [3]], [[1, [2]]], [[[1]]], [[]], [[1, 9]], {1, 2}, range(3), [math.nan] * 8]
LISTS += [{}, {"a": 1}]
LISTS += [{"module": "keras.layers", "class_name": "Dense", "config": {"units": 1}}]
ARRAYS = [np.zeros(8), np.ones(8), np.ones((8, 1)), np.array(0.5), np.full(8, 1e300)]
ARRAYS += [np.array(["a"] * 8), np.array([None] * 8), np.ones((2, 3, 4), int)]
OTHERS = [None, "a", "", b"a", object(), int, len, ..., keras.layers.Dense(1)]
ODD = [*NUMBERS, *LISTS, *ARRAYS, *OTHERS]
ARGUMENTS = list(inspect.signature(DynamicMasking).parameters)[:-1]


def odd(names, values):
    return st.dictionaries(st.sampled_from(names), st.sampled_from(values), min_size=1, max_size=3)


def is_refused(function, *names):
    """Whether it is; then by a `ValueError` that names one of the arguments."""
    try:
        function()
    except ValueError as error:
        assert set(re.findall(r"`(\w+)", str(error))) & set(names), error
        return True
    return False


@property_of(odd(ARGUMENTS, ODD), 500)
def test_any_argument_is_refused_by_its_name_or_masks(without_counter, example):
    arguments = {"vocabulary_size": 8, "mask_selection_rate": 0.5, "mask_token_id": 1, "seed": 0}
    if is_refused(lambda: DynamicMasking(**arguments | example), *ARGUMENTS):
        return
    masking = DynamicMasking(**arguments | example)
    inputs = {"token_ids": [[0] * 4], "segment_ids": np.zeros((1, 4), int)}
    is_refused(lambda: masking.mask_arrays(inputs, step=3), "inputs", *ARGUMENTS)


OF_A_CALL = ["token_ids", *OPTIONAL[:-1], "training", "step"]
KINDS = [*INTEGERS, "uint64", "bool", "float16", "S1", "U1", "O", "complex64", "M8[s]", ">i4"]
SHAPED = [[[1, 0, 1], [0, 1, 0]]]  # as `token_ids`, and of every kind
SHAPED += [np.array(SHAPED[0]).astype(kind) for kind in (*INTEGERS, "uint64", "bool", "float16")]
SHAPED += [
    np.array(SHAPED[0]).astype(kind) for kind in ("S1", "U1", "O", "complex64", "M8[s]", ">i4")
]
SHAPED += [np.where(SHAPED[0], value, 0) for value in (-1, 9, 2**62, math.nan, math.inf, 1e300)]
SHAPED += [[["a"] * 3] * 2, [[None] * 3] * 2, [[2**70] * 3] * 2]
ROWS = [value[:, 0] for value in SHAPED[1:-3]]
RAGGED = tf.ragged.constant([[1, 2, 3], [4]])


@property_of(odd(OF_A_CALL, [*ODD, *SHAPED, *ROWS, RAGGED]), 200)
def test_any_input_is_refused_by_its_name_or_masked(example):
    arguments = {"training": True, "step": 3}
    arguments |= {name: example[name] for name in arguments.keys() & example.keys()}
    inputs = {"token_ids": np.array([[2, 3, 4], [5, 6, 7]])}
    inputs |= {name: value for name, value in example.items() if name not in arguments}
    masking = DynamicMasking(8, 0.5, 1, seed=0)
    for way in (masking.mask_arrays, masking):
        is_refused(lambda way=way: way(inputs, **arguments), "inputs", *OF_A_CALL)


# Ids out of range

OUT_OF_RANGE = np.array([8, 999, -1, -8, -9, -(10**8), 2**31 - 1, -(2**31)], "int32")
EVERY_TABLE = {
    "continuation_token_ids": [5],
    "selection_weights": np.ones(8),
    "random_token_weights": np.ones(8),
    "random_excludes_original": True,
    "corrupt_whole_units": True,
    "random_words": [[5, 6], [7]],
}


@pytest.mark.parametrize("form", [list, np.array, tf.constant])
@pytest.mark.parametrize("outside", OUT_OF_RANGE.tolist())
def test_eager_calls_refuse_ids_out_of_range(outside, form):
    masking = DynamicMasking(8, 0.5, 1, seed=0)
    for training in (True, False):
        with pytest.raises(ValueError, match=rf"`token_ids` must lie in \[0, 7\].*{outside}"):
            masking(form([[2, 3, outside]]), training=training)


def test_a_graph_on_the_cpu_stops_at_an_id_out_of_range():
    masking = DynamicMasking(8, 0.5, 1, seed=0)
    mask = tf.function(lambda ids: masking(ids, step=3))
    with tf.device("CPU"), pytest.raises(tf.errors.InvalidArgumentError, match="is not in"):
        mask(tf.constant([[2, 3, 999]]))


@pytest.mark.parametrize("settings", [{}, EVERY_TABLE], ids=["one table", "every table"])
def test_under_xla_an_id_out_of_range_harms_nobody_else(settings):
    masking = DynamicMasking(
        8, 1.0, 1, seed=0, mask_token_rate=0.5, random_token_rate=0.5, **settings
    )
    mask = tf.function(lambda ids: masking(ids, step=3), jit_compile=True)
    known = np.array([[2, 3, 4, 5, 6, 7, 2, 3]] * 2, "int32")
    outside = np.array([known[0], OUT_OF_RANGE])
    expected, found = mask(known), mask(outside)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name][0], value[0])
    shown, weights = found["token_ids"][1].numpy(), found["mask_weights"][1].numpy()
    assert np.isin(weights, [0, 1]).all()
    assert ((shown == OUT_OF_RANGE) | (shown >= 1) & (shown < 8)).all()
    np.testing.assert_array_equal(shown[weights == 0], OUT_OF_RANGE[weights == 0])
