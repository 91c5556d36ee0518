"""Broken and foreign files in place of what `pretrain` left.

Each is refused in one line that names it, and nothing is written; or it loads unchanged.
No file runs code.
"""

import base64
import io
import json
import math
import os
import pathlib
import pickle
import random
import re
import shutil
import zipfile

import keras
import numpy as np
import pytest

from keras_dynmask import MaskedLanguageModel, cli, continuation_ids, text, training
from keras_dynmask import preview as previews

RECIPE = {
    "vocabulary_size": 120,
    "length": 16,
    "num_layers": 1,
    "num_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 16,
    "epochs": 3,
    "batch_size": 16,
}


def sentences(count, seed=0):
    drawn = random.Random(seed)
    names, verbs = ["cat", "dog", "bird", "fish"], ["sees", "hears", "likes", "knows"]
    lines = (
        f"the {drawn.choice(names)} {drawn.choice(verbs)} the {drawn.choice(names)} ."
        for _ in range(count)
    )
    return "\n".join(lines)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run, `done`, and an interrupted one, `stopped.partial`, of a model that
    nobody trained: no file tells."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "corpus.txt").write_text(sentences(1000))
    recipe = training.Recipe(corpus=(folder / "corpus.txt",), **RECIPE)
    done, stopped = folder / "done", folder / "stopped.partial"
    training.prepare(recipe, stopped)
    tokenizer = text.load_tokenizer(stopped / "tokenizer.json")
    rows = text.read_rows(stopped / "rows.npy", recipe.length, tokenizer.get_vocab_size())
    steps = len(training.ShuffledRows(rows, recipe.batch_size, recipe.seed))
    model = recipe.build_model(tokenizer, recipe.epochs * steps)
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(steps)  # one epoch
    model.save(stopped / "checkpoint.keras")
    names = [f"{prefix}{metric.name}" for prefix in ("", "val_") for metric in model.metrics]
    training.write_history(
        stopped / "history.csv", [{"epoch": 1} | {name: 1 / 3 for name in names}]
    )
    done.mkdir()
    for name in ("recipe.json", "tokenizer.json", "history.csv"):
        shutil.copy(stopped / name, done)
    shutil.copy(stopped / "checkpoint.keras", done / "model.keras")
    (done / "report.json").write_text("{}")
    return folder


class Trained(Exception):
    """Everything was loaded, and training would begin."""


@pytest.fixture
def no_training(monkeypatch):
    def fit(self, *args, **kwargs):
        raise Trained

    monkeypatch.setattr(MaskedLanguageModel, "fit", fit)


# Ways to read a file of a run


def fill_mask(folder):
    return ["fill-mask", f"{folder}/done", "the [MASK] sees"]


def export(folder):
    return ["export", f"{folder}/done", "--output", f"{folder}/served"]


def preview(folder):
    return ["preview", "--model", f"{folder}/done", "--whole-words", "--steps", "1"]


def resume(folder):
    return ["pretrain", "--resume", "--output", f"{folder}/stopped"]


READERS = {
    "done/model.keras": (fill_mask, export),
    "done/tokenizer.json": (fill_mask, preview, export),
    "stopped.partial/recipe.json": (resume,),
    "stopped.partial/tokenizer.json": (resume,),
    "stopped.partial/rows.npy": (resume,),
    "stopped.partial/held_out_rows.npy": (resume,),
    "stopped.partial/history.csv": (resume,),
    "stopped.partial/checkpoint.keras": (resume,),
}


def contents(folder):
    """Every file of a directory, with what it holds. A lock is empty, and nobody's."""
    return {
        path: path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != "lock"
    }


def refusal(arguments, folder, capsys):
    """The line in which the command is refused, or None where it is done."""
    before = contents(folder)
    try:
        status = cli.main(arguments)
    except Trained:
        status = 0
    said = capsys.readouterr()
    if status == 0:
        shutil.rmtree(folder / "served", ignore_errors=True)
        return None
    assert status == 2 and said.err.startswith("keras-dynmask: ") and said.err.endswith("\n")
    assert said.err.count("\n") == 1 and len(said.err) < 900, said.err
    assert said.out == "" and contents(folder) == before
    return said.err


# What may lie in a file's place


def zipped(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


FOREIGN = {
    "nothing": b"",
    "a word": b"hello\n",
    "zeros": bytes(2000),
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(99),
    "not UTF-8": b"\xff\xfe\x00caf\xe9\n",
    "an empty archive": zipped(),
    "an archive of something": zipped(config="{}", metadata="[]"),
    "null": b"null",
    "a number": b"-1e999",
    "a list": b"[[1, 2], 3]",
    "an object": b'{"epochs": 3}',
    "a deep list": b"[" * 200_000,
    "a table": b"a,b\n1,2\n",
}


@pytest.fixture
def copy(runs, tmp_path):
    """A copy of both runs to do harm to."""
    return shutil.copytree(runs, tmp_path / "copy")


@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("name", READERS)
def test_a_foreign_file_is_refused_in_one_line(name, foreign, copy, no_training, capsys):
    (copy / name).write_bytes(FOREIGN[foreign])
    line = refusal(READERS[name][0](copy), copy, capsys)
    assert line is not None and pathlib.Path(name).name in line


def test_whole_files_are_taken(copy, no_training, capsys):
    for reader in (fill_mask, export, preview, resume):
        assert refusal(reader(copy), copy, capsys) is None


@pytest.mark.parametrize("name", READERS)
def test_a_missing_file_and_a_directory_in_its_place_are_refused(name, copy, no_training, capsys):
    path = copy / name
    path.unlink()
    for harm in (lambda: None, path.mkdir):
        harm()
        for reader in READERS[name]:
            line = refusal(reader(copy), copy, capsys)
            if name.endswith("checkpoint.keras") and not path.exists():
                assert line is None  # a run that was stopped in its first epoch
            else:
                assert line is not None and path.name in line


@pytest.mark.parametrize("name", READERS)
def test_half_a_file_is_refused_in_one_line(name, copy, no_training, capsys):
    path = copy / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for reader in READERS[name]:
        line = refusal(reader(copy), copy, capsys)
        assert line is not None and path.name in line


@pytest.mark.parametrize(
    ("name", "reader"),
    [("done/tokenizer.json", fill_mask), ("stopped.partial/tokenizer.json", resume)],
)
def test_the_tokenizer_of_another_run_is_refused(name, reader, copy, no_training, capsys):
    text.train_tokenizer(["a small text"], 20).save(str(copy / name))
    line = refusal(reader(copy), copy, capsys)
    assert line is not None and ("tokenizer.json" in line or "rows.npy" in line)


def test_a_model_of_another_make_is_refused(copy, capsys):
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    other.save(copy / "done/model.keras")
    line = refusal(fill_mask(copy), copy, capsys)
    assert "It must hold a MaskedLanguageModel. Received: model='Sequential'" in line


def test_a_checkpoint_without_an_optimizer_is_refused(copy, no_training, capsys):
    path = copy / "stopped.partial/checkpoint.keras"
    model = training.read_model(path)
    type(model)(model.encoder, model.masking).save(path)
    line = refusal(resume(copy), copy, capsys)
    assert "checkpoint.keras` must hold a compiled model" in line


# Directories


def places(folder):
    """What is no run."""
    (folder / "empty").mkdir()
    (folder / "foreign").mkdir()
    (folder / "foreign" / "notes.txt").write_text("mine")
    (folder / "dangling").symlink_to(folder / "nowhere")
    (folder / "loop").symlink_to(folder / "loop")
    names = ["empty", "foreign", "dangling", "loop", "corpus.txt", "missing", "n" * 300]
    return [folder / name for name in names]


def test_what_is_no_run_is_refused_in_one_line(copy, capsys):
    for place in places(copy):
        for arguments in (
            ["fill-mask", str(place), "the [MASK]"],
            ["export", str(place), "--output", str(copy / "served")],
            ["preview", "--model", str(place)],
        ):
            line = refusal(arguments, copy, capsys)
            assert line is not None and place.name in line


def test_what_is_no_interrupted_run_is_not_resumed(copy, no_training, capsys):
    for number, place in enumerate(places(copy)[:6]):
        (copy / f"{number}.partial").symlink_to(place)
        line = refusal(["pretrain", "--resume", "--output", f"{copy}/{number}"], copy, capsys)
        assert line is not None and f"{number}.partial" in line


def test_output_goes_where_nothing_is_and_a_directory_can_be_made(copy, no_training, capsys):
    corpus = ["--corpus", str(copy / "corpus.txt")]
    taken = places(copy)[:5]
    impossible = [copy / "corpus.txt/new", "/dev/null/new", copy / ("n" * 300), "/proc/none/new"]
    for place in [*taken, *impossible, copy / "new/..", "", "/"]:
        line = refusal(["pretrain", "--output", str(place), *corpus], copy, capsys)
        assert line is not None
        if place:
            arguments = ["export", f"{copy}/done", "--output", str(place)]
            assert refusal(arguments, copy, capsys) is not None


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may do all")
def test_what_may_not_be_read_or_written_is_refused(copy, no_training, capsys):
    closed = copy / "closed"
    closed.mkdir(0o500)
    line = refusal(["pretrain", "--output", f"{closed}/new"], copy, capsys)
    assert line is not None and "one may write to" in line
    for name in READERS:
        (copy / name).chmod(0)
        for reader in READERS[name]:
            line = unread(reader(copy), capsys)
            assert line is not None and pathlib.Path(name).name in line
        (copy / name).chmod(0o600)


def unread(arguments, capsys):
    assert cli.main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and said.out == ""
    return said.err


# Damage


def cut(content, number):
    """The beginnings of a file, of so many lengths."""
    return [content[: len(content) * part // number] for part in range(number)]


def flipped(content, number, seed=0):
    """The file with one bit of it turned over, so many times."""
    drawn = random.Random(seed)
    for place in drawn.sample(range(len(content)), min(number, len(content))):
        byte = bytes([content[place] ^ 1 << drawn.randrange(8)])
        yield content[:place] + byte + content[place + 1 :]


def weights(model):
    return [weight.tolist() for weight in model.get_weights()], model.get_config()


def words_and_pieces(tokenizer):
    """What is asked of a tokenizer: it is one, whatever letters were turned over."""
    splitter = previews.Pieces(tokenizer)
    continuation_ids(tokenizer)
    row = np.array([tokenizer.encode("the [MASK] sees the cat").ids])
    text.pack(tokenizer, ["the cat", "日本"], 4)
    training.masked_example(tokenizer, row)
    return len(splitter.tokens)


class Logging:
    metrics = []


LOADERS = {
    "done/model.keras": lambda path: weights(training.read_model(path)),
    "done/tokenizer.json": lambda path: words_and_pieces(text.load_tokenizer(path)),
    "stopped.partial/recipe.json": lambda path: str(type(training.load_recipe(path.parent))),
    "stopped.partial/rows.npy": lambda path: text.read_rows(path, 16, 61).tolist(),
    "stopped.partial/history.csv": lambda path: len(training.read_history(path, 1, Logging)),
}


def survives(name, path, damaged, expected):
    """How many damaged files load, each as if it were whole. The others are refused."""
    loaded = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            found = LOADERS[name](path)
        except ValueError as error:
            assert path.name in str(error) and "\n" not in str(error)
            assert len(str(error)) < 800
        else:
            assert found == expected
            loaded += 1
    return loaded


def damage(copy, name, number):
    path = copy / name
    content = path.read_bytes()
    expected = LOADERS[name](path)
    assert survives(name, path, cut(content, number), expected) == 0
    return survives(name, path, flipped(content, number), expected)


FEW = {"done/model.keras": 8}
MANY = {"done/model.keras": 80, "stopped.partial/rows.npy": 1000}


@pytest.mark.parametrize("name", LOADERS)
def test_a_damaged_file_is_refused_or_loads_unchanged(name, copy, monkeypatch):
    monkeypatch.setattr(Logging, "metrics", logged(copy))
    damage(copy, name, FEW.get(name, 100))


@pytest.mark.slow
@pytest.mark.parametrize("name", LOADERS)
def test_any_damage_is_refused_or_loads_unchanged(name, copy, monkeypatch):
    monkeypatch.setattr(Logging, "metrics", logged(copy))
    damage(copy, name, MANY.get(name, 600))


def logged(copy):
    return training.read_model(copy / "done/model.keras").metrics


ODD = [None, True, "x", [], {}, [[]], -1, 0, 2, 1.5, 1e300, math.nan]


def mutants(tree):
    """The tree with one of its parts missing or replaced, in every way."""
    if not isinstance(tree, dict | list):
        return
    for place, part in tree.items() if isinstance(tree, dict) else enumerate(tree):
        rest = {k: v for k, v in tree.items() if k != place} if isinstance(tree, dict) else None
        if rest is not None:
            yield rest
        for other in [*ODD, *mutants(part)]:
            changed = dict(tree) if isinstance(tree, dict) else list(tree)
            changed[place] = other
            yield changed


@pytest.mark.slow
def test_any_other_tokenizer_file_is_refused_or_serves(copy):
    path = copy / "done/tokenizer.json"
    whole = json.loads(path.read_text())
    vocabulary = whole["model"]["vocab"]
    whole["model"]["vocab"] = dict(list(vocabulary.items())[:12])
    served = total = 0
    for mutant in [whole, *mutants(whole)]:
        path.write_text(json.dumps(mutant))
        try:
            tokenizer = text.load_tokenizer(path)
        except ValueError as error:
            assert path.name in str(error) and "\n" not in str(error)
        else:
            words_and_pieces(tokenizer)
            served += 1
        total += 1
    assert 1 <= served < total / 5


@pytest.mark.slow
def test_any_other_recipe_is_refused_or_serves(copy, no_training, capsys):
    path = copy / "stopped.partial/recipe.json"
    (copy / "stopped.partial/checkpoint.keras").unlink()  # so the recipe builds the model
    whole, lines = json.loads(path.read_text()), []
    for mutant in [whole, *mutants(whole)]:
        path.write_text(json.dumps(mutant))
        lines.append(refusal(resume(copy), copy, capsys))
    assert lines[0] is None
    assert all(re.search(r"`\S+` must ", line) for line in lines if line)
    assert sum(line is None for line in lines) < len(lines) / 4


# No file runs code


class Attack:
    """What a pickle would run."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return pathlib.Path.touch, (self.marker,)


def with_lambda(marker):
    """A model whose Lambda layer writes a file as soon as it is called."""
    path = str(marker)
    layer = keras.layers.Lambda(lambda x: [open(path, "w").close(), x][1], output_shape=(3,))
    return keras.Sequential([keras.Input((3,)), layer])


def config_attacks(marker):
    """Serialized objects that run a command where they are built."""
    command = f"touch {marker}"

    def made_by(home, name, **config):
        return {"module": home, "class_name": name, "registered_name": None, "config": config}

    function = {"module": "builtins", "class_name": "function", "registered_name": "system"}
    return {
        "os.system": made_by("os", "system", command=command),
        "a process": made_by("subprocess", "Popen", args=["touch", str(marker)]),
        "exec": made_by("builtins", "exec", source=f"open({str(marker)!r}, 'w')"),
        "a download": made_by(
            "keras.utils", "get_file", fname=str(marker), origin=f"file://{__file__}"
        ),
        "a function": function | {"config": "system"},
    }


def replaced(path, place, attack):
    """Puts an attack into the configuration in a model file."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    parts = [json.loads(files["config.json"])]
    for name in place:
        parts.append(parts[-1][name])
    if place:
        parts[-2][place[-1]] = attack
    files["config.json"] = json.dumps(parts[0] if place else attack)
    path.write_bytes(zipped(**files))


ATTACKS = list(config_attacks(pathlib.Path("marker")))
PLACES = {
    "the model": (),
    "its encoder": ("config", "encoder"),
    "its masking": ("config", "masking"),
    "a rate": ("config", "masking", "config", "mask_selection_rate"),
    "its optimizer": ("compile_config", "optimizer"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_no_configuration_runs_code(attack, place, copy, capsys):
    path, marker = copy / "done/model.keras", copy / "marker"
    replaced(path, PLACES[place], config_attacks(marker)[attack])
    line = refusal(fill_mask(copy), copy, capsys)
    assert not marker.exists()
    assert line is not None and "model.keras" in line


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_checkpoint_runs_code(attack, copy, no_training, capsys):
    path, marker = copy / "stopped.partial/checkpoint.keras", copy / "marker"
    replaced(path, PLACES["its encoder"], config_attacks(marker)[attack])
    line = refusal(resume(copy), copy, capsys)
    assert not marker.exists()
    assert line is not None and "checkpoint.keras" in line


@pytest.mark.slow
def test_no_module_of_pytorch_is_unpickled(copy, capsys):
    path, marker = copy / "done/model.keras", copy / "marker"
    module = base64.b64encode(pickle.dumps(Attack(marker))).decode()
    config = {"module": module, "name": "wrapper"}
    kind = {"module": "keras.layers", "class_name": "TorchModuleWrapper", "registered_name": None}
    replaced(path, PLACES["its encoder"], kind | {"config": config})
    line = refusal(fill_mask(copy), copy, capsys)
    assert not marker.exists()
    assert line is not None and "model.keras" in line


@pytest.mark.parametrize("whole", [True, False], ids=["alone", "as an encoder"])
def test_no_lambda_is_run(whole, copy, capsys):
    path, marker = copy / "done/model.keras", copy / "marker"
    with_lambda(marker).save(copy / "lambda.keras")
    assert not marker.exists()
    keras.models.load_model(copy / "lambda.keras", safe_mode=False)(np.zeros((1, 3)))
    assert marker.exists()  # it would
    marker.unlink()
    if whole:
        shutil.copy(copy / "lambda.keras", path)
    else:
        with zipfile.ZipFile(copy / "lambda.keras") as archive:
            replaced(path, PLACES["its encoder"], json.loads(archive.read("config.json")))
    line = refusal(fill_mask(copy), copy, capsys)
    assert not marker.exists()
    assert line is not None and "model.keras" in line and "ambda" in line


def test_no_pickle_is_run(copy, no_training, capsys):
    path, marker = copy / "stopped.partial/rows.npy", copy / "marker"
    np.save(path, np.array([Attack(marker)], dtype=object))
    line = refusal(resume(copy), copy, capsys)
    assert not marker.exists()
    assert line is not None and "rows.npy" in line
    np.load(path, allow_pickle=True)
    assert marker.exists()  # it would
