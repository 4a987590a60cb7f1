from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr

from ivimbayes import choose_voxels, simulate

B = [0, 20, 50, 100, 300, 600]


@pytest.fixture(scope="module")
def scan() -> xr.Dataset:
    made, _ = simulate(B, 50, voxels=300, regions=2, seed=4)
    return made


def test_all_voxels(scan: xr.Dataset) -> None:
    chosen = choose_voxels(scan, voxels_per_roi=None)
    assert list(chosen) == ["region-1", "region-2"]
    for y, region in enumerate(chosen.values()):
        np.testing.assert_allclose(region["signal"], scan["signal"].values[:, y, 0])
        assert region.attrs["available"] == 300
        assert (region["y"] == y).all()


def test_sample_is_stratified_and_seeded(scan: xr.Dataset) -> None:
    chosen = choose_voxels(scan, voxels_per_roi=60, seed=1)["region-1"]
    x = chosen["x"].values.astype(int)
    assert np.array_equal(x // 5, np.arange(60))  # one of every five consecutive voxels
    assert len(set(x % 5)) > 1
    np.testing.assert_allclose(chosen["signal"], scan["signal"].values[x, 0, 0])
    assert choose_voxels(scan, voxels_per_roi=60, seed=1)["region-1"].identical(chosen)
    assert not np.array_equal(choose_voxels(scan, voxels_per_roi=60, seed=2)["region-1"]["x"], chosen["x"])


@pytest.mark.parametrize("limit", [200, 201, 299])
def test_no_voxel_is_drawn_twice(scan: xr.Dataset, limit: int) -> None:
    for seed in range(20):
        x = choose_voxels(scan, voxels_per_roi=limit, seed=seed)["region-2"]["x"].values
        assert len(set(x)) == limit


def test_real_valued_signals_may_be_negative(scan: xr.Dataset) -> None:
    real = scan.copy(deep=True)
    real["signal"][0, 0, 0, 5] = -3.0
    assert choose_voxels(real, voxels_per_roi=None)["region-1"].attrs["left_out"] == 0


def test_sampled_blocks_keep_their_averages(scan: xr.Dataset) -> None:
    chosen = choose_voxels(scan, downsample=(7, 1, 1), voxels_per_roi=10)["region-1"]
    for v in range(10):
        first = int(chosen["x"][v]) // 7 * 7
        np.testing.assert_allclose(
            chosen["signal"][v], scan["signal"].values[first : first + 7, 0, 0].mean(axis=0)
        )


def test_blocks_are_averaged(scan: xr.Dataset) -> None:
    chosen = choose_voxels(scan, downsample=(7, 1, 1))["region-2"]
    assert chosen.sizes["voxel"] == 43
    np.testing.assert_allclose(chosen["signal"][0], scan["signal"].values[:7, 1, 0].mean(axis=0))
    np.testing.assert_allclose(chosen["averages"][:, 0], [1.0] * 42 + [6 / 7])
    np.testing.assert_allclose(chosen["x"][:2], [3, 10])
    assert choose_voxels(scan, downsample=2)["region-2"].sizes["voxel"] == 150


def test_mean_curve(scan: xr.Dataset) -> None:
    chosen = choose_voxels(scan, level="mean")["region-1"]
    np.testing.assert_allclose(chosen["signal"], scan["signal"].values[:, 0].mean(axis=0))
    assert chosen.attrs["level"] == "mean"
    assert chosen.attrs["available"] == 300


def test_few_voxels_fall_back_to_the_mean() -> None:
    scan, _ = simulate(B, 50, voxels=4, seed=1)
    assert choose_voxels(scan)["region-1"].attrs["level"] == "mean"
    scan, _ = simulate(B, 50, voxels=5, seed=1)
    assert choose_voxels(scan)["region-1"].attrs["level"] == "voxel"


def test_bad_signals_are_left_out_and_counted(scan: xr.Dataset, refused: Callable[..., str]) -> None:
    bad = scan.copy(deep=True)
    bad.attrs["real_valued"] = 0
    for x, value in enumerate((np.nan, np.inf, -np.inf, 0.0, -1.0)):
        bad["signal"][x, 0, 0, x] = value
    chosen = choose_voxels(bad, voxels_per_roi=None)
    assert chosen["region-1"].attrs["left_out"] == 5
    assert chosen["region-1"]["x"].min() == 5
    assert chosen["region-2"].attrs["left_out"] == 0
    bad["signal"][:, 1] = 0
    refused(lambda: choose_voxels(bad), "'region-2'", "no voxel with usable signals")


def test_options_are_checked(scan: xr.Dataset, refused: Callable[..., str]) -> None:
    refused(lambda: choose_voxels(scan, level="roi"), "level 'roi'", "voxel, mean")
    refused(lambda: choose_voxels(scan, voxels_per_roi=4), "voxels_per_roi 4", "mean curve")
    refused(lambda: choose_voxels(scan, downsample=0), "downsample 0")
    refused(lambda: choose_voxels(scan, downsample=(2, 2)), "downsample (2, 2)")
