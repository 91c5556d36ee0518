"""Recipes: what their names stand for, and that each of them trains."""

import dataclasses
import inspect
import json

import keras
import numpy as np
import pytest

from keras_dynmask import cli, recipes, text, training
from keras_dynmask.recipes import RECIPES, Recipe

SMALL = {
    "num_layers": 1,
    "num_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 16,
    "length": 16,
    "vocabulary_size": 120,
    "epochs": 2,
    "batch_size": 16,
}
SWEDISH = {"cat": "katt", "dog": "hund", "bird": "fågel", "fish": "fisk"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    random = np.random.default_rng(0)
    words = [list(SWEDISH)[n] for n in random.integers(0, 4, 6000)]
    (folder / "corpus.txt").write_text(
        "\n".join(" ".join(words[i : i + 6]) for i in range(0, 6000, 6))
    )
    lines = [words[i : i + 4] for i in range(0, 6000, 4)]
    pairs = (f"{' '.join(line)}\t{' '.join(map(SWEDISH.get, line))}" for line in lines)
    (folder / "pairs.tsv").write_text("\n".join(pairs))
    return folder


def data_of(name, files):
    if name == "seq2seq":
        return {"pairs": files / "pairs.tsv", "target_length": 6}
    return {"corpus": (files / "corpus.txt",)}


def built(name, files):
    recipe = RECIPES[name](**SMALL, **data_of(name, files))
    tokenizer = text.train_tokenizer(["the cat sees the dog"], 60)
    return recipe, recipe.build_model(tokenizer, steps=101)


@pytest.mark.parametrize("name", RECIPES)
def test_each_says_what_it_costs_and_what_to_expect(name):
    said = inspect.getdoc(RECIPES[name])
    assert "Costs" in said or "As `diffusion`" in said
    assert "Expect" in said or "report" in said


def test_their_rates(files):
    def rates(name, steps=(0, 50, 100)):
        masking = built(name, files)[1].masking
        rate = masking.mask_selection_rate
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            rate = [float(rate(step)) for step in steps]
        return rate, masking.evaluation_rate

    assert rates("mlm") == (0.15, None)
    assert rates("mlm-schedule") == (pytest.approx([0.3, 0.225, 0.15]), 0.15)
    assert rates("spans") == (0.15, None)
    assert rates("visible-only") == (0.5, 0.15)
    assert rates("diffusion") == ((0.0, 1.0), None)
    assert rates("seq2seq") == ((0.0, 1.0), None)


def test_their_other_dials(files):
    _, spans = built("spans", files)
    assert spans.masking.mean_span_length == 3.0 and spans.masking.continuation_token_ids
    _, visible = built("visible-only", files)
    assert visible.decoder is not None and visible.masking.mask_token_rate == 1.0
    for name in ("diffusion", "seq2seq"):
        masking = built(name, files)[1].masking
        assert masking.inverse_rate_weights
        assert (masking.mask_token_rate, masking.random_token_rate) == (1.0, 0.0)
    recipe, model = built("seq2seq", files)
    tokenizer = text.train_tokenizer(["the cat sees the dog"], 60)
    assert recipe.protected_ids(tokenizer) == [0, 1, 3]  # the separator ends a target
    assert model.masking.unselectable_token_ids == (0, 1, 3)
    assert model.masking.mask_selection_length == recipe.target_length  # no logits of sources


@pytest.mark.parametrize(
    "written, rate",
    [(0.2, 0.2), ("0.2", 0.2), ("0.1,0.5", (0.1, 0.5)), ([0.1, 0.5], (0.1, 0.5))],
)
def test_a_rate_may_be_written(written, rate):
    assert Recipe(mask_selection_rate=written).mask_selection_rate == rate


def test_a_schedule_stays_as_it_is_written():
    recipe = Recipe(mask_selection_rate="0.3:0.1")
    assert Recipe(**json.loads(json.dumps(vars(recipe)))) == recipe


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"name": "bert"}, "`name` must be one of mlm, .*'bert'"),
        ({"mask_selection_rate": 0}, "`mask_selection_rate` must be above 0"),
        ({"mask_selection_rate": "0,0"}, "`mask_selection_rate` must be above 0"),
        ({"mask_selection_rate": "a"}, "`mask_selection_rate` must be a number .*'a'"),
        ({"mask_selection_rate": 1.5}, "`mask_selection_rate` must be a number, in.*1.5"),
        ({"evaluation_rate": 2}, r"`evaluation_rate` must be a number, in \[0, 1\].*2"),
        ({"hide_all": 1}, "`hide_all` must be True or False.*1"),
        ({"pairs": "a.tsv", "corpus": ["a.txt"]}, "`corpus` must be left out with `pairs`"),
        ({"pairs": "a.tsv", "target_length": 63}, "`target_length` must leave room.*63"),
        ({"target_length": 0}, "`target_length` must be a whole number, at least 1.*0"),
    ],
    ids=str,
)
def test_other_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**settings)


def test_sequence_to_sequence_needs_pairs():
    with pytest.raises(ValueError, match="`pairs` must name a file.*pairs=''"):
        recipes.seq2seq()


def test_it_is_told_how_many_pairs_do_not_fit(tmp_path):
    lines = [f"cat {n}\tkatt {n}" for n in range(40)] + [f"{'cat ' * 30}\tkatt"] * 3
    (tmp_path / "pairs.tsv").write_text("\n".join(lines))
    recipe = recipes.seq2seq(**SMALL, pairs=tmp_path / "pairs.tsv", target_length=6)
    said = []
    training.prepare(recipe, tmp_path / "run", said.append)
    fit = "a source has room for 9 tokens, a target for 5"
    assert said == [f"3 of 43 pairs are left out as too long: {fit}"]
    recipe = dataclasses.replace(recipe, target_length=1)
    with pytest.raises(ValueError, match=r"`target_length` must let some pairs fit.*\[0, 0\]"):
        training.prepare(recipe, tmp_path / "none", said.append)
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlm-schedule", "spans", "visible-only", "diffusion"])
def test_each_trains_and_writes_text(name, files, tmp_path, capsys):
    training.train(RECIPES[name](**SMALL, **data_of(name, files)), tmp_path / "run")
    history = (tmp_path / "run" / "history.csv").read_text().splitlines()
    assert len(history) == 3
    asked = ["--prompt", "cat dog", "--length", "3", "--temperature", "1", "--outputs", "2"]
    assert cli.main(["generate", str(tmp_path / "run"), *asked]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all("[" not in line and line.count(" ") >= 1 for line in lines)


@pytest.mark.slow
def test_pairs_are_learnt_and_answered(files, tmp_path, capsys):
    """Four words, word by word: 256 sources, of which some are held out."""
    asked = ["--recipe", "seq2seq", "--pairs", files / "pairs.tsv", "--target-length", "6"]
    asked += ["--hidden", "32", "--epochs", "12", "--learning-rate", "0.005", "--length", "18"]
    asked += ["--vocabulary-size", "60", "--output", tmp_path / "run"]
    assert cli.main(["pretrain", *map(str, asked)]) == 0
    said = capsys.readouterr().out
    assert "held-out exact match" in said and "stood there" in said
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["exact_match"] > 0.5  # chance is .004
    generate = ["generate", str(tmp_path / "run"), "--prompt", "cat dog bird fish"]
    assert cli.main([*generate, "--every-step"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[MASK] " * 5 + "[MASK]" and "[MASK]" not in lines[-1]
    assert cli.main([*generate, "--length", "3"]) == 2
    assert "`length` must be left out: the recipe's targets have 6" in capsys.readouterr().err
