"""Keep the mels of recordings in files, so that only the first epoch computes them.

    cache = MelCache("mels", audio_config)
    mel = cache.read("clip.wav", lambda path: ...)     # computed once, then read, bit for bit

A mel is computed anew when the recording's size or time of change, the audio settings or the code
that computes mels is not what it was.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from command_line.files import DataError, write_whole

REPO = Path(__file__).resolve().parent.parent
CODE = ("dataset.py", "audio/recording.py")  # what mels are computed by


class MelCache:
    """A folder with a file for each recording's mel, float32, which processes may share.

    Args:
        folder: is made when the first mel is written.
        settings: of the mels; their repr must name all of them.
    """

    def __init__(self, folder: str | Path, settings: object) -> None:
        self.folder = Path(folder)
        code = hashlib.sha256(b"".join((REPO / name).read_bytes() for name in CODE)).hexdigest()
        self.made_by = f"{settings!r} {code}"

    def read(self, recording: str, compute: Callable[[str], Tensor]) -> Tensor:
        """Return compute(recording), from the cache if it is there.

        Raises:
            DataError: when the mel cannot be written. What compute raises goes on.
        """
        try:
            info = os.stat(recording)
        except OSError:
            return compute(recording)  # says what is wrong with it
        made_of = f"{info.st_size} {info.st_mtime_ns} {self.made_by}"
        name = hashlib.sha256(os.path.abspath(recording).encode()).hexdigest()[:32]
        path = self.folder / f"{name}.safetensors"
        try:
            with safe_open(path, "pt") as file:
                if file.metadata() == {"made_of": made_of}:
                    return file.get_tensor("mel")
        except (OSError, SafetensorError):
            pass  # missing, or broken
        mel = compute(recording)
        content = safetensors.torch.save({"mel": mel.contiguous()}, {"made_of": made_of})
        try:
            write_whole(path, lambda temporary: temporary.write_bytes(content))
        except OSError as error:
            raise DataError(f"--cache_mels {self.folder}: cannot be written to ({error})") from None
        return mel
