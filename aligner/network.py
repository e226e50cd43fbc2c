"""Whether something on the network can be reached, said within seconds: libraries would try again for minutes, in silence."""

from __future__ import annotations

import os
import socket
import sys
import threading
from contextlib import suppress
from functools import lru_cache
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from aligner.records import UserError

PATIENCE = 5.0  # seconds for a connection
HUB = "https://huggingface.co"
INDEX = "https://pypi.org/simple"
WANDB = "https://api.wandb.ai"


def hub_address() -> str:
    """The hub that the environment names."""
    return os.environ.get("HF_ENDPOINT") or HUB


@lru_cache(maxsize=16)
def is_reachable(url: str) -> bool:
    """Whether the host of a URL, or the proxy before it, takes a connection. Asked once a process."""
    where = urlsplit(url)
    proxy = getproxies().get(where.scheme)
    if proxy and not proxy_bypass(where.hostname or ""):
        where = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port, connected = where.port or (443 if where.scheme == "https" else 80), threading.Event()

    def connect() -> None:
        with suppress(OSError), socket.create_connection((where.hostname or "", port), PATIENCE):
            connected.set()

    thread = threading.Thread(target=connect, daemon=True)  # a name's look-up has no time limit of its own
    thread.start()
    thread.join(PATIENCE + 1)
    return connected.is_set()


def hub_is_offline() -> bool:
    """Whether the hub is not to be asked, by choice."""
    return any(
        os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    )


def use_cached_hub() -> None:
    """From here on the hub's libraries take what their cache has, in this process and those that it starts."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    for module, name in (("huggingface_hub.constants", "HF_HUB_OFFLINE"), ("datasets.config", "HF_HUB_OFFLINE")):
        if module in sys.modules:
            setattr(sys.modules[module], name, True)


def require_loopback() -> None:
    """UserError where this machine cannot reach itself: ranks would wait half an hour for each other."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), 5):
            return
    except OSError as error:
        raise UserError(
            f"this machine cannot reach itself at 127.0.0.1 ({error.strerror or error}), where ranks find each other. "
            "Run 'ip link set lo up' in this network namespace, or take down the firewall's rule."
        ) from None
