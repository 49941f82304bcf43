"""Write the files of a spoken text, and print how well it was spoken."""

import tempfile
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from command_line.files import file_errors
from command_line.main import say
from dataset import to_log_mel
from scoring.scores import COVERED
from speech.speaking import PAUSES, Synthesis, encode, to_pcm
from speech.timings import Word, time_words
from speech.voice import Voice
from text.splitting import Piece

# Nobody hears it when attention rarely steps back a little. More than MAX_BACK characters in one
# step, or a lower share of steps that do not go back, is a repeated syllable or word.
MAX_BACK, MIN_MONOTONICITY = 3, 0.98


class SpokenText(NamedTuple):
    """A text whose pieces were written to files."""

    seconds: float  # of the wav
    results: list[Synthesis]  # of each piece, without its tensors
    worst: Synthesis  # of the piece with the lowest score, complete
    words: list[Word]  # as they are spoken, with their times in the wav


@file_errors()
def write_spoken(
    pieces: list[Piece],
    results: Iterator[Synthesis],
    voice: Voice,
    output_dir: Path,
    stem: str,
    pause_ms: float,
    speed: float = 1.0,
) -> SpokenText:
    """Join the pieces of a text, with pauses, into stem.wav, .npy and .txt.

    stem.png shows the piece with the lowest score. Only the mel grows with the text (100 MB an
    hour), because results are taken one by one. The files appear when all of them are complete.
    """
    from scoring.pictures import save_figure, summary_figure  # matplotlib is slow to import

    audio_config, kept, mels, texts, n_samples = voice.audio_config, [], [], [], 0
    worst, words = None, []
    with tempfile.TemporaryDirectory(".tmp", f".{stem}.", output_dir) as folder:
        temporary = Path(folder) / stem
        with wave.open(f"{temporary}.wav", "wb") as wav_file:
            wav_file.setparams((1, 2, audio_config.sampling_rate, 0, "NONE", ""))
            for piece, result in zip(pieces, results):  # noqa: B905 (more texts follow)
                pause = 0.0 if piece is pieces[-1] else pause_ms / 1000 * PAUSES[piece.end]
                n_silent = round(pause / audio_config.hop_seconds)  # frames
                silence = torch.full((n_silent, audio_config.num_mels), audio_config.silence)
                mel = to_log_mel(torch.cat([result.mel, silence]), audio_config)
                mels.append(mel.numpy().astype("<f4"))
                still = torch.zeros(round(n_silent * audio_config.hop_size / speed))
                wav_file.writeframesraw(to_pcm(torch.cat([result.wav, still])))
                offset = n_samples / audio_config.sampling_rate
                words += time_words(piece.text, result, voice, offset, speed)
                n_samples += len(result.wav) + len(still)
                text = voice.tokenizer.decode(encode(piece.text, voice))
                texts += [text, "\n\n" if piece.end == "paragraph" else " "]
                if worst is None or score_of(result) < score_of(worst):
                    worst, worst_text = result, text
                empty = torch.empty(0)
                kept.append(result._replace(mel=empty, alignment=empty, wav=empty))
        np.save(f"{temporary}.npy", np.concatenate(mels).T)
        Path(f"{temporary}.txt").write_text("".join(texts[:-1]) + "\n", encoding="utf-8")
        hop_seconds = audio_config.hop_seconds
        figure = summary_figure(None, worst.mel, worst.alignment, worst_text, hop_seconds)
        save_figure(figure, f"{temporary}.png")
        for path in Path(folder).iterdir():
            path.replace(output_dir / path.name)
    return SpokenText(n_samples / audio_config.sampling_rate, kept, worst, words)


def score_of(result: Synthesis) -> float:
    """Return the free-running score, 0 to 1."""
    return result.scores["free_running_score"]


def describe_result(result: Synthesis, seconds: float) -> str:
    """Describe how a piece was spoken: length, ending and score."""
    ending = "did not stop" if result.reached_limit else "stopped by itself"
    return f"{seconds:.2f} s, {ending}, free-running score {score_of(result):.2f}"


def print_report(
    spoken: SpokenText, text: str, pieces: list[Piece], voice: Voice, path: Path
) -> None:
    """Print how a text was spoken: length, ending, score and what looks wrong."""
    worst, results = spoken.worst, spoken.results
    warnings = []
    if unknown := voice.tokenizer.unknown_characters(text):
        warnings.append(f"left out {unknown!r}, which the checkpoint has no symbols for")
    if len(pieces) == 1:
        tokens = encode(pieces[0].text, voice)  # a paragraph without a letter is not in it
        say(f"{path}: {describe_result(worst, spoken.seconds)}")
        say(f"    as spoken: {printable(voice.tokenizer.decode(tokens))}")
        warnings += find_faults(worst, tokens, voice)
    else:
        n_stopped = sum(not result.reached_limit for result in results)
        mean, lowest = sum(map(score_of, results)) / len(results), score_of(worst)
        stopped = f"{len(results)} pieces, {n_stopped} stopped by themselves"
        scores = f"free-running score {mean:.2f}, lowest {lowest:.2f}"
        say(f"{path}: {spoken.seconds:.2f} s, {stopped}, {scores}")
    for warning in warnings:
        say(f"    warning: {warning}")
    for piece, result in zip(pieces, results, strict=True):
        if result.failed:
            which = "" if len(pieces) == 1 else f": {printable(piece.text)}"
            say(f"    failed in {result.n_tries} tries{which}")


def find_faults(result: Synthesis, tokens: Tensor, voice: Voice) -> list[str]:
    """List what looks wrong with a spoken text of these tokens (T_text,), a phrase for each."""
    faults = []
    if result.reached_limit:
        faults.append(f"it did not stop, and was cut at the limit of {len(result.mel)} frames")
    alignment = result.alignment.float()
    missed = alignment.sum(dim=0) < COVERED  # (T_text,)
    if missed.any():
        missed_text = voice.tokenizer.decode(tokens[missed])[:60]
        count = f"{int(missed.sum())} of {len(tokens)} characters"
        faults.append(f"{count} get no attention, and may not be heard: {missed_text!r}")
    steps = alignment.argmax(dim=1).diff()  # (T_mel - 1,) characters moved on
    n_back = int((steps < 0).sum())
    if n_back and (-int(steps.min()) > MAX_BACK or 1 - n_back / len(steps) < MIN_MONOTONICITY):
        seconds = (int(steps.argmin()) + 1) * voice.audio_config.hop_seconds
        faults.append(
            f"attention goes back at {n_back} of {len(steps)} frames, furthest at {seconds:.2f} s "
            f"by {-int(steps.min())} characters, and may repeat something"
        )
    return faults


def printable(text: str) -> str:
    """Remove control characters, which a terminal would obey."""
    return "".join(filter(str.isprintable, text))
