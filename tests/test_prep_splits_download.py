"""Tests of prep_splits.py --download, from a server of this machine: archives whole and hostile."""

import io
import sys
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest

import prep_splits
from test_prep_splits import fail, listing, make_corpus, run, sha256


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
def mirror(tmp_path, monkeypatch):
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
        return (*flags, "--download_sha256", checksum or sha256(content))

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
    archive = make_archive(make_corpus(tmp_path / "source"))
    flags = mirror.serve(archive)
    for _ in range(2):
        both = pd.concat(run(tmp_path / asked, tmp_path / "out", *flags).values())
        assert len(both) == 5
        assert Path(both["file_path"].iloc[0]).parent == tmp_path / "data/LJSpeech-1.1/wavs"
    assert mirror.requests == 1
    assert listing(tmp_path / "data")[0] == "LJSpeech-1.1"
    assert {path.split("/")[0] for path in listing(tmp_path / "data")} == {"LJSpeech-1.1"}


def test_failed_download_is_not_taken_for_a_corpus(tmp_path, mirror, capsys):
    archive = make_archive(make_corpus(tmp_path / "source", 50))
    flags = ("--path_to_ljspech", tmp_path / "data", "--path_to_save", tmp_path / "out")

    wrong_checksum = mirror.serve(archive, "0" * 64)
    assert "invalid hash value" in fail(capsys, *flags, *wrong_checksum)
    cut_short = mirror.serve(archive[: len(archive) * 3 // 4])
    assert "--download failed" in fail(capsys, *flags, *cut_short)
    not_the_original = mirror.serve(archive)[:3]  # no checksum of its own: torchaudio's counts
    assert "invalid hash value" in fail(capsys, *flags, *not_the_original)
    assert mirror.requests == 3
    assert listing(tmp_path / "data") == [] and not (tmp_path / "out").exists()
    assert sum(map(len, run(tmp_path / "data", tmp_path / "out", *mirror.serve(archive)).values()))


def unsafe_members(outside: Path) -> dict[str, list[tarfile.TarInfo]]:
    link = tarfile.TarInfo("LJSpeech-1.1/link")
    link.type, link.linkname = tarfile.SYMTYPE, str(outside)
    hard = tarfile.TarInfo("LJSpeech-1.1/hard")
    hard.type, hard.linkname = tarfile.LNKTYPE, "LJSpeech-1.1/metadata.csv"
    inner = tarfile.TarInfo("LJSpeech-1.1/link")
    inner.type, inner.linkname = tarfile.SYMTYPE, "../outside"
    device = tarfile.TarInfo("LJSpeech-1.1/device")
    device.type, device.devmajor, device.devminor = tarfile.CHRTYPE, 1, 3
    pipe = tarfile.TarInfo("LJSpeech-1.1/pipe")
    pipe.type = tarfile.FIFOTYPE
    outward = tarfile.TarInfo("LJSpeech-1.1/hard")
    outward.type, outward.linkname = tarfile.LNKTYPE, "../../outside/evil"
    return {
        "link inside, then out of it": [inner, tarfile.TarInfo("LJSpeech-1.1/link/evil")],
        "device": [device],
        "pipe": [pipe],
        "hard link to outside": [outward],
        "Windows dots": [tarfile.TarInfo("LJSpeech-1.1\\..\\..\\evil")],
        "dots alone": [tarfile.TarInfo("../evil")],
        "dots": [tarfile.TarInfo("LJSpeech-1.1/../../evil")],
        "absolute": [tarfile.TarInfo(str(outside / "evil"))],
        "link": [link, tarfile.TarInfo("LJSpeech-1.1/link/evil")],
        "hard link": [hard],
    }


@pytest.mark.parametrize("kind", unsafe_members(Path("/")))
def test_unsafe_archive_is_refused(tmp_path, mirror, capsys, kind):
    (tmp_path / "outside").mkdir()
    members = unsafe_members(tmp_path / "outside")[kind]
    flags = mirror.serve(make_archive(make_corpus(tmp_path / "source"), *members))
    before = listing(tmp_path)
    flags = ("--path_to_ljspech", tmp_path / "data", "--path_to_save", tmp_path / "out", *flags)
    assert "unsafe member" in fail(capsys, *flags)
    assert listing(tmp_path) == sorted([*before, "data"])
    assert tarfile.TarFile.extraction_filter is None or sys.version_info >= (3, 14)


def test_download_leaves_a_folder_that_is_no_corpus_alone(tmp_path, mirror, capsys):
    (tmp_path / "LJSpeech-1.1").mkdir()
    (tmp_path / "LJSpeech-1.1/mine").write_text("precious")
    flags = mirror.serve(b"")
    flags = ("--path_to_ljspech", tmp_path, "--path_to_save", tmp_path / "out", *flags)
    assert "move it away" in fail(capsys, *flags)
    assert mirror.requests == 0 and (tmp_path / "LJSpeech-1.1/mine").exists()


def test_the_original_comes_through_torchaudio_with_its_own_checksum(tmp_path, monkeypatch):
    torchaudio = pytest.importorskip("torchaudio")
    calls = []

    def fake(root, **options):
        calls.append(options)
        make_corpus(Path(root) / "LJSpeech-1.1")

    monkeypatch.setattr(torchaudio.datasets, "LJSPEECH", fake)
    run(tmp_path / "LJSpeech-1.1", tmp_path / "out", "--download")
    original = torchaudio.datasets.ljspeech._RELEASE_CONFIGS["release1"]["url"]
    assert calls == [{"url": original, "download": True}]
    assert prep_splits.is_corpus(tmp_path / "LJSpeech-1.1")
