"""What synthesize.py prints of a spoken text: how it ended, its score, what looks wrong."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from scoring.scores import COVERED, describe_score
from speech.speaking import Synthesis, Written, encode
from speech.voice import Voice
from text.splitting import Piece

# Attention that goes back and forth between neighbours is not heard; what goes back further, or
# often, is a repeated syllable or word.
MAX_BACK, MIN_MONOTONICITY = 3, 0.98  # characters at one step, share of the steps


def printable(text: str) -> str:
    """Without what a terminal would obey."""
    return "".join(filter(str.isprintable, text))


def find_faults(result: Synthesis, tokens: Tensor, voice: Voice) -> list[str]:
    """What looks wrong with a synthesis, a phrase for each; tokens (T_text,) are its text's."""
    faults = []
    if result.reached_limit:
        faults.append(f"it did not stop, and was cut at the limit of {len(result.mel)} steps")
    alignment = result.alignment.float()
    missed = alignment.sum(dim=0) < COVERED  # (T_text,)
    if missed.any():
        faults.append(
            f"{int(missed.sum())} of {len(tokens)} characters get no attention, and may not be "
            f"heard: {voice.tokenizer.decode(tokens[missed])[:60]!r}"
        )
    steps = alignment.argmax(dim=1).diff()  # (T_mel - 1,) characters moved on
    n_back = int((steps < 0).sum())
    if n_back and (-int(steps.min()) > MAX_BACK or 1 - n_back / len(steps) < MIN_MONOTONICITY):
        seconds = (int(steps.argmin()) + 1) * voice.audio_config.hop_seconds
        faults.append(
            f"attention goes back at {n_back} of {len(steps)} steps, furthest at {seconds:.2f} s "
            f"by {-int(steps.min())} characters, and may repeat something"
        )
    return faults


def describe_rules(results: Sequence[Synthesis]) -> list[str]:
    """How often the careful stop and the window made a difference, a phrase for each that did."""
    acted = [result.acted for result in results]
    waited = [x.waited for x in acted if x.waited]
    phrases = [
        (waited, f"waited {sum(waited)} frames for the last characters"),
        ([x for x in acted if x.gave_up], "believed the stop token before the last characters"),
        ([x for x in acted if x.rested], "ended without a stop token, at rest on the last one"),
        ([x for x in acted if x.at_edge],
         f"attention moved as far as its window lets it in {sum(x.at_edge for x in acted)} steps"),
    ]  # fmt: skip
    many = len(results) > 1
    return [
        f"{phrase}{f' (in {len(found)} of {len(results)} pieces)' if many else ''}"
        for found, phrase in phrases
        if found
    ]


def report_one(written: Written, text: str, voice: Voice, path: Path) -> None:
    """Prints how a text in one piece was spoken: length, ending, score, what looks wrong."""
    result = written.worst
    ending = "did not stop" if result.reached_limit else "stopped by itself"
    score = result.scores["free_running_score"]
    verdict = f"{ending}, free-running score {score:.2f} ({describe_score(score)})"
    print(f"{path}: {written.seconds:.2f} s, {verdict}")
    print(f"    as spoken: {printable(voice.tokenizer.decode(encode(text, voice)))}")
    unknown = voice.tokenizer.unknown_characters(text)
    faults = find_faults(result, encode(text, voice), voice)
    if unknown:
        faults.insert(0, f"left out {unknown!r}, which the checkpoint has no symbols for")
    for fault in faults:
        print(f"    warning: {fault}")
    if result.failed:
        print(f"    failed in {result.n_tries} tries")


def report_many(written: Written, text: str, pieces: list[Piece], voice: Voice, path: Path) -> None:
    """Prints how a text in several pieces was spoken, with each piece that failed."""
    results = written.results
    score, lowest = sum(x.scores["free_running_score"] for x in results), written.worst
    lowest = lowest.scores["free_running_score"]
    n_stopped = sum(not result.reached_limit for result in results)
    print(f"{path}: {written.seconds:.2f} s, {len(results)} pieces, {n_stopped} stopped by "
          f"themselves, free-running score {score / len(results):.2f}, lowest {lowest:.2f} "
          f"({describe_score(lowest)})")  # fmt: skip
    unknown = voice.tokenizer.unknown_characters(text)
    if unknown:
        print(f"    warning: left out {unknown!r}, which the checkpoint has no symbols for")
    for piece, result in zip(pieces, results, strict=True):
        if result.failed:
            print(f"    failed in {result.n_tries} tries: {printable(piece.text)}")


def print_report(
    written: Written, text: str, pieces: list[Piece], voice: Voice, path: Path
) -> None:
    """Prints how a text went that was spoken in these pieces, to the wav at `path`."""
    if len(pieces) == 1:
        report_one(written, text, voice, path)
    else:
        report_many(written, text, pieces, voice, path)
    for phrase in describe_rules(written.results):
        print(f"    {phrase}")
