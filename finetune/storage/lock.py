"""One writer for a folder: a lock that the system lets go with its process, however that ends."""

import fcntl
import os
import socket
import weakref
from io import FileIO
from pathlib import Path

from finetune.storage import files
from finetune.storage import json_files as json_text
from task_formats import UsageError

_HELD: weakref.WeakSet[FileIO] = weakref.WeakSet()


def acquire_lock(path: Path) -> FileIO:
    """Lock the file, made where missing; closing what comes back unlocks it.

    UsageError naming process and host where it is locked already, by this very process too, and
    where the file system knows no locks.
    """
    with files.explain_os_errors(path):
        file = files.open_regular_file(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            file.write(json_text.encode({"pid": os.getpid(), "host": socket.gethostname()}))
        except BlockingIOError:
            with file:
                raise _in_use(path, file.read(1000)) from None
        except OSError:
            file.close()
            raise
    _HELD.add(file)
    return file


def _in_use(path: Path, holder: bytes) -> UsageError:
    try:
        known = json_text.decode(holder, str(path))
        who = f"process {known['pid']} on {known['host']}"
    except (UsageError, KeyError, TypeError):
        who = "another process"
    return UsageError(
        f"in use by {who}",
        where=str(path.parent),
        cure="Wait until it ends, or choose another folder.",
    )


def _let_go() -> None:
    # A forked worker shares the lock; should it outlive its parent, it must not keep it.
    for file in list(_HELD):
        file.close()


os.register_at_fork(after_in_child=_let_go)
