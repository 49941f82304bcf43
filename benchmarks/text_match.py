"""Ask which score follows a recognizer's word errors over the checkpoints of several runs.

    python benchmarks/text_match.py --asr openai/whisper-tiny.en --vocoder universal \
        --run demo demo/test_metadata.csv demo/work_dir/demo/checkpoint_* \
        --run voice my_voice/test_metadata.csv my_voice/work_dir/voice/checkpoint_*

Each --run is a name, a manifest and checkpoints. The clips of the manifest are spoken freely, and
scored in the ways of SCORES. text_match.csv has a row for each checkpoint; a row that is there
already is not measured again, so that the script can go on. text_match.png draws the word errors
over each score, with Spearman's rank correlation, which is -1 for a score that orders the
checkpoints of each run as the recognizer does. text_gain and val_loss are those of training's own
validation. word_errors.png draws the word errors over the minutes of training, its validations
included, by the times at which a run without a break wrote its checkpoints.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import evaluate
from benchmarks.common import Row, make_parser, print_device, report
from command_line.files import DataError, read_json
from command_line.main import script
from dataset import TTSCollator, TTSDataset, resample
from evaluate import ScoredClip
from scoring.pictures import freeze_layout, new_figure, save_figure
from scoring.recognition import (
    KINDS,
    SAMPLING_RATE,
    Recognizer,
    load_recognizer,
    score_sounds,
)
from scoring.text_match import text_match
from speech.contrast import sharpen
from speech.speaking import MAX_DECODER_STEPS
from speech.vocoder import choose_vocoder, to_audio
from speech.voice import Voice, load_checkpoint
from training.checkpoints import STATE_FILE

SCORES = {  # column: what it is
    "text_match": "half seconds nearest to their own recording",
    "mcd_db": "mel-cepstral distortion",
    "free_running_score": "free-running score",
    "focus": "focus, teacher forced",
    "stopped_by_itself": "stopped by itself",
    "text_gain": "rise of the mels' loss with another text",
    "val_loss": "validation loss",
    "step": "steps of training",
}
BATCH_SIZE = 16


def count_word_errors(
    voice: Voice, spoken: list[ScoredClip], recognizer: Recognizer, vocoder: str | None
) -> float:
    """Transcribe the sounds of free running; divide the word errors by the words of the texts."""
    config = voice.audio_config
    loaded = choose_vocoder(vocoder, config)
    rates = config.sampling_rate, SAMPLING_RATE
    mels = [sharpen(x.mel, config, voice.contrast) for x in spoken]
    wavs = [resample(to_audio(mel, config, loaded), *rates) for mel in mels]
    sounds, texts = [{"free_running": wav} for wav in wavs], [x.row["text"] for x in spoken]
    counts = pd.DataFrame(score_sounds(recognizer, sounds, texts, voice.tokenizer))
    errors = counts[[f"free_running_word_{kind}" for kind in KINDS]]
    return errors.sum().sum() / counts["asr_words"].sum()


def measure(
    checkpoint: str, manifest: str, n_clips: int, recognizer: Recognizer, vocoder: str | None
) -> Row:
    """Speak up to n_clips clips of the manifest freely; return their scores and word errors."""
    voice, state = load_checkpoint(checkpoint), read_json(f"{checkpoint}/{STATE_FILE}", checkpoint)
    clips = TTSDataset(manifest, voice.audio_config, voice.tokenizer)
    collate = TTSCollator(voice.audio_config, voice.tokenizer)
    places = np.linspace(0, len(clips) - 1, min(n_clips, len(clips))).round().astype(int)
    torch.manual_seed(0)
    spoken: list[ScoredClip] = []
    for indices in np.array_split(places, -(-len(places) // BATCH_SIZE)):
        batch = collate([clips[int(i)] for i in indices])
        scored = evaluate.score_batch(voice, batch, MAX_DECODER_STEPS, word_times=None)
        for index, clip in zip(indices, scored, strict=True):
            clip.row["text_match"] = text_match(clips, int(index), clip.mel)
        spoken += scored
    means = pd.DataFrame([clip.row for clip in spoken]).mean(numeric_only=True)
    row = {name: means.get(name) for name in SCORES}
    row |= {"step": state["step"], "written_at": state["written_at"]}
    validated = {**state["history"][-1]} if state["history"] else {}
    if validated.get("step") == state["step"]:  # otherwise the checkpoint was not validated
        row |= {name: validated.get(name) for name in ("text_gain", "val_loss")}
    return row | {"word_errors": count_word_errors(voice, spoken, recognizer, vocoder)}


def correlate(rows: Sequence[Row]) -> dict[str, float]:
    """Correlate each score's order of a run's checkpoints with that by word errors (Spearman).

    The correlations are averaged over the runs, because scores of two corpora do not compare.
    """
    runs = [
        part[[*SCORES, "word_errors"]].astype(float)
        for _, part in pd.DataFrame(rows).groupby("run")
    ]
    of_runs = [run.corr("spearman")["word_errors"] for run in runs]
    return pd.concat(of_runs, axis=1).mean(axis=1)[[*SCORES]].to_dict()


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the word errors over each score, a line through the checkpoints of each run."""
    correlations, n_rows = correlate(rows), -(-len(SCORES) // 3)
    figure = new_figure(11.0, 2.8 * n_rows)
    table = pd.DataFrame(rows).sort_values("step")
    for i, (name, label) in enumerate(SCORES.items(), start=1):
        axes = figure.add_subplot(n_rows, 3, i)
        for run, part in table.groupby("run", sort=False):
            axes.plot(part[name], part["word_errors"], marker="o", ms=3, lw=0.8, label=run)
        axes.set_title(f"{name}: {correlations[name]:.2f}", fontsize=9, loc="left")
        axes.set_xlabel(label, fontsize=8)
        axes.set_ylabel("word errors", fontsize=8)
        axes.tick_params(labelsize=7)
    figure.axes[0].legend(fontsize=7)
    freeze_layout(figure)
    save_figure(figure, path)


def draw_minutes(rows: Sequence[Row], path: Path) -> None:
    """Draw the word errors over the minutes of training: steps times a run's minutes per step."""
    figure = new_figure(6.4, 3.2)
    axes = figure.add_subplot()
    for run, part in pd.DataFrame(rows).sort_values("step").groupby("run", sort=False):
        minutes, steps = part["written_at"] / 60, part["step"]
        per_step = (minutes.iloc[-1] - minutes.iloc[0]) / (steps.iloc[-1] - steps.iloc[0])
        axes.plot(steps * per_step, 100 * part["word_errors"], marker="o", ms=3, label=run)
    axes.set(xlabel="minutes of training", ylabel="word errors, %", xlim=(0, None), ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    freeze_layout(figure)
    save_figure(figure, path)


@script
def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is not yet measured, write the table, and draw it."""
    parser = make_parser(__doc__, n_clips=(40, "clips of each manifest"))
    parts = "name, manifest and checkpoints of a run"
    parser.add_argument("--run", nargs="+", action="append", required=True, help=parts)
    parser.add_argument("--asr", required=True, help="speech recognizer of transformers")
    parser.add_argument("--asr_language", help="de, where the recognizer knows several languages")
    parser.add_argument("--vocoder", help="HiFi-GAN, as synthesize.py takes it")
    args = parser.parse_args(argv)
    if short := [run for run in args.run if len(run) < 3]:
        parser.error(f"--run {' '.join(short[0])}: expected a name, a manifest and checkpoints")
    machine, path = print_device(torch.device("cpu")), args.output_dir / "text_match.csv"
    rows = pd.read_csv(path).drop(columns="machine").to_dict("records") if path.exists() else []
    recognizer = load_recognizer(args.asr, "cpu", args.asr_language)
    for name, manifest, *checkpoints in args.run:
        for checkpoint in checkpoints:
            if any((row["run"], row["checkpoint"]) == (name, checkpoint) for row in rows):
                continue
            scores = measure(checkpoint, manifest, args.n_clips, recognizer, args.vocoder)
            rows.append({"run": name, "checkpoint": checkpoint, **scores})
            report(path, rows, machine)
    report(path, rows, machine)
    if max(Counter(row["run"] for row in rows).values(), default=0) < 3:
        raise DataError("--run: three checkpoints of a run are needed to see what follows what")
    for score, correlation in correlate(rows).items():
        print(f"{score:<20} {correlation:6.2f}   {SCORES[score]}")
    draw(rows, path.with_suffix(".png"))
    draw_minutes(rows, path.with_name("word_errors.png"))


if __name__ == "__main__":
    main()
