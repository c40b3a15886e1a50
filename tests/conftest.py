"""What holds for all tests."""

import signal

from hypothesis import Phase, settings

# Not `explain`: it traces the interpreter, and CPython 3.11 then hangs where a policy's watchdog ran before.
settings.register_profile("baton", settings.default, phases=[phase for phase in Phase if phase is not Phase.explain])
settings.load_profile("baton")

# Started in the background a shell has us ignore Ctrl-C, and so would every process that we start.
signal.signal(signal.SIGINT, signal.default_int_handler)
