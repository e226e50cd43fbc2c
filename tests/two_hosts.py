"""Two hosts on one machine: network namespaces with an address, a hostname and an sshd each; the file system is shared.

Needs root, iproute2, sshd and pdsh. Nothing outside the folder and the namespaces is touched; all of it goes at the end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

NAMES = ("alignerhost0", "alignerhost1")
ADDRESSES = ("10.199.0.1", "10.199.0.2")
LINK = "link0"  # the network interface of each


def missing() -> list[str]:
    """What this machine lacks for two hosts."""
    lacking = [tool for tool in ("ip", "unshare", "sshd", "ssh-keygen", "pdsh") if not _tool(tool)]
    if os.geteuid() != 0:
        lacking.append("root")
    elif not lacking:
        tried = subprocess.run(["unshare", "--net", "--uts", "true"], capture_output=True, check=False)
        lacking += [] if tried.returncode == 0 else ["network namespaces"]
    return lacking


def _tool(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@dataclass(frozen=True)
class Hosts:
    """The hostfile, the word in front of a command that runs it on the first host, and the environment it needs."""

    hostfile: Path
    on_first: tuple[str, ...]
    variables: dict[str, str]


@contextmanager
def two_hosts(folder: Path) -> Iterator[Hosts]:
    """Two hosts with one slot each, reachable from each other over ssh without a password."""
    key, ssh_config, shims = folder / "key", folder / "ssh_config", folder / "bin"
    shims.mkdir(parents=True)
    _run(_tool("ssh-keygen") or "", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    (folder / "authorized").write_text(key.with_suffix(".pub").read_text())
    ssh_config.write_text(
        f"Host *\n  IdentityFile {key}\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
    )
    (shims / "ssh").write_text(f'#!/bin/sh\nexec {_tool("ssh")} -F {ssh_config} "$@"\n')
    (shims / "ssh").chmod(0o755)
    hostfile = folder / "hostfile"
    hostfile.write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for name in NAMES:
            _run("ip", "netns", "add", name)
        _run("ip", "link", "add", LINK, "netns", NAMES[0], "type", "veth", "peer", "name", LINK, "netns", NAMES[1])
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", LINK)
            _run("ip", "-n", name, "link", "set", LINK, "up")
            _run("ip", "-n", name, "link", "set", "lo", "up")
            daemons.append(_sshd(folder, name, address))
        yield Hosts(
            hostfile,
            ("ip", "netns", "exec", NAMES[0], "unshare", "--uts", "sh", "-c", f'hostname {NAMES[0]}; exec "$@"', "sh"),
            {
                "PATH": f"{shims}:{os.environ['PATH']}",
                "GLOO_SOCKET_IFNAME": LINK,
                "DS_ACCELERATOR": "cpu",
                "OMP_NUM_THREADS": "1",
            },
        )
    finally:
        for daemon in daemons:
            daemon.terminate()
            daemon.wait(10)
        for name in NAMES:
            subprocess.run(["ip", "netns", "pids", name], capture_output=True, check=False)
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _sshd(folder: Path, name: str, address: str) -> subprocess.Popen[bytes]:
    host_key = folder / f"{name}_key"
    _run(_tool("ssh-keygen") or "", "-q", "-t", "ed25519", "-N", "", "-f", str(host_key))
    config = folder / f"{name}_sshd"
    config.write_text(
        f"ListenAddress {address}\nHostKey {host_key}\nAuthorizedKeysFile {folder / 'authorized'}\nPidFile none\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    start = f"hostname {name}; exec {_tool('sshd')} -D -e -f {config}"
    log = (folder / f"{name}.log").open("wb")
    daemon = subprocess.Popen(
        ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", start], stdout=log, stderr=log
    )
    for _ in range(100):
        if "Server listening" in (folder / f"{name}.log").read_text():
            return daemon
        time.sleep(0.1)
    raise RuntimeError((folder / f"{name}.log").read_text())


def cut(connected: bool) -> None:
    """Take the second host's cable out, or put it back."""
    _run("ip", "-n", NAMES[1], "link", "set", LINK, "up" if connected else "down")
