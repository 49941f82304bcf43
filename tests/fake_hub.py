"""Not a test: a Hugging Face Hub on loopback that keeps what is uploaded and gives it back."""

import base64
import functools
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest


class FakeHub(ThreadingHTTPServer):
    """`repos` holds {name: {file: content}}, `asked` the requests: method, path, token."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.asked: list[tuple[str, str, str]] = []
        self.created: list[dict] = []
        self.refusal = 0  # status that an upload is answered with, if it is to be refused
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass

    def answer(self, status: int, content: bytes = b"{}", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self) -> None:
        self.note()
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path.split("?")[0])
        name, revision, file = found.groups() if found else ("", "", "")
        files = self.server.repos.get(name)
        if files is None:
            return self.answer(404, X_Error_Code="RepoNotFound")
        if name in self.server.gated:
            return self.answer(403, X_Error_Code="GatedRepo")
        commit = hashlib.sha1(repr(sorted(files)).encode()).hexdigest()
        if revision not in ("main", commit):
            return self.answer(404, X_Error_Code="RevisionNotFound")
        if file not in files:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        etag = f'"{hashlib.sha1(files[file]).hexdigest()}"'
        return self.answer(200, files[file], ETag=etag, X_Repo_Commit=commit)

    do_HEAD = do_GET

    def note(self) -> bytes:
        token = self.headers.get("authorization", "")
        self.server.asked.append((self.command, self.path, token))
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self) -> None:
        body = self.note()
        if self.path == "/api/validate-yaml":
            return self.answer(200, b'{"errors": [], "warnings": []}')
        if self.server.refusal:
            return self.answer(self.server.refusal, b'{"error": "not yours"}')
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            self.server.created.append(asked)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.repos.setdefault(name, {})
            return self.answer(200, json.dumps({"url": f"{self.server.url}/{name}"}).encode())
        name = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer(200, json.dumps({"files": files}).encode())
        assert "/commit/" in self.path, self.path
        for line in map(json.loads, body.decode().splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.server.repos[name][line["value"]["path"]] = content
        made = {"commitUrl": f"{self.server.url}/{name}/commit/1", "commitOid": "1" * 40}
        return self.answer(200, json.dumps({"success": True, **made}).encode())


@contextmanager
def fake_hub(cache: str) -> Iterator[FakeHub]:
    """A hub that hf_hub_download and HfApi turn to in this process, with a cache of its own."""
    hub = FakeHub()
    threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
    download = functools.partial(
        huggingface_hub.hf_hub_download, endpoint=hub.url, cache_dir=cache, etag_timeout=5
    )
    api = functools.partial(huggingface_hub.HfApi, endpoint=hub.url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub, "hf_hub_download", download)
        patch.setattr("extras.publish.HfApi", api)
        yield hub
    hub.shutdown()
    hub.server_close()
