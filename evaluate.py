"""Judges a checkpoint by what it says on its own, over a manifest.

    python evaluate.py --checkpoint work_dir/tacotron2/final_checkpoint \
        --path_to_manifest data/test_metadata.csv --output_json report.json

Free running: which share of the clips stops by itself, and how their lengths compare with the
recordings'. Teacher forced: how sharp the alignment is (focus), which share of the characters it
visits (coverage), which share of its steps does not go back (monotonicity). With a corpus that
knows when its words are spoken (`--word_times`, as make_demo_corpus.py writes it), also the error
of every word's start, beside that of a straight diagonal, which is what a fake alignment scores.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dataset import BatchSampler, DataError, TTSCollator, TTSDataset
from model import InferenceOutput
from synthesize import (
    MAX_DECODER_STEPS,
    Voice,
    check_writable,
    device_argument,
    load_checkpoint,
    path_argument,
    seed_argument,
)
from tokenizer import clean_text

COVERED = 0.5  # frames' worth of attention that counts a character as visited
LENGTH_TOLERANCE = 0.15  # share of the recording's length


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


def evaluate_teacher_forced(
    voice: Voice, batches: DataLoader, word_times: dict[str, list[dict]] | None
) -> dict[str, float]:
    """Alignment scores, and word-start errors where word times are known."""
    device = next(voice.model.parameters()).device
    scores: dict[str, list[float]] = {"focus": [], "coverage": [], "monotonicity": []}
    errors: list[float] = []
    diagonal_errors: list[float] = []
    for batch in batches:
        with torch.no_grad():
            output = voice.model(
                batch.tokens.to(device), batch.token_lengths, batch.mels.to(device),
                batch.mel_lengths,
            )  # fmt: skip
        alignments = output.alignments.cpu()
        for name, values in alignment_scores(
            alignments, batch.token_lengths, batch.mel_lengths
        ).items():
            scores[name] += values.tolist()
        for i, (text, path) in enumerate(zip(batch.texts, batch.paths, strict=True)):
            words = (word_times or {}).get(Path(path).stem, [])
            if len(clean_text(text)) != len(text):
                continue  # the indices of its words count characters that the model does not see
            alignment = alignments[i, : batch.mel_lengths[i], : batch.token_lengths[i]]
            of_clip = word_start_errors(alignment, words, voice.audio_config.hop_seconds)
            errors += of_clip[0]
            diagonal_errors += of_clip[1]
    result = {name: float(np.mean(values)) for name, values in scores.items()}
    if word_times is not None:
        if not errors:
            raise DataError("--word_times knows no word of these clips")
        for name, values in (("word_start", errors), ("diagonal", diagonal_errors)):
            milliseconds = np.abs(values) * 1000
            result[f"{name}_median_ms"] = float(np.median(milliseconds))
            result[f"{name}_p90_ms"] = float(np.percentile(milliseconds, 90))
        result["words"] = len(errors)
    return result


def evaluate_free_running(
    voice: Voice, batches: DataLoader, max_decoder_steps: int
) -> dict[str, float]:
    """Which share of the clips stops by itself, and at about the recording's length."""
    device = next(voice.model.parameters()).device
    stopped: list[bool] = []
    ratios: list[float] = []
    scores: list[float] = []
    for batch in batches:
        output = voice.model.infer(batch.tokens.to(device), batch.token_lengths, max_decoder_steps)
        stopped += (~output.reached_limit).tolist()
        scores += free_running_scores(output, batch.token_lengths)["score"].tolist()
        ratios += (output.mel_lengths.cpu() / batch.mel_lengths).tolist()
    close = np.abs(np.array(ratios) - 1) <= LENGTH_TOLERANCE
    return {
        "clips": len(stopped),
        "stopped_by_itself": float(np.mean(stopped)),
        "length_within_15_percent": float(np.mean(close & np.array(stopped))),
        "free_running_score": float(np.mean(scores)),
        "length_ratio_median": float(np.median(ratios)),
    }


def print_report(report: dict[str, float]) -> None:
    """The numbers as a table for people."""
    rows = [
        ("clips", f"{report['clips']}"),
        ("stopped by itself", f"{report['stopped_by_itself']:.1%}"),
        ("length within 15 % of the recording", f"{report['length_within_15_percent']:.1%}"),
        ("free-running score", f"{report['free_running_score']:.3f}"),
        ("alignment focus", f"{report['focus']:.3f}"),
        ("alignment coverage", f"{report['coverage']:.3f}"),
        ("alignment monotonicity", f"{report['monotonicity']:.3f}"),
    ]
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


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--checkpoint", type=path_argument, required=True, help="checkpoint folder")
    add("--path_to_manifest", type=path_argument, required=True, help="CSV of prep_splits.py")
    add("--word_times", type=path_argument, help="word_times.json of make_demo_corpus.py")
    add("--output_json", type=path_argument, help="file for the numbers")
    add("--batch_size", type=int, default=32)
    add("--max_decoder_steps", type=int, default=MAX_DECODER_STEPS)
    add("--seed", type=seed_argument, default=42, help="seed of the prenet's dropout")
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", type=device_argument, default=default_device)
    args = parser.parse_args(argv)
    for name in ("batch_size", "max_decoder_steps"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, found {getattr(args, name)}")
    return args


def read_word_times(path: str, clips: TTSDataset) -> dict[str, list[dict]]:
    """The words of each clip, {"word", "index" of its first character, "start" in seconds}.

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


def check_output(path: str) -> None:
    """Finds out before the work whether --output_json can be written. Raises DataError."""
    if Path(path).is_dir():
        raise DataError(f"--output_json {path}: is a folder, not a file")
    check_writable("--output_json", Path(path).absolute().parent)


def run(args: argparse.Namespace) -> dict[str, float]:
    """The report of `args`, also written to --output_json."""
    if args.output_json:
        check_output(args.output_json)
    voice = load_checkpoint(args.checkpoint, args.device)
    clips = TTSDataset(args.path_to_manifest, voice.audio_config, voice.tokenizer)
    word_times = read_word_times(args.word_times, clips) if args.word_times else None
    batches = DataLoader(
        clips,
        batch_sampler=BatchSampler(clips.n_frames, args.batch_size, shuffle=False),
        collate_fn=TTSCollator(voice.audio_config, voice.tokenizer),
    )
    torch.manual_seed(args.seed)
    report = {
        **evaluate_free_running(voice, batches, args.max_decoder_steps),
        **evaluate_teacher_forced(voice, batches, word_times),
    }
    if args.output_json:
        path = Path(args.output_json)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(json.dumps(report, indent=2))
        os.replace(temporary, path)
    return report


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        print_report(run(args))
    except (ValueError, OSError) as error:
        sys.exit(f"evaluate.py: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
