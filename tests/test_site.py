"""The documentation builds without a warning, and its pages hold what they should."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import keras_dynmask

pytest.importorskip("mkdocs")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
LOADED = re.compile(r"<(?:script|img|link)\b[^>]*?\b(?:src|href)=\"?([^\" >]+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Links, anchors, pictures, pages that no menu names, arguments that no docstring does."""
    directory = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(directory)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


def page_of(site, source):
    folder = site / source.removesuffix(".md").removesuffix("README")
    return (folder / "index.html").read_text()


def test_every_public_name_is_in_the_api(site):
    page = page_of(site, "docs/api.md")
    examples = 0
    for name in keras_dynmask.__all__:
        assert f'id="keras_dynmask.{name}"' in page
        examples += getattr(keras_dynmask, name).__doc__.count(">>> ")
    assert page.count("&gt;&gt;&gt;") >= examples > 20
    assert "<blockquote>" not in page  # what Markdown makes of ">>>"


@pytest.mark.parametrize("source", ["docs/mathematics.md", "CONTRIBUTING.md"])
def test_every_formula_is_drawn(site, source):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", (ROOT / source).read_text(), flags=re.DOTALL)
    formulas = len(re.findall(r"\$\$.+?\$\$|\$[^$]+\$", text, re.DOTALL))
    page = page_of(site, source)
    assert formulas and page.count("<math ") == formulas
    assert "arithmatex" not in page and "<mtext>\\" not in page


def test_pages_need_no_other_host(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        loaded = LOADED.findall(page.read_text())
        assert loaded and not [address for address in loaded if re.match(r"(https?:)?//", address)]


def test_code_is_coloured_and_pictures_are_there(site):
    assert '<span class="kn">import</span>' in page_of(site, "README.md")
    for source in ("README.md", "docs/concepts.md", "benchmarks/README.md"):
        page = site / source.removesuffix(".md").removesuffix("README")
        pictures = re.findall(r'<img [^>]*src="([^"]+\.png)"', (page / "index.html").read_text())
        assert pictures and all((page / picture).is_file() for picture in pictures)
