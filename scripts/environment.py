"""Finds or makes the Python environment of the scripts. Standard library alone: it runs before anything is installed.

    python environment.py ready EXTRA [PREFIX]   exit 0 where the Python that runs this can run the project; else says why not
    python -I environment.py make EXTRA          prints the path of a Python that can, after making an environment if need be
    python environment.py prepare EXTRA FOLDER   puts the packages into FOLDER/packages

An environment is built beside its place, checked by importing, and renamed, one at a time under a lock. One that is there is
completed or mended in place. Nothing is removed but what this very run has made.
"""

from __future__ import annotations

import ast
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(os.path.realpath(__file__)).parents[1]
READY, LACKING, NO_ENVIRONMENT = 0, 1, 3  # exit statuses of `ready`
DOWNLOAD, DISK, MINUTES = 2.9, 5.6, "1 to 10"  # GB with CUDA's libraries, as measured for constraints.txt
LEAST = 2.0  # GB of disk without CUDA's libraries
FILES = 54_000
# What of pip's settings is about where packages come from; the rest (user, target, no-deps, ...) is set aside.
SOURCES = ("index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "cert", "client-cert", "proxy", "timeout",
           "retries", "cache-dir", "no-cache-dir", "keyring-provider")  # fmt: skip


class Refusal(Exception):
    """What the user can mend, in one line with its remedy."""


def say(text: str) -> None:
    """Tell the user; nobody may be listening any more."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


# --- is this Python ready?


def wanted(extra: str) -> list[str]:
    """The requirements of pyproject.toml, with those of an extra ("" for none)."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["dependencies"] + (project["optional-dependencies"][extra] if extra else [])


def shortcomings(extra: str, whole: bool) -> dict[str, str]:
    """What this Python lacks to run the project, by package; empty where it lacks nothing.

    Looks at versions and at whether every module file that was installed is still there. `whole`: packages that only other
    packages need are looked for too (conda calls some of them otherwise).
    """
    try:
        from packaging.requirements import Requirement
    except ImportError:
        try:
            from pip._vendor.packaging.requirements import Requirement
        except ImportError:
            return {"packaging": "packaging is missing"}
    from importlib.metadata import PackageNotFoundError, distribution

    lacking: dict[str, str] = {}
    listings: dict[str, set[str]] = {}
    foreign = names_on_pythonpath()
    todo, seen = [(text, "", ("",)) for text in wanted(extra)], set()
    while todo:
        text, parent, extras = todo.pop()
        requirement = Requirement(text)
        name = requirement.name.lower().replace("_", "-")
        if requirement.marker and not any(requirement.marker.evaluate({"extra": each}) for each in extras):
            continue
        if (name, *requirement.extras) in seen:
            continue
        seen.add((name, *requirement.extras))
        try:
            package = distribution(requirement.name)
            version, needs = package.metadata["Version"], package.requires or []
        except PackageNotFoundError:
            if whole or not parent:
                lacking[name] = f"{name} is missing" + (f", which {parent} needs" if parent else "")
            continue
        if not version or lost_file(package, listings, whole):
            lacking[name] = f"{name} {version or ''} has lost {lost_file(package, listings, whole) or 'its metadata'}"
        elif not parent and not requirement.specifier.contains(version, prereleases=True):
            lacking[name] = f"{name} is {version} and should be {requirement.specifier}"
        elif why := shadow_fault(package, foreign):
            lacking[name] = f"{name} cannot be imported from PYTHONPATH ({why})"
        todo += [(each, name, (*requirement.extras, "")) for each in needs]
    return lacking


def names_on_pythonpath() -> set[str]:
    """What stands in the folders of PYTHONPATH, which come before an environment's own packages."""
    names: set[str] = set()
    for folder in filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)) if not sys.flags.isolated else ():
        with suppress(OSError):
            names.update(entry.name.removesuffix(".py") for entry in Path(folder).iterdir())
    return names


def shadow_fault(package: object, foreign: set[str]) -> str:
    """Why a package's modules that PYTHONPATH has too (a cluster's module for another Python) do not work; "" where they do."""
    import importlib

    if not foreign:
        return ""
    tops = {path.parts[0].removesuffix(".py") for path in package.files or []}
    tops |= {*(package.read_text("top_level.txt") or "").split(), package.metadata["Name"].replace("-", "_")}
    for name in sorted(tops & foreign):
        if name.isidentifier():
            try:
                importlib.import_module(name)
            except Exception as error:
                return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    return ""


def lost_file(package: object, listings: dict[str, set[str]], whole: bool) -> str:
    """A module file that a package was installed with and that is gone; "" where all are there. Folders are listed once."""
    record = package.read_text("RECORD")
    if record is None:
        return "its list of files" if whole else ""
    base = str(package.locate_file(""))
    for line in record.splitlines():
        path = line.rsplit(",", 2)[0].strip('"')
        folder, name = os.path.split(path)
        if not (name.endswith((".py", ".so")) or ".so." in name) or path.startswith("..") or "/test" in path:
            continue
        if folder not in listings:
            try:
                listings[folder] = set(os.listdir(os.path.join(base, folder)))  # noqa: PTH118, PTH208
            except OSError:
                listings[folder] = set()
        if name not in listings[folder]:
            return path
    return ""


def ready(extra: str, prefix: str = "") -> int:
    """Print what the Python that runs this lacks. `prefix`: the environment that it should be the Python of."""
    if sys.version_info < (3, 11):  # noqa: UP036
        print(f"Python {sys.version.split()[0]} is older than 3.11")
        return LACKING
    if prefix and os.path.realpath(sys.prefix) != prefix:
        return NO_ENVIRONMENT
    lacking = shortcomings(extra, bool(prefix))
    print(*lacking.values(), sep="\n")
    return LACKING if lacking else READY


# --- the environment of the scripts


def make(extra: str) -> Path:
    """The Python of an environment that has everything; made, completed or mended where there is none. Raises Refusal."""
    named = os.environ.get("ALIGNER_VENV")
    if named and not named.startswith(("/", "~")):
        raise Refusal(f"ALIGNER_VENV is {named}. Give a path that begins with /.")
    venv = Path(os.path.realpath(os.path.expanduser(named or ROOT / ".venv")))  # noqa: PTH111
    python = venv / "bin" / "python"
    if lacks(venv, extra) == []:
        return python
    make_room(venv)
    with only_one(venv):
        lacking = lacks(venv, extra)  # somebody else may have been quicker
        if lacking is None:
            build(venv, extra)
        elif lacking:
            say(f"{venv}: {'; '.join(lacking[:3])}{' ...' if len(lacking) > 3 else ''}. Mending it")
            mend(venv, extra, lacking)
    return python


def lacks(venv: Path, extra: str) -> list[str] | None:
    """What an environment lacks, or None where there is no environment. Refusal where its Python cannot run here."""
    python, host = venv / "bin" / "python", socket.gethostname()
    if not os.path.lexists(python):
        return None
    remedy = f"Load the module or image that has it, or set ALIGNER_VENV to another folder; {venv} is left as it is"
    if not python.exists():
        raise Refusal(f"{venv} was made with {os.path.realpath(python)}, which is missing on {host}. {remedy}.")
    command = [str(python), "-I", str(ROOT / "scripts" / "environment.py"), "ready", extra, str(venv)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean())
    except OSError as error:
        raise Refusal(f"{python} cannot run on {host} ({error.strerror}). {remedy}.") from None
    if done.returncode == NO_ENVIRONMENT:
        return None
    if done.returncode not in (READY, LACKING) or (done.returncode and not done.stdout.strip()):
        why = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise Refusal(f"{python} cannot run on {host} ({why}). {remedy}.")
    return done.stdout.splitlines() if done.returncode else []


def make_room(venv: Path) -> None:
    """The folder to build in. Refusal where it cannot be written or has no room."""
    elsewhere = "Set ALIGNER_VENV to a folder on another file system"
    try:
        venv.parent.mkdir(parents=True, exist_ok=True)
        if venv.is_dir() and not os.access(venv, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        probe = beside(venv, "probe")
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise Refusal(f"{venv} cannot be set up ({error.strerror}). {elsewhere}.") from None
    room = os.statvfs(venv.parent)
    free = room.f_bavail * room.f_frsize / 1e9
    if not venv.exists() and free < LEAST:
        raise Refusal(
            f"{venv.parent} has {free:.1f} GB free; an environment takes {LEAST}, with CUDA {DISK}. {elsewhere}."
        )
    if not venv.exists() and room.f_files and room.f_favail < FILES:
        raise Refusal(f"{venv.parent} has room for {room.f_favail:,} files; an environment has {FILES:,}. {elsewhere}.")


def beside(venv: Path, what: str) -> Path:
    """A name beside an environment that no other process takes."""
    return venv.with_name(f"{venv.name}.{what}-{socket.gethostname()}-{os.getpid()}")


def log_of(venv: Path) -> Path:
    """Where all that an installer says goes."""
    return venv.with_name(f"{venv.name}.log")


@contextmanager
def only_one(venv: Path):
    """Keep others from setting up the same environment; wait while one does. Where nothing can be locked, renaming decides."""
    import fcntl

    stream = None
    with suppress(OSError):
        stream = venv.with_name(f"{venv.name}.lock").open("a+")
    if stream is None:
        yield
        return
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            say(f"waiting for another set-up of {venv} ({stream.read().strip() or 'of an unknown process'})")
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        with suppress(OSError):
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {socket.gethostname()}")
            stream.flush()
        yield


def build(venv: Path, extra: str) -> None:
    """Make an environment beside its place and rename it when everything can be imported."""
    new, version = beside(venv, "new"), sys.version.split()[0]
    free, offline = shutil.disk_usage(venv.parent).free / 1e9, os.environ.get("ALIGNER_OFFLINE")
    source = f"nothing to download, all is in {offline}," if offline else f"{DOWNLOAD} GB to download"
    say(f"Setting up {venv} with Python {version}, once: {MINUTES} minutes; {source} and {DISK} GB of disk with "
        f"CUDA's libraries (on PyPI they are always with it), a third of it without. {free:,.0f} GB are free there.")  # fmt: skip
    for old in sorted(venv.parent.glob(f"{venv.name}.new-*")):
        say(f"{old} is left of a set-up that was ended: remove it (rm -r) unless one is at work")
    try:
        create(new)
        install(new, extra, log_of(venv))
        verify(new, extra, log_of(venv))
        put_command(new)
        rewrite_paths(new, venv)
        if venv.is_dir() and any(venv.iterdir()):
            aside = beside(venv, "unfinished")
            venv.rename(aside)
            say(f"{aside} was no environment, or an unfinished one: kept there, to be removed by you")
        try:
            new.rename(venv)
        except OSError as error:
            if lacks(venv, extra) != []:  # nobody else was quicker
                raise Refusal(
                    f"{new} cannot be renamed ({error.strerror}). Set ALIGNER_VENV to a folder elsewhere."
                ) from None
    finally:
        shutil.rmtree(new, ignore_errors=True)  # made in this very run


def create(new: Path) -> None:
    """An empty environment; with pip where this Python has ensurepip."""
    ways = [[sys.executable, "-I", "-m", "venv", str(new)]]
    if uv := shutil.which("uv"):
        ways.append([uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(new)])
    ways.append([sys.executable, "-I", "-m", "venv", "--without-pip", str(new)])
    for way in ways:
        done = subprocess.run(way, capture_output=True, text=True, check=False, env=clean())
        if done.returncode == 0:
            return
    why = (done.stderr.strip().splitlines() or ["it gives no reason"])[-1]
    raise Refusal(
        f"{sys.executable} cannot make a virtual environment ({why}). Install its venv module (python3-venv), or uv."
    )


def mend(venv: Path, extra: str, lacking: list[str] | None) -> None:
    """Complete an environment in place: what is missing, and anew what has lost files."""
    aside = f"Move it aside (mv {venv} {venv}.old) and run this again: a new one is made"
    for _ in range(2):  # what reads versions may be missing itself: then the first round shows what else is
        damaged = [line.split()[0] for line in lacking or () if " has lost " in line]
        install(venv, extra, log_of(venv), damaged)
        if not (lacking := lacks(venv, extra)):
            break
    if lacking:
        raise Refusal(f"{venv}: {lacking[0]}, still. {aside}.")
    verify(venv, extra, log_of(venv))
    put_command(venv)


# --- installing


def clean() -> dict[str, str]:
    """This environment without what would lead Python, pip or uv elsewhere; where packages come from is kept."""
    kept = {f"PIP_{name.upper().replace('-', '_')}" for name in SOURCES}
    aside = (
        "UV_SYSTEM_PYTHON",
        "UV_PYTHON",
        "UV_CONSTRAINT",
        "UV_OVERRIDE",
        "UV_TARGET",
        "UV_PREFIX",
        "UV_REQUIRE_HASHES",
    )
    return {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("PYTHON") and key not in aside and (not key.startswith("PIP_") or key in kept)
    }


def run_quietly(command: list[str]) -> int:
    """A command's exit status."""
    try:
        return subprocess.run(command, capture_output=True, check=False, env=clean()).returncode
    except OSError:
        return 127


def installers(python: Path) -> list[list[str]]:
    """The commands that can install into an environment, best first: uv, its own pip, the pip of the Python that runs this."""
    pips = [[str(python), "-I", "-m", "pip"], [sys.executable, "-I", "-m", "pip", "--python", str(python)]]
    works = [pip for pip in pips if not run_quietly([*pip, "--version"])]
    uv = shutil.which("uv")
    ways = ([[uv, "pip", "install", "--python", str(python)]] if uv else []) + [[*pip, "install"] for pip in works[:1]]
    if not ways:
        raise Refusal(
            f"{python} has no pip, and there is no uv. Install one of them (python3-pip), or activate an environment."
        )
    return ways


def sources() -> dict[str, str]:
    """The environment for installers: where pip's files and variables say that packages come from, and nothing else of them."""
    env = clean()
    pip = [sys.executable, "-I", "-m", "pip", "config", "list"]
    listed = subprocess.run(pip, capture_output=True, text=True, check=False, env=env)
    if listed.returncode and "No module named pip" not in listed.stderr:
        say(
            f"pip's configuration cannot be read and is set aside ({(listed.stderr.strip().splitlines() or ['?'])[-1]})"
        )
    for line in listed.stdout.splitlines() if listed.returncode == 0 else ():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if section in ("global", "install") and name in SOURCES:
            env.setdefault(f"PIP_{name.upper().replace('-', '_')}", str(ast.literal_eval(value)).replace("\n", " "))
    env |= {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_PROGRESS_BAR": "off",
            "PIP_NO_INPUT": "1", "PIP_ROOT_USER_ACTION": "ignore"}  # fmt: skip
    env.setdefault("PIP_RETRIES", "2")
    if folder := os.environ.get("ALIGNER_OFFLINE"):
        packages = Path(folder).absolute() / "packages"
        if not packages.is_dir():
            raise Refusal(
                f"ALIGNER_OFFLINE is {folder}, which holds no packages. 'bash scripts/prepare-offline.sh DIR' makes such one."
            )
        env |= {
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": packages.as_uri(),
            "UV_NO_INDEX": "1",
            "UV_FIND_LINKS": str(packages),
        }
    for pip_name, uv_name, separator in (
        ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", " "),
        ("PIP_EXTRA_INDEX_URL", "UV_INDEX", " "),
        ("PIP_FIND_LINKS", "UV_FIND_LINKS", ","),
        ("PIP_NO_INDEX", "UV_NO_INDEX", " "),
        ("PIP_CERT", "SSL_CERT_FILE", " "),
    ):
        if env.get(pip_name):
            env.setdefault(uv_name, separator.join(env[pip_name].split()))
    return env


def check_index(env: dict[str, str]) -> None:
    """Refusal, within seconds, where the package index (or the proxy before it) takes no connection."""
    index = env.get("PIP_INDEX_URL") or env.get("UV_DEFAULT_INDEX") or "https://pypi.org/simple"
    proxy = env.get("PIP_PROXY") or env.get("https_proxy") or env.get("HTTPS_PROXY") or env.get("ALL_PROXY")
    if env.get("PIP_NO_INDEX", "").lower() in ("1", "true", "yes", "on") or not index.startswith("http"):
        return
    where = urlsplit(proxy if proxy and "://" in proxy else f"http://{proxy}" if proxy else index)
    port, connected = where.port or (443 if where.scheme == "https" else 80), threading.Event()

    def connect() -> None:
        with suppress(OSError), socket.create_connection((where.hostname, port), 5):
            connected.set()

    thread = threading.Thread(target=connect, daemon=True)  # a name's look-up has no time limit of its own
    thread.start()
    thread.join(8)
    if not connected.is_set():
        raise Refusal(
            f"{'the proxy' if proxy else 'the package index'} {where.hostname} cannot be reached from {socket.gethostname()}. Run "
            "'bash scripts/prepare-offline.sh DIR' where there is a network, and set ALIGNER_OFFLINE=DIR here; or set "
            "PIP_INDEX_URL to an index that this node reaches."
        )


def install(venv: Path, extra: str, log: Path, damaged: list[str] | None = None) -> None:
    """Install the tested versions of what the project needs, by their hashes, and anew what is damaged. Refusal with the last words
    of pip."""
    env, scratch = sources(), beside(venv, "scratch")
    check_index(env)
    scratch.mkdir()  # a node's own /tmp may be small
    env["TMPDIR"] = str(scratch)
    with suppress(OSError):
        log.write_text("")
    try:
        ways = installers(venv / "bin" / "python")
        for way in ways:
            pinned = ["-c", str(ROOT / "scripts" / "constraints.txt")]
            again = ["--reinstall" if way[1] == "pip" else "--ignore-installed", "--no-deps"]
            commands = [[*way, *again, *pinned, name] for name in damaged or []]
            commands += [*hashed(way, extra), [*way, *pinned, *wanted(extra)]]
            last = next((said for said in (follow(command, env, log) for command in commands) if said), [])
            if not last:
                return
            say("\n".join(f"  {line}" for line in last))
        raise Refusal(f"the packages could not be installed (above; {log} has all of it).")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)  # made in this very run


def hashed(way: list[str], extra: str) -> list[list[str]]:
    """The command that installs everything but torch in the tested files, whose hashes are compared; torch, of which each machine
    needs another build, comes after it from wherever the user's index has it. None for a prepared folder, which holds built wheels.
    """
    file = ROOT / "scripts" / (f"locked-{extra}.txt" if extra else "locked.txt")
    if os.environ.get("ALIGNER_OFFLINE") or not file.is_file():
        return []
    return [[*way, "--no-deps", "--require-hashes", "-r", str(file)]]


def follow(command: list[str], env: dict[str, str], log: Path) -> list[str]:
    """Run an installer: all it says goes to the log, the names and sizes of what it downloads to the screen.

    Returns its last lines where it failed, and nothing where it did not.
    """
    last: list[str] = []
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    try:
        for line in process.stdout or ():
            last = [*last[-14:], line.rstrip()]
            with suppress(OSError), log.open("a") as stream:
                stream.write(line)
            if (text := line.strip()).startswith("Downloading ") or text.startswith("Installing collected"):
                say("  installing" if text.startswith("Inst") else f"  {text.removeprefix('Downloading ')}")
        status = process.wait()
    finally:
        process.kill()
    return (last or [f"exit status {status}"]) if status else []


def verify(venv: Path, extra: str, log: Path) -> None:
    """Import everything that the project names, in the environment's own Python. Refusal with what failed."""
    program = """if True:
        import importlib, sys
        from importlib.metadata import distribution
        from packaging.requirements import Requirement
        for text in sys.argv[1:]:
            for path in sorted(distribution(Requirement(text).name).files or [], key=str):
                top = path.parts[0]
                if not path.locate().is_file():  # without a wheel pip leaves the list of the sources, which are more
                    continue
                if path.name == "__init__.py" and len(path.parts) == 2 or len(path.parts) == 1 and top.endswith(".py"):
                    name = top.removesuffix(".py")
                    if not name.startswith("_") and name.isidentifier():
                        try:
                            importlib.import_module(name)
                        except BaseException as error:
                            sys.exit(f"import {name}: {type(error).__name__}: {str(error).splitlines()[:1]}")
    """
    program = program.replace("from packaging", "from pip._vendor.packaging") if not has_packaging(venv) else program
    command = [str(venv / "bin" / "python"), "-I", "-W", "ignore", "-c", program, *wanted(extra)]
    env = clean() | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise Refusal(f"the packages are installed and cannot be imported: {why}. {log} has what was installed.")


def has_packaging(venv: Path) -> bool:
    """Whether an environment has `packaging` itself (else pip has a copy)."""
    return any(venv.glob("lib/python*/site-packages/packaging"))


def put_command(venv: Path) -> None:
    """The command `aligner`, and the project on the environment's path: nothing is built, and the checkout may be read-only."""
    site = next(venv.glob("lib/python*/site-packages"))
    (site / "aligner-project.pth").write_text(f"{ROOT}\n", encoding="utf-8")
    command = venv / "bin" / "aligner"
    command.write_text('#!/bin/sh\nexec "$(dirname -- "$(readlink -f -- "$0")")/python" -m aligner "$@"\n')
    command.chmod(0o777 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def rewrite_paths(new: Path, venv: Path) -> None:
    """Let an environment's scripts name the place that it is about to be renamed to."""
    for file in (new / "bin").iterdir():
        if file.is_file() and not file.is_symlink():
            content = file.read_bytes()
            if b"\0" not in content[:1024] and os.fsencode(new.name) in content:
                file.write_bytes(content.replace(os.fsencode(new.name), os.fsencode(venv.name)))


def prepare(extra: str, folder: str) -> Path:
    """Put the wheels of the tested versions into FOLDER/packages, for nodes without a network. Raises Refusal."""
    packages = Path(folder) / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    env, log = sources(), Path(folder) / "packages.log"
    check_index(env)
    pips = [[sys.executable, "-I", "-m", "pip"], ["pip"], ["pip3"]]
    pip = next((pip for pip in pips if not run_quietly([*pip, "--version"])), None)
    if pip is None:
        raise Refusal(f"{sys.executable} has no pip, which prepares the packages. Install it (python3-pip).")
    say(f"Preparing the packages in {packages}: {MINUTES} minutes, up to {DOWNLOAD} GB")
    pinned = ["-c", str(ROOT / "scripts" / "constraints.txt"), "--wheel-dir", str(packages)]
    if last := follow([*pip, "wheel", *pinned, *wanted(extra)], env, log):
        say("\n".join(f"  {line}" for line in last))
        raise Refusal(f"the packages could not be prepared (above; {log} has all of it).")
    return packages


def main() -> int:
    """One of the commands above. Returns the exit status; 2 for what the user can mend."""
    if sys.argv[1] == "ready":
        return ready(*sys.argv[2:])
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    began = time.monotonic()
    try:
        print(prepare(*sys.argv[2:]) if sys.argv[1] == "prepare" else make(sys.argv[2]))
    except (Refusal, OSError) as refusal:
        say(f"error: {refusal}")
        return 2
    if (seconds := time.monotonic() - began) > 5:
        say(f"ready after {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
