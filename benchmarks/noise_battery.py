"""Is the noise random? dieharder, and two tests of our own, on streams along every axis.

    nice python benchmarks/noise_battery.py --report docs/noise_battery.csv  # all of it
    nice python benchmarks/noise_battery.py --report rows.csv --streams row step
    python benchmarks/noise_battery.py --words step | RNG_test stdin32  # PractRand, or others

The streams come from a copy of `keras_dynmask.noise` in NumPy, which the program first
compares with the package. Every test reads words of its own, and the same at every run, so
that a report can be repeated to the last digit. What is WEAK runs a second time, on other
words and four times as many. Tests that the report holds are not repeated. Needs the Debian
package `dieharder`.
"""

import argparse
import contextlib
import csv
import functools
import itertools
import math
import os
import pathlib
import shutil
import subprocess
import sys
from statistics import NormalDist

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

# The construction, as in `keras_dynmask.noise`, on uint32 arrays that broadcast


def threefry(key, counter):
    keys = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    x, y = counter[0] + keys[0], counter[1] + keys[1]
    for block in range(5):
        for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[block % 2]:
            x = x + y
            y = (y << rotation | y >> (32 - rotation)) ^ x
        x = x + keys[(block + 1) % 3]
        y = y + keys[(block + 2) % 3] + np.uint32(block + 1)
    return x, y


def half_mix(words):
    words = words ^ words >> 16
    words *= np.uint32(0x21F0AAAD)
    words ^= words >> 15
    return words


def mix(words):
    words = half_mix(words)
    words *= np.uint32(0xD35A2D97)
    words ^= words >> 15
    return words


def stream_word(keys, stream):
    return keys[1] + stream * np.uint32(0x9E3779B9)


def bits(keys, positions, stream):
    return mix(mix(positions ^ keys[0]) ^ stream_word(keys, stream))


def content_words(ids):
    """Two words `[batch, 1]` for rows `[batch, length]` without padding."""
    positions = np.arange(ids.shape[1], dtype=np.uint32)

    def word(salt):
        hashes = mix(mix(positions + np.uint32(salt)) ^ ids)
        return hashes.sum(axis=1, keepdims=True, dtype=np.uint32)

    return word(0x1BD11BDA), word(0x9E3779B9)


# The same, weakened: what should fail


def bits_of_short_keys(keys, positions, stream):
    """As if a row's key had 32 bits."""
    return bits((keys[0], mix(keys[0] + np.uint32(1))), positions, stream)


def bits_by_one_mix(keys, positions, stream):
    return mix(positions ^ keys[0] ^ stream_word(keys, stream))


def bits_by_half_a_mix(keys, positions, stream):
    return half_mix(positions ^ keys[0] ^ stream_word(keys, stream))


# Streams

ENDLESS = 2**32
LAYOUTS = {  # the axes that vary, slowest first, and over how many values
    "position": {"row": ENDLESS, "position": 512},
    "long rows": {"row": ENDLESS, "position": 2**17},
    "one row": {"position": ENDLESS},
    "row": {"row": ENDLESS},
    "step": {"step": ENDLESS},
    "replica": {"replica": ENDLESS},
    "seed": {"seed": ENDLESS},
    "stream": {"row": ENDLESS, "position": 512, "stream": 9},
    "training": {"step": ENDLESS, "row": 32, "position": 128, "stream": 2},
    "low bits": {"seed": ENDLESS, "step": 8, "replica": 4, "row": 8, "position": 8, "stream": 9},
    "content": {"content": ENDLESS},
}
BLOCK = 2**15  # words: what fits the cache is made several times as fast


def words_of(layout, number, bits=bits):
    """Blocks of words, axes counting up from 0; every `number` gives others."""
    slowest, *others = layout
    sizes = [layout[axis] for axis in others]
    values = max(1, BLOCK // math.prod(sizes))
    for start in range(0, ENDLESS, values):
        grid = np.ogrid[tuple(map(slice, (values, *sizes)))]
        at = {axis: numbers.astype(np.uint32) for axis, numbers in zip(layout, grid, strict=True)}
        at[slowest] += np.uint32(start)
        yield np.broadcast_to(words_at(at, number, bits), (values, *sizes)).ravel()


def words_at(at, number, bits):
    zero, most, other = (np.full(1, value, np.uint32) for value in (0, ENDLESS - 1, number))
    if "content" in at:
        ids = np.stack([at["content"] // 30000, at["content"] % 30000], axis=1)
        timeless = threefry((other, zero), (most, most))
        keys = [word[:, 0] for word in threefry(timeless, content_words(ids))]
    else:
        seed = (at["seed"], other) if "seed" in at else (other, zero)
        moment = threefry(seed, (at.get("step", zero), at.get("replica", zero)))
        keys = threefry(moment, (at.get("row", zero), zero))
    return bits(keys, at.get("position", zero), at.get("stream", zero))


def words_of_pcg64(number):
    random = np.random.Generator(np.random.PCG64(number))
    while True:
        yield random.integers(0, 2**32, BLOCK, dtype=np.uint32)


STREAMS = {name: functools.partial(words_of, layout) for name, layout in LAYOUTS.items()}
CONTROLS = {
    "PCG64": words_of_pcg64,
    "one mix": functools.partial(words_of, LAYOUTS["position"], bits=bits_by_one_mix),
    "half a mix": functools.partial(words_of, LAYOUTS["position"], bits=bits_by_half_a_mix),
    "32-bit key": functools.partial(words_of, LAYOUTS["row"], bits=bits_of_short_keys),
}

# Tests: of blocks of words, and how many times as many as usual. They return their name, their
# p-values (near 0 is too irregular, near 1 too regular or the other way round: both are bad)
# and how many words they read.

# Where dieharder sums up p-values by a Kolmogorov-Smirnov test it needs about 100 of them:
# of 4 it called 35 % of PCG64's results WEAK, of 25 it called 8 %. The last number is what a
# second run multiplies. Left out: what its authors call "Suspect" or "Do Not Use" (5-7, 14).
DIEHARDER = """
-d 0 -p 100, -d 1 -p 100, -d 2 -p 100, -d 3 -p 100, -d 4 -p 100, -d 8 -p 100, -d 9 -p 100,
-d 10 -p 100, -d 11 -p 100, -d 12 -p 100, -d 13 -p 100, -d 15 -p 100, -d 16 -p 100,
-d 17 -t 500000 -p 100, -d 102 -p 100, -d 200 -n 4 -p 100, -d 201 -n 2 -p 100,
-d 201 -n 5 -p 100, -d 202 -p 100, -d 203 -n 1 -t 250000 -p 100, -d 204 -p 100,
-d 205 -t 51200000, -d 206 -t 50000, -d 207 -t 15000000, -d 208 -t 5000000, -d 209 -t 65000000
"""


def dieharder(options, blocks, more):
    *options, size = options.split()
    columns = ("-c", ",", "-D", "test_name", "-D", "ntuple", "-D", "pvalues")
    process = subprocess.Popen(
        ["dieharder", "-g", "200", *columns, *options, str(int(size) * more)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    read = 0
    with contextlib.suppress(BrokenPipeError):  # it has what it needs
        for block in blocks:
            process.stdin.write(block)
            read += block.size
    lines = [line.split(",") for line in process.communicate()[0].decode().splitlines()]
    return lines[0][0].strip(), [float(p) for _, _, p in lines], read


def ties(blocks, more):
    """How many words came before, against n balls in 2**32 boxes; sees 1.4 % more or fewer."""
    count = 2**25 * more
    found, expected, spread = counted_ties(blocks, count)
    return "ties", [NormalDist().cdf((found - expected) / spread)], count


def counted_ties(blocks, count):
    words = np.sort(taken(blocks, count))
    load = count / 2**32
    expected = 2**32 * (load + math.expm1(-load))
    spread = (2**32 * math.exp(-load) * -math.expm1(math.log1p(load) - load)) ** 0.5
    return int((words[1:] == words[:-1]).sum()), expected, spread


def neighbours(blocks, more):
    """The largest correlation of any bit of a word with any bit of the next; sees .0025."""
    count, read, sums = 2**24 * more, 0, np.zeros((32, 32))
    for block in blocks:
        ones = np.unpackbits(block.view(np.uint8), bitorder="little").reshape(-1, 2, 32)
        signs = 2 * ones.astype(np.float32) - 1
        sums += signs[:, 0].T @ signs[:, 1]
        read += block.size
        if read >= count:
            break
    tail = 2 * NormalDist().cdf(-np.abs(sums).max() / (read / 2) ** 0.5)
    return "neighbours", [-math.expm1(1024 * math.log1p(-tail))], read


def taken(blocks, count):
    """The first `count` words."""
    words, filled = np.empty(count, np.uint32), 0
    for block in blocks:
        part = block[: count - filled]
        words[filled : filled + part.size] = part
        filled += part.size
        if filled == count:
            return words


TESTS = {"ties": ties, "neighbours": neighbours} | {
    options.strip(): functools.partial(dieharder, options) for options in DIEHARDER.split(",")
}


# The report


VERDICTS = ("PASSED", "WEAK", "FAILED")


def verdict(p):
    """Of a p-value, by dieharder's own limits: 1 % of a good generator's are WEAK."""
    tail = min(p, 1 - p)
    return VERDICTS[(tail < 0.005) + (tail < 1e-6)]


OUTCOMES = ("PASSED", "WEAK once", "WEAK twice", "FAILED")


def outcome(first, second):
    if "FAILED" in (first, second):
        return "FAILED"
    return "PASSED" if first == "PASSED" else f"WEAK {'twice' if second == 'WEAK' else 'once'}"


def run(stream, report):
    """Runs what the report lacks of one stream, and writes it there."""
    words = (STREAMS | CONTROLS)[stream]
    for number, (options, test) in enumerate(TESTS.items(), start=1):
        first = report.done(stream, options, 1) or report.add(
            stream, options, 1, *test(words(number), 1)
        )
        verdicts = set(map(verdict, first))
        if "WEAK" in verdicts and "FAILED" not in verdicts and not report.done(stream, options, 2):
            report.add(stream, options, 2, *test(words(number + 1000), 4))


class Report:
    """A CSV file: a line for each test of each stream, and one for each second run."""

    COLUMNS = ("stream", "options", "run", "test", "words", "p_values")

    def __init__(self, path):
        self.path = path
        if not path.exists():
            self._append("w", self.COLUMNS)
        with open(path, newline="") as file:
            self.lines = {
                (line["stream"], line["options"], int(line["run"])): line
                for line in csv.DictReader(file)
            }

    def done(self, stream, options, run):
        line = self.lines.get((stream, options, run))
        return line and list(map(float, line["p_values"].split()))

    def add(self, stream, options, run, test, p_values, words):
        texts = " ".join(f"{p:.8f}" for p in p_values)
        values = (stream, options, run, test, words, texts)
        self._append("a", values)
        self.lines[stream, options, run] = dict(zip(self.COLUMNS, values, strict=True))
        print(f"{sum(os.times()[:4]):6.0f} s  {stream:11} {test:22} {texts}", flush=True)
        return p_values

    def _append(self, mode, values):
        with open(self.path, mode, newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(values)

    def streams(self):
        return list(dict.fromkeys(stream for stream, _, _ in self.lines))

    def outcomes(self, stream):
        """The test and the outcome of every p-value of a stream."""
        for (name, options, run), line in self.lines.items():
            if name == stream and run == 1:
                first = map(verdict, self.done(stream, options, 1))
                second = map(verdict, self.done(stream, options, 2) or [])
                for both in itertools.zip_longest(first, second):
                    yield line["test"], outcome(*both)

    def summary(self):
        """The report as a Markdown table."""
        lines = [
            f"| stream | words, 10^9 | p-values | {' | '.join(OUTCOMES)} | by |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for stream in self.streams():
            tests, found = zip(*self.outcomes(stream), strict=True)
            failed = {test for test, how in zip(tests, found, strict=True) if how == "FAILED"}
            by = ", ".join(failed) if len(failed) < 2 else f"{len(failed)} tests"
            read = sum(int(line["words"]) for key, line in self.lines.items() if key[0] == stream)
            cells = (stream, f"{read / 1e9:.2f}", len(found), *map(found.count, OUTCOMES), by)
            lines.append("| " + " | ".join(map(str, cells)) + " |")
        return "\n".join(lines)


def row_lengths():
    """From which length on a row is too regular: ties of words of rows one after the other."""
    yield "| positions in a row | ties | of independent words | z |"
    yield "|---|---|---|---|"
    for power in (9, 13, 17, 18, 19, 20, 22):
        layout = {"row": ENDLESS, "position": 2**power}
        found, expected, spread = counted_ties(words_of(layout, 0), 2**27)
        z = (found - expected) / spread
        yield f"| {2**power:,} | {found:,} | {expected:,.0f} ± {spread:,.0f} | {z:+.1f} |"


# The package


def check():
    """That the copy above gives the bits of the package, at random places of all axes."""
    from keras import ops

    from keras_dynmask import noise

    def int32(words):
        return ops.convert_to_tensor(words.view(np.int32))

    random = np.random.default_rng(0)
    for stream in range(9):
        low, high, step, replica = random.integers(0, 2**32, (4, 1), np.uint32)
        rows, positions = random.integers(0, 2**31, (2, 64), np.uint32)
        ids = random.integers(0, 30000, (64, 2), np.uint32)
        ours = threefry((low, high), (step, replica))
        seed, moment = int(low[0]) + (int(high[0]) << 32), (int(step[0]), int(replica[0]))
        content = noise.content_words(int32(ids), ops.ones((64, 2), "bool"))
        for row, theirs in (
            ((rows[:, None], np.zeros(1, np.uint32)), noise.words(int32(rows))),
            (content_words(ids), content),
        ):
            keys = noise.row_keys(seed, moment, theirs)
            expected = ops.convert_to_numpy(noise.bits(keys, int32(positions), stream))
            found = bits(threefry(ours, row), positions, np.full(1, stream, np.uint32))
            if not np.array_equal(found.view(np.int32), expected):
                sys.exit(f"The copy differs from keras_dynmask.noise in stream {stream}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    streams = STREAMS | CONTROLS
    parser.add_argument("--report", type=pathlib.Path, help="a CSV file, to write or to go on with")
    parser.add_argument("--streams", nargs="+", choices=streams, default=streams, metavar="NAME")
    parser.add_argument("--words", choices=streams, help="write a stream's words, endlessly")
    parser.add_argument("--row-lengths", action="store_true", help="count ties in longer rows")
    arguments = parser.parse_args()
    check()
    if arguments.words:
        with contextlib.suppress(BrokenPipeError):
            for block in streams[arguments.words](0):
                sys.stdout.buffer.write(block)
        return
    if arguments.row_lengths:
        for line in row_lengths():
            print(line, flush=True)
        return
    if arguments.report is None:
        parser.error("one of --report FILE, --words NAME and --row-lengths is needed")
    if shutil.which("dieharder") is None:
        sys.exit("dieharder is not installed: apt install dieharder")
    report = Report(arguments.report)
    for stream in arguments.streams:
        run(stream, report)
    print(report.summary())


if __name__ == "__main__":
    main()
