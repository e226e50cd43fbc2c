"""Whom a request was sent to: the one reader of the Host header."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

_NAME = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?"
)


def hostname(headers: Sequence[str]) -> str | None:
    """The name that a request's Host header gives, in lower case and without its port; an IPv6 address without brackets.

    None where there is not exactly one header, or it is no name with a port or without: such a request is nobody's.
    """
    match = _NAME.fullmatch(headers[0]) if len(headers) == 1 else None
    if match is None:
        return None
    name = match["name"].lower()
    if not name.startswith("["):
        return name
    try:
        return str(ipaddress.IPv6Address(name[1:-1]))
    except ValueError:
        return None
