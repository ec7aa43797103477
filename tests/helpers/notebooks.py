"""Run the code cells of a notebook in this process, one after the other.

python tests/helpers/notebooks.py examples/checkpoint_to_decision.ipynb    # writes the outputs into it
"""

import contextlib
import io
import json
import pathlib
import sys


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run(notebook: dict) -> list[str]:
    """What each code cell prints."""
    names, printed = {"__name__": "__main__"}, []
    for cell in code_cells(notebook):
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec("".join(cell["source"]), names)
        printed.append(output.getvalue())
    return printed


def stored(cell: dict) -> str:
    """The output of a cell that the notebook holds."""
    return "".join("".join(output["text"]) for output in cell["outputs"])


def main(path: pathlib.Path) -> None:
    notebook = json.loads(path.read_text())
    for number, (cell, text) in enumerate(zip(code_cells(notebook), run(notebook), strict=True), 1):
        stream = {"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}
        cell |= {"execution_count": number, "outputs": [stream] if text else []}
    path.write_text(json.dumps(notebook, indent=1) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
