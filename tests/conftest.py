"""What holds for all tests."""

from hypothesis import Phase, settings

# Not `explain`: it traces the interpreter, and CPython 3.11 then hangs where a policy's watchdog ran before.
settings.register_profile("baton", settings.default, phases=[phase for phase in Phase if phase is not Phase.explain])
settings.load_profile("baton")
