"""What holds for all tests."""

import signal
import sys
from collections.abc import Iterator

import pytest
from hypothesis import Phase, settings

# Not `explain`: it traces the interpreter, and CPython 3.11 then hangs where a policy's watchdog ran before.
settings.register_profile("baton", settings.default, phases=[phase for phase in Phase if phase is not Phase.explain])
settings.load_profile("baton")

# Started in the background a shell has us ignore Ctrl-C, and so would every process that we start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _handled() -> Iterator[None]:
    """No test leaves an exception behind that counts as being handled (compiled coroutines can: see `tests/native`)."""
    before = sys.exc_info()[1]
    yield
    assert sys.exc_info()[1] is before
