"""Export mels, wavs and filelists of whole manifests, to fine-tune jik876/hifi-gan on them.

    python export_mels.py --checkpoint work_dir/tacotron2/final_checkpoint \
        --path_to_manifest data/train_metadata.csv data/test_metadata.csv --output_dir mels

For each clip the script writes to --output_dir ID.npy, the natural-log mel, float32, (num_mels,
n_samples // hop_size), and wavs/ID.wav, the recording, 16-bit at the checkpoint's sampling rate.
For each manifest it writes a filelist of lines ID|text, named after it. Then, in HiFi-GAN's folder:

    python train.py --fine_tuning True --config config_v1.json \
        --input_mels_dir mels --input_wavs_dir mels/wavs \
        --input_training_file mels/train_metadata.txt --input_validation_file mels/test_metadata.txt

The checkpoint makes the mels by teacher forcing, so that each frame belongs to the samples of the
recording, and sharpens them as in speaking (speech/contrast.py); with --source recording they are
the recordings' own. If the export is interrupted, the same command continues it.
"""

import argparse
import hashlib
import io
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from command_line.files import (
    DataError,
    check_writable,
    count_argument,
    file_errors,
    path_argument,
    read_json,
    seed_argument,
    write_text,
    write_whole,
)
from command_line.flags import FlagParser
from command_line.main import say, script
from dataset import (
    AudioConfig,
    TTSCollator,
    TTSDataset,
    Utterance,
    load_wav,
    to_log_mel,
    write_wav,
)
from speech.contrast import sharpen
from speech.hub import find_checkpoint
from speech.voice import WEIGHTS_FILE, Voice, add_device_flag, load_checkpoint

SOURCES = ("teacher_forced", "recording")
SETTINGS_FILE = "export.json"  # records where the mels in the folder come from
# HiFi-GAN cuts segments of this length out of the clips. It fails on a clip of exactly this length
# in frames, and pads a shorter one with zeros, which are not silence in a log mel.
SEGMENT_SAMPLES = 8192


@torch.no_grad()
def make_mels(voice: Voice, utterances: list[Utterance], source: str) -> list[Tensor]:
    """Return the scaled mel (T_mel, num_mels) of each clip, as long as that of its recording."""
    if source == "recording":
        return [utterance.mel for utterance in utterances]
    batch = TTSCollator(voice.audio_config, voice.tokenizer)(utterances)
    batch = batch.to(next(voice.model.parameters()).device)
    output = voice.model(batch.tokens, batch.token_lengths, batch.mels, batch.mel_lengths)
    return [
        sharpen(mel[:n], voice.audio_config, voice.contrast).cpu()
        for mel, n in zip(output.mels_after, batch.mel_lengths.tolist(), strict=True)
    ]


def mel_path(recording: str, output_dir: Path) -> Path:
    return output_dir / f"{Path(recording).stem}.npy"


def wav_path(recording: str, output_dir: Path) -> Path:
    return output_dir / "wavs" / f"{Path(recording).stem}.wav"


@file_errors()
def write_clip(mel: Tensor, path: str, audio_config: AudioConfig, output_dir: Path) -> None:
    """Write a clip's wav, then its mel; nothing is left of a file that cannot be written."""
    wav = load_wav(path, audio_config.sampling_rate)
    write_wav(wav_path(path, output_dir), wav, audio_config.sampling_rate)
    content = io.BytesIO()
    np.save(content, to_log_mel(mel, audio_config).t().contiguous().numpy())
    write_whole(mel_path(path, output_dir), lambda file: file.write_bytes(content.getvalue()))


def is_exported(recording: str, n_frames: int, output_dir: Path) -> bool:
    """Tell if a clip's files are there, and are of this recording: as long, and not older."""
    mel, wav = mel_path(recording, output_dir), wav_path(recording, output_dir)
    if not (mel.is_file() and wav.is_file()):
        return False
    is_older = mel.stat().st_mtime < Path(recording).stat().st_mtime
    try:
        return not is_older and abs(np.load(mel, mmap_mode="r").shape[1] - n_frames) <= 1
    except (EOFError, ValueError):  # cut short, as by a power failure
        return False


def export_manifest(
    clips: TTSDataset, voice: Voice, output_dir: Path, args: argparse.Namespace
) -> None:
    """Write the mels and wavs of a manifest's clips that are not there yet."""
    pairs = enumerate(zip(clips.paths, clips.n_frames, strict=True))
    missing = [i for i, clip in pairs if not is_exported(*clip, output_dir)]
    missing.sort(key=lambda i: clips.n_frames[i], reverse=True)  # little padding, peak memory first
    with (
        ThreadPoolExecutor(max(1, args.num_workers)) as pool,
        tqdm(total=len(clips), initial=len(clips) - len(missing), unit="clip", disable=None) as bar,
    ):
        for start in range(0, len(missing), args.batch_size):
            utterances = list(pool.map(clips.__getitem__, missing[start : start + args.batch_size]))
            mels = make_mels(voice, utterances, args.source)
            for mel, utterance in zip(mels, utterances, strict=True):
                write_clip(mel, utterance.path, voice.audio_config, output_dir)
            bar.update(len(utterances))


@file_errors()
def write_filelist(clips: TTSDataset, output_dir: Path, name: str) -> None:
    """Write NAME.txt: a line ID|text for each clip that is longer than HiFi-GAN's segments."""
    lines = []
    for path, text in zip(clips.paths, clips.texts, strict=True):
        n_frames = np.load(mel_path(path, output_dir), mmap_mode="r").shape[1]
        if n_frames > -(-SEGMENT_SAMPLES // clips.audio_config.hop_size):
            lines.append(f"{Path(path).stem}|{' '.join(text.split())}\n")
    filelist = output_dir / f"{name}.txt"
    write_text(filelist, "".join(lines))
    summary = f"{filelist}: {len(lines)} of {len(clips)} clips"
    if n_short := len(clips) - len(lines):
        summary += f"; {n_short} are not longer than {SEGMENT_SAMPLES} samples, HiFi-GAN's segment"
    say(summary)


def check_names(paths: Iterable[str]) -> None:
    """Refuse names that two recordings share, as HiFi-GAN knows clips by name, or that hold a |."""
    seen: dict[str, str] = {}
    for path in paths:
        stem = Path(path).stem
        if "|" in stem or len(stem.splitlines()) != 1:
            raise DataError(f"{path!r}: a filelist cannot hold this name, as | ends its column")
        if seen.setdefault(stem, path) != path:
            raise DataError(f"{path} and {seen[stem]} have the same name and would share one mel")


@file_errors()
def claim_folder(output_dir: Path, settings: dict[str, object], names: Iterable[str]) -> None:
    """Note in a new folder where its mels come from; refuse one with other mels or a user's files.

    Args:
        names: of the filelists.
    """
    path = output_dir / SETTINGS_FILE
    if os.path.isfile(path):
        found = read_json(path)
        if found != settings:
            message = f"holds mels of {found}, and these would be of {settings}"
            raise DataError(f"--output_dir {output_dir}: {message}; give another one")
        return
    for name in ("wavs", *(f"{name}.txt" for name in names)):
        if os.path.lexists(output_dir / name):  # as a corpus has
            message = f"has {name} already, which no export has written"
            raise DataError(f"--output_dir {output_dir}: {message}; give another one")
    check_writable("--output_dir", output_dir)
    write_text(path, json.dumps(settings, indent=2))


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse the flags."""
    parser = FlagParser(description=__doc__.split("\n")[0])
    path = {"type": path_argument, "required": True}
    parser.add("--checkpoint", "checkpoint folder, or USER/NAME of the Hub", **path)
    manifest_help = "CSVs of prep_splits.py, each of which gets a filelist"
    parser.add("--path_to_manifest", manifest_help, nargs="+", **path)
    parser.add("--output_dir", "folder for mels, wavs and filelists; clips it has are kept", **path)
    source_help = "the checkpoint's mels, or the recordings' own"
    parser.add("--source", source_help, choices=SOURCES, default=SOURCES[0])
    parser.add("--batch_size", "clips per batch", type=count_argument, default=32)
    n_workers = partial(count_argument, least=0)
    parser.add("--num_workers", "recordings to read at once", type=n_workers, default=2)
    parser.add("--seed", "seed of the prenet's dropout", type=seed_argument, default=42)
    add_device_flag(parser)
    return parser.parse_args(argv)


@script
def main(argv: list[str] | None = None) -> None:
    """Export every manifest; stop at a clip that cannot be read."""
    args = parse_args(argv)
    output_dir = Path(args.output_dir)
    checkpoint = find_checkpoint(args.checkpoint)
    voice = load_checkpoint(checkpoint, args.device)
    names = [Path(path).stem for path in args.path_to_manifest]
    if len({*names}) < len(names):
        raise DataError("--path_to_manifest: two have the same name and would share one filelist")
    manifests = [
        TTSDataset(path, voice.audio_config, voice.tokenizer) for path in args.path_to_manifest
    ]
    check_names(path for clips in manifests for path in clips.paths)
    sha256 = hashlib.sha256((checkpoint / WEIGHTS_FILE).read_bytes()).hexdigest()
    audio_sha256 = hashlib.sha256(repr(voice.audio_config).encode()).hexdigest()
    settings = {"source": args.source, "weights_sha256": sha256, "audio_sha256": audio_sha256}
    if voice.contrast and args.source == "teacher_forced":
        settings["contrast_sha256"] = hashlib.sha256(repr(voice.contrast).encode()).hexdigest()
    claim_folder(output_dir, settings, names)
    torch.manual_seed(args.seed)
    for clips, name in zip(manifests, names, strict=True):
        export_manifest(clips, voice, output_dir, args)
        write_filelist(clips, output_dir, name)


if __name__ == "__main__":
    main()
