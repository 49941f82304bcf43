"""Not a test: files and folders to break, for the tests of bad and of odd input."""

import importlib
import io
import shutil
from pathlib import Path

import soundfile

from conftest import RATE, speak

HEADER = "file_path,normalized_transcript,duration\n"
TEXT = "Come in now"
PLAIN = speak(TEXT)  # (n_samples,) at RATE


class World:
    """A folder, with a space and other letters in its name, and input to break."""

    def __init__(self, tmp_path, corpus, voice, run_folder):
        self.folder = tmp_path / "a ünïque folder"
        self.folder.mkdir()
        self.corpus, self.voice, self.run_folder = corpus, voice, run_folder
        self.out = self.folder / "out"

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def clip(self, samples=PLAIN, rate=RATE, name="clip.wav", **options) -> Path:
        path = self.folder / name
        soundfile.write(path, samples, rate, **options)
        return path

    def manifest(self, content: str | bytes) -> Path:
        """clip.wav, and manifest.csv beside it."""
        self.clip()
        return self.file("manifest.csv", content)

    def ljspeech(self, rows: str | bytes | None = None) -> Path:
        """An LJSpeech folder of three clips; `rows` are added to metadata.csv."""
        folder = self.folder / "lj"
        (folder / "wavs").mkdir(parents=True)
        for i in range(3):
            soundfile.write(folder / f"wavs/clip{i}.wav", PLAIN, RATE)
        lines = "".join(f"clip{i}|{TEXT}|{TEXT}\n" for i in range(3)).encode()
        rows = rows.encode() if isinstance(rows, str) else rows or b""
        (folder / "metadata.csv").write_bytes(lines + rows)
        return folder

    def copy_voice(self) -> Path:
        """A checkpoint to be broken."""
        return Path(shutil.copytree(self.voice, self.folder / "voice"))

    def copy_run(self) -> Path:
        """The run's checkpoint, where --resume_from_checkpoint checkpoint_0 looks for it."""
        place = self.out / "work/tiny/checkpoint_0"
        return Path(shutil.copytree(self.run_folder / "work/tiny/checkpoint_0", place))


def wav_bytes(samples=PLAIN, **options) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, **{"format": "WAV", **options})
    return buffer.getvalue()


def snapshot(folder: Path) -> dict:
    files = {path: path.lstat() for path in sorted(folder.rglob("*"))}
    return {str(p): (s.st_mode, s.st_size, s.st_mtime_ns * p.is_file()) for p, s in files.items()}


def run(script: str, *flags, capsys) -> tuple[int, str]:
    """Call a script's main in this process; return its exit code and what it wrote on stderr."""
    try:
        code = importlib.import_module(script).main([str(flag) for flag in flags])
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr().err
    return (1, f"{said}{code}\n") if isinstance(code, str) else (code or 0, said)
