"""Turns recordings and transcripts into batches, wav into scaled mel, and mel back into wav.

    audio_config = AudioConfig()
    wav = load_wav("clip.flac", audio_config.sampling_rate)     # (n_samples,) in [-1, 1]
    mel = audio_to_mel(wav, audio_config)                       # (T_mel, num_mels), -4 .. 4
    mel_to_audio(mel, audio_config)                             # Griffin-Lim, (n_samples,)

The mel: reflect-pad by (n_fft - hop_size) / 2, STFT without centring, magnitude, Slaney mel
filters, so that T_mel = n_samples // hop_size (HiFi-GAN's framing). Then
dB = 20 log10(max(m, 10^(min_db / 20))), and min_db .. 0 dB is scaled linearly to -A .. A with
A = max_scaled_abs: the data is centred on zero, and silence is -A. `scaled_to_log_mel` turns it
into the natural-log mel that HiFi-GAN and NVIDIA's Tacotron 2 use.
"""

import io
import math
import os
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Sampler

import audio.numba_cache  # noqa: F401 before librosa
from audio.mel_cache import MelCache
from audio.recording import read_recording
from command_line.files import DataError, one_line, write_whole
from text.phonemes import to_phonemes
from text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import pandas as pd

MANIFEST_COLUMNS = ("file_path", "normalized_transcript", "duration")
# With larger sizes the filters, or the spectrum of a few words, would not fit into memory.
MAX_SIZES = {
    "sampling_rate": 1_000_000,
    "num_mels": 1024,
    "n_fft": 16384,
    "window_size": 16384,
    "hop_size": 16384,
}
MEL_SCALINGS = ("scaled_db", "log")
MAX_OVERLAP = 64  # frames that share a sample
MOMENTUM = 0.99 / 1.99  # of Griffin-Lim, as torchaudio.functional.griffinlim's momentum=0.99
TINY = 1e-8  # smaller than any magnitude that matters; keeps divisions finite
DURATION_TOLERANCE = 0.1  # seconds by which a recording may differ from its manifest
LENGTH_JITTER = 0.03  # share of a clip's length; reshuffles the batches at about 3 % padding


@dataclass(frozen=True)
class AudioConfig:
    """Describes how wav becomes mel. Raises ValueError naming the flag that is wrong."""

    sampling_rate: Annotated[
        int, "audio samples per second (Hz); files of other rates are resampled"
    ] = 22050
    num_mels: Annotated[int, "mel bins"] = 80
    n_fft: Annotated[int, "FFT size in samples (1024 are 46 ms at 22,050 Hz)"] = 1024
    window_size: Annotated[int, "length of the Hann window in samples, at most n_fft"] = 1024
    hop_size: Annotated[
        int, "samples from one frame to the next (256 are 11.6 ms at 22,050 Hz)"
    ] = 256
    min_db: Annotated[float, "floor of the mel in dB; what is softer is silence"] = -100.0
    max_scaled_abs: Annotated[float, "mels are scaled to -max_scaled_abs .. max_scaled_abs"] = 4.0
    fmin: Annotated[float, "lowest frequency of the mel filters in Hz"] = 0.0
    fmax: Annotated[
        float, "highest frequency of the mel filters in Hz, at most half of sampling_rate"
    ] = 8000.0
    mel_scaling: Annotated[str, "scaled_db, or log for natural-log mels as NVIDIA has them"] = (
        "scaled_db"
    )

    def __post_init__(self) -> None:
        for name, most in MAX_SIZES.items():
            value = getattr(self, name)
            if not 1 <= value <= most:
                bounds = "at least 1" if value < 1 else f"at most {most}"
                raise ValueError(f"--{name} must be {bounds}, found {value}")
        if self.num_mels > self.n_fft // 2 + 1:
            raise ValueError(
                f"--num_mels must not exceed the {self.n_fft // 2 + 1} frequencies of --n_fft "
                f"{self.n_fft}, found {self.num_mels}"
            )
        if not self.hop_size < self.window_size <= self.n_fft:  # Hann windows must overlap
            raise ValueError(
                "--hop_size < --window_size <= --n_fft must hold, found "
                f"{self.hop_size}, {self.window_size}, {self.n_fft}"
            )
        if (self.n_fft - self.hop_size) % 2:
            raise ValueError(
                f"--n_fft minus --hop_size must be even, found {self.n_fft} - {self.hop_size}"
            )
        if self.n_fft > MAX_OVERLAP * self.hop_size:
            raise ValueError(
                f"--n_fft must be at most {MAX_OVERLAP} times --hop_size, found {self.n_fft} "
                f"and {self.hop_size}"
            )
        if not 0 <= self.fmin < self.fmax <= self.sampling_rate / 2:
            raise ValueError(
                "0 <= --fmin < --fmax <= half of --sampling_rate must hold, found "
                f"{self.fmin}, {self.fmax}, {self.sampling_rate / 2}"
            )
        if not -750 <= self.min_db < 0:  # float32's smallest normal number is -758 dB
            raise ValueError(f"--min_db must be below 0 and at least -750, found {self.min_db}")
        if not 0 < self.max_scaled_abs <= 1e6:
            found = f"found {self.max_scaled_abs:g}"
            raise ValueError(f"--max_scaled_abs must be above 0 and at most 1e6, {found}")
        if self.mel_scaling not in MEL_SCALINGS:
            raise ValueError(f"--mel_scaling must be scaled_db or log, found {self.mel_scaling}")

    @property
    def silence(self) -> float:
        """The mel value of silence; batches are padded with it."""
        return -self.max_scaled_abs if self.mel_scaling == "scaled_db" else self.log_floor

    @property
    def loudest(self) -> float:
        """The largest value that the mel of samples in [-1, 1] can have.

        No frequency's magnitude exceeds the sum of the window, which is half its length. This
        bound lies above 0 dB (max_scaled_abs), as speech does too: with A = 4, LJSpeech's loudest
        bins reach 5.5.
        """
        gain = mel_filters(self, torch.device("cpu")).sum(dim=1).max().item()
        loudest = math.log(max(gain * self.window_size / 2.0, math.exp(self.log_floor)))
        if self.mel_scaling == "log":
            return loudest
        return log_to_scaled_mel(torch.tensor(loudest, dtype=torch.float64), self).item()

    @property
    def log_floor(self) -> float:
        """The natural log of the smallest magnitude, which is 1e-5 at -100 dB."""
        return self.min_db / 20.0 * math.log(10.0)

    @property
    def hop_seconds(self) -> float:
        """Seconds from one frame to the next."""
        return self.hop_size / self.sampling_rate


class Utterance(NamedTuple):
    """Holds one clip of a manifest."""

    tokens: Tensor  # (T_text,) int64
    mel: Tensor  # (T_mel, num_mels)
    text: str
    path: str


class Batch(NamedTuple):
    """Holds utterances, padded to the longest of them."""

    tokens: Tensor  # (B, T_text) int64, padded with pad_token_id
    token_lengths: Tensor  # (B,) int64
    mels: Tensor  # (B, T_mel, num_mels), padded with silence
    mel_lengths: Tensor  # (B,) int64
    stop_targets: Tensor  # (B, T_mel), 1 from the last valid frame on
    texts: list[str]
    paths: list[str]

    def to(self, device: torch.device) -> "Batch":
        """Move to a device; the lengths stay on the CPU, where packing needs them."""
        names = ("tokens", "mels", "stop_targets")
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        return self._replace(**moved)


def import_librosa() -> None:
    """Import the parts of librosa that reading a clip needs, which takes a second.

    TTSDataset calls this when it is made. So --help need not wait for librosa, and no loader
    process imports it at its first clip, where wandb's import hook would end the run. Each part is
    named because librosa imports its parts only when they are first used.
    """
    import librosa.core.audio
    import librosa.filters
    import librosa.util.utils  # noqa: F401
    import soxr  # noqa: F401


def resample(wav: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Change the sampling rate of a sound (n_samples,)."""
    import librosa  # slow to import, see import_librosa

    # By soxr: torchaudio's kernel takes gigabytes when the two rates share no divisor.
    return torch.from_numpy(librosa.resample(wav.numpy(), orig_sr=from_rate, target_sr=to_rate))


def load_wav(path: str | Path, sampling_rate: int) -> Tensor:
    """Read a wav or flac file of any rate and channel count.

    Returns:
        (n_samples,) float32 in [-1, 1], mono, at `sampling_rate`.

    Raises:
        DataError: when the file cannot be read, or holds no sound; see `read_recording`.
    """
    recording = read_recording(path)
    wav, file_rate = torch.from_numpy(recording.wav), recording.sampling_rate
    if file_rate != sampling_rate:
        wav = resample(wav, file_rate, sampling_rate)
    return wav.clamp(-1.0, 1.0)


def write_wav(path: str | Path, wav: Tensor, sampling_rate: int) -> None:
    """Write a 16-bit wav file, whole or not at all.

    Raises:
        OSError: when it cannot be written.
    """
    content = io.BytesIO()  # writing to the disk itself, soundfile would not report a full one
    soundfile.write(content, wav.numpy(), sampling_rate, "PCM_16", format="WAV")
    write_whole(path, lambda temporary: temporary.write_bytes(content.getvalue()))


@lru_cache(maxsize=16)
def mel_filters(audio_config: AudioConfig, device: torch.device) -> Tensor:
    """Make the filters between magnitudes and mels, (num_mels, n_fft // 2 + 1).

    They are librosa's defaults: Slaney's mel scale, triangles of unit area.
    """
    import librosa.filters  # slow to import, see import_librosa

    a = audio_config
    filters = librosa.filters.mel(
        sr=a.sampling_rate, n_fft=a.n_fft, n_mels=a.num_mels, fmin=a.fmin, fmax=a.fmax
    )
    return torch.from_numpy(filters).to(device)


def audio_to_mel(wav: Tensor, audio_config: AudioConfig) -> Tensor:
    """Turn wav (n_samples,) or (B, n_samples) into a scaled mel, (T_mel, num_mels) or (B, ...).

    T_mel = n_samples // hop_size.

    Raises:
        DataError: when the wav is shorter than one window.
    """
    a = audio_config
    if wav.shape[-1] < a.n_fft:
        raise DataError(
            f"{wav.shape[-1]} samples at {a.sampling_rate} Hz are less than one window of {a.n_fft}"
        )
    padding = (a.n_fft - a.hop_size) // 2
    padded = F.pad(wav.reshape(-1, wav.shape[-1]), (padding, padding), mode="reflect")
    spectrum = torch.stft(
        padded,
        a.n_fft,
        hop_length=a.hop_size,
        win_length=a.window_size,
        window=torch.hann_window(a.window_size, device=wav.device),
        center=False,
        return_complex=True,
    )  # (B, n_fft // 2 + 1, T_mel)
    magnitude = torch.matmul(mel_filters(a, wav.device), spectrum.abs())  # (B, num_mels, T_mel)
    log_mel = magnitude.clamp_min(math.exp(a.log_floor)).log()
    mel = log_to_scaled_mel(log_mel, a) if a.mel_scaling == "scaled_db" else log_mel
    return mel.transpose(1, 2).reshape(*wav.shape[:-1], -1, a.num_mels)


def scaled_to_log_mel(mel: Tensor, audio_config: AudioConfig) -> Tensor:
    """Turn a scaled mel into a natural-log mel: ln m = ((scaled + A) / 2A - 1) * -log_floor."""
    a = audio_config
    return ((mel + a.max_scaled_abs) / (2.0 * a.max_scaled_abs) - 1.0) * -a.log_floor


def log_to_scaled_mel(mel: Tensor, audio_config: AudioConfig) -> Tensor:
    """Turn a natural-log mel into a scaled mel: the inverse of `scaled_to_log_mel`."""
    a = audio_config
    return (mel / -a.log_floor + 1.0) * (2.0 * a.max_scaled_abs) - a.max_scaled_abs


def to_log_mel(mel: Tensor, audio_config: AudioConfig) -> Tensor:
    """Turn a mel, as this config scales it, into the natural-log mel that vocoders read."""
    return mel if audio_config.mel_scaling == "log" else scaled_to_log_mel(mel, audio_config)


def clamp_mel(mel: Tensor, audio_config: AudioConfig) -> Tensor:
    """Clamp a mel to silence .. loudest, the range of recordings; NaN becomes silence.

    Warns of values that only a broken model gives: NaN, values above the loudest, and values
    further below silence than the loudest is above it. Values just below silence are common, and
    sound like silence.
    """
    silence, loudest = audio_config.silence, audio_config.loudest
    clamped = mel.nan_to_num(nan=silence).clamp(silence, loudest)
    odd = int(((mel - silence).abs() > loudest - silence).sum() + mel.isnan().sum())
    if odd:
        warnings.warn(
            f"{odd} of the mel's {mel.numel()} values ({odd / mel.numel():.1%}) are clamped: a "
            f"recording has {silence:.1f} to {loudest:.1f}, the mel {mel.min():.4g} to "
            f"{mel.max():.4g}, as of a model that has run away",
            stacklevel=3,
        )
    return clamped


def _fit_to_mel(magnitude: Tensor, mel: Tensor, filters: Tensor) -> Tensor:
    """Scale magnitudes (n_fft // 2 + 1, T_mel) bin by bin to bring their mel close to `mel`.

    This is one multiplicative update of non-negative matrix factorisation under the generalised
    Kullback-Leibler divergence (Lee and Seung 2001): each frequency is multiplied by the mean of
    the wanted over the present mel, weighted by the filters' values at that frequency. Frequencies
    that no filter covers become 0.

    Args:
        mel: (num_mels, T_mel), linear.
        filters: (num_mels, n_fft // 2 + 1).
    """
    ratio = mel / (filters @ magnitude).clamp_min(TINY)  # (num_mels, T_mel)
    return magnitude * (filters.t() @ ratio) / filters.sum(dim=0)[:, None].clamp_min(TINY)


def limit_peaks(wav: Tensor, reach: int) -> Tensor:
    """Lower the peaks of a wav (n_samples,) that exceed 1, and their surroundings, smoothly.

    Samples that are more than 2 * reach away from any such peak stay as they are.
    """
    if wav.abs().max() <= 1.0:
        return wav
    pooling = {"kernel_size": 2 * reach + 1, "stride": 1, "padding": reach}
    peaks = F.max_pool1d(wav.abs()[None], **pooling).clamp_min(1.0)  # (1, n_samples)
    # Each gain in a sample's average is at most 1 / |sample|, as the sample is within its reach.
    gain = F.avg_pool1d(1.0 / peaks, **pooling, count_include_pad=False)
    return (wav * gain[0]).clamp(-1.0, 1.0)  # rounding may leave 1 + 1e-7


def mel_to_audio(
    mel: Tensor,
    audio_config: AudioConfig,
    n_iter: int = 48,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Speak a mel (T_mel, num_mels) by Griffin-Lim: (n_samples,), n_samples = T_mel * hop_size.

    This is fast Griffin-Lim (Perraudin et al. 2013) with one change. Many spectra have the same
    mel, so the magnitudes are not fixed beforehand: each iteration scales the magnitudes of the
    wav so far until they fit the mel. benchmarks/griffin_lim.py compares this with other ways.

    Phases start at random, from `generator` (on the mel's device) or torch's own. Half a hop at
    each end is faded, so that no end clicks; `limit_peaks` lowers peaks above 1, and `clamp_mel`
    clamps the mel with a warning.
    """
    a = audio_config
    mel = clamp_mel(mel, a)
    # Griffin-Lim needs more than one window of signal, and spoils half a window at each edge.
    edge = a.n_fft // a.hop_size + 1
    longer = torch.cat([mel[:1].expand(edge, -1), mel, mel[-1:].expand(edge, -1)]).float()
    target = to_log_mel(longer, a).exp().t()  # (num_mels, T_mel + 2 edge)
    filters = mel_filters(a, mel.device)
    window = torch.hann_window(a.window_size, device=mel.device)
    flat = torch.ones(a.n_fft // 2 + 1, target.shape[1], device=mel.device)
    magnitude = _fit_to_mel(flat, target, filters)  # (n_fft // 2 + 1, T_mel + 2 edge)
    # torch centres frame t on sample t * hop_size, our framing on (t + 1/2) * hop_size.
    options = {"hop_length": a.hop_size, "win_length": a.window_size, "window": window}
    phases = torch.rand(magnitude.shape, generator=generator, device=mel.device)  # of 2 pi
    spectrum = torch.polar(magnitude, 2 * math.pi * phases)
    previous = torch.zeros_like(spectrum)
    for _ in range(n_iter):
        wav = torch.istft(spectrum, a.n_fft, **options)
        rebuilt = torch.stft(wav, a.n_fft, **options, return_complex=True)
        magnitude = _fit_to_mel(rebuilt.abs().clamp_min(TINY), target, filters)
        ahead = rebuilt - MOMENTUM * previous
        spectrum = ahead * (magnitude / ahead.abs().clamp_min(TINY))
        previous = rebuilt
    start = edge * a.hop_size - a.hop_size // 2
    wav = torch.istft(spectrum, a.n_fft, **options)[start : start + len(mel) * a.hop_size]
    n_faded = a.hop_size // 2
    fade = torch.hann_window(2 * n_faded, device=mel.device)  # rises, then falls
    wav[:n_faded] *= fade[:n_faded]
    wav[len(wav) - n_faded :] *= fade[n_faded:]
    return limit_peaks(wav, reach=a.n_fft // 2)


def read_manifest(path: str | Path) -> "pd.DataFrame":
    """Read a manifest CSV: paths become absolute, transcripts stay as they are.

    Relative paths start at the manifest's folder.

    Raises:
        DataError: naming the file, and the line if there is one, and what is wrong.
    """
    import pandas as pd  # slow to import

    path = Path(path)
    if os.path.isdir(path):
        raise DataError(f"{path}: is a folder, not a manifest; prep_splits.py writes one")
    if not os.path.isfile(path):  # unlike Path.is_file, False for any unusable name
        raise DataError(f"{path}: no such manifest; prep_splits.py writes one")
    try:
        frame = pd.read_csv(
            path, dtype=str, keep_default_na=False, encoding="utf-8-sig", compression=None
        )
    except UnicodeError:
        raise DataError(f"{path}: cannot be read as CSV (it is not UTF-8 text)") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as CSV ({one_line(error, None)})") from None
    missing = [column for column in MANIFEST_COLUMNS if column not in frame.columns]
    if missing:
        raise DataError(
            f"{path}: column {missing[0]} is missing; expected the header "
            f"{','.join(MANIFEST_COLUMNS)} that prep_splits.py writes, found "
            f"{','.join(map(str, frame.columns))[:80]!r}"
        )
    if frame.empty:
        raise DataError(f"{path}: holds no clips")
    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes the first column for names
        raise DataError(f"{path}: line 2 has more fields than the header")
    frame["duration"] = pd.to_numeric(frame["duration"], errors="coerce")
    frame["file_path"] = [str(path.parent.absolute() / name) for name in frame["file_path"]]
    rows = zip(frame["file_path"], frame["normalized_transcript"], frame["duration"], strict=True)
    for line, (file_path, text, duration) in enumerate(rows, start=2):
        if not text.strip():
            raise DataError(f"{path}: line {line} has an empty normalized_transcript")
        later = (name for part in text.split("\n")[1:] for name in part.split(","))
        if any(os.path.isfile(path.parent.absolute() / name) for name in later if name):
            raise DataError(
                f"{path}: line {line} has a quote that does not end before the next row"
            )
        if not 0 < duration < math.inf:
            raise DataError(f"{path}: line {line} has no duration above 0 seconds")
        if not os.path.isfile(file_path):
            n_missing = sum(not os.path.isfile(other) for other in frame["file_path"])
            raise DataError(
                f"{path}: line {line} names {file_path}, which is not a file ({n_missing} of "
                f"{len(frame)} are missing); where clips were moved, run prep_splits.py again"
            )
    return frame


class TTSDataset(Dataset):
    """Holds the clips of a manifest, and reads each recording when it is asked for.

    `n_frames` are the clips' lengths in frames, from the manifest's durations. Everything that can
    be checked without the recordings is checked at once: later it would end a run midway.
    `longest_text` is the length of the longest text in tokens.

    Args:
        manifest: path of the CSV.
        audio_config: how recordings become mels.
        tokenizer: how transcripts become tokens.
        dictionary: from `load_dictionary`, to turn half of the words of half of the clips into
            phonemes. Seed, epoch (`set_epoch`) and clip alone decide which words.
        seed: of that choice.
        cache_mels: folder that keeps the mels, so that each is computed once; see MelCache.

    Raises:
        DataError: naming the manifest and the line, or, from [], the recording.
    """

    def __init__(
        self,
        manifest: str | Path,
        audio_config: AudioConfig,
        tokenizer: Tokenizer,
        dictionary: Mapping[str, str] | None = None,
        seed: int = 0,
        cache_mels: str | None = None,
    ) -> None:
        import_librosa()
        frame = read_manifest(manifest)
        self.manifest = manifest
        self.audio_config = audio_config
        self.tokenizer = tokenizer
        self.dictionary, self.seed = dictionary, seed
        self.cache = MelCache(cache_mels, audio_config) if cache_mels else None
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # loader processes see it
        self.paths: list[str] = frame["file_path"].tolist()
        self.texts: list[str] = frame["normalized_transcript"].tolist()
        self.n_frames: list[float] = (frame["duration"] / audio_config.hop_seconds).tolist()
        self.longest_text = 0
        for line, duration in enumerate(frame["duration"], start=2):
            if round(min(duration, 1e6) * audio_config.sampling_rate) < audio_config.n_fft:
                raise DataError(
                    f"{manifest}: line {line}: {duration} s are less than one window of "
                    f"{audio_config.n_fft} samples"
                )
            try:
                self.longest_text = max(self.longest_text, len(self._encode(line - 2)))
            except ValueError as error:
                raise DataError(f"{manifest}: line {line}: {error}") from None

    def __len__(self) -> int:
        return len(self.paths)

    def set_epoch(self, epoch: int) -> None:
        """Choose the words in phonemes anew, for this epoch."""
        self._epoch.fill_(epoch)

    def _encode(self, index: int) -> torch.Tensor:
        text = self.texts[index]
        if self.dictionary is not None:
            rng = np.random.default_rng([self.seed, int(self._epoch), index])
            rng = rng if self.tokenizer.has_letters else None  # without letters, every word
            text = to_phonemes(self.tokenizer.clean(text), self.dictionary, rng)
        return self.tokenizer.encode(text)

    def _compute_mel(self, path: str) -> Tensor:
        wav = load_wav(path, self.audio_config.sampling_rate)
        try:
            return audio_to_mel(wav, self.audio_config)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    def __getitem__(self, index: int) -> Utterance:
        path, text, compute = self.paths[index], self.texts[index], self._compute_mel
        mel = self.cache.read(path, compute) if self.cache else compute(path)
        hop_seconds = self.audio_config.hop_seconds
        seconds = (len(mel) + 0.5) * hop_seconds  # to half a hop, since a rest is no frame
        expected = self.n_frames[index] * hop_seconds
        if abs(seconds - expected) > DURATION_TOLERANCE + hop_seconds / 2:
            raise DataError(
                f"{path}: lasts {seconds:.2f} s, but {self.manifest} says {expected:.2f} s; where "
                "recordings have changed, run prep_splits.py again"
            )
        return Utterance(self._encode(index), mel, text, path)


class TTSCollator:
    """Pads utterances to a Batch: tokens with pad_token_id, mels with silence.

    The longest mel gets tail_frames of silence too, so that each clip has so many.
    """

    def __init__(
        self, audio_config: AudioConfig, tokenizer: Tokenizer, tail_frames: int = 0
    ) -> None:
        self.silence, self.tail_frames = audio_config.silence, tail_frames
        self.pad_token_id = tokenizer.pad_token_id

    def __call__(self, utterances: Sequence[Utterance]) -> Batch:
        """Make a batch, in the order given."""
        pad = torch.nn.utils.rnn.pad_sequence
        tokens = pad([u.tokens for u in utterances], True, self.pad_token_id)  # (B, T_text)
        mels = pad([u.mel for u in utterances], True, self.silence)
        mels = F.pad(mels, (0, 0, 0, self.tail_frames), value=self.silence)  # (B, T_mel, num_mels)
        mel_lengths = torch.tensor([len(u.mel) for u in utterances])
        return Batch(
            tokens=tokens,
            token_lengths=torch.tensor([len(u.tokens) for u in utterances]),
            mels=mels,
            mel_lengths=mel_lengths,
            stop_targets=(torch.arange(mels.shape[1]) >= mel_lengths[:, None] - 1).float(),
            texts=[u.text for u in utterances],
            paths=[u.path for u in utterances],
        )


class BatchSampler(Sampler[list[int]]):
    """Draws batches of clips of similar length: every clip once per epoch.

    The order follows from seed, epoch and lengths alone. Clips are sorted by their length, blurred
    by a few per cent, and cut into batches as equal in size as can be; then the batches are
    shuffled. Several processes share each batch of batch_size * num_processes clips, so that
    together they train on what one process with that batch size would train on. Which process gets
    the longest clips changes from batch to batch.

    The batches of the first short_first_epochs epochs are not shuffled but go from short to long,
    so that the model learns to align on short clips (SortaGrad: Amodei et al. 2015, arXiv
    1512.02595, sec. 3.2). With shuffle=False, batches go from long to short, and nothing is drawn.

    Args:
        lengths: of the clips, in any unit.
        batch_size: most clips per process.
        seed, epoch: of the order.
        num_processes, process_index: which share of each batch to yield.
        shuffle: False for validation.
        short_first_epochs: how many epochs, from the first, go from short to long.

    Raises:
        DataError: when a process would get no clip of a batch.
    """

    def __init__(
        self,
        lengths: Sequence[float],
        batch_size: int,
        seed: int = 0,
        epoch: int = 0,
        num_processes: int = 1,
        process_index: int = 0,
        shuffle: bool = True,
        short_first_epochs: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"--batch_size must be at least 1, found {batch_size}")
        self.lengths = np.asarray(lengths, dtype=np.float64)
        self.seed, self.shuffle, self.short_first_epochs = seed, shuffle, short_first_epochs
        self.num_processes, self.process_index = num_processes, process_index
        self.n_batches = math.ceil(len(lengths) / (batch_size * num_processes))
        if len(lengths) < max(num_processes * self.n_batches, 1):
            raise DataError(
                f"{len(lengths)} clips cannot be shared by {num_processes} processes at "
                f"--batch_size {batch_size}: some batch would leave one without a clip"
            )
        self.set_epoch(epoch)

    @property
    def checksum(self) -> int:
        """A checksum of the lengths, which the order depends on."""
        return zlib.crc32(self.lengths.tobytes())

    def set_epoch(self, epoch: int, n_seen: int = 0) -> None:
        """Go to an epoch; the next iteration leaves out its first n_seen batches."""
        self.epoch, self.n_seen = epoch, n_seen

    def draw(self) -> list[np.ndarray]:
        """Draw the epoch's batches of all processes together, as arrays of clip indices."""
        rng = np.random.Generator(np.random.PCG64([self.seed, self.epoch]))
        keys = -self.lengths
        if self.shuffle:
            keys = keys * rng.uniform(1 - LENGTH_JITTER, 1 + LENGTH_JITTER, size=len(keys))
        batches = np.array_split(np.argsort(keys, kind="stable"), self.n_batches)
        if not self.shuffle:
            return batches
        if self.epoch < self.short_first_epochs:
            return batches[::-1]
        return [batches[i] for i in rng.permutation(len(batches))]

    def __len__(self) -> int:
        """Count the batches of a whole epoch."""
        return self.n_batches

    def __iter__(self) -> Iterator[list[int]]:
        for i, batch in enumerate(self.draw()):
            if i >= self.n_seen:
                shares = np.array_split(batch, self.num_processes)
                yield shares[(self.process_index + i) % self.num_processes].tolist()
