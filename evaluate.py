"""Judges a checkpoint by what it says on its own, over a manifest.

    python evaluate.py --checkpoint work_dir/tacotron2/final_checkpoint \
        --path_to_manifest data/test_metadata.csv --output_json report.json \
        --output_csv clips.csv --save_worst worst

Free running and teacher forced: how sharp the alignment is (focus), which share of the characters
it visits (coverage), which share of its steps does not go back (monotonicity). Free running: which
share of the clips stops by itself, how their lengths compare with the recordings', one score of
all these, and how far the mel is from the recording's (mel-cepstral distortion). With a corpus
that knows when its words are spoken (`--word_times`, as make_demo_corpus.py writes it), also the
error of every word's start, beside that of a straight diagonal, which is what a fake alignment
scores.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import librosa.sequence
import numpy as np
import pandas as pd
import scipy.fft
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from arguments import DataError, check_writable, file_errors, path_argument, seed_argument
from dataset import AudioConfig, Batch, BatchSampler, TTSCollator, TTSDataset, to_log_mel
from model import InferenceOutput
from plotting import save_figure, summary_figure, write_whole
from synthesize import MAX_DECODER_STEPS, Voice, device_argument, load_checkpoint

ALIGNMENT_SCORES = ("focus", "coverage", "monotonicity")
COVERED = 0.5  # frames' worth of attention that counts a character as visited
LENGTH_TOLERANCE = 0.15  # share of the recording's length
N_CEPSTRA = 13  # c_1 to c_13; c_0 is loudness


def alignment_scores(
    alignments: Tensor, token_lengths: Tensor, mel_lengths: Tensor
) -> dict[str, Tensor]:
    """How well formed alignments are, per item; says nothing about whether they are true.

    Args:
        alignments: (B, T_mel, T_text).
        token_lengths, mel_lengths: (B,) int64.

    Returns:
        focus: mean over frames of the alignment's maximum, 1 is sharp; coverage: share of
        characters that get at least half a frame of attention; monotonicity: share of steps on
        which the arg-max does not go back. Each (B,).
    """
    alignments, token_lengths = alignments.float(), token_lengths.to(alignments.device)
    mel_lengths = mel_lengths.to(alignments.device)
    frames = torch.arange(alignments.shape[1], device=alignments.device)
    valid = frames < mel_lengths[:, None]  # (B, T_mel)
    maxima, positions = alignments.max(dim=2)  # (B, T_mel) both
    attention = (alignments * valid[:, :, None]).sum(dim=1)  # (B, T_text)
    forward = (positions.diff(dim=1) >= 0) & valid[:, 1:]
    return {
        "focus": (maxima * valid).sum(dim=1) / mel_lengths,
        "coverage": (attention >= COVERED).sum(dim=1) / token_lengths,
        "monotonicity": forward.sum(dim=1) / (mel_lengths - 1).clamp_min(1),
    }


def free_running_scores(output: InferenceOutput, token_lengths: Tensor) -> dict[str, Tensor]:
    """`alignment_scores` of free running, per item, with `stopped` and one `score`.

    The score is the product of all: near 0 when an item does not stop, babbles, skips or goes
    back, 0.5 to 0.8 when all is well.
    """
    scores = alignment_scores(output.alignments, token_lengths, output.mel_lengths)
    scores["stopped"] = (~output.reached_limit).float()
    scores["score"] = torch.stack(list(scores.values())).prod(dim=0)
    return scores


def mel_cepstral_distortion(mel: Tensor, reference: Tensor, audio_config: AudioConfig) -> float:
    """Mel-cepstral distortion in dB of a mel from its reference, under dynamic time warping.

    (10 / ln 10) sqrt(2 sum (c_k - c'_k)^2) over k = 1..13, mean over the frames that the path
    pairs with a frame of the reference, then over the reference's frames. (A mean over the whole
    path falls when a model that never stops adds what fits one silent frame: untrained models
    then score best.) c is the DCT-II of the natural-log mel, scaled to be the amplitudes of its
    cosines, so that the result is the root mean square in dB between two smoothed spectra.
    Comparable at the same sampling_rate, num_mels, n_fft, window_size, hop_size, fmin, fmax and
    min_db; not with figures of papers, whose cepstra come from other analyses.

    Args:
        mel, reference: (T_mel, num_mels) as audio_config scales them, of any two lengths.

    Raises:
        DataError: when a value is not finite.
    """
    log_mels = [to_log_mel(x.float().cpu(), audio_config).numpy() for x in (mel, reference)]
    if not all(np.isfinite(log_mel).all() for log_mel in log_mels):
        raise DataError("a mel holds values that are not finite: the model is broken")
    # An orthonormal transform of n values is sqrt(n / 2) times the cosines' amplitudes.
    spoken, recorded = (
        scipy.fft.dct(log_mel, norm="ortho", axis=1)[:, 1 : N_CEPSTRA + 1]
        * np.sqrt(2 / audio_config.num_mels)
        for log_mel in log_mels
    )  # (T_mel, 13) each
    at, of = librosa.sequence.dtw(spoken.T, recorded.T)[1].T  # the path's frames in each
    distances = 10 / np.log(10) * np.sqrt(2) * np.linalg.norm(spoken[at] - recorded[of], axis=1)
    return float(np.mean(np.bincount(of, distances) / np.bincount(of)))


def word_start_errors(
    alignment: Tensor, words: list[dict], hop_seconds: float
) -> tuple[list[float], list[float]]:
    """Seconds by which words start too late (positive) or too early, every word but the first.

    Args:
        alignment: (T_mel, T_text) of one utterance, without padding.
        words: {"word", "index" of its first character, "start" in seconds} in order.
        hop_seconds: from one frame to the next.

    Returns:
        The errors of the time at which the alignment's arg-max first reaches each word's first
        character (the clip's end when it never does), and those of a straight diagonal.
    """
    n_frames, n_text = alignment.shape
    positions = alignment.argmax(dim=1)  # (T_mel,)
    errors, diagonal_errors = [], []
    for word in words[1:]:
        reached = (positions >= word["index"]).nonzero()
        frame = reached[0].item() + 0.5 if len(reached) else n_frames  # the frame's middle
        errors.append(frame * hop_seconds - word["start"])
        diagonal_errors.append(word["index"] / n_text * n_frames * hop_seconds - word["start"])
    return errors, diagonal_errors


class Judged(NamedTuple):
    """One clip: its row of the table, and what the means and the picture are made of."""

    row: dict[str, Any]
    word_errors: list[float]  # seconds, teacher forced; see word_start_errors
    diagonal_errors: list[float]
    recording: Tensor  # (T_mel of the recording, num_mels)
    mel: Tensor  # (T_mel, num_mels), free running
    alignment: Tensor  # (T_mel, T_text), free running


@torch.no_grad()
def judge(
    voice: Voice,
    batch: Batch,
    max_decoder_steps: int,
    word_times: dict[str, list[dict]] | None,
) -> list[Judged]:
    """Speaks the clips of a batch freely and teacher forced, and scores each.

    Raises:
        DataError: when a mel is not finite.
    """
    device = next(voice.model.parameters()).device
    tokens, mels = batch.tokens.to(device), batch.mels.to(device)
    free = voice.model.infer(tokens, batch.token_lengths, max_decoder_steps)
    forced = voice.model(tokens, batch.token_lengths, mels, batch.mel_lengths)
    scores = {
        "forced": alignment_scores(forced.alignments, batch.token_lengths, batch.mel_lengths),
        "free": free_running_scores(free, batch.token_lengths),
    }
    judged = []
    for i, (text, path) in enumerate(zip(batch.texts, batch.paths, strict=True)):
        n_text, n_frames, n_spoken = (
            int(lengths[i])
            for lengths in (batch.token_lengths, batch.mel_lengths, free.mel_lengths)
        )
        recording, spoken = batch.mels[i, :n_frames], free.mels[i, :n_spoken].float().cpu()
        row = {
            "path": path,
            "text": text,
            "recording_frames": n_frames,
            "spoken_frames": n_spoken,
            "length_ratio": n_spoken / n_frames,
            "stopped": not free.reached_limit[i],
            **{
                f"{kind}_{name}": scores[kind][name][i].item()
                for kind in scores
                for name in ALIGNMENT_SCORES
            },
            "score": scores["free"]["score"][i].item(),
            "mcd_db": mel_cepstral_distortion(spoken, recording, voice.audio_config),
        }
        words = (word_times or {}).get(Path(path).stem, [])
        if len(voice.tokenizer.clean(text)) != len(text):
            words = []  # their indices count characters that the model does not see
        errors = word_start_errors(
            forced.alignments[i, :n_frames, :n_text].cpu(), words, voice.audio_config.hop_seconds
        )
        if word_times is not None:
            milliseconds = np.abs(errors[0]) * 1000
            row["word_start_median_ms"] = np.median(milliseconds) if errors[0] else None
        alignment = free.alignments[i, :n_spoken, :n_text].float().cpu()
        judged.append(Judged(row, *errors, recording, spoken, alignment))
    return judged


def make_report(rows: list[dict], errors: dict[str, list[float]] | None) -> dict[str, float]:
    """Means over the clips, and with word times the errors of all words, in seconds, by name."""
    table = pd.DataFrame(rows)
    close = (table["length_ratio"] - 1).abs() <= LENGTH_TOLERANCE
    report = {
        "clips": len(table),
        "stopped_by_itself": table["stopped"].mean(),
        "length_within_15_percent": (close & table["stopped"]).mean(),
        "length_ratio_median": table["length_ratio"].median(),
        "free_running_score": table["score"].mean(),
        **{name: table[f"forced_{name}"].mean() for name in ALIGNMENT_SCORES},
        **{f"free_{name}": table[f"free_{name}"].mean() for name in ALIGNMENT_SCORES},
        "mcd_db_mean": table["mcd_db"].mean(),
        "mcd_db_median": table["mcd_db"].median(),
    }
    for name, values in (errors or {}).items():
        milliseconds = np.abs(values) * 1000
        report[f"{name}_median_ms"] = np.median(milliseconds)
        report[f"{name}_p90_ms"] = np.percentile(milliseconds, 90)
        report["words"] = len(values)
    return {name: int(x) if name in ("clips", "words") else float(x) for name, x in report.items()}


def print_report(report: dict[str, float]) -> None:
    """The numbers as a table for people."""
    rows = [
        ("clips", f"{report['clips']}"),
        ("stopped by itself", f"{report['stopped_by_itself']:.1%}"),
        ("length within 15 % of the recording", f"{report['length_within_15_percent']:.1%}"),
        ("free-running score", f"{report['free_running_score']:.3f}"),
    ]
    for name in ALIGNMENT_SCORES:
        pair = f"{report[name]:.3f} / {report[f'free_{name}']:.3f}"
        rows.append((f"{name}, teacher forced / free running", pair))
    distortion = f"{report['mcd_db_median']:.2f} / {report['mcd_db_mean']:.2f} dB"
    rows.append(("mel-cepstral distortion, median / mean", distortion))
    if "words" in report:
        for name, label in (
            ("word_start", "word start error"),
            ("diagonal", "a straight diagonal"),
        ):
            pair = f"{report[f'{name}_median_ms']:.0f} / {report[f'{name}_p90_ms']:.0f} ms"
            rows.append((f"{label}, median / 90th percentile", pair))
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        print(f"{label:<{width}}  {value}")


def draw_worst(worst: list[Judged], voice: Voice, folder: str) -> None:
    """worst_1.png and so on, in place of older ones: both mels, and the spoken one's alignment."""
    for old in Path(folder).glob("worst_[0-9]*.png"):
        old.unlink()
    for number, clip in enumerate(worst, start=1):
        ending = "stopped by itself" if clip.row["stopped"] else "reached the limit"
        scores = f"score {clip.row['score']:.3f}, MCD {clip.row['mcd_db']:.2f} dB, {ending}"
        figure = summary_figure(
            clip.recording,
            clip.mel,
            clip.alignment,
            voice.tokenizer.decode(voice.tokenizer.encode(clip.row["text"])),
            voice.audio_config.hop_seconds,
            title=f"{Path(clip.row['path']).name}: {scores}",
        )
        save_figure(figure, Path(folder) / f"worst_{number}.png")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The flags; argparse ends the program on a mistake."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--checkpoint", type=path_argument, required=True, help="checkpoint folder")
    add("--path_to_manifest", type=path_argument, required=True, help="CSV of prep_splits.py")
    add("--word_times", type=path_argument, help="word_times.json of make_demo_corpus.py")
    add("--output_json", type=path_argument, help="file for the numbers")
    add("--output_csv", type=path_argument, help="file for a table with a row for each clip")
    worst_help = "folder for pictures of the worst clips"
    add("--save_worst", type=path_argument, metavar="DIR", help=worst_help)
    add("--worst", type=int, default=5, help="how many (default: %(default)s)")
    add("--batch_size", type=int, default=32)
    add("--max_decoder_steps", type=int, default=MAX_DECODER_STEPS)
    add("--seed", type=seed_argument, default=42, help="seed of the prenet's dropout")
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", type=device_argument, default=default_device)
    args = parser.parse_args(argv)
    for name in ("batch_size", "max_decoder_steps", "worst"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, found {getattr(args, name)}")
    return args


def read_word_times(path: str, clips: TTSDataset) -> dict[str, list[dict]]:
    """word_times.json: for the stem of each clip's name its words, see word_start_errors.

    Raises:
        DataError: when the file cannot be read, is of another form, or knows none of the clips.
    """
    try:
        word_times = json.loads(Path(path).read_text(encoding="utf-8"))
        for words in word_times.values():
            for word in words:
                float(word["start"]), word["index"] >= 0
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"--word_times {path}: cannot be read ({reason})") from None
    if not any(word_times.get(Path(clip).stem, [])[1:] for clip in clips.paths):
        raise DataError(f"--word_times {path}: knows no word of these clips")
    return word_times


def check_outputs(args: argparse.Namespace) -> None:
    """Finds out before the work whether what it gives can be written.

    Raises:
        DataError: naming the flag whose file or folder cannot be.
    """
    for name in ("output_json", "output_csv"):
        path = getattr(args, name)
        if path and os.path.isdir(path):
            raise DataError(f"--{name} {path}: is a folder, not a file")
        if path:
            check_writable(f"--{name}", Path(path).absolute().parent)
    if args.save_worst:
        check_writable("--save_worst", args.save_worst)


def run(args: argparse.Namespace) -> dict[str, float]:
    """The report of `args`, also written to where its flags say.

    Raises:
        DataError: when a file cannot be used or not be written.
    """
    check_outputs(args)
    voice = load_checkpoint(args.checkpoint, args.device)
    clips = TTSDataset(args.path_to_manifest, voice.audio_config, voice.tokenizer)
    word_times = read_word_times(args.word_times, clips) if args.word_times else None
    batches = DataLoader(
        clips,
        batch_sampler=BatchSampler(clips.n_frames, args.batch_size, shuffle=False),
        collate_fn=TTSCollator(voice.audio_config, voice.tokenizer),
    )
    torch.manual_seed(args.seed)
    rows: list[dict] = []
    errors: dict[str, list[float]] = {"word_start": [], "diagonal": []}
    worst: list[Judged] = []  # no more than are drawn: a manifest's mels may not fit in memory
    for batch in batches:
        judged = judge(voice, batch, args.max_decoder_steps, word_times)
        for clip in judged:
            rows.append(clip.row)
            errors["word_start"] += clip.word_errors
            errors["diagonal"] += clip.diagonal_errors
        worst += judged
        worst = sorted(worst, key=lambda clip: (clip.row["score"], -clip.row["mcd_db"]))
        worst = worst[: args.worst]
    if word_times is not None and not errors["word_start"]:
        raise DataError("--word_times knows no word of these clips")
    report = make_report(rows, errors if word_times is not None else None)
    with file_errors():
        if args.output_json:
            text = json.dumps(report, indent=2)
            write_whole(args.output_json, lambda path: path.write_text(text, encoding="utf-8"))
        if args.output_csv:
            write_whole(args.output_csv, lambda path: pd.DataFrame(rows).to_csv(path, index=False))
        if args.save_worst:
            draw_worst(worst, voice, args.save_worst)
    return report


def main(argv: list[str] | None = None) -> None:
    """Runs with these flags (default: the command line's); bad input ends in one sentence."""
    args = parse_args(argv)
    try:
        print_report(run(args))
    except DataError as error:
        sys.exit(f"evaluate.py: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
