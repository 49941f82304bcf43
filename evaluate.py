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
scores. `--asr` has a speech recognizer hear it, see recognition.py.
"""

import argparse
import json
import os
import platform
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
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
from dataset import Batch, BatchSampler, TTSCollator, TTSDataset, write_wav
from scoring.recognition import add_recognition, hear, load_recognizer, recognition_table
from scoring.scores import (
    ALIGNMENT_SCORES,
    FREE_RUNNING_SCORES,
    alignment_scores,
    free_running_limit,
    free_running_scores,
    mel_cepstral_distortion,
    word_start_errors,
)
from speech.speaking import MAX_DECODER_STEPS
from speech.vocoder import Vocoder, load_vocoder, to_audio
from speech.voice import Voice, device_argument, load_checkpoint

LENGTH_TOLERANCE = 0.15  # share of the recording's length
N_RESAMPLES = 1000  # of the bootstrap


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
    limit = free_running_limit(mels.shape[1], max_decoder_steps)
    free = voice.model.infer(tokens, batch.token_lengths, limit)
    forced = voice.model(tokens, batch.token_lengths, mels, batch.mel_lengths)
    scores = {
        **alignment_scores(forced.alignments, batch.token_lengths, batch.mel_lengths),
        **free_running_scores(free, batch.token_lengths),
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
            **{name: values[i].item() for name, values in scores.items()},
            "mcd_db": mel_cepstral_distortion(spoken, recording, voice.audio_config),
        }
        words = (word_times or {}).get(Path(path).stem, [])
        said = voice.tokenizer.clean(text)  # whose characters the indices count
        if n_text != len(said) or not are_of(words, text, said):
            words = []
        errors = word_start_errors(
            forced.alignments[i, :n_frames, :n_text].cpu(), words, voice.audio_config.hop_seconds
        )
        if word_times is not None:
            milliseconds = np.abs(errors[0]) * 1000
            row["word_start_median_ms"] = np.median(milliseconds) if errors[0] else None
        alignment = free.alignments[i, :n_spoken, :n_text].float().cpu()
        judged.append(Judged(row, *errors, recording, spoken, alignment))
    return judged


def are_of(words: list[dict], text: str, said: str) -> bool:
    """Whether words of word_times.json count the characters of a text as it is spoken (said).

    Those of make_demo_corpus.py count the text as it stands, which is the same where no number or
    abbreviation makes it longer. Those of extras/align_words.py stand where they say.
    """
    if len(text) == len(said):
        return True
    return all(said.startswith(word.get("word", "?"), word["index"]) for word in words)


def make_report(
    rows: list[dict], errors: dict[str, list[list[float]]] | None
) -> dict[str, float | int]:
    """Means over the clips, and with word times the errors of all words.

    Args:
        rows: one for each clip, as `judge` makes them.
        errors: by name, the errors of each clip's words in seconds, clip by clip.
    """
    report = {"clips": len(rows), **summarize(*make_arrays(rows, errors))}
    if errors:
        report["words"] = sum(map(len, errors["word_start"]))
    return report


def make_intervals(
    rows: list[dict], errors: dict[str, list[list[float]]] | None, seed: int
) -> dict[str, list[float]]:
    """95 % bootstrap intervals, [low, high], of the numbers that `make_report` makes of the same.

    Whole clips are drawn with replacement, because the words of one clip are not independent.
    """
    columns, words = make_arrays(rows, errors)
    generator, drawn = np.random.default_rng(seed), []
    for _ in range(N_RESAMPLES):
        picked = generator.integers(len(rows), size=len(rows))
        drawn.append(
            summarize(
                {name: values[picked] for name, values in columns.items()},
                {name: [clips[i] for i in picked] for name, clips in words.items()},
            )
        )
    return {
        name: np.nanpercentile([report[name] for report in drawn], [2.5, 97.5]).tolist()
        for name in drawn[0]
    }


def make_arrays(
    rows: list[dict], errors: dict[str, list[list[float]]] | None
) -> tuple[dict[str, np.ndarray], dict[str, list[np.ndarray]]]:
    """What `summarize` takes: by name, the numbers of all clips, and of each clip's words."""
    names = ("length_ratio", *ALIGNMENT_SCORES, *FREE_RUNNING_SCORES, "mcd_db")
    columns = {name: np.array([row[name] for row in rows], dtype=float) for name in names}
    words = {name: [np.abs(clip) * 1000 for clip in x] for name, x in (errors or {}).items()}
    return columns, words


def summarize(
    columns: dict[str, np.ndarray], words: dict[str, list[np.ndarray]]
) -> dict[str, float]:
    """Means, medians and 90th percentiles over clips, and over words in milliseconds."""
    close = np.abs(columns["length_ratio"] - 1) <= LENGTH_TOLERANCE
    report = {
        "length_within_15_percent": (close & (columns["stopped_by_itself"] == 1)).mean(),
        "length_ratio_median": np.median(columns["length_ratio"]),
        **{name: columns[name].mean() for name in (*ALIGNMENT_SCORES, *FREE_RUNNING_SCORES)},
        "mcd_db_mean": columns["mcd_db"].mean(),
        "mcd_db_median": np.median(columns["mcd_db"]),
    }
    for name, clips in words.items():
        milliseconds = np.concatenate(clips)
        if not len(milliseconds):  # clips without a word that can be judged
            milliseconds = np.array([np.nan])
        report[f"{name}_median_ms"] = np.median(milliseconds)
        report[f"{name}_p90_ms"] = np.percentile(milliseconds, 90)
    return {name: float(value) for name, value in report.items()}


def describe_evaluation(args: argparse.Namespace) -> dict[str, Any]:
    """What was judged, on what and with what, so that the numbers can be cited and had again.

    Raises:
        DataError: when the checkpoint's trainer_state.json is broken.
    """
    path = Path(args.checkpoint) / "trainer_state.json"  # which weights from elsewhere lack
    state = read_json(path, str(path)) if os.path.isfile(path) else {}
    is_folder = os.path.isdir(args.checkpoint)  # or else a name of the Hub
    return {
        "checkpoint": os.path.abspath(args.checkpoint) if is_folder else args.checkpoint,
        "step": state.get("step") if isinstance(state, dict) else None,
        "manifest": os.path.abspath(args.path_to_manifest),
        "seed": args.seed,
        "precision": "float32",
        "device": args.device,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def print_report(report: dict[str, Any]) -> None:
    """The numbers as a table for people."""
    rows = [
        ("clips", f"{report['clips']}"),
        ("stopped by itself", f"{report['stopped_by_itself']:.1%}"),
        ("length within 15 % of the recording", f"{report['length_within_15_percent']:.1%}"),
        ("free-running score", f"{report['free_running_score']:.3f}"),
    ]
    for name in ALIGNMENT_SCORES:
        pair = f"{report[name]:.3f} / {report[f'free_running_{name}']:.3f}"
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
    if "asr" in report:
        rows += recognition_table(report)
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        print(f"{label:<{width}}  {value}")


def show_worst(
    worst: list[Judged], voice: Voice, folder: str, vocoder: Vocoder | None = None
) -> None:
    """worst_1.png, worst_1.wav and so on, in place of older ones.

    The picture has both mels and the spoken one's alignment; the sound is the spoken one.
    """
    from scoring.pictures import save_figure, summary_figure  # matplotlib is slow to import

    for kind in ("png", "wav"):
        for old in Path(folder).glob(f"worst_[0-9]*.{kind}"):
            old.unlink()
    for number, clip in enumerate(worst, start=1):
        ending = "stopped by itself" if clip.row["stopped_by_itself"] else "reached the limit"
        score, distortion = clip.row["free_running_score"], clip.row["mcd_db"]
        scores = f"free-running score {score:.3f}, MCD {distortion:.2f} dB, {ending}"
        figure = summary_figure(
            clip.recording,
            clip.mel,
            clip.alignment,
            voice.tokenizer.decode(voice.tokenizer.encode(clip.row["text"])),
            voice.audio_config.hop_seconds,
            title=f"{Path(clip.row['path']).name}: {scores}",
        )
        save_figure(figure, Path(folder) / f"worst_{number}.png")
        wav = to_audio(clip.mel, voice.audio_config, vocoder).cpu()
        write_wav(Path(folder) / f"worst_{number}.wav", wav, voice.audio_config.sampling_rate)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The flags; argparse ends the program on a mistake."""
    parser = FlagParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add(
        "--checkpoint",
        type=path_argument,
        required=True,
        help="checkpoint folder, or USER/NAME of the Hub",
    )
    add("--path_to_manifest", type=path_argument, required=True, help="CSV of prep_splits.py")
    add("--word_times", type=path_argument, help="word_times.json of make_demo_corpus.py")
    asr_help = "speech recognizer that is to understand it: pocketsphinx, or one of transformers"
    add("--asr", metavar="MODEL", help=f"{asr_help}, by folder or Hub name")
    add("--output_json", type=path_argument, help="file for the numbers")
    add("--output_csv", type=path_argument, help="file for a table with a row for each clip")
    worst_help = "folder for pictures and sounds of the worst clips"
    add("--save_worst", type=path_argument, metavar="DIR", help=worst_help)
    add("--worst", type=count_argument, default=5, help="how many (default: %(default)s)")
    vocoder_help = "folder of a HiFi-GAN that makes these sounds (needs requirements/vocoder.txt)"
    add("--vocoder", type=path_argument, metavar="DIR", help=vocoder_help)
    batch_help = "clips at once (default: %(default)s)"
    add("--batch_size", type=count_argument, default=32, help=batch_help)
    steps_help = "frames after which free running is cut (default: %(default)s)"
    add("--max_decoder_steps", type=count_argument, default=MAX_DECODER_STEPS, help=steps_help)
    seed_help = "seed of the prenet's dropout (default: %(default)s)"
    add("--seed", type=seed_argument, default=42, help=seed_help)
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    device_help = "such as cpu, cuda or cuda:1 (default: cuda where there is one)"
    add("--device", type=device_argument, default=default_device, help=device_help)
    args = parser.parse_args(argv)
    if args.vocoder and not (args.save_worst or args.asr):
        parser.error("--vocoder is for the sounds of --save_worst and --asr, which are not given")
    return args


def read_word_times(path: str, clips: TTSDataset) -> dict[str, list[dict]]:
    """word_times.json: for the stem of each clip's name its words, see word_start_errors.

    Raises:
        DataError: when the file cannot be read, is of another form, or knows none of the clips.
    """
    try:
        word_times = read_json(path, f"--word_times {path}")
        for words in word_times.values():
            for word in words:
                float(word["start"]), word["index"] >= 0
    except DataError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
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


@file_errors()
def write_outputs(
    args: argparse.Namespace, report: dict, rows: list[dict], worst: list[Judged], voice: Voice,
    vocoder: Vocoder | None,
) -> None:  # fmt: skip
    """The files that the flags name.

    Raises:
        DataError: when one cannot be written.
    """
    if args.output_json:
        text = json.dumps(report, indent=2)
        write_whole(args.output_json, lambda path: path.write_text(text, encoding="utf-8"))
    if args.output_csv:
        import pandas as pd

        write_whole(args.output_csv, lambda path: pd.DataFrame(rows).to_csv(path, index=False))
    if args.save_worst:
        show_worst(worst, voice, args.save_worst, vocoder)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The report of `args`, also written to where its flags say.

    Raises:
        DataError: when a file cannot be used or not be written.
    """
    check_outputs(args)
    described = describe_evaluation(args)
    recognizer = load_recognizer(args.asr, args.device) if args.asr else None
    voice = load_checkpoint(args.checkpoint, args.device)
    vocoder = None
    if args.vocoder:
        vocoder = load_vocoder(args.vocoder, voice.audio_config, args.device)
    clips = TTSDataset(args.path_to_manifest, voice.audio_config, voice.tokenizer)
    word_times = read_word_times(args.word_times, clips) if args.word_times else None
    batches = DataLoader(
        clips,
        batch_sampler=BatchSampler(clips.n_frames, args.batch_size, shuffle=False),
        collate_fn=TTSCollator(voice.audio_config, voice.tokenizer),
    )
    torch.manual_seed(args.seed)
    rows: list[dict] = []
    errors: dict[str, list[list[float]]] = {"word_start": [], "diagonal": []}  # clip by clip
    bar = tqdm(total=len(clips), unit="clip", disable=None)  # on stderr, if that is a terminal
    worst: list[Judged] = []  # no more than are drawn: a manifest's mels may not fit in memory
    for batch in batches:
        judged = judge(voice, batch, args.max_decoder_steps, word_times)
        for clip in judged:
            if recognizer:
                texts = clip.row["text"], clip.row["path"]
                mels = clip.recording, clip.mel
                clip.row.update(hear(recognizer, voice, *texts, *mels, vocoder))
            rows.append(clip.row)
            errors["word_start"].append(clip.word_errors)
            errors["diagonal"].append(clip.diagonal_errors)
        bar.update(len(judged))
        worst += judged
        worst = sorted(
            worst, key=lambda clip: (clip.row["free_running_score"], -clip.row["mcd_db"])
        )
        worst = worst[: args.worst]
    bar.close()
    if word_times is None:
        errors = None
    elif not any(errors["word_start"]):
        raise DataError("--word_times knows no word of these clips")
    report = {
        **described,
        **make_report(rows, errors),
        "intervals": make_intervals(rows, errors, args.seed),
    }
    if recognizer:
        report["asr"] = args.asr
        add_recognition(report, rows, N_RESAMPLES)
    write_outputs(args, report, rows, worst, voice, vocoder)
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
