"""Draw the README's picture from a finished demo: python docs/images/demo.py demo docs/images/demo.png."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt

import ivimbayes as ib

folder, picture = map(Path, sys.argv[1:])
tree, (_, truth) = ib.read_tree(folder / "posterior.nc"), ib.phantom()
figure = plt.figure(figsize=(10, 5.6), layout="constrained")
top, bottom = figure.subfigures(2, 1, height_ratios=(1.5, 1))
for ax, roi in zip(top.subplots(1, 3, sharey=True), truth["roi"].values, strict=True):
    ib.plot_decay(tree, roi, ax=ax)
ib.plot_regions(tree, truth, bottom.subplots(1, 3, sharey=True))
figure.savefig(picture, dpi=110)
