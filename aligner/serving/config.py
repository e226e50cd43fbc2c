"""The settings of `aligner serve` and `aligner calibrate`, checked before anything is loaded."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from aligner.files import refuse_overwriting
from aligner.inference.config import AlignerOptions
from aligner.keys import read_key
from aligner.records import UserError, require_at_least_one
from aligner.serving import LOOPBACK
from aligner.steering.options import SteerOptions

UPSTREAM_KEY = "OPENAI_API_KEY"
ALIGNER_KEY = "ALIGNER_API_KEY"
HEADER = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)  # the name of one


@dataclass(frozen=True)
class ServeConfig:
    """The settings of `aligner serve`, a field for each flag: `model`, or `route`. Keys are named by their environment variables.

    UserError where the flags do not go together.
    """

    model: str
    upstream_url: str
    options: AlignerOptions
    steering: SteerOptions = SteerOptions()
    mode: str = "always"
    threshold: float | None = None
    shadow_file: str | None = None
    on_failure: str = "closed"
    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    upstream_key: str = UPSTREAM_KEY
    feedback: str = ""
    max_requests: int = 64
    max_prompt_tokens: int = 8192
    max_request_bytes: int = 1_000_000
    max_characters: int = 100_000
    access_log: str | None = None
    metrics: bool = False
    upstream_timeout: float = 120
    aligner_timeout: float = 60
    keep_unfinished: bool = False
    keep: str = "code"
    correct_structured: bool = False
    scripts: tuple[str, ...] | None = None
    pass_through: bool = False
    pass_headers: tuple[str, ...] | None = None
    upstream_header: tuple[str, ...] | None = None
    aligner_url: tuple[str, ...] = ()
    aligner_model: str | None = None
    aligner_key: str = ALIGNER_KEY
    workers: int = 1
    guardrail: bool = False
    sentences: bool = False
    upstream_folder: str | None = None
    route: str | None = None

    def __post_init__(self) -> None:
        numbers = {name: getattr(self.options, name) for name in ("batch_size", "max_new_tokens")}
        limits = (
            "max_prompt_tokens",
            "max_requests",
            "max_request_bytes",
            "max_characters",
            "upstream_timeout",
            "aligner_timeout",
        )
        numbers |= {name: getattr(self, name) for name in limits}
        for name, number in numbers.items():
            if not number > 0:
                raise UserError(f"--{name} is {number}: it must be above 0.")
        self._check_upstream()
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise UserError(
                f"--threshold is {self.threshold}: it is a number of nats a token, as 'aligner calibrate' chooses it."
            )
        if (self.mode == "gate") != (self.threshold is not None):
            raise UserError("--mode gate and --threshold X belong together: 'aligner calibrate' chooses X.")
        if (self.mode == "shadow") != bool(self.shadow_file):
            raise UserError("--mode shadow and --shadow_file FILE belong together.")
        if self.host not in LOOPBACK and not self.api_key:
            raise UserError(
                f"--host {self.host} can be reached from elsewhere: ask callers for a key, --api_key VARIABLE."
            )
        if self.sentences and self.mode == "shadow":
            raise UserError("--sentences corrects while the upstream speaks: it is for --mode always or gate.")
        if self.upstream_folder and not self.sentences:
            raise UserError("--upstream_folder needs --sentences.")
        _ = self.caller_key
        self._check_aligner()

    def _check_aligner(self) -> None:
        """UserError where the flags of served Aligners do not go together."""
        for url in self.aligner_url:
            check_address("aligner_url", url, "aligner_key")
        check_key("aligner_key", self.aligner_key, ALIGNER_KEY, "its key")
        if self.route:
            self._check_route()
        if self.steering.steer and self.aligner_url:
            raise UserError("--steer is for an Aligner that runs here: leave out --aligner_url.")
        if self.aligner_model and not self.aligner_url:
            raise UserError("--aligner_model needs --aligner_url.")
        require_at_least_one(workers=self.workers)
        if self.workers > 1 and not self.aligner_url:
            raise UserError("--workers needs --aligner_url: each process would hold a model of its own.")
        if self.workers > 1 and self.guardrail:
            raise UserError("--guardrail pairs two calls in one process: leave out --workers.")
        if self.workers > 1 and self.metrics:
            raise UserError("--metrics counts one process: leave out --workers, or take the counts of --access_log.")

    def _check_route(self) -> None:
        """UserError where a flag is for one Aligner alone."""
        if self.aligner_url:
            raise UserError(
                f"--aligner_url serves one Aligner: write it into {self.route}, beside the model it belongs to."
            )
        if self.steering.steer:
            raise UserError("--steer is for one Aligner that runs here: leave out --route.")
        if self.sentences:
            raise UserError("--sentences is for one Aligner: leave out --route.")
        if self.mode == "gate":
            raise UserError(
                "--mode gate: a threshold is of one Aligner. Leave out --route, or give questions to 'none' there."
            )

    def _check_upstream(self) -> None:
        """UserError where its address, key or headers cannot be one."""
        check_address("upstream_url", self.upstream_url, "upstream_key")
        check_key("upstream_key", self.upstream_key, UPSTREAM_KEY, "the upstream's key")
        _ = self.upstream_headers

    @property
    def upstream_headers(self) -> dict[str, str]:
        """The headers that the upstream always gets. UserError where one is not NAME: VALUE."""
        headers = {}
        for given in self.upstream_header or ():
            name, colon, value = given.partition(":")
            if not colon or not HEADER.fullmatch(name.strip()) or not is_header(value.strip()):
                raise UserError(
                    f"--upstream_header {name.split()[0][:40] if name.split() else ''}: write it as 'NAME: VALUE'."
                )
            headers[name.strip().lower()] = value.strip()
        return headers

    @property
    def caller_key(self) -> str | None:
        """The key that callers must send, if one is asked for."""
        return secret(self.api_key) if self.api_key else None


@dataclass(frozen=True)
class CalibrateConfig:
    """The settings of `aligner calibrate`, a field for each flag. UserError where a number is out of its range."""

    model: str
    input: str
    options: AlignerOptions
    columns: tuple[str, ...] = ()
    output: str = "gate.png"
    missed: float = 0.05
    rows: int = 1000

    def __post_init__(self) -> None:
        if not 0 <= self.missed <= 1:
            raise UserError(f"--missed is {self.missed}: it is a share, 0 to 1.")
        options = self.options
        require_at_least_one(batch_size=options.batch_size, max_new_tokens=options.max_new_tokens, rows=self.rows)
        refuse_overwriting(self.output, self.input)


def check_address(flag: str, url: str, key: str) -> None:
    """UserError where a flag's value is no address of a server; a query is what some servers ask for (`?api-version=...`)."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise UserError(f"--{flag} is no address of a server: write it as http://HOST:PORT/v1.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        shown = url.partition("?")[0].rpartition("@")[2]
        raise UserError(f"--{flag} {shown}: write it as http://HOST:PORT/v1.")
    if "@" in parts.netloc or "#" in url or not is_plain(url):
        raise UserError(
            f"--{flag}: the address of {parts.hostname} is http://HOST:PORT/v1 and no more; a key is --{key}'s."
        )


def check_key(flag: str, variable: str, usual: str, whose: str) -> None:
    """UserError where the variable that a flag names holds no key."""
    key = read_key(variable)
    if variable != usual and not key:
        raise UserError(f"--{flag}: {named(variable)} is not set. Export it with {whose}.")
    if not is_plain(key):
        raise UserError(f"--{flag}: {named(variable)} holds what cannot be a key. Export it anew.")


def secret(variable: str) -> str:
    """The value of a variable that holds a key. UserError where it is not set."""
    value = read_key(variable)
    if not value:
        raise UserError(f"--api_key: {named(variable)} is not set. Export it with the key that callers must send.")
    return value


def is_plain(text: str) -> bool:
    """Whether a text is printable ASCII without spaces, as keys and addresses are."""
    return is_header(text) and " " not in text


def is_header(value: str) -> bool:
    """Whether a text can be the value of a header everywhere: printable ASCII."""
    return value.isascii() and value.isprintable()


def named(variable: str) -> str:
    """A variable for a message. What cannot be the name of one may be the key itself, and is not repeated."""
    if variable.isidentifier() and variable.isupper():
        return f"the variable {variable}"
    return "what is named is no variable: it"
