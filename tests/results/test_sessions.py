"""Two fits compared: differences, practical equivalence, repeatability, and what cannot be compared."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy.stats import norm
from typer.testing import CliRunner

import ivimbayes as ib
from ivimbayes.cli.main import app


def moved(tree: xr.DataTree, roi: str, factors: dict[str, float], seed: int = 0) -> xr.DataTree:
    """The same fit with its draws in another order, and the values of a region times a factor."""
    rng, posterior = np.random.default_rng(seed), tree["posterior"].to_dataset().copy(deep=True)
    for name in ("f", "D", "D_star"):
        values = posterior[f"{name}_roi"].values
        flat = values.reshape(-1, values.shape[-1])
        values = flat[rng.permutation(len(flat))].reshape(values.shape)
        at = list(posterior["roi"].values).index(roi)
        values[..., at] *= factors.get(name, 1.0)
        posterior[f"{name}_roi"] = (posterior[f"{name}_roi"].dims, values)
    groups = {str(k): v.to_dataset() for k, v in tree.children.items() if k != "posterior"}
    made = xr.DataTree.from_dict({**groups, "posterior": posterior})
    made.attrs |= tree.attrs
    return made


def test_a_change_is_found_and_no_other(short_fit: xr.DataTree) -> None:
    after = moved(short_fit, "liver", {"f": 1.6, "D": 0.7})
    change = ib.compare_fits(short_fit, after)
    table = change.table.set_index(["roi", "parameter"])
    assert table.loc[("liver", "f"), "finding"] == "increased"
    assert table.loc[("liver", "D"), "finding"] == "decreased"
    assert (table.drop(index=[("liver", "f"), ("liver", "D")])["finding"] == "undecided").all()
    assert table.loc[("liver", "f"), "ratio"] == pytest.approx(1.6, rel=0.03)
    before = short_fit["posterior"]["D_roi"].sel(roi="liver")
    assert table.loc[("liver", "D"), "difference"] == pytest.approx(-300 * float(before.median()), rel=0.1)
    assert "f increased (probability" in change.sentences["liver"]
    assert "D decreased" in change.sentences["liver"]
    assert change.draws["D"].attrs["units"] == "mm2/s"


def test_numbers_are_those_of_independent_normals() -> None:
    """Difference of Normal(1, 0.1) and Normal(1.2, 0.1): exact probabilities, within Monte-Carlo error."""
    rng = np.random.default_rng(0)
    trees = []
    for centre in (1.0, 1.2):
        draws = 1e-3 * rng.normal(centre, 0.1, (4, 2000, 1))
        dims = ("chain", "draw", "roi")
        posterior = xr.Dataset({"D_roi": (dims, draws)}, coords={"roi": ["gel"]})
        trees.append(xr.DataTree.from_dict({"posterior": posterior}))
    from ivimbayes.results.sessions import _paired, change_row

    one, two = _paired(trees[0], trees[1], "D", "gel", np.random.default_rng(1))
    row = change_row("gel", "D", one, two, (0.1e-3, False))
    sd = 0.1 * np.sqrt(2)
    assert row["p_increase"] == pytest.approx(norm.cdf(0.2 / sd), abs=0.01)
    assert row["p_above"] == pytest.approx(norm.sf((0.1 - 0.2) / sd), abs=0.02)
    assert row["p_equivalent"] == pytest.approx(
        norm.cdf((0.1 - 0.2) / sd) - norm.cdf((-0.1 - 0.2) / sd), abs=0.02
    )
    assert row["difference_high"] - row["difference_low"] == pytest.approx(2 * 1.96 * sd, rel=0.04)
    relative = change_row("gel", "D", one, two, (0.1, True))
    assert relative["p_equivalent"] == pytest.approx(row["p_equivalent"], abs=0.02)
    assert relative["rope"] == pytest.approx(0.1, rel=0.02)


def test_draws_of_one_seed_are_not_paired(short_fit: xr.DataTree) -> None:
    """A fit against itself: paired draws would give a difference of 0, independent ones a spread."""
    change = ib.compare_fits(short_fit, short_fit)
    sd = float(short_fit["posterior"]["D_roi"].sel(roi="liver").std())
    assert float(change.draws["D"].sel(roi="liver").std()) == pytest.approx(np.sqrt(2) * sd, rel=0.15)


def test_practical_equivalence(short_fit: xr.DataTree) -> None:
    after = moved(short_fit, "liver", {"D": 1.3})
    table = ib.compare_fits(short_fit, after, rope={"D": "90 %", "f": 0.9}).table.set_index(
        ["roi", "parameter"]
    )
    assert table.loc[("liver", "D"), "finding"] == "equivalent"
    assert table.loc[("liver", "f"), "finding"] == "equivalent"
    assert np.isnan(table.loc[("liver", "D_star"), "rope"])
    narrow = ib.compare_fits(short_fit, after, rope={"D": "1 %"})
    assert narrow.table.set_index(["roi", "parameter"]).loc[("liver", "D"), "finding"] == "increased"
    assert "by more than" in narrow.sentences["liver"]


def test_repeatability_and_its_use(short_fit: xr.DataTree) -> None:
    pairs = [(short_fit, moved(short_fit, "liver", {"D": factor})) for factor in (1.1, 0.9, 1.1, 0.9)]
    table = ib.repeatability(pairs)
    one = table.set_index(["roi", "parameter"]).loc[("liver", "D")]
    median = 1e3 * float(short_fit["posterior"]["D_roi"].sel(roi="liver").median())
    assert one["wsd"] == pytest.approx(0.1 * median / np.sqrt(2), rel=0.02)
    assert one["rc"] == pytest.approx(1.96 * 0.1 * median, rel=0.02)
    assert one["rc_low"] < one["rc"] < one["rc_high"]
    assert one["pairs"] == 4
    change = ib.compare_fits(short_fit, moved(short_fit, "liver", {"D": 3.0}), rope=table)
    found = change.table.set_index(["roi", "parameter"]).loc[("liver", "D")]
    assert found["rope"] == pytest.approx(one["rc"], rel=1e-6)
    assert found["finding"] == "increased"


def test_what_cannot_be_compared_is_refused(short_fit: xr.DataTree, refused: Callable[..., str]) -> None:
    other = moved(short_fit, "liver", {})
    other.attrs["spec"] = ib.ModelSpec("monoexponential").to_json()
    refused(lambda: ib.compare_fits(short_fit, other), "monoexponential", "biexponential")
    fewer = moved(short_fit, "liver", {})
    fewer["posterior"] = xr.DataTree(fewer["posterior"].to_dataset().sel(roi=["liver"]))
    refused(lambda: ib.compare_fits(short_fit, fewer), "regions", "kidney")
    refused(lambda: ib.compare_fits(short_fit, xr.DataTree()), "after: not a fit")
    refused(lambda: ib.repeatability([(short_fit, short_fit)]), "1 pairs")
    for rope, words in (
        ({"tau": 1.0}, ("'tau'", "f, D, D_star")),
        ({"D": "ten %"}, ("D=ten %",)),
        ({"D": "10"}, ("D=10",)),
        ({"D": -1.0}, ("D=-1",)),
    ):
        refused(lambda rope=rope: ib.compare_fits(short_fit, short_fit, rope=rope), *words)
    table = ib.repeatability([(short_fit, short_fit)] * 2)
    refused(lambda: ib.compare_fits(short_fit, short_fit, rope=table[table["roi"] == "liver"]), "'kidney'")
    refused(lambda: ib.compare_fits(short_fit, short_fit, rope=table[["roi"]]), "columns")


@pytest.fixture
def folders(short_fit: xr.DataTree, short_file: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two fits of different data, as ivimbayes fit leaves them."""
    after = moved(short_fit, "liver", {"f": 1.6})
    observed = after["observed_data"].to_dataset()
    after["observed_data"] = xr.DataTree(observed * 1.01)
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
    shutil.copy(short_file, tmp_path / "before")
    ib.write_tree(after, tmp_path / "after" / "posterior.nc")
    return tmp_path / "before", tmp_path / "after"


def test_command_compares_sessions(folders: tuple[Path, Path], tmp_path: Path) -> None:
    before, after = map(str, folders)
    out = tmp_path / "change.tsv"
    done = CliRunner().invoke(
        app, ["compare", before, after, "--sessions", "--rope", "D=5%", "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    assert "f increased" in done.output.replace("\n", " ")
    assert out.read_text().startswith("roi\tparameter\tunit\tbefore\tafter\tdifference")


def test_command_says_what_fits_of_other_data_are(folders: tuple[Path, Path]) -> None:
    before, after = map(str, folders)
    done = CliRunner().invoke(app, ["compare", before, after])
    assert isinstance(done.exception, ib.InputError)
    assert "--sessions" in str(done.exception)
    for words, says in (
        ([before, after, "--rope", "D=5%"], "--rope"),
        ([before, after, before, "--sessions"], "two"),
        ([before, after, "--sessions", "--rope", "D"], "--rope D"),
    ):
        done = CliRunner().invoke(app, ["compare", *words])
        assert isinstance(done.exception, ib.InputError), done.output
        assert says in str(done.exception)
