"""Notebooks are committed without outputs; the documentation's build runs them from a clean kernel."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def leftovers(notebook: dict[str, object]) -> list[int]:
    """Cells that hold an output or a count."""
    cells = notebook["cells"]
    assert isinstance(cells, list)
    return [
        n for n, cell in enumerate(cells) if cell.get("outputs") or cell.get("execution_count") is not None
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs_are_committed(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert leftovers(notebook) == []
    assert 8 <= len(notebook["cells"]) <= 24


def test_outputs_are_found() -> None:
    assert len(NOTEBOOKS) == 7
    cells = [{"outputs": []}, {"outputs": [{}]}, {"execution_count": 3}]
    assert leftovers({"cells": cells}) == [1, 2]
