"""Ask which score follows a recognizer's word errors over the checkpoints of several runs.

    python benchmarks/text_match.py --asr openai/whisper-tiny.en --vocoder universal \
        --run demo demo/test_metadata.csv demo/work_dir/demo/checkpoint_* \
        --run voice my_voice/test_metadata.csv my_voice/work_dir/voice/checkpoint_*

Each --run is a name, a manifest and checkpoints. The clips of the manifest are spoken freely, and
scored in the ways of SCORES. text_match.csv has a row for each checkpoint; a row that is there
already is not measured again, so that the script can go on. text_match.png draws the word errors
over each score, with Spearman's rank correlation, which is -1 for a score that orders all
checkpoints as the recognizer does. A clip counts at most as many errors as its text has words.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import Row, make_parser, print_device, report
from command_line.files import DataError, read_json
from command_line.main import script
from dataset import Batch, TTSCollator, TTSDataset
from model import Tacotron2Output
from scoring.pictures import freeze_layout, new_figure, save_figure
from scoring.recognition import (
    KINDS,
    Recognizer,
    count_errors,
    load_recognizer,
    plain_words,
    resample,
)
from scoring.scores import (
    alignment_scores,
    free_running_limit,
    free_running_scores,
    mel_cepstral_distortion,
)
from scoring.text_match import compare
from speech.speaking import MAX_DECODER_STEPS
from speech.vocoder import choose_vocoder, to_audio
from speech.voice import Voice, load_checkpoint

SCORES = {  # column: what it is
    "text_match": "half seconds nearest to their own recording",
    "clips_matched": "clips nearest to their own recording",
    "rank": "share of the other recordings that are farther",
    "margin": "1 - distance to the own / mean distance to others",
    "near_margin": "1 - distance to the own / least distance to others",
    "text_gain": "rise of the mels' loss with another text",
    "mcd_db": "mel-cepstral distortion",
    "mel_loss": "mels' loss, teacher forced",
    "free_running_score": "free-running score",
    "focus": "focus, teacher forced",
    "stopped_by_itself": "stopped by itself",
}
BATCH_SIZE = 16


def rate_distances(distances: np.ndarray) -> Row:
    """Rate a clip by its windows' distances to each recording, see `compare`."""
    own, others = distances[0], distances[1:]
    whole, other_wholes = own.mean(), others.mean(axis=1)
    return {
        "text_match": (own < others.min(axis=0)).mean(),
        "clips_matched": float(whole < other_wholes.min()),
        "rank": (whole < other_wholes).mean(),
        "margin": 1 - whole / other_wholes.mean(),
        "near_margin": 1 - whole / other_wholes.min(),
    }


def mel_losses(output: Tacotron2Output, batch: Batch) -> list[float]:
    """Compute each clip's loss of both mels, a mean over its frames."""
    losses = []
    for i, n in enumerate(batch.mel_lengths.tolist()):
        pairs = [(x[i, :n], batch.mels[i, :n]) for x in (output.mels_before, output.mels_after)]
        losses.append(sum((a - b).square().mean().item() for a, b in pairs))
    return losses


@torch.no_grad()
def score_batch(
    voice: Voice, clips: TTSDataset, indices: list[int]
) -> tuple[list[Row], list[Tensor]]:
    """Speak clips freely and teacher forced, with their texts and with each other's.

    Returns:
        A row for each clip, and the mels of free running, (T_mel, num_mels) each.
    """
    batch = TTSCollator(clips.audio_config, clips.tokenizer)([clips[i] for i in indices])
    texts = batch.tokens, batch.token_lengths
    limit = free_running_limit(batch.mels.shape[1], MAX_DECODER_STEPS)
    free = voice.model.infer(*texts, limit)
    forced = voice.model(*texts, batch.mels, batch.mel_lengths)
    swapped = voice.model(*(x.roll(1, 0) for x in texts), batch.mels, batch.mel_lengths)
    mels = [mel[:n] for mel, n in zip(free.mels, free.mel_lengths, strict=True)]
    scores = {
        **alignment_scores(forced.alignments, batch.token_lengths, batch.mel_lengths),
        **free_running_scores(free, batch.token_lengths),
        "mel_loss": mel_losses(forced, batch),
        "other_loss": mel_losses(swapped, batch),
    }
    rows = []
    for i, (index, mel) in enumerate(zip(indices, mels, strict=True)):
        recording = batch.mels[i, : batch.mel_lengths[i]]
        row = {name: float(values[i]) for name, values in scores.items()}
        row["mcd_db"] = mel_cepstral_distortion(mel, recording, clips.audio_config)
        rows.append(row | rate_distances(compare(clips, index, mel)))
    return rows, mels


def count_word_errors(
    voice: Voice, texts: list[str], mels: list[Tensor], recognizer: Recognizer, vocoder: str | None
) -> Row:
    """Transcribe the mels' sounds, and divide the word errors by the words of the texts."""
    config = voice.audio_config
    loaded = choose_vocoder(vocoder, config)
    wavs = [resample(to_audio(mel, config, loaded), config.sampling_rate) for mel in mels]
    transcripts = recognizer.transcribe(wavs)
    n_errors = n_words = 0
    for text, transcript in zip(texts, transcripts, strict=True):
        reference, heard = (plain_words(x, voice.tokenizer) for x in (text, transcript))
        errors, words = count_errors(reference, heard), len(reference.split())
        n_errors += min(sum(errors[f"word_{kind}"] for kind in KINDS), words)
        n_words += words
    return {"word_errors": n_errors / n_words}


def measure(
    checkpoint: str, manifest: str, n_clips: int, recognizer: Recognizer, vocoder: str | None
) -> Row:
    """Speak up to n_clips clips of the manifest; return scores and word errors."""
    voice = load_checkpoint(checkpoint)
    clips = TTSDataset(manifest, voice.audio_config, voice.tokenizer)
    places = np.linspace(0, len(clips) - 1, min(n_clips, len(clips))).round().astype(int)
    places = sorted(places.tolist(), key=lambda i: clips.n_frames[i])
    torch.manual_seed(0)
    rows, mels = [], []
    for indices in np.array_split(places, -(-len(places) // BATCH_SIZE)):
        more_rows, more_mels = score_batch(voice, clips, indices.tolist())
        rows, mels = rows + more_rows, mels + more_mels
    means = pd.DataFrame(rows).mean().to_dict()
    means["text_gain"] = means["other_loss"] / means["mel_loss"] - 1
    texts = [clips.texts[i] for i in places]
    return means | count_word_errors(voice, texts, mels, recognizer, vocoder)


def correlate(rows: Sequence[Row]) -> dict[str, float]:
    """Correlate each score's order of all checkpoints with that by word errors (Spearman)."""
    table = pd.DataFrame(rows)
    return {name: spearmanr(table[name], table["word_errors"]).statistic for name in SCORES}


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
    machine, path = print_device(torch.device("cpu")), args.output_dir / "text_match.csv"
    rows = pd.read_csv(path).drop(columns="machine").to_dict("records") if path.exists() else []
    recognizer = load_recognizer(args.asr, "cpu", args.asr_language)
    for name, manifest, *checkpoints in args.run:
        for checkpoint in checkpoints:
            if any(row["checkpoint"] == checkpoint for row in rows):
                continue
            state = read_json(Path(checkpoint) / "trainer_state.json", checkpoint)
            head = {"run": name, "checkpoint": checkpoint, "step": state["step"]}
            scores = measure(checkpoint, manifest, args.n_clips, recognizer, args.vocoder)
            rows.append(head | scores)
            report(path, rows, machine)
    report(path, rows, machine)
    if len(rows) < 3:
        raise DataError("--run: three checkpoints or more are needed to see what follows what")
    for score, correlation in correlate(rows).items():
        print(f"{score:<20} {correlation:6.2f}   {SCORES[score]}")
    draw(rows, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
