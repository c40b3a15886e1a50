"""Runs one command and sees to it that nothing of it outlives whoever asked for it. Standard library only.

    python -SE guard.py --parent PID [--grace SECONDS] [--leftover SECONDS] [--cpus LIST] -- COMMAND [ARGUMENT ...]

A guard stands between `baton up` and each engine, because an engine is a tree of processes. It is a subreaper: a
process of the tree that loses its parent becomes the guard's child, so the guard can always find the whole tree.
It is two processes that do the same, one below the other: whichever is killed, the other ends the tree. (One alone
would not do: vLLM's EngineCore does not notice the death of the server that started it.)

- The command ends: what is left of its tree is ended, and the guard exits with the command's status (128 + signal).
- SIGTERM, SIGINT or SIGHUP, or the parent dies (even by SIGKILL): the command is asked to end; after the grace, or at a
  second signal, or at SIGQUIT at once, the whole tree is killed.
- The outer guard is killed: the inner one has lost its parent, as above. The inner one is killed: the kernel kills the
  command, and what it leaves behind becomes the outer one's (PR_SET_PDEATHSIG and PR_SET_CHILD_SUBREAPER of prctl(2)).
"""

import argparse
import ctypes
import os
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
ASK = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
WATCHED = {*ASK, signal.SIGQUIT, signal.SIGCHLD}
GRACE_S = 10.0
"""From asking a command to end until it is killed."""
LEFTOVER_S = 2.0
"""For what a command leaves behind."""
JANITOR_S = 1.0
"""For a resource tracker after everything else was killed."""


def prctl(option: int, value: int) -> None:
    """prctl(2) with one argument. Raises `OSError`."""
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def become_subreaper() -> None:
    """From here on, orphans among our descendants become our children."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int, how: signal.Signals) -> None:
    """Get the signal `how` when the parent dies; exit at once if it is gone already."""
    prctl(PR_SET_PDEATHSIG, how)
    if os.getppid() != parent:
        os._exit(1)


def descendants(root: int) -> list[int]:
    """All living processes below `root`, parents before children."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 - pathlib costs an object per process
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as stat:  # noqa: PTH123
                    state, parent = stat.read().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if state != "Z":
                children.setdefault(int(parent), []).append(int(entry))
    found = list(children.get(root, ()))
    for pid in found:
        found += children.get(pid, ())
    return found


def send(pids: list[int], what: signal.Signals) -> None:
    """Send a signal to those that are still there."""
    for pid in pids:
        try:
            os.kill(pid, what)
        except ProcessLookupError:
            continue


def is_janitor(pid: int) -> bool:
    """True for Python's resource tracker: once its family is gone it removes their shared memory, and ends."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as line:  # noqa: PTH123
            return b"multiprocessing.resource_tracker" in line.read()
    except OSError:
        return False


def reap(main: int) -> tuple[int | None, bool]:
    """Collect every ended child. Returns the exit status of `main` if it was among them, and if any child is left."""
    status = None
    while True:
        try:
            pid, raw = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status, False
        if pid == 0:
            return status, True
        if pid == main:
            code = os.waitstatus_to_exitcode(raw)
            status = code if code >= 0 else 128 - code


def end_tree(grace_s: float) -> None:
    """Give every descendant `grace_s` to end by itself, then kill until there is none. SIGQUIT cuts the grace short.

    Who has no child has no descendant, since orphans come to us.
    """
    deadline = time.monotonic() + grace_s
    while reap(0)[1]:
        if (late_s := time.monotonic() - deadline) >= 0:
            left = descendants(os.getpid())
            send([pid for pid in left if late_s > JANITOR_S or not is_janitor(pid)], signal.SIGKILL)
        got = signal.sigtimedwait({signal.SIGCHLD, signal.SIGQUIT}, 0.05)
        if got is not None and got.si_signo == signal.SIGQUIT:
            deadline = min(deadline, time.monotonic())


def watch(main: int, grace_s: float, leftover_s: float) -> int:
    """Stay with the child `main` until it ends or we are told to end; then end the rest. Returns the exit status."""
    deadline = None
    while True:
        left_s = 3600.0 if deadline is None else max(0.0, deadline - time.monotonic())
        got = signal.sigtimedwait(WATCHED, left_s)
        status, _ = reap(main)
        if status is not None:
            end_tree(leftover_s)
            return status
        told = got.si_signo if got is not None else None
        if told == signal.SIGCHLD or (told is None and deadline is None):
            continue
        if told in ASK and deadline is None:
            deadline = time.monotonic() + grace_s
            send([main], signal.SIGTERM)
        else:  # the grace is over, we were told twice, or to end at once
            end_tree(0.0)
            return 128 + signal.SIGKILL


def guard(command: list[str], parent: int, grace_s: float = GRACE_S, leftover_s: float = LEFTOVER_S) -> int:
    """Run `command` to its end under two guards; returns the exit status."""
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    for more_s in (leftover_s + 1.0, 0.0):  # the outer guard leaves the inner one time to end its tree
        die_with_parent(parent, signal.SIGTERM)
        become_subreaper()
        parent = os.getpid()
        child = os.fork()
        if child != 0:
            return watch(child, grace_s + more_s, leftover_s)
    os.setsid()
    die_with_parent(parent, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.stderr.write(f"guard: {command[0]}: {error}\n")
        os._exit(127)


def pin(cpus: str) -> None:
    """Run, with all that comes of us, on these processors (`0-31,64`), as far as we may use them."""
    wanted: set[int] = set()
    for part in cpus.split(","):
        first, _, last = part.partition("-")
        wanted.update(range(int(first), int(last or first) + 1))
    if allowed := wanted & os.sched_getaffinity(0):
        os.sched_setaffinity(0, allowed)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run a command that leaves nothing behind.")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--grace", type=float, default=GRACE_S)
    parser.add_argument("--leftover", type=float, default=LEFTOVER_S)
    parser.add_argument("--cpus", default="")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    if options.cpus:
        pin(options.cpus)
    return guard(options.command, options.parent, options.grace, options.leftover)


if __name__ == "__main__":
    sys.exit(main())
