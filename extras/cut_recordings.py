"""Cut long recordings into clips with texts: a folder that my_voice.sh and prep_splits.py take.

    python -m extras.cut_recordings --recordings talk.wav more/*.mp3 --asr openai/whisper-base.en \
        --output_dir recordings

It cuts in pauses, into pieces of 2 to 12 s. A recognizer (requirements/asr.txt) transcribes them;
with --text, each gets the words of your transcript that match what the recognizer heard. The folder
gets wavs/ with every piece, 16-bit at its recording's rate, metadata.csv with the pieces to train
on, and pieces.csv with all of them and why some are left out; docs/your_voice.md says what the
reasons mean. heard.json keeps what was heard, so an interrupted run goes on.
"""

import argparse
import hashlib
import json
import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from audio.recording import FRAME_SECONDS, SILENCE_DB, find_sample_size, read_recording
from command_line.files import (
    DataError,
    check_writable,
    file_errors,
    one_line,
    path_argument,
    read_json,
    write_text,
    write_whole,
)
from command_line.flags import FlagParser
from command_line.main import say, script
from corpora.lengths import find_misfits
from corpora.recordings import Clip
from corpora.texts import find_markup, read_text
from dataset import load_wav, write_wav
from scoring.recognition import (
    BATCH_SIZE,
    SAMPLING_RATE,
    Recognizer,
    load_recognizer,
    plain_words,
)
from speech.voice import add_device_flag
from text.tokenizer import Tokenizer

HEARD = "heard.json"  # {recognizer and digest of a piece: its text}
MIN_SECONDS, MAX_SECONDS = 2.0, 12.0  # of a piece
MIN_PAUSE = 0.25  # seconds; the closure of a "p" or "t" within a word is shorter than 0.2
LONG_PAUSE = 0.6  # seconds; is cut where both sides are long enough
MAX_PAUSE = 1.5  # seconds; is always cut
MARGIN = 0.2  # seconds of a pause that a piece keeps at each end
NOISE_DB = 6.0  # above the softest frames is no pause
MIN_RANGE_DB = 20.0  # from the softest to the loudest frames of a clean piece
PEAK_DB, MIN_PEAKS = 10.0, 3  # above the spectrum around them, of music or voices
VOICED_DB = 10.0  # below the loudest frames, where pitch is measured
PITCHES = (60, 500)  # Hz, of a voice
MAX_SEMITONES = 5.0  # from the median pitch of all pieces; women and men often differ by more
MAX_DIFFERENT = 0.3  # share of characters


class Piece(NamedTuple):
    """A piece of a recording; its fields are the columns of pieces.csv."""

    name: str
    recording: str
    start: float  # seconds
    end: float
    why: str = ""  # it is left out
    range_db: float = 0.0  # from its softest to its loudest frames
    pitch: float = 0.0  # Hz
    text: str = ""
    heard: str = ""


def measure_levels(wav: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Measure the level of each frame of FRAME_SECONDS, (n_frames,) in dB."""
    frame = round(FRAME_SECONDS * sampling_rate)
    starts = np.arange(0, len(wav), frame)
    sums = np.add.reduceat(np.square(wav - wav.mean()), starts, dtype=np.float64)
    return 10 * np.log10(sums / np.diff([*starts, len(wav)]) + 1e-12)


def find_speech(levels: np.ndarray) -> np.ndarray:
    """Find what sounds between pauses, (n, 2): its first frame and the frame after its last."""
    soft, loud = np.percentile(levels, [5, 95])
    sounding = np.flatnonzero(levels >= max(loud - SILENCE_DB, min(soft + NOISE_DB, loud)))
    pauses = np.flatnonzero(np.diff(sounding) - 1 >= MIN_PAUSE / FRAME_SECONDS)
    firsts = sounding[np.concatenate([[0], pauses + 1])]
    return np.column_stack([firsts, sounding[np.concatenate([pauses, [-1]])] + 1])


def choose_cut(speech: np.ndarray) -> int | None:
    """Choose the pause to cut at, by the number of the speech before it; None to leave it whole.

    It is the longest pause that leaves enough on both sides, if the piece or the pause is too long.
    """
    least, most = ((x - 2 * MARGIN) / FRAME_SECONDS for x in (MIN_SECONDS, MAX_SECONDS))
    pauses = speech[1:, 0] - speech[:-1, 1]
    if not len(pauses):
        return None
    left, right = speech[:-1, 1] - speech[0, 0], speech[-1, 1] - speech[1:, 0]
    roomy = np.minimum(left, right) >= least
    is_long = speech[-1, 1] - speech[0, 0] > most
    allowed = pauses > MAX_PAUSE / FRAME_SECONDS
    allowed |= roomy & (is_long | (pauses >= LONG_PAUSE / FRAME_SECONDS))
    if not allowed.any():
        return int(pauses.argmax()) if is_long else None
    return int(np.where(allowed, pauses, 0).argmax())


def cut(levels: np.ndarray, frame_seconds: float = FRAME_SECONDS) -> np.ndarray:
    """Cut a recording at its pauses; return the start and end of each piece, (n, 2) in seconds.

    At some rates, such as 11,025 Hz, a frame of whole samples is not quite FRAME_SECONDS.
    """
    waiting, edges = [find_speech(levels)], [(0, 0)]
    while waiting:
        speech = waiting.pop()
        at = choose_cut(speech)
        if at is None:
            edges.append((speech[0, 0], speech[-1, 1]))
        else:
            waiting += [speech[at + 1 :], speech[: at + 1]]
    ends = np.array([*edges, (len(levels), len(levels))])
    room = (ends[1:, 0] - ends[:-1, 1]) / 2  # each piece has half of a pause
    room[[0, -1]] *= 2  # but all of the recording's edges
    margins = np.minimum(MARGIN / FRAME_SECONDS, room)
    pieces = np.column_stack([ends[1:-1, 0] - margins[:-1], ends[1:-1, 1] + margins[1:]])
    return (pieces * frame_seconds).round(3)


def name_clips(path: str) -> str:
    """Name a recording's pieces: its name, less what cannot stand in a column of metadata.csv."""
    return re.sub(r"[|\\]", "_", Path(path).stem).strip()


def write_pieces(folder: Path, recordings: list[str]) -> list[Piece]:
    """Cut all recordings and write their pieces to the folder."""
    pieces = []
    for path in tqdm(recordings, desc="cutting", unit="recording", disable=None):
        wav, _, rate, _ = read_recording(path)
        if (size := find_sample_size(path)) and size.is_truncated:
            raise DataError(f"{path}: is truncated, {size}")
        say(f"{path}: {len(wav) / rate / 60:.1f} minutes")
        edges = cut(measure_levels(wav, rate), round(FRAME_SECONDS * rate) / rate)
        for number, (start, end) in enumerate(edges, 1):
            why = f"shorter than {MIN_SECONDS:g} s" if end - start < MIN_SECONDS else ""
            why = f"longer than {MAX_SECONDS:g} s" if end - start > MAX_SECONDS else why
            piece = Piece(f"{name_clips(path)}_{number:04d}", path, start, end, why)
            part = torch.from_numpy(wav[round(start * rate) : round(end * rate)])
            write_wav(folder / f"{piece.name}.wav", part, rate)
            pieces.append(piece)
    return pieces


def measure_piece(piece: Piece, wav: np.ndarray) -> Piece:
    """Measure the level range and the pitch of a piece, (n_samples,) at SAMPLING_RATE."""
    import librosa  # slow to import
    from scipy.ndimage import median_filter
    from torchaudio.functional import detect_pitch_frequency

    hop, edge = round(FRAME_SECONDS * SAMPLING_RATE), round(MARGIN / FRAME_SECONDS)
    if len(wav) > 3 * edge * hop:
        wav = wav[edge * hop : -edge * hop]  # its margins may be silent where it is not
    levels = measure_levels(wav, SAMPLING_RATE)
    soft, loud = np.percentile(levels, [2, 95])
    # librosa's own pitch trackers crash where two processes have compiled numba's functions at once
    # (numba issue 10128).
    padded = np.pad(wav, (0, 2 * hop))  # a median of five frames loses two
    pitches = detect_pitch_frequency(
        torch.from_numpy(padded), SAMPLING_RATE, FRAME_SECONDS, 5, *PITCHES
    )
    pitch = float(np.median(pitches.numpy()[: len(levels)][levels > loud - VOICED_DB]))
    piece = piece._replace(range_db=round(float(loud - soft), 1), pitch=round(pitch, 1))
    if piece.range_db >= MIN_RANGE_DB:
        return piece
    spectrum = librosa.stft(padded, n_fft=2 * hop, hop_length=hop, center=False)
    softest = np.abs(spectrum[:, : len(levels)][:, levels <= soft + 2])  # (hop + 1, n_softest)
    decibels = 10 * np.log10(np.square(softest).mean(axis=1) + 1e-12)
    n_peaks = (decibels - median_filter(decibels, 21) > PEAK_DB).sum()  # of 525 Hz
    return piece._replace(why="music" if n_peaks >= MIN_PEAKS else "noise")


def transcribe_pieces(
    pieces: list[Piece], folder: Path, recognizer: Recognizer, asr: str
) -> list[Piece]:
    """Measure and transcribe the pieces in batches, except those that heard.json has."""
    heard, done = read_json(folder / HEARD), []
    bar = tqdm(total=len(pieces), desc="transcribing", unit="piece", disable=None)
    for i in range(0, len(pieces), BATCH_SIZE):
        files = [folder / f"wavs/{piece.name}.wav" for piece in pieces[i : i + BATCH_SIZE]]
        sounds = [load_wav(file, SAMPLING_RATE) for file in files]
        keys = [f"{asr} {hashlib.sha1(file.read_bytes()).hexdigest()}" for file in files]
        new = {key: sound for key, sound in zip(keys, sounds, strict=True) if key not in heard}
        if new:
            texts = recognizer.transcribe(list(new.values()))
            heard |= {key: one_line(text, None) for key, text in zip(new, texts, strict=True)}
            write_text(folder / HEARD, json.dumps(heard, ensure_ascii=False, indent=0))
        for piece, sound, key in zip(pieces[i:], sounds, keys, strict=False):
            done.append(measure_piece(piece, sound.numpy())._replace(heard=heard[key]))
        bar.update(len(files))
    bar.close()
    return done


def divide_text(text: str, heard: list[str], tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """Divide a transcript among pieces, by aligning its characters with what was heard in each.

    Returns:
        The text of each piece, and whether a word beside it was not heard anywhere.
    """
    import jiwer

    # Dashes and their like go with a word.
    words = re.findall(r"(?:[^\w\s]+\s+)*\S+(?:\s+[^\w\s]+)*(?=\s|$)", text)
    spoken = [plain_words(word, tokenizer) + " " for word in words]
    sounds = [plain_words(part, tokenizer) + " " for part in heard]
    owners = np.repeat(np.arange(len(sounds)), [*map(len, sounds)])
    found = np.full(sum(map(len, spoken)), -1)  # the piece that each character is heard in
    kept = jiwer.ReduceToListOfListOfChars()  # jiwer would strip the ends, and shift all indices
    for part in jiwer.process_characters("".join(spoken), "".join(sounds), kept, kept).alignments[
        0
    ]:
        if part.type in ("equal", "substitute"):
            heard_in = owners[part.hyp_start_idx : part.hyp_end_idx]
            found[part.ref_start_idx : part.ref_end_idx] = heard_in
    piece_of = []  # of each word, -1 if less than half of it was heard
    for letters in np.split(found, np.cumsum([*map(len, spoken)])[:-1]):
        known = letters[:-1][letters[:-1] >= 0]
        is_heard = len(known) and 2 * len(known) >= len(letters) - 1
        piece_of.append(np.bincount(known).argmax() if is_heard else -1)
    divided = []
    for i in range(len(heard)):
        own = np.flatnonzero(np.equal(piece_of, i))
        first, end = (own[0], own[-1] + 1) if len(own) else (0, 0)
        beside = [*piece_of[max(0, first - 1) : first], *piece_of[end : end + 1]]
        divided.append((" ".join(" ".join(words[first:end]).split()), -1 in beside))
    return divided


def choose_texts(pieces: list[Piece], text: str | None) -> list[Piece]:
    """Give each piece its text, and say why pieces are left out."""
    import jiwer

    tokenizer, heard = Tokenizer(), [piece.heard for piece in pieces]
    divided = divide_text(text, heard, tokenizer) if text else [(x, False) for x in heard]
    middle, chosen = np.median([piece.pitch for piece in pieces]), []
    for piece, (words, is_doubtful) in zip(pieces, divided, strict=True):
        plain, plain_heard = (plain_words(x, tokenizer) for x in (words, piece.heard))
        if piece.why:
            why = piece.why
        elif abs(12 * np.log2(piece.pitch / middle)) >= MAX_SEMITONES:
            why = "another voice"
        elif not plain_heard:
            why = "no words"
        elif not plain or is_doubtful or jiwer.cer(plain, plain_heard) > MAX_DIFFERENT:
            why = "the transcript differs"
        else:
            why = ""
        chosen.append(piece._replace(text=words.replace("|", " "), why=why))
    clips = [Clip("", x.name, x.text, duration=x.end - x.start) for x in chosen if not x.why]
    misfits = {x.clip_id: x.problem.split(" for ")[0] for x in find_misfits(clips, tokenizer.clean)}
    return [piece._replace(why=piece.why or misfits.get(piece.name, "")) for piece in chosen]


def report(pieces: list[Piece]) -> list[str]:
    """Describe how much is kept, and how much is left out for each reason."""
    counts, minutes = Counter(piece.why for piece in pieces), Counter()
    for piece in pieces:
        minutes[piece.why] += (piece.end - piece.start) / 60
    return [
        f"{'left out, ' + why if why else 'kept'}: {counts[why]} pieces, {minutes[why]:.1f} minutes"
        for why in sorted(counts, key=lambda why: (why != "", -minutes[why]))
    ]


def check_arguments(args: argparse.Namespace) -> str | None:
    """Check the flags, and return the transcript of --text."""
    stems = Counter(map(name_clips, args.recordings))
    if max(stems.values()) > 1:
        raise DataError(f"--recordings: two are named {stems.most_common(1)[0][0]!r}; rename one")
    folder = Path(args.output_dir)
    check_writable("--output_dir", folder)
    has = [x for x in ("metadata.csv", "wavs") if (folder / x).exists()]
    if has and (has[0] == "metadata.csv" or not (folder / HEARD).exists()):
        replace = "remove it to have it made anew, or name another folder"
        raise DataError(f"--output_dir {folder}: has {has[0]} already; {replace}")
    if args.text is None:
        return None
    with file_errors():
        text = read_text(Path(args.text))
    if (markup := find_markup(text)) or not text.strip():
        raise DataError(f"--text {args.text}: has {markup or 'no words'}; expected what is said")
    return text


@script
def main(argv: list[str] | None = None) -> None:
    """Cut the recordings, have the pieces transcribed, and write the folder."""
    parser = FlagParser(description=__doc__.split("\n")[0])
    add = parser.add
    add("--recordings", "wav, flac, mp3 or ogg files", type=path_argument, nargs="+", required=True)
    add("--asr", "recognizer of transformers, by name or folder", required=True)
    add("--asr_language", "language of a recognizer that knows several, such as de")
    add("--text", "what is said in all recordings, in their order (UTF-8)", type=path_argument)
    add("--output_dir", "folder to write", type=path_argument, required=True)
    add_device_flag(parser)
    args = parser.parse_args(argv)
    text, folder, pieces = check_arguments(args), Path(args.output_dir), []
    recognizer = load_recognizer(args.asr, args.device, args.asr_language)
    asr = " ".join(filter(None, (args.asr, args.asr_language)))
    with file_errors():
        write_whole(folder / "wavs", lambda new: pieces.extend(write_pieces(new, args.recordings)))
        if not (folder / HEARD).exists():
            write_text(folder / HEARD, "{}")
        pieces = choose_texts(transcribe_pieces(pieces, folder, recognizer, asr), text)
        write_whole(folder / "pieces.csv", partial(pd.DataFrame(pieces).to_csv, index=False))
        say(*report(pieces))
        rows = "".join(f"{piece.name}|{piece.text}\n" for piece in pieces if not piece.why)
        if not rows:
            raise DataError(f"no piece can be used: {folder}/pieces.csv says why")
        write_text(folder / "metadata.csv", rows)
    say(f"Written to {folder}: metadata.csv, pieces.csv, wavs/")


if __name__ == "__main__":
    main()
