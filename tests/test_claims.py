"""The page on claims: its figures are those of the committed runs, and its commands exist."""

import csv
import re
from pathlib import Path
from statistics import mean

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "claims.md").read_text()
PAGE = " ".join(TEXT.replace("**", "").split())
AMBIGUOUS = "digits read out"  # of the tasks, the one with several right answers
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"


def rows_of(path, **wanted):
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def by_seed(rows, name, pick=lambda numbers: numbers[-1]):
    """A number for each seed: of its last row, or as picked from all of its rows."""
    seeds = {}
    for row in rows:
        seeds.setdefault(row["seed"], []).append(float(row[name]))
    return [pick(numbers) for numbers in seeds.values()]


def told(values, form=".2f"):
    """The mean, the lowest and the highest, as the page writes them; of three seeds at least."""
    assert len(values) >= 3
    return "{} ({} to {})".format(
        *(f"{x:{form}}" for x in (mean(values), min(values), max(values)))
    )


def percent(values):
    return told([100 * value for value in values], ".1f")


def differences(ours, theirs):
    return told([a - b for a, b in zip(ours, theirs, strict=True)], "+.2f")


def static_against_dynamic():
    path, loss = DOCS / "static_against_dynamic.csv", "held_out_loss"
    for masks in ("static", "static-10", "dynamic"):
        rows = rows_of(path, masks=masks)
        yield f"{told(by_seed(rows, loss))} | {told(by_seed(rows, loss, min))} |"
    for epoch in ("4", "10", "40"):
        static, ten, dynamic = (
            by_seed(rows_of(path, masks=masks, epoch=epoch), loss)
            for masks in ("static", "static-10", "dynamic")
        )
        yield f"| {epoch} | {differences(static, dynamic)} | {differences(ten, dynamic)} |"


def recall():
    rows = rows_of(RESULTS / "recall.csv")
    for length in ("128", "4224"):
        for distance in dict.fromkeys(row["distance"] for row in rows):
            some = rows_of(
                RESULTS / "recall.csv", **{"trained to length": length, "distance": distance}
            )
            yield percent(by_seed(some, "accuracy"))


def rates():
    path = RESULTS / "rates_and_schedules.csv"
    arms = list(dict.fromkeys(row["rate"] for row in rows_of(path)))
    first = by_seed(rows_of(path, rate=arms[0]), "held_out_loss")
    for arm in arms:
        losses = by_seed(rows_of(path, rate=arm), "held_out_loss")
        yield f"| {arm} | {told(losses)} | {differences(losses, first)} |"


def adaptive():
    path = DOCS / "adaptive_selection.csv"
    for form, name in ((told, "held_out_loss"), (percent, "held_out_accuracy")):
        uniform, ours = (
            by_seed(rows_of(path, selection=each), name) for each in ("dynamic", "adaptive")
        )
        yield f"{form(uniform)} | {form(ours)}"


def visible_only():
    path = RESULTS / "visible_only_quality.csv"
    arms = list(dict.fromkeys(row["arm"] for row in rows_of(path)))
    first = by_seed(rows_of(path, arm=arms[0]), "loss")
    for arm in arms:
        losses, seconds = (by_seed(rows_of(path, arm=arm), name) for name in ("loss", "seconds"))
        yield f"{told(seconds, '.0f')} | {told(losses)} | {differences(losses, first)} |"
    for row in rows_of(RESULTS / "visible_only.csv", rate="0.5"):
        if row["length"] in ("512", "2048"):
            yield f"{float(row['XLA, faster']):.1f} times faster"
            yield f"{float(row['less']):.1f} times less memory"


def objective():
    for row in rows_of(RESULTS / "objective.csv", part="step", length="128"):
        yield f"{float(row['selected MiB']):,.0f} MiB to {float(row['pieces MiB']):,.0f}"


def targets(what, task, way, rate="uniform", masks="dynamic", pairs=None):
    path = RESULTS / "sequence_to_sequence.csv"
    rows = rows_of(path, task=task, way=way, rate=rate, masks=masks)
    most = max(int(row["pairs"]) for row in rows)
    return by_seed([row for row in rows if int(row["pairs"]) == (pairs or most)], what)


def translation():
    for task in ("number words", "dates", AMBIGUOUS):
        one_step, by_confidence = (
            percent(targets("exact match", task, way)) for way in ("one step", "by confidence")
        )
        yield f"| {task} | {one_step} | {by_confidence} |"
    for rate in ("0.15", "0.15 independent", "0.5"):
        yield percent(targets("exact match", "number words", "by confidence", rate))
    for masks in ("dynamic", "static"):
        yield percent(
            targets("exact match", "number words", "by confidence", masks=masks, pairs=500)
        )
    for way in ("by confidence", "copy of the source", "most frequent"):
        yield percent(targets("token accuracy", "sentences", way))


def summaries():
    for way in ("one step", "by confidence"):
        yield percent(targets("exact match", "headlines", way))
    for way in ("one step", "by confidence", "copy of the source", "most frequent"):
        yield percent(targets("token accuracy", "docstrings", way))


def generation():
    path = RESULTS / "generation.csv"
    for corpus in ("embedded", "tinyshakespeare"):
        longest = max(int(row["updates"] or 0) for row in rows_of(path, corpus=corpus))
        drawn = {"corpus": corpus, "updates": str(longest), "temperature": "1.0"}
        for rows in (
            rows_of(path, text="by frequency", corpus=corpus),
            rows_of(path, order="any order", steps="1", **drawn),
            rows_of(path, order="any order", steps="32", **drawn),
            rows_of(path, order="surest first", steps="32", **drawn),
            rows_of(path, text="held out", corpus=corpus),
        ):
            perplexity = told(by_seed(rows, "pseudo_perplexity"), ",.0f")
            yield f"{perplexity} | {percent(by_seed(rows, 'distinct_tokens'))} |"


def not_text():
    path = RESULTS / "not_text.csv"
    for answers in ("the model", "the click before", "popularity", "best possible"):
        found = (
            percent(by_seed(rows_of(path, arm="clicks", answers=answers, measure=measure), "value"))
            for measure in ("hit rate at 1", "hit rate at 10")
        )
        yield f"| {answers} | {' | '.join(found)} |"
    for arm in ("DNA, one by one", "DNA, k together"):
        found = (
            percent(
                by_seed(
                    rows_of(path, arm=arm, answers="the model", **{"judged by": masks}), "value"
                )
            )
            for masks in ("one by one", "k together")
        )
        yield f"| {' | '.join(found)} |"
    yield percent(by_seed(rows_of(path, arm="DNA, k together", answers="best possible"), "value"))


CLAIMS = (
    static_against_dynamic,
    recall,
    rates,
    adaptive,
    visible_only,
    objective,
    translation,
    summaries,
    generation,
    not_text,
)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_the_figures_are_those_of_the_runs(claim):
    figures = list(claim())
    assert figures
    assert [figure for figure in figures if figure not in PAGE] == []


def test_the_commands_exist():
    programs = re.findall(r"python (benchmarks/\w+\.py)", TEXT)
    assert len(programs) > 8
    assert all((ROOT / program).is_file() for program in programs)
