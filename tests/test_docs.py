"""Every example in the docstrings, in the README and on the pages runs."""

import ast
import doctest
import importlib
import inspect
import io
import pkgutil
import re
import tokenize
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from elsewhere import on
from keras import ops

import keras_dynmask
from keras_dynmask import DynamicMasking, MaskedLanguageModel, TransformerEncoder, text

ROOT = Path(__file__).parent.parent
MODULES = [module.name for module in pkgutil.iter_modules(keras_dynmask.__path__)]
PUBLIC = {name: getattr(keras_dynmask, name) for name in keras_dynmask.__all__}
NAMES = {"np": np, "tf": tf, "ops": ops, **PUBLIC}


@pytest.mark.parametrize("module", [name for name in MODULES if name != "__main__"])
def test_docstring_examples(module):
    if module == "hugging_face":
        pytest.importorskip("torch")
    module = importlib.import_module(f"keras_dynmask.{module}")
    assert doctest.testmod(module, extraglobs=NAMES).failed == 0


@pytest.mark.parametrize("name", keras_dynmask.__all__)
def test_every_public_name_is_documented_with_an_example(name):
    documentation = getattr(keras_dynmask, name).__doc__
    for part in ("Args:", ">>> "):
        assert part in documentation


def test_readme_examples(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 7
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["logits"].shape == (1, 3, 1000) and names["states"].shape == (1, 3, 64)
    assert names["text"].shape == (1, 12) and 3 not in names["text"]
    assert (names["filled"].numpy() == 3).sum() == 1
    assert names["masked"]["token_ids"].shape == (1, 3)
    assert "(32, 64) (32, 10) (32, 10) (32, 10)" in capsys.readouterr().out


# Pages: what each takes for given, once, or for each of its blocks.


def small_model():
    encoder = TransformerEncoder(100, 1, 2, 8, 16)
    model = MaskedLanguageModel(encoder, DynamicMasking(100, 0.15, mask_token_id=3, seed=0))
    model.compile("sgd")
    return model


def for_pipelines():
    ids = np.full((8, 128), 7, "int32")
    rows = tf.data.Dataset.from_tensor_slices(ids)
    given = {"model": small_model(), "blocks": [ids, ids], "ids": ids, "epoch": 2}
    given["masking"] = DynamicMasking(100, 0.15, mask_token_id=3, mask_selection_length=20)
    yield given | {"rows": rows.batch(4)}
    yield given
    yield given | {"rows": rows}
    service = tf.data.experimental.service
    dispatcher = service.DispatchServer()
    worker = service.WorkerServer(
        service.WorkerConfig(dispatcher_address=dispatcher.target.split("://")[1])
    )
    yield given | {"rows": rows.batch(4), "address": dispatcher.target}
    yield given
    worker._stop()


def for_restarts():
    def build():
        model = small_model()
        model.masking.step.assign(28)
        return model

    yield {"build": build, "token_ids": np.full((32, 8), 7), "directory": Path()}
    yield {}


def for_hugging_face():
    transformers = pytest.importorskip("transformers")
    for needed in ("torch", "accelerate", "datasets"):
        pytest.importorskip(needed)
    texts = ["the quick fox", "the lazy dog jumped over the quick brown fox"] * 4
    yield {
        "tokenizer": transformers.PreTrainedTokenizerFast(
            tokenizer_object=text.train_tokenizer(texts, 60),
            **{f"{name[1:4].lower()}_token": name for name in text.SPECIAL_TOKENS[:3]},
            mask_token=text.MASK,
        ),
        "texts": texts,
    }


def for_the_first_ten_minutes():
    tokenizer = text.train_tokenizer(["a mask is a function of the seed and the step"] * 4, 60)
    size, mask = tokenizer.get_vocab_size(), tokenizer.token_to_id(text.MASK)
    model = MaskedLanguageModel(
        TransformerEncoder(size, 1, 2, 8, 16), DynamicMasking(size, 0.15, mask_token_id=mask)
    )
    model.export("mine/saved_model")
    tokenizer.save("mine/tokenizer.json")
    yield {}


SLOW = {"from_hugging_face.md", "from_kerashub.md"}  # import PyTorch, KerasHub
GIVEN = {
    "first_ten_minutes.md": for_the_first_ten_minutes,
    "pipelines.md": for_pipelines,
    "restarts.md": for_restarts,
    "from_hugging_face.md": for_hugging_face,
}
PAGES = sorted((ROOT / "docs").glob("*.md"))
QUOTING = {"mathematics.md"}  # the package, indented: see test_mathematics.py
# A process of its own: another backend, or a tf.data service, which outlives its test.
ELSEWHERE = {"distributed.md": "jax", "pipelines.md": "tensorflow"}


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


WITH_CODE = [
    pytest.param(page.name, marks=[pytest.mark.slow] if page.name in SLOW else [])
    for page in PAGES
    if page.name not in QUOTING | ELSEWHERE.keys() and "```py" in page.read_text()
]


@pytest.fixture
def eagerly():
    """A few steps take less time than their tracing: KerasHub's page 9 s of CPU and not 24."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.filterwarnings("ignore:Even though .* this option does not apply to tf.data")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")  # Trainer, on a CPU
# Backbones have a pooler, which learns nothing from masked tokens.
@pytest.mark.filterwarnings("ignore:Gradients do not exist for variables .'pooled_dense")
@pytest.mark.parametrize("page", WITH_CODE)
def test_pages_run(page, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    if page in SLOW:
        request.getfixturevalue("eagerly")
    run_here(page)


def run_here(page):
    given = GIVEN.get(page, lambda: iter([]))()
    names = {"keras": keras, **NAMES}
    for number, block in enumerate(blocks(page, "python")):
        names |= next(given, {})
        file = Path(f"block_{number}.py")  # AutoGraph reads the source
        file.write_text(block)
        exec(compile(block, file.absolute(), "exec"), names)
    assert next(given, None) is None
    examples = "\n".join(blocks(page, "pycon"))
    test = doctest.DocTestParser().get_doctest(examples, names, page, page, 0)
    assert doctest.DocTestRunner().run(test).failed == 0
    return True


@pytest.mark.slow
@pytest.mark.parametrize(("page", "backend"), ELSEWHERE.items())
def test_pages_run_elsewhere(page, backend, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert on(backend, run_here, page)


def test_the_readme_names_every_file():
    readme = (ROOT / "README.md").read_text()
    for path in (ROOT / "keras_dynmask").glob("[a-z]*.py"):
        assert f"  {path.name} " in readme


def test_every_guarantee_names_tests_that_there_are():
    table = (ROOT / "docs" / "guarantees.md").read_text()
    commands = re.findall(r"`(test_\w+\.py)(?: -k (\w+|\"[\w ]+\"))?`", table)
    assert len(commands) > 20
    for file, words in commands:
        names = re.findall(r"^def (test_\w+)", (ROOT / "tests" / file).read_text(), re.MULTILINE)
        for word in words.strip('"').split(" or "):
            assert any(word in name for name in names), (file, word)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_link_to_what_there_is(page):
    links = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text())
    assert all((page.parent / link).exists() for link in links)
    assert f"docs/{page.name}" in (ROOT / "README.md").read_text()


def test_the_readme_names_every_picture():
    readme = (ROOT / "README.md").read_text()
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", readme)
    assert pictures and all((ROOT / picture).is_file() for picture in pictures)


def test_every_dial_of_the_readme_is_an_argument():
    readme = (ROOT / "README.md").read_text()
    table = readme[readme.index("## The dials") : readme.index("What holds for every setting")]
    names = {
        **PUBLIC,
        "PolynomialDecay": keras.optimizers.schedules.PolynomialDecay,
        "steps": 1000,
        "tokenizer": ["[PAD]", "[MASK]", "mask", "##ing"],
        "continuations": [3],
        "rows": [[2, 3, 2, 3, 2]],
        "counts": np.ones(100),
        "protected": [0, 1],
        "np": np,
        "K": 8,
    }
    base = {"vocabulary_size": 100, "mask_selection_rate": 0.15, "mask_token_id": 1}
    written = [each.replace("[...]", "counts") for each in re.findall(r"`(\w+=[^`]*)`", table)]
    assert len(written) >= 20
    for arguments in written:
        keras_dynmask.DynamicMasking(**base | eval(f"dict({arguments})", names))
    documented = set(re.findall(r"\b\w+\b", table))
    named = set(inspect.signature(keras_dynmask.DynamicMasking).parameters)
    assert named - documented <= {"seed", "kwargs"}


def test_the_readme_counts_the_lines_of_the_ground_floor():
    files = [ROOT / "keras_dynmask" / f"{name}.py" for name in GROUND_FLOOR]
    count = sum(map(code_lines, files))
    assert f" {count} lines of code" in (ROOT / "README.md").read_text()
    imported = {
        name for path in files for name in re.findall(r"keras_dynmask\W*(\w+)", path.read_text())
    }
    assert imported == {"arrays", "units"}  # nothing above


GROUND_FLOOR = ("units", "selection", "corruption", "objective")


def code_lines(path):
    """Lines that hold code: no comments, no docstrings, no blank lines."""
    source = path.read_text()
    docstrings = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.Module, ast.FunctionDef)) and ast.get_docstring(node)
        for line in range(node.body[0].lineno, node.body[0].end_lineno + 1)
    }
    no_code = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (*no_code, tokenize.ENDMARKER):
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)
