"""Tables for the terminal: no number is cut, however narrow it is."""

import numpy as np
import pandas as pd
import pytest

from ivimbayes.cli.terminal import print_change, print_effects
from ivimbayes.cohorts.contrasts import CONTRASTS
from ivimbayes.progress import FitProgress
from ivimbayes.results.sessions import COMPARED


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


@pytest.mark.parametrize("count", [3, 30])
def test_bars_of_few_regions_and_of_many(count: int) -> None:
    """Few have a bar each; of many only those at work have one, below one that counts regions."""
    names = [f"parcel {k}" for k in range(count)]
    bars = FitProgress(names, 100, False)
    for name in names[:2]:
        bars.begin(name, 100)
    bars.done(names[0])
    shown = {task.description: task for task in bars.progress.tasks if task.visible}
    if count == 3:
        assert list(shown) == names
    else:
        assert list(shown) == ["regions", names[1]]
        assert (shown["regions"].completed, shown["regions"].total) == (1, 30)
