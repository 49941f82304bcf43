"""extras/export_onnx.py and its runner: the model's numbers without PyTorch."""

import csv
import json
import shutil
import subprocess
import sys
import wave

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

from command_line.files import DataError
from conftest import speak
from dataset import AudioConfig, audio_to_mel, mel_to_audio
from extras import export_onnx
from model import Prenet, Tacotron2, Tacotron2Config
from speech.contrast import Contrast, sharpen
from speech.voice import load_checkpoint, write_config
from test_model import lively
from test_synthesize import SMALL
from text.tokenizer import Tokenizer

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from extras import run_onnx  # noqa: E402
from extras.run_onnx import Speaker  # noqa: E402

FILES = ["encoder.onnx", "mel_filters.npy", "postnet.onnx", "settings.json", "speak.py",
         "step.int8.onnx", "step.onnx"]  # fmt: skip
N_FRAMES = 40


class GivenDropout(TorchFunctionMode):
    """Makes F.dropout multiply by masks (T_mel, depth, dim), one after the other."""

    def __init__(self, masks):
        super().__init__()
        self.masks = iter(torch.as_tensor(masks).flatten(0, 1))

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not F.dropout:
            return function(*args, **(kwargs or {}))
        training = (kwargs or {}).get("training", args[2] if len(args) > 2 else True)
        return args[0] * next(self.masks) if training else args[0]


@pytest.fixture(scope="module", params=[1, 3], ids=["one_frame", "three_frames"])
def checkpoint(tmp_path_factory, request):
    """Write an untrained checkpoint with batch norms and alignments that are not trivial."""
    folder = tmp_path_factory.mktemp("lively")
    torch.manual_seed(0)
    sizes = SMALL | {"frames_per_step": request.param}
    config = Tacotron2Config(vocab_size=Tokenizer().vocab_size, **sizes)
    model = lively(Tacotron2(config))
    with torch.no_grad():
        model.decoder.attention.v.weight.mul_(5.0)
        model.decoder.stop_projection.weight.mul_(5.0)
    save_file(model.state_dict(), folder / "model.safetensors")
    write_config(folder, config, AudioConfig(), Tokenizer())
    return folder


def export(checkpoint, output_dir, *flags):
    export_onnx.main(["--checkpoint", str(checkpoint), "--output_dir", str(output_dir), *flags])
    return output_dir


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    return export(checkpoint, tmp_path_factory.mktemp("exported"), "--int8")


@pytest.fixture(scope="module")
def speaker(exported):
    return Speaker(exported, threads=1)


@pytest.fixture(scope="module")
def voice(checkpoint):
    return load_checkpoint(checkpoint)


def draw_masks(speaker):
    return np.stack([speaker.draw_masks(np.random.default_rng(i)) for i in range(N_FRAMES)])


def infer(voice, tokens, masks, stop_threshold=1.0):
    with GivenDropout(masks):
        return voice.model.infer(tokens[None], None, N_FRAMES, stop_threshold)


def test_free_running_gives_the_frames_of_the_model(voice, speaker):
    masks = draw_masks(speaker)
    assert masks.max() == 2.0 and masks.mean() == pytest.approx(1.0, abs=0.1)  # of dropout 0.5
    tokens = voice.tokenizer.encode("The quick fox jumps over the lazy dog.")
    expected = infer(voice, tokens, masks)
    found = speaker.speak(tokens[None].numpy(), None, N_FRAMES, 1.0, masks)
    wanted = (expected.mels, expected.stop_logits, expected.alignments)
    for ours, theirs in zip(wanted, found, strict=True):
        np.testing.assert_allclose(theirs, ours[0].numpy(), atol=1e-4, rtol=1e-4)
    assert found[0].std(axis=0).min() > 1e-3 and np.ptp(found[2].argmax(axis=1)) > 0


def test_it_stops_where_the_model_does(voice, speaker):
    masks, tokens = draw_masks(speaker), voice.tokenizer.encode("Ring the bell!")
    stops = torch.sigmoid(infer(voice, tokens, masks).stop_logits[0])
    later = 1 + int(stops[1:-1].argmax())  # neither the first frame nor the last
    threshold = float(stops[later] + stops[:later].max()) / 2
    assert stops[:later].max() < threshold < stops[later]
    mel = speaker.speak(tokens[None].numpy(), None, N_FRAMES, threshold, masks)[0]
    expected = infer(voice, tokens, masks, threshold)
    assert len(mel) == int(expected.mel_lengths) == later + 1 < N_FRAMES
    np.testing.assert_allclose(mel, expected.mels[0].numpy(), atol=1e-4)


def test_int8_quantises_the_lstms_alone_and_stays_close(exported, speaker, voice):
    graph = onnx.load(exported / "step.int8.onnx").graph
    int8 = {w.name.split(".weight")[0] for w in graph.initializer
            if w.data_type == onnx.TensorProto.INT8 and len(w.dims) == 2}  # fmt: skip
    assert int8 == {"decoder.attention_rnn", "decoder.decoder_rnn"}
    masks, tokens = draw_masks(speaker), voice.tokenizer.encode("The sun is up")[None].numpy()
    mels = np.random.default_rng(0).standard_normal((N_FRAMES, 80), np.float32)
    exact = speaker.speak(tokens, None, masks=masks, mels=mels)
    close = Speaker(exported, True, 1).speak(tokens, None, masks=masks, mels=mels)
    for ours, theirs in zip(exact, close, strict=True):
        assert 0 < np.abs(ours - theirs).max() < 0.05 * np.abs(ours).max()


@pytest.mark.parametrize("contrast", [None, Contrast([0.1] * 80, [*np.linspace(1, 3, 80)])])
def test_mels_are_sharpened_as_in_the_repo(exported, voice, contrast):
    speaker = Speaker(exported, threads=1)
    speaker.settings = export_onnx.make_settings(voice._replace(contrast=contrast), 0.5)
    mel = 1.5 * torch.from_numpy(np.random.default_rng(0).standard_normal((20, 80), np.float32))
    expected = sharpen(mel, voice.audio_config, contrast)
    np.testing.assert_allclose(speaker.sharpen(mel.numpy()), expected.numpy(), atol=1e-5)


def test_the_command_sharpens_before_it_makes_the_sound(exported, tmp_path, monkeypatch):
    heard = []
    monkeypatch.setattr(Speaker, "sharpen", lambda self, mel: mel + 1)
    monkeypatch.setattr(Speaker, "speak", lambda *_: (np.zeros((9, 80)), np.zeros(9), None))
    monkeypatch.setattr(
        Speaker, "to_audio", lambda self, mel, rng: heard.append(mel) or np.zeros(9)
    )
    run_onnx.main(["--folder", str(exported), "--tokens", "9", "--output", f"{tmp_path}/a.wav"])
    assert (heard[0] == 1).all()


@pytest.mark.parametrize("scaling", ["scaled_db", "log"])
def test_sound_is_that_of_the_repos_griffin_lim(exported, scaling, voice):
    audio_config = AudioConfig(mel_scaling=scaling, window_size=800)
    voice = voice._replace(audio_config=audio_config)
    speaker = Speaker(exported, threads=1)
    speaker.settings = export_onnx.make_settings(voice, 0.5)
    mel = audio_to_mel(torch.from_numpy(speak("come in")).float(), audio_config)
    wav = speaker.to_audio(mel.numpy(), np.random.default_rng(0))
    assert len(wav) == len(mel) * audio_config.hop_size and np.abs(wav).max() <= 1
    torch.manual_seed(0)
    wavs = mel_to_audio(mel, audio_config), torch.from_numpy(wav).float()
    ours, theirs = ((audio_to_mel(x, audio_config) - mel).abs().mean() for x in wavs)
    assert theirs < 1.3 * ours  # with magnitudes fixed beforehand it is 2.1 times ours
    mel[1], mel[2] = 1e6, torch.nan  # a mel that ran away is clamped
    wav = speaker.to_audio(mel.numpy(), np.random.default_rng(0), n_iter=2)
    assert np.isfinite(wav).all() and np.abs(wav).max() <= 1


def test_the_copy_speaks_without_torch(exported, tmp_path):
    """Run it in a process that finds neither this repository nor torch."""
    folder = shutil.copytree(exported, tmp_path / "voice")
    assert sorted(path.name for path in folder.iterdir()) == FILES
    code = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv[0] = 'speak.py'; "
        f"runpy.run_path({str(folder / 'speak.py')!r}, run_name='__main__'); "
        "assert not {'model', 'tokenizer', 'dataset', 'librosa', 'scipy'} & {*sys.modules}"
    )
    for name, source in (("a", ["--text", "GO HOME\u2603", "--int8"]), ("b", ["--tokens", "13"])):
        flags = [*source, "--max_decoder_steps", "30", "--output", f"{name}.wav"]
        command = [sys.executable, "-I", "-c", code, *flags]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        with wave.open(str(tmp_path / f"{name}.wav")) as file:
            assert (file.getframerate(), file.getsampwidth(), file.getnchannels()) == (22050, 2, 1)
            n_frames, rest = divmod(file.getnframes(), 256)
        assert rest == 0 and 1 <= n_frames <= 30
        assert done.stderr.startswith(f"{name}.wav: {n_frames * 256 / 22050:.2f} s, ")
        assert done.stderr.endswith("stop\n" if n_frames == 30 else "itself\n")


def test_text_becomes_the_tokenizers_ids_or_is_refused(speaker, voice, exported, tmp_path):
    expected = voice.tokenizer.encode("a monkey's door: shut?").numpy()
    np.testing.assert_array_equal(speaker.encode("A monkey\u00df's door: shut?")[0], expected)
    flags = ["--folder", str(exported), "--output", str(tmp_path / "a.wav"), "--text", "\u2603 9"]
    with pytest.raises(SystemExit, match=r"^nothing to say: .+ of this voice$"):
        run_onnx.main(flags)
    folder = shutil.copytree(exported, tmp_path / "german")
    settings = json.loads((folder / "settings.json").read_text()) | {"language": "de"}
    (folder / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(SystemExit, match="this voice speaks IPA in braces"):
        run_onnx.main(["--folder", str(folder), *flags[2:-1], "Hallo"])
    with pytest.raises(SystemExit, match="phonemes in braces cannot be looked up"):
        run_onnx.main([*flags[:-1], "{T ER1 N} left"])
    with pytest.raises(SystemExit, match="there is no such folder"):
        run_onnx.main([*flags[:-1], "hello", "--output", str(tmp_path / "new/a.wav")])
    assert not (tmp_path / "a.wav").exists()


def test_a_second_export_replaces_the_first(checkpoint, exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "voice")
    export(checkpoint, folder, "--stop_threshold", "0.25")  # without --int8
    assert sorted(p.name for p in folder.iterdir()) == sorted({*FILES} - {FILES[5]})
    assert json.loads((folder / "settings.json").read_text())["stop_threshold"] == 0.25
    with pytest.raises(SystemExit, match=r"step\.int8\.onnx is missing"):
        run_onnx.main(["--folder", str(folder), "--text", "go", "--int8"])


def test_without_onnx_a_sentence_says_what_to_install(checkpoint, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SystemExit, match=r"package onnx: .*requirements/onnx.txt"):
        export(checkpoint, out)
    assert not out.exists()


def test_a_model_that_the_graphs_do_not_follow_is_refused(voice, tmp_path, monkeypatch):
    plain = Prenet.forward
    monkeypatch.setattr(Prenet, "forward", lambda *inputs: 1.01 * plain(*inputs))
    with pytest.raises(DataError, match="another mel than the model"):
        export_onnx.fill_folder(voice, tmp_path, False, 0.5)


def test_the_benchmark_writes_its_table(checkpoint, tiny_corpus, tmp_path, capsys):
    from benchmarks import onnx_speed

    onnx_speed.main(
        ["--checkpoint", str(checkpoint), "--repeats", "1", "--threads", "1", "--output_dir",
         str(tmp_path), "--path_to_manifest", str(tiny_corpus.test_manifest)]
    )  # fmt: skip
    with (tmp_path / "onnx_speed.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["ours", "onnxruntime float32", "onnxruntime int8"]
    assert len({row["n_frames"] for row in rows}) == 1 and int(rows[0]["n_frames"]) >= 1
    assert "ours / onnxruntime int8: " in capsys.readouterr().out
