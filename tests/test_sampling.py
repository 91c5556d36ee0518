"""Generation: what stays, what is never touched, and that the steps are the written ones."""

import itertools
import math

import keras
import numpy as np
import pytest
from elsewhere import on
from keras import ops
from scipy import stats

from keras_dynmask import DynamicMasking, MaskedLanguageModel, TransformerEncoder
from keras_dynmask.sampling import Unmasking, doubts, generate

VOCABULARY, PADDING, MASK, SPECIAL = 30, 0, 1, 2
RANDOM = np.random.default_rng(0)
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


def build(seed=3, rate=(0.0, 1.0), **settings):
    """A model that is sure of some things: an untrained one with large weights."""
    keras.utils.set_random_seed(seed)
    encoder = TransformerEncoder(VOCABULARY, 1, 2, 16, 24)
    masking = DynamicMasking(VOCABULARY, rate, MASK, unselectable_token_ids=(PADDING, SPECIAL))
    model = MaskedLanguageModel(encoder, masking, **settings)
    random = np.random.default_rng(seed)
    model.set_weights([random.normal(0, 0.7, w.shape).astype(w.dtype) for w in model.get_weights()])
    return model


def to_fill(rows=5, length=14):
    ids = np.random.default_rng(1).integers(3, VOCABULARY, (rows, length)).astype("int32")
    for row in range(rows):
        ids[row, 3 : 12 - row] = MASK  # 9, 8, 7, ... in each row
    ids[0, 2], ids[1, -2:] = SPECIAL, PADDING
    return ids


MODEL = build()


@pytest.mark.parametrize("way", WAYS)
def test_what_is_fixed_stays_and_what_is_masked_is_filled_in(way):
    ids = to_fill()
    filled = MODEL.generate(ids, **WAYS[way])
    np.testing.assert_array_equal(filled[ids != MASK], ids[ids != MASK])
    assert filled.dtype == ids.dtype
    generated = filled[ids == MASK]
    assert not np.isin(generated, [PADDING, MASK, SPECIAL]).any()
    np.testing.assert_array_equal(filled, MODEL.generate(ids, **WAYS[way]))
    draws = "temperature" in WAYS[way]
    assert (filled != MODEL.generate(ids, **WAYS[way], seed=1)).any() or not draws


@pytest.mark.parametrize("way", WAYS)
def test_so_many_stay_after_each_step(way):
    ids = to_fill()
    states = MODEL.generate(ids, **WAYS[way], every_step=True)
    wanted, steps = (ids == MASK).sum(axis=1), len(states) - 1
    for step, state in enumerate(states):
        np.testing.assert_array_equal((state == MASK).sum(axis=1), wanted - wanted * step // steps)
    if "revise" not in WAYS[way]:
        for before, after in itertools.pairwise(states):
            np.testing.assert_array_equal(after[before != MASK], before[before != MASK])


def naive(model, row, steps, revise=False, block=None):
    """One row by the book, with loops: greedy, by confidence."""
    row, kept_probability = list(row), {}
    places = [place for place, token in enumerate(row) if token == MASK]
    block = block or len(places)
    for step in range(steps):
        logits = np.array(ops.convert_to_numpy(model(np.array([row]))), "float64")[0]
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


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "settings",
    [{}, {"revise": True}, {"block": 1}, {"block": 3}, {"block": 4, "revise": True}],
    ids=str,
)
def test_it_is_the_algorithm_written_with_loops(settings, seed):
    model, ids = build(seed), to_fill()
    given = {"block_length": settings.get("block"), "revise": settings.get("revise", False)}
    for steps in (1, 3, 7):
        filled = model.generate(ids, steps, **given)
        for row, ours in zip(ids, filled, strict=True):
            # Fewer predictions than steps are enough where the widest row has fewer masks.
            assert ours.tolist() == naive(model, row, min(steps, 9), **settings)


def test_rows_do_not_depend_on_their_batch():
    ids = to_fill()
    for settings in ({"temperature": 1.0, "steps": 4}, {"order": "random", "steps": 4}):
        whole = MODEL.generate(ids, **settings)
        np.testing.assert_array_equal(whole, MODEL.generate(ids, **settings, batch_size=2))
        np.testing.assert_array_equal(whole[:1], MODEL.generate(ids[:1], **settings))


def test_one_row_and_many_outputs():
    row = to_fill()[0]
    assert MODEL.generate(row).shape == row.shape
    several = MODEL.generate(to_fill(), temperature=2.0, outputs=3)
    assert several.shape == (15, 14)
    assert not (several[0] == several[1]).all()
    np.testing.assert_array_equal(several[::3][:, :3], to_fill()[:, :3])
    assert MODEL.generate(row, outputs=3).shape == (3, 14)
    assert MODEL.generate(row, steps=2, every_step=True).shape == (3, 14)


def test_selectable_marks_the_target():
    ids = np.full((2, 6), 7, "int32")
    ids[:, 1] = MASK  # a source may hold one, and keeps it
    target = np.array([[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]])
    states = MODEL.generate({"token_ids": ids, "selectable": target}, every_step=True)
    assert (states[0] == MASK).sum() == 2 + 5
    np.testing.assert_array_equal(states[-1][target == 0], ids[target == 0])
    assert not (states[-1][target == 1] == MASK).any()
    padded = {"token_ids": ids, "selectable": target, "padding_mask": np.arange(6) < 5 + 0 * target}
    np.testing.assert_array_equal(MODEL.generate(padded)[:, 5], ids[:, 5])


def test_an_encoder_that_sees_only_what_is_there_generates_as_well():
    model, ids = build(visible_only=True), to_fill()
    filled = model.generate(ids, steps=3)
    np.testing.assert_array_equal(filled[ids != MASK], ids[ids != MASK])
    assert not (filled == MASK).any()


def test_compiled_or_not_it_is_the_same():
    ids = to_fill()
    for settings in ({}, {"temperature": 1.0}, {"temperature": 0.8, "top_p": 0.9, "revise": True}):
        eager = Unmasking(MODEL, **settings)
        eager.compile(run_eagerly=True)
        np.testing.assert_array_equal(generate(eager, ids, 4), MODEL.generate(ids, 4, **settings))


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


def shares_of(**settings):
    """How often each id is drawn at each of 40 positions of 500 rows, as counts."""
    unmasking = Unmasking(Given(LOGITS), **settings)
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
        ({"temperature": 1.0, "top_p": 1.0, "forbidden_token_ids": [2]}, 5),
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
    unmasking = Unmasking(Given(LOGITS), temperature=1.0)
    other = generate(unmasking, np.ones((500, 40), "int32"), 1, batch_size=500, seed=1)
    for first, second in (
        (drawn[:, :-1], drawn[:, 1:]),
        (drawn[:-1], drawn[1:]),
        (drawn, other),
    ):
        equal = (first == second).mean()
        assert abs(equal - share) < 4.89 * math.sqrt(2 * share * (1 - share) / first.size)


def test_any_order_is_any_order():
    """Each of 40 positions is the first to stay in a fortieth of 500 rows."""
    unmasking = Unmasking(Given(LOGITS), order="random")
    first = generate(unmasking, np.ones((500, 40), "int32"), 40, every_step=True, batch_size=500)[1]
    counts = (first != 1).sum(axis=0)
    assert counts.sum() == 500
    assert stats.chisquare(counts).pvalue > 1e-6


def test_ties_are_broken_at_random_and_by_the_seed():
    """All are as sure: without noise the first would always stay."""
    unmasking = Unmasking(Given(LOGITS))
    first = generate(unmasking, np.ones((500, 40), "int32"), 40, every_step=True, batch_size=500)[1]
    assert stats.chisquare((first != 1).sum(axis=0)).pvalue > 1e-6


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
    return [model.generate(to_fill(), **WAYS[way]).tolist() for way in WAYS]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends_generate_the_same(backend):
    assert on(backend, generated) == generated()


def test_a_saved_model_generates_on(tmp_path):
    MODEL.generate(to_fill())
    MODEL.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.generate(to_fill()), MODEL.generate(to_fill()))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"temperature": -1}, "`temperature` must be a number, at least 0.*-1"),
        ({"top_k": 3}, "`temperature` must be above 0 with `top_k` or `top_p`.*0.0"),
        ({"top_k": 0, "temperature": 1}, r"`top_k` must be a whole number, in \[1, 30\].*0"),
        ({"top_p": 1.5, "temperature": 1}, "`top_p` must be a number, in .*1.5"),
        ({"order": "left"}, "`order` must be one of confidence, random.*'left'"),
        ({"revise": 1}, "`revise` must be True or False.*1"),
        ({"block_length": 0}, "`block_length` must be a whole number, at least 1.*0"),
        ({"forbidden_token_ids": [30]}, r"`forbidden_token_ids` must be a list of ids.*30"),
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
        (np.full((2, 3), 30), r"`token_ids` must lie in \[0, 29\]"),
        (np.full((2, 3), 0.5), "`token_ids` must be integers"),
        ({"selectable": [True]}, "`inputs` must hold `token_ids`"),
        ({"token_ids": [[1, 2]], "selectable": [True]}, r"`selectable` must have the shape of"),
    ],
    ids=["nothing", "id", "float", "no ids", "shape"],
)
def test_inputs_are_checked(inputs, message):
    with pytest.raises(ValueError, match=message):
        MODEL.generate(inputs)
