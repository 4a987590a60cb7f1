"""Data sets, from small files made here and served on this machine; and the published files, where they are."""

import csv
import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import data_folder
from scipy.io import savemat

import ivimbayes
import ivimbayes.datasets
from ivimbayes import datasets, fit_segmented, read_scan
from ivimbayes.io.scans import roi_names, write_scan

ABDOMEN = "data/volunteer1.mat"
PROSTATE = "IVIM_DKI_data/IVIM_DKI_3T"
HOLDS = (  # diffusion time, gradients, and b values of each breath-hold; b = 10 of T70_bip was acquired twice
    (100, 1, (10, 50)), (100, 1, (200, 500)), (70, 1, (10,)), (70, 1, (10,)), (70, 2, (10,)),
)  # fmt: skip


def volunteer() -> dict[str, np.ndarray]:
    """Content of a volunteer's file: 4 x 5 voxels; each breath-hold has a gain of its own."""
    images, b, T, betta = [], [], [], []
    tissue = 1000 + 10 * np.arange(20).reshape(4, 5)
    tissue[0] = 0  # air
    for number, (time, gradients, values) in enumerate(HOLDS):
        gain = 1 + 0.25 * number
        for value in (0, *(v for b_value in values for v in (*[b_value] * 6, 0))):
            directional = 1 + 0.1 * (len(images) % 2) * (value > 0)
            tissue[0, 0] = 4 if value and len(images) % 2 else 0  # dark, half of the directions 0
            images.append(tissue * gain * np.exp(-value * 1e-3) * directional)
            b.append(value)
            T.append(time)
            betta.append(gradients if value else 2)
    rois = np.zeros((4, 5), np.uint8)
    rois[1], rois[2, :3] = 2, 4
    mask = np.where(tissue > 0, 0.996, 0)
    columns = {"b": np.uint16(b), "T": np.uint8(T), "betta": np.uint8(betta)}
    return {
        "data": np.round(images).astype(np.uint16),
        "mask": mask,
        "rois": rois,
        **{k: v[:, None] for k, v in columns.items()},
    }


def patient() -> dict[str, nib.Nifti1Image]:
    """Files of a patient: 40 x 50 x 2 voxels; masks are 0 and 1.6857, and overlap."""
    affine = np.array([[-1.4, 0.1, 0, 20], [0, 1.5, 0, -30], [0.05, 0, 4, 7], [0, 0, 0, 1]])
    signal = np.random.default_rng(0).uniform(1, 100, (40, 50, 2, 13)).astype(np.float32)
    made = {"ivim13b": nib.Nifti1Image(signal, affine)}
    for stem, box in (
        ("pz_roi", np.s_[20:24, 5:9, :]),
        ("bph_roi", np.s_[23:26, 8:12, 0]),
        ("tumor_roi", np.s_[25:28, 10:13, 0]),
    ):
        mask = np.zeros((40, 50, 2), np.float32)
        mask[box] = 1.6857
        made[stem] = nib.Nifti1Image(mask, affine)
    return made


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of small files under their published paths, which the table of sources then lists."""
    folder = tmp_path / "published"
    (folder / "data").mkdir(parents=True)
    (folder / PROSTATE).mkdir(parents=True)
    savemat(folder / ABDOMEN, volunteer())
    for stem, image in patient().items():
        nib.save(image, folder / PROSTATE / f"{stem}.nii.gz")
    table = json.loads(json.dumps(datasets._sources()))
    for dataset, root in (("abdomen", "data"), ("prostate", PROSTATE)):
        for path in (folder / root).iterdir():
            content = path.read_bytes()
            table[dataset]["files"][f"{root}/{path.name}"] |= {
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
    monkeypatch.setattr(datasets, "_sources", lambda: table)
    for name in ("IVIMBAYES_DATA", "IVIMBAYES_DATA_URL"):
        monkeypatch.delenv(name, raising=False)
    return folder


class Mirror:
    """A mirror on this machine: what it answers by path, and what it was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.cut = 0  # bytes that are promised and not sent
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.asked.append(self.path)
                content = mirror.files.get(self.path)
                self.send_response(404 if content is None else 200)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                self.wfile.write((content or b"")[: len(content or b"") - mirror.cut])

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def mirror(published: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """A mirror of the small files, with a cache of its own."""
    pooch = pytest.importorskip("pooch")
    cache = published.parent / "cache"
    monkeypatch.setattr(pooch, "os_cache", lambda name: cache)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running = Mirror()
    for dataset in ("abdomen", "prostate"):
        source = datasets._sources()[dataset]
        for path in published.rglob("*.*"):
            name = path.relative_to(published).as_posix()
            if name in source["files"]:
                running.files[f"/{source['repository']}/{source['commit']}/{name}"] = path.read_bytes()
    monkeypatch.setenv("IVIMBAYES_DATA_URL", running.url + "/")
    yield running
    running.stop()


def cached(published: Path) -> list[str]:
    return [path.name for path in (published.parent / "cache").rglob("*") if path.is_file()]


def test_phantom_is_the_embedded_one() -> None:
    assert datasets.phantom is ivimbayes.phantom
    assert ivimbayes.datasets is datasets


def test_directions_and_breath_holds_of_a_series(published: Path) -> None:
    scan = datasets.abdomen(data_dir=published)
    assert scan["b"].values.tolist() == [0, 10, 50, 200, 500]
    assert scan["signal"].dims == ("x", "y", "z", "measurement")
    assert scan["signal"].shape == (4, 5, 1, 5)
    assert scan["signal"].dtype == np.float32
    tissue = scan["signal"].values[1:]
    mean_b0 = np.mean([1, 1.25]) * (1000 + 10 * np.arange(5, 20))  # of the two breath-holds of the series
    np.testing.assert_allclose(tissue[..., 0].ravel(), mean_b0, rtol=1e-3)
    for k, b in enumerate(scan["b"].values[1:], start=1):  # half of the directions are brighter by 10 %
        np.testing.assert_allclose(
            tissue[..., k] / tissue[..., 0], np.exp(-b * 1e-3) * np.sqrt(1.1), rtol=2e-3
        )
    air = scan["signal"].values[0, :, 0]
    np.testing.assert_allclose(air[:, 0], 0.33, rtol=1e-6)
    np.testing.assert_allclose(air[0, 1], np.sqrt(0.33 * 4) * 1.125, rtol=1e-3)
    np.testing.assert_allclose(air[1, 1:3], 0.33 * 1.125, rtol=1e-3)


def test_a_b_value_acquired_twice_is_two_measurements(published: Path) -> None:
    scan = datasets.abdomen(series="T70_bip", data_dir=published)
    assert scan["b"].values.tolist() == [0, 10, 10]
    np.testing.assert_allclose(scan["signal"][1:, ..., 1], scan["signal"][1:, ..., 2], rtol=2e-3)
    np.testing.assert_allclose(scan["signal"][1, 0, 0, 0], 1050 * (1.5 + 1.75) / 2, rtol=1e-3)


def test_a_volunteer_is_a_scan(published: Path, tmp_path: Path) -> None:
    scan = datasets.abdomen(data_dir=published)
    assert roi_names(scan) == {2: "liver", 4: "spleen"}
    np.testing.assert_array_equal(scan["roi"].values[:, :, 0], volunteer()["rois"])
    for word in ("Wetscherek", "doi"):
        assert word in scan.attrs["citation"]
    assert scan.attrs["licence"].startswith("BSD")
    assert "8a85f923f6748abc3c2c9cfac17e7cf987315273" in scan.attrs["source"]
    digest = hashlib.sha256((published / ABDOMEN).read_bytes()).hexdigest()
    assert json.loads(scan.attrs["inputs"]) == {"dwi": {"file": "volunteer1.mat", "sha256": digest}}
    dwi, labels = write_scan(scan, tmp_path)
    back = read_scan(dwi, rois=labels)
    assert set(scan.variables) == set(back.variables)
    assert set(back.attrs) <= set(scan.attrs)
    np.testing.assert_array_equal(back["signal"].values, scan["signal"].values)
    D = fit_segmented(scan, threshold=40)["D"].values[1:3, :3]
    np.testing.assert_allclose(D, 1e-3, rtol=0.05)


def test_masks_of_a_patient_become_labels(published: Path) -> None:
    scan = datasets.prostate("3T", whole=True, data_dir=published)
    image = patient()["ivim13b"]
    np.testing.assert_array_equal(scan["signal"].values, np.asarray(image.dataobj))
    np.testing.assert_allclose(scan["affine"].values, image.affine, atol=1e-6)
    assert scan["b"].values.tolist() == list(datasets.PROSTATE_B)
    assert roi_names(scan) == {1: "peripheral zone", 2: "BPH", 3: "tumour"}
    labels = scan["roi"].values
    assert labels[25, 10, 0] == 3, "BPH and tumour overlap"
    counts = np.unique(labels, return_counts=True)[1].tolist()
    assert counts[1:] == [32 - 1, 12 - 2, 9]
    assert set(json.loads(scan.attrs["inputs"])) == {
        "dwi", "mask of peripheral zone", "mask of BPH", "mask of tumour"
    }  # fmt: skip
    assert scan.attrs["licence"].startswith("GPL-3.0")
    assert "Malagi" in scan.attrs["citation"]


def test_a_patient_is_cropped_in_place(published: Path) -> None:
    part, whole = (datasets.prostate("3T", whole=w, data_dir=published) for w in (False, True))
    corner = (20 - 12, 0)  # the image ends before 12 voxels in y
    assert part["signal"].shape == (28 + 12 - corner[0], 13 + 12, 2, 13)
    np.testing.assert_array_equal(part["signal"].values, whole["signal"].values[8:40, 0:25])
    np.testing.assert_array_equal(part["roi"].values, whole["roi"].values[8:40, 0:25])
    here = part["affine"].values @ [3, 4, 1, 1]
    np.testing.assert_allclose(here, whole["affine"].values @ [3 + corner[0], 4 + corner[1], 1, 1])


@pytest.mark.parametrize(
    "place", ["data/volunteer1.mat", "volunteer1.mat", "raw/volunteer1.mat", "abdomen_v1/raw/volunteer1.mat",
              "ivim_tools/data/volunteer1.mat"],
)  # fmt: skip
def test_a_folder_overrides_the_download(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    folder = tmp_path / "folder"
    (folder / place).parent.mkdir(parents=True)
    (folder / place).write_bytes((published / ABDOMEN).read_bytes())
    monkeypatch.setattr(datasets, "_download", None)
    expected = datasets.abdomen(data_dir=published)
    assert datasets.abdomen(data_dir=folder).identical(expected)
    monkeypatch.setenv("IVIMBAYES_DATA", str(folder))
    assert datasets.abdomen().identical(expected)
    monkeypatch.setenv("IVIMBAYES_DATA", str(tmp_path))
    assert datasets.abdomen(data_dir=folder).identical(expected), "the argument comes first"


def test_local_files_are_checked(published: Path, refused: Callable[..., str]) -> None:
    good = (published / ABDOMEN).read_bytes()
    address = (
        "https://raw.githubusercontent.com/awetscherek/ivim_tools/8a85f923f6748abc3c2c9cfac17e7cf987315273/"
    )
    for damaged in (good[:-1], good[:-1] + bytes([good[-1] ^ 1])):
        (published / ABDOMEN).write_bytes(damaged)
        words = (str(published / ABDOMEN), "not the published file", address + ABDOMEN)
        refused(lambda: datasets.abdomen(data_dir=published), *words)
    (published / "volunteer1.mat").write_bytes(good)
    assert datasets.abdomen(data_dir=published).sizes["measurement"] == 5


def test_a_file_that_is_not_in_the_folder(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    absent = tmp_path / "absent"
    refused(lambda: datasets.abdomen(data_dir=absent), str(absent), "volunteer1.mat", "data_dir", "https://")
    monkeypatch.setenv("IVIMBAYES_DATA", str(published))
    refused(lambda: datasets.abdomen(2), str(published), "volunteer2.mat", "IVIMBAYES_DATA", "https://")
    (published / PROSTATE / "bph_roi.nii.gz").unlink()
    refused(lambda: datasets.prostate("3T"), "IVIM_DKI_3T/bph_roi.nii.gz")


def test_arguments_are_checked(published: Path, refused: Callable[..., str]) -> None:
    refused(lambda: datasets.abdomen(0, data_dir=published), "volunteer: 0", "1, 2, 3")
    refused(lambda: datasets.abdomen("1", data_dir=published), "volunteer: '1'")  # type: ignore[arg-type]
    refused(lambda: datasets.abdomen(1, "T100", data_dir=published), "series: 'T100'", "T100_bip, T100_fc")
    message = refused(
        lambda: datasets.abdomen(1, "T40_fc", data_dir=published), "no T40_fc in volunteer1.mat"
    )
    assert message.endswith("it has T70_bip, T70_fc, T100_bip")
    refused(lambda: datasets.prostate("7T", data_dir=published), "field: '7T'", "1.5T, 3T")


def test_a_download_is_kept(mirror: Mirror, published: Path) -> None:
    scan = datasets.abdomen()
    assert scan.identical(datasets.abdomen(data_dir=published))
    commit = "8a85f923f6748abc3c2c9cfac17e7cf987315273"
    assert mirror.asked == [f"/awetscherek/ivim_tools/{commit}/{ABDOMEN}"]
    assert datasets.abdomen().identical(scan)
    assert len(mirror.asked) == 1
    assert datasets.prostate("3T").identical(datasets.prostate("3T", data_dir=published))
    assert len(mirror.asked) == 5


def test_a_damaged_cache_is_downloaded_again(mirror: Mirror, published: Path) -> None:
    scan = datasets.abdomen()
    (kept,) = (published.parent / "cache").rglob("volunteer1.mat")
    kept.write_bytes(b"damaged")
    assert datasets.abdomen().identical(scan)
    assert len(mirror.asked) == 2


@pytest.mark.parametrize("damage", ["other", "short", "cut"])
def test_what_is_not_the_published_file_is_refused(
    mirror: Mirror, published: Path, refused: Callable[..., str], damage: str
) -> None:
    (name,) = (name for name in mirror.files if name.endswith(ABDOMEN))
    if damage == "cut":
        mirror.cut = 1000
    else:
        content = mirror.files[name]
        mirror.files[name] = content[:-1] + (bytes([content[-1] ^ 1]) if damage == "other" else b"")
    reason = "cannot be downloaded" if damage == "cut" else "its SHA-256 differs"
    refused(datasets.abdomen, mirror.url + name, reason, "data_dir or IVIMBAYES_DATA")
    assert cached(published) == []


def test_no_such_file_on_a_mirror(mirror: Mirror, published: Path, refused: Callable[..., str]) -> None:
    refused(lambda: datasets.abdomen(2), "volunteer2.mat", "status 404", "data_dir or IVIMBAYES_DATA")
    assert cached(published) == []


def test_no_network(
    mirror: Mirror, published: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    with socket.socket() as closed:  # bound, and nobody listens
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("IVIMBAYES_DATA_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        refused(datasets.abdomen, "volunteer1.mat", "ConnectionError", "data_dir or IVIMBAYES_DATA")
    assert cached(published) == []
    monkeypatch.setenv("IVIMBAYES_DATA_URL", "mirror.example")
    refused(datasets.abdomen, "IVIMBAYES_DATA_URL", "'mirror.example'", "https://")


def test_a_cache_that_cannot_be_written(mirror: Mirror, published: Path, refused: Callable[..., str]) -> None:
    (published.parent / "cache").write_text("a file", encoding="utf-8")
    refused(datasets.abdomen, str(published.parent / "cache"), "Not a directory", "IVIMBAYES_DATA")
    assert mirror.asked == []


def test_without_pooch(published: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]) -> None:
    monkeypatch.setattr(datasets, "pooch", None)
    words = ("volunteer1.mat", "pooch", "pip install 'ivimbayes[data]'", "data_dir or IVIMBAYES_DATA")
    refused(datasets.abdomen, *words)
    assert datasets.abdomen(data_dir=published).sizes["measurement"] == 5


def published_file(name: str) -> Path:
    """Path of a published file in the folder of real scans; the test is skipped where it is absent."""
    path = data_folder() / name
    if not path.is_file():
        pytest.skip(f"no {name} in the folder of real data")
    return path


def test_the_table_of_sources() -> None:
    path = published_file("sources.tsv")
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines(), delimiter="\t"))
    listed = {
        (f"{name} ({source['repository']} @{source['commit']})", path, str(entry["bytes"]), entry["sha256"])
        for name, source in datasets._sources().items()
        for path, entry in source["files"].items()
    }
    assert listed == {tuple(row.values()) for row in rows}


@pytest.mark.parametrize("series", ["T70_bip", "T70_fc", "T100_bip", "T100_fc"])
def test_a_published_volunteer(series: str) -> None:
    folder = published_file("abdomen_v1/raw/volunteer1.mat").parents[1]
    scan = datasets.abdomen(1, series, data_dir=folder.parent)
    nifti = read_scan(folder / f"dwi_{series}.nii.gz", rois=folder / "labels.nii.gz")
    np.testing.assert_allclose(scan["signal"].values, nifti["signal"].values, rtol=3e-7)
    for name in ("b", "averages", "roi", "affine"):
        np.testing.assert_array_equal(scan[name].values, nifti[name].values)
    assert roi_names(scan) == roi_names(nifti)


@pytest.mark.parametrize(("whole", "name"), [(False, "dwi"), (True, "dwi_full")])
def test_a_published_patient(whole: bool, name: str) -> None:
    folder = published_file("prostate_1p5T/dwi_full.nii.gz").parent
    scan = datasets.prostate("1.5T", whole=whole, data_dir=folder.parent)
    nifti = read_scan(
        folder / f"{name}.nii.gz",
        folder / "dwi.bval",
        rois=folder / f"{name.replace('dwi', 'labels')}.nii.gz",
        names=folder / "labels.json",
    )
    np.testing.assert_allclose(scan["signal"].values, nifti["signal"].values, rtol=3e-7)
    np.testing.assert_allclose(scan["affine"].values, nifti["affine"].values, atol=1e-5)
    for variable in ("b", "averages", "roi"):
        np.testing.assert_array_equal(scan[variable].values, nifti[variable].values)
    assert roi_names(scan) == roi_names(nifti)
