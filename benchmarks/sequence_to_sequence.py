"""Translation and summaries with an encoder alone: how well targets of unseen sources come out.

    python benchmarks/sequence_to_sequence.py --runs runs
    python benchmarks/sequence_to_sequence.py --runs runs --task "number words"

Trains the recipe `seq2seq` on the pairs of `tasks.py`, up to four CPU minutes for each arm
and seed, and generates the targets of up to 1,000 held-out sources in five ways. Three questions
beside how well it goes: which way of generating is worth its steps, which rate (and draw) to
train with, and what fresh masks are worth when there are few pairs. Finished runs are not repeated.

Real sentences come from a file of pairs, source, tab, target, that the environment
variable KERAS_DYNMASK_PAIRS names; without it they are left out. Docstrings are those of the
installed TensorFlow.

It writes `benchmarks/results/sequence_to_sequence.csv`, a line for each arm, seed, way and number
of steps, from all the finished runs; and some summaries as they came,
`sequence_to_sequence_examples.csv`.
"""

import argparse
import dataclasses
import itertools
import json
import os
import pathlib
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tasks
from measure import place, table, write

from keras_dynmask import pairs, text, training
from keras_dynmask.recipes import RECIPES

RESULTS = pathlib.Path(__file__).resolve().parent / "results"
VARIABLE = "KERAS_DYNMASK_PAIRS"
HELD_OUT = 1000
UNIFORM = (0.0, 1.0)  # each row draws its own rate, as the recipe does

# How many steps a way takes: one, or as many as a target has places.
WAYS = {
    "one step": {"steps": 1},
    "by confidence": {},
    "any order": {"order": "random"},
    "left to right": {"block_length": 1},
    "mask-predict": {"revise": True},
}
BEFORE_THE_END = ("one step", "by confidence")  # of these while it still trains


@dataclasses.dataclass(frozen=True)
class Task:
    """Where pairs come from and what suits them."""

    pairs: object  # a function of count and seed; of nothing, for real pairs
    count: int | None  # to learn from; None: all there are
    epochs: int
    vocabulary_size: int
    length: int
    target_length: int
    parts: int = 1  # judged so often, in equal distances
    answers: object = None  # a function of a source: all its right targets; None: its own


TASKS = {
    "dates": Task(tasks.dates, 25_600, 3, 8, 28, 11),  # the smallest vocabulary: characters
    "number words": Task(tasks.number_words, 25_600, 2, 200, 19, 7),
    "copy or reverse": Task(
        tasks.copy_or_reverse, 51_200, 2, 40, 18, 9, answers=tasks.copied_or_reversed
    ),
    "digits read out": Task(
        tasks.digits_read_out, 25_600, 2, 200, 14, 7, answers=tasks.in_each_language
    ),
    "headlines": Task(tasks.headlines, 32_000, 3, 300, 36, 6),
    "sentences": Task(lambda: pairs.read_pairs(os.environ[VARIABLE]), None, 4, 4000, 34, 16, 2),
    "docstrings": Task(tasks.docstrings, None, 12, 4000, 64, 20, 3),
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """A task and how its masks are drawn."""

    task: str
    count: int | None = None  # the task's own
    epochs: int | None = None
    rate: float | tuple = UNIFORM
    masking: str = "dynamic"
    exact_count: bool = True

    @property
    def rate_name(self):
        rate = "uniform" if self.rate == UNIFORM else f"{self.rate:g}"
        return rate if self.exact_count else f"{rate} independent"

    @property
    def name(self):
        of = f"{self.count} pairs" if self.count else "all pairs"
        return f"{self.task}, {of}, rate {self.rate_name}, {self.masking} masks"


FEW = {"task": "number words", "count": 500, "epochs": 114}  # 800 steps, as with many
ARMS = (
    *(Arm(task) for task in TASKS),
    *(Arm("number words", rate=rate) for rate in (0.15, 0.5)),
    # 15 % of a target of 7 is one token, so the exact count never hides more than two.
    Arm("number words", rate=0.15, exact_count=False),
    *(Arm(**FEW, masking=masking) for masking in ("dynamic", "static")),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=pathlib.Path, required=True, help="where runs are kept")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each arm (%(default)s)")
    parser.add_argument("--task", choices=TASKS, help="this one alone")
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    asked = [arm for arm in ARMS if arguments.task in (None, arm.task)]
    if VARIABLE not in os.environ:
        print(f"Left out: sentences, because {VARIABLE} names no file of pairs.")
        asked = [arm for arm in asked if arm.task != "sentences"]
    for seed in range(arguments.seeds):
        for arm in asked:
            path = run_path(arguments.runs, arm, seed)
            if not path.exists():
                finished = run(arm, seed)
                seconds = max(row["CPU s"] for row in finished["rows"])
                print(f"{arm.name}, seed {seed}: {seconds} CPU s of training", flush=True)
                with training.replacing(path) as partial:
                    partial.write_text(json.dumps(finished, indent=1))
    finished = [
        json.loads(path.read_text())
        for arm in ARMS
        for seed in range(arguments.seeds)
        if (path := run_path(arguments.runs, arm, seed)).exists()
    ]
    rows = [row for each in finished for row in each["rows"]]
    print(f"\n{place()}\n\n{table(summary(rows))}")
    RESULTS.mkdir(exist_ok=True)
    write(RESULTS / "sequence_to_sequence.csv", rows)
    examples = [row for each in finished for row in each["examples"]]
    if examples:
        write(RESULTS / "sequence_to_sequence_examples.csv", examples)


def run_path(runs, arm, seed):
    return runs / f"{arm.name}, seed {seed}.json".replace(" ", "-").replace(",", "")


def run(arm, seed):
    """Trains an arm and judges it: what is kept of it."""
    task = TASKS[arm.task]
    learnt, held_out = split(task, arm.count or task.count, seed)
    recipe = RECIPES["seq2seq"](
        pairs=arm.task,  # a name: nothing is read from it here
        target_length=task.target_length,
        length=task.length,
        mask_selection_rate=arm.rate,
        masking=arm.masking,
        vocabulary_size=task.vocabulary_size,
        batch_size=64,
        learning_rate=2e-3,
        epochs=arm.epochs or task.epochs,
        seed=seed,
    )
    tokenizer = text.train_tokenizer(
        [side for pair in learnt for side in pair], task.vocabulary_size
    )
    rows, held_out_rows = (packed(recipe, tokenizer, each) for each in (learnt, held_out))
    judge = Judge(arm.task, recipe, tokenizer, held_out_rows[:HELD_OUT])
    about = {
        "task": arm.task,
        "pairs": len(rows),
        "rate": arm.rate_name,
        "masks": arm.masking,
        "seed": seed,
    }
    found = []
    for model, epochs, seconds in trained(recipe, arm, tokenizer, rows, task.parts):
        so_far = {"steps": int(model.optimizer.iterations), "CPU s": round(seconds)}
        for way in WAYS if epochs == recipe.epochs else BEFORE_THE_END:
            found.append({**about, **so_far, "way": way, **judge(model, way)})
    if task.count is None:
        so_far = {"steps": 0, "CPU s": 0}
        found += [{**about, **so_far, "way": way, **s} for way, s in judge.baselines(rows)]
    return {
        "rows": [{**row, "place": place()} for row in found],
        "examples": judge.examples(model) if arm.task == "docstrings" and seed == 0 else [],
    }


def split(task, count, seed):
    """Pairs to learn from and pairs held out, no source among both."""
    if count is None:
        everything = task.pairs()
        return pairs.split_pairs(everything, min(0.125, 1.1 * HELD_OUT / len(everything)))
    everything = task.pairs(count + HELD_OUT, seed)
    return everything[:count], everything[count:]


def packed(recipe, tokenizer, some):
    blocks = pairs.packed_pairs(tokenizer, some, recipe.length, recipe.target_length)
    return np.concatenate(list(blocks))


def trained(recipe, arm, tokenizer, rows, parts):
    """Yields the model after each part of its epochs, their number, and CPU seconds so far."""
    data, seconds = pairs.with_target(rows, recipe.target_length), 0.0
    steps = len(training.ShuffledRows(rows, recipe.batch_size, recipe.seed))
    model = recipe.build_model(tokenizer, recipe.epochs * steps)
    model.masking.exact_count = arm.exact_count  # no dial of a recipe
    if recipe.masking == "static":
        data = training.masked_once(model.masking, data)
    ends = [recipe.epochs * (part + 1) // parts for part in range(parts)]
    for begin, end in itertools.pairwise([0, *ends]):
        batches = training.ShuffledRows(data, recipe.batch_size, recipe.seed, begin)
        began = time.process_time()
        model.fit(batches, initial_epoch=begin, epochs=end, shuffle=False, verbose=0)
        seconds += time.process_time() - began
        yield model, end, seconds


class Judge:
    """What is generated beside what should be, for held-out rows."""

    def __init__(self, task, recipe, tokenizer, rows):
        self.task, self.tokenizer, self.rows = task, tokenizer, rows
        self.target_length = recipe.target_length
        self.end = tokenizer.token_to_id(pairs.END)
        answers = TASKS[task].answers
        self.answers = self.all_answers(answers) if answers else ()

    def __call__(self, model, way):
        return self.scores(self.generated(model, way))

    def generated(self, model, way):
        inputs = pairs.with_target(self.rows, self.target_length)
        return model.generate(inputs, **WAYS[way], batch_size=250)[:, -self.target_length :]

    def scores(self, generated):
        targets = self.rows[:, -self.target_length :]
        right = (generated == targets).all(axis=1)
        for answers in self.answers:
            right |= (generated == answers).all(axis=1)
        # Up to the first end token; the others would only flatter.
        ends = targets == self.end
        told = np.cumsum(ends, axis=1) - ends == 0
        return {
            "held out": len(targets),
            "exact match": float(right.mean()),
            "token accuracy": float((generated == targets)[told].mean()),
        }

    def all_answers(self, answers):
        """Every right target of each row, in ids: arrays `[rows, target_length]`."""
        sources = self.tokenizer.decode_batch(self.rows[:, : -self.target_length].tolist())
        return [self.ended(targets) for targets in zip(*map(answers, sources), strict=True)]

    def ended(self, targets):
        """Targets as ids, filled up with end tokens."""
        ends = [self.end] * self.target_length
        found = self.tokenizer.encode_batch(list(targets))
        return np.array([[*target.ids, *ends][: self.target_length] for target in found])

    def baselines(self, rows):
        """Scores of what needs no model: (name, scores)."""
        targets = rows[:, -self.target_length :]
        usual = [np.bincount(column).argmax() for column in targets.T]
        yield "most frequent", self.scores(np.array(usual))
        padding = self.tokenizer.token_to_id(text.PADDING)
        sources = (row[row != padding] for row in self.rows[:, : -self.target_length])
        ends = [self.end] * self.target_length
        copies = [[*source, *ends][: self.target_length] for source in sources]
        yield "copy of the source", self.scores(np.array(copies))

    def examples(self, model, count=8):
        """Evenly spread over the held-out rows, as they came."""
        generated, every = self.generated(model, "by confidence"), len(self.rows) // count
        return [
            {
                "source": self.tokenizer.decode(self.rows[i, : -self.target_length].tolist()),
                "target": pairs.target_text(self.tokenizer, self.rows[i], self.target_length),
                "generated": pairs.target_text(self.tokenizer, generated[i], self.target_length),
            }
            for i in range(0, every * count, every)
        ]


def summary(rows):
    """Means and standard deviations over seeds."""
    groups = {}
    for row in rows:
        key = tuple(row[name] for name in ("task", "pairs", "rate", "masks", "steps", "way"))
        groups.setdefault(key, []).append(row)
    return [
        {
            **dict(zip(("task", "pairs", "rate", "masks", "steps", "way"), key, strict=True)),
            "seeds": len(group),
            **{
                name: spread([row[name] for row in group])
                for name in ("exact match", "token accuracy")
            },
            "CPU s": statistics.mean(row["CPU s"] for row in group),
        }
        for key, group in groups.items()
    ]


def spread(values):
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} +- {statistics.stdev(values):.3f}"


if __name__ == "__main__":
    main()
