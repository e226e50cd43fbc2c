"""What the operating system refuses, in one line with what to do."""

from __future__ import annotations

import errno

from aligner.records import UserError

_ROOM = "Make room and run the same command again."
_ALLOWED = "Name another path, or have its owner allow it."
REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EMFILE: "Raise the limit of open files (ulimit -n) and run the same command again.",
    errno.EIO: "The disk or the network share fails: look at it, or name another path.",
    errno.ESTALE: "The network share was mounted anew: run the same command again.",
}
REMEDIES_OF_A_PATH = {  # the same numbers without a path are of a port, or of a process
    errno.EACCES: _ALLOWED,
    errno.EPERM: _ALLOWED,
    errno.EROFS: "Name a path on a disk that can be written.",
    errno.ENOENT: "Check how it is spelled; an output has to be where files can be made.",
    errno.ENOTDIR: "A part of the path is a file: name another path.",
    errno.EISDIR: "It is a folder: name a file.",
    errno.ENAMETOOLONG: "Name a shorter path.",
}


def system_error(error: OSError) -> UserError:
    """A fault of the operating system in one line: the path if there is one, what the system says, and what to do."""
    finding = f"{error.filename or 'the system says'}: {error.strerror or error}."
    known = REMEDIES | REMEDIES_OF_A_PATH if error.filename else REMEDIES
    return UserError(f"{finding} {known[error.errno]}" if error.errno in known else finding)
