"""One writer at a time: a lock file that the system releases with the process that holds it."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from aligner.records import UserError

log = logging.getLogger("aligner")
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


def take(path: Path, busy: str) -> Callable[[], None]:
    """Take a lock file, whose folder is created where it is missing. Returns a function that releases it.

    UserError(busy) where another process has it. A file system without locks is warned of.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(busy) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        log.warning("%s is on a file system without locks: see to it that no other run writes there", path.parent)

    def release() -> None:
        path.unlink(missing_ok=True)  # while it is held: no other process can have taken it
        lock.release()

    return release
