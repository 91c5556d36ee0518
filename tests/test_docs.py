"""Every example in the docstrings and in the README runs."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import keras_dynmask

ROOT = Path(__file__).parent.parent
MODULES = [module.name for module in pkgutil.iter_modules(keras_dynmask.__path__)]
PUBLIC = {name: getattr(keras_dynmask, name) for name in keras_dynmask.__all__}
NAMES = {"np": np, "tf": tf, "ops": ops, **PUBLIC}


@pytest.mark.parametrize("module", [name for name in MODULES if name != "__main__"])
def test_docstring_examples(module):
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
    assert len(blocks) == 5
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["logits"].shape == (1, 3, 1000) and names["states"].shape == (1, 3, 64)
    assert "(32, 64) (32, 10) (32, 10) (32, 10)" in capsys.readouterr().out


def test_the_readme_names_every_file():
    readme = (ROOT / "README.md").read_text()
    for path in (ROOT / "keras_dynmask").glob("[a-z]*.py"):
        assert f"  {path.name} " in readme


def test_the_readme_names_every_picture():
    readme = (ROOT / "README.md").read_text()
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", readme)
    assert pictures and all((ROOT / picture).is_file() for picture in pictures)
