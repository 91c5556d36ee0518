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


def test_the_wheel_is_enough(built, tmp_path):
    run("-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path, built[0])
    code = (
        "import keras_dynmask, pathlib;"
        "print(pathlib.Path(keras_dynmask.__file__).parent.parent);"
        "m = keras_dynmask.DynamicMasking(100, 0.5, mask_token_id=1, seed=0);"
        "print(int(m([[7] * 8])['mask_weights'].numpy().sum()))"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    assert run("-c", code, cwd=tmp_path, env=environment).split() == [str(tmp_path), "4"]
    version = run(tmp_path / "bin" / "keras-dynmask", "--version", cwd=tmp_path, env=environment)
    assert importlib.metadata.version("keras-dynmask") in version


def test_the_version_is_the_same_everywhere():
    (version,) = re.findall(r'(?m)^version = "(.+)"$', (ROOT / "pyproject.toml").read_text())
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert version in (ROOT / "CHANGELOG.md").read_text()
