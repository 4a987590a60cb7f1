from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from ivimbayes import read_tree, write_tree
from ivimbayes.io.atomic import replacing
from ivimbayes.io.netcdf import shorten


def test_round_trip_is_identical(short_fit: xr.DataTree, tmp_path: Path) -> None:
    path = tmp_path / "posterior.nc"
    write_tree(short_fit, path)
    back = read_tree(path)
    xr.testing.assert_identical(back, short_fit)
    write_tree(back, path)  # the file it came from can be replaced
    assert [p.name for p in tmp_path.iterdir()] == ["posterior.nc"]


def test_longer_names_may_join_what_was_read(tmp_path: Path) -> None:
    """As when a fit goes on from a region that was kept."""

    def region(name: str) -> xr.Dataset:
        return xr.Dataset({"D_roi": (("draw", "roi"), [[1e-3]])}, coords={"roi": [name]})

    path = tmp_path / "region.nc"
    write_tree(xr.DataTree.from_dict({"posterior": region("liver")}), path)
    joined = xr.concat([read_tree(path)["posterior"].to_dataset(), region("left kidney")], "roi")
    write_tree(xr.DataTree.from_dict({"posterior": joined}), path)
    assert read_tree(path)["posterior"]["roi"].values.tolist() == ["liver", "left kidney"]


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("ne")
        raise RuntimeError
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_shortening_is_small_and_keeps_special_values() -> None:
    values = np.exp(np.random.default_rng(17).normal(0, 10, 10_000))
    short = shorten(values)
    assert short.dtype == np.float32
    assert np.abs(short / values - 1).max() < 1.3e-4
    assert (shorten(short) == short).all()
    special = shorten(np.array([np.nan, np.inf, -np.inf, 0.0]))
    np.testing.assert_array_equal(special, [np.nan, np.inf, -np.inf, 0.0])


def test_unreadable_results_are_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    refused(lambda: read_tree(tmp_path / "none.nc"), "none.nc", "no such file")
    (tmp_path / "bad.nc").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    refused(lambda: read_tree(tmp_path / "bad.nc"), "bad.nc", "not a readable netCDF")
    xr.DataTree.from_dict({"other": xr.Dataset({"a": 1})}).to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    refused(lambda: read_tree(tmp_path / "other.nc"), "other.nc", "holds no posterior")
