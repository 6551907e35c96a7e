"""A Hub on this machine: as much of its protocol as `huggingface_hub` needs to fetch a repository, and a log."""

import dataclasses
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit


@dataclasses.dataclass
class Repository:
    """One repository of the server.

    Attributes:
      commits: the files of every commit, by path.
      refs: which commit a branch or tag stands for.
      token: the only one that may see the repository; None is a public one.
      gated: the listing is public, the files are refused.
      tree_only: paths that only the second listing, the tree, has.
      cut: path to the number of bytes after which the connection breaks, once each.
      on_cdn: paths that are answered with a redirect to another host, as large files are.
    """

    commits: Mapping[str, Mapping[str, bytes]]
    refs: dict[str, str]
    token: str | None = None
    gated: bool = False
    tree_only: tuple[str, ...] = ()
    cut: dict[str, int] = dataclasses.field(default_factory=dict)
    on_cdn: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Request:
    """A request as it came; `path` is unquoted and without the query."""

    method: str
    host: str
    path: str
    token: str | None
    range: str | None


class HubServer(http.server.ThreadingHTTPServer):
    """Serves `repositories` at `url` from a thread, between `with` and its end; `log` keeps every request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.cdn = f"http://localhost:{self.server_port}"  # the same place, but another host to whoever keeps a token
        self.repositories: dict[str, Repository] = {}
        self.log: list[Request] = []

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    def requests(self, name: str, method: str | None = None) -> list[Request]:
        """Returns the log of one repository."""
        return [r for r in self.log if f"/{name}/" in f"{r.path}/" and method in (None, r.method)]

    def files(self, name: str, method: str = "GET") -> set[str]:
        """Returns the paths of the files of a repository that were asked for."""
        found = (re.match(rf"/(?:cdn/)?{name}/resolve/[^/]+/(.*)", r.path) for r in self.requests(name, method))
        return {match[1] for match in found if match}


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the Hub does: what is private and what does not exist look alike."""

    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        host, ranged = self.headers["Host"].split(":")[0], self.headers.get("Range")
        self.server.log.append(Request(self.command, host, path, token, ranged))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self.listing(match[1], match[2] or "main", token, tree=False)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/(.+)", path):
            self.listing(match[1], match[2], token, tree=True)
        elif match := re.fullmatch(r"/(cdn/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.file(match[2], match[3], match[4], token, on_cdn=bool(match[1]))
        else:
            self.answer(404)

    def seen(self, name: str, token: str | None, revision: str) -> tuple[Repository, str] | None:
        """Returns the repository and the commit, or answers that there is none to be seen."""
        repository = self.server.repositories.get(name)
        if token == "wrong":
            self.answer(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repository is None or repository.token not in (None, token):
            self.answer(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif (commit := repository.refs.get(revision, revision)) not in repository.commits:
            self.answer(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {revision}"})
        else:
            return repository, commit
        return None

    def listing(self, name: str, revision: str, token: str | None, tree: bool) -> None:
        if (seen := self.seen(name, token, revision)) is None:
            return
        repository, commit = seen
        files = repository.commits[commit]
        if tree:
            sizes = {file: len(data) for file, data in files.items()} | dict.fromkeys(repository.tree_only, 5)
            body = [{"type": "file", "oid": _oid(file), "size": size, "path": file} for file, size in sizes.items()]
            self.answer(200, {"Content-Type": "application/json"}, json.dumps(body).encode())
        else:
            siblings = [{"rfilename": file} for file in files]
            body = {"_id": "1", "id": name, "modelId": name, "sha": commit, "private": False, "siblings": siblings}
            self.answer(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def file(self, name: str, commit: str, file: str, token: str | None, on_cdn: bool) -> None:
        if (seen := (self.server.repositories[name], commit) if on_cdn else self.seen(name, token, commit)) is None:
            return
        repository, commit = seen
        if repository.gated:
            return self.answer(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        data = repository.commits[commit].get(file, b"EVIL!" if file in repository.tree_only else None)
        if data is None:
            return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        if file in repository.on_cdn and not on_cdn:
            location = f"{self.server.cdn}/cdn{self.path}"
            linked = {"X-Linked-Etag": etag, "X-Linked-Size": str(len(data)), "Location": location}
            return self.answer(302, {"X-Repo-Commit": commit, **linked})
        headers = {"ETag": etag, "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        status = 200
        if ranged := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start, status = int(ranged[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data = data[start:]
        cut = repository.cut.pop(file, None) if self.command == "GET" else None
        self.answer(status, headers, data, cut)

    def answer(self, status: int, headers: Mapping[str, str] = {}, body: bytes = b"", cut: int | None = None) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        self.close_connection = self.close_connection or cut is not None


def _oid(file: str) -> str:
    return hashlib.sha1(file.encode()).hexdigest()
