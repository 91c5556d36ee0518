"""The comparison with the peers tells good masks from bad ones, and is what the README shows."""

import importlib
import random
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_dynmask import DynamicMasking

ROOT = Path(__file__).parent.parent
PROGRAM = ROOT / "benchmarks" / "same_questions.py"


@pytest.fixture(scope="module")
def questions():
    """The program as a module."""
    return importlib.import_module("same_questions")


@pytest.mark.parametrize(
    ("cases", "expected"),
    [
        ({"": (0, 20)}, "yes: 0 of 20 differ"),
        ({"here": (0, 20), "there": (0, 5)}, "yes: 0 of 25 differ"),
        ({"": (3, 20)}, "no: 3 of 20 differ"),
        ({"": (0, 20), "there": (3, 20)}, "partly: 0 of 20 differ, 3 of 20 there"),
        ({"here": (1, 2), "there": KeyError()}, "no: 1 of 2 differ here, KeyError there"),
        ({"here": (0, 2), "there": KeyError()}, "partly: 0 of 2 differ here, KeyError there"),
    ],
)
def test_an_answer_is_a_verdict_and_its_counts(questions, cases, expected):
    assert questions.answer("differ", cases) == expected


def test_masks_are_counted(questions):
    a, b, c = np.eye(3, dtype=bool)[:, np.newaxis]  # three masks [1, 3]
    assert questions.repeated(np.array([a, b]), np.array([b, c])) == (1, 2)
    assert questions.doubled(np.array([a, b, a, a])) == (2, 4)
    assert questions.differing(np.array([a, b]), np.array([a, c])) == (1, 2)
    assert questions.shared(np.array([a, b]), np.array([b, b])) == (1, 2)
    three_to_six = np.arange(32) < np.array([[3], [4], [5], [6]])
    assert questions.rows_off(three_to_six[np.newaxis]) == (2, 4)


class Frozen(DynamicMasking):
    def mask(self, inputs, step=None, selection_length=None):
        return super().mask(inputs, 0, selection_length)


class NeverInert(DynamicMasking):
    def call(self, inputs, training=None, step=None):
        return self.mask(inputs, step)


@keras.saving.register_keras_serializable(package="test_benchmarks")
class Forgetful(DynamicMasking):
    def load_own_variables(self, store):
        pass


class Spendthrift(DynamicMasking):
    def __init__(self, *values, **arguments):
        random.random()
        super().__init__(*values, **arguments)


def other(**arguments):
    return lambda *values, **given: DynamicMasking(*values, **{**given, **arguments})


@pytest.mark.parametrize(
    ("masker", "question", "expected"),
    [
        (Frozen, "fresh", "no: 20 of 20 repeated"),
        (Frozen, "fresh_when_reset", "no: 20 of 20 repeated, 20 of 20 with `seed`"),
        (Frozen, "compiled", "no: 19 of 20 repeated in a graph, 19 of 20 under XLA"),
        (other(seed=None), "own_seed", "no: 20 of 20 differ"),
        (Spendthrift, "leaves_global_seed", "no: 2 of 4 changed"),  # Keras' seed is Python's draw
        pytest.param(
            Forgetful,
            "resume",
            "partly: 10 of 10 differ from `.keras`, 0 of 10 from an iterator",
            marks=pytest.mark.slow,
        ),
        (NeverInert, "inert_in_predict", r"no: \d+ of 5120 changed"),
        (NeverInert, "inert_when_exported", r"no: \d+ of 5120 changed"),
        pytest.param(
            other(seed=None),
            "equal_under_xla",
            "no: 20 of 20 differ in a graph, 20 of 20 under XLA",
            marks=pytest.mark.slow,
        ),
        (other(exact_count=False), "exact_count", r"no: \d+ of 160 rows off"),
        (other(unselectable_token_ids=()), "specials", r"no: \d+ of \d+ special"),
    ],
)
def test_a_worse_masker_gets_a_worse_answer(questions, masker, question, expected, monkeypatch):
    monkeypatch.setattr(questions, "DynamicMasking", masker)
    assert re.fullmatch(expected, getattr(questions.Ours(), question)())


def test_a_peer_that_is_missing_says_so(questions, capsys):
    found = dict.fromkeys(questions.QUESTIONS, "yes: 0 of 1")
    questions.print_table({peer: found for peer in questions.PEERS if not peer.packages})
    columns = table(capsys.readouterr().out)
    for peer in (*questions.PEERS, questions.COLLATOR):
        missing = f"not installed: `{peer.install}`" if peer.packages else "yes: 0 of 1"
        assert set(columns[peer.name].values()) == {missing}


@pytest.fixture(scope="module")
def printed():
    run = subprocess.run(
        [sys.executable, str(PROGRAM)], capture_output=True, text=True, timeout=1200
    )
    assert run.returncode == 0, run.stderr[-5000:]
    return run.stdout


def table(text):
    """`{peer: {question: cell}}` of a Markdown table."""
    lines = re.findall(r"^\| (.*) \|$", text, re.MULTILINE)
    (_, *peers), *rows = ([cell.strip() for cell in f" {line}".split(" | ")] for line in lines)
    columns = zip(*rows, strict=True)
    titles = next(columns)
    return {
        peer: dict(zip(titles, column, strict=True))
        for peer, column in zip(peers, columns, strict=True)
    }


@pytest.mark.slow
def test_every_answer_of_ours_is_a_yes(questions, printed):
    ours = table(printed)["`DynamicMasking`"]
    assert list(ours) == [title for title, _ in questions.QUESTIONS.values()]
    assert [cell for cell in ours.values() if not cell.startswith("yes: 0 of ")] == []


@pytest.mark.slow
def test_the_readme_shows_what_is_printed(questions, printed):
    """But for the numbers: races differ from run to run."""
    readme = (ROOT / "README.md").read_text()
    section = readme.partition("## Beside the alternatives")[2].partition("\n## ")[0]
    assert "benchmarks/same_questions.py" in section
    shown, found = table(section), table(printed)
    assert len(shown) >= 3 and all(len(column) >= 10 for column in shown.values())
    for peer, column in shown.items():
        for title, cell in column.items():
            now = found[peer][title]
            needs_every_backend = title == questions.QUESTIONS["equal_on_backends"][0]
            if now.startswith("not installed") or (needs_every_backend and "no torch" in printed):
                continue
            assert re.sub(r"\d+", "n", cell) == re.sub(r"\d+", "n", now), (peer, title)
