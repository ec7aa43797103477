"""Files and functions of the package stay short enough to be read in one go."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "redimnet_jax"
FILE_LINES = 400
FUNCTION_LINES = 60


def long_functions(source: str) -> dict[str, int]:
    """Return the lines of every function in `source` with more than `FUNCTION_LINES`, its docstring not counted."""
    lengths = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            start = node.body[0].end_lineno if ast.get_docstring(node, clean=False) is not None else node.lineno
            length = node.end_lineno - start
            if length > FUNCTION_LINES:
                lengths[node.name] = length
    return lengths


@pytest.mark.parametrize("name", sorted(str(p.relative_to(PACKAGE)) for p in PACKAGE.rglob("*.py")))
def test_file_and_functions_are_short(name):
    source = (PACKAGE / name).read_text()
    assert source.count("\n") <= FILE_LINES
    assert long_functions(source) == {}


def test_a_long_function_is_found():
    lines = ["def long():", '    """Say', '    little."""', *["    x = 1"] * (FUNCTION_LINES + 1)]
    assert long_functions("\n".join(lines)) == {"long": FUNCTION_LINES + 1}
    assert long_functions("\n".join(lines[:-1])) == {}
