"""Noise is a published generator, well mixed along every axis, and the same everywhere."""

import hashlib
import importlib
import pathlib
import re
import shutil
import subprocess

import keras
import numpy as np
import oracle
import pytest
from elsewhere import on
from keras import ops
from scipy import stats

from keras_dynmask import DynamicMasking, noise

ALPHA = 1e-6
Z = 4.89  # of two sides
TESTS = pathlib.Path(__file__).parent
ROOT = TESTS.parent


def as_words(tensor):
    return ops.convert_to_numpy(tensor).astype(np.uint32)


def int32(numbers):
    return ops.convert_to_tensor(np.asarray(numbers).astype(np.uint32).view(np.int32))


def column(numbers):
    return ops.expand_dims(int32(numbers), 1)


def some_bits(seed=0, step=0, replica=0, rows=1, positions=1, stream=noise.SELECT):
    """`[rows, positions]` unsigned words."""
    keys = noise.row_keys(seed, (step, replica), noise.words(ops.arange(rows, dtype="int32")))
    return as_words(noise.bits(keys, ops.arange(positions, dtype="int32"), stream))


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_the_known_answers_of_random123(key, counter, expected):
    words = noise.threefry([column([k]) for k in key], [column([c]) for c in counter])
    assert tuple(int(as_words(word)[0, 0]) for word in words) == expected
    assert oracle.threefry(key, counter) == expected


@pytest.mark.parametrize(
    ("seed", "step", "replica", "row", "position", "stream", "expected"),
    [
        (0, 0, 0, 0, 0, 0, 0xEAA27475),
        (0, 0, 0, 0, 1, 0, 0xFFAF3A44),
        (0, 0, 0, 1, 0, 0, 0x4EFB5E0F),
        (0, 0, 1, 0, 0, 0, 0xECBAA799),
        (0, 1, 0, 0, 0, 0, 0x45A1BA7F),
        (1, 0, 0, 0, 0, 0, 0x844FBE97),
        (0, 0, 0, 0, 0, 4, 0x1587F5F6),
        (2**64 - 1, 2**31 - 1, 7, 2**31 - 1, 511, 3, 0xD4BC56A8),
        (20240229, 123456, 0, 31, 127, 2, 0x1AC3CEC8),
        (0, 0, 0, 0, 0, 1, 0xE3B3BEB1),
        (0, 0, 0, 0, 0, 2, 0x07C241B8),
        (0, 0, 0, 0, 0, 3, 0x88BB2250),
        (0, 0, 0, 0, 0, 5, 0x24BAF273),
        (0, 0, 0, 0, 0, 6, 0x7408150E),
        (0, 0, 0, 0, 0, 7, 0x7D523842),
        (0, 0, 0, 0, 0, 8, 0x193D659A),
        (2**32, 0, 0, 0, 0, 0, 0x7CF5D1B5),
        (0, 2**32 - 1, 0, 0, 0, 0, 0x8738FAA8),
        (0, 0, 2**31 - 1, 0, 0, 0, 0xA59F95EE),
        (0, 0, 0, 2**40 + 3, 0, 0, 0x4272424A),
        (0, 0, 0, -1, 0, 0, 0xEF0405E4),
        (0, 0, 0, 0, 2**17 - 1, 0, 0xE919FF4A),
        (3, 1, 4, 1, 5, 8, 0x5665CA75),
    ],
)
def test_frozen_bits(seed, step, replica, row, position, stream, expected):
    """A released stream never changes: whoever resumes a run needs it."""
    rows = ops.convert_to_tensor(np.array([row]))
    keys = noise.row_keys(seed, (step, replica), noise.words(rows))
    word = noise.bits(keys, ops.convert_to_tensor([position], dtype="int32"), stream)
    assert int(as_words(word)[0, 0]) == expected


@pytest.mark.parametrize(
    ("seed", "ids", "position", "stream", "expected"),
    [
        (0, [5, 6, 7], 0, 0, 0xCF6B069A),
        (0, [5, 6, 7, 0, 0], 0, 0, 0xCF6B069A),  # padding leaves no trace
        (0, [6, 5, 7], 0, 0, 0x8BD59C04),
        (0, [5, 6, 7], 1, 1, 0x2BCA8E28),
        (2**64 - 1, [101, 2003, 0, 7099, 102], 511, 2, 0x859BC3B1),
        (7, [30521, 30521, 30521], 2, 3, 0x0FFAAB91),
        (1, [5, 6, 7], 0, 4, 0xDE2867EA),
        (7, [1, 2, 3], 0, 5, 0x283A847A),
        (7, [1, 2, 3], 0, 6, 0xD6CB9CDB),
        (7, [1, 2, 3], 0, 7, 0xA9AF47F2),
        (20240229, [5, 6, 7, 8], 3, 8, 0xF2D73BCB),
        (0, [0], 0, 0, 0x5374F56E),
    ],
)
def test_frozen_bits_of_evaluation(seed, ids, position, stream, expected):
    """Where the row's content, every id but 0, stands for its number, at no step."""
    content = noise.content_words(int32([ids]), ops.convert_to_tensor([[i > 0 for i in ids]]))
    keys = noise.row_keys(seed, noise.TIMELESS, content)
    word = noise.bits(keys, ops.convert_to_tensor([position], dtype="int32"), stream)
    assert int(as_words(word)[0, 0]) == expected


@pytest.mark.parametrize("seed", [0, 7, 2**32, 2**64 - 1])
@pytest.mark.parametrize("moment", [(0, 0), (5, 3), (2**31 + 1, 0), noise.TIMELESS])
def test_bits_equal_the_oracle(seed, moment):
    rows = np.array([0, 1, 2**31 - 1, 2**40 + 3, -1])
    keys = noise.row_keys(seed, moment, noise.words(ops.convert_to_tensor(rows)))
    for stream in range(9):
        got = as_words(noise.bits(keys, ops.arange(6, dtype="int32"), stream))
        for row, words in zip(rows, got, strict=True):
            key = oracle.row_key(seed, moment, oracle.row_number(int(row)))
            assert [oracle.bits(key, p, stream) for p in range(6)] == words.tolist()


def test_content_words_equal_the_oracle():
    ids = np.array([[5, 6, 7, 0], [7, 6, 5, 9]])
    counts = ids > 0
    first, second = noise.content_words(int32(ids), ops.convert_to_tensor(counts))
    for row in range(2):
        words = int(as_words(first)[row, 0]), int(as_words(second)[row, 0])
        assert words == oracle.content(ids[row].tolist(), counts[row])


def test_mix_is_a_permutation():
    """Both steps of `mix` can be undone: an odd factor has an inverse, a shift a fixed point."""

    def unshift(word, places):
        found = word
        for _ in range(32 // places + 1):
            found = word ^ found >> places
        return found

    words = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint64)
    undone = as_words(noise.mix(int32(words))).astype(np.uint64)
    for factor, places in ((0xD35A2D97, 15), (0x21F0AAAD, 15)):
        undone = unshift(undone, places) * pow(factor, -1, 2**32) & 0xFFFFFFFF
    assert np.array_equal(unshift(undone, 16), words)


def test_positions_of_a_row_never_tie():
    words = some_bits(seed=3, rows=2, positions=2**20)
    assert all(len(np.unique(row)) == 2**20 for row in words)


def test_uniform_is_exact_and_below_one():
    words = int32([0, 255, 256, 2**31 - 1, 2**31, 2**32 - 1])
    expected = [0, 0, 2**-24, 0.5 - 2**-24, 0.5, 1 - 2**-24]
    assert ops.convert_to_numpy(noise.uniform(words)).tolist() == expected


def test_below_stays_below():
    words = int32([0, 1, 2, 2**31, 2**32 - 1])
    assert ops.convert_to_numpy(noise.below(words, 3)).tolist() == [0, 0, 1, 1, 1]
    assert ops.convert_to_numpy(noise.below(words, 1)).tolist() == [0] * 5


def along(axis, count=2**16):
    """`count` words between which only `axis` changes, by ones."""
    numbers, zero = np.arange(count), ops.zeros((count, 1), "int32")
    seed = moment = row = (zero, zero)
    position, stream = zero, noise.SELECT
    if axis == "stream":
        keys = noise.row_keys(0, (0, 0), (zero[:1], zero[:1]))
        blocks = [noise.bits(keys, position[0], number) for number in range(2**12)]
        return np.concatenate([as_words(block)[0] for block in blocks])
    if axis == "position":
        position = column(numbers)
    elif axis == "row":
        row = (column(numbers), zero)
    elif axis == "step":
        moment = (column(numbers), zero)
    elif axis == "replica":
        moment = (zero, column(numbers))
    elif axis == "seed":
        seed = (column(numbers), zero)
    keys = noise.threefry(noise.threefry(seed, moment), row)
    return as_words(noise.bits(keys, position, stream))[:, 0]


AXES = ["position", "row", "step", "replica", "seed", "stream"]


def p_of_uniform_counts(values, cells):
    return stats.chisquare(np.bincount(values, minlength=cells)).pvalue


@pytest.mark.parametrize("axis", AXES)
def test_words_are_uniform_along(axis):
    """Chi-square of the high, middle and low byte; power .99 against a cell 15 % too full."""
    words = along(axis)
    for shift in (24, 12, 0):
        assert p_of_uniform_counts(words >> shift & 0xFF, 256) > ALPHA


@pytest.mark.parametrize("axis", AXES)
def test_neighbours_are_independent_along(axis):
    """Chi-square of the pairs of high nibbles of words that follow each other."""
    high = along(axis) >> 28
    assert p_of_uniform_counts(high[0::2] << 4 | high[1::2], 256) > ALPHA


@pytest.mark.parametrize("axis", ["position", "row", "step", "replica", "seed"])
def test_every_input_bit_reaches_every_output_bit(axis):
    """Avalanche: each of 32 x 32 pairs flips half the time, at 4096 keys."""
    random = np.random.default_rng(1)
    inputs = {name: random.integers(0, 2**32, (4096, 1)) for name in [*AXES[:5], "high"]}

    def word(**changed):
        now = {name: int32(value) for name, value in (inputs | changed).items()}
        key = noise.threefry((now["seed"], now["high"]), (now["step"], now["replica"]))
        keys = noise.threefry(key, (now["row"], now["high"]))
        return as_words(noise.bits(keys, now["position"], noise.SELECT))[:, 0]

    places = np.arange(32, dtype=np.uint32)
    before = word()
    flips = [before ^ word(**{axis: inputs[axis] ^ (1 << bit)}) for bit in range(32)]
    shares = np.array([(words[:, None] >> places & 1).mean(axis=0) for words in flips])
    farthest = np.abs(shares - 0.5).max() / (0.5 / 4096**0.5)
    assert 2 * stats.norm.sf(farthest) * 1024 > ALPHA


def test_streams_and_seeds_are_uncorrelated():
    """z of the correlation between any two streams, and between neighbouring seeds."""
    blocks = [some_bits(rows=256, positions=256, stream=stream) for stream in range(9)]
    blocks += [some_bits(seed=seed, rows=256, positions=256) for seed in (1, 2, 2**32)]
    table = np.corrcoef([block.ravel() / 2**32 for block in blocks])
    pairs = table[np.triu_indices(len(blocks), 1)]
    assert 2 * stats.norm.sf(np.abs(pairs).max() * 256) * len(pairs) > ALPHA


def keys_of(rows, steps=1, replicas=1, seeds=1):
    """The key of every combination, in two words `[1, combinations]` each."""
    moment = int32(np.arange(steps)[:, None, None]), int32(np.arange(replicas)[:, None])
    words = rows if isinstance(rows, tuple) else (int32(np.arange(rows)), int32([0]))
    found = [noise.row_keys(seed * (2**32 + 1), moment, words) for seed in range(seeds)]
    return tuple(
        ops.concatenate([ops.reshape(keys[word], (1, -1)) for keys in found], axis=1)
        for word in (0, 1)
    )


def contents(count):
    """The words of rows of two tokens, of which neighbours differ in one."""
    numbers = np.arange(count)
    ids = np.stack([numbers // 2000, numbers % 2000], axis=1)
    first, second = noise.content_words(int32(ids), ops.ones(ids.shape, "bool"))
    return first[:, 0], second[:, 0]


def ties(words):
    """How many words came before."""
    words = np.sort(words, axis=None)
    return int((words[1:] == words[:-1]).sum())


def z_of_ties(keys):
    """How many rows have the high halves of their words at positions 0 and 1 in common with
    an earlier one, against what is expected of independent rows."""
    halves = [as_words(noise.bits(keys, int32([place]), noise.SELECT)) >> 16 for place in (0, 1)]
    expected = halves[0].size ** 2 / 2**33
    return (ties(halves[0] << 16 | halves[1]) - expected) / expected**0.5


@pytest.mark.parametrize(
    "keys",
    [
        lambda: keys_of(rows=2**20),
        lambda: keys_of(rows=2**10, steps=2**10),
        lambda: keys_of(rows=2**14, replicas=2**6),
        lambda: keys_of(rows=2**16, seeds=2**4),
        lambda: keys_of(rows=contents(2**20)),
    ],
    ids=["rows", "rows and steps", "rows and replicas", "rows and seeds", "contents"],
)
def test_rows_tie_as_often_as_chance(keys):
    """Birthdays: 128 among 2**20 rows; power .99 at 75 % more or fewer."""
    assert abs(z_of_ties(keys())) < Z


@pytest.mark.parametrize(
    "shortened",
    [
        lambda first, second: (first, noise.mix(first + 1)),
        lambda first, second: (first, first),
        lambda first, second: (first * 0, second),
    ],
    ids=["second from first", "twice the first", "second alone"],
)
def test_rows_with_keys_of_32_bits_tie_twice_as_often(shortened):
    assert z_of_ties(shortened(*keys_of(rows=2**10, steps=2**10))) > Z


def test_no_key_comes_twice_among_ten_million():
    """Random 64 bits tie in 3 cases of a million; 32 of them 11,633 times."""
    first, second = (as_words(word) for word in keys_of(1000, steps=100, replicas=10, seeds=10))
    assert first.size == 10**7
    assert ties(first.astype(np.uint64) << 32 | second) == 0
    for word in (first, second):
        assert abs(ties(word) - 11_633) < Z * 11_633**0.5


PAGE = (ROOT / "docs" / "noise.md").read_text()
MAIN = r"""
#include <stdio.h>
int main(void) {
    unsigned long long seed, row;
    unsigned step, replica, position, stream;
    const char *form = "%llu %u %u %llu %u %u";
    while (scanf(form, &seed, &step, &replica, &row, &position, &stream) == 6)
        printf("%u\n", noise(seed, step, replica, row, position, stream));
    const int32_t ids[] = {101, 2003, 0, 7099, 102};
    const int counts[] = {1, 1, 0, 1, 1};
    printf("%llu\n", (unsigned long long)content(ids, counts, 5));
    return 0;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_the_page_on_noise_states_it_in_c(tmp_path):
    (code,) = re.findall(r"```c\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "noise.c").write_text(code + MAIN)
    warnings = ["-std=c99", "-Wall", "-Wextra", "-Werror"]
    compiled = [tmp_path / "noise", tmp_path / "noise.c"]
    subprocess.run(["cc", *warnings, "-o", *compiled], check=True, timeout=60)
    random = np.random.default_rng(0)
    places = [
        [int(random.integers(0, 2**bits, dtype=np.uint64)) for bits in (63, 32, 32, 63, 32)]
        for _ in range(200)
    ]
    places = [[*place, number % 9] for number, place in enumerate(places)]
    text = "\n".join(" ".join(map(str, place)) for place in places)
    done = subprocess.run(
        [compiled[0]], input=text, capture_output=True, text=True, check=True, timeout=60
    )
    *found, content = map(int, done.stdout.split())
    assert found == [bits_of(*place) for place in places]
    first, second = oracle.content([101, 2003, 0, 7099, 102], [True, True, False, True, True])
    assert content == second << 32 | first


def bits_of(seed, step, replica, row, position, stream):
    key = oracle.row_key(seed, (step, replica), oracle.row_number(row))
    return oracle.bits(key, position, stream)


def test_the_page_on_noise_shows_its_vectors():
    vectors = re.findall(r"^\| (\d[\d |]+) \| `(\w{8})` \|$", PAGE, re.MULTILINE)
    assert len(vectors) == 3
    for numbers, word in vectors:
        assert bits_of(*map(int, numbers.split("|"))) == int(word, 16)


@pytest.fixture(scope="module")
def battery():
    """The program as a module."""
    return importlib.import_module("noise_battery")


def test_the_battery_tests_this_noise(battery, monkeypatch):
    battery.check()
    monkeypatch.setattr(battery, "bits", battery.bits_by_one_mix)
    with pytest.raises(SystemExit, match="differs from keras_dynmask.noise in stream 0"):
        battery.check()


def test_the_page_on_noise_shows_the_report(battery):
    path = ROOT / "docs" / "noise_battery.csv"
    assert path.is_file()
    report = battery.Report(path)
    assert set(report.streams()) == {*battery.STREAMS, *battery.CONTROLS}
    assert report.summary() in PAGE


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([0.3], None, "PASSED"),
        ([0.004], [0.4], "WEAK once"),
        ([0.9951], [0.001], "WEAK twice"),
        ([0.004], [1e-7], "FAILED"),
        ([1 - 1e-7], None, "FAILED"),
    ],
)
def test_an_outcome_of_the_battery(battery, tmp_path, first, second, expected):
    report = battery.Report(tmp_path / "report.csv")
    report.add("row", "-d 0", 1, "birthdays", first, 100)
    if second:
        report.add("row", "-d 0", 2, "birthdays", second, 400)
    again = battery.Report(tmp_path / "report.csv")
    assert list(again.outcomes("row")) == [("birthdays", expected)]


def test_the_battery_counts_ties(battery):
    """2,047 are expected of 2**22 words; twice as many where the lowest bit is always 1."""
    words = np.random.default_rng(0).integers(0, 2**32, 2**22, dtype=np.uint32)
    for sample, ratio in ((words, 1), (words | 1, 2)):
        found, expected, spread = battery.counted_ties(iter(np.split(sample, 16)), 2**22)
        assert (round(expected), round(spread)) == (2047, 45)
        assert abs(found - ratio * expected) < Z * spread * ratio


def test_the_battery_sees_neighbours(battery):
    """Words of which every second has its bit 1 from bit 4 of the one before."""
    words = np.random.default_rng(0).integers(0, 2**32, 2**17, dtype=np.uint32)
    copied = words.copy()
    copied[1::2] = words[1::2] & ~np.uint32(2) | words[0::2] >> 3 & 2
    for sample, expected in ((words, "PASSED"), (copied, "FAILED")):
        _, (p,), _ = battery.neighbours(iter(np.split(sample, 16)), 1)
        assert battery.verdict(p) == expected


TABLE = [0.3 * (token % 11) for token in range(100)]
WORDS = {"continuation_token_ids": range(50, 100)}
ALL_SWAPPED = {"mask_selection_rate": 0.5, "mask_token_rate": 0.0, "random_token_rate": 1.0}
SETTINGS = [
    {},
    {"mask_selection_length": 9},
    {"exact_count": False},
    {**WORDS, "mask_selection_length": 12},
    {**WORDS, "mask_selection_length": 7, "at_least_one": True},
    {**WORDS, "exact_count": False},
    {"mean_span_length": 3.0},
    {**WORDS, "mean_span_length": 3.0},
    {"mask_selection_rate": (0.1, 0.9), "evaluation_rate": 0.3},
    {"mask_selection_rate": (0.1, 0.9), "exact_count": False, "mask_selection_length": 4},
    {"mask_selection_rate": (0.0, 1.0), "at_least_one": True, "mean_span_length": 3.0},
    {"mask_selection_rate": (0.0, 1.0), "inverse_rate_weights": True},
    {"exact_count": False, "at_least_one": True, "mask_selection_length": 6},
    {"count_per_document": True},
    {**WORDS, "count_per_document": True, "at_least_one": True, "mask_selection_length": 9},
    {"count_per_document": True, "selection_weights": TABLE, "mean_span_length": 3.0},
    {**WORDS, "selection_weights": TABLE, "mask_selection_length": 9},
    {"exact_count": False, "selection_weights": TABLE},
    {**ALL_SWAPPED, "random_token_weights": TABLE},
    {**ALL_SWAPPED, "random_token_weights": TABLE, "random_excludes_original": True},
    {**ALL_SWAPPED, "random_excludes_original": True},
    {"corrupt_whole_units": True, "mean_span_length": 3.0},
    {**ALL_SWAPPED, **WORDS, "corrupt_whole_units": True, "random_excludes_original": True,
     "random_words": [(7,), (8,), (9,), (7, 61), (8, 62), (9, 70, 71), (10, 60, 60)]},
]  # fmt: skip


def digests():
    """What a backend must agree on: md5 of the bits, and of every setting's outputs."""

    def md5(arrays):
        texts = (ops.convert_to_numpy(array).astype("float64").tobytes() for array in arrays)
        return hashlib.md5(b"".join(texts)).hexdigest()

    found = [md5(some_bits(7, 11, 2, 64, 64, stream) for stream in range(9))]
    ids = np.random.default_rng(0).integers(0, 100, (64, 48)).astype("int32")
    documents = np.sort(np.random.default_rng(1).integers(0, 4, ids.shape), axis=1)
    for setting in SETTINGS:
        arguments = {"mask_selection_rate": 0.15, "mask_token_id": 4, "seed": 2**40 + 1}
        masking = DynamicMasking(
            vocabulary_size=100, unselectable_token_ids=(0, 2, 97), **arguments | setting
        )
        inputs = {"token_ids": ids}
        if masking.count_per_document:
            inputs["segment_ids"] = documents
        tensors = {name: ops.convert_to_tensor(value) for name, value in inputs.items()}
        calls = [masking(inputs), masking.mask_fixed(tensors)]
        if not setting:
            calls += [masking(inputs), masking(inputs, step=5), masking(inputs, training=False)]
        if masking.selection_weights is not None:
            calls.append(masking(inputs | {"selection_weights": ids % 7 + 0.25}, step=5))
        found.append(md5(call[name] for call in calls for name in sorted(call)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends_give_the_same_bits(backend):
    """Where TensorFlow is not installed; where it is, see `test_backends.py`, under tf.data."""
    assert on(backend, digests, without_tensorflow=True) == digests()


def test_the_tests_run_on_tensorflow():
    assert keras.backend.backend() == "tensorflow"
