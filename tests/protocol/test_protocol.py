import warnings
from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr

from ivimbayes import InputWarning, ModelSpec, check_protocol, fit, simulate
from ivimbayes.models.priors import tissue_prior
from ivimbayes.models.signals import SIGNALS
from ivimbayes.protocol.check import require_protocol

FULL = (0, 0, 10, 20, 40, 80, 200, 400, 800)


def of(*b: float, **attrs: object) -> xr.Dataset:
    return xr.Dataset(
        coords={"b": ("measurement", np.array(b, float))}, attrs={"protocol": "dwi.bval", **attrs}
    )


@pytest.mark.parametrize("signal", [s for s in SIGNALS if s != "simplified"])
def test_a_full_protocol_serves_every_model(signal: str) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        require_protocol(of(*FULL), signal, tissue_prior("liver"))
    assert said == []
    assert check_protocol(FULL, signal, "liver").not_identified == {}


@pytest.mark.parametrize(
    ("b", "signal", "words"),
    [
        ((0, 100, 600), "biexponential", ("3 distinct b values", "4 are needed")),
        ((0, 1, 2, 100, 600), "biexponential", ("3 distinct b values", "4 are needed")),
        ((0, 0), "monoexponential", ("1 distinct b values", "2 are needed")),
        ((0, 500), "kurtosis", ("2 distinct", "3 are needed", "kurtosis")),
        ((0, 500), "stretched", ("2 distinct", "3 are needed", "stretched")),
        ((0, 10, 20, 40, 800), "triexponential", ("5 distinct", "6 are needed", "triexponential")),
        ((0, 40, 80, 200, 300, 500, 800), "triexponential", ("2 b values between 0 and 100", "3 are needed", "biexponential")),
        ((100, 200, 400, 800), "biexponential", ("no low b value", "lowest 100", "b = 0")),
        ((5, 200, 400, 800), "simplified", ("no b = 0", "lowest 5", "--signal")),
        ((0, 500, 1000, 2000, 4000), "kurtosis", ("4000", "beyond 3 / (D K) = 34", "prior of liver", "--b-max 34")),
        ((0, 50, 500, 1000, 2000, 4000), "biexponential_kurtosis", ("4000", "beyond 3 / (D K)")),
    ],
)  # fmt: skip
def test_b_values_that_cannot_identify_a_model_are_refused(
    b: tuple[float, ...], signal: str, words: tuple[str, ...], refused: Callable[..., str]
) -> None:
    refused(lambda: require_protocol(of(*b), signal, tissue_prior("liver")), "dwi.bval", *words)


def test_selection_is_the_way_out(refused: Callable[..., str]) -> None:
    refused(lambda: require_protocol(of(0, 100, 600, b_selected=1)), "3 distinct b values", "--b-max")
    refused(lambda: require_protocol(of(60, 100, 300, 600, b_selected=1)), "no low b value", "lower --b-min")


@pytest.mark.parametrize(
    ("b", "signal", "words"),
    [
        ((0, 10, 80, 120, 160), "biexponential", "no high b value .highest 160.*D cannot be told apart"),
        ((0, 200, 300, 600, 800), "biexponential", "D\\* cannot be identified"),
        (
            (0, 200, 400, 600),
            "kurtosis",
            "below 800 kurtosis hardly bends the signal, so K cannot be identified",
        ),
        ((100, 200, 400, 800), "stretched", "lowest 100 .* so alpha cannot be told apart from S0"),
        (FULL, "simplified", "hold perfusion"),
    ],
)
def test_what_will_rest_on_the_prior_is_said(b: tuple[float, ...], signal: str, words: str) -> None:
    with pytest.warns(InputWarning, match=words):
        require_protocol(of(*b), signal)
    require_protocol(of(*b), signal, warn=False)


def test_what_is_said_of_a_kurtosis_is_not_said_of_a_stretched_exponential() -> None:
    found = check_protocol((0, 50, 100, 200, 300, 400), "stretched", "liver")
    assert found.recommended
    assert check_protocol((0, 100, 500, 2000, 5000), "stretched", "liver").minimum


@pytest.mark.parametrize(
    ("b", "gaps", "not_identified"),
    [
        ((0, 10, 20, 40, 120, 160, 300, 500, 800), (), {}),
        ((0, 10, 20, 40, 120, 160, 300, 500), ("from 300",), {}),
        ((0, 200, 300, 600, 800), ("8 recommended", "from 10 to 50", "from 100 to 200"), {"D_star": "rest on the prior"}),
        ((0, 100, 600), ("8 recommended", "from 10 to 50", "from 100 to 200", "from 300"), dict.fromkeys(("f", "D", "D_star"), "4 are needed")),
    ],
)  # fmt: skip
def test_gaps_and_parameters_that_are_not_identified(
    b: tuple[float, ...], gaps: tuple[str, ...], not_identified: dict[str, str]
) -> None:
    found = check_protocol(b)
    assert all(words in gap for words, gap in zip(gaps, found.gaps, strict=True))
    assert set(found.not_identified) == set(not_identified)
    assert all(words in found.not_identified[p] for p, words in not_identified.items())
    assert found.recommended == (not gaps and not not_identified)


def test_nothing_is_sampled_where_the_model_is_refused(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, _ = simulate((0, 50, 500, 1500, 3000, 4500), 30, voxels=10)
    monkeypatch.setattr("ivimbayes.fitting.fit._sample_all", lambda *a: pytest.fail("sampled"))
    refused(lambda: fit(scan, ModelSpec("kurtosis"), progress=False), "4500", "beyond 3 / (D K)")
    refused(lambda: fit(scan, ModelSpec(noise="rician"), progress=False), "real-valued", "gaussian")
