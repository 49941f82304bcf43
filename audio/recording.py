"""Read a recording as training reads it: all of it, mono, in [-1, 1].

    recording = read_recording("clip.flac")
    recording.wav  # (n_samples,) float32 at recording.sampling_rate

What is odd and can be read is read, and `recording.remarks` say how: channels that cancel each
other, floats above full scale. A wav or flac whose header does not know its length, because it was
recorded through a pipe, is read to its end.
"""

import io
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from command_line.files import DataError

BLOCK_SIZE = 2**18  # samples read at once from a flac that does not know its length
UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's number of samples in such a flac
# Programs that write to a pipe leave a size of 0, or of about 2 or 4 GiB (0x7FFFF000, 0xFFFFFFFF).
PLACEHOLDERS = (2**31, 2**32, 2**63, 2**64)
PLACEHOLDER_MARGIN = 2**13  # bytes between a placeholder and these
SAMPLING_RATES = range(1_000, 1_000_001)  # of sound
MAX_PEAK = 8.0  # a float recording's loudest sample; what is above 1 is scaled down
FRAME_SECONDS = 0.02
SILENCE_DB = 40.0  # below the loudest frame
MAX_MIX_LOSS = 5.0  # dB that the mean of all channels may lie below the loudest channel
LOST_DB = 60.0  # what the loss of a frame that is all gone counts
ONE_CHANNEL = "Channels cancel or weaken each other, so training reads one of them"
SCALED_DOWN = "Samples exceed full scale, so training scales the recording down"


class Recording(NamedTuple):
    """Holds a recording that has been read."""

    wav: np.ndarray  # (n_samples,) float32 in [-1, 1], what training reads
    channels: np.ndarray  # (n_samples, n_channels) float32 in [-1, 1]
    sampling_rate: int
    remarks: tuple[str, ...]  # ONE_CHANNEL, SCALED_DOWN


class SampleSize(NamedTuple):
    """Says how many bytes of samples a wav's header promises, and how many there are."""

    promised: int
    held: int
    place: slice  # of the promise in the file

    @property
    def is_truncated(self) -> bool:
        """True if the file ends before its samples do."""
        return self.promised > self.held and not self.is_placeholder

    @property
    def is_placeholder(self) -> bool:
        """True if the header was written before the length was known."""
        distance = min(abs(self.promised - size) for size in PLACEHOLDERS)
        return self.promised == 0 or distance <= PLACEHOLDER_MARGIN

    def __str__(self) -> str:
        return f"{self.held} bytes of samples instead of {self.promised}"


class _Stream(soundfile.SoundFile):
    """Reads a flac of unknown length, in which libsndfile cannot seek."""

    def seekable(self) -> bool:
        return False


def find_sample_size(path: str | Path) -> SampleSize | None:
    """Find the size of the samples in a wav's header; None if the file is no such wav."""
    with open(path, "rb") as file:
        n_bytes = file.seek(0, os.SEEK_END)
        file.seek(0)
        header, size_64 = file.read(12), None
        if header[:4] not in (b"RIFF", b"RF64") or header[8:] != b"WAVE":
            return None
        while len(chunk := file.read(8)) == 8:
            start, size = file.tell(), int.from_bytes(chunk[4:], "little")
            if chunk[:4] == b"ds64":  # of RF64: the sizes of the file and of its samples
                size_64 = slice(start + 8, start + 16)
                promised_64 = int.from_bytes(file.read(16)[8:], "little")
            elif chunk[:4] == b"data":
                held, follows = n_bytes - start, file.read(8)
                # An empty recording may have another chunk, such as a title, behind it.
                follows_size = int.from_bytes(follows[4:], "little")
                if size == 0 and re.match(rb"[ -~]{4}", follows) and 8 + follows_size <= held:
                    held = 0
                if size_64:
                    return SampleSize(promised_64, held, size_64)
                return SampleSize(size, held, slice(start - 4, start))
            file.seek(start + size + size % 2)
    return None


def mend_size(path: str | Path) -> io.BytesIO | None:
    """Return a wav with its true size in place of a placeholder; None if it has none."""
    size = find_sample_size(path)
    if size is None or not size.held or not size.is_placeholder:
        return None
    content = bytearray(Path(path).read_bytes())
    content[size.place] = size.held.to_bytes(size.place.stop - size.place.start, "little")
    return io.BytesIO(content)


def open_recording(path: str | Path) -> soundfile.SoundFile:
    """Open a recording, also one whose header does not know its length."""
    try:
        file = soundfile.SoundFile(path)
    except soundfile.LibsndfileError:
        if os.path.isfile(path) and (mended := mend_size(path)):
            return soundfile.SoundFile(mended)
        raise
    if file.frames == UNKNOWN_FRAMES:
        return _Stream(path)
    if file.frames == 0 and (mended := mend_size(path)):
        return soundfile.SoundFile(mended)
    return file


def read_channels(file: soundfile.SoundFile) -> np.ndarray:
    """Read all samples, (n_samples, n_channels) float32."""
    options = {"dtype": "float32", "always_2d": True}
    if file.seekable():
        return file.read(**options)
    blocks = [file.read(BLOCK_SIZE, **options)]
    while len(blocks[-1]):
        blocks.append(file.read(BLOCK_SIZE, **options))
    return np.concatenate(blocks)


def mix_channels(channels: np.ndarray, sampling_rate: int) -> tuple[np.ndarray, bool]:
    """Average channels (n_samples, n_channels), or take one where the mean would lose the voice.

    Channels of opposite sign cancel each other, and a silent one halves another. A channel is taken
    if, averaged over the frames of 20 ms that sound, its level is MAX_MIX_LOSS dB above the mean's.

    Returns:
        (n_samples,), and True where it is one channel.
    """
    mean = channels.mean(axis=1)
    if channels.shape[1] == 1:
        return mean, False
    candidates = np.column_stack([mean, channels])  # (n_samples, 1 + n_channels)
    squares = (candidates - candidates.mean(axis=0)) ** 2
    starts = np.arange(0, len(squares), max(1, round(FRAME_SECONDS * sampling_rate)))
    powers = np.add.reduceat(squares, starts)  # (n_frames, 1 + n_channels)
    loudest = powers[:, 1:].max(axis=1)
    sounding = loudest > loudest.max() * 10 ** (-SILENCE_DB / 10)
    if not sounding.any():  # all samples are 0
        return mean, False
    shares = powers[sounding] / loudest[sounding, None]
    losses = -10 * np.log10(shares.clip(min=10 ** (-LOST_DB / 10))).mean(axis=0)
    best = losses[1:].argmin()
    if losses[0] - losses[1 + best] <= MAX_MIX_LOSS:
        return mean, False
    return np.ascontiguousarray(channels[:, best]), True


def read_recording(path: str | Path) -> Recording:
    """Read a wav or flac file of any rate and channel count.

    Raises:
        DataError: when the file is missing, unreadable, empty, or its samples are no sound: NaN,
            infinite, or far above full scale.
    """
    try:
        with open_recording(path) as file:
            channels, sampling_rate = read_channels(file), file.samplerate
    except (OSError, RuntimeError, TypeError, ValueError, MemoryError) as error:
        reason = "no such file" if not os.path.isfile(path) else str(error).strip(". ")
        raise DataError(f"{path}: cannot be read as audio ({reason})") from None
    if sampling_rate not in SAMPLING_RATES:
        raise DataError(f"{path}: has a sampling rate of {sampling_rate} Hz")
    if len(channels) == 0:
        raise DataError(f"{path}: holds no samples")
    peak = float(np.abs(channels).max())
    if not np.isfinite(peak):
        raise DataError(f"{path}: holds samples that are NaN or infinite")
    if peak > MAX_PEAK:
        raise DataError(
            f"{path}: holds samples up to {peak:.6g}, as of integers that were stored as floats; "
            "full scale is 1"
        )
    remarks = []
    if peak > 1.0:
        channels = channels / peak
        remarks.append(SCALED_DOWN)
    wav, is_one_channel = mix_channels(channels, sampling_rate)
    if is_one_channel:
        remarks.append(ONE_CHANNEL)
    return Recording(wav, channels, sampling_rate, tuple(remarks))
