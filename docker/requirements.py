"""Prints what the gateway needs of other packages: an image installs that before, and apart from, our own code."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
sys.stdout.writelines(f"{line}\n" for line in project["dependencies"])
