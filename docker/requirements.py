"""Prints what the gateway needs of other packages: an image installs that before, and apart from, our own code.

python requirements.py [EXTRA ...]: what these extras need, and nothing else.
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras = [line for name in sys.argv[1:] for line in project["optional-dependencies"][name]]
sys.stdout.writelines(f"{line}\n" for line in (extras if sys.argv[1:] else project["dependencies"]))
