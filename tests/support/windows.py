"""What Windows lacks, taken from the modules of gptft and from no others."""

import builtins
import errno
import fcntl
import os
import signal
from collections.abc import Mapping
from types import ModuleType
from typing import Any

MODULES = frozenset("curses fcntl grp posix pty pwd readline resource syslog termios tty".split())
"""Modules of the standard library that Windows does not have."""
NAMES = {
    "os": frozenset(
        "O_CLOEXEC O_DIRECTORY O_NOCTTY O_NOFOLLOW O_NONBLOCK O_SYNC chown ctermid fchdir fchown "
        "fdatasync fork forkpty fstatvfs getegid geteuid getgid getgroups getloadavg getpgid "
        "getpriority getuid killpg lchown mkfifo mknod nice openpty pathconf posix_fadvise "
        "posix_fallocate pread pwrite readv register_at_fork sched_getaffinity sched_setaffinity "
        "sched_yield sendfile setsid statvfs sync sysconf sysconf_names uname wait writev".split()
    ),
    "signal": frozenset(
        "SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP SIGUSR1 SIGUSR2 "
        "alarm pause pthread_kill pthread_sigmask setitimer siginterrupt sigwait".split()
    ),
}
"""Names that `os` and `signal` do not have on Windows."""


class _Without(ModuleType):
    """A module without some names, and with others replaced."""

    def __init__(
        self, module: ModuleType, missing: frozenset[str], replaced: Mapping[str, Any]
    ) -> None:
        super().__init__(module.__name__)
        self.__dict__.update(_module=module, _missing=missing, **replaced)

    def __getattr__(self, name: str) -> Any:
        if name in self._missing:
            raise AttributeError(f"Windows has no {self.__name__}.{name}")
        return getattr(self._module, name)


def _open(path: Any, flags: int, mode: int = 0o777) -> int:
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    return os.open(path, flags, mode)


def _fsync(descriptor: int) -> None:
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    os.fsync(descriptor)


def imitate() -> None:
    """From now on gptft's modules, imported after this, find what they would find on Windows."""
    here = {
        "os": _Without(os, NAMES["os"], {"name": "nt", "open": _open, "fsync": _fsync}),
        "signal": _Without(signal, NAMES["signal"], {}),
    }
    original = builtins.__import__

    def import_as_windows(
        name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> ModuleType:
        importer = str((globals or {}).get("__name__", "")).partition(".")[0]
        if importer in ("finetune", "task_formats"):
            if name in MODULES:
                raise ModuleNotFoundError(f"Windows has no module {name}")
            if name in here:
                return here[name]
        return original(name, globals, locals, fromlist, level)

    builtins.__import__ = import_as_windows
