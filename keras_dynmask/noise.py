"""Noise: a pure function of (seed, step, replica, row, position, stream).

There is no state to save, to race for or to copy between replicas: whoever knows
the six numbers knows the noise. Two published constructions do the work.

* `threefry` (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3",
  Threefry-2x32 with 20 rounds) turns seed, step, replica and row into a key of 64
  bits per row. It is slow and strong, and runs once per row.
* `mix` (Wellons 2018, hash-prospector, the 32-bit permutation of lowest known
  bias) runs twice per position, once for each word of the key.

Everything is 32-bit integer arithmetic that wraps around, because integers are the
only numbers on which NumPy, TensorFlow (eager, graph, XLA), JAX and PyTorch agree to
the last bit. For a given row and stream the map from position to word is a
permutation, so two positions never tie.
"""

import keras

from keras_dynmask.arrays import ops
from keras_dynmask.selection import scaled

# What a word is for. Streams never share noise.
SELECT, ROLE, REPLACEMENT, BEGIN, ROW, TURN, DROP, WORD, OTHER_WORD = range(9)

# Stands in for (step, replica) where noise must depend on neither.
TIMELESS = (-1, -1)

_THREEFRY_PARITY = 0x1BD11BDA
_THREEFRY_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_GOLDEN_RATIO = 0x9E3779B9  # 2**32 / phi: keeps the streams' keys far apart


def row_keys(seed, moment, rows):
    """The 64-bit key of every row, as two int32 words.

    Args:
        seed: Python int, 0 <= seed < 2**64.
        moment: `(step, replica)` or `TIMELESS`: two integers, of which the low 32
            bits count.
        rows: two int32 words `[batch, 1]` that identify each row.
    """
    seed_words = (_signed(seed), _signed(seed >> 32))
    moment_words = [_word(number) for number in moment]
    return threefry(threefry(seed_words, moment_words), rows)


def bits(keys, positions, stream):
    """32 random bits for every position of every row.

    Args:
        keys: two int32 words `[batch, 1]`, from `row_keys`.
        positions: int32 `[length]` or `[batch, length]`. Positions that are equal
            get equal noise, so a unit's number makes the unit share its noise.
        stream: what the bits are for, one of the constants above.
    """
    first, second = keys
    stream_word = second + _signed(stream * _GOLDEN_RATIO)
    return mix(mix(positions ^ first) ^ stream_word)  # [batch, length]


def uniform(words):
    """Bits as float32 in [0, 1), multiples of 2**-24: exact on every backend."""
    return ops.cast(_shift_right(words, 8), "float32") * 2.0**-24


def row_uniforms(keys):
    """Three numbers in [0, 1) for each row: to round its count, to turn its circle, and
    to draw its rate. Float32 `[batch, 1]` each."""
    return ops.split(uniform(bits(keys, ops.arange(3, dtype="int32"), ROW)), 3, axis=1)


def below(words, bound):
    """Bits as int32 in [0, bound). The bias is under bound / 2**31."""
    return ops.mod(_shift_right(words, 1), bound)


def portion(words, amount):
    """Bits as int32 in [0, amount): floor(amount * bits / 2**32), for amounts to 2**23.

    Where amounts are large or differ, this is fair and `below` is not.
    """
    carry = _shift_right(amount * (words & 0xFF), 8)
    return scaled(amount, _shift_right(words, 8), carry)


def words(numbers):
    """Integers `[batch]` as two int32 words `[batch, 1]`."""
    numbers = ops.expand_dims(numbers, 1)
    dtype = keras.backend.standardize_dtype(numbers.dtype)
    low = ops.cast(numbers, "int32")
    if dtype.endswith("64"):
        return low, ops.cast(ops.right_shift(numbers, 32), "int32")
    # The sign, as 64 bits would have it.
    return low, ops.zeros_like(low) if dtype.startswith("u") else ops.right_shift(low, 31)


def content_words(token_ids, counts):
    """Two int32 words `[batch, 1]` that depend on each row's counted tokens.

    A sum over positions, so that tokens which do not count (padding, at any
    length) leave no trace.

    Args:
        token_ids: int32 `[batch, length]`.
        counts: bool `[batch, length]`, which positions count.
    """
    positions = ops.arange(ops.shape(token_ids)[1], dtype="int32")
    counted = ops.cast(counts, "int32")

    def word(salt):
        hashes = mix(mix(positions + _signed(salt)) ^ token_ids)
        return ops.cast(ops.sum(hashes * counted, axis=1, keepdims=True), "int32")

    return word(_THREEFRY_PARITY), word(_GOLDEN_RATIO)


def threefry(key, counter):
    """Threefry-2x32-20: two int32 words of key and two of counter, to two words."""
    keys = (key[0], key[1], key[0] ^ key[1] ^ _THREEFRY_PARITY)
    x, y = counter[0] + keys[0], counter[1] + keys[1]
    for block in range(5):
        for rotation in _THREEFRY_ROTATIONS[4 * (block % 2) :][:4]:
            x = x + y
            y = _rotate_left(y, rotation) ^ x
        x = x + keys[(block + 1) % 3]
        y = y + keys[(block + 2) % 3] + (block + 1)
    return x, y


def mix(words):
    """A permutation of the 32-bit words in which every input bit reaches every other."""
    words = (words ^ _shift_right(words, 16)) * 0x21F0AAAD
    words = (words ^ _shift_right(words, 15)) * _signed(0xD35A2D97)
    return words ^ _shift_right(words, 15)


def _rotate_left(words, places):
    return ops.left_shift(words, places) ^ _shift_right(words, 32 - places)


def _shift_right(words, places):
    """Logical shift: int32 shifts copy the sign bit, the mask takes it off again."""
    return ops.right_shift(words, places) & ((1 << (32 - places)) - 1)


def _word(number):
    """The low 32 bits of an integer or an integer tensor, as int32."""
    if isinstance(number, int):
        return ops.convert_to_tensor(_signed(number), dtype="int32")
    return ops.cast(number, "int32")


def _signed(word):
    """The Python int whose low 32 bits read as int32."""
    return ((word & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000
