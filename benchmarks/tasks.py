"""Pairs of a source and a target to learn from: generated, or found in installed packages.

Each function returns a list of pairs of strings in which every source is another one. Those
that are generated take the number of pairs and a seed. Tokens are words; what is spelled
with spaces is so that each letter or digit is a token of its own.

| function | source | target |
|---|---|---|
| `number_words` | four thousand seven hundred and eighty | 4 7 8 0 |
| `dates` | 27 May 2057; May 27, 2057; 5/27/2057; 27.5.2057 | 2057-05-27 |
| `copy_or_reverse` | a b c d | a b c d, or d c b a |
| `digits_read_out` | 4 7 8 0 2 1 | fire sju åtte null to en; in Swedish; or in Danish |
| `headlines` | clara met ... . finally ben won the race in oslo . | ben win race in oslo |
| `docstrings` | all but the first paragraph of a docstring | its first paragraph |
"""

# ruff: noqa: SIM905 - lists of words read better as text
import ast
import datetime
import importlib.util
import pathlib
import random
import string
import warnings

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()

MONTHS = (
    "January February March April May June July August September October November December"
).split()

DIGITS = {
    "Swedish": "noll ett två tre fyra fem sex sju åtta nio".split(),
    "Norwegian": "null en to tre fire fem seks sju åtte ni".split(),
    "Danish": "nul en to tre fire fem seks syv otte ni".split(),
}

NAMES = (
    "anna ben clara david emma felix greta hugo ida jonas karin leo mia nils olga paul rosa sven "
    "tina ulf"
).split()
VERBS = {
    "win": "won",
    "find": "found",
    "lose": "lost",
    "sell": "sold",
    "buy": "bought",
    "paint": "painted",
    "build": "built",
    "break": "broke",
    "steal": "stole",
    "hide": "hid",
}
OBJECTS = (
    "race boat house painting bicycle ring book garden piano car clock letter horse bridge lamp "
    "kite map violin crown chair"
).split()
PLACES = "oslo paris rome berlin lund madrid vienna prague lisbon athens dublin bergen".split()


def distinct(draw, count):
    """As many pairs as are wanted, each of another source."""
    pairs = {}
    while len(pairs) < count:
        source, target = draw()
        pairs.setdefault(source, target)
    return list(pairs.items())


def number_words(count, seed):
    numbers = random.Random(seed).sample(range(1_000_000), count)
    return [(in_words(number), " ".join(str(number))) for number in numbers]


def in_words(number):
    """4780 -> "four thousand seven hundred and eighty"; below a million."""
    for size, name in ((1000, "thousand"), (100, "hundred")):
        if number >= size:
            many, rest = divmod(number, size)
            link = " and " if 0 < rest < 100 else " "
            return f"{in_words(many)} {name}{link + in_words(rest) if rest else ''}"
    if number < 20:
        return ONES[number]
    ten, one = divmod(number, 10)
    return f"{TENS[ten]} {ONES[one]}" if one else TENS[ten]


def dates(count, seed):
    numbers, first = random.Random(seed), datetime.date(1950, 1, 1)

    def draw():
        day = first + datetime.timedelta(numbers.randrange(55_000))  # until 2100
        month = MONTHS[day.month - 1]
        source = numbers.choice(
            (
                f"{day.day} {month} {day.year}",
                f"{month} {day.day}, {day.year}",
                f"{day.month}/{day.day}/{day.year}",
                f"{day.day}.{day.month}.{day.year}",
            )
        )
        return source, day.isoformat()

    return distinct(draw, count)


def copy_or_reverse(count, seed):
    """Either is right; which of them a pair shows is left to chance."""
    numbers = random.Random(seed)

    def draw():
        letters = numbers.choices(string.ascii_lowercase, k=numbers.randint(4, 8))
        return " ".join(letters), " ".join(letters[:: numbers.choice((1, -1))])

    return distinct(draw, count)


def copied_or_reversed(source):
    """All the right targets of a source."""
    return source, source[::-1]


def digits_read_out(count, seed):
    """Six digits in one of three languages: any of them is right, a mixture is not.

    Swedish is a little more frequent. So a zero is likeliest in Swedish, and a two, which is
    one word in the other two languages, is not: what is likeliest place by place is a mixture.
    """
    numbers = random.Random(seed)

    def draw():
        source = " ".join(numbers.choices(string.digits, k=6))
        return source, numbers.choices(in_each_language(source), (4, 3, 3))[0]

    return distinct(draw, count)


def in_each_language(source):
    """All the right targets of a source."""
    digits = [int(digit) for digit in source.split()]
    return [" ".join(words[digit] for digit in digits) for words in DIGITS.values()]


def headlines(count, seed):
    """Stories of three or four sentences; the headline tells the one with "finally"."""
    numbers = random.Random(seed)

    def draw():
        sentences = []
        for _ in range(numbers.randint(3, 4)):
            name, verb, thing, place = map(numbers.choice, (NAMES, tuple(VERBS), OBJECTS, PLACES))
            sentences.append(f"{name} {VERBS[verb]} the {thing} in {place} .")
        sentences[-1] = f"finally {sentences[-1]}"
        headline = f"{name} {verb} {thing} in {place}"
        numbers.shuffle(sentences)  # so that its place gives nothing away
        return " ".join(sentences), headline

    return distinct(draw, count)


def docstrings(packages=("tensorflow",), words=24, longest=16):
    """Bodies of docstrings and their summaries, from the source files; nothing is imported.

    A summary comes once only, so that none that is held out was learnt beside another body.

    Args:
        packages: names of installed packages; one that is not installed adds nothing.
        words: int, how many of the body's are kept.
        longest: int, a summary of more words is left out.
    """
    found = {}
    for path in (path for name in packages for path in source_files(name)):
        for docstring in docstrings_of(path):
            summary, blank, body = docstring.partition("\n\n")
            summary, body = " ".join(summary.split()), " ".join(body.split()[:words])
            if blank and body and len(summary.split()) <= longest:
                found.setdefault(summary, body)
    pairs = {body: summary for summary, body in found.items()}
    return list(pairs.items())


def source_files(package):
    spec = importlib.util.find_spec(package)  # of a package without a dot: imports nothing
    folders = (spec and spec.submodule_search_locations) or ()
    return sorted(path for folder in folders for path in pathlib.Path(folder).rglob("*.py"))


def docstrings_of(path):
    kinds = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    try:
        with warnings.catch_warnings(action="ignore"):  # of backslashes in strings
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return []
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return [docstring for docstring in found if docstring]
