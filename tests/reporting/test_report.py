"""The report: its numbers are the table's, nothing of a user's becomes markup, nothing outside is asked for."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from PIL import Image
from typer.testing import CliRunner

import ivimbayes.reporting.page as report
from ivimbayes import (
    ModelSpec,
    fit,
    posterior_maps,
    read_maps,
    summarize,
    write_maps,
    write_report,
    write_tree,
)
from ivimbayes.cli.main import app
from ivimbayes.errors import InputError
from ivimbayes.reporting.page import number
from ivimbayes.reporting.slices import COLOURS, draw_slices
from ivimbayes.results.diagnosis import diagnose

EVIL = '<script>alert(1)</script>"><img src=x onerror=alert(1)> a$b^{$ --> %s {{ 7*7 }}'
NUMBERS = ("mean", "median", "sd", "hdi_low", "hdi_high", "spread", "ess_bulk", "ess_tail", "r_hat")


class Page(HTMLParser):
    """What a browser makes of a page: elements with their attributes, text, and the cells of its tables."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.scripts, self.rows, self._in = "", list[str](), list[list[str]](), ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._in = tag
        if tag == "script":
            self.scripts.append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "script":
            self.scripts[-1] += data
        elif self._in != "style":
            self.text += data
            if self._in in ("td", "th"):
                self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def maps(phantom_scan: tuple[xr.Dataset, xr.Dataset], short_fit: xr.DataTree) -> xr.Dataset:
    return posterior_maps(phantom_scan[0], short_fit, progress=False)


@pytest.fixture(scope="module")
def page(
    phantom_scan: tuple[xr.Dataset, xr.Dataset],
    short_fit: xr.DataTree,
    maps: xr.Dataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    assert write_report(short_fit, path, maps=maps, truth=phantom_scan[1]) == path
    assert path.stat().st_size < 5e6
    return path.read_text(encoding="utf-8")


def renamed(tree: xr.DataTree, old: str, new: str) -> xr.DataTree:
    """The fit with another name of a region."""
    text = lambda values: [new if v == old else v for v in values.tolist()]  # noqa: E731
    groups = {}
    for name, node in tree.children.items():
        data = node.to_dataset()
        for coord in ("roi", "voxel_roi"):
            if coord in data.coords:
                data = data.assign_coords({coord: (data[coord].dims, text(data[coord].values))})
        groups[name] = data
    made = xr.DataTree.from_dict(groups)
    priors = {new if k == old else k: v for k, v in json.loads(tree.attrs["priors"]).items()}
    made.attrs = tree.attrs | {"priors": json.dumps(priors)}
    return made


def agrees(page: Page, table: pd.DataFrame) -> bool:
    """Whether every number of the page's tables is that of the table, as ``summary.tsv`` has it."""
    written = pd.read_csv(
        io.StringIO(table.to_csv(sep="\t", index=False, float_format="%.6g", na_rep="n/a")),
        sep="\t", dtype=str, keep_default_na=False,
    )  # fmt: skip
    full = [row for row in page.rows if len(row) == 13][1:]
    same = [
        row[0] == each["roi"] and row[3:12] == [each[c] for c in NUMBERS] and row[12] == each["verdict"]
        for row, each in zip(full, written.to_dict("records"), strict=True)
    ]
    before = page.rows.index(next(row for row in page.rows if len(row) == 13))
    cards = iter([row for row in page.rows[:before] if " to " in row[2]])
    for each in written[~written["parameter"].isin(["S0", "sigma"])].to_dict("records"):
        low, median, high, spread = (
            number(float(each[c].replace("n/a", "nan"))) for c in ("hdi_low", "median", "hdi_high", "spread")
        )
        same.append(next(cards)[1:4] == [median, f"{low} to {high}", spread])
    return all(same) and next(cards, None) is None


def test_every_number_is_that_of_the_table(page: str, short_fit: xr.DataTree) -> None:
    table = summarize(short_fit)
    assert agrees(Page(page), table)
    for column in ("median", "hdi_high", "r_hat"):  # numbers that differ in the sixth digit are seen
        other = table.copy()
        other.loc[4, column] *= 1.00001
        assert not agrees(Page(page), other)


def test_verdicts_and_reasons_come_first(page: str, short_fit: xr.DataTree) -> None:
    text = Page(page).text
    for roi, diagnosis in diagnose(short_fit).items():
        assert f"{roi}: {diagnosis.verdict}" in re.sub(r"\s+", " ", text).replace(": ", ": ")
        for finding in diagnosis.findings:
            assert finding.what in text and finding.advice in text
    order = [
        text.index(f"\n{title}\n") for title in ("Regions", "Values", "Figures", "Maps", "Priors", "Methods")
    ]
    assert order == sorted(order)


def test_methods_and_provenance_have_the_numbers_of_the_run(page: str, short_fit: xr.DataTree) -> None:
    text, table = Page(page).text, summarize(short_fit)
    constant = short_fit["constant_data"].to_dataset()
    worst = table[table["parameter"] != "S0"]
    for words in (
        "2 chains of 200 warm-up and 200 kept transitions", "seed 3", "liver (20 of 816 voxels)",
        "S(b)/S0 = (1 − f)·exp(−b·D) + f·exp(−b·D*), D < D*", "gaussian noise with S0 integrated out",
        f"at most {worst['r_hat'].max():.3f}", f"of {int(constant['transitions'].sum())} transitions",
        "Li 2017, consensus table", "The maps hold 1,236 voxels",
        *json.loads(short_fit.attrs["versions"]).values(),
    ):  # fmt: skip
        assert words.casefold() in text.casefold(), words


def test_names_become_text_and_nothing_outside_is_asked_for(
    page: str, short_fit: xr.DataTree, tmp_path: Path
) -> None:
    path = write_report(renamed(short_fit, "kidney", EVIL), tmp_path / "evil.html", title=EVIL)
    made = Page(path.read_text(encoding="utf-8"))
    assert made.text.count(EVIL) > 4
    assert made.scripts == Page(page).scripts and len(made.scripts) == 1
    assert not [a for _, attrs in made.elements for a in attrs if a.startswith("on")]
    for text in (page, path.read_text(encoding="utf-8")):
        for tag, attrs in Page(text).elements:
            for name in ("src", "href", "xlink:href", "data", "action", "srcset"):
                value = attrs.get(name) or "#"
                assert value.startswith(("#", "data:")), (tag, value)
        assert not re.findall(r"url\((?!#|data:|&#34;)", text)
    policy = next(
        a["content"] for t, a in Page(page).elements if a.get("http-equiv") == "Content-Security-Policy"
    )
    digest = base64.b64encode(hashlib.sha256(Page(page).scripts[0].encode()).digest()).decode()
    assert (
        policy is not None
        and policy.startswith("default-src 'none'")
        and f"script-src 'sha256-{digest}'" in policy
    )


def test_figures_share_no_names(page: str) -> None:
    names = [attrs["id"] for _, attrs in Page(page).elements if "id" in attrs]
    assert len(names) == len(set(names)) and len(names) > 100
    used = set(re.findall(r'href="#([^"]+)"', page)) | set(re.findall(r"url\(#([^)]+)\)", page))
    assert used and used <= set(names)


def test_slices_show_the_maps(maps: xr.Dataset) -> None:
    made = draw_slices(maps)
    status = maps["status"].values
    planes = np.flatnonzero(((status == 1) | (status == 2)).any(axis=(0, 1)))
    assert made.numbers == tuple(planes) and made.left_out == 0
    mean, sd = made.rows[0]
    assert mean.title == "f" and sd.title == "sd of f" and len(mean.images) == len(planes)
    image = Image.open(io.BytesIO(base64.b64decode(mean.images[0].split(",")[1])))
    codes = np.asarray(image)
    values = maps["f_mean"].values[:, :, planes[0]]
    drawn = np.isfinite(values)
    assert np.count_nonzero(codes) == drawn.sum()
    # the brightest colour is where the map is largest, whichever way the slice is turned
    index = (codes[codes > 0].astype(int) - 1) % COLOURS
    expected = np.clip((values[drawn] - mean.low) / (mean.high - mean.low), 0, 1) * (COLOURS - 1)
    np.testing.assert_array_equal(np.sort(index), np.sort(expected.round()))
    alpha = np.frombuffer(image.info["transparency"], np.uint8)
    assert alpha[0] == 0 and set(alpha[1:]) == {64, 128, 191, 255}


def test_slices_are_turned_as_the_affine_says() -> None:
    shape = (8, 6, 1)
    values = np.zeros(shape, np.float32)
    values[1, 1] = 1.0  # near the first corner of the array
    template = {f"{p}_{s}": values for p in ("f", "D", "D_star", "S0") for s in ("mean", "sd", "contraction")}
    data = {name: (("x", "y", "z"), v) for name, v in {**template, "p_perfusion": values}.items()}
    data["status"] = (("x", "y", "z"), np.ones(shape, np.uint8))
    for diagonal, sides, bright in (
        ((2, 3, 4), ("R", "A"), (4, 6)),  # x runs to the right, which is at the left; y to the front, on top
        ((-2, 3, 4), ("R", "A"), (4, 1)),
        ((-2, -3, 4), ("R", "A"), (1, 1)),
        ((1, 1, 1), ("", ""), (4, 1)),  # not known: x to the right, y up
    ):
        affine = (("row", "column"), np.diag([*map(float, diagonal), 1.0]))
        made = draw_slices(xr.Dataset({**data, "affine": affine}))
        codes = np.asarray(Image.open(io.BytesIO(base64.b64decode(made.rows[-1][0].images[0].split(",")[1]))))
        assert codes.shape == (6, 8) and made.sides == sides
        assert np.unravel_index(((codes.astype(int) - 1) % COLOURS).argmax(), codes.shape) == bright
        assert made.aspect == ("16 / 18" if diagonal[0] != 1 else "8 / 6")


def test_slices_are_left_out_evenly_until_they_fit(maps: xr.Dataset) -> None:
    many = xr.concat([maps.drop_vars("affine")] * 6, "z").assign(affine=maps["affine"])
    whole = draw_slices(many, budget=10**9)
    size = sum(map(len, whole.underlay)) + sum(len(i) for row in whole.rows for p in row for i in p.images)
    part = draw_slices(many, budget=size // 3)
    assert part.left_out > 0 and len(part.numbers) + part.left_out == len(whole.numbers)
    assert len(set(np.diff(part.numbers))) <= 1
    with pytest.raises(InputError, match="no voxel has numbers"):
        draw_slices(maps.assign(status=0 * maps["status"]))


def test_maps_are_read_as_written(maps: xr.Dataset, tmp_path: Path) -> None:
    write_maps(maps, tmp_path)
    back = read_maps(tmp_path)
    for name in ("f_mean", "D_star_hdi_high", "status", "affine"):
        np.testing.assert_allclose(back[name].values, maps[name].values, rtol=1e-6)
        assert back[name].attrs["units"] == maps[name].attrs["units"]
    assert float(back.attrs["interval"]) == 0.95 and int(back.attrs["draws"]) == 512
    (tmp_path / "f_mean.nii.gz").write_bytes(b"no image")
    with pytest.raises(
        InputError, match=r"f_mean.nii.gz: cannot be read .*; make it again with ivimbayes map"
    ):
        read_maps(tmp_path)
    with pytest.raises(InputError, match="holds no maps"):
        read_maps(tmp_path / "nowhere")


def test_a_page_that_fails_leaves_nothing(
    lone_fit: xr.DataTree, maps: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_report(lone_fit, tmp_path / "r.html", maps=maps.assign(status=3 * (maps["status"] > 0)))
    assert "No voxel has numbers" in Page(path.read_text(encoding="utf-8")).text
    path.unlink()

    def fail(*_: object, **__: object) -> None:
        raise InputError("no ink")

    monkeypatch.setattr("ivimbayes.reporting.page.plot_predictive", fail)
    with pytest.raises(InputError, match="no ink"):
        write_report(lone_fit, tmp_path / "r.html")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_report_from_the_shell(lone_fit: xr.DataTree, maps: xr.Dataset, tmp_path: Path) -> None:
    write_tree(lone_fit, tmp_path / "posterior.nc")
    write_maps(maps, tmp_path / "maps")
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--title", "Volunteer 1"])
    assert done.exit_code == 0 and done.output == f"written to {tmp_path / 'report.html'}\n"
    made = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Volunteer 1" in made.text and "sd of D* (10⁻³ mm²/s)" in made.text
    (tmp_path / "taken.html").write_text("mine")
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--out", str(tmp_path / "taken.html")])
    assert isinstance(done.exception, InputError) and (tmp_path / "taken.html").read_text() == "mine"


def test_report_of_a_single_parameter(phantom_scan: tuple[xr.Dataset, xr.Dataset], tmp_path: Path) -> None:
    short = {"draws": 50, "tune": 50, "chains": 2, "voxels_per_roi": 6, "retry": False, "progress": False}
    scan = phantom_scan[0].assign(roi=phantom_scan[0]["roi"].where(phantom_scan[0]["roi"] == 1, 0))
    tree = fit(scan.assign_attrs(roi_names='{"1": "liver"}'), ModelSpec(signal="monoexponential"), **short)
    write_report(tree, tmp_path / "report.html")
    assert "mono-exponential" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_page_of_many_regions_says_what_it_leaves_out(
    short_fit: xr.DataTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    diagnoses = diagnose(short_fit)
    table = summarize(short_fit, diagnoses)
    whole = report.render_report(short_fit, table, diagnoses)
    monkeypatch.setattr(report, "FIGURES_AT_MOST", 1)
    page = report.render_report(short_fit, table, diagnoses)
    assert whole.count("<figure>") == 2 + 3 * 4 and "more regions are without" not in whole
    assert page.count("<figure>") == 1 + 4
    assert "2 more regions are without figures here" in page
