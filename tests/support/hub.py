"""A stand-in for a Hugging Face hub: a real HTTP server that keeps repositories in memory and speaks as much of the
hub's protocol as huggingface-hub uses: information, trees, files (with ranges), new repositories, uploads, commits."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import pytest

#: What a new repository holds: every one has it.
FIRST = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}
#: Who may read what is gated or private.
TOKEN = "hf_of_a_member"


@dataclass
class Repository:
    """Commits by their hash, each all files of its time, and branches by their name."""

    gated: bool = False
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """A new commit that holds exactly these files; its hash."""
        said = json.dumps([len(self.commits), {name: digest(data) for name, data in files.items()}])
        sha = hashlib.sha1(said.encode()).hexdigest()
        self.commits[sha], self.branches[branch] = dict(files), sha
        return sha

    @property
    def head(self) -> dict[str, bytes]:
        """The files of the main branch."""
        return self.commits[self.branches["main"]]


@dataclass
class Request:
    """What somebody asked for."""

    method: str
    path: str
    range: str | None


@dataclass
class Hub:
    """The server's memory. `cuts`: for a file's name, after how many bytes each of its next transfers breaks off."""

    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)

    def add(self, name: str, files: dict[str, bytes], **options: bool) -> Repository:
        """A repository (`org/name`, or `datasets/org/name`) with these files."""
        repository = self.repositories[name] = Repository(**options)
        repository.commit({**FIRST, **files})
        return repository

    def fetched(self) -> list[str]:
        """The names of the files that were asked for whole, or to their end, since the last call."""
        asked = [request for request in self.requests if request.method == "GET" and (request.range or "-")[-1] == "-"]
        found = [request.path.partition("/resolve/")[2] for request in asked]
        self.requests.clear()
        return [name.partition("/")[2] for name in found if name]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Refusal(Exception):
    """A status with the hub's code for it."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    hub: ClassVar[Hub]

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path).lstrip("/")
        self.hub.requests.append(Request(self.command, path, self.headers.get("Range")))
        try:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._route(path, body)
        except Refusal as refusal:
            status, code = refusal.args
            self._reply(status, b"", {"X-Error-Code": code, "X-Error-Message": f"refused: {code}"})

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _route(self, path: str, body: bytes) -> None:
        routes = {
            r"api/repos/create": self._create,
            r"api/validate-yaml": lambda body: self._json({"errors": [], "warnings": []}),
            r"api/(models|datasets)/([^/]+/[^/]+)(?:/revision/(.+))?": self._information,
            r"api/(models|datasets)/([^/]+/[^/]+)/tree/(.+)": self._tree,
            r"api/models/([^/]+/[^/]+)/branch/(.+)": self._branch,
            r"api/models/([^/]+/[^/]+)/preupload/(.+)": self._preupload,
            r"api/models/([^/]+/[^/]+)/commit/(.+)": self._commit,
            r"([^/]+/[^/]+)\.git/info/lfs/objects/batch": self._batch,
            r"large/(\w+)": self._large,
            r"((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+|refs/\w+/\w+)/(.+)": self._file,
        }
        for pattern, route in routes.items():
            if found := re.fullmatch(pattern, path):
                route(*found.groups(), body=body)
                return
        raise Refusal(404, "NotFound")

    def _repository(self, name: str) -> Repository:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self._is_member):
            raise Refusal(401, "RepoNotFound")
        return repository

    def _at(self, name: str, revision: str | None) -> tuple[str, dict[str, bytes]]:
        repository = self._repository(name)
        sha = repository.branches.get(revision or "main", revision or "")
        if sha not in repository.commits:
            raise Refusal(404, "RevisionNotFound")
        return sha, repository.commits[sha]

    @property
    def _is_member(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _information(self, kind: str, name: str, revision: str | None, body: bytes) -> None:
        sha, files = self._at(name if kind == "models" else f"{kind}/{name}", revision)
        self._json({"id": name, "sha": sha, "siblings": [{"rfilename": file} for file in files], "tags": []})

    def _tree(self, kind: str, name: str, revision: str, body: bytes) -> None:
        files = self._at(name if kind == "models" else f"{kind}/{name}", revision)[1]
        self._json(
            [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in files.items()
            ]
        )

    def _file(self, name: str, revision: str, file: str, body: bytes) -> None:
        sha, files = self._at(name, revision)
        if self._repository(name).gated and not self._is_member:
            raise Refusal(403, "GatedRepo")
        if file not in files:
            raise Refusal(404, "EntryNotFound")
        data = files[file]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{digest(data)}"', "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range")
        first, last = ((wanted or "").removeprefix("bytes=") or "-").split("-")
        start, end = int(first or 0), min(int(last or len(data)), len(data) - 1)
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        is_cut = self.command == "GET" and not last and bool(self.hub.cuts.get(file))
        cut = self.hub.cuts[file].pop(0) if is_cut else None
        self._reply(206 if wanted else 200, data[start : end + 1], headers, cut)

    def _create(self, body: bytes) -> None:
        said = json.loads(body)
        name = f"{said['organization']}/{said['name']}"
        if not self._is_member:
            raise Refusal(401, "Unauthorized")
        if name in self.hub.repositories:
            self._reply(409, json.dumps({"url": f"{self.hub.endpoint}/{name}"}).encode())
            return
        private = said.get("visibility") == "private" or bool(said.get("private"))
        self.hub.add(name, {}, private=private)
        self._json({"url": f"{self.hub.endpoint}/{name}"})

    def _branch(self, name: str, branch: str, body: bytes) -> None:
        repository = self._repository(name)
        if branch in repository.branches:
            self._reply(409, b"")
            return
        repository.branches[branch] = repository.branches["main"]
        self._json({})

    def _preupload(self, name: str, revision: str, body: bytes) -> None:
        self._at(name, revision)
        files = [file["path"] for file in json.loads(body)["files"]]
        modes = {file: "lfs" if file.endswith(".safetensors") else "regular" for file in files}
        self._json(
            {"files": [{"path": file, "uploadMode": mode, "shouldIgnore": False} for file, mode in modes.items()]}
        )

    def _batch(self, name: str, body: bytes) -> None:
        wanted = json.loads(body)["objects"]
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.hub.endpoint}/large/{one['oid']}"}}} for one in wanted
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _large(self, oid: str, body: bytes) -> None:
        if digest(body) != oid:
            raise Refusal(400, "BadDigest")
        self.hub.large[oid] = body
        self._json({})

    def _commit(self, name: str, branch: str, body: bytes) -> None:
        files = dict(self._at(name, branch)[1])
        for line in map(json.loads, body.splitlines()):
            value: dict[str, Any] = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.large[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
                case _:
                    assert line["key"] == "header"
        sha = self._repository(name).commit(files, branch)
        self._json({"commitOid": sha, "commitUrl": f"{self.hub.endpoint}/{name}/commit/{sha}", "success": True})

    def _json(self, data: Any) -> None:
        self._reply(200, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _reply(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        self.close_connection = self.close_connection or cut is not None


@contextmanager
def running() -> Iterator[Hub]:
    """A hub on a port of its own, until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use(hub: Hub, home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have huggingface-hub, in this process, talk to this hub alone, with its cache under `home` and no token. What it
    reads from the environment it has read at its import."""
    from huggingface_hub import constants

    for name, value in {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        "HF_HOME": home,
        "HF_HUB_CACHE": f"{home}/hub",
        "HF_TOKEN_PATH": f"{home}/token",
        "HF_STORED_TOKENS_PATH": f"{home}/stored_tokens",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": None,
        # What a broken transfer leaves is kept in pieces of this size, 10 MB unless told otherwise.
        "DOWNLOAD_CHUNK_SIZE": 50_000,
    }.items():
        monkeypatch.setattr(constants, name, value, raising=False)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
