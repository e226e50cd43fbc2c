"""A hub on this machine: the few answers that `datasets` asks of huggingface.co, given from a folder ORG/NAME/files."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

COMMIT = "a" * 40
REVISIONS = {"main", "v1", COMMIT}  # all the same; any other is not there


class Answers(http.server.BaseHTTPRequestHandler):
    def __init__(self, root: Path, *arguments):
        self.root = root
        super().__init__(*arguments)

    def log_message(self, *_):
        pass

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def entries(self, repo: Path, paths: list[Path]) -> bytes:
        kinds = {True: "file", False: "directory"}
        return json.dumps(
            [
                {
                    "type": kinds[p.is_file()],
                    "path": str(p.relative_to(repo)),
                    "size": p.stat().st_size,
                    "oid": "b" * 40,
                }
                for p in paths
                if p.exists()
            ]
        ).encode()

    def do_GET(self) -> None:
        path = urllib.parse.unquote(self.path.split("?")[0])
        revision = re.search(r"/(?:resolve|tree|revision)/([^/]+)", path)
        if revision and revision[1] not in REVISIONS:
            return self.answer(b"{}", 404, X_Error_Code="RevisionNotFound")
        if found := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/[^/]+/(.*)", path):
            file = self.root / found[1] / found[2]
            if not file.is_file():
                return self.answer(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            body = file.read_bytes()
            return self.answer(body, ETag=f'"{hashlib.sha1(body).hexdigest()}"', X_Repo_Commit=COMMIT)
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/[^/]+(/.*)?", path):
            repo = self.root / found[1]
            folder = repo / (found[2] or "").strip("/")
            return self.answer(self.entries(repo, sorted(folder.iterdir()))) if folder.is_dir() else self.missing()
        if (found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(/revision/[^/]+)?", path)) and (
            self.root / found[1]
        ).is_dir():
            return self.answer(json.dumps({"id": found[1], "sha": COMMIT, "private": False, "tags": []}).encode())
        return self.missing()

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/paths-info/[^/]+", self.path)
        if not found:
            return self.missing()
        paths = json.loads(body)["paths"] if body[:1] == b"{" else urllib.parse.parse_qs(body.decode())["paths"]
        repo = self.root / found[1]
        return self.answer(self.entries(repo, [repo / path for path in paths]))

    def missing(self) -> None:
        self.answer(b"{}", 404, X_Error_Code="RepoNotFound")


@contextmanager
def serving(root: Path) -> Iterator[str]:
    """The address of a hub that serves `root` while the block runs."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Answers, root))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
