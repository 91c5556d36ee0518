"""What the site needs beside `mkdocs.yml`.

Pages from all over the repository, notebooks, formulas, and docstrings in the grammar of Keras.
"""

import html
import json
import re
import textwrap
from pathlib import Path

import griffe
from latex2mathml.converter import convert
from mkdocs.structure.files import File

PAGES = ("*.md", "docs/*.md", "benchmarks/*.md")
SHOWN = ("docs/*.png", "docs/*.csv", "docs/*.css", "benchmarks/results/*.csv")
NOTEBOOKS = "notebooks/*.ipynb"


def on_config(config):
    """Entries of the navigation are patterns: what is not there (yet) is left out."""
    root = Path(config.config_file_path).parent

    def found(entries):
        for entry in entries:
            if isinstance(entry, str):
                yield from (path.relative_to(root).as_posix() for path in sorted(root.glob(entry)))
                continue
            ((title, target),) = entry.items()
            if isinstance(target, list):
                yield {title: list(found(target))}
            elif (root / target).exists():
                yield entry

    config.nav = list(found(config.nav))


def on_files(files, config):
    """A page lies in the site where its source lies in the repository."""
    root = Path(config.config_file_path).parent
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)

    for pattern in (*PAGES, *SHOWN):
        for path in sorted(root.glob(pattern)):
            name = path.relative_to(root).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    for path in sorted(root.glob(NOTEBOOKS)):
        name = path.relative_to(root).as_posix()
        files.append(Notebook.generated(config, name, content=as_markdown(path)))
    return files


class Notebook(File):
    """A page, though its name does not end in `.md`."""

    def is_documentation_page(self):
        return True


def as_markdown(notebook):
    """The cells of a notebook as it ran, one after the other."""
    parts = []
    for cell in json.loads(notebook.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else fenced("python", source))
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(
                    f'<img alt="" src="data:image/png;base64,{data["image/png"].strip()}">'
                )
            else:
                text = output.get("text") or data.get("text/plain", "")
                parts.append(fenced("text", "".join(text)))
    return "\n\n".join(parts)


def fenced(language, text):
    return f"````{language}\n{text.rstrip()}\n````"


def on_page_content(content, **_):
    """Formulas as MathML, which browsers draw without a script."""

    def mathml(match):
        # The converter would slant a single letter.
        formula = re.sub(r"\\mathrm\{(\w)\}", r"\\text{\1}", html.unescape(match["formula"]))
        return convert(formula, display="inline" if match["tag"] == "span" else "block")

    return FORMULA.sub(mathml, content)


class Docstrings(griffe.Extension):
    """Docstrings in the grammar of Keras, as griffe reads them."""

    def on_object(self, *, obj, **_):
        if obj.docstring is not None:
            text = obj.docstring.value.replace("Call arguments:", "Other Args: Call arguments:")
            text = PROSE.sub(lambda match: f"**{match[1]}**\n\n{textwrap.dedent(match[2])}", text)
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\1\n```", text)


FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<formula>.+?)\\[)\]]</(?P=tag)>', re.DOTALL
)
PROSE = re.compile(r"(?m)^(Returns:|References:)\n((?:(?: {4}.*)?(?:\n|\Z))+?)(?=\S|\Z)")
EXAMPLE = re.compile(r"(?m)^(>>> .*(?:\n.+)*)")  # Markdown takes ">>>" for a quotation
