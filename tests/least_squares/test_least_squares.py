"""Least squares: the truth without noise, SciPy's optimum with it, errors that match the spread of repeats."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from conftest import Case, Command
from scipy.optimize import least_squares
from truth import TISSUES, make_scan

from ivimbayes import fit_full, fit_segmented, predict, write_maps
from ivimbayes.least_squares.maps import describe_regions
from ivimbayes.least_squares.solver import STATUS
from ivimbayes.maps.files import ERRORS
from ivimbayes.voxelwise.status import MAPPED

B = np.array([0, 10, 20, 40, 80, 110, 140, 170, 200, 300, 400, 500, 600, 700, 800], float)
TAIL_LEFT = {"brain", "white matter, Spinner", "grey matter, Spinner", "pancreas, XCAT"}  # at b = 200
TRUTH = {
    "f": np.array([f for _, f, _ in TISSUES.values()]),
    "D": np.array([1e-3 * D for D, _, _ in TISSUES.values()]),
    "D_star": np.array([1e-3 * s for _, _, s in TISSUES.values()]),
}
Fit = Callable[..., xr.Dataset]


def refined(scan: xr.Dataset, **options: Any) -> xr.Dataset:
    return fit_segmented(scan, refine=True, **options)


FITS: dict[str, Fit] = {"segmented": fit_segmented, "refined": refined, "full": fit_full}


def scan_of(signal: np.ndarray, b: Any = B, averages: Any = None, real_valued: bool = True) -> xr.Dataset:
    """Scan with a voxel for each row of signals."""
    return make_scan(
        np.asarray(signal, float)[:, None], np.ones((len(signal), 1)), b, ["all"], averages, real_valued
    )


def curves(b: Any = B, S0: float = 250.0, **values: Any) -> np.ndarray:
    truth = values or TRUTH
    f, D, D_star = (np.atleast_1d(truth[p])[:, None] for p in ("f", "D", "D_star"))
    return np.asarray(predict(np.asarray(b, float), S0, f=f, D=D, D_star=D_star))


def flat(made: xr.Dataset, name: str) -> np.ndarray:
    return made[name].values.ravel()


def run(fit: Fit, *args: Any, **options: Any) -> xr.Dataset:
    return fit(scan_of(*args), progress=False, **options)


@pytest.mark.parametrize("name", ["refined", "full"])
def test_truth_without_noise(name: str) -> None:
    made = run(FITS[name], curves())
    assert (flat(made, "status") == STATUS["ok"]).all()
    for p, true in TRUTH.items():
        np.testing.assert_allclose(flat(made, p), true, rtol=1e-5, err_msg=p)
    np.testing.assert_allclose(flat(made, "S0"), 250, rtol=1e-5)


def test_one_pass_is_off_where_a_tail_is_left() -> None:
    made = run(fit_segmented, curves())
    error = {p: np.abs(flat(made, p) / true - 1) for p, true in TRUTH.items()}
    missed = (error["f"] > 0.01) | (error["D"] > 0.01) | (error["D_star"] > 0.05)
    assert {tissue for tissue, miss in zip(TISSUES, missed, strict=True) if miss} == TAIL_LEFT
    for i, tissue in enumerate(TISSUES):
        if tissue in TAIL_LEFT:
            assert flat(made, "f")[i] < TRUTH["f"][i]
            assert flat(made, "D")[i] > TRUTH["D"][i]


@pytest.mark.parametrize("snr", [15, 40])
def test_full_is_as_good_as_scipy(snr: int) -> None:
    rng = np.random.default_rng(snr)
    averages = np.where(B > 300, 3.0, 1.0)
    signal = np.repeat(curves(S0=1.0), 4, axis=0)
    signal = signal + rng.normal(0, 1 / snr, signal.shape) / np.sqrt(averages)
    made = run(fit_full, signal, B, averages)
    start = run(fit_segmented, signal, B, averages)
    low, high = [0, 0, 0, 0], [np.inf, 1, 4, 500]  # D and D* in 1e-3 mm2/s
    ours, theirs = [], []
    for v in np.flatnonzero(np.isin(flat(made, "status"), (STATUS["ok"], STATUS["at_bound"]))):

        def residual(x: np.ndarray, y: np.ndarray = signal[v]) -> np.ndarray:
            slow, fast = np.exp(-1e-3 * B * x[2]), np.exp(-1e-3 * B * x[3])
            return np.sqrt(averages) * (x[0] * (x[1] * fast + (1 - x[1]) * slow) - y)

        scale = np.array([1, 1, 1e3, 1e3])
        mine = scale * [flat(made, p)[v] for p in ("S0", "f", "D", "D_star")]
        first = scale * [flat(start, p)[v] for p in ("S0", "f", "D", "D_star")]
        first = np.clip(
            np.where(np.isfinite(first), first, [1, 0.1, 1, 30]),
            [1e-3, 1e-3, 1e-3, 1e-3],
            [9, 0.999, 3.999, 499],
        )
        other = least_squares(
            residual, first, bounds=(low, high), xtol=1e-12, ftol=1e-12, gtol=1e-12, x_scale="jac"
        )
        if other.x[3] > other.x[2]:
            ours.append((residual(mine) ** 2).sum())
            theirs.append(2 * other.cost)
    ratio = np.array(ours) / np.array(theirs)
    assert len(ratio) > 60
    assert (ratio <= 1 + 1e-8).mean() >= 0.99


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("wrong", [1.0, 0.7])
def test_errors_match_the_spread_of_repeats(name: str, wrong: float) -> None:
    """The negative control shrinks the noise of what the errors are computed from."""
    rng = np.random.default_rng(5)
    b = np.concatenate([[0], B])
    averages = np.where(b > 400, 4.0, np.where(b > 200, 2.0, 1.0))
    clean = curves(b, S0=100.0, f=0.15, D=1.3e-3, D_star=18e-3)
    noise = rng.normal(0, 0.6, (4000, len(b))) / np.sqrt(averages)
    made = run(FITS[name], clean + noise, b, averages)
    said = run(FITS[name], clean + wrong * noise, b, averages)
    assert (flat(made, "status") == STATUS["ok"]).all()
    for p in MAPPED:
        ratio = flat(made, p).std() / np.median(flat(said, f"{p}_se"))
        assert (0.88 < ratio < 1.12) == (wrong == 1.0), (p, ratio)


@pytest.mark.parametrize("name", FITS)
def test_averages_weigh_as_repeats(name: str) -> None:
    rng = np.random.default_rng(2)
    signal = curves() + rng.normal(0, 4, (len(TISSUES), len(B)))
    count = rng.integers(1, 4, len(B))
    repeats = np.repeat(np.arange(len(B)), count)
    averaged, repeated = run(FITS[name], signal, B, count), run(FITS[name], signal[:, repeats], B[repeats])
    np.testing.assert_array_equal(averaged["status"], repeated["status"])
    degrees = np.sqrt((count.sum() - 4) / (len(B) - 4))
    for p in MAPPED:
        np.testing.assert_allclose(averaged[p], repeated[p], rtol=1e-6)
        ok = flat(averaged, "status") == STATUS["ok"]
        np.testing.assert_allclose(
            flat(averaged, f"{p}_se")[ok], degrees * flat(repeated, f"{p}_se")[ok], rtol=1e-4
        )


@pytest.mark.parametrize("name", FITS)
def test_bounds_and_order(name: str) -> None:
    rng = np.random.default_rng(3)
    signal = np.repeat(curves(), 20, axis=0)
    signal = signal + rng.normal(0, 12, signal.shape)
    bounds = {"f": (0.02, 0.3), "D": (0.5e-3, 2e-3), "D_star": (5e-3, 0.1)}
    for given in (None, bounds, {"D_star": (1e-3, 5e-3)}):
        made = run(FITS[name], signal, bounds=given)
        limits = {"f": (0, 1), "D": (0, 4e-3), "D_star": (0, 0.5)} | (given or {})
        ok = flat(made, "status") == STATUS["ok"]
        at_bound = flat(made, "status") == STATUS["at_bound"]
        assert ok.any()
        assert at_bound.any()
        held = np.zeros(len(ok), bool)
        for p, (low, high) in limits.items():
            value, error = flat(made, p), flat(made, f"{p}_se")
            seen = np.isfinite(value)
            assert ((low <= value[seen]) & (value[seen] <= high)).all()
            assert (np.isfinite(value) & (error > 0))[ok].all()
            held |= np.isnan(error) & seen
        assert held[at_bound].all()
        both = np.isfinite(flat(made, "D_star")) & np.isfinite(flat(made, "D"))
        assert (flat(made, "D_star") > flat(made, "D"))[both].all()
        assert json.loads(made.attrs["bounds"])["D_star"] == list(limits["D_star"])


def test_what_is_not_identified_is_nan() -> None:
    lone, fluid = 100 * np.exp(-B * 1e-3), 100 * np.exp(-B * 20e-3)
    for fit in FITS.values():
        made = run(fit, np.stack([lone, fluid, -lone]))
        f, D, D_star, S0 = (flat(made, p) for p in ("f", "D", "D_star", "S0"))
        assert (flat(made, "status") == STATUS["not_identified"])[[0, 2]].all()
        np.testing.assert_allclose([f[0], D[0], S0[0]], [0, 1e-3, 100], rtol=1e-8)
        assert np.isnan([D_star[0], flat(made, "f_se")[0], f[2], D[2], D_star[2]]).all()
        assert S0[2] == 0
    made = run(fit_full, np.stack([lone, fluid]))
    np.testing.assert_allclose([flat(made, p)[1] for p in ("f", "D_star", "S0")], [1, 20e-3, 100], rtol=1e-8)
    assert np.isnan(flat(made, "D")[1])
    assert flat(made, "status")[1] == STATUS["not_identified"]
    b = [0, 300, 400, 600, 800]  # D* has no signal where it could be seen
    rng = np.random.default_rng(0)
    made = run(
        fit_full,
        curves(b, f=np.full(50, 0.2), D=np.full(50, 1e-3), D_star=np.full(50, 0.1))
        + rng.normal(0, 1, (50, 5)),
        b,
    )
    lost = np.isnan(flat(made, "D_star"))
    assert lost.mean() > 0.4
    assert (flat(made, "status")[lost] == STATUS["not_identified"]).all()
    np.testing.assert_allclose(np.median(flat(made, "f")[lost]), 0.2, atol=0.05)


def test_no_error_without_degrees_of_freedom() -> None:
    b = [0, 50, 300, 800]
    made = run(fit_full, curves(b), b)
    np.testing.assert_allclose(flat(made, "f"), TRUTH["f"], rtol=1e-3)
    assert all(np.isnan(made[name]).all() for name in ERRORS)


def test_every_status_and_what_is_there() -> None:
    rng = np.random.default_rng(1)
    signal = np.repeat(curves(), 60, axis=0)
    signal = np.abs(signal + rng.normal(0, 12, signal.shape))
    signal[0, 3], signal[1, 3], signal[2, 3], signal[3] = np.nan, np.inf, -1, 0
    scan = scan_of(signal, real_valued=False)
    scan["roi"][-5:] = 0
    made = refined(scan, progress=False)
    status = flat(made, "status")
    assert set(status) == set(STATUS.values())
    assert (status[:4] == STATUS["bad_signal"]).all()
    assert (status[-5:] == STATUS["outside"]).all()
    silent = np.isin(status, [STATUS[s] for s in ("outside", "not_converged", "bad_signal")])
    for name in (*MAPPED, *ERRORS):
        assert np.isnan(flat(made, name)[silent]).all()
        assert np.isfinite(flat(made, name)[status == STATUS["ok"]]).all()
        assert made[name].dtype == float
        assert made[name].attrs["units"]
        assert made[name].attrs["long_name"]
    assert made["status"].attrs["flag_meanings"].split() == list(STATUS)
    scan.attrs["real_valued"] = 1
    assert (flat(refined(scan, progress=False), "status")[:4] != STATUS["bad_signal"]).tolist() == [
        False,
        False,
        True,
        False,
    ]
    table = describe_regions(made, scan)
    assert table["voxels"].tolist() == [len(status) - 5]
    assert table[[s for s in STATUS if s != "outside"]].to_numpy().sum() == len(status) - 5
    assert table["D"][0] == np.nanmedian(flat(made, "D"))


@pytest.mark.parametrize("name", FITS)
def test_cores_change_nothing(
    name: str, phantom_scan: tuple[xr.Dataset, xr.Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = phantom_scan[0]
    one = FITS[name](scan, cores=1, progress=False)
    monkeypatch.setattr("ivimbayes.least_squares.maps.CHUNK", 100)
    monkeypatch.setattr("ivimbayes.least_squares.maps.SLAB_BYTES", 1)
    two = FITS[name](scan.transpose("measurement", "z", "y", "x", ...), cores=2, progress=False)
    for variable in one.data_vars:
        assert one[variable].values.tobytes() == two[variable].values.tobytes()
    assert ((one["status"] == STATUS["outside"]) == (scan["roi"] == 0)).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": np.nan}, ("threshold nan", "s/mm2")), ({"threshold": np.inf}, ("threshold inf",)),
        ({"threshold": 700}, ("threshold 700: 1 distinct b values above", "800", "lower the threshold")),
        ({"threshold": 0}, ("threshold 0: 1 distinct b values at or below", "raise the threshold")),
        ({"threshold": -1}, ("threshold -1: 0 distinct",)), ({"cores": 0}, ("cores 0",)),
        ({"bounds": {"S0": (0, 1)}}, ("unknown parameter 'S0'", "f, D, D_star")),
        ({"bounds": {"f": (0.3, 0.3)}}, ("bounds: f from 0.3 to 0.3",)),
        ({"bounds": {"f": (0, 1.5)}}, ("bounds: f from 0 to 1.5", "<= 1")),
        ({"bounds": {"D": (-1e-3, 3e-3)}}, ("bounds: D from -0.001",)),
        ({"bounds": {"D_star": (0, np.inf)}}, ("bounds: D_star from 0 to inf",)),
        ({"bounds": {"D": (0, np.nan)}}, ("bounds: D from 0 to nan",)),
        ({"bounds": {"D": 1e-3}}, ("bounds: D 0.001", "a lowest and a highest")),
        ({"bounds": {"D_star": (0, 3e-3)}}, ("D_star is above D",)),
        ({"bounds": {"D": (1e-3, 4e-3), "D_star": (0, 0.1)}}, ("D_star is above D",)),
    ],
)  # fmt: skip
def test_refusals(options: dict[str, Any], words: tuple[str, ...], refused: Callable[..., str]) -> None:
    refused(lambda: run(fit_segmented, curves(), **options), *words)


def test_few_b_values_are_refused(refused: Callable[..., str]) -> None:
    b = [0, 0, 50, 800]
    for fit in FITS.values():
        refused(lambda fit=fit: run(fit, curves(b), b), "3 distinct b values", "4 are needed")
    made = run(fit_full, curves(B[:8]), B[:8])  # none above the threshold: the full fit needs none
    np.testing.assert_allclose(flat(made, "D"), TRUTH["D"], rtol=1e-3)


def test_maps_are_written(tmp_path: Path) -> None:
    made = run(fit_segmented, curves(), threshold=150)
    assert {p.name for p in write_maps(made, tmp_path)} == {
        f"{n}.nii.gz" for n in (*MAPPED, *ERRORS, "status")
    }
    sidecar = json.loads((tmp_path / "D_se.json").read_text())
    assert sidecar["Units"] == "mm2/s"
    assert (sidecar["Method"], sidecar["Threshold"], sidecar["Bounds"]["f"]) == ("segmented", 150, [0, 1])
    assert json.loads((tmp_path / "status.json").read_text())["Levels"]["3"] == "not_identified"


@pytest.mark.parametrize(
    "options", [(), ("--refine", "--threshold", 150), ("--method", "full", "--cores", 1)]
)
def test_command(case: Case, options: tuple[object, ...], command: Command) -> None:
    from ivimbayes import read_scan

    status, out, err = command("ls", case.dwi, "--rois", case.rois, "--out", case.out, "--quiet", *options)
    assert status == 0, err
    for word in ("liver", "spleen", "D* (1e-3 mm2/s)", "voxels:", "ok", f"written to {case.out}"):
        assert word in out
    names = {f"{n}{e}" for n in (*MAPPED, *ERRORS, "status") for e in (".nii.gz", ".json")}
    assert {p.name for p in case.out.iterdir()} == names
    scan = read_scan(case.dwi, rois=case.rois)
    fit = fit_full if "full" in options else refined if options else fit_segmented
    expected = fit(scan, progress=False, **({"threshold": 150} if "--refine" in options else {}))
    for name in (*MAPPED, *ERRORS, "status"):
        found = np.asarray(nib.load(case.out / f"{name}.nii.gz").dataobj)
        np.testing.assert_allclose(found, expected[name].values, rtol=1e-6)
    assert "not empty" in command("ls", case.dwi, "--out", case.out, "--quiet")[2]
    status, out, _ = command("ls", case.dwi, "--out", case.out, "--quiet", "--overwrite")
    assert status == 0
    assert "all: 60 voxels" in out
    assert {p.name for p in case.out.iterdir()} == names


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--method", "ivim"), ("--method ivim", "segmented, full")),
        (("--method", "full", "--threshold", 200), ("--threshold belongs to --method segmented",)),
        (("--method", "full", "--refine"), ("--refine belongs to --method segmented",)),
        (("--threshold", 750), ("threshold 750: 1 distinct",)), (("--threshold", "nan"), ("threshold nan",)),
        (("--cores", 0), ("cores 0",)), (("--averages", "1,2"), ("2 values for 16 volumes",)),
        (("--rois", "none.nii"), ("none.nii", "no such file")), (("--b-min", 60), ("no low b value",)),
    ],
)  # fmt: skip
def test_command_refuses(
    options: tuple[object, ...], words: tuple[str, ...], case: Case, command: Command
) -> None:
    status, out, err = command("ls", case.dwi, "--out", case.out, "--quiet", *options)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("ivimbayes: error: ")
    assert all(word in err for word in words), err
    assert not case.out.exists()


@pytest.mark.parametrize("layout", ["strided", "reversed", "read-only", "broadcast"])
def test_averages_of_any_layout_are_taken(layout: str) -> None:
    from ivimbayes.numerics.steps import make_acquisition

    averages = {
        "strided": np.ones(8)[::2], "reversed": np.ones(4)[::-1],
        "read-only": np.frombuffer(np.ones(4).tobytes()), "broadcast": np.broadcast_to(1.0, 4),
    }[layout]  # fmt: skip
    found = make_acquisition(np.array([0.0, 50.0, 200.0, 800.0]), averages).averages
    assert found.flags.c_contiguous and found.flags.writeable
    np.testing.assert_array_equal(found, 1.0)
