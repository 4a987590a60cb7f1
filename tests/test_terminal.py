"""Tables for the terminal: no number is cut, however narrow it is."""

import numpy as np
import pandas as pd
import pytest

from ivimbayes.contrasts import CONTRASTS
from ivimbayes.sessions import COMPARED
from ivimbayes.terminal import print_change, print_effects


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_tables_are_whole(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    row = {c: 0.123 for c in (*COMPARED, *CONTRASTS)} | {
        "roi": "left kidney, cortex", "parameter": "D_star", "unit": "1e-3 mm2/s", "finding": "undecided",
        "verdict": "converged", "effect": "group: patient - control",
    }  # fmt: skip
    table = pd.DataFrame([row, row | {"difference_low": -12.3, "difference_high": np.pi}])
    print_change(table, {})
    print_effects(table)
    out = capsys.readouterr().out
    assert "…" not in out
    for line in ("difference", "P(increase)", "finding", "undecided", "-12.3 to +3.14", "P(a > b)"):
        assert line in out
