"""Imports httpx without its command line, which loads rich and pygments where they are: 3 MB that no gateway needs.

To be imported before whatever imports httpx.
"""

import sys

if "httpx" not in sys.modules and "pygments" not in sys.modules:
    sys.modules["pygments"] = None  # type: ignore[assignment]  # for now it is not installed
    try:
        import httpx  # noqa: F401
    finally:
        del sys.modules["pygments"]
