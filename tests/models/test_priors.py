from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ivimbayes.models.priors import (
    TISSUES,
    TissuePrior,
    assign_priors,
    match_tissue,
    read_priors,
    tissue_prior,
)
from ivimbayes.models.signals import SIGNALS

SCIENCE = [
    "brain",
    "white_matter",
    "grey_matter",
    "liver",
    "kidney",
    "kidney_cortex",
    "kidney_medulla",
    "pancreas",
    "pancreatic_tumour",
    "muscle",
    "breast_benign",
    "breast_malignant",
    "spleen",
    "myocardium",
    "bone_marrow",
    "prostate",
    "head_and_neck",
    "placenta",
    "generic",
]


def published(prior: TissuePrior) -> np.ndarray:
    theta = SIGNALS["biexponential"].theta
    return np.array([theta(p["f"], p["D"], p["D_star"]) for p in prior.published])


def test_every_tissue_is_there() -> None:
    assert set(TISSUES) == set(SCIENCE)


@pytest.mark.parametrize("name", [n for n in SCIENCE if n != "generic"])
def test_width_covers_the_published_disagreement(name: str) -> None:
    prior, values = TISSUES[name], published(TISSUES[name])
    assert all(p["source"] for p in prior.published)
    half_range = (values.max(axis=0) - values.min(axis=0)) / 2
    assert (prior.theta_width >= half_range - 1e-9).all()
    floor = (0.7, 0.35, 0.9) if len(values) == 1 else (0.5, 0.2, 0.7)
    assert (prior.theta_width >= floor).all()
    assert (np.abs(values - prior.theta_centre) < 1.96 * prior.theta_width).all()


def test_generic_covers_every_tissue() -> None:
    generic = TISSUES["generic"]
    for name in SCIENCE[:-1]:
        inside = np.abs(published(TISSUES[name]) - generic.theta_centre) <= 1.5 * generic.theta_width
        assert inside.all(), name


@pytest.mark.parametrize(
    ("region", "tissue"),
    [
        ("liver", "liver"), ("Liver_ROI 1", "liver"), ("left kidney", "kidney"), ("Renal-Cortex", "kidney_cortex"),
        ("white matter", "white_matter"), ("peripheral zone", "prostate"), ("pancreatic tumour", "pancreatic_tumour"),
        ("kidney tumour", "generic"), ("liver tumours", "generic"), ("liver_mets2", "generic"), ("pz lesion1", "generic"), ("liver1", "liver"), ("tumour", "generic"), ("roi-3", "generic"), ("slivers", "generic"),
    ],
)  # fmt: skip
def test_regions_find_their_tissue(region: str, tissue: str) -> None:
    assert match_tissue(region).name == tissue


def test_assignment_by_name_and_for_all() -> None:
    chosen = assign_priors(["a", "liver", "kidney"], {"a": "spleen", "kidney": "generic"})
    assert [p.name for p in chosen.values()] == ["spleen", "liver", "generic"]
    assert {p.name for p in assign_priors(["a", "liver"], {"*": "muscle"}).values()} == {"muscle"}


def test_unknown_names_are_refused(refused: Callable[..., str]) -> None:
    refused(lambda: tissue_prior("livre"), "unknown tissue 'livre'", "nearest: liver")
    refused(lambda: tissue_prior("qqqqq"), "known: generic, brain")
    refused(lambda: assign_priors(["liver"], {"kidney": "kidney"}), "no region 'kidney'", "liver")


@pytest.mark.parametrize("name", SCIENCE)
def test_prior_of_the_stretched_exponential_covers_the_curves_of_the_tissues(name: str) -> None:
    """D and alpha of least squares to the bi-exponential curve of the tissue's medians lie within it."""
    b = np.array([0, 10, 20, 40, 80, 110, 140, 170, 200, 300, 400, 500, 600, 700, 800.0])
    tissue, prior = TISSUES[name], TISSUES[name].theta("stretched")
    y = SIGNALS["biexponential"].curve(b, *(tissue.centre[p] for p in ("f", "D", "D_star")))
    theta, S0 = prior.centre, 1.0
    for _ in range(30):  # Gauss-Newton
        curve, slope = SIGNALS["stretched"].jacobian(b, theta)
        step = np.linalg.lstsq(np.vstack([S0 * slope, curve]).T, y - S0 * curve, rcond=None)[0]
        theta, S0 = theta + step[:2], S0 + step[2]
    assert np.abs(step).max() < 1e-6
    assert (np.abs(theta - prior.centre) < 1.96 * prior.width).all()
    assert 0.45 < SIGNALS["stretched"].values(*theta)[1] < 0.88


def test_priors_where_a_model_means_something_else_by_a_name() -> None:
    tissue = TISSUES["liver"]
    plain, slow = tissue.theta("biexponential"), tissue.theta("triexponential")
    for name in ("monoexponential", "kurtosis", "stretched"):
        apparent = tissue.theta(name)
        assert apparent.centre[0] == plain.centre[1]
        assert apparent.width[0] == pytest.approx(np.hypot(plain.width[1], 0.35))
    assert slow.centre[3] - plain.centre[2] == pytest.approx(np.log(0.6))
    assert slow.width[3] == pytest.approx(np.hypot(plain.width[2], 0.7))


def test_round_trip() -> None:
    for prior in TISSUES.values():
        assert TissuePrior.from_dict(prior.to_dict()) == prior


GOOD = "[x]\ncentre = { f = 0.1, D = 1e-3, D_star = 2e-2 }\nwidth = { f = 1, D = 0.3, D_star = 1 }\n"


def test_own_priors_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    text = GOOD.replace("D = 1e-3", "D = 1e-3, alpha = 0.6")
    path.write_text(text + 'names = ["thing"]\nspread = { D = 0.1 }\n', encoding="utf-8")
    prior = read_priors(path)["x"]
    assert prior.spread == {"f": 0.7, "D": 0.1, "D_star": 0.7}
    assert match_tissue("my thing", {"x": prior}).name == "x"
    assert SIGNALS["stretched"].values(*prior.theta("stretched").centre)[1] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no tissue"), ("[x", "not TOML"), ("x = 1", "not a table"), ("[x]\ncolour = 1", "unknown entry colour"),
        ("[x]\ncentre = { f = 0.1 }", "it needs f, D and D_star"), (GOOD.replace("f = 0.1", "f = 1.5"), "fraction between"),
        (GOOD.replace("D_star = 2e-2", "D_star = 5e-4"), "0 < D < D_star"), (GOOD.replace("D = 1e-3", "D = 1.0"), "mm2/s"),
        (GOOD.replace("D = 1e-3", "D = 1e-3, D_star_fast = 0.01"), "0 < D < D_star < D_star_fast, up to 10"),
        (GOOD.replace("D = 1e-3", "D = 1e-3, f_fast = 0.2"), "a part of f = 0.1"), (GOOD.replace("D = 1e-3", "D = 1e-3, K = 11"), "above 0, up to 10"),
        (GOOD.replace("D = 1e-3", "D = 1e-3, alpha = 1"), "alpha = 1; give a fraction between 0 and 1"), (GOOD.replace("f = 1,", "f = 0,"), "above 0"), (GOOD.replace("f = 0.1", "f = nan"), "give a number"),
        (GOOD.replace("f = 0.1", 'f = "a"'), "give a number"), (GOOD + 'names = "a"', "list of words"),
        (GOOD + "published = [{ f = 0.1 }]", "needs a source"), (GOOD + 'published = [{ f = "0.1", source = "y" }]', "is not a number"),
    ],
)  # fmt: skip
def test_bad_priors_files_are_refused(
    text: str, words: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    refused(lambda: read_priors(path), "mine.toml", words)


def test_missing_priors_file(tmp_path: Path, refused: Callable[..., str]) -> None:
    refused(lambda: read_priors(tmp_path / "none.toml"), "no such file", "--priors")
    refused(lambda: read_priors(tmp_path), "cannot be read")
