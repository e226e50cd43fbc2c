"""scripts/environment.sh in a project of one tiny package: environments are found, made, mended, and never taken away."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from conftest import ROOT

NEEDS = "Requires-Dist: below\nRequires-Dist: packaging\n"  # as transformers does
PYTHON = Path(sys._base_executable).resolve()
RUN = """set -eu
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/environment.sh" "${EXTRA:-}"
exec "$PYTHON" -c 'import tiny, sys; print(tiny.VERSION, tiny.below.VERSION, sys.prefix)'
"""
PROJECT = """[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "aligner"
version = "0"
requires-python = ">=3.11"
dependencies = ["tiny>=1"]
[project.optional-dependencies]
test = ["tinytest"]
"""


def some_quick(members, *quick):
    """All members as parameters; those that are not named are slow."""
    return [pytest.param(each, marks=() if each in quick else pytest.mark.slow) for each in members]


def wheel(folder: Path, name: str, version: str, needs: str = "", code: str = "") -> None:
    """A wheel of one package."""
    files = {
        f"{name}/__init__.py": f"VERSION = '{version}'\n{code}",
        f"{name}/part.py": "",
        f"{name}-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{name}-{version}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"{name}-{version}.dist-info/RECORD"
    rows = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(text)}\n")
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in {**files, record: f"{''.join(rows)}{record},,\n"}.items():
            archive.writestr(path, text)


def wheel_of(name: str, folder: Path) -> None:
    """A wheel of a package that is installed here."""
    package = distribution(name)
    with zipfile.ZipFile(folder / f"{name}-{package.version}-py3-none-any.whl", "w") as archive:
        for path in package.files or []:
            if not path.parts[0].startswith("..") and path.suffix != ".pyc":
                archive.write(path.locate(), str(path))


@pytest.fixture(scope="session")
def packages(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    wheel(folder, "below", "1.0")
    wheel_of("packaging", folder)
    wheel_of("setuptools", folder)  # for an earlier revision, which installs the project
    for version in ("0.9", "1.2", "1.3"):
        wheel(folder, "tiny", version, NEEDS, "import below")
    wheel(folder, "tinytest", "1.0")
    return folder


class Project:
    """A checkout with the scripts of this one and requirements that install in seconds."""

    def __init__(self, place: Path, packages: Path):
        self.root, self.packages = place, packages
        self.venv = place / ".venv"

    def lay(self) -> Project:
        (self.root / "scripts").mkdir(parents=True)
        for file in (ROOT / "scripts").glob("environment.*"):
            shutil.copy(file, self.root / "scripts")
        (self.root / "scripts/run.sh").write_text(RUN)
        (self.root / "scripts/constraints.txt").write_text("tiny==1.2\nbelow==1.0\ntinytest==1.0\n")
        (self.root / "pyproject.toml").write_text(PROJECT)
        (self.root / "aligner").mkdir()
        (self.root / "aligner/__init__.py").write_text("")
        return self

    def variables(self, **more: str) -> dict[str, str]:
        """A bare environment: a Python on PATH, packages from a folder alone."""
        shims = self.root.parent / "shims"
        shims.mkdir(exist_ok=True)
        if not (shims / "python3").exists():
            (shims / "python3").symlink_to(PYTHON)
        kept = {"PATH": f"{shims}:/usr/bin:/bin", "HOME": str(self.root.parent), "PIP_CONFIG_FILE": os.devnull}
        return {**kept, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": self.packages.as_uri(), **more}

    def start(
        self, *prefix: str, script: str = "scripts/run.sh", cwd: Path | None = None, **more: str
    ) -> subprocess.Popen[str]:
        env = {key: value for key, value in self.variables(**more).items() if value != "UNSET"}
        return subprocess.Popen(
            [*prefix, "bash", script], cwd=cwd or self.root, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip

    def run(self, *prefix: str, **more) -> tuple[int, str, str]:
        process = self.start(*prefix, **more)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def works(self, *prefix: str, **more) -> str:
        """Run it, and what it said; it must end well with the tested version in its own environment."""
        status, out, err = self.run(*prefix, **more)
        assert status == 0 and (out.splitlines() or [""])[-1].startswith("1.2 1.0 "), out + err
        return err

    def refuses(self, *words: str, **more) -> str:
        """Run it; it must end with one line that has these words, without a traceback."""
        status, out, err = self.run(**more)
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert status == 2 and len(errors) == 1 and "Traceback" not in out + err, (status, out, err)
        for word in words:
            assert word in errors[0], errors[0]
        return errors[0]

    @property
    def package(self) -> Path:
        return next(self.venv.glob("lib/python*/site-packages/tiny"))

    def entries(self, *, of: Path | None = None) -> list[str]:
        return sorted(
            str(path.relative_to(self.root.parent))
            for path in (of or self.venv).rglob("*")
            if "__pycache__" not in str(path)
        )

    def strays(self) -> list[str]:
        return [
            p.name
            for p in self.root.iterdir()
            if p.name.startswith(".venv.") and p.name not in (".venv.lock", ".venv.log")
        ]


@pytest.fixture
def project(tmp_path, packages) -> Project:
    return Project(tmp_path / "project", packages).lay()


@pytest.fixture(scope="session")
def once(tmp_path_factory, packages) -> Project:
    """A project whose environment is made."""
    project = Project(tmp_path_factory.mktemp("once") / "project", packages).lay()
    project.works()
    return project


@pytest.fixture
def finished(once, tmp_path, packages) -> Project:
    """A copy of it: an environment need not stay where it was made."""
    shutil.copytree(once.root, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project", packages)


def test_an_environment_is_made_once_and_says_first_what_it_costs(project):
    said = project.works()
    assert "GB to download" in said and "GB of disk" in said and "minutes" in said and "GB are free" in said
    before = {str(p): p.stat().st_mtime_ns for p in project.venv.rglob("*.py")}
    assert project.works() == "", "nothing is said or made the second time"
    assert before == {str(p): p.stat().st_mtime_ns for p in project.venv.rglob("*.py")}
    assert not project.strays()
    for script in (project.venv / "bin").iterdir():  # they name the place it was renamed to
        assert script.is_symlink() or b".new-" not in script.read_bytes(), script
    if (project.venv / "bin/pip").exists():
        subprocess.run([project.venv / "bin/pip", "--version"], check=True, capture_output=True)


def test_an_active_environment_that_has_everything_is_used(finished, tmp_path):
    other = Project(tmp_path / "other", finished.packages).lay()
    variables = {"PATH": f"{finished.venv / 'bin'}:/usr/bin:/bin"}
    status, out, err = other.run(**variables)
    assert status == 0 and out.split()[2] == str(finished.venv) and err == "", out + err
    assert not other.venv.exists()


@pytest.mark.slow
def test_an_extra_is_added_to_the_environment_that_is_there(finished):
    assert "tinytest is missing" in finished.works(EXTRA="test")
    assert finished.works(EXTRA="test") == ""


# --- a shared environment is never deleted


def dangling(project: Project) -> None:
    for name in ("python", "python3"):
        (project.venv / "bin" / name).unlink(missing_ok=True)
    (project.venv / "bin/python").symlink_to("/sw/python/3.12.1/bin/python3.12")


def dangling_chain(project: Project) -> None:
    for name in (project.venv / "bin").glob("python*"):
        name.unlink()
    (project.venv / "bin/python").symlink_to("python3")
    (project.venv / "bin/python3").symlink_to("/sw/python/3.12.1/bin/python3.12")


def replaced(content: bytes, mode: int = 0o755):
    def act(project: Project) -> None:
        python = project.venv / "bin/python"
        python.unlink()
        python.write_bytes(content)
        python.chmod(mode)

    return act


def linked(project: Project) -> None:
    project.venv.rename(project.root.parent / "scratch-venv")
    project.venv.symlink_to(project.root.parent / "scratch-venv")
    project.venv = project.root.parent / "scratch-venv"
    dangling(project)


NO_LIBRARY = b"#!/bin/sh\necho 'python: error while loading shared libraries: libpython3.12.so.1.0' >&2\nexit 127\n"
UNUSABLE = {
    "its Python is missing": (dangling, "/sw/python/3.12.1/bin/python3.12"),
    "its Python is missing at the end of a chain": (dangling_chain, "/sw/python/3.12.1/bin/python3.12"),
    "the library of its Python is missing": (replaced(NO_LIBRARY), "libpython3.12.so.1.0"),
    "its Python is of another architecture": (replaced(b"\x7fELF\2\1\1" + b"\0" * 40), "cannot run on"),
    "its Python may not be executed": (replaced(b"\x7fELF", 0o644), "cannot run on"),
    "its Python dies": (replaced(b"#!/bin/sh\nkill -SEGV $$\n"), "cannot run on"),
    "its Python needs a newer C library": (replaced(b"#!/bin/sh\necho 'GLIBC_2.38 not found' >&2; exit 1\n"), "GLIBC"),
    "its Python's loader is missing": (replaced(b"#!/no/such/loader\n"), "cannot run on"),
    "its Python is a wrapper of a module that is not loaded": (replaced(b"#!/bin/sh\nexec nosuchpython \"$@\"\n"), "nosuchpython"),
    "its Python is empty": (replaced(b""), "cannot run on"),
    "it is a link to a folder whose Python is missing": (linked, "/sw/python/3.12.1/bin/python3.12"),
}  # fmt: skip


@pytest.mark.kind("a shared environment that cannot run on this node")
@pytest.mark.parametrize("how", some_quick(UNUSABLE, "its Python is missing"))
def test_a_finished_environment_is_never_removed(how, finished):
    act, word = UNUSABLE[how]
    act(finished)
    before = finished.entries(of=finished.root.parent / "scratch-venv" if how.startswith("it is a link") else None)
    finished.refuses(word, socket.gethostname(), "is left as it is")
    assert before == finished.entries(of=finished.venv if finished.venv.exists() else None)


@pytest.mark.kind("a shared environment that cannot run on this node")
@pytest.mark.slow
def test_another_environment_stands_in_for_one_that_cannot_run_here(finished, tmp_path):
    dangling(finished)
    assert "Setting up" in finished.works(ALIGNER_VENV=str(tmp_path / "here"))


@pytest.mark.kind("a shared environment that cannot run on this node")
@pytest.mark.slow
def test_another_python_on_the_path_changes_nothing(finished, tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    (old / "python3").write_text("#!/bin/sh\necho 'Python 3.6' >&2\nexit 1\n")
    (old / "python3").chmod(0o755)
    assert finished.works(PATH=f"{old}:{finished.variables()['PATH']}") == ""


# --- interrupted, raced and purged


def no_configuration(project: Project) -> None:
    (project.venv / "pyvenv.cfg").unlink()


def only_python(project: Project) -> None:
    shutil.rmtree(project.venv)
    (project.venv / "bin").mkdir(parents=True)
    (project.venv / "bin/python").symlink_to(PYTHON)


def empty(project: Project) -> None:
    shutil.rmtree(project.venv)
    project.venv.mkdir()


def no_bin(project: Project) -> None:
    shutil.rmtree(project.venv / "bin")


def no_pip(project: Project) -> None:
    for path in project.package.parent.glob("pip*"):
        shutil.rmtree(path)
    shutil.rmtree(project.package)


def gone(pattern: str):
    def act(project: Project) -> None:
        (project.venv / ".installed-core").write_text("done\n")  # whatever a mark says
        for path in list(project.package.parent.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return act


def outdated(project: Project) -> None:
    (project.package.parent / "tiny-1.2.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: tiny\nVersion: 0.9\n"
    )


def killed_build(project: Project) -> None:
    shutil.rmtree(project.venv)
    process = project.start()
    for _ in range(1000):
        if project.strays():
            break
        time.sleep(0.01)
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def stale_lock(project: Project) -> None:
    shutil.rmtree(project.venv)
    (project.root / ".venv.lock").write_text("process 1 on a host that is gone")


BROKEN = {
    "ended before its configuration": no_configuration,
    "ended after its Python": only_python,
    "ended before anything": empty,
    "without bin": no_bin,
    "without pip and half the packages": no_pip,
    "a file of a package purged": gone("tiny/part.py"),
    "a package's start purged": gone("tiny/__init__.py"),
    "a package purged": gone("tiny"),
    "a package purged with its metadata": gone("tiny*"),
    "its metadata purged": gone("tiny-1.2.dist-info/METADATA"),
    "its list of files purged": gone("tiny-1.2.dist-info/RECORD"),
    "what a package needs purged": gone("below*"),
    "a version that is too old": outdated,
    "killed while it was built": killed_build,
    "a lock of a host that is gone": stale_lock,
}


@pytest.mark.kind("an interrupted, raced or purged set-up")
@pytest.mark.parametrize(
    "how", some_quick(BROKEN, "ended after its Python", "a file of a package purged", "what a package needs purged")
)
@pytest.mark.slow
def test_a_set_up_that_broke_is_made_whole_by_the_next_run(how, finished):
    BROKEN[how](finished)
    finished.works()
    assert finished.works() == "" or how == "killed while it was built"


@pytest.mark.kind("an interrupted, raced or purged set-up")
@pytest.mark.parametrize("name", some_quick(("SIGTERM", "SIGHUP", "SIGINT"), "SIGTERM"))
@pytest.mark.slow
def test_a_set_up_that_is_asked_to_end_leaves_nothing(name, project):
    process = project.start()
    while not project.strays() and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None
    time.sleep(0.3)
    os.killpg(process.pid, signal.Signals[name])
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert not project.strays() and not project.venv.exists()


@pytest.mark.kind("an interrupted, raced or purged set-up")
@pytest.mark.parametrize("count", some_quick((2, 4), 2))
@pytest.mark.slow
def test_first_commands_at_once_make_one_environment(count, project):
    processes = [project.start() for _ in range(count)]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * count, said
    assert sum("Setting up" in err for _, err in said) == 1
    assert not project.strays()


@pytest.mark.slow
def test_twenty_times_two_first_commands_at_once(project):
    for _ in range(20):
        test_first_commands_at_once_make_one_environment(2, project)
        shutil.rmtree(project.venv)


@pytest.mark.kind("an interrupted, raced or purged set-up")
@pytest.mark.slow
def test_packages_that_cannot_be_imported_are_no_environment(tmp_path, packages):
    broken = tmp_path / "broken"
    shutil.copytree(packages, broken)
    wheel(
        broken,
        "tiny",
        "1.2",
        NEEDS,
        "raise OSError('libcudart.so.13: cannot open shared object file')",
    )
    project = Project(tmp_path / "project", broken).lay()
    project.refuses("import tiny", "libcudart.so.13")
    assert not project.venv.exists() and not project.strays()


@pytest.mark.kind("an interrupted, raced or purged set-up")
@pytest.mark.slow
def test_a_package_that_was_installed_without_a_wheel_is_whole(finished):
    """What pip leaves then is the list of the sources, which hold more than was installed."""
    [metadata] = finished.package.parent.glob("tiny-*.dist-info")
    (metadata / "RECORD").unlink()
    (metadata / "SOURCES.txt").write_text("tiny/__init__.py\nbenches/__init__.py\n")
    program = "import sys, pathlib, environment; environment.verify(pathlib.Path(sys.argv[1]), '', pathlib.Path('log'))"
    command = [sys.executable, "-c", program, str(finished.venv)]
    variables = {**os.environ, "PYTHONPATH": str(finished.root / "scripts")}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-300:]


# --- settings of shells, of pip, of Python


def pip_conf(text: str):
    def act(project: Project) -> dict[str, str]:
        file = project.root.parent / "pip.conf"
        file.write_text(text)
        return {"PIP_CONFIG_FILE": str(file)}

    return act


def other_module(code: str, metadata: bool = True):
    def act(project: Project) -> dict[str, str]:
        folder = project.root.parent / "module"
        (folder / "tiny").mkdir(parents=True)
        (folder / "tiny/__init__.py").write_text(code)
        if metadata:
            (folder / "tiny-1.3.dist-info").mkdir()
            (folder / "tiny-1.3.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: tiny\nVersion: 1.3\n")
        return {"PYTHONPATH": str(folder)}

    return act


def printing_start(project: Project) -> dict[str, str]:
    (project.root.parent / "start").write_text(
        'echo welcome\ncd() { builtin cd "$@" && echo "now in $PWD"; }\nexport -f cd\n'
    )
    return {"BASH_ENV": str(project.root.parent / "start")}


SETTINGS = {
    "CDPATH": {"CDPATH": "/:/tmp:."},
    "PIP_USER": {"PIP_USER": "1"},
    "PIP_TARGET": {"PIP_TARGET": "/tmp/nowhere"},
    "PIP_PREFIX": {"PIP_PREFIX": "/tmp/nowhere"},
    "PIP_ROOT": {"PIP_ROOT": "/tmp/nowhere"},
    "PIP_NO_DEPS": {"PIP_NO_DEPS": "1"},
    "PIP_DRY_RUN": {"PIP_DRY_RUN": "1"},
    "PIP_REQUIRE_HASHES": {"PIP_REQUIRE_HASHES": "1"},
    "PIP_REQUIRE_VIRTUALENV": {"PIP_REQUIRE_VIRTUALENV": "1"},
    "PIP_NO_BINARY": {"PIP_NO_BINARY": ":all:"},
    "PIP_CONSTRAINT": {"PIP_CONSTRAINT": "/no/such/file"},
    "PIP_LOG": {"PIP_LOG": "/proc/nowhere/pip.log"},
    "user in pip.conf": pip_conf("[global]\nuser = true\n"),
    "target in pip.conf": pip_conf("[install]\ntarget = /tmp/nowhere\n"),
    "a pip.conf that does not parse": pip_conf("user = true\n"),
    "a module's broken package": other_module("raise ImportError('built for another Python')"),
    "a module's broken package without metadata": other_module("raise ImportError('built for another Python')", False),
    "a module's package that dies": other_module("raise SystemError('ABI')"),
    "PYTHONHOME": {"PYTHONHOME": "/no/such/python"},
    "PYTHONSTARTUP, PYTHONINSPECT off, PYTHONSAFEPATH": {"PYTHONSTARTUP": "/no/such", "PYTHONSAFEPATH": "1"},
    "a shell start that talks and a cd that talks": printing_start,
    "noclobber": {"SHELLOPTS": "noclobber"},
    "posix": {"POSIXLY_CORRECT": "1"},
    "no HOME": {"HOME": "UNSET"},
    "HOME that is a file": {"HOME": "/etc/hostname"},
    "TMPDIR that is missing": {"TMPDIR": "/no/such/folder"},
    "a locale that is missing": {"LC_ALL": "xx_YY.UTF-8"},
}


@pytest.mark.slow
@pytest.mark.kind("settings of the shell, of pip and of Python")
@pytest.mark.parametrize("how", SETTINGS)
def test_a_setting_does_not_end_the_set_up(how, project):
    setting = SETTINGS[how]
    more = setting if isinstance(setting, dict) else setting(project)
    project.works(**more)
    assert "\n" not in "".join(p.name for p in project.root.iterdir())
    assert not [
        p
        for p in project.root.iterdir()
        if p.name not in ("scripts", "aligner", "pyproject.toml", ".venv", ".venv.log", ".venv.lock")
    ]


@pytest.mark.kind("settings of the shell, of pip and of Python")
@pytest.mark.slow
def test_all_settings_at_once(project):
    """The quick form of the test before: what can be set together."""
    more: dict[str, str] = {}
    for how in ("CDPATH", "PIP_USER", "PIP_TARGET", "PIP_NO_DEPS", "PIP_REQUIRE_HASHES", "PIP_CONSTRAINT", "PYTHONHOME",
                "noclobber", "TMPDIR that is missing"):  # fmt: skip
        more |= SETTINGS[how]
    more |= printing_start(project) | pip_conf("[install]\nuser = true\nprefix = /tmp/nowhere\n")(project)
    said = project.works(**more, **other_module("raise ImportError('built for another Python')")(project))
    assert "PYTHONPATH and PYTHONHOME are set aside" in said


@pytest.mark.kind("settings of the shell, of pip and of Python")
@pytest.mark.parametrize("name", some_quick(("a 'b\" $HOME ü %; -c", "a blank", "quo'te\"s", "dollar $HOME", "üñï", "x" * 150),
                                            "a 'b\" $HOME ü %; -c"))  # fmt: skip
@pytest.mark.slow
def test_a_checkout_may_have_any_name(name, tmp_path, packages):
    project = Project(tmp_path / name / "project", packages).lay()
    project.works()


@pytest.mark.kind("settings of the shell, of pip and of Python")
@pytest.mark.slow
def test_a_script_may_be_called_through_a_link_and_from_anywhere(finished, tmp_path):
    link = tmp_path / "links" / "train"
    link.parent.mkdir()
    link.symlink_to(finished.root / "scripts/run.sh")
    assert finished.works(script=str(link), cwd=Path("/")) == ""


@pytest.mark.skipif(not shutil.which("uv"), reason="needs uv")
@pytest.mark.kind("settings of the shell, of pip and of Python")
@pytest.mark.slow
def test_an_environment_of_uv_without_pip_is_completed(project):
    subprocess.run(
        [shutil.which("uv"), "venv", "--quiet", "--python", PYTHON, project.venv], check=True, env=project.variables()
    )
    project.works(PATH=f"{Path(shutil.which('uv') or '').parent}:{project.variables()['PATH']}")
    assert not list(project.venv.glob("lib/python*/site-packages/pip"))


# --- no network, no room, nowhere to write


def listener(backlog: int = 0) -> socket.socket:
    """A port that takes no further connection, as behind a firewall that drops."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(backlog)
    return server


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    server = listener()
    port, waiting = server.getsockname()[1], []
    for _ in range(8):  # fill its queue: later connections are not answered
        client = socket.socket()
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            client.connect(("127.0.0.1", port))
        waiting.append(client)
    yield port
    for each in (*waiting, server):
        each.close()


def closed_port() -> int:
    with listener() as server:
        return server.getsockname()[1]


NO_NETWORK = {
    "refused": lambda port: {"PIP_INDEX_URL": f"http://127.0.0.1:{closed_port()}/simple"},
    "silent": lambda port: {"PIP_INDEX_URL": f"http://127.0.0.1:{port}/simple"},
    "no such name": lambda port: {"PIP_INDEX_URL": "https://no-such-host.invalid/simple"},
    "a proxy that refuses": lambda port: {"https_proxy": f"http://127.0.0.1:{closed_port()}"},
    "a silent proxy": lambda port: {"PIP_PROXY": f"http://127.0.0.1:{port}"},
    "a proxy without a scheme": lambda port: {"HTTPS_PROXY": f"127.0.0.1:{closed_port()}"},
}


@pytest.mark.kind("waits without a word")
@pytest.mark.parametrize("how", NO_NETWORK)
@pytest.mark.slow
def test_an_index_that_cannot_be_reached_is_said_within_seconds(how, finished):
    gone("tiny*")(finished)
    began = time.monotonic()
    with silent_port() as port:
        finished.refuses("cannot be reached", "prepare-offline.sh", PIP_NO_INDEX="UNSET", **NO_NETWORK[how](port))
    assert time.monotonic() - began < 20


@pytest.mark.slow
def test_a_prepared_folder_is_all_that_a_set_up_needs(project, tmp_path):
    prepared = tmp_path / "prepared"
    shutil.copytree(project.packages, prepared / "packages")
    nowhere = {
        "PIP_NO_INDEX": "UNSET",
        "PIP_FIND_LINKS": "UNSET",
        "PIP_INDEX_URL": f"http://127.0.0.1:{closed_port()}/simple",
    }
    assert f"nothing to download, all is in {prepared}" in project.works(ALIGNER_OFFLINE=str(prepared), **nowhere)
    shutil.rmtree(project.venv)
    project.refuses("holds no packages", ALIGNER_OFFLINE=str(tmp_path / "nothing"), **nowhere)


def in_read_only(folder: Path) -> tuple[str, ...]:
    """Words before a command that let it see a folder that cannot be written: a mount of its own."""
    words = ("unshare", *(() if os.geteuid() == 0 else ("-r",)), "-m", "sh", "-c",
             f'mount --bind "{folder}" "{folder}" && mount -o remount,ro,bind "{folder}" && exec "$@"', "sh")  # fmt: skip
    if subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    return words


@pytest.mark.kind("a read-only checkout")
@pytest.mark.slow
def test_a_read_only_checkout_says_where_the_environment_may_stand(project, tmp_path):
    status, out, err = project.run(
        *in_read_only(project.root), cwd=Path("/"), script=str(project.root / "scripts/run.sh")
    )
    assert status == 2 and "ALIGNER_VENV" in err and "Read-only file system" in err, out + err
    elsewhere = {"ALIGNER_VENV": str(tmp_path / "elsewhere/venv")}
    project.works(*in_read_only(project.root), cwd=Path("/"), script=str(project.root / "scripts/run.sh"), **elsewhere)
    assert project.works(ALIGNER_VENV=elsewhere["ALIGNER_VENV"]) == ""


@pytest.mark.kind("a read-only checkout")
@pytest.mark.slow
def test_a_read_only_checkout_with_its_environment_is_used(finished):
    said = finished.works(*in_read_only(finished.root), cwd=Path("/"), script=str(finished.root / "scripts/run.sh"))
    assert said == ""


@pytest.mark.kind("a read-only checkout")
@pytest.mark.slow
def test_a_read_only_environment_that_lacks_something_is_left_alone(finished):
    words = in_read_only(finished.root)
    status, out, err = finished.run(*words, cwd=Path("/"), script=str(finished.root / "scripts/run.sh"), EXTRA="test")
    assert status == 2 and "ALIGNER_VENV" in err, out + err
