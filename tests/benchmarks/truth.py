"""Known truth that tests and benchmarks share: published values of tissues, and scans of given signals."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from ivimbayes import SIGNALS
from ivimbayes.models.noise import NOISES

TISSUES = {  # D and D* in 1e-3 mm2/s, f: see the page on priors
    "brain": (0.83, 0.076, 10.9), "white matter, OSIPI": (0.81, 0.044, 84), "grey matter, OSIPI": (0.86, 0.033, 76),
    "white matter, Spinner": (0.6, 0.05, 4), "grey matter, Spinner": (0.8, 0.08, 6), "liver, Li": (1.09, 0.23, 70),
    "liver, XCAT": (1.5, 0.11, 100), "kidney": (1.89, 0.19, 40.5), "kidney cortex": (2.12, 0.097, 20),
    "kidney medulla": (2.09, 0.158, 19), "pancreas, Zhu": (1.41, 0.20, 25.4), "pancreas, XCAT": (1.3, 0.15, 10),
    "pancreatic tumour, Zhu": (1.40, 0.124, 22), "pancreatic tumour, XCAT": (1.32, 0.055, 94),
    "muscle, Englund": (1.47, 0.10, 31), "muscle, XCAT": (1.37, 0.10, 26), "breast benign": (1.43, 0.07, 52),
    "breast malignant": (0.97, 0.113, 38), "spleen": (1.3, 0.2, 30), "myocardium": (2.4, 0.15, 80),
    "bone marrow": (0.43, 0.145, 50), "prostate": (1.5, 0.08, 25), "head and neck": (1.0, 0.15, 25),
    "placenta": (1.7, 0.28, 40),
}  # fmt: skip


def make_scan(
    signal: np.ndarray,
    labels: np.ndarray,
    b: Any,
    names: Sequence[str],
    averages: Any = None,
    real_valued: bool = False,
) -> xr.Dataset:
    """Give signals (x, y, measurement) and labels (x, y), from 1 on, as a scan of one slice."""
    b = np.asarray(b, float)
    return xr.Dataset(
        {
            "signal": (("x", "y", "z", "measurement"), signal[:, :, None]),
            "roi": (("x", "y", "z"), labels[:, :, None].astype(np.int32)),
            "affine": (("row", "column"), np.eye(4)),
        },
        coords={
            "b": ("measurement", b),
            "averages": ("measurement", np.ones(len(b)) if averages is None else np.asarray(averages, float)),
        },
        attrs={
            "roi_names": json.dumps({str(n): name for n, name in enumerate(names, start=1)}),
            "inputs": "{}",
            "source": "simulation",
            "real_valued": int(real_valued),
        },
    )


def with_signals_of(
    scan: xr.Dataset, theta: np.ndarray, snr: float, rng: np.random.Generator, noise: str = "gaussian"
) -> xr.Dataset:
    """Put signals of voxels of known theta (x, y, parameter) in place of a scan's; their S0 is 100 on average."""
    model, S0 = SIGNALS["biexponential"], 100 * (1 + 0.1 * rng.standard_normal(theta.shape[:2]))
    curve = model.curve(scan["b"].values, *(v[..., None] for v in model.values(*np.moveaxis(theta, -1, 0))))
    averages = np.ones(scan.sizes["measurement"])
    signal = NOISES[noise].draw_signal(rng, curve, S0, np.full(S0.shape, 100 / snr), averages)
    return scan.assign(signal=(scan["signal"].dims, signal[:, :, None]))
