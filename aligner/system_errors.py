"""What the operating system refuses, in one line with what to do."""

from __future__ import annotations

import errno

from aligner.records import UserError

_ROOM = "Make room and run the same command again."
_ALLOWED = "Name another path, or have its owner allow it."
REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EACCES: _ALLOWED,
    errno.EPERM: _ALLOWED,
    errno.EROFS: "Name a path on a disk that can be written.",
    errno.ENOENT: "Look whether it is spelled right; an output has to be where files can be made.",
    errno.ENOTDIR: "A part of the path is a file: name another.",
    errno.EISDIR: "It is a folder: name a file.",
    errno.ENAMETOOLONG: "Name a shorter path.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n) and run the same command again.",
    errno.EIO: "The disk or the network share fails: look at it, or name another path.",
    errno.ESTALE: "The network share was mounted anew: run the same command again.",
}


def system_error(error: OSError) -> UserError:
    """A fault of the file system in one line: the path, what the system says, and what to do."""
    found = f"{error.filename or 'the system says'}: {error.strerror or error}."
    return UserError(" ".join(filter(None, (found, REMEDIES.get(error.errno or 0)))))
