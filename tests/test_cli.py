"""The command line, as a person meets it."""

import csv
import importlib.util
import json
import os
import pathlib
import random
import re
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from keras_dynmask import cli, training
from keras_dynmask import preview as previews
from keras_dynmask.quiet import quiet_start

SMALL = ["--layers", "1", "--heads", "2", "--hidden", "16", "--intermediate", "16"]
SMALL += ["--length", "16", "--vocabulary-size", "120", "--epochs", "3", "--batch-size", "16"]


def words(count, seed=0):
    drawn = random.Random(seed)
    names, verbs = ["cat", "dog", "bird", "fish"], ["sees", "hears", "likes", "knows"]
    lines = (
        f"the {drawn.choice(names)} {drawn.choice(verbs)} the {drawn.choice(names)} ."
        for _ in range(count // 6)
    )
    return "\n".join(lines)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text(words(6000))
    return str(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    (folder / "corpus.txt").write_text(words(6000))
    output = folder / "run"
    where = ["--output", str(output), "--tensorboard", str(folder / "logs")]
    assert cli.main(["pretrain", "--corpus", str(folder / "*.txt"), *where, *SMALL]) == 0
    return output


FINISHED = [
    "history.csv",
    "loss.png",
    "model.keras",
    "recipe.json",
    "report.json",
    "saved_model",
    "tokenizer.json",
]


def test_pretrain_leaves_everything(trained):
    assert sorted(path.name for path in trained.iterdir()) == FINISHED
    assert not trained.with_name("run.partial").exists()
    with open(trained / "history.csv") as file:
        history = list(csv.DictReader(file))
    assert [row["epoch"] for row in history] == ["1", "2", "3"]
    assert float(history[-1]["val_masked_loss"]) < float(history[0]["val_masked_loss"])
    report = json.loads((trained / "report.json").read_text())
    assert report["masked_loss"] == pytest.approx(float(history[-1]["val_masked_loss"]))
    assert "[MASK]" in report["example"]
    assert (trained / "loss.png").read_bytes().startswith(b"\x89PNG")
    (events,) = (trained.parent / "logs" / "train").iterdir()
    assert events.read_bytes().count(b"`[MASK]` hidden") == 3  # epochs


def test_the_saved_model_agrees_with_the_keras_model(trained):
    ids = np.array([[5, 6, 7, 8, 9]], "int32")
    saved_model = tf.saved_model.load(str(trained / "saved_model"))
    served = saved_model.serve(tf.constant(ids))
    model = training.load_model(trained)
    np.testing.assert_allclose(served, model.predict(ids, verbose=0), atol=1e-5)


def test_fill_mask_prints_guesses(trained, capsys):
    assert cli.main(["fill-mask", str(trained), "the [MASK] sees [MASK] dog", "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[MASK] 1" and lines[3] == "[MASK] 2" and len(lines) == 6
    assert all(re.fullmatch(r" +\d+\.\d%  \S+", lines[i]) for i in (1, 2, 4, 5))


def test_machines_are_answered_in_json(trained, tmp_path, corpus, capsys):
    def answer(*arguments):
        assert cli.main([*map(str, arguments), "--json"]) == 0
        said = capsys.readouterr()
        assert said.err  # what people read
        return json.loads(said.out)

    output = tmp_path / "run"
    report = answer("pretrain", "--corpus", corpus, "--output", output, *SMALL)
    assert report == {"output": str(output), **json.loads((output / "report.json").read_text())}
    [first, second] = answer("fill-mask", trained, "the [MASK] sees [MASK]", "--top", 2)["guesses"]
    assert len(first) == len(second) == 2 and 0 < first[1]["probability"] <= first[0]["probability"]
    asked = "generate", trained, "--prompt", "the cat", "--length", 3, "--outputs", 2
    [text, _] = answer(*asked)["texts"]
    assert text.startswith("the cat")
    [steps, _] = answer(*asked, "--every-step")["texts"]
    assert len(steps) == 4 and steps[-1] == text
    served = tmp_path / "served"
    written = answer("export", trained, "--format", "openvino", "--output", served)
    assert written == {"output": str(served)}
    files = ["model.bin", "model.xml", "tokenizer.json"]
    assert sorted(path.name for path in served.iterdir()) == files
    assert cli.main(["fill-mask", str(trained), "no gap", "--json"]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("command", ["preview", "fill-mask"])
def test_output_that_nobody_takes_costs_one_line(trained, command, monkeypatch, capsys):
    arguments = {"preview": [], "fill-mask": [str(trained), "[MASK]"]}
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert cli.main([command, *arguments[command]]) == 2
        assert output.closed  # or Python tries again as it ends, with status 120
    assert re.fullmatch(r"keras-dynmask: \[Errno \d+\] Broken pipe\n", capsys.readouterr().err)


def preview(*arguments):
    assert cli.main(["preview", *map(str, arguments)]) == 0


def shares(shown):
    return [int(share) for share in re.findall(r"(\d+)%", shown)]


def test_preview_shows_every_fate_without_colours(capsys):
    preview("--steps", 40, "--rate", 0.3)
    shown = capsys.readouterr().out
    assert re.findall(r"^step (\d+) ", shown, re.MULTILINE) == [str(step) for step in range(40)]
    for mark in (r"\[MASK\]", r"\*\w+\*", r" _\w+_"):
        assert re.search(mark, shown.split("hidden")[0])
    assert set(re.findall(r"(\d+) of 31, (29|32)%$", shown, re.MULTILINE)) == {
        ("9", "29"),
        ("10", "32"),
    }


def test_preview_takes_every_flag(trained, capsys):
    preview("--seed", 1)
    first = capsys.readouterr().out
    preview("--seed", 2)
    assert first != capsys.readouterr().out
    preview("--seed", 2, "--set", "seed=1")
    assert first == capsys.readouterr().out
    preview("the cat sees", "the dog hears the bird", "--model", trained, "--span", 3)
    assert re.search(r"\[SEP\].*\[SEP\]  \d\+\d of 3\+5, ", capsys.readouterr().out)
    preview("the dogcat sees", "--model", trained, "--whole-words", "--set", "at_least_one=true")
    assert " 0%" not in capsys.readouterr().out
    preview("--rate", "1:0", "--steps", 3)
    assert shares(capsys.readouterr().out)[::2] == [100, 0]
    preview("--rate", "0.5,1", "--steps", 9)
    drawn = shares(capsys.readouterr().out)
    assert len(set(drawn)) > 3 and min(drawn) >= 48
    preview("--independent", "--steps", 9)
    assert len(set(shares(capsys.readouterr().out))) > 2
    preview("--set", "mask_selection_length=2", "--set", "evaluation_rate=1", "--steps", 3)
    shown = capsys.readouterr().out
    assert shown.count("2 of 31, 6%") == 4 and "evaluate " in shown


@pytest.mark.parametrize(
    "suffix, begin, end", [(".png", b"\x89PNG", b"IEND\xaeB`\x82"), (".html", b"<!", b">\n")]
)
def test_preview_writes_whole_files_or_none(suffix, begin, end, tmp_path, monkeypatch, capsys):
    path = tmp_path / f"masks{suffix}"
    preview("--output", path)
    written = path.read_bytes()
    assert written.startswith(begin) and written.endswith(end)
    assert "step 4" in capsys.readouterr().out

    def stopped(lines, unfinished):
        unfinished.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setitem(previews.WRITERS, suffix, stopped)
    assert cli.main(["preview", "--output", str(path)]) == 2
    said = capsys.readouterr()
    assert said.err == "keras-dynmask: No space left on device\n" and said.out == ""
    assert path.read_bytes() == written and list(tmp_path.iterdir()) == [path]


def test_export_writes_a_saved_model_once(trained, tmp_path, capsys):
    target = str(tmp_path / "served")
    assert cli.main(["export", str(trained), "--output", target, "--masking-endpoints"]) == 0
    assert "(`serve`)" in capsys.readouterr().out
    saved_model = tf.saved_model.load(target)
    assert saved_model.serve(tf.constant([[5, 6]])).shape[:2] == (1, 2)
    masked = saved_model.mask_fixed(tf.constant([[5, 6, 7, 8] * 4]))
    assert masked["token_ids"].shape == (1, 16)
    assert cli.main(["export", str(trained), "--output", target]) == 2
    assert "`output` must not exist yet" in capsys.readouterr().err


def test_export_writes_other_formats_with_the_tokenizer(trained, tmp_path, capsys):
    target = tmp_path / "new" / "served"
    arguments = ["export", str(trained), "--format", "onnx", "--output", str(target)]
    assert cli.main([*arguments, "--masking-endpoints"]) == 2
    assert "`masking_endpoints` must be False unless" in capsys.readouterr().err
    assert not target.exists()
    assert cli.main(arguments) == 0
    assert f"{target}/model.onnx serves" in capsys.readouterr().out
    assert sorted(path.name for path in target.iterdir()) == ["model.onnx", "tokenizer.json"]
    copied = (target / "tokenizer.json").read_text()
    assert copied == (trained / "tokenizer.json").read_text()


def test_static_masks_can_be_asked_for(corpus, tmp_path, capsys):
    arguments = ["pretrain", "--corpus", corpus, "--masking", "static", "--output"]
    assert cli.main([*arguments, str(tmp_path / "static"), *SMALL, "--whole-words"]) == 0
    assert "static masks" in capsys.readouterr().out
    recipe = training.load_recipe(tmp_path / "static")
    assert recipe.masking == "static" and recipe.whole_words


def test_static_rows_keep_the_mask_of_the_first_step():
    from keras_dynmask import DynamicMasking

    rows = np.random.default_rng(0).integers(4, 50, (40, 16)).astype("int32")
    masking = DynamicMasking(50, 0.25, 3, seed=0)
    (x, labels, weights), expected = (
        training.masked_once(masking, {"token_ids": rows}),
        masking(rows, step=0),
    )
    np.testing.assert_array_equal(x["token_ids"], expected["token_ids"])
    originals = np.take_along_axis(rows, x["mask_positions"], axis=1)
    np.testing.assert_array_equal(labels, np.where(weights > 0, originals, 0))


def test_static_copies_take_turns():
    from keras_dynmask import DynamicMasking

    rows = np.random.default_rng(0).integers(4, 50, (40, 16)).astype("int32")
    masking = DynamicMasking(50, 0.25, 3, seed=0)
    data = training.masked_once(masking, {"token_ids": rows}, copies=3)
    plain = training.ShuffledRows(rows, 40, seed=1)
    copies = training.ShuffledRows(data, 40, seed=1, copies=3)
    for epoch in range(5):
        x, labels, weights = copies[0]
        expected = masking(rows, step=epoch % 3)["token_ids"].numpy()[plain.order]
        np.testing.assert_array_equal(x["token_ids"], expected)
        originals = np.take_along_axis(plain[0], x["mask_positions"], axis=1)
        np.testing.assert_array_equal(labels, np.where(weights > 0, originals, 0))
        resumed = training.ShuffledRows(data, 40, seed=1, epoch=epoch, copies=3)
        np.testing.assert_array_equal(resumed[0][0]["token_ids"], x["token_ids"])
        plain.on_epoch_end()
        copies.on_epoch_end()
    with pytest.raises(ValueError, match="`static_copies` must be 1 unless .* static_copies=10"):
        training.Recipe(static_copies=10)


def test_batches_depend_on_seed_and_epoch_alone():
    rows = np.arange(50)
    first = training.ShuffledRows(rows, 8, seed=1)
    epoch_0 = [first[i].tolist() for i in range(len(first))]
    first.on_epoch_end()
    epoch_1 = [first[i].tolist() for i in range(len(first))]
    resumed = training.ShuffledRows(rows, 8, seed=1, epoch=1)
    assert [resumed[i].tolist() for i in range(len(resumed))] == epoch_1 != epoch_0
    assert len(first) == 6 and len({n for batch in epoch_0 for n in batch}) == 48


def mistakes(folder):
    latin, empty, short = folder / "latin.txt", folder / "empty.txt", folder / "short.txt"
    latin.write_bytes(b"caf\xe9 " * 9000)
    empty.write_text("")
    short.write_text("too little")
    taken, unfinished = folder / "taken", folder / "unfinished"
    taken.mkdir()
    unfinished.with_name("unfinished.partial").mkdir()
    damaged = folder / "damaged"
    damaged.mkdir()
    (damaged / "model.keras").write_bytes(b"PK not a model")
    new = str(folder / "new")
    return {
        "missing corpus": (["pretrain", "--corpus", "no/such*", "--output", new], "readable text"),
        "no such benchmark": (["bench", "speed"], "`name` must be one of masking, "),
        "not UTF-8": (["pretrain", "--corpus", str(latin), "--output", new], "UTF-8"),
        "empty": (["pretrain", "--corpus", str(empty), "--output", new], "every file is empty"),
        "too short": (
            ["pretrain", "--corpus", str(short), "--output", new],
            "at least 8 documents",
        ),
        "bad rate": (
            ["pretrain", "--rate", "1.5", "--output", new],
            "Received: mask_selection_rate='1.5'",
        ),
        "no rate": (["pretrain", "--rate", "0", "--output", new], "mask_selection_rate=0.0"),
        "no pairs": (
            ["pretrain", "--recipe", "seq2seq", "--output", new],
            "`pairs` must name a file",
        ),
        "missing pairs": (
            ["pretrain", "--recipe", "seq2seq", "--pairs", "no.tsv", "--output", new],
            "`pairs` must name a readable file. Received: pairs='no.tsv'",
        ),
        "no writer": (["generate", str(folder), "--length", "3"], "must be one that pretrain made"),
        "resume finished": (["pretrain", "--resume", "--output", str(taken)], "must not exist yet"),
        "bad length": (["pretrain", "--length", "0", "--output", new], "`length` must be"),
        "bad heads": (["pretrain", "--heads", "3", "--output", new], "`hidden_dim` must be"),
        "bad span": (["pretrain", "--span", "0.5", "--output", new], "`mean_span_length` must be"),
        "bad dropout": (["pretrain", "--dropout", "2", "--output", new], "`dropout` must be"),
        "output taken": (["pretrain", "--output", str(taken)], "`output` must not exist yet"),
        "no logs": (
            ["pretrain", "--tensorboard", str(short), "--output", new],
            "`tensorboard` must be, or lie in, a directory",
        ),
        "unfinished": (["pretrain", "--output", str(unfinished)], "interrupted run"),
        "nothing to resume": (["pretrain", "--resume", "--output", new], "no recipe.json"),
        "no run": (["fill-mask", str(folder), "a [MASK]"], "must be one that pretrain made"),
        "damaged": (["fill-mask", str(damaged), "a [MASK]"], "must be a whole model file"),
        "no output": (["export", str(folder / "nowhere")], "must be one that pretrain made"),
        "words": (["preview", "--whole-words"], "needs the tokenizer"),
        "no steps": (["preview", "--steps", "0"], "`steps` must be a whole number, at least 1"),
        "no sentence": (["preview", "one", " "], "`sentence` must hold a word"),
        "rate shape": (["preview", "--rate", "a"], "LOW,HIGH or FIRST:LAST. Received: --rate='a'"),
        "rate pair": (["preview", "--rate", ".5,.1"], "low <= high"),
        "no dial": (["preview", "--set", "span=3"], "must name one of: mask_selection_rate, "),
        "no JSON": (["preview", "--set", "seed=one"], "`--set seed` must be JSON"),
        "no flag": (["preview", "--set", "exact_count=1"], "`exact_count` must be True or False"),
        "no token": (["preview", "--set", 'selection_weights={"zz": 1}'], "unknown=['zz']"),
        "no schedule": (
            ["preview", "--set", 'evaluation_rate={"class_name": "A", "config": {}}'],
            "must be what `DynamicMasking` takes",
        ),
        "other suffix": (["preview", "--output", str(folder / "a.gif")], ".png or .html"),
        "no folder": (["preview", "--output", str(folder / "no/a.png")], "a directory that exists"),
        "no letters": (["preview", "日本", "--output", str(folder / "a.png")], "lacking=['日'"),
    }


MISTAKES = [
    "missing corpus", "not UTF-8", "empty", "too short", "bad rate", "no rate", "bad length",
    "bad heads", "bad span", "bad dropout", "output taken", "unfinished", "resume finished",
    "nothing to resume", "no run", "damaged", "no output", "words", "no steps", "no sentence",
    "rate shape", "rate pair", "no dial", "no JSON", "no flag", "no token", "no schedule",
    "other suffix", "no folder", "no letters", "no such benchmark", "no pairs", "missing pairs",
    "no writer", "no logs",
]  # fmt: skip


def test_every_mistake_is_made(tmp_path):
    assert sorted(mistakes(tmp_path)) == sorted(MISTAKES)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_costs_one_clear_line_and_status_2(mistake, tmp_path, capsys):
    arguments, message = mistakes(tmp_path)[mistake]
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    assert cli.main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and said.err.startswith("keras-dynmask: ")
    assert message in said.err and said.out == ""
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments, missing, extra",
    [
        (["pretrain"], "tokenizers", "text"),
        (["export", "run", "--format", "onnx"], "tf2onnx", "onnx"),
        (["export", "run", "--format", "litert", "--json"], "ai_edge_litert", "litert"),
        (["export", "run", "--format", "openvino"], "openvino", "openvino"),
    ],
)
def test_a_missing_extra_is_named(arguments, missing, extra, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else find(name)
    )
    assert cli.main(arguments) == 2
    assert capsys.readouterr() == (
        "",
        f"keras-dynmask: This needs {missing}: pip install 'keras-dynmask[{extra}]'\n",
    )


@pytest.mark.parametrize("arguments", [["--help"], ["pretrain", "--help"], ["preview", "--help"]])
def test_help_has_examples(arguments, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(arguments)
    assert "example" in capsys.readouterr().out


def test_bench_runs_the_short_form_of_what_is_named(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(cli, "BENCHMARKS", tmp_path)
    (tmp_path / "masking.py").write_text("import sys; print(sys.argv[1:])")
    (tmp_path / "input.py").write_text("raise SystemExit(3)")
    assert cli.main(["bench", "masking"]) == 0
    assert "['--short']" in capfd.readouterr().out
    assert cli.main(["bench", "input"]) == 2
    assert "`input` must end with status 0. Received: status=3" in capfd.readouterr().err


def test_every_short_benchmark_is_there():
    for name in cli.SHORT_BENCHMARKS:
        assert "--short" in (cli.BENCHMARKS / f"{name}.py").read_text()


def shown_commands():
    root = pathlib.Path(cli.__file__).parents[1]
    pages = [path.read_text() for path in (root / "README.md", *root.glob("docs/*.md"))]
    for line in "\n".join([*pages, cli.EXAMPLES]).splitlines():
        if line.strip().startswith("keras-dynmask "):
            yield re.split(r" {2,}", line.strip())[0]


@pytest.mark.parametrize("command", sorted(set(shown_commands())))
def test_shown_commands_are_understood_and_do_not_overwrite_their_corpus(command):
    arguments = vars(cli._parser().parse_args(shlex.split(command, comments=True)[1:]))
    folders = [pathlib.Path(pattern).parts[0] for pattern in arguments.get("corpus", [])]
    assert arguments.get("output") not in folders


def test_resuming_with_other_settings_is_refused(corpus, tmp_path, capsys):
    recipe = training.Recipe(corpus=(corpus,), vocabulary_size=120, length=16)
    training.prepare(recipe, tmp_path / "run.partial")
    arguments = ["pretrain", "--resume", "--output", str(tmp_path / "run"), "--epochs", "7"]
    assert cli.main(arguments) == 2
    assert "`epochs` must be what the interrupted run began with, 30" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "handler", "during"),
    [
        ("/bin/keras-dynmask", signal.default_int_handler, signal.SIG_DFL),
        ("/bin/keras-dynmask", signal.SIG_IGN, signal.SIG_IGN),  # as nohup has it
        ("/bin/other", signal.default_int_handler, signal.default_int_handler),
    ],
)
def test_ctrl_c_ends_the_start_without_a_word(program, handler, during, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program])
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    before = signal.signal(signal.SIGINT, handler)
    try:
        with quiet_start():
            assert signal.getsignal(signal.SIGINT) is during
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(words(30_000))  # epochs long enough to be killed in
    command = [sys.executable, "-m", "keras_dynmask", "pretrain", "--corpus", str(corpus), *SMALL]
    command += ["--epochs", "6", "--dropout", "0.2", "--output"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)

    killed = [*command, str(tmp_path / "killed")]
    process = subprocess.Popen(killed, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch   2/6"):
            time.sleep(0.1)  # into the third epoch
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "killed").exists()
    said = subprocess.run([*killed, "--resume"], check=True, capture_output=True, text=True).stdout
    assert re.search(r"epochs [234] to 6", said)

    whole, resumed = (training.load_model(tmp_path / name) for name in ("whole", "killed"))
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (tmp_path / "whole/history.csv").read_text() == (
        tmp_path / "killed/history.csv"
    ).read_text()


@pytest.mark.slow
def test_two_runs_do_not_share_a_directory(corpus, tmp_path):
    recipe = training.Recipe(corpus=(corpus,), vocabulary_size=120, length=16)
    partial = tmp_path / "run.partial"
    training.prepare(recipe, partial)
    with training.locked(partial), pytest.raises(ValueError, match="in use by another run"):
        training.train(recipe, tmp_path / "run", resume=True)


def test_writing_is_all_or_nothing(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), training.replacing(target) as path:
        path.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]
    with training.replacing(target) as path:
        path.write_text("new")
    assert target.read_text() == "new" and list(tmp_path.iterdir()) == [target]
