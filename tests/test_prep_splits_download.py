"""prep_splits.py --download, from a server of this machine: archives whole and hostile."""

import hashlib
import io
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest

from corpora.download import LJSPEECH_SHA256, LJSPEECH_URL
from test_prep_splits import fail, listing, make_corpus, run


def make_archive(corpus: Path, *extra: tarfile.TarInfo) -> bytes:
    """corpus as a tar.bz2, with these members in front; files among them hold "evil"."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:bz2") as archive:
        for member in extra:
            member.size = 4 if member.isfile() else 0
            archive.addfile(member, io.BytesIO(b"evil") if member.isfile() else None)
        archive.add(corpus, "LJSpeech-1.1")
    return buffer.getvalue()


@pytest.fixture
def mirror(monkeypatch):
    """A loopback server; .serve(content) returns the flags that download that content from it."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            server.requests += 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(server.content)))
            self.end_headers()
            self.wfile.write(server.content)

        def log_message(self, *args):
            pass

    def serve(content: bytes, checksum: str | None = None) -> tuple[str, ...]:
        server.content = content
        url = f"http://127.0.0.1:{server.server_port}/LJSpeech-1.1.tar.bz2"
        flags = ("--download", "--download_url", url)
        return (*flags, "--download_sha256", checksum or hashlib.sha256(content).hexdigest())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.serve = 0, serve
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("asked", ["data/LJSpeech-1.1", "data"])
def test_download_unpacks_once(tmp_path, mirror, asked):
    flags = mirror.serve(make_archive(make_corpus(tmp_path / "source")))
    for _ in range(2):
        both = pd.concat(run(tmp_path / asked, tmp_path / "out", *flags).values())
        assert len(both) == 5
        assert Path(both["file_path"].iloc[0]).parent == tmp_path / "data/LJSpeech-1.1/wavs"
    assert mirror.requests == 1
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["LJSpeech-1.1"]


def test_failed_download_is_not_taken_for_a_corpus(tmp_path, mirror, capsys):
    archive = make_archive(make_corpus(tmp_path / "source", 50))
    flags = ("--path_to_ljspech", tmp_path / "data", "--path_to_save", tmp_path / "out")
    wrong_checksum = mirror.serve(archive, "0" * 64)
    assert "invalid hash value" in fail(capsys, *flags, *wrong_checksum)
    cut_short = mirror.serve(archive[: len(archive) * 3 // 4])
    assert "--download failed" in fail(capsys, *flags, *cut_short)
    not_the_original = mirror.serve(archive)[:3]  # without a checksum of its own
    assert "invalid hash value" in fail(capsys, *flags, *not_the_original)
    assert mirror.requests == 3
    assert listing(tmp_path / "data") == [] and not (tmp_path / "out").exists()


def make_member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


UNSAFE = {
    "device": [make_member("LJSpeech-1.1/device", tarfile.CHRTYPE)],
    "dots": [make_member("LJSpeech-1.1/../../evil")],
    "link": [
        make_member("LJSpeech-1.1/link", tarfile.SYMTYPE, "../../outside"),
        make_member("LJSpeech-1.1/link/evil"),
    ],
    "absolute link": [make_member("LJSpeech-1.1/link", tarfile.SYMTYPE, "/tmp")],
    "hard link": [make_member("LJSpeech-1.1/hard", tarfile.LNKTYPE, "../../outside/precious")],
}


@pytest.mark.parametrize("kind", UNSAFE)
def test_unsafe_archive_is_refused(tmp_path, mirror, capsys, kind):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/precious").write_text("precious")
    flags = mirror.serve(make_archive(make_corpus(tmp_path / "source"), *UNSAFE[kind]))
    before = listing(tmp_path)
    flags = ("--path_to_ljspech", tmp_path / "data", "--path_to_save", tmp_path / "out", *flags)
    assert "--download failed, nothing was kept" in fail(capsys, *flags)
    assert listing(tmp_path) == sorted([*before, "data"])
    assert (tmp_path / "outside/precious").read_text() == "precious"


def test_download_leaves_a_folder_that_is_no_corpus_alone(tmp_path, mirror, capsys):
    (tmp_path / "LJSpeech-1.1").mkdir()
    (tmp_path / "LJSpeech-1.1/mine").write_text("precious")
    flags = mirror.serve(b"")
    flags = ("--path_to_ljspech", tmp_path, "--path_to_save", tmp_path / "out", *flags)
    assert "move it away" in fail(capsys, *flags)
    assert mirror.requests == 0 and (tmp_path / "LJSpeech-1.1/mine").exists()


def test_the_original_has_the_address_and_checksum_that_torchaudio_knows():
    torchaudio = pytest.importorskip("torchaudio")
    known = torchaudio.datasets.ljspeech._RELEASE_CONFIGS["release1"]
    assert (known["url"], known["checksum"]) == (LJSPEECH_URL, LJSPEECH_SHA256)
