"""Print the oldest releases that pyproject.toml allows, as constraints for pip."""

import re
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]

extras = PROJECT["optional-dependencies"]
for need in [*PROJECT["dependencies"], *extras["dask"], *extras["data"], *extras["test"]]:
    if found := re.match(r"([\w.-]+)>=([\w.]+)", need):
        print(f"{found[1]}=={found[2]}")
