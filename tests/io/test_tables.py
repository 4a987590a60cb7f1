"""Tables out: whole or not at all, and a word for what is missing."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ivimbayes.io.tables import read_table, write_table


def test_a_table_comes_back(tmp_path: Path) -> None:
    table = pd.DataFrame({"roi": ["liver", None], "f": [1 / 3, np.nan], "n": [12345678, 2]}, index=[7, 8])
    write_table(table, tmp_path / "t.tsv")
    assert (tmp_path / "t.tsv").read_bytes() == b"roi\tf\tn\nliver\t0.333333\t12345678\nn/a\tn/a\t2\n"
    found = read_table(tmp_path / "t.tsv", "", na_values=["n/a"])
    pd.testing.assert_frame_equal(found, table.reset_index(drop=True), rtol=1e-5, check_dtype=False)


def test_a_table_that_cannot_be_written_leaves_the_older_one(tmp_path: Path, monkeypatch: Any) -> None:
    def full(_: Any, path: Path, **__: Any) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    write_table(pd.DataFrame({"a": [1]}), tmp_path / "t.tsv")
    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(OSError, match=r"No space left.*t\.tsv"):
        write_table(pd.DataFrame({"a": [2]}), tmp_path / "t.tsv")
    assert (tmp_path / "t.tsv").read_text() == "a\n1\n"
    assert [p.name for p in tmp_path.iterdir()] == ["t.tsv"]


@pytest.mark.parametrize("text", ["a\tb\n1\t2\n\n1\t2\t3\n", "\n\na\tb\n1\t2\t3\n"])
def test_a_long_line_is_named(text: str, tmp_path: Path, refused: Any) -> None:
    (tmp_path / "t.tsv").write_text(text)
    refused(lambda: read_table(tmp_path / "t.tsv", "correct it"), "line 4 has more fields", "correct it")
