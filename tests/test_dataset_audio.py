"""Tests of dataset.py, the sound: audio files, the mel equation, Griffin-Lim, AudioConfig."""

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from command_line.files import DataError
from dataset import (
    AudioConfig,
    audio_to_mel,
    clamp_mel,
    limit_peaks,
    load_wav,
    log_to_scaled_mel,
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


def magnitudes(mel: np.ndarray, config: AudioConfig) -> np.ndarray:
    """Of a scaled mel, in float64."""
    share = (mel.astype(np.float64) + config.max_scaled_abs) / (2 * config.max_scaled_abs)
    return 10 ** ((share - 1) * -config.min_db / 20)


def test_mels_of_real_clips_equal_the_equations_worked_out_by_hand(ljspeech_dir):
    """As closely as float32 can. Its Fourier transform errs by a share of the frame's loudest bin,
    in faint bins too: 10 stages of rounding for 1024 samples. The filters, the logarithm and the
    scaling round some 10 times more, each by a share of the bin itself."""
    for path in some_clips(ljspeech_dir):
        wav = load_wav(path, RATE)
        expected = magnitudes(mel_by_hand(wav.numpy(), CONFIG), CONFIG)  # (T_mel, num_mels)
        found = magnitudes(audio_to_mel(wav, CONFIG).numpy(), CONFIG)
        errors = np.abs(found - expected) / expected.max(axis=1, keepdims=True)
        assert errors.max() < 32 * np.finfo(np.float32).eps, path


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


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        AudioConfig(mel_scaling="log"),
        AudioConfig(n_fft=2048, window_size=1200, hop_size=300, num_mels=64, fmin=50.0, fmax=11025),
        AudioConfig(min_db=-80.0, max_scaled_abs=1.0, fmax=7600.0),
    ],
)
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


@pytest.mark.parametrize("mel_scaling", ["scaled_db", "log"])
@pytest.mark.parametrize("value", [1000.0, math.inf, -1000.0, math.nan])
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


@pytest.mark.parametrize("n_frames", [1, 20])
def test_frames_that_run_away_leave_the_others_audible(n_frames):
    mel = audio_to_mel(torch.from_numpy(noisy_sweep()), CONFIG)
    sound = mel_to_audio(mel, CONFIG)
    mel[-n_frames:] = 1000.0
    with pytest.warns(UserWarning, match=f"^{80 * n_frames} of the mel's 6880 values"):
        again = mel_to_audio(mel, CONFIG)
    assert again.abs().max() <= 1 and again.mean().abs() < 0.01 * again.std()
    assert again[:12_000].std() > 0.1 * sound[:12_000].std()  # no more than 20 dB quieter


def test_mels_a_little_below_silence_are_silence_without_a_word(recwarn):
    mel = audio_to_mel(torch.from_numpy(noisy_sweep(0.3)), CONFIG)
    lower = torch.where(mel < -2.0, mel.new_tensor(CONFIG.silence - 1.0), mel)
    clamped = clamp_mel(lower, CONFIG)
    assert (clamped[mel < -2.0] == CONFIG.silence).all() and not len(recwarn)
    assert torch.equal(clamped[mel >= -2.0], mel[mel >= -2.0])


def test_griffin_lim_never_goes_above_full_scale():
    wav = mel_to_audio(torch.full((20, 80), 6.0), CONFIG, n_iter=4)
    assert 0.5 < wav.abs().max() <= 1.0


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
        *(
            ({name: value}, f"--{name}")
            for name in ("sampling_rate", "num_mels", "n_fft", "window_size", "hop_size")
            for value in (10**9, 10**30)
        ),
        ({"n_fft": 2**14, "window_size": 2**14, "hop_size": 2}, "--hop_size"),
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
