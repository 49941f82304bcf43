"""Writes what jik876/hifi-gan's fine-tuning reads: mels, wavs and filelists of whole manifests.

    python export_mels.py --checkpoint work_dir/tacotron2/final_checkpoint \
        --path_to_manifest data/train_metadata.csv data/test_metadata.csv --output_dir mels

In --output_dir: for each clip ID.npy, the natural-log mel, float32, (num_mels, n_samples //
hop_size), and wavs/ID.wav, the recording as it was read, 16-bit at the checkpoint's sampling rate;
for each manifest a filelist of lines ID|text, named after it. In HiFi-GAN's folder, then:

    python train.py --fine_tuning True --config config_v1.json \
        --input_mels_dir mels --input_wavs_dir mels/wavs \
        --input_training_file mels/train_metadata.txt --input_validation_file mels/test_metadata.txt

The mels are the checkpoint's, teacher forced, so that each frame belongs to the samples of the
recording; with --source recording they are the recordings' own. A call that was stopped goes on
where it was. A clip that fails is named at the end, and the exit code is 1.
"""

import argparse
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from command_line.files import (
    DataError,
    check_writable,
    count_argument,
    file_errors,
    path_argument,
    read_json,
    seed_argument,
    write_whole,
)
from command_line.flags import FlagParser
from dataset import (
    AudioConfig,
    BatchSampler,
    TTSCollator,
    TTSDataset,
    Utterance,
    audio_to_mel,
    clamp_mel,
    load_wav,
    to_log_mel,
    write_wav,
)
from speech.hub import find_checkpoint
from speech.voice import WEIGHTS_FILE, Voice, device_argument, load_checkpoint
from training.config import MAX_WORKERS
from training.processes import read_groups

SOURCES = ("teacher_forced", "recording")
SETTINGS_FILE = "export.json"  # what the mels in the folder are of
# HiFi-GAN draws a segment's start below frames - segment - 1, which fails for a clip that is not
# longer than a segment; a shorter clip it fills up with zeros, which are no silence in a log mel.
SEGMENT_SAMPLES = 8192  # of the segments in HiFi-GAN's configs


class Clip(NamedTuple):
    """A clip as it was read; what failed, and nothing else, where it could not be."""

    path: str
    utterance: Utterance | None = None
    wav: Tensor | None = None  # (n_samples,)
    failure: str = ""


class Clips(Dataset):
    """The clips of a TTSDataset with their wavs."""

    def __init__(self, clips: TTSDataset) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Clip:
        path, text, audio_config = (
            self.clips.paths[index], self.clips.texts[index], self.clips.audio_config
        )  # fmt: skip
        try:
            wav = load_wav(path, audio_config.sampling_rate)
            mel = audio_to_mel(wav, audio_config)
        except DataError as error:
            return Clip(path, failure=f"{path}: {str(error).removeprefix(f'{path}: ')}")
        return Clip(path, Utterance(self.clips.tokenizer.encode(text), mel, text, path), wav)


@torch.no_grad()
def make_mels(voice: Voice, utterances: list[Utterance], source: str) -> list[Tensor]:
    """The mel (T_mel, num_mels), scaled, of each; as long as that of its recording."""
    if source == "recording":
        return [utterance.mel for utterance in utterances]
    batch = TTSCollator(voice.audio_config, voice.tokenizer)(utterances)
    on_device = batch.to(next(voice.model.parameters()).device)
    output = voice.model(*on_device[:4])  # tokens, token_lengths, mels, mel_lengths
    return [
        clamp_mel(mel[:n].float(), voice.audio_config).cpu()
        for mel, n in zip(output.mels_after, batch.mel_lengths.tolist(), strict=True)
    ]


def write_clip(mel: Tensor, clip: Clip, audio_config: AudioConfig, output_dir: Path) -> None:
    """wavs/ID.wav, then ID.npy, which says that the clip is done.

    Raises:
        DataError: when mel and wav do not fit, or the mel is not finite.
        OSError: when one cannot be written.
    """
    a, stem = audio_config, Path(clip.path).stem
    if len(mel) != len(clip.wav) // a.hop_size:
        raise DataError(f"{len(mel)} frames are not those of {len(clip.wav)} samples")
    if not torch.isfinite(mel).all():
        raise DataError("its mel holds values that are not finite")
    write_wav(output_dir / "wavs" / f"{stem}.wav", clip.wav, a.sampling_rate)
    content = io.BytesIO()
    np.save(content, to_log_mel(mel, a).t().contiguous().numpy().astype(np.float32))
    write_whole(output_dir / f"{stem}.npy", lambda path: path.write_bytes(content.getvalue()))


def is_done(path: str, output_dir: Path) -> bool:
    """Whether a recording's clip has been written, by this call or one before."""
    stem = Path(path).stem
    return (output_dir / f"{stem}.npy").is_file() and (output_dir / f"wavs/{stem}.wav").is_file()


def check_names(paths: Iterable[str]) -> None:
    """HiFi-GAN knows a clip by its file's name alone.

    Raises:
        DataError: naming two clips of one name, or one whose name would end in a filelist.
    """
    seen: dict[str, str] = {}
    for path in paths:
        stem = Path(path).stem
        if "|" in stem or len(stem.splitlines()) != 1:
            raise DataError(f"{path!r}: a filelist cannot hold this name, as | ends its column")
        if seen.setdefault(stem, path) != path:
            raise DataError(f"{path} and {seen[stem]} have one name, and would have one mel")


def claim_folder(output_dir: Path, settings: dict[str, object]) -> None:
    """Notes in a new folder what its mels are of, and holds an older one against it.

    Raises:
        DataError: when the folder has mels of something else, or cannot be written to.
    """
    path = output_dir / SETTINGS_FILE
    if os.path.isfile(path):
        found = read_json(path, str(path))
        if found != settings:
            raise DataError(
                f"--output_dir {output_dir}: holds mels of {found}, and these would be of "
                f"{settings}; give another one"
            )
        return
    check_writable("--output_dir", output_dir)
    with file_errors():
        text = json.dumps(settings, indent=2)
        write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def export(
    clips: TTSDataset, voice: Voice, output_dir: Path, args: argparse.Namespace
) -> list[str]:
    """Writes what a manifest's clips lack of their mels and wavs; a phrase for each that fails.

    Raises:
        DataError: when a loader process died.
    """
    left = [i for i, path in enumerate(clips.paths) if not is_done(path, output_dir)]
    lengths = [clips.n_frames[i] for i in left]
    batches = BatchSampler(lengths, args.batch_size, shuffle=False) if left else []
    loader = DataLoader(
        Clips(clips),
        batch_sampler=[[left[i] for i in batch] for batch in batches],
        collate_fn=list,
        num_workers=args.num_workers,
    )
    failures = []
    bar = tqdm(total=len(clips), initial=len(clips) - len(left), unit="clip", disable=None)
    for group in read_groups(loader, 1):
        if isinstance(group, DataError):
            raise group
        read = [clip for clip in group[0] if clip.utterance]
        failures += [clip.failure for clip in group[0] if clip.failure]
        mels = make_mels(voice, [clip.utterance for clip in read], args.source) if read else []
        for mel, clip in zip(mels, read, strict=True):
            try:
                write_clip(mel, clip, voice.audio_config, output_dir)
            except (DataError, OSError) as error:
                failures.append(f"{clip.path}: {error}")
        bar.update(len(group[0]))
    bar.close()
    return failures


def write_filelist(clips: TTSDataset, output_dir: Path, name: str) -> int:
    """NAME.txt with ID|text of the clips that are there and longer than one of HiFi-GAN's segments.

    Returns:
        How many are there and too short.

    Raises:
        OSError: when it cannot be written.
    """
    hop_size, lines, n_short = clips.audio_config.hop_size, [], 0
    for path, text in zip(clips.paths, clips.texts, strict=True):
        if is_done(path, output_dir):
            stem = Path(path).stem
            n_frames = np.load(output_dir / f"{stem}.npy", mmap_mode="r").shape[1]
            if n_frames > -(-SEGMENT_SAMPLES // hop_size):
                lines.append(f"{stem}|{' '.join(text.split())}\n")
            else:
                n_short += 1
    content = "".join(lines)
    write_whole(output_dir / f"{name}.txt", lambda path: path.write_text(content, encoding="utf-8"))
    return n_short


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The flags; argparse ends the program on a mistake."""
    parser = FlagParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    checkpoint_help = "checkpoint folder, or USER/NAME of the Hub"
    add("--checkpoint", type=path_argument, required=True, help=checkpoint_help)
    manifest_help = "CSVs of prep_splits.py, each of which gets a filelist"
    add("--path_to_manifest", type=path_argument, nargs="+", required=True, help=manifest_help)
    output_help = "folder for the mels, wavs and filelists; what it has is not made again"
    add("--output_dir", type=path_argument, required=True, help=output_help)
    source_help = "the checkpoint's mels, or the recordings' own (default: %(default)s)"
    add("--source", choices=SOURCES, default=SOURCES[0], help=source_help)
    batch_help = "clips at once (default: %(default)s)"
    add("--batch_size", type=count_argument, default=32, help=batch_help)
    workers_help = "processes that read recordings; with 0, the one that runs the model does"
    workers_help += " (default: %(default)s)"
    add("--num_workers", type=worker_argument, default=2, help=workers_help)
    seed_help = "of the prenet's dropout (default: %(default)s)"
    add("--seed", type=seed_argument, default=42, help=seed_help)
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    device_help = "such as cpu, cuda or cuda:1 (default: cuda where there is one)"
    add("--device", type=device_argument, default=default_device, help=device_help)
    return parser.parse_args(argv)


def worker_argument(value: str) -> int:
    """argparse type: a number of processes."""
    return count_argument(value, least=0, most=MAX_WORKERS)


def run(args: argparse.Namespace) -> list[str]:
    """Exports every manifest; a phrase for each clip that failed.

    Raises:
        DataError: when a file or folder cannot be used.
    """
    output_dir = Path(args.output_dir)
    checkpoint = find_checkpoint(args.checkpoint)
    voice = load_checkpoint(checkpoint, args.device)
    names = [Path(path).stem for path in args.path_to_manifest]
    if len({*names}) < len(names):
        raise DataError("--path_to_manifest: two have one name, and would have one filelist")
    manifests = [
        TTSDataset(path, voice.audio_config, voice.tokenizer) for path in args.path_to_manifest
    ]
    check_names(path for clips in manifests for path in clips.paths)
    weights = (checkpoint / WEIGHTS_FILE).read_bytes()
    sha256 = hashlib.sha256(weights).hexdigest()
    claim_folder(output_dir, {"source": args.source, "weights_sha256": sha256})
    torch.manual_seed(args.seed)
    failures = []
    for clips, name in zip(manifests, names, strict=True):
        failed = export(clips, voice, output_dir, args)
        with file_errors():
            n_short = write_filelist(clips, output_dir, name)
        n_done = len(clips) - len(failed)
        said = f"{output_dir / name}.txt: {n_done - n_short} of {len(clips)} clips"
        if n_short:
            said += f"; {n_short} are not longer than {SEGMENT_SAMPLES} samples, HiFi-GAN's segment"
        print(said)
        failures += failed
    return failures


def main(argv: list[str] | None = None) -> None:
    """Runs with these flags (default: the command line's); bad input ends in one sentence."""
    args = parse_args(argv)
    try:
        failures = run(args)
    except DataError as error:
        sys.exit(f"export_mels.py: {' '.join(str(error).split())}")
    for failure in failures:
        print(f"export_mels.py: {' '.join(failure.split())}", file=sys.stderr)
    if failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
