"""Evaluate how well a checkpoint speaks the sentences of a manifest.

    python evaluate.py --checkpoint work_dir/tacotron2/final_checkpoint \
        --path_to_manifest data/test_metadata.csv --output_json report.json \
        --output_csv clips.csv --save_worst worst

The table has the text match (scoring/text_match.py), and scores of alignments and mels
(scoring/scores.py). `--word_times` takes the true starts of words, as make_demo_corpus.py writes
them, and adds the errors of the alignment's word starts, beside those of a straight diagonal, which
is what a fake alignment scores. `--asr` adds a speech recognizer's errors, see
scoring/recognition.py, and `--mos` a predicted opinion score, see scoring/mos.py.
"""

import argparse
import json
import os
import platform
from collections import Counter
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
    write_text,
    write_whole,
)
from command_line.flags import FlagParser
from command_line.main import say, script
from dataset import Batch, BatchSampler, TTSCollator, TTSDataset, load_wav, resample, write_wav
from scoring.mos import PredictMos, load_mos_predictor, mos_table
from scoring.recognition import (
    SAMPLING_RATE,
    Recognizer,
    Sounds,
    load_recognizer,
    recognition_table,
    score_sounds,
)
from scoring.scores import (
    ALIGNMENT_SCORES,
    alignment_scores,
    free_running_limit,
    free_running_scores,
    mel_cepstral_distortion,
    place_words,
    word_start_errors,
)
from scoring.summary import WORD_ERRORS, make_report
from scoring.text_match import has_other_texts, text_match
from speech.contrast import sharpen
from speech.speaking import MAX_DECODER_STEPS
from speech.vocoder import Vocoder, choose_vocoder, to_audio
from speech.voice import Voice, add_device_flag, load_checkpoint


class ScoredClip(NamedTuple):
    """A clip's scores, and the tensors for its picture and sound."""

    row: dict[str, Any]  # the clip's scores by name; WORD_ERRORS are lists, in seconds
    recording: Tensor  # (T_mel of the recording, num_mels)
    mel: Tensor  # (T_mel, num_mels), free running
    alignment: Tensor  # (T_mel, T_text), free running


@torch.no_grad()
def score_batch(
    voice: Voice, batch: Batch, max_decoder_steps: int, word_times: dict[str, list[dict]] | None
) -> list[ScoredClip]:
    """Speak the clips of a batch, free running and teacher forced, and score each."""
    device = next(voice.model.parameters()).device
    tokens, mels = batch.tokens.to(device), batch.mels.to(device)
    limit = free_running_limit(mels.shape[1], max_decoder_steps)
    free = voice.model.infer(tokens, batch.token_lengths, limit)
    forced = voice.model(tokens, batch.token_lengths, mels, batch.mel_lengths)
    scores = {
        **alignment_scores(forced.alignments, batch.token_lengths, batch.mel_lengths),
        **free_running_scores(free, batch.token_lengths),
    }
    lengths = torch.stack((batch.token_lengths, batch.mel_lengths, free.mel_lengths.cpu()), dim=1)
    scored = []
    for i, (n_text, n_frames, n_spoken) in enumerate(lengths.tolist()):
        text, path = batch.texts[i], batch.paths[i]
        recording, mel = batch.mels[i, :n_frames], free.mels[i, :n_spoken].float().cpu()
        row = {
            "path": path,
            "text": text,
            "recording_frames": n_frames,
            "spoken_frames": n_spoken,
            "length_ratio": n_spoken / n_frames,
            **{name: values[i].item() for name, values in scores.items()},
            "mcd_db": mel_cepstral_distortion(mel, recording, voice.audio_config),
        }
        words = (word_times or {}).get(Path(path).stem, [])
        words = place_words(words, text, batch.tokens[i, :n_text], voice.tokenizer)
        alignment = forced.alignments[i, :n_frames, :n_text].cpu()
        if word_times is not None:
            errors = word_start_errors(alignment, words, voice.audio_config.hop_seconds)
            row |= zip(WORD_ERRORS, errors, strict=True)
            row["word_start_median_ms"] = 1000 * np.median(np.abs(errors[0])) if words[1:] else None
        alignment = free.alignments[i, :n_spoken, :n_text].float().cpu()
        scored.append(ScoredClip(row, recording, mel, alignment))
    return scored


def make_sounds(clip: ScoredClip, voice: Voice, vocoder: Vocoder | None) -> Sounds:
    """Make the sounds that --asr and --mos judge.

    Griffin-Lim draws its phases from a fork of torch's generator, so that the prenet's dropout is
    the same as without --asr and --mos.
    """
    config = voice.audio_config
    mels = sharpen(clip.mel, config, voice.contrast), clip.recording
    with torch.random.fork_rng(devices=[]):
        free, vocoded = (to_audio(mel, config, vocoder).cpu() for mel in mels)
    return {
        "free_running": resample(free, config.sampling_rate, SAMPLING_RATE),
        "vocoded": resample(vocoded, config.sampling_rate, SAMPLING_RATE),
        "recording": load_wav(clip.row["path"], SAMPLING_RATE),
    }


def judge_sounds(
    scored: list[ScoredClip],
    voice: Voice,
    vocoder: Vocoder | None,
    recognizer: Recognizer | None,
    predict_mos: PredictMos | None,
) -> None:
    """Add what --asr and --mos say of the clips of a batch to their rows."""
    clips = [make_sounds(clip, voice, vocoder) for clip in scored]
    if recognizer:
        texts = [clip.row["text"] for clip in scored]
        columns = score_sounds(recognizer, clips, texts, voice.tokenizer)
        for clip, more in zip(scored, columns, strict=True):
            clip.row.update(more)
    if predict_mos:
        for clip, sounds in zip(scored, clips, strict=True):
            clip.row.update({f"{name}_mos": predict_mos(wav) for name, wav in sounds.items()})


def describe_evaluation(args: argparse.Namespace) -> dict[str, Any]:
    """Describe what was evaluated, on what and how, so that the numbers can be reproduced."""
    path = Path(args.checkpoint) / "trainer_state.json"  # a converted checkpoint has none
    state = read_json(path) if os.path.isfile(path) else {}
    is_folder = os.path.isdir(args.checkpoint)  # otherwise it is a name on the Hub
    return {
        "checkpoint": os.path.abspath(args.checkpoint) if is_folder else args.checkpoint,
        "step": state.get("step"),
        "manifest": os.path.abspath(args.path_to_manifest),
        "seed": args.seed,
        "precision": "float32",
        "device": args.device,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def print_report(report: dict[str, Any]) -> None:
    """Print the numbers as a table."""
    rows = [
        ("clips", f"{report['clips']}"),
        ("stopped by itself", f"{report['stopped_by_itself']:.1%}"),
        ("length within 15 % of the recording", f"{report['length_within_15_percent']:.1%}"),
        ("free-running score", f"{report['free_running_score']:.3f}"),
    ]
    if "text_match" in report:
        rows.insert(1, ("text match", f"{report['text_match']:.3f}"))
    for name in ALIGNMENT_SCORES:
        pair = f"{report[name]:.3f} / {report[f'free_running_{name}']:.3f}"
        rows.append((f"{name}, teacher forced / free running", pair))
    distortion = f"{report['mcd_db_median']:.2f} / {report['mcd_db_mean']:.2f} dB"
    rows.append(("mel-cepstral distortion, median / mean", distortion))
    if "words" in report:
        labels = {"word_start": "word start error", "diagonal": "a straight diagonal"}
        for name, label in labels.items():
            pair = f"{report[f'{name}_median_ms']:.0f} / {report[f'{name}_p90_ms']:.0f} ms"
            rows.append((f"{label}, median / 90th percentile", pair))
    rows += recognition_table(report) if "asr" in report else []
    rows += mos_table(report) if "recording_mos" in report else []
    width = max(len(label) for label, _ in rows)
    say(*(f"{label:<{width}}  {value}" for label, value in rows))


@file_errors()
def save_worst(
    worst: list[ScoredClip], voice: Voice, folder: Path, vocoder: Vocoder | None
) -> None:
    """Replace the folder's worst_1.png, worst_1.wav and so on; the sound is free running."""
    from scoring.pictures import save_figure, summary_figure  # matplotlib is slow to import

    for old in [*folder.glob("worst_[0-9]*.png"), *folder.glob("worst_[0-9]*.wav")]:
        old.unlink()
    config, tokenizer = voice.audio_config, voice.tokenizer
    for number, (row, recording, mel, alignment) in enumerate(worst, start=1):
        ending = "stopped by itself" if row["stopped_by_itself"] else "reached the limit"
        match = f"text match {row['text_match']:.3f}, " if "text_match" in row else ""
        title = f"{Path(row['path']).name}: {match}MCD {row['mcd_db']:.2f} dB, {ending}"
        text = tokenizer.decode(tokenizer.encode(row["text"]))
        mel = sharpen(mel, config, voice.contrast)
        figure = summary_figure(recording, mel, alignment, text, config.hop_seconds, title)
        save_figure(figure, folder / f"worst_{number}.png")
        wav = to_audio(mel, config, vocoder).cpu()
        write_wav(folder / f"worst_{number}.wav", wav, config.sampling_rate)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse the flags."""
    parser = FlagParser(description=__doc__.split("\n")[0])

    def add(flag: str, help: str, type: Any = path_argument, **options: Any) -> None:
        parser.add(flag, help, type=type, **options)

    add("--checkpoint", "checkpoint folder, or USER/NAME of the Hub", required=True)
    add("--path_to_manifest", "CSV of prep_splits.py", required=True)
    add("--word_times", "word_times.json of make_demo_corpus.py or extras/align_words.py")
    add("--asr", "speech recognizer of transformers, by folder or Hub name", str, metavar="MODEL")
    add("--asr_language", "code of its language, such as de, where it knows several", str)
    parser.add("--mos", "predict opinion scores (needs requirements/mos.txt)", action="store_true")
    add("--output_json", "file for the numbers")
    add("--output_csv", "file for a table with a row for each clip")
    add("--save_worst", "folder for pictures and sounds of the worst clips", metavar="DIR")
    add("--worst", "number of clips that --save_worst saves", count_argument, default=5)
    add("--vocoder", "HiFi-GAN for the sounds, as synthesize.py takes it", metavar="NAME")
    add("--batch_size", "clips per batch", count_argument, default=32)
    steps = "frames after which free running is cut"
    add("--max_decoder_steps", steps, count_argument, default=MAX_DECODER_STEPS)
    add("--seed", "seed of the prenet's dropout", seed_argument, default=42)
    add_device_flag(parser)
    args = parser.parse_args(argv)
    if args.vocoder and not (args.save_worst or args.asr or args.mos):
        parser.error("--vocoder is for the sounds of --save_worst, --asr and --mos: give one")
    if args.asr_language is not None and not args.asr:
        parser.error("--asr_language is for --asr, which is not given")
    return args


def read_word_times(path: str, clips: TTSDataset) -> dict[str, list[dict]]:
    """Read word_times.json: the words of each clip, by its file's stem (see word_start_errors)."""
    word_times = read_json(path, f"--word_times {path}")
    try:
        for words in word_times.values():
            for word in words:
                float(word["start"]), word["index"] >= 0
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"--word_times {path}: cannot be read ({error!r})") from None
    stems = [Path(clip).stem for clip in clips.paths]
    if twice := [x for x, n in Counter(stems).items() if n > 1 and x in word_times]:
        raise DataError(
            f"--word_times {path}: several clips of the manifest are named {twice[0]!r}"
        )
    if not any(word_times.get(stem, [])[1:] for stem in stems):
        raise DataError(f"--word_times {path}: knows no word of these clips")
    return word_times


def check_outputs(args: argparse.Namespace) -> None:
    """Refuse files and folders that cannot be written, before any work is done."""
    for flag, path in (("--output_json", args.output_json), ("--output_csv", args.output_csv)):
        if path and os.path.isdir(path):
            raise DataError(f"{flag} {path}: is a folder, not a file")
        if path:
            check_writable(flag, Path(path).parent)
    if args.save_worst:
        check_writable("--save_worst", args.save_worst)


@file_errors()
def write_files(args: argparse.Namespace, report: dict, rows: list[dict]) -> None:
    """Write --output_json and --output_csv."""
    if args.output_json:
        write_text(args.output_json, json.dumps(report, indent=2))
    if args.output_csv:
        import pandas as pd

        table = pd.DataFrame(rows).drop(columns=[*WORD_ERRORS], errors="ignore")
        write_whole(args.output_csv, lambda path: table.to_csv(path, index=False))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate the checkpoint, write what the flags name, and return the report."""
    check_outputs(args)
    description = describe_evaluation(args)
    recognizer = load_recognizer(args.asr, args.device, args.asr_language) if args.asr else None
    predict_mos = load_mos_predictor(args.device) if args.mos else None
    voice = load_checkpoint(args.checkpoint, args.device)
    audio, tokenizer = voice.audio_config, voice.tokenizer
    vocoder = choose_vocoder(args.vocoder, audio, args.device)
    clips = TTSDataset(args.path_to_manifest, audio, tokenizer)
    word_times = read_word_times(args.word_times, clips) if args.word_times else None
    sampler = BatchSampler(clips.n_frames, args.batch_size, shuffle=False)
    batches = DataLoader(clips, batch_sampler=sampler, collate_fn=TTSCollator(audio, tokenizer))
    torch.manual_seed(args.seed)
    rows: list[dict] = []
    worst: list[ScoredClip] = []
    comparable = has_other_texts(clips)
    with tqdm(total=len(clips), unit="clip", disable=None) as bar:  # shown on terminals only
        for indices, batch in zip(sampler, batches, strict=True):
            scored = score_batch(voice, batch, args.max_decoder_steps, word_times)
            if recognizer or predict_mos:
                judge_sounds(scored, voice, vocoder, recognizer, predict_mos)
            for index, clip in zip(indices, scored, strict=True) if comparable else ():
                clip.row["text_match"] = text_match(clips, index, clip.mel)
            rows += [clip.row for clip in scored]
            worst += scored
            worst.sort(key=lambda clip: (clip.row.get("text_match", 0.0), -clip.row["mcd_db"]))
            del worst[args.worst :]  # the mels of all clips may not fit into memory
            bar.update(len(scored))
    if word_times is not None and not any(row["word_start"] for row in rows):
        raise DataError("--word_times knows no word of these clips")
    if recognizer and not any("asr_words" in row for row in rows):
        raise DataError("--asr: no clip has a text without phonemes in braces")
    report = {**description, "vocoder": vocoder and args.vocoder, **make_report(rows, args.seed)}
    if recognizer:
        report |= {"asr": args.asr, "asr_language": args.asr_language}
        report["asr_speed"] = recognizer.speed
    write_files(args, report, rows)
    if args.save_worst:
        save_worst(worst, voice, Path(args.save_worst), vocoder)
    return report


@script
def main(argv: list[str] | None = None) -> None:
    """Evaluate the checkpoint and print the table."""
    print_report(run(parse_args(argv)))


if __name__ == "__main__":
    main()
