"""Stored work and machine code are used again by the same code alone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ivimbayes

PACKAGE = Path(ivimbayes.__file__).parent


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the package, with compiled code of its own."""
    shutil.copytree(PACKAGE, tmp_path / "ivimbayes", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def said(folder: Path, code: str) -> str:
    """What a new process that imports the copy prints."""
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("NUMBA_CACHE_DIR", None)
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True, cwd=folder
    ).stdout


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1
    path.write_text(text.replace(before, after), encoding="utf-8")


def test_callers_are_compiled_again_when_a_callee_changes(copied: Path) -> None:
    code = """
import numpy as np
from ivimbayes.voxelwise.weights import normalise
import ivimbayes.io.digest
w = np.empty(2)
normalise(2, np.array([0.0, -1.0]), w)
print(round(w[1], 3), sum(normalise.stats.cache_hits.values()))
"""
    assert said(copied, code).split() == ["0.368", "0"]
    assert said(copied, code).split() == ["0.368", "1"]
    edit(
        copied / "ivimbayes" / "numerics" / "arithmetic.py",
        "    x = min(max(x, -EXP_RANGE), EXP_RANGE)\n    rounded",
        "    x = 2.0 * min(max(x, -EXP_RANGE), EXP_RANGE)\n    rounded",
    )
    assert said(copied, code).split() == ["0.135", "0"]


def test_machine_code_that_names_a_class_that_is_gone_is_passed_over(copied: Path) -> None:
    code = """
import numpy as np
from ivimbayes.numerics.signals import Form, make_shape
print(make_shape(Form(1, 2, 0), 4, 2, 8).rate.shape, sum(make_shape.stats.cache_hits.values()))
"""
    assert said(copied, code).split() == ["(2,", "8)", "0"]
    path = copied / "ivimbayes" / "numerics" / "signals.py"
    path.write_text(path.read_text(encoding="utf-8").replace("Form", "Shapes"), encoding="utf-8")
    assert said(copied, code.replace("Form", "Shapes")).split() == ["(2,", "8)", "0"]


@pytest.mark.parametrize("name", ["numerics/arithmetic.py", "models/spec.py", "errors.py"])
def test_the_digest_of_the_code_covers_every_file(copied: Path, name: str) -> None:
    code = "from ivimbayes.io.digest import code_digest; print(code_digest())"
    before = said(copied, code)
    assert said(copied, code) == before
    path = copied / "ivimbayes" / name
    path.write_text(path.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    after = said(copied, code)
    assert after != before
    (copied / "ivimbayes" / "maps" / "new").mkdir()
    (copied / "ivimbayes" / "maps" / "new" / "file.py").write_text("")
    assert said(copied, code) not in (before, after)


def test_the_digest_knows_the_releases_of_what_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    from ivimbayes.io import digest

    before = digest.code_digest()
    digest.code_digest.cache_clear()
    monkeypatch.setattr(digest, "version", lambda _: "0")
    try:
        assert digest.code_digest() != before
    finally:
        digest.code_digest.cache_clear()
