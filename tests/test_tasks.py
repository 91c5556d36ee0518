"""The generated pairs: what is asked of them has the answer that they give."""

import datetime
import importlib
import re

import pytest

GENERATED = ("number_words", "dates", "copy_or_reverse", "digits_read_out", "headlines")


@pytest.fixture(scope="module")
def tasks():
    """The program as a module."""
    return importlib.import_module("tasks")


@pytest.mark.parametrize("name", GENERATED)
def test_as_many_as_asked_and_the_same_again(tasks, name):
    function = getattr(tasks, name)
    pairs = function(500, seed=3)
    assert len(pairs) == len(dict(pairs)) == 500  # no source twice
    assert pairs == function(500, seed=3) != function(500, seed=4)
    assert all(source.strip() and target.strip() for source, target in pairs)


@pytest.mark.parametrize(
    "number, words",
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (99, "ninety nine"),
        (100, "one hundred"),
        (4780, "four thousand seven hundred and eighty"),
        (20_005, "twenty thousand and five"),
        (300_100, "three hundred thousand one hundred"),
    ],
)
def test_numbers_in_words(tasks, number, words):
    assert tasks.in_words(number) == words


def test_each_number_has_words_of_its_own(tasks):
    assert len({tasks.in_words(number) for number in range(20_000)}) == 20_000


def test_dates_say_the_same_day(tasks):
    formats = {
        r"\d+ [A-Z]": "%d %B %Y",
        r"[A-Z]": "%B %d, %Y",
        r"\d+/": "%m/%d/%Y",
        r"\d+\.": "%d.%m.%Y",
    }
    met = set()
    for source, target in tasks.dates(400, seed=0):
        (written,) = (each for start, each in formats.items() if re.match(start, source))
        assert datetime.datetime.strptime(source, written).date().isoformat() == target
        met.add(written)
    assert met == set(formats.values())


def test_about_as_many_are_copied_as_reversed(tasks):
    pairs = tasks.copy_or_reverse(2000, seed=0)
    assert all(target in (source, source[::-1]) for source, target in pairs)
    copied = sum(target == source for source, target in pairs)
    assert abs(copied - 1000) < 4.89 * 2000**0.5 / 2 + 20  # palindromes are both


def test_digits_are_read_out_in_one_language(tasks):
    assert tasks.in_each_language("4 0 2") == ["fyra noll två", "fire null to", "fire nul to"]
    pairs = tasks.digits_read_out(2000, seed=0)
    languages = [tasks.in_each_language(source).index(target) for source, target in pairs]
    # Norwegian and Danish are alike in six words of ten, and what is both counts as the first.
    assert abs(languages.count(0) - 800) < 4.89 * (2000 * 0.4 * 0.6) ** 0.5  # 4 in 10
    assert set(languages) == {0, 1, 2}


def test_a_headline_tells_the_last_that_happened(tasks):
    places = set()
    for story, headline in tasks.headlines(500, seed=0):
        sentences = story.removesuffix(" .").split(" . ")
        (told,) = (each for each in sentences if each.startswith("finally "))
        _, name, past, _, thing, _, place = told.split()
        who, verb, *rest = headline.split()
        assert (who, tasks.VERBS[verb], rest) == (name, past, [thing, "in", place])
        places.add(sentences.index(told))
    assert places == {0, 1, 2, 3}


def test_docstrings_are_found_in_files(tasks, tmp_path, monkeypatch):
    package = tmp_path / "sample_of_docstrings"
    package.mkdir()
    (package / "__init__.py").write_text('"""Of one line only."""\n')
    (package / "broken.py").write_text("def f(:\n")
    (package / "module.py").write_text(
        '"""Sums up\n  all.\n\n  Tells more,\n\n  and more.\n  """\n'
        'def f():\n  """Sums up all.\n\n  Another body.\n  """\n'  # a summary met before
        'class C:\n  """Does that.\n\n  How it does it.\n  """\n'
        'raise RuntimeError("is not imported")\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = tasks.docstrings(["sample_of_docstrings", "not_installed_at_all"], words=3)
    assert found == [("Tells more, and", "Sums up all."), ("How it does", "Does that.")]
    short = tasks.docstrings(["sample_of_docstrings"], longest=2)
    assert short == [("How it does it.", "Does that.")]
