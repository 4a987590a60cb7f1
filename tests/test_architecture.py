"""The house: a module imports only from lower floors."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ivimbayes"
FLOORS = (
    {"errors", "digest"},
    {"images", "jit"},
    {
        "signals",
        "noise",
        "options",
        "tables",
        "correlation",
        "storage",
        "labels",
        "progress",
        "lanes",
        "bids_layout",
        "adaptive",
    },
    {
        "priors",
        "scans",
        "maps",
        "regions",
        "joined",
        "kernel_data",
        "likelihood",
        "triangles",
        "decays",
        "cohort_density",
    },
    {"protocol", "kernel_density", "kernel_weights"},
    {
        "modes",
        "precision",
        "least_squares",
        "simulate",
        "voxels",
        "stores",
        "relaxation",
        "kernel_modes",
        "kernel_averages",
        "kernel_summaries",
        "curve_density",
    },
    {"spec", "kernel_passes", "datasets", "curve_modes", "design", "study"},
    {"model", "density", "second", "kernel", "curve_kernel", "fits"},
    {"collect", "convergence", "prior_check", "curves", "interruption"},
    {"sampling"},
    {"summary", "calibration"},
    {
        "figures",
        "methods",
        "slices",
        "terminal",
        "sensitivity",
        "compare",
        "populations",
        "sessions",
        "estimates",
    },
    {"cohort", "blocks", "plots", "protocol_plots", "density_plots", "map_plots", "check_plots"},
    {"running", "report", "joint", "contrasts"},
    {"voxelwise", "workers", "bids_results", "cohort_plots"},
    {"folders", "osipi", "bids"},
    {"cli_bids", "cli_calibrate", "cli_cohort", "cli_protocol", "cli_sessions"},
    {"cli"},
)


def imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module]
    names += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    return {name.split(".")[1] for name in names if name.startswith("ivimbayes.")}


def modules() -> dict[str, Path]:
    return {p.stem: p for p in PACKAGE.glob("*.py") if not p.stem.startswith("__")}


def test_every_module_has_a_floor() -> None:
    assert set(modules()) == set().union(*FLOORS)


@pytest.mark.parametrize("name", sorted(set().union(*FLOORS)))
def test_imports_come_from_lower_floors(name: str) -> None:
    floor = next(i for i, names in enumerate(FLOORS) if name in names)
    lower = set().union(*FLOORS[:floor])
    assert imported(modules()[name]) <= lower


def test_docs_show_every_module() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    for name in modules():
        assert f"`{name}.py`" in page
