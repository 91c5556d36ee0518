"""Generation: what stays, what is never touched, and that the steps are the written ones.

The algorithm is tested on tables in a model's place and as a plain graph, which takes a second
where XLA takes five; that a compiled model goes the same steps has tests of its own.
"""

import functools
import itertools
import math
import tracemalloc

import keras
import numpy as np
import pytest
from elsewhere import on
from keras import ops
from scipy import stats

from keras_dynmask import DynamicMasking, MaskedLanguageModel, TransformerEncoder
from keras_dynmask.sampling import Unmasking, doubts, generate

VOCABULARY, PADDING, MASK, SPECIAL = 30, 0, 1, 2
LENGTH, CONTEXTS = 14, 97
WAYS = {
    "greedy": {},
    "four steps": {"steps": 4},
    "one step": {"steps": 1},
    "drawn": {"temperature": 1.0},
    "drawn of 3": {"temperature": 0.8, "top_k": 3},
    "drawn of a half": {"temperature": 1.3, "top_p": 0.5},
    "any order": {"order": "random", "steps": 4},
    "revised": {"revise": True, "steps": 9},
    "from left to right": {"block_length": 1},
    "in blocks, revised": {"block_length": 3, "revise": True, "steps": 6},
}


class Table(keras.Model):
    """In a model's place: logits looked up by the position and by all tokens of the row."""

    logits = np.random.default_rng(3).normal(0, 3, (CONTEXTS, LENGTH, VOCABULARY))
    factors = np.random.default_rng(4).integers(1, CONTEXTS, LENGTH).astype("int32")

    def __init__(self):
        super().__init__()
        special = PADDING, SPECIAL
        self.masking = DynamicMasking(VOCABULARY, 0.5, MASK, unselectable_token_ids=special)
        self.built = True

    def call(self, inputs, training=None):
        context = ops.mod(ops.sum(inputs["token_ids"] * self.factors, axis=1), CONTEXTS)
        logits = ops.take(np.float32(self.logits), context, axis=0)  # [batch, length, vocabulary]
        return ops.take_along_axis(logits, inputs["mask_positions"][..., None], axis=1)


@functools.cache
def plain(model, **settings):
    unmasking = Unmasking(model, **settings)
    unmasking.compile(jit_compile=False)
    return unmasking


TABLE = Table()


def by_table(ids, steps=None, *, seed=0, every_step=False, batch_size=32, outputs=1, **settings):
    given = {"seed": seed, "every_step": every_step, "batch_size": batch_size, "outputs": outputs}
    return generate(plain(TABLE, **settings), ids, steps, **given)


def to_fill(rows=5, length=LENGTH):
    ids = np.random.default_rng(1).integers(3, VOCABULARY, (rows, length)).astype("int32")
    for row in range(rows):
        ids[row, 3 : 12 - row % 5] = MASK  # 9, 8, 7, ... in each row
    ids[0, 2], ids[1, -2:] = SPECIAL, PADDING
    return ids


@functools.cache
def states_of(way):
    return by_table(to_fill(), **WAYS[way], every_step=True)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_fixed_stays_and_what_is_masked_is_filled_in(way):
    ids, filled = to_fill(), states_of(way)[-1]
    np.testing.assert_array_equal(filled[ids != MASK], ids[ids != MASK])
    assert filled.dtype == ids.dtype
    assert not np.isin(filled[ids == MASK], [PADDING, MASK, SPECIAL]).any()
    np.testing.assert_array_equal(filled, by_table(ids, **WAYS[way]))
    draws = "temperature" in WAYS[way]
    assert (filled != by_table(ids, **WAYS[way], seed=1)).any() or not draws


@pytest.mark.parametrize("way", WAYS)
def test_so_many_stay_after_each_step(way):
    ids, states = to_fill(), states_of(way)
    wanted = (ids == MASK).sum(axis=1)
    steps = np.full_like(wanted, WAYS[way].get("steps", 99))
    steps = steps if "revise" in WAYS[way] else np.minimum(steps, wanted)
    for step, state in enumerate(states):
        left = wanted - wanted * np.minimum(step, steps) // steps
        np.testing.assert_array_equal((state == MASK).sum(axis=1), left)
    if "revise" not in WAYS[way]:
        for before, after in itertools.pairwise(states):
            np.testing.assert_array_equal(after[before != MASK], before[before != MASK])


def naive(row, steps, revise=False, block=None):
    """One row by the book, with loops: greedy, by confidence."""
    row, kept_probability = list(row), {}
    places = [place for place, token in enumerate(row) if token == MASK]
    steps = steps if revise else min(steps, len(places))
    block = block or len(places)
    for step in range(steps):
        logits = Table.logits[int(np.dot(row, Table.factors)) % CONTEXTS].copy()
        logits[:, [PADDING, MASK, SPECIAL]] = -np.inf
        for place in places:
            if row[place] == MASK:
                shares = np.exp(logits[place] - logits[place].max())
                row[place] = int(shares.argmax())
                kept_probability[place] = shares.max() / shares.sum()
            elif not revise:
                kept_probability[place] = 2.0
        count = len(places) * (step + 1) // steps
        first = places[: count // block * block]  # whole blocks stay
        rest = places[len(first) : len(first) + block]
        rest = sorted(rest, key=lambda place: -kept_probability[place])[: count - len(first)]
        row = [
            MASK if place in places and place not in (*first, *rest) else token
            for place, token in enumerate(row)
        ]
    return row


@pytest.mark.parametrize(
    "settings",
    [{}, {"revise": True}, {"block": 1}, {"block": 3}, {"block": 4, "revise": True}],
    ids=str,
)
def test_it_is_the_algorithm_written_with_loops(settings):
    ids = to_fill(20)
    given = {"block_length": settings.get("block"), "revise": settings.get("revise", False)}
    for steps in (1, 3, 7):
        filled = by_table(ids, steps, **given)
        for row, ours in zip(ids, filled, strict=True):
            assert ours.tolist() == naive(row, steps, **settings)


@pytest.mark.parametrize(
    "way",
    [{"temperature": 1.0}, {"order": "random"}, {"temperature": 1.0, "revise": True}],
    ids=str,
)
@pytest.mark.parametrize("steps", [None, 7])
def test_rows_do_not_depend_on_their_batch(way, steps):
    """Nor on how many masks the others have."""
    ids = to_fill()
    whole = by_table(ids, steps, **way)
    np.testing.assert_array_equal(whole, by_table(ids, steps, **way, batch_size=2))
    np.testing.assert_array_equal(whole[:1], by_table(ids[:1], steps, **way))
    others = ids.copy()
    others[0, 4:12] = 9  # the row with the most masks has one
    np.testing.assert_array_equal(whole[1:], by_table(others, steps, **way)[1:])


def test_one_row_and_many_outputs():
    row = to_fill()[0]
    assert by_table(row).shape == row.shape
    several = by_table(to_fill(), temperature=2.0, outputs=3)
    assert several.shape == (15, LENGTH)
    assert not (several[0] == several[1]).all()
    np.testing.assert_array_equal(several[::3][:, :3], to_fill()[:, :3])
    assert by_table(row, outputs=3).shape == (3, LENGTH)
    assert by_table(row, steps=2, every_step=True).shape == (3, LENGTH)


def test_selectable_marks_the_target():
    ids = np.full((2, LENGTH), 7, "int32")
    ids[:, 1] = MASK  # a source may hold one, and keeps it
    target = np.arange(LENGTH) >= np.array([[8], [9]])
    states = by_table({"token_ids": ids, "selectable": target}, every_step=True)
    assert (states[0] == MASK).sum() == 2 + 6 + 5
    np.testing.assert_array_equal(states[-1][~target], ids[~target])
    assert not (states[-1][target] == MASK).any()
    real = np.broadcast_to(np.arange(LENGTH) < 13, ids.shape)
    padded = {"token_ids": ids, "selectable": target, "padding_mask": real}
    np.testing.assert_array_equal(by_table(padded)[:, 13], ids[:, 13])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int64", "uint64"])
def test_ids_keep_their_dtype(dtype):
    filled = by_table(to_fill().astype(dtype), steps=2)
    assert filled.dtype == dtype
    np.testing.assert_array_equal(filled, by_table(to_fill(), steps=2))


def test_a_dtype_that_cannot_hold_the_vocabulary_is_widened():
    logits = np.zeros(400)
    logits[390] = 9.0
    filled = generate(plain(Given(logits)), np.ones((1, 3), "uint8"), 1)
    assert filled.tolist() == [[390] * 3] and filled.dtype == "int32"


def test_only_the_last_state_is_held():
    """2,000 rows of 64 ids are a megabyte, and all their states would be 40 of them."""
    ids = np.full((2000, 64), 7, "int64")
    ids[:, :40] = MASK
    unmasking = Unmasking(GIVEN)
    unmasking.predict_on_batch = lambda slots: (slots["tokens"] * 0 + 3, slots["doubt"])
    tracemalloc.start()
    generate(unmasking, ids, batch_size=100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


# In a model.


def build(**settings):
    """A model that is sure of some things: an untrained one with large weights."""
    keras.utils.set_random_seed(3)
    encoder = TransformerEncoder(VOCABULARY, 1, 2, 16, 24)
    masking = DynamicMasking(VOCABULARY, (0.0, 1.0), MASK, unselectable_token_ids=(0, SPECIAL))
    model = MaskedLanguageModel(encoder, masking, **settings)
    random = np.random.default_rng(3)
    model.set_weights([random.normal(0, 0.7, w.shape).astype(w.dtype) for w in model.get_weights()])
    return model


MODEL = build()


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.8, "top_p": 0.9, "revise": True, "block_length": 4}], ids=str
)
def test_a_model_is_compiled_once_and_goes_the_same_steps(settings):
    ids, traces = to_fill(), []
    call = MODEL.call
    MODEL.call = lambda *given, **named: traces.append(1) or call(*given, **named)
    try:
        filled = MODEL.generate(ids, 4, **settings)
        once = len(traces)
        for seed in range(2):
            np.testing.assert_array_equal(MODEL.generate(ids, 4, **settings, seed=0), filled)
            MODEL.generate(ids, 3 + seed, **settings, seed=seed, outputs=1)
        assert len(traces) == once > 0
    finally:
        MODEL.call = call
    np.testing.assert_array_equal(generate(plain(MODEL, **settings), ids, 4), filled)


def test_programs_of_the_last_settings_are_kept(monkeypatch):
    used = []
    monkeypatch.setattr(
        "keras_dynmask.sampling.generate", lambda unmasking, *_, **__: used.append(unmasking)
    )
    model = build()
    for length in (1, 2, 3, 1, 4, 5, 6, 7, 8, 9, 1, 2):
        model.generate(to_fill(), block_length=length)
    kept = {id(unmasking) for unmasking in used}
    assert used[0] is used[3] is used[10]  # used again, so not the one to go
    assert used[1] is not used[11] and len(kept) == 10


def test_an_encoder_that_sees_only_what_is_there_generates_as_well():
    model, ids = build(visible_only=True), to_fill()
    ids[2] = MASK  # and where nothing is
    filled = generate(plain(model), ids, 3)
    np.testing.assert_array_equal(filled[ids != MASK], ids[ids != MASK])
    assert not (filled == MASK).any()


# What is drawn.


class Given(keras.Model):
    """In a model's place: the same logits everywhere."""

    def __init__(self, logits):
        super().__init__()
        self.masking = DynamicMasking(len(logits), 0.5, mask_token_id=1, unselectable_token_ids=[0])
        self.logits = np.float32(logits)
        self.built = True

    def call(self, inputs, training=None):
        batch, slots = ops.shape(inputs["mask_positions"])
        return ops.zeros((batch, slots, 1)) + self.logits


LOGITS = np.array([9.0, 9.0, 2.0, 1.5, 1.0, 0.5, 0.0, -1.0])  # the first two are never drawn
GIVEN = Given(LOGITS)


def shares_of(**settings):
    """How often each id is drawn at each of 40 positions of 500 rows, as counts."""
    unmasking = plain(GIVEN, **settings)
    drawn = generate(unmasking, np.ones((500, 40), "int32"), 1, batch_size=500)
    return np.bincount(drawn.ravel(), minlength=len(LOGITS)), drawn


def softmax(logits):
    shares = np.exp(logits - logits.max())
    return shares / shares.sum()


@pytest.mark.parametrize(
    "settings, kept",
    [
        ({"temperature": 1.0}, 6),
        ({"temperature": 0.5}, 6),
        ({"temperature": 2.0}, 6),
        ({"temperature": 1.0, "top_k": 3}, 3),
        ({"temperature": 1.0, "top_p": 0.4}, 1),  # the first has .42
        ({"temperature": 1.0, "top_p": 0.45}, 2),
        ({"temperature": 1.0, "top_p": 0.85}, 4),  # .42, .67, .83, .92
        ({"temperature": 1.0, "top_p": 1.0, "forbidden_token_ids": (2,)}, 5),
    ],
    ids=str,
)
def test_tokens_are_drawn_from_the_distribution(settings, kept):
    """20,000 draws: chi-squared at 1e-6 sees a share of .15 that is off by .02."""
    scores = LOGITS.copy()
    scores[[0, 1, *settings.get("forbidden_token_ids", [])]] = -np.inf
    scores /= settings["temperature"]
    scores[scores < np.sort(scores)[-kept]] = -np.inf
    expected, (found, _) = softmax(scores), shares_of(**settings)
    possible = expected > 0
    assert found[~possible].sum() == 0
    if kept > 1:
        observed = found[possible]
        assert stats.chisquare(observed, expected[possible] * observed.sum()).pvalue > 1e-6


def test_positions_rows_and_seeds_draw_on_their_own():
    """A token of probability p is drawn at two places with probability p**2."""
    drawn = shares_of(temperature=1.0)[1]
    share = (softmax(LOGITS[2:]) ** 2).sum()
    unmasking = plain(GIVEN, temperature=1.0)
    other = generate(unmasking, np.ones((500, 40), "int32"), 1, batch_size=500, seed=1)
    for first, second in (
        (drawn[:, :-1], drawn[:, 1:]),
        (drawn[:-1], drawn[1:]),
        (drawn, other),
    ):
        equal = (first == second).mean()
        assert abs(equal - share) < 4.89 * math.sqrt(2 * share * (1 - share) / first.size)


@pytest.mark.parametrize("settings", [{"order": "random"}, {}], ids=["any order", "ties"])
def test_any_of_those_that_are_as_sure_is_the_first(settings):
    """Each of 10 positions in a tenth of 2,000 rows; without noise it would be one."""
    unmasking = plain(GIVEN, **settings)
    ids = np.ones((2000, 10), "int32")
    first = generate(unmasking, ids, every_step=True, batch_size=2000)[1]
    counts = (first != MASK).sum(axis=0)
    assert counts.sum() == 2000
    assert stats.chisquare(counts).pvalue > 1e-6


def test_each_step_draws_on_its_own():
    """What is masked again is drawn again: the same token with probability p**2."""
    unmasking = plain(GIVEN, temperature=1.0, order="random", revise=True)
    ids = np.ones((500, 40), "int32")
    states = generate(unmasking, ids, 4, every_step=True, batch_size=500)
    again = (states[1] != MASK) & (states[2] == MASK)
    assert 0.4 < again.sum() / (states[1] != MASK).sum() < 0.6
    share = (softmax(LOGITS[2:]) ** 2).sum()
    equal = (states[1] == states[-1])[again].mean()
    assert abs(equal - share) < 4.89 * math.sqrt(share * (1 - share) / again.sum())


def test_doubt_falls_with_probability_and_fits():
    shares = np.array([1.0, 0.9, 0.5, 1e-3, 1e-12, 0.0], "float32")
    with np.errstate(divide="ignore"):
        logits = np.log(np.stack([shares, 1 - shares], axis=1))[None]
    found = ops.convert_to_numpy(doubts(ops.convert_to_tensor(logits), np.zeros((1, 6), "int32")))[
        0
    ]
    assert found[0] == 0 and (np.diff(found.astype("int64")) > 0)[:-1].all()
    assert found.max() < 2**30
    assert found[2] == pytest.approx(math.log(2) * 2**25, rel=1e-5)


# On other backends, and misuse.


def generated():
    """What a model with the same weights generates here, greedily and drawn."""
    model = build()
    ways = ("drawn of 3", "drawn of a half", "any order", "in blocks, revised")
    return [model.generate(to_fill(), **WAYS[way]).tolist() for way in ways]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends_generate_the_same(backend):
    assert on(backend, generated) == generated()


def test_a_saved_model_generates_on(tmp_path):
    expected = MODEL.generate(to_fill(), 4)
    MODEL.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.generate(to_fill(), 4), expected)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"temperature": -1}, "`temperature` must be a number, at least 0.*-1"),
        ({"temperature": 1e300}, r"`temperature` must be 0, or in \[1e-06, 1e\+06\].*1e\+300"),
        ({"temperature": 1e-45}, "`temperature` must be 0, or in .*1e-45"),
        ({"top_k": 3}, "`temperature` must be above 0 with `top_k` or `top_p`.*0.0"),
        ({"top_k": 0, "temperature": 1}, r"`top_k` must be a whole number, in \[1, 30\].*0"),
        ({"top_p": 1.5, "temperature": 1}, "`top_p` must be a number, in .*1.5"),
        ({"order": "left"}, "`order` must be one of confidence, random.*'left'"),
        ({"revise": 1}, "`revise` must be True or False.*1"),
        ({"block_length": 0}, "`block_length` must be a whole number, at least 1.*0"),
        ({"forbidden_token_ids": [30]}, r"`forbidden_token_ids` must be a list of ids.*30"),
        ({"forbidden_token_ids": 5}, "`forbidden_token_ids` must be a list of ids.*5"),
        ({"forbidden_token_ids": None}, "`forbidden_token_ids` must be a list of ids.*None"),
        ({"forbidden_token_ids": range(30)}, "`forbidden_token_ids` must leave a token"),
        ({"steps": 0}, "`steps` must be a whole number, at least 1.*0"),
        ({"outputs": 0}, "`outputs` must be a whole number, at least 1.*0"),
        ({"batch_size": 0}, "`batch_size` must be a whole number, at least 1.*0"),
        ({"seed": -1}, "`seed` must be a whole number, in .*-1"),
    ],
    ids=str,
)
def test_misuse_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        MODEL.generate(to_fill(), **settings)


@pytest.mark.parametrize(
    "inputs, message",
    [
        (np.full((2, 3), 5), r"`inputs` must hold mask tokens \(id 1\)"),
        (np.zeros((0, 3), "int32"), "`inputs` must hold mask tokens"),
        ([[7, MASK], [MASK]], "rows of equal length.*pad them and pass a `padding_mask`"),
        (np.full((2, 3), 30), r"`token_ids` must lie in \[0, 29\]"),
        (np.full((2, 3), 0.5), "`token_ids` must be integers"),
        ({"selectable": [True]}, "`inputs` must hold `token_ids`"),
        ({"token_ids": [[1, 2]], "selectable": [True]}, r"`selectable` must have the shape of"),
    ],
    ids=["nothing", "empty", "ragged", "id", "float", "no ids", "shape"],
)
def test_inputs_are_checked(inputs, message):
    with pytest.raises(ValueError, match=message):
        MODEL.generate(inputs)
