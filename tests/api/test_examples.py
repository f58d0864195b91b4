"""The notebooks run from top to bottom."""

import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", [path.name for path in sorted(EXAMPLES.glob("*.ipynb"))])
def test_notebook(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    book = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))
    assert book["nbformat"] == 4
    namespace: dict[str, object] = {}
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}, {cell['id']}", "exec"), namespace)
    assert "SQNR" in capsys.readouterr().out
