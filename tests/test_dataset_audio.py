"""Tests of dataset.py, the sound: audio files, the mel equation, Griffin-Lim, AudioConfig."""

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audio.recording import ONE_CHANNEL, SCALED_DOWN, read_recording
from command_line.files import DataError
from corpora.recordings import inspect_recording
from dataset import (
    AudioConfig,
    audio_to_mel,
    clamp_mel,
    limit_peaks,
    load_wav,
    mel_to_audio,
    scaled_to_log_mel,
    to_log_mel,
)

RATE = 22050
CONFIG = AudioConfig()


def noisy_sweep(seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    """A voice-like buzz of gliding pitch over a noise floor, (n_samples,) float32."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    phase = 2 * np.pi * (110 * time + 40 * time**2)
    buzz = sum(np.sin(k * phase) / k for k in range(1, 30))
    return (0.2 * buzz + 1e-3 * rng.standard_normal(len(time))).astype(np.float32)


def some_clips(folder: Path) -> list[Path]:
    """The recordings of an LJSpeech folder; of more than 100, some 100 at equal distances."""
    paths = sorted(path for path in (folder / "wavs").iterdir() if path.suffix in (".wav", ".flac"))
    assert paths, f"no recordings in {folder}"
    return paths[:: len(paths) // 100 + 1]


def sine(frequency: float, seconds: float, rate: int, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def slaney_filters(config: AudioConfig) -> np.ndarray:
    """Triangles of unit area, equally spaced in mel: linear to 1 kHz, 27 per factor 6.4 above."""

    def to_mel(hertz: float) -> float:
        return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000, 6.4)

    def to_hertz(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    corners = np.linspace(to_mel(config.fmin), to_mel(config.fmax), config.num_mels + 2)
    bins = np.arange(config.n_fft // 2 + 1) * config.sampling_rate / config.n_fft
    filters = []
    for low, middle, high in zip(corners, corners[1:], corners[2:], strict=False):
        low, middle, high = to_hertz(low), to_hertz(middle), to_hertz(high)
        triangle = np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle))
        filters.append(np.maximum(triangle, 0.0) * 2 / (high - low))
    return np.stack(filters)


def mel_by_hand(wav: np.ndarray, config: AudioConfig) -> np.ndarray:
    """The scaled mel in float64 numpy, straight from the equations in the design."""
    wav = wav.astype(np.float64)
    edge = (config.n_fft - config.hop_size) // 2
    padded = np.concatenate([wav[edge:0:-1], wav, wav[-2 : -edge - 2 : -1]])
    n = np.arange(config.window_size)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / config.window_size)
    left = (config.n_fft - config.window_size) // 2
    window = np.zeros(config.n_fft)
    window[left : left + config.window_size] = hann
    starts = range(0, len(padded) - config.n_fft + 1, config.hop_size)
    frames = np.stack([padded[start : start + config.n_fft] for start in starts])
    magnitude = np.abs(np.fft.rfft(frames * window)) @ slaney_filters(config).T
    db = 20 * np.log10(np.maximum(magnitude, 10 ** (config.min_db / 20)))
    a = config.max_scaled_abs
    return (db - config.min_db) / -config.min_db * 2 * a - a


OTHER = AudioConfig(
    n_fft=2048, window_size=1200, hop_size=300, num_mels=64, fmin=50.0, fmax=11025.0,
    min_db=-80.0, max_scaled_abs=1.0,
)  # fmt: skip


@pytest.mark.parametrize("config", [CONFIG, OTHER])
def test_mel_equals_the_equations_worked_out_by_hand(config):
    wav = noisy_sweep()
    mel = audio_to_mel(torch.from_numpy(wav), config).numpy()
    np.testing.assert_allclose(mel, mel_by_hand(wav, config), rtol=0, atol=1e-4)


def magnitudes(mel: np.ndarray, config: AudioConfig) -> np.ndarray:
    """Undo the scaling, in float64."""
    share = (mel.astype(np.float64) + config.max_scaled_abs) / (2 * config.max_scaled_abs)
    return 10 ** ((share - 1) * -config.min_db / 20)


def test_mels_of_real_clips_equal_the_equations_worked_out_by_hand(ljspeech_dir):
    """As closely as float32 can.

    Its Fourier transform errs by a share of the frame's loudest bin, in faint bins too: 10 stages
    of rounding for 1024 samples. The filters, the logarithm and the scaling round some 10 times
    more, each by a share of the bin itself.
    """
    for path in some_clips(ljspeech_dir):
        wav = load_wav(path, RATE)
        expected = magnitudes(mel_by_hand(wav.numpy(), CONFIG), CONFIG)  # (T_mel, num_mels)
        found = magnitudes(audio_to_mel(wav, CONFIG).numpy(), CONFIG)
        errors = np.abs(found - expected) / expected.max(axis=1, keepdims=True)
        assert errors.max() < 32 * np.finfo(np.float32).eps, path


def test_number_of_frames_is_samples_over_hop_rounded_down():
    config = AudioConfig(hop_size=300)
    for n in (1024, 1199, 1200, 1201, 22050):
        assert audio_to_mel(torch.zeros(n), config).shape == (n // 300, 80)
    with pytest.raises(DataError, match=r"^1023 samples .* less than one window of 1024"):
        audio_to_mel(torch.zeros(1023), config)


def test_silence_is_the_floor_and_the_padding_value():
    for config in (CONFIG, OTHER):
        assert config.silence == -config.max_scaled_abs
        assert (audio_to_mel(torch.zeros(4096), config) == config.silence).all()
    config = AudioConfig(mel_scaling="log")
    assert config.silence == pytest.approx(math.log(1e-5), abs=1e-12)
    mel = audio_to_mel(torch.zeros(4096), config)
    torch.testing.assert_close(mel, torch.full_like(mel, config.silence), rtol=0, atol=1e-6)


def hifi_gan_mel(wav: np.ndarray) -> np.ndarray:
    """Compute HiFi-GAN's mel_spectrogram, (n_samples // 256, 80)."""
    padded = np.pad(wav.astype(np.float64), (1024 - 256) // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, 1024)[::256]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    magnitude = np.abs(np.fft.rfft(frames * window)) @ slaney_filters(CONFIG).T
    return np.log(np.maximum(magnitude, 1e-5))


def test_log_mels_are_hifi_gans():
    wav = noisy_sweep()
    expected = hifi_gan_mel(wav)
    scaled = audio_to_mel(torch.from_numpy(wav), CONFIG)
    np.testing.assert_allclose(scaled_to_log_mel(scaled, CONFIG), expected, rtol=0, atol=2e-4)
    log_config = AudioConfig(mel_scaling="log")
    log_mel = audio_to_mel(torch.from_numpy(wav), log_config)
    np.testing.assert_allclose(log_mel, expected, rtol=0, atol=2e-4)
    assert to_log_mel(log_mel, log_config) is log_mel
    torch.testing.assert_close(to_log_mel(scaled, CONFIG), log_mel, rtol=0, atol=1e-4)


def db_error(wav: torch.Tensor, mel: torch.Tensor, config: AudioConfig) -> float:
    """Root mean square in dB between the mel of the wav and the mel it was made from."""
    again = to_log_mel(audio_to_mel(wav, config), config)
    return (again - to_log_mel(mel, config)).square().mean().sqrt().item() * 20 / math.log(10)


@pytest.mark.parametrize("mel_scaling", ["scaled_db", "log"])
def test_griffin_lim_gives_back_the_mel_and_the_level(mel_scaling):
    """To 1.5 dB; without momentum it is 2.2, with magnitudes fixed beforehand 5.6."""
    config = AudioConfig(mel_scaling=mel_scaling)
    wav = torch.from_numpy(noisy_sweep())
    mel = audio_to_mel(wav, config)
    torch.manual_seed(0)
    again = mel_to_audio(mel, config)
    assert again.shape == (len(mel) * 256,)
    assert db_error(again, mel, config) < 1.8
    assert again.square().mean().sqrt().item() == pytest.approx(wav.std().item(), rel=0.1)


@pytest.mark.slow
def test_griffin_lim_gives_back_the_mels_of_real_clips(ljspeech_dir):
    """To 0.7 to 1.0 dB on LJSpeech; with magnitudes fixed beforehand it is 1.3 to 1.9 dB."""
    for path in some_clips(ljspeech_dir)[:16]:
        mel = audio_to_mel(load_wav(path, RATE)[: 3 * RATE], CONFIG)
        torch.manual_seed(0)
        assert db_error(mel_to_audio(mel, CONFIG), mel, CONFIG) < 1.3, path


def test_griffin_lim_begins_and_ends_without_a_click():
    """Where a sound is cut in the middle, half a hop rises from 0 and falls to 0."""
    wav = mel_to_audio(audio_to_mel(torch.from_numpy(noisy_sweep()), CONFIG)[20:50], CONFIG)
    level = wav[1000:-1000].std().item()
    for end in (wav[:128], wav.flip(0)[:128]):
        assert end[0].abs() < 1e-4 and end[:12].abs().max() < 0.1 * level
        assert end[64:].std() > 0.2 * level
    assert wav[128:1000].std() > 0.7 * level and wav[-1000:-128].std() > 0.7 * level


def test_griffin_lim_of_few_frames_has_the_right_length():
    for n_frames in (1, 5):
        wav = mel_to_audio(torch.full((n_frames, 80), CONFIG.silence), CONFIG, n_iter=4)
        assert wav.shape == (n_frames * 256,) and wav.abs().max() < 0.01
    wav = mel_to_audio(torch.full((1, 80), 6.0), AudioConfig(hop_size=1022), n_iter=4)
    assert wav.shape == (1022,) and 0.5 < wav.abs().max() <= 1.0, "never above full scale"


@pytest.mark.parametrize("config", [CONFIG, AudioConfig(mel_scaling="log"), OTHER])
def test_no_sound_is_louder_than_the_loudest_mel(config):
    rng = np.random.default_rng(0)
    time = np.arange(RATE // 2) / RATE
    sounds = [rng.choice([-1.0, 1.0], len(time)), rng.uniform(-1, 1, len(time)), np.ones(len(time))]
    sounds += [np.sign(np.sin(2 * np.pi * pitch * time)) for pitch in np.geomspace(50, 8000, 40)]
    wavs = torch.from_numpy(np.stack(sounds).astype(np.float32))
    loudest = audio_to_mel(wavs, config).max().item()
    decibels = 20 / math.log(10) if config.mel_scaling == "log" else 0
    decibels = decibels or -config.min_db / (2 * config.max_scaled_abs)
    assert -10 < (loudest - config.loudest) * decibels < 0


def test_mels_of_recordings_are_not_clamped(ljspeech_dir):
    for path in some_clips(ljspeech_dir):
        for config in (CONFIG, AudioConfig(mel_scaling="log")):
            wav = load_wav(path, RATE)
            mel = audio_to_mel(wav / wav.abs().max(), config)
            assert torch.equal(clamp_mel(mel, config), mel), path


@pytest.mark.parametrize(("mel_scaling", "value"), [("scaled_db", math.inf), ("log", math.nan)])
def test_a_mel_that_runs_away_is_clamped_with_a_warning(mel_scaling, value):
    """One bin of one frame: all else sounds as it would without, and nothing is a constant."""
    config = AudioConfig(mel_scaling=mel_scaling)
    mel = audio_to_mel(torch.from_numpy(noisy_sweep()), config)
    torch.manual_seed(0)
    sound = mel_to_audio(mel, config)
    mel[40, 10] = value
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=r"^1 of the mel's 6880 values \(0\.0%\) are clamped"):
        again = mel_to_audio(mel, config)
    assert again.abs().max() <= 1 and again.mean().abs() < 0.01 * again.std()
    for part in (slice(0, 8000), slice(13_000, None)):
        assert again[part].std().item() == pytest.approx(sound[part].std().item(), rel=0.05)


def test_peaks_are_lowered_smoothly_and_all_else_keeps_its_level():
    wav = torch.from_numpy(noisy_sweep())
    loud = wav * torch.where((torch.arange(RATE) - 10_000).abs() < 200, 6.0, 1.0)
    limited = limit_peaks(loud, reach=512)
    assert loud.abs().max() > 1.5 and limited.abs().max() <= 1.0
    assert limited[9_900:10_100].abs().max() > 0.9
    for part in (slice(0, 8_700), slice(11_300, None)):
        assert torch.equal(limited[part], wav[part])
    gain = (limited / loud)[loud.abs() > 1e-3]
    assert gain.diff().abs().max() < 0.01 and gain.min() > 0.9 / loud.abs().max()
    assert limit_peaks(wav, reach=512) is wav


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_mels": 10**9}, "--num_mels"),
        ({"hop_size": 512, "window_size": 512}, "--hop_size"),
        ({"window_size": 2048}, "--window_size"),
        ({"n_fft": 2**14, "window_size": 2**14, "hop_size": 2}, "--hop_size"),
        ({"sampling_rate": 8000}, "--fmax"),
        ({"fmax": math.nan}, "--fmax"),
        ({"min_db": 0.0}, "--min_db"),
        ({"min_db": -800.0}, "--min_db"),
        ({"max_scaled_abs": 1e300}, "--max_scaled_abs"),
        ({"mel_scaling": "db"}, "--mel_scaling"),
    ],
)
def test_a_config_that_cannot_work_is_refused_naming_the_flag(change, named):
    with pytest.raises(ValueError, match=named):
        AudioConfig(**change)


@pytest.mark.parametrize(
    ("name", "subtype", "tolerance"),
    [("a.wav", "PCM_16", 1e-4), ("a.wav", "PCM_U8", 1e-2), ("a.flac", "PCM_24", 1e-6)],
)
def test_load_wav_reads_any_sample_format_and_mixes_channels(tmp_path, name, subtype, tolerance):
    expected = sine(440, 0.2, RATE)
    soundfile.write(
        tmp_path / name, np.stack([expected * 1.5, expected * 0.5], axis=1), RATE, subtype=subtype
    )
    wav = load_wav(tmp_path / name, RATE)
    assert wav.dtype == torch.float32 and wav.shape == expected.shape
    np.testing.assert_allclose(wav.numpy(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("rate", [8000, 22051, 96000])
def test_load_wav_resamples_keeping_frequency_length_and_level(tmp_path, rate):
    """Without aliases: at 96 kHz the clip also holds a tone of 15 kHz."""
    samples = sine(1000, 0.5, rate) + (sine(15_000, 0.5, rate, 0.4) if rate == 96000 else 0)
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype="PCM_24")
    wav = load_wav(str(tmp_path / "a.wav"), RATE).numpy()
    assert abs(len(wav) - RATE / 2) <= 1
    middle = slice(1000, 10_000)
    np.testing.assert_allclose(wav[middle], sine(1000, 0.5, RATE)[middle], rtol=0, atol=5e-3)


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_load_wav_scales_down_floats_above_full_scale_and_refuses_no_sound(tmp_path, subtype):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.array([-2.0, 0.5, 1.0]), RATE, subtype=subtype)
    assert load_wav(path, RATE).tolist() == [-1.0, 0.25, 0.5]
    assert read_recording(path).remarks == (SCALED_DOWN,)
    integers = np.round(noisy_sweep() * 20_000)
    stereo = np.stack([np.zeros(9), np.full(9, math.nan)], axis=1)
    cases = (([], "no samples"), ([0.1, math.nan], "NaN"), ([math.inf], "infinite"))
    for samples, reason in (*cases, (stereo, "NaN"), (integers, "integers"), ([-127, 3], "127")):
        soundfile.write(path, np.array(samples, float), RATE, subtype=subtype)
        with pytest.raises(DataError, match=rf"^{path}: .*{reason}"):
            load_wav(path, RATE)


def test_load_wav_clips_what_resampling_makes_louder_than_full_scale(tmp_path):
    square = np.sign(sine(440, 0.2, 16000))
    soundfile.write(tmp_path / "a.wav", square, 16000)
    assert load_wav(tmp_path / "a.wav", RATE).abs().max() == 1.0


VOICE, HALF = noisy_sweep(), np.arange(RATE) < RATE // 2
SILENT = np.zeros(RATE, np.float32)


@pytest.mark.parametrize(
    ("channels", "expected", "is_one"),
    [
        ((VOICE, -VOICE), VOICE, True),
        ((0.5 * VOICE, -VOICE), -VOICE, True),
        ((VOICE, 0.9 * np.where(HALF, VOICE, -VOICE)), VOICE, True),
        ((VOICE + 0.1, 0.2 - 0.9 * VOICE), VOICE + 0.1, True),
        ((SILENT, VOICE), VOICE, True),
        ((SILENT, SILENT, VOICE, SILENT, SILENT, SILENT), VOICE, True),
        ((np.where(HALF, 0, VOICE), np.where(HALF, VOICE, 0)), VOICE / 2, False),
        ((VOICE, 0.5 * VOICE), 0.75 * VOICE, False),
        ((VOICE, noisy_sweep(seed=1)[::-1]), (VOICE + noisy_sweep(seed=1)[::-1]) / 2, False),
        ((SILENT, SILENT), SILENT, False),
    ],
)
@pytest.mark.parametrize("subtype", ["PCM_24", "FLOAT"])
def test_channels_are_averaged_unless_that_loses_the_voice(
    tmp_path, channels, expected, is_one, subtype
):
    path = tmp_path / "a.wav"
    soundfile.write(path, 0.5 * np.stack(channels, axis=1), RATE, subtype=subtype, format="WAVEX")
    np.testing.assert_allclose(load_wav(path, RATE), 0.5 * expected, rtol=0, atol=1e-6)
    assert read_recording(path).remarks == ((ONE_CHANNEL,) if is_one else ())


FORMATS = [("WAV", "PCM_16", 1), ("WAV", "PCM_U8", 1), ("WAVEX", "PCM_24", 2), ("WAV", "FLOAT", 2)]


@pytest.mark.parametrize(
    "size", [0, 0x7FFFF000, 0x7FFFFFDB, 0x7FFFFFFF, 0x80000000, 0xFFFFFFDB, 0xFFFFFFFF]
)
@pytest.mark.parametrize(("container", "subtype", "n_channels"), FORMATS)
def test_a_wav_that_was_recorded_through_a_pipe_is_read_whole(
    tmp_path, size, container, subtype, n_channels
):
    path = tmp_path / "a.wav"
    samples = np.stack([noisy_sweep(0.4)] * n_channels, axis=1)
    soundfile.write(path, samples, RATE, subtype=subtype, format=container)
    expected, content = load_wav(path, RATE), bytearray(path.read_bytes())
    data = content.index(b"data")
    content[data + 4 : data + 8] = size.to_bytes(4, "little")
    for riff in (size, min(size + data, 2**32 - 1)):
        content[4:8] = riff.to_bytes(4, "little")
        path.write_bytes(content)
        assert torch.equal(load_wav(path, RATE), expected)
        assert inspect_recording(path) == (len(expected) / RATE, "", ())


@pytest.mark.parametrize("size", [0, 2**32 - 1, 2**63 - 1, 2**64 - 1])
def test_an_rf64_that_was_recorded_through_a_pipe_is_read_whole(tmp_path, size):
    path = tmp_path / "a.wav"
    soundfile.write(path, noisy_sweep(0.3), RATE, subtype="PCM_16", format="RF64")
    expected, content = load_wav(path, RATE), bytearray(path.read_bytes())
    sizes = content.index(b"ds64") + 8
    content[sizes : sizes + 24] = bytes(8) + size.to_bytes(8, "little") + bytes(8)
    path.write_bytes(content)
    assert torch.equal(load_wav(path, RATE), expected)
    assert inspect_recording(path) == (len(expected) / RATE, "", ())
    soundfile.write(path, noisy_sweep(0.3), RATE, subtype="PCM_16", format="RF64")
    path.write_bytes(path.read_bytes()[:-100])
    assert inspect_recording(path)[1].startswith("truncated: ")


def test_a_flac_that_was_recorded_through_a_pipe_is_read_whole(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, np.tile(noisy_sweep(), 15), RATE, subtype="PCM_16")
    expected, content = load_wav(path, RATE), bytearray(path.read_bytes())
    content[21] &= 0xF0  # the last 36 bits of the number of samples
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert torch.equal(load_wav(path, RATE), expected) and len(expected) == 15 * RATE
    assert inspect_recording(path) == (15.0, "", ())
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=f"^{path}: cannot be read as audio"):
        load_wav(path, RATE)


def test_an_empty_wav_with_a_title_behind_it_holds_no_samples(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, [], RATE)
    path.write_bytes(path.read_bytes() + b"LIST\x0c\0\0\0INFOINAM\0\0\0\0")
    assert inspect_recording(path)[1].startswith("zero-length: ")
    with pytest.raises(DataError, match="holds no samples"):
        load_wav(path, RATE)


def test_load_wav_refuses_what_is_no_file(tmp_path):
    for path in (tmp_path / "none.wav", tmp_path, f"{tmp_path}/{'x' * 5000}.wav", "a\udcff.wav"):
        with pytest.raises(DataError) as refusal:
            load_wav(path, RATE)
        assert str(refusal.value) == f"{path}: cannot be read as audio (no such file)"


def test_load_wav_reads_what_a_broken_file_holds_or_refuses_it(tmp_path):
    wav, flac = tmp_path / "a.wav", tmp_path / "a.flac"
    for path in (wav, flac):
        soundfile.write(path, noisy_sweep(0.3), RATE, subtype="PCM_16")
    expected, content, packed = load_wav(wav, RATE), wav.read_bytes(), flac.read_bytes()
    for n_samples in (1, 2000):
        wav.write_bytes(content[: 44 + 2 * n_samples])
        assert torch.equal(load_wav(wav, RATE), expected[:n_samples])
    broken = [(wav, content[:n]) for n in (1, 30, 44)]
    for rate in (1, 2**31 - 1):
        broken.append((wav, content[:24] + rate.to_bytes(4, "little") + content[28:]))
    broken += [(flac, packed[:n]) for n in (4, 42, 100, len(packed) // 2)]
    broken += [(tmp_path / "a.mp3", b"hello " * 99), (tmp_path / "a.raw", b"\xff" * 80), (wav, b"")]
    # A stream that says that it has 2^36 - 1 samples.
    broken.append((flac, packed[:21] + bytes([packed[21] | 15]) + b"\xff" * 4 + packed[26:]))
    for path, data in broken:
        path.write_bytes(data)
        with pytest.raises(
            DataError, match=f"^{path}: (cannot be read as audio|has a sampling|holds)"
        ):
            load_wav(path, RATE)
