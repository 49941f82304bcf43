"""Tests of dataset.py: the mel equation, audio files, manifests, batches and their order."""

import csv
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import dataset
from dataset import (
    AudioConfig,
    BatchSampler,
    DataError,
    TTSCollator,
    TTSDataset,
    audio_to_mel,
    load_wav,
    log_to_scaled_mel,
    mel_to_audio,
    read_manifest,
    scaled_to_log_mel,
    to_log_mel,
)
from model import build_padding_mask
from tokenizer import Tokenizer

RATE = 22050
CONFIG = AudioConfig()
HEADER = "file_path,normalized_transcript,duration\n"


def noisy_sweep(seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    """A voice-like buzz of gliding pitch over a noise floor, (n_samples,) float32."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    phase = 2 * np.pi * (110 * time + 40 * time**2)
    buzz = sum(np.sin(k * phase) / k for k in range(1, 30))
    return (0.2 * buzz + 1e-3 * rng.standard_normal(len(time))).astype(np.float32)


def sine(frequency: float, seconds: float, rate: int, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


# The mel equation


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


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        AudioConfig(n_fft=2048, window_size=1200, hop_size=300, num_mels=64, fmin=50.0, fmax=11025),
        AudioConfig(min_db=-80.0, max_scaled_abs=1.0, fmax=7600.0),
    ],
)
def test_mel_equals_the_equations_worked_out_by_hand(config):
    wav = noisy_sweep()
    mel = audio_to_mel(torch.from_numpy(wav), config).numpy()
    np.testing.assert_allclose(mel, mel_by_hand(wav, config), rtol=0, atol=1e-4)


def test_mel_of_a_real_clip_equals_the_equations_worked_out_by_hand(ljspeech_dir):
    path = sorted((ljspeech_dir / "wavs").glob("*.wav"))[0]
    wav, rate = soundfile.read(path, dtype="float32")
    assert rate == RATE
    error = np.abs(audio_to_mel(load_wav(path, RATE), CONFIG).numpy() - mel_by_hand(wav, CONFIG))
    # In float32, a faint bin beside a loud one is only good to a few hundredths of a dB.
    assert np.mean(error < 1e-4) > 0.999 and error.max() < 1e-3


@pytest.mark.parametrize("hop_size", [256, 200, 300])
def test_number_of_frames_is_samples_over_hop_rounded_down(hop_size):
    config = AudioConfig(hop_size=hop_size)
    lengths = [1024, 1025, *range(1275, 1285), 1499, 1500, 1501, 5 * hop_size - 1, 22050, 22222]
    found = {n: audio_to_mel(torch.zeros(max(n, 1024)), config).shape for n in lengths}
    assert found == {n: (max(n, 1024) // hop_size, 80) for n in lengths}


@pytest.mark.parametrize(("min_db", "max_scaled_abs"), [(-100.0, 4.0), (-80.0, 1.0)])
def test_silence_is_exactly_minus_a_and_the_padding_value(min_db, max_scaled_abs):
    config = AudioConfig(min_db=min_db, max_scaled_abs=max_scaled_abs)
    mel = audio_to_mel(torch.zeros(4096), config)
    assert config.silence == -max_scaled_abs
    assert (mel == config.silence).all()


def test_silence_of_log_mels_is_the_log_floor():
    config = AudioConfig(mel_scaling="log")
    assert config.silence == pytest.approx(math.log(1e-5), abs=1e-12)
    mel = audio_to_mel(torch.zeros(4096), config)
    torch.testing.assert_close(mel, torch.full_like(mel, config.silence), rtol=0, atol=1e-6)


def test_magnitude_1_is_plus_a_and_twice_the_level_is_6_db_more():
    assert log_to_scaled_mel(torch.zeros(1), CONFIG).item() == pytest.approx(4.0)
    wav = torch.from_numpy(noisy_sweep()) / 4
    louder = audio_to_mel(2 * wav, CONFIG) - audio_to_mel(wav, CONFIG)
    expected = 20 * math.log10(2) / 100 * 8
    torch.testing.assert_close(louder, torch.full_like(louder, expected), rtol=0, atol=1e-4)


def test_batched_mels_equal_single_ones():
    wavs = torch.from_numpy(np.stack([noisy_sweep(0.5, seed) for seed in range(3)]))
    batched = audio_to_mel(wavs, CONFIG)
    assert batched.shape == (3, wavs.shape[1] // 256, 80)
    for wav, mel in zip(wavs, batched, strict=True):
        torch.testing.assert_close(audio_to_mel(wav, CONFIG), mel, rtol=0, atol=1e-5)


def test_mel_filters_are_not_shared_between_configs():
    wav = torch.from_numpy(noisy_sweep(0.3))
    full = audio_to_mel(wav, CONFIG)
    for config in (AudioConfig(fmax=7000.0), AudioConfig(fmin=40.0), AudioConfig(num_mels=40)):
        mel = audio_to_mel(wav, config)
        assert mel.shape != full.shape or not torch.allclose(mel, full)
    torch.testing.assert_close(audio_to_mel(wav, CONFIG), full, rtol=0, atol=0)


@pytest.mark.parametrize("n_samples", [0, 1, 384, 1023])
def test_a_clip_shorter_than_a_window_is_refused(n_samples):
    with pytest.raises(DataError, match=f"^{n_samples} samples .* less than one window of 1024"):
        audio_to_mel(torch.zeros(n_samples), CONFIG)


# Scaled and natural-log mels


@given(
    st.lists(st.floats(-50, 50), min_size=1, max_size=8),
    st.floats(-200, -1),
    st.floats(0.1, 100),
)
def test_scaled_and_log_mels_are_inverse_to_each_other(values, min_db, max_scaled_abs):
    config = AudioConfig(min_db=min_db, max_scaled_abs=max_scaled_abs)
    mel = torch.tensor(values, dtype=torch.float64)
    a = config.max_scaled_abs
    expected = [((v + a) / (2 * a) - 1) * -min_db / 20 * math.log(10) for v in values]
    log_mel = scaled_to_log_mel(mel, config)
    np.testing.assert_allclose(log_mel.numpy(), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(log_to_scaled_mel(log_mel, config), mel, rtol=1e-12, atol=1e-11)


def test_log_mels_are_hifi_gans():
    wav = noisy_sweep()
    edge = (1024 - 256) // 2
    padded = np.pad(wav.astype(np.float64), edge, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, 1024)[::256]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    magnitude = np.abs(np.fft.rfft(frames * window)) @ slaney_filters(CONFIG).T
    expected = np.log(np.maximum(magnitude, 1e-5))
    scaled = audio_to_mel(torch.from_numpy(wav), CONFIG)
    np.testing.assert_allclose(scaled_to_log_mel(scaled, CONFIG), expected, rtol=0, atol=2e-4)
    log_config = AudioConfig(mel_scaling="log")
    log_mel = audio_to_mel(torch.from_numpy(wav), log_config)
    np.testing.assert_allclose(log_mel, expected, rtol=0, atol=2e-4)
    assert to_log_mel(log_mel, log_config) is log_mel
    torch.testing.assert_close(to_log_mel(scaled, CONFIG), log_mel, rtol=0, atol=1e-4)


# Griffin-Lim


def db_error(wav: torch.Tensor, mel: torch.Tensor, config: AudioConfig) -> float:
    """Mean distance in dB between the mel of the wav and the mel it was made from."""
    again = to_log_mel(audio_to_mel(wav, config), config)
    return (again - to_log_mel(mel, config)).abs().mean().item() * 20 / math.log(10)


@pytest.mark.parametrize("mel_scaling", ["scaled_db", "log"])
def test_griffin_lim_gives_back_the_mel_and_the_level(mel_scaling):
    config = AudioConfig(mel_scaling=mel_scaling)
    wav = torch.from_numpy(noisy_sweep())
    mel = audio_to_mel(wav, config)
    torch.manual_seed(0)
    again = mel_to_audio(mel, config)
    assert again.shape == (len(mel) * 256,)
    assert db_error(again, mel, config) < 2.3
    assert again.square().mean().sqrt().item() == pytest.approx(wav.std().item(), rel=0.1)


def test_griffin_lim_gives_back_the_mel_of_a_real_clip(ljspeech_dir):
    path = sorted((ljspeech_dir / "wavs").glob("*.wav"))[1]
    mel = audio_to_mel(load_wav(path, RATE)[: 3 * RATE], CONFIG)
    torch.manual_seed(0)
    assert db_error(mel_to_audio(mel, CONFIG), mel, CONFIG) < 1.5


@pytest.mark.parametrize("hop_size", [256, 200, 300])
def test_griffin_lim_keeps_a_sound_where_it_was(hop_size):
    config = AudioConfig(hop_size=hop_size)
    rng = np.random.default_rng(0)
    wav = 1e-4 * rng.standard_normal(RATE)
    wav[9000:13000] += 0.2 * np.hanning(4000) * rng.standard_normal(4000)
    mel = audio_to_mel(torch.from_numpy(wav.astype(np.float32)), config)
    torch.manual_seed(0)
    again = mel_to_audio(mel, config).numpy()

    def centre_ms(samples: np.ndarray) -> float:
        return np.average(np.arange(len(samples)), weights=samples**2) / RATE * 1000

    assert centre_ms(again) == pytest.approx(centre_ms(wav), abs=2.0)


@pytest.mark.parametrize("n_frames", [1, 2, 5, 40])
def test_griffin_lim_of_silence_is_silence_of_the_right_length(n_frames):
    mel = torch.full((n_frames, 80), CONFIG.silence)
    wav = mel_to_audio(mel, CONFIG, n_iter=4)
    assert wav.shape == (n_frames * 256,)
    assert torch.isfinite(wav).all() and wav.abs().max() < 0.01


@pytest.mark.parametrize(
    "config",
    [
        AudioConfig(hop_size=512),
        AudioConfig(n_fft=2048, window_size=1100, hop_size=276),
        AudioConfig(hop_size=1022),
    ],
)
def test_griffin_lim_of_one_frame_works_for_unusual_configs(config):
    wav = mel_to_audio(torch.zeros(1, 80), config, n_iter=4)
    assert wav.shape == (config.hop_size,)
    assert torch.isfinite(wav).all() and wav.abs().max() > 0


def test_griffin_lim_never_goes_above_full_scale():
    wav = mel_to_audio(torch.full((20, 80), 6.0), CONFIG, n_iter=4)
    assert wav.abs().max() == pytest.approx(1.0)


# AudioConfig


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sampling_rate": 0}, "--sampling_rate"),
        ({"num_mels": 0}, "--num_mels"),
        ({"n_fft": -1024}, "--n_fft"),
        ({"window_size": 0}, "--window_size"),
        ({"hop_size": 0}, "--hop_size"),
        ({"hop_size": 1026}, "--hop_size"),
        ({"hop_size": 512, "window_size": 512}, "--hop_size"),
        ({"window_size": 2048}, "--window_size"),
        ({"hop_size": 255}, "--n_fft"),
        ({"fmax": 11026.0}, "--fmax"),
        ({"sampling_rate": 8000}, "--fmax"),
        ({"fmin": 8000.0}, "--fmin"),
        ({"fmin": -1.0}, "--fmin"),
        ({"fmax": math.nan}, "--fmax"),
        ({"min_db": 0.0}, "--min_db"),
        ({"min_db": 100.0}, "--min_db"),
        ({"min_db": -math.inf}, "--min_db"),
        ({"min_db": math.nan}, "--min_db"),
        ({"max_scaled_abs": 0.0}, "--max_scaled_abs"),
        ({"max_scaled_abs": -4.0}, "--max_scaled_abs"),
        ({"max_scaled_abs": math.inf}, "--max_scaled_abs"),
        ({"mel_scaling": "db"}, "--mel_scaling"),
    ],
)
def test_a_config_that_cannot_work_is_refused_naming_the_flag(change, named):
    with pytest.raises(ValueError, match=named):
        AudioConfig(**change)


@pytest.mark.parametrize(
    "change", [{"fmax": 11025.0}, {"window_size": 800}, {"hop_size": 1022}, {"min_db": -1000.0}]
)
def test_a_config_at_the_edge_of_what_works_is_accepted(change):
    mel = audio_to_mel(torch.from_numpy(noisy_sweep(0.2)), AudioConfig(**change))
    assert torch.isfinite(mel).all()


# load_wav


@pytest.mark.parametrize(
    ("name", "subtype", "tolerance"),
    [
        ("a.wav", "PCM_16", 1e-4),
        ("a.wav", "PCM_24", 1e-6),
        ("a.wav", "PCM_U8", 1e-2),
        ("a.wav", "FLOAT", 1e-7),
        ("a.wav", "DOUBLE", 1e-7),
        ("a.flac", "PCM_16", 1e-4),
        ("a.flac", "PCM_24", 1e-6),
    ],
)
@pytest.mark.parametrize("n_channels", [1, 2])
def test_load_wav_reads_any_sample_format(tmp_path, name, subtype, tolerance, n_channels):
    expected = sine(440, 0.2, RATE)
    channels = np.stack([expected * 1.5, expected * 0.5][:n_channels], axis=1)
    channels = channels if n_channels == 2 else expected[:, None]
    soundfile.write(tmp_path / name, channels, RATE, subtype=subtype)
    wav = load_wav(tmp_path / name, RATE)
    assert wav.dtype == torch.float32 and wav.shape == expected.shape
    np.testing.assert_allclose(wav.numpy(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("rate", [8000, 16000, 22051, 44100, 48000, 96000])
def test_load_wav_resamples_keeping_frequency_length_and_level(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", sine(1000, 0.5, rate), rate, subtype="PCM_24")
    wav = load_wav(str(tmp_path / "a.wav"), RATE).numpy()
    assert abs(len(wav) - RATE / 2) <= 1
    middle = slice(1000, 10_000)
    np.testing.assert_allclose(wav[middle], sine(1000, 0.5, RATE)[middle], rtol=0, atol=5e-3)


def test_load_wav_resamples_without_aliases(tmp_path):
    soundfile.write(tmp_path / "a.wav", sine(15_000, 0.5, 96_000), 96_000, subtype="PCM_24")
    assert load_wav(tmp_path / "a.wav", RATE)[1000:-1000].abs().max() < 1e-2


def test_load_wav_clips_what_is_louder_than_full_scale(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([-3.0, 0.5, 2.0]), RATE, subtype="FLOAT")
    assert load_wav(tmp_path / "a.wav", RATE).tolist() == [-1.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("samples", "reason"),
    [([], "no samples"), ([0.1, math.nan], "NaN"), ([0.1, math.inf], "infinite")],
)
def test_load_wav_refuses_samples_that_are_no_sound(tmp_path, samples, reason):
    path = tmp_path / "bad.wav"
    soundfile.write(path, np.array(samples), RATE, subtype="FLOAT")
    with pytest.raises(DataError, match=rf"^{path}: .*{reason}"):
        load_wav(path, RATE)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.raw", "a.txt", "a"])
@pytest.mark.parametrize("content", [b"", b"hello world " * 100, bytes(range(256)) * 8])
def test_load_wav_refuses_a_file_that_is_no_audio(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{path}: cannot be read as audio"):
        load_wav(path, RATE)


def test_load_wav_refuses_a_missing_file_a_folder_and_an_impossible_name(tmp_path):
    for path in (tmp_path / "none.wav", tmp_path, f"{tmp_path}/{'x' * 5000}.wav", "a\udcff.wav"):
        with pytest.raises(DataError) as refusal:
            load_wav(path, RATE)
        assert str(refusal.value) == f"{path}: cannot be read as audio (no such file)"


def test_load_wav_reads_what_a_truncated_wav_holds_or_refuses_it(tmp_path):
    whole, cut = tmp_path / "whole.wav", tmp_path / "cut.wav"
    soundfile.write(whole, sine(440, 0.1, RATE), RATE, subtype="PCM_16")
    expected = load_wav(whole, RATE)
    for n_bytes in (1, 12, 30, 43, 44, 45):
        cut.write_bytes(whole.read_bytes()[:n_bytes])
        with pytest.raises(DataError, match=f"^{cut}: "):
            load_wav(cut, RATE)
    for n_samples in (1, 100, 2000):
        cut.write_bytes(whole.read_bytes()[: 44 + 2 * n_samples])
        assert torch.equal(load_wav(cut, RATE), expected[:n_samples])


def test_load_wav_refuses_a_broken_flac(tmp_path):
    whole, path = tmp_path / "whole.flac", tmp_path / "broken.flac"
    soundfile.write(whole, noisy_sweep(0.3), RATE)
    content = whole.read_bytes()
    # The last four bytes of the stream's sample count, a field of 36 bits.
    broken = [content[:n] for n in (4, 20, 42, 60, 100, len(content) // 2)]
    broken += [content[:21] + bytes([content[21] | 15]) + b"\xff" * 4 + content[26:]]
    broken += [content[:21] + bytes([content[21] & 240]) + b"\0" * 4 + content[26:]]
    for data in broken:
        path.write_bytes(data)
        with pytest.raises(DataError, match=f"^{path}: cannot be read as audio"):
            load_wav(path, RATE)


@pytest.mark.parametrize("rate", [1, 7, 2**31 - 1])
def test_load_wav_refuses_a_sampling_rate_that_cannot_be(tmp_path, rate):
    path = tmp_path / "a.wav"
    soundfile.write(path, sine(440, 0.1, RATE), RATE, subtype="PCM_16")
    content = path.read_bytes()
    path.write_bytes(content[:24] + rate.to_bytes(4, "little") + content[28:])
    with pytest.raises(DataError, match=f"^{path}: has a sampling rate of {rate} Hz"):
        load_wav(path, RATE)


# Manifests


@pytest.fixture
def manifest(tmp_path):
    """A function that writes a manifest, beside a clip named clip.wav."""
    soundfile.write(tmp_path / "clip.wav", sine(440, 0.1, RATE), RATE)

    def write(content: str | bytes) -> Path:
        path = tmp_path / "manifest.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "cannot be read as CSV"),
        ("\n\n", "cannot be read as CSV"),
        (HEADER, "holds no clips"),
        ("file_path,duration\nclip.wav,1\n", "column normalized_transcript is missing"),
        ("normalized_transcript,duration\nhello,1\n", "column file_path is missing"),
        ("file_path,normalized_transcript\nclip.wav,hello\n", "column duration is missing"),
        ("clip.wav,hello,1\n", "column file_path is missing"),
        ((HEADER + "clip.wav,hello,1\n").replace(",", "|"), "column file_path is missing"),
        ((HEADER + "clip.wav,hello,1\n").replace(",", "\t"), "column file_path is missing"),
        (HEADER + "clip.wav,hello,1\nclip.wav,hello, world,1\n", "cannot be read as CSV"),
        (HEADER + "clip.wav,hello, world,1\n", "line 2"),
        (HEADER + "clip.wav,hello\n", "line 2 has no duration"),
        (HEADER + "clip.wav\n", "line 2 has an empty normalized_transcript"),
        (HEADER + 'clip.wav,"hello,1\n', "cannot be read as CSV"),
        (HEADER.encode() + b"clip.wav,caf\xe9,1\n", "cannot be read as CSV"),
        ((HEADER + "clip.wav,hello,1\n").encode("utf-16"), "cannot be read as CSV"),
        (bytes(range(256)), "cannot be read as CSV"),
        (HEADER + "clip.wav,hello,1\nclip.wav,hello,nan\n", "line 3 has no duration"),
        (HEADER + "clip.wav,hello,0\n", "line 2 has no duration above 0"),
        (HEADER + "clip.wav,hello,-1.5\n", "line 2 has no duration above 0"),
        (HEADER + "clip.wav,hello,inf\n", "line 2 has no duration"),
        (HEADER + "clip.wav,hello,long\n", "line 2 has no duration"),
        (HEADER + "clip.wav,hello,\n", "line 2 has no duration"),
        (HEADER + "clip.wav,,1\n", "line 2 has an empty normalized_transcript"),
        (HEADER + 'clip.wav,"  ",1\n', "line 2 has an empty normalized_transcript"),
        (HEADER + "none.wav,hello,1\n", "line 2 names .*none.wav, which is not a file"),
        (HEADER + ",hello,1\n", "line 2 names .* which is not a file"),
        (HEADER + "x" * 5000 + ".wav,hello,1\n", "line 2 names .* which is not a file"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused_naming_file_and_reason(
    manifest, content, reason
):
    path = manifest(content)
    with pytest.raises(DataError, match=rf"(?s)^{path}: .*{reason}"):
        read_manifest(path)


def test_a_manifest_that_is_no_file_is_refused(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path / ("x" * 5000)):
        with pytest.raises(DataError, match=f"^{path}: no such manifest"):
            read_manifest(path)
    with pytest.raises(DataError, match=f"^{tmp_path}: is a folder"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        HEADER + "clip.wav,hello,1.5\n",
        "\ufeff" + HEADER + "clip.wav,hello,1.5\n",
        (HEADER + "clip.wav,hello,1.5\n").replace("\n", "\r\n"),
        HEADER + "clip.wav,hello,1.5",
        "duration,speaker,file_path,normalized_transcript\n1.5,7,clip.wav,hello\n",
    ],
    ids=["plain", "byte order mark", "CRLF", "no last newline", "other column order"],
)
def test_a_manifest_is_read_however_it_was_saved(manifest, content):
    path = manifest(content)
    clip = read_manifest(path).iloc[0]
    assert clip["file_path"] == str(path.parent / "clip.wav")
    assert (clip["normalized_transcript"], clip["duration"]) == ("hello", 1.5)


def test_paths_are_taken_from_the_manifests_folder_and_absolute_ones_kept(manifest, monkeypatch):
    path = manifest("")
    folder = path.parent
    path.write_text(HEADER + f"clip.wav,hello,1\n{folder}/clip.wav,hello,1\n", encoding="utf-8")
    monkeypatch.chdir(folder.parent)
    frame = read_manifest(Path(folder.name) / "manifest.csv")
    assert frame["file_path"].tolist() == [str(folder / "clip.wav")] * 2


def test_transcripts_survive_as_they_stand(manifest):
    texts = ["NA", "null", "None", "nan", "1465", "007", "1e5", "True", 'he said "NA", twice',
             '"', "  spaces  ", "it's", "a|b;c", "caf\u00e9 \u2014 \u4e2d", "two\nlines", "#x",
             "back\\slash"]  # fmt: skip
    path = manifest("")
    with open(path, "w", encoding="utf-8", newline="") as file:
        rows = [("file_path", "normalized_transcript", "duration")]
        csv.writer(file).writerows(rows + [("clip.wav", text, 1) for text in texts])
    assert read_manifest(path)["normalized_transcript"].tolist() == texts


# TTSDataset and TTSCollator


@pytest.fixture(scope="module")
def clips(tiny_corpus):
    return TTSDataset(tiny_corpus.train_manifest, CONFIG, Tokenizer())


def test_dataset_holds_the_clips_of_the_manifest(tiny_corpus, clips):
    assert len(clips) == 9
    frame = read_manifest(tiny_corpus.train_manifest)
    for i in (0, 8):
        clip = clips[i]
        assert clip.path == frame["file_path"][i]
        assert clip.text == frame["normalized_transcript"][i]
        assert clip.tokens.tolist() == Tokenizer().encode(clip.text).tolist()
        assert torch.equal(clip.mel, audio_to_mel(load_wav(clip.path, RATE), CONFIG))
        assert len(clip.mel) == int(clips.n_frames[i])


@pytest.mark.parametrize(
    ("seconds", "text", "reason"),
    [(0.03, "hello", "less than one window"), (0, "hi", "no samples")],
)
def test_dataset_names_the_clip_that_cannot_be_used(tmp_path, seconds, text, reason):
    soundfile.write(tmp_path / "clip.wav", sine(440, seconds, RATE), RATE)
    (tmp_path / "manifest.csv").write_text(HEADER + f"clip.wav,{text},1\n", encoding="utf-8")
    clips = TTSDataset(tmp_path / "manifest.csv", CONFIG, Tokenizer())
    with pytest.raises(DataError, match=f"^{tmp_path / 'clip.wav'}: .*{reason}"):
        clips[0]


@pytest.mark.parametrize("mel_scaling", ["scaled_db", "log"])
@pytest.mark.parametrize("order", [[0, 4, 8], [8, 0, 4], [4, 8, 0]])
def test_collator_pads_in_any_order(tiny_corpus, order, mel_scaling):
    config = AudioConfig(mel_scaling=mel_scaling)
    clips = TTSDataset(tiny_corpus.train_manifest, config, Tokenizer())
    utterances = [clips[i] for i in order]
    batch = TTSCollator(config, clips.tokenizer)(utterances)
    assert batch.tokens.shape == (3, max(len(u.tokens) for u in utterances))
    assert batch.mels.shape == (3, max(len(u.mel) for u in utterances), 80)
    assert batch.tokens.dtype == batch.token_lengths.dtype == batch.mel_lengths.dtype == torch.int64
    assert batch.texts == [u.text for u in utterances]
    assert batch.paths == [u.path for u in utterances]
    for i, utterance in enumerate(utterances):
        n_tokens, n_frames = len(utterance.tokens), len(utterance.mel)
        assert (batch.token_lengths[i], batch.mel_lengths[i]) == (n_tokens, n_frames)
        assert torch.equal(batch.tokens[i, :n_tokens], utterance.tokens)
        assert torch.equal(batch.mels[i, :n_frames], utterance.mel)
        assert (batch.tokens[i, n_tokens:] == 0).all()
        assert (batch.mels[i, n_frames:] == torch.tensor(config.silence)).all()
        assert (batch.stop_targets[i, : n_frames - 1] == 0).all()
        assert (batch.stop_targets[i, n_frames - 1 :] == 1).all()
    assert (batch.mel_lengths < batch.mels.shape[1]).sum() == 2  # so padding was looked at


def test_two_workers_load_the_same_batches_as_none(clips):
    def load(num_workers: int) -> list:
        sampler = BatchSampler(clips.n_frames, 4, seed=1)
        collator = TTSCollator(CONFIG, clips.tokenizer)
        return list(
            DataLoader(clips, batch_sampler=sampler, collate_fn=collator, num_workers=num_workers)
        )

    alone, together = load(0), load(2)
    assert len(alone) == len(together) == 3
    for one, other in zip(alone, together, strict=True):
        assert one.paths == other.paths and one.texts == other.texts
        assert all(torch.equal(a, b) for a, b in zip(one[:5], other[:5], strict=True))


# BatchSampler


def ljspeech_lengths() -> np.ndarray:
    """13,100 clips of 1.1 to 10.1 s, 6.57 s in the mean, more long than short."""
    lengths = 1.1 + 9.0 * np.random.default_rng(0).beta(2.2, 1.42, size=13_100)
    assert abs(lengths.mean() - 6.57) < 0.05
    return lengths


SIZES = st.tuples(st.integers(1, 300), st.integers(2, 40), st.integers(1, 4)).filter(
    lambda sizes: sizes[0] >= sizes[2]
)


@given(SIZES, st.booleans(), st.integers(0, 2**40), st.integers(0, 1000))
def test_every_clip_comes_once_per_epoch_in_batches_of_nearly_one_size(sizes, shuffle, seed, epoch):
    n, batch_size, num_processes = sizes
    lengths = np.random.default_rng(n).uniform(1, 10, n)
    samplers = [
        BatchSampler(
            lengths, batch_size, seed, epoch, 0, num_processes, process_index, shuffle=shuffle
        )
        for process_index in range(num_processes)
    ]
    assert len({len(sampler) for sampler in samplers}) == 1
    assert len(samplers[0]) == math.ceil(n / (batch_size * num_processes))
    batches = [batch for sampler in samplers for batch in sampler]
    assert sorted(i for batch in batches for i in batch) == list(range(n))
    n_clips = [len(batch) for batch in batches]
    assert min(n_clips) >= 1 and max(n_clips) <= batch_size
    assert max(n_clips) - min(n_clips) <= 1
    assert all(type(i) is int for batch in batches for i in batch)


@given(SIZES, st.booleans())
def test_the_shares_of_processes_make_up_the_batch_of_one_process(sizes, shuffle):
    n, batch_size, num_processes = sizes
    lengths = np.random.default_rng(n).uniform(1, 10, n)
    whole = BatchSampler(lengths, batch_size * num_processes, seed=3, epoch=2, shuffle=shuffle)
    shares = [
        BatchSampler(lengths, batch_size, 3, 2, 0, num_processes, index, shuffle=shuffle)
        for index in range(num_processes)
    ]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert batch == [i for part in parts for i in part]


@pytest.mark.parametrize("batch_size", [16, 32, 64, 128])
def test_padding_is_below_5_percent_on_a_corpus_like_ljspeech(batch_size):
    lengths = ljspeech_lengths()
    batches = list(BatchSampler(lengths, batch_size, seed=0, epoch=1))
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert 0.005 < 1 - lengths.sum() / padded < 0.05


def test_order_depends_on_seed_and_epoch_alone():
    lengths = ljspeech_lengths()[:500]

    def order(seed: int, epoch: int) -> list[list[int]]:
        return list(BatchSampler(lengths, 8, seed=seed, epoch=epoch))

    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    first = order(1, 2)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    assert order(1, 2) == first
    assert order(1, 3) != first and order(2, 2) != first and order(2, 1) != first


def test_order_is_the_same_in_another_process():
    program = (
        "from dataset import BatchSampler\n"
        "lengths = [(i * 37 % 101) + 1 for i in range(101)]\n"
        "print(list(BatchSampler(lengths, 8, seed=5, epoch=6)))"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(dataset.__file__).parent,
        env={**os.environ, "PYTHONHASHSEED": "123"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lengths = [(i * 37 % 101) + 1 for i in range(101)]
    assert elsewhere.strip() == str(list(BatchSampler(lengths, 8, seed=5, epoch=6)))


def test_iterating_twice_gives_the_same_batches():
    sampler = BatchSampler(range(1, 50), 4)
    assert list(sampler) == list(sampler)


def test_batches_have_other_members_and_another_order_in_another_epoch():
    lengths = ljspeech_lengths()
    one, two = (list(BatchSampler(lengths, 32, seed=0, epoch=epoch)) for epoch in (0, 1))
    same = {frozenset(batch) for batch in one} & {frozenset(batch) for batch in two}
    assert len(same) < 0.01 * len(one)
    longest_first = [lengths[batch].mean() for batch in one]
    assert np.corrcoef(longest_first, np.arange(len(one)))[0, 1] == pytest.approx(0, abs=0.2)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_start_batch_skips_that_many_batches(num_processes):
    lengths = ljspeech_lengths()[:200]
    for start_batch in (0, 1, 5, 12, 13, 20):
        whole, rest = (
            BatchSampler(lengths, 8, 1, 2, start, num_processes, num_processes - 1)
            for start in (0, start_batch)
        )
        assert list(rest) == list(whole)[start_batch:]
        assert len(rest) == max(0, len(whole) - start_batch)


def test_without_shuffling_the_order_is_longest_first():
    lengths = [3.0, 9.0, 1.0, 9.0, 5.0]
    for epoch in (0, 1):
        batches = list(BatchSampler(lengths, 2, seed=epoch, epoch=epoch, shuffle=False))
        assert batches == [[1, 3], [4, 0], [2]]


def test_clips_of_one_length_are_batched_too():
    batches = list(BatchSampler([2.0] * 10, 4))
    assert sorted(map(len, batches)) == [3, 3, 4]


@pytest.mark.parametrize(
    ("n", "batch_size", "num_processes", "reason"),
    [
        (10, 0, 1, "--batch_size must be at least 1"),
        (0, 4, 1, "0 clips cannot be dealt"),
        (3, 4, 4, "3 clips cannot be dealt to 4 processes"),
        (5, 1, 4, "5 clips cannot be dealt to 4 processes"),
        (3, 1, 2, "3 clips cannot be dealt to 2 processes"),
    ],
)
def test_sizes_that_leave_a_process_without_a_clip_are_refused(
    n, batch_size, num_processes, reason
):
    with pytest.raises(ValueError, match=reason):
        BatchSampler([1.0] * n, batch_size, num_processes=num_processes)


# build_padding_mask


def test_padding_mask_is_true_past_each_length():
    mask = build_padding_mask(torch.tensor([2, 0, 3]))
    assert mask.dtype == torch.bool
    assert mask.int().tolist() == [[0, 0, 1], [1, 1, 1], [0, 0, 0]]
    assert build_padding_mask(torch.tensor([1]), 3).int().tolist() == [[0, 1, 1]]


@settings(max_examples=30)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(0, 20))
def test_padding_mask_leaves_as_many_positions_as_each_length(lengths, extra):
    mask = build_padding_mask(torch.tensor(lengths), max(lengths) + extra)
    assert mask.shape == (len(lengths), max(lengths) + extra)
    assert (~mask).sum(dim=1).tolist() == lengths
    assert (mask[:, 1:] >= mask[:, :-1]).all()
