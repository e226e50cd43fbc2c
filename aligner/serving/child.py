"""One of several processes of `aligner serve`, which share nothing but the port and files of rows.

The parent counts a process that does not answer within seconds as hung, so that this module imports nothing heavy: torch is
imported when the process answers already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvicorn.config import STARTUP_FAILURE

from aligner.records import UserError
from aligner.serving.config import ServeConfig
from aligner.terminal import print_lines

if TYPE_CHECKING:
    from starlette.applications import Starlette


def in_a_child(config: ServeConfig) -> Starlette:
    """The application in such a process."""
    from aligner.serving.command import application_of

    try:
        return application_of(config)
    except UserError as error:
        print_lines(f"error: {error}")
        raise SystemExit(STARTUP_FAILURE) from None  # any other status would start it again
