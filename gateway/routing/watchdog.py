"""Ends a policy's decision that does not end by itself: it runs in the event loop's thread, and all requests with it.

A second thread has the interpreter raise `Stopped` in the loop's thread (`PyThreadState_SetAsyncExc`), again and again
until the decision is over. What is safe about it: CPython switches threads and raises such exceptions only where a
function is entered, at the end of a call and when a loop jumps back. So

- the watching thread looks up whether the decision runs (a subscript) and raises in one step: no switch in between;
- the decision's end is taken off the book (`del`) and a late `Stopped` is cleared in one step too: its call returns
  after that, so it is raised either where `try` catches it, or never.

It cannot end a single long call into C (`time.sleep`, a huge `sum`): the examination before a policy serves is for
that.
"""

import ctypes
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from threading import Event, Thread, get_ident

from policies.contract import Fleet, Request

LIMIT_S = 0.05
"""A decision that takes longer is ended."""
_AGAIN_S = 0.005

_raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
_raise_in.argtypes = (ctypes.c_ulong, ctypes.c_void_p)
_raise_in.restype = ctypes.c_int


class Overlong(Exception):
    """A decision was ended."""


class Raised(Exception):
    """A policy raised what would end the process."""


_loop_thread = ctypes.c_ulong(0)
"""The thread in which a decision runs; 0 while none does."""


class _Stopped(BaseException):
    """Not an `Exception`, so that a policy's own `except Exception` does not keep it.

    Where a policy catches it all the same, in a loop, it comes again when the handler lets go of it: by then the `try`
    is left. Not a Python function, in which it would be raised and lost.
    """


_STOPPED = id(_Stopped)
_Stopped.__del__ = partial(_raise_in, _loop_thread, _STOPPED)  # type: ignore[attr-defined]


class Watchdog:
    """Runs decisions, one at a time. Its thread sleeps while there are none."""

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self._limit_s = limit_s
        self._running: dict[int, int] = {}
        """The thread of the decision that runs, by its number."""
        self._number = 0
        self._since = 0.0
        self._idle = False
        self._called = Event()
        self._closed = False
        self._thread: Thread | None = None

    def run(self, place: Callable[[Request, Fleet], object], request: Request, fleet: Fleet) -> object:
        """What `place` returns, or raises if that is an `Exception`. Raises `Overlong`, `Raised`."""
        if self._thread is None:
            self._start()
        running, thread = self._running, get_ident()
        number = self._number + 1
        self._since = time.perf_counter()
        try:
            try:
                running[number] = _loop_thread.value = thread
                self._number = number
                if self._idle:
                    self._called.set()
                return place(request, fleet)
            finally:  # no call before these three
                del running[number]
                _loop_thread.value = 0
                _raise_in(thread, None)
        except _Stopped:
            raise Overlong(f"no placement within {self._limit_s * 1e3:g} ms") from None
        except Exception:
            raise
        except BaseException as error:
            raise Raised(f"{type(error).__name__}: {error}") from None

    def close(self) -> None:
        """End the thread; one that runs a decision ends after it."""
        self._closed = True
        self._called.set()

    def _start(self) -> None:
        self._closed = False
        self._thread = Thread(target=self._watch, name="policy watchdog", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        seen = 0
        while not self._closed:
            number = self._number
            if number != seen:
                seen = number
                time.sleep(max(0.0, self._since + self._limit_s - time.perf_counter()))
            elif number in self._running:
                self._stop(number)
                time.sleep(_AGAIN_S)
            else:
                self._idle = True
                if self._number == number:
                    self._called.wait()
                self._idle = False
                self._called.clear()

    def _stop(self, number: int) -> None:
        with suppress(KeyError):  # it has just ended
            _raise_in(self._running[number], _STOPPED)  # nothing may stand between subscript and call
