"""Draw the signal decay of the theory page: python docs/images/decay.py docs/images/decay.png."""

import sys

import matplotlib.pyplot as plt
import numpy as np

import ivimbayes as ib

b = np.linspace(0, 800, 801)
f, D, D_star = 0.23, 1.09e-3, 70e-3
curves = {
    "signal": (ib.predict(b, 1.0, f=f, D=D, D_star=D_star), "#0072B2", "-"),
    "tissue part": ((1 - f) * np.exp(-b * D), "#009E73", "--"),
    "vascular part": (f * np.exp(-b * D_star), "#D55E00", ":"),
}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for ax, scale in zip(axes, ("linear", "log"), strict=True):
    for label, (curve, colour, line) in curves.items():
        ax.plot(b, curve, line, color=colour, label=label)
    ax.set(xlabel="b (s/mm²)", ylabel="signal / S0", yscale=scale)
axes[0].set_ylim(0, None)
axes[1].set_ylim(0.01, 1.2)
axes[1].axvspan(0, 200, color="#555555", alpha=0.12, lw=0)
axes[1].text(210, 0.012, "b > 200: slope D", color="#555555")
axes[0].legend(frameon=False)
figure.savefig(sys.argv[1], dpi=110)
