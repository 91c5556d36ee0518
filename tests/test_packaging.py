"""The wheel and the source distribution build, are in order, and hold what they should."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("build")
pytest.importorskip("twine")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
MODULES = {path.name for path in (ROOT / "keras_dynmask").glob("*.py")}


def run(*command, **options):
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, timeout=600, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel is built from the source distribution, as for a release."""
    directory = tmp_path_factory.mktemp("dist")
    run("-m", "build", "--no-isolation", "--outdir", directory, ROOT)
    (wheel,), (source,) = directory.glob("*.whl"), directory.glob("*.tar.gz")
    return wheel, source


def test_twine_finds_nothing(built):
    report = run("-m", "twine", "check", "--strict", *built)
    assert report.count("PASSED") == 2


def test_they_hold_what_they_should(built):
    wheel, source = built
    names = zipfile.ZipFile(wheel).namelist()
    packaged = {name.removeprefix("keras_dynmask/") for name in names if ".dist-info/" not in name}
    assert packaged == {*MODULES, "py.typed"}
    with tarfile.open(source) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    git = ["git", "ls-files", "-z"]
    tracked = subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.split("\0")
    assert {name for name in tracked if name} - names <= {".gitignore"}


USED = """
import pathlib, runpy, sys
import keras_dynmask
masking = keras_dynmask.DynamicMasking(100, 0.5, mask_token_id=1, seed=0)
print(pathlib.Path(keras_dynmask.__file__).parent.parent)
print(int(masking([[7] * 8])["mask_weights"].numpy().sum()))
sys.argv[1:] = ["--version"]
runpy.run_path("bin/keras-dynmask", run_name="__main__")
"""


def test_the_wheel_is_enough(built, tmp_path):
    run("-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path, built[0])
    said = run("-c", USED, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    version = importlib.metadata.version("keras-dynmask")
    assert said.splitlines() == [str(tmp_path), "4", f"keras-dynmask {version}"]


def test_the_version_is_the_same_everywhere():
    (version,) = re.findall(r'(?m)^version = "(.+)"$', (ROOT / "pyproject.toml").read_text())
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert version in (ROOT / "CHANGELOG.md").read_text()
