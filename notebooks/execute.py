"""Run the notebooks and keep their outputs: `python notebooks/execute.py [NAME.ipynb ...]`.

Each runs in a kernel of its own, in this directory, on the real checkpoint unless the environment
names another one. What says when and on which machine it ran is taken out.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(file: Path, *, timeout_seconds: int = 1800) -> nbformat.NotebookNode:
    """Return the notebook with the outputs of a run; an error in a cell is raised."""
    notebook = nbformat.read(file, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=timeout_seconds,
        kernel_name="python3",
        resources={"metadata": {"path": str(NOTEBOOKS)}},
        record_timing=False,
    )
    client.execute()
    return cleaned(notebook)


def cleaned(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Leave code, outputs and what a reader's program needs to know."""
    notebook.metadata = nbformat.from_dict(_METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.metadata = nbformat.from_dict({})
        cell.id = f"cell-{number}"
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
    return notebook


def main(names: Sequence[str]) -> None:
    """Run the notebooks named, or all."""
    for name in names or sorted(file.name for file in NOTEBOOKS.glob("*.ipynb")):
        nbformat.write(execute(NOTEBOOKS / name), NOTEBOOKS / name)


if __name__ == "__main__":
    main(sys.argv[1:])
