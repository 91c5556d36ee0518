"""The notebooks run, and are committed as they ran."""

import pathlib
import tempfile

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from traitlets import default

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SCALE = "0.05"  # 1 is the full size, which takes minutes

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


class ThisPython(AsyncKernelManager):
    """Kernels of the running interpreter, whatever `python3` is installed elsewhere."""

    @default("kernel_spec_manager")
    def _only_our_own(self):
        return KernelSpecManager(kernel_dirs=[])  # what is left is ipykernel's own


def code_cells(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.slow
def test_runs_without_error(path, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_DYNMASK_NOTEBOOK_SCALE", SCALE)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))  # nobody's start-up files
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_manager_class=ThisPython,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()  # raises at the first cell that does
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]


def test_is_committed_as_it_ran(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]


def test_holds_no_trace_of_an_error_or_a_machine(path):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)  # base64 may spell anything
    content = nbformat.writes(notebook)
    for trace in ("Traceback", "site-packages", str(ROOT), tempfile.gettempdir(), "/home/"):
        assert trace not in content
