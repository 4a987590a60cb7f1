"""Texts and images that atheris finds by what code they reach: each ends in a result or in an InputError.

    .venv/bin/pip install atheris
    .venv/bin/python tests/fuzz/guided.py {bval,json,tsv,priors,table,image} -runs=100000 [options of libFuzzer]

Ends with a traceback and the file that led there if one ends otherwise.
"""

import struct
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["ivimbayes.io.labels", "ivimbayes.models.priors", "ivimbayes.io.scans", "ivimbayes.io.nifti", "ivimbayes.io.tables", "tomllib", "json", "csv"]):  # fmt: skip
    import numpy as np

    from ivimbayes.errors import InputError
    from ivimbayes.io.labels import read_label_names
    from ivimbayes.io.nifti import open_image, read_values
    from ivimbayes.io.scans import read_bval
    from ivimbayes.io.tables import read_table
    from ivimbayes.models.priors import read_priors

FOLDER = Path(tempfile.mkdtemp())


def header() -> bytearray:
    """A NIfTI image of 2 x 2 x 2 bytes."""
    raw = bytearray(360)
    struct.pack_into("<i", raw, 0, 348)
    struct.pack_into("<8h", raw, 40, 3, 2, 2, 2, 1, 1, 1, 1)
    struct.pack_into("<2h", raw, 70, 2, 8)
    struct.pack_into("<4f", raw, 76, 1, 1, 1, 1)
    struct.pack_into("<2f", raw, 108, 352, 1)
    raw[344:348] = b"n+1\0"
    return raw


def read_image(path: Path) -> None:
    """Read an image and its values."""
    image = open_image(path, 3, "labels")
    read_values(image.dataobj, (...,), path)


READERS: dict[str, tuple[str, Callable[[Path], object], bytes]] = {
    "bval": ("a.bval", lambda path: read_bval(path, 3), b"0 100 800\n"),
    "json": ("a.json", lambda path: read_label_names(path, np.array([1, 2]), path), b'{"1": "liver", "2": "spleen"}'),
    "tsv": ("a.tsv", lambda path: read_label_names(path, np.array([1]), path), b"index\tname\n1\tliver\n"),
    "priors": ("a.toml", read_priors, b"[x]\ncentre = {f = 0.2, D = 1e-3, D_star = 2e-2}\nwidth = {f = 1.0, D = 0.4, D_star = 1.0}\n"),
    "table": ("a.tsv", lambda path: read_table(path, "correct it"), b"fit\tsubject\n1\t2\n"),
    "image": ("a.nii", read_image, bytes(header())),
}  # fmt: skip


def main() -> None:
    """Run libFuzzer over one reader."""
    name, read, seed = READERS[sys.argv[1]]
    path, corpus = FOLDER / name, FOLDER / "corpus"
    corpus.mkdir()
    (corpus / "valid").write_bytes(seed)
    warnings.simplefilter("ignore")

    def one(data: bytes) -> None:
        path.write_bytes(data)
        try:
            read(path)
        except InputError as error:
            assert "\n" not in str(error)

    atheris.Setup([sys.argv[0], *sys.argv[2:], "-rss_limit_mb=4096", "-timeout=30", str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
