"""Runs one command and sees to it that nothing of it outlives whoever asked for it. Standard library only.

    python -SE guard.py --parent PID --grace SECONDS -- COMMAND [ARGUMENT ...]

A guard stands between `baton up` and each engine, because an engine is a tree of processes. It is a subreaper: a
process of the tree that loses its parent becomes the guard's child, so the guard can always find the whole tree.

- The command ends: what is left of its tree is ended, and the guard exits with the command's status (128 + signal).
- SIGTERM, SIGINT or SIGHUP, or the parent dies (even by SIGKILL): the command is asked to end; after the grace, or at a
  second signal, or at SIGQUIT at once, the whole tree is killed.
- The guard itself is killed: the kernel kills the command (PR_SET_PDEATHSIG), see prctl(2).
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
LEFTOVER_GRACE_S = 2.0


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


def reap(main: int) -> int | None:
    """Collect every ended child; the exit status of `main` if it was among them."""
    status = None
    while True:
        try:
            pid, raw = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid == 0:
            return status
        if pid == main:
            code = os.waitstatus_to_exitcode(raw)
            status = code if code >= 0 else 128 - code


def end_tree(main: int, grace_s: float) -> None:
    """Ask every descendant to end, then kill until there is none."""
    me = os.getpid()
    deadline = time.monotonic() + grace_s
    if grace_s > 0:
        send(descendants(me), signal.SIGTERM)
    while left := descendants(me):
        if time.monotonic() >= deadline:
            send(left, signal.SIGKILL)
        signal.sigtimedwait({signal.SIGCHLD}, 0.05)
        reap(main)
    reap(main)


def guard(command: list[str], parent: int, grace_s: float) -> int:
    """Run `command` to its end; returns the exit status."""
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    die_with_parent(parent, signal.SIGTERM)
    become_subreaper()
    me = os.getpid()
    main = os.fork()
    if main == 0:
        os.setsid()
        die_with_parent(me, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
        try:
            os.execvp(command[0], command)
        except OSError as error:
            sys.stderr.write(f"guard: {command[0]}: {error}\n")
            os._exit(127)
    deadline = None
    status = None
    while status is None:
        wait_s = 3600.0 if deadline is None else max(0.0, deadline - time.monotonic())
        got = signal.sigtimedwait(WATCHED, wait_s)
        status = reap(main)
        if status is not None:
            break
        if got is None and deadline is None:
            continue
        if got is not None and got.si_signo == signal.SIGCHLD:
            continue
        if got is not None and got.si_signo in ASK and deadline is None:
            deadline = time.monotonic() + grace_s
            send([main], signal.SIGTERM)
        else:  # the grace is over, or we were told twice
            end_tree(main, 0.0)
            return 128 + signal.SIGKILL
    end_tree(main, LEFTOVER_GRACE_S)
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description="Run a command that leaves nothing behind.")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--grace", type=float, default=10.0)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    return guard(options.command, options.parent, options.grace)


if __name__ == "__main__":
    sys.exit(main())
