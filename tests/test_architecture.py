"""The wings: imports go one way only, and the architecture page names them all."""

import ast
from pathlib import Path

import pytest

import ivimbayes

PACKAGE = Path(ivimbayes.__file__).parent
# From the ground up; wings on one line do not import each other.
ORDER = (
    {"errors"},
    {"io", "parallel"},
    {"progress"},
    {"models"},
    {"numerics"},
    {"simulation", "voxelwise"},
    {"curves", "protocol", "datasets"},
    {"fitting", "least_squares"},
    {"results"},
    {"maps", "checks", "cohorts"},
    {"plotting", "osipi"},
    {"reporting"},
    {"bids"},
    {"cli"},
)
WINGS = sorted(set().union(*ORDER))


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, as dotted names below the package."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module]
    names += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    return {name.removeprefix("ivimbayes.") for name in names if name.startswith("ivimbayes.")}


def files() -> dict[str, Path]:
    """Modules by their dotted name below the package."""
    found = [p for p in PACKAGE.rglob("*.py") if not p.name.startswith("__")]
    return {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in found}


def test_every_file_is_in_a_wing() -> None:
    assert {name.split(".")[0] for name in files()} == set(WINGS)


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_imports_from_lower_wings_only(wing: str) -> None:
    place = next(i for i, names in enumerate(ORDER) if wing in names)
    allowed = {wing}.union(*ORDER[:place])
    for name, path in files().items():
        if name.split(".")[0] == wing:
            assert {module.split(".")[0] for module in imports(path)} <= allowed, name


def test_no_files_import_each_other_in_a_circle() -> None:
    left = {name: imports(path) for name, path in files().items()}
    while left:
        free = {name for name, needed in left.items() if not needed & set(left)}
        assert free, f"a circle among {sorted(left)}"
        left = {name: needed for name, needed in left.items() if name not in free}


def test_the_architecture_page_has_a_line_for_every_wing() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    for wing in WINGS:
        name = f"`{wing}.py`" if (PACKAGE / f"{wing}.py").is_file() else f"`{wing}/`"
        assert f"| {name} |" in page


@pytest.mark.parametrize("wing", [wing for wing in WINGS if (PACKAGE / wing).is_dir()])
def test_a_wing_says_in_one_line_what_belongs_there(wing: str) -> None:
    tree = ast.parse((PACKAGE / wing / "__init__.py").read_text(encoding="utf-8"))
    text = ast.get_docstring(tree)
    assert text
    assert len(text.splitlines()) == 1
    assert len(tree.body) == 1
