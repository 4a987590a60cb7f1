"""Shared data, and fits that several tests look at: sampling is the slow part."""

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import xarray as xr

from ivimbayes import fit, phantom, write_tree
from ivimbayes.cli import main as cli
from ivimbayes.errors import InputError
from ivimbayes.fitting.density import compile_density
from ivimbayes.numerics.jit import Beside
from ivimbayes.results.regions import region_tree
from ivimbayes.voxelwise.posterior import missing_kernel

Command = Callable[..., tuple[int, str, str]]

ROOT = Path(__file__).parents[1]
B = (0, 0, 10, 20, 40, 80, 110, 140, 170, 200, 300, 400, 500, 600, 700, 800)
SHORT = {"draws": 200, "tune": 200, "chains": 2, "voxels_per_roi": 20, "retry": False, "progress": False}


def pytest_configure(config: pytest.Config) -> None:
    """Compile what most tests need before workers start, who would each compile it."""
    if not getattr(config.option, "numprocesses", None) or hasattr(config, "workerinput"):
        return
    with Beside(missing_kernel(True, True)) as maps:
        for noise in ("gaussian", "rician", "student_t"):
            compile_density(noise, True)
        maps.wait()


@pytest.fixture(scope="session")
def phantom_scan() -> tuple[xr.Dataset, xr.Dataset]:
    return phantom()


@pytest.fixture(scope="session")
def short_fit(phantom_scan: tuple[xr.Dataset, xr.Dataset]) -> xr.DataTree:
    """Three regions of the phantom, 20 voxels each, too short to be trusted."""
    return fit(phantom_scan[0], seed=3, cores=2, **SHORT)


@pytest.fixture(scope="session")
def short_file(short_fit: xr.DataTree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of `short_fit`, to be copied."""
    path = tmp_path_factory.mktemp("short") / "posterior.nc"
    write_tree(short_fit, path)
    return path


@pytest.fixture(scope="session")
def lone_fit(short_fit: xr.DataTree) -> xr.DataTree:
    """The liver of `short_fit`, for pages that draw every region."""
    return region_tree(short_fit, "liver")


@pytest.fixture
def interpreted() -> Iterator[None]:
    """PyTensor's graphs run in Python: a test evaluates each a few times, and compiling takes seconds."""
    import pytensor

    with pytensor.config.change_flags(mode="FAST_COMPILE"):
        yield


@dataclass
class Case:
    """Files of a small valid scan (6 x 5 x 2 voxels, two regions) that tests damage."""

    folder: Path

    @property
    def dwi(self) -> Path:
        return self.folder / "dwi.nii.gz"

    @property
    def bval(self) -> Path:
        return self.folder / "dwi.bval"

    @property
    def rois(self) -> Path:
        return self.folder / "labels.nii.gz"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def signal(self) -> np.ndarray:
        return np.asarray(nib.load(self.dwi).dataobj)

    def labels(self) -> np.ndarray:
        return np.asarray(nib.load(self.rois).dataobj)

    def save(self, path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> None:
        nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine), path)

    def write_b(self, text: str) -> None:
        self.bval.write_text(text, encoding="utf-8")


@pytest.fixture
def case(tmp_path: Path) -> Case:
    made = Case(tmp_path)
    rng = np.random.default_rng(0)
    b = np.array(B, float)
    curve = 0.2 * np.exp(-b * 30e-3) + 0.8 * np.exp(-b * 1.1e-3)
    signal = 100 * curve + rng.normal(0, 2, (6, 5, 2, len(b)))
    labels = np.zeros((6, 5, 2), np.uint8)
    labels[:3], labels[4:] = 1, 2
    made.save(made.dwi, signal.astype(np.float32))
    made.save(made.rois, labels)
    made.write_b(" ".join(map(str, B)))
    (tmp_path / "labels.json").write_text(json.dumps({"1": "liver", "2": "spleen"}), encoding="utf-8")
    return made


@pytest.fixture
def refused() -> Callable[..., str]:
    """Assert that a call is refused in one line that holds the given words; return the line."""

    def check(call: Callable[[], object], *words: str) -> str:
        with pytest.raises(InputError) as caught:
            call()
        message = str(caught.value)
        assert "\n" not in message
        for word in words:
            assert word in message, message
        return message

    return check


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process: exit status, standard output, standard error."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ivimbayes", *map(str, words)])
        with warnings.catch_warnings(), pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return call


def data_folder() -> Path:
    """Folder of the real scans; the test is skipped where it is absent."""
    import os

    folder = Path(os.environ.get("IVIMBAYES_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real data: set IVIMBAYES_DATA to its folder")
    return folder
