"""Process 1 of a container: passes signals on to the one process that matters, and reaps everybody's orphans."""

import os
import signal

from engines.guard import LEFTOVER_S, become_subreaper, die_with_parent, end_tree, reap

PASSED = {
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGCONT),
}


def stay_as_init(always: bool = False) -> None:
    """As process 1 (or `always`): return in a child, and stay behind as its init until it ends.

    The kernel gives process 1 every orphan, and ignores signals that it does not handle; a program that was not made
    for that collects zombies and does not end when it is told to. Call it before threads and event loops.
    """
    if os.getpid() != 1 and not always:
        return
    become_subreaper()
    parent = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {*PASSED, signal.SIGCHLD})
    child = os.fork()
    if child == 0:
        die_with_parent(parent, signal.SIGTERM)
        os.setsid()  # Ctrl-C in a terminal comes through us, once
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*PASSED, signal.SIGCHLD})
        return
    os._exit(_mind(child))


def _mind(child: int) -> int:
    """The exit status of the child, once nothing of it is left."""
    while True:
        got = signal.sigwaitinfo({*PASSED, signal.SIGCHLD})
        if got.si_signo != signal.SIGCHLD:
            os.kill(child, got.si_signo)
        status, _ = reap(child)
        if status is not None:
            end_tree(LEFTOVER_S + 1.0)  # guards whose supervisor was killed end their trees by themselves
            return status
