from collections.abc import Callable

import matplotlib
import pytest
import xarray as xr

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402

from ivimbayes import plot_decay, plot_regions  # noqa: E402


@pytest.fixture(autouse=True)
def closed() -> object:
    yield
    plt.close("all")


def test_decay_shows_data_and_parts(short_fit: xr.DataTree, refused: Callable[..., str]) -> None:
    ax = plot_decay(short_fit, "kidney")
    labels = ax.get_legend_handles_labels()[1]
    assert labels == ["a voxel's measurement", "region", "tissue part", "vascular part", "mean measured"]
    assert ax.get_xlabel() == "b (s/mm²)"
    assert len(ax.lines[-1].get_xdata()) == 16
    refused(lambda: plot_decay(short_fit, "spleen"), "no region 'spleen'", "liver, kidney, pancreas")


def test_regions_show_their_intervals(
    short_fit: xr.DataTree, phantom_scan: tuple[xr.Dataset, xr.Dataset]
) -> None:
    axes = plot_regions(short_fit, phantom_scan[1])
    assert [ax.get_xlabel() for ax in axes] == ["f", "D (10⁻³ mm²/s)", "D* (10⁻³ mm²/s)"]
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ["liver", "kidney", "pancreas"]
    truth = axes[1].lines[1].get_xdata()
    assert truth == pytest.approx([1.1, 2.0, 1.35])


def test_defaults_are_untouched() -> None:
    assert matplotlib.rcParams["axes.grid"] == matplotlib.rcParamsDefault["axes.grid"]
