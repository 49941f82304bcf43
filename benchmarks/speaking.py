"""How often a checkpoint of the demo fails to speak, and what helps: window, careful stop, tries.

    python benchmarks/speaking.py --checkpoint demo/work_dir/demo/final_checkpoint

Speaks sentences of demo_sentences.py that the demo was not trained on, and paragraphs of them, in
several manners. espeak-ng speaks the same for the true lengths, by make_demo_corpus.py. Prints for
each manner the shares that stop by themselves; that align (coverage and monotonicity as
speaking.py asks of a sentence); that are within 15 % of espeak-ng's length; that are all three;
and the mean free-running score. Then the same by length of text, spoken in one piece.

Writes speaking.csv to --output_dir.
"""

import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import soundfile
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the flat modules are

from benchmarks import common
from command_line.files import count_argument, path_argument, seed_argument
from corpora.demo_sentences import make_sentences
from speech.speaking import PAUSES, Manner, Synthesis, encode, infer_best
from speech.voice import Voice, device_argument, load_checkpoint
from text.splitting import Piece, split_text

ROOT = Path(__file__).resolve().parent.parent
TRAINED_ON = (10, 32, 42, 3300)  # the demo's shortest, longest, seed and number of sentences
TOLERANCE = 0.15  # of the true length
N_IN_PARAGRAPH = 12  # sentences
LENGTHS = ((10, 32), (33, 80), (81, 150), (151, 250), (251, 400))  # characters
PLAIN = Manner(careful_stop=False, n_retries=0, max_decoder_steps=3000)


def make_manners(n_candidates: int, seed: int) -> dict[str, Manner]:
    """The manners to be compared, by name."""
    window, plain = (1, 3), replace(PLAIN, seed=seed)
    return {
        "first stop token": plain,
        "window 1 3": replace(plain, attention_window=window),
        "careful stop": replace(plain, careful_stop=True),
        f"{n_candidates} candidates": replace(plain, n_candidates=n_candidates),
        "careful stop, 2 retries": replace(plain, careful_stop=True, n_retries=2),
        "all of these": replace(
            plain, attention_window=window, careful_stop=True, n_candidates=n_candidates,
            n_retries=2,
        ),
    }  # fmt: skip


def true_seconds(texts: list[str]) -> list[float]:
    """How long espeak-ng takes for each text, as make_demo_corpus.py has it speak."""
    with tempfile.TemporaryDirectory() as folder:
        lines, corpus = Path(folder) / "lines.txt", Path(folder) / "corpus"
        lines.write_text("\n".join(texts) + "\n", encoding="utf-8")
        script = str(ROOT / "make_demo_corpus.py")
        command = [sys.executable, script, "--path_to_save", str(corpus), "--sentences", str(lines)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return [soundfile.info(path).duration for path in sorted((corpus / "wavs").glob("*.wav"))]


def draw_texts(shortest: int, longest: int, n: int, seed: int) -> list[str]:
    """Sentences of these lengths that are not among the demo's."""
    seen = set(islice(make_sentences(*TRAINED_ON[:3]), TRAINED_ON[3]))
    fresh = (text for text in make_sentences(shortest, longest, seed) if text not in seen)
    return list(islice(fresh, n))


def speak_texts(
    cut: list[list[Piece]], voice: Voice, manner: Manner, batch_size: int
) -> list[list[Synthesis]]:
    """The result of every piece of every text, without sound."""
    tokens = [encode(piece.text, voice) for pieces in cut for piece in pieces]
    results: list[Synthesis] = []
    for i in range(0, len(tokens), batch_size):
        results += infer_best(tokens[i : i + batch_size], voice, manner)
        print(f"{len(results)} of {len(tokens)}", end="\r", file=sys.stderr, flush=True)
    rest = iter(results)
    return [list(islice(rest, len(pieces))) for pieces in cut]


def judge(
    cut: list[list[Piece]], spoken: list[list[Synthesis]], seconds: list[float], voice: Voice
) -> common.Row:
    """The shares of the texts that stop, align and have the right length, and the mean score."""
    rows, hop_seconds = [], voice.audio_config.hop_seconds
    for pieces, results, true in zip(cut, spoken, seconds, strict=True):
        pauses = sum(0.3 * PAUSES[piece.end] for piece in pieces[:-1])
        length = sum(len(result.mel) for result in results) * hop_seconds + pauses
        stops = not any(result.reached_limit for result in results)
        aligns = not any(result._replace(reached_limit=False).failed for result in results)
        fits = abs(length / true - 1) <= TOLERANCE
        scores = [result.scores["free_running_score"] for result in results]
        rows.append((stops, aligns, fits, stops and aligns and fits, sum(scores) / len(scores)))
    names = "stops", "aligns", "length within 15 %", "all three", "score"
    values = torch.tensor(rows, dtype=torch.float64).mean(dim=0).tolist()
    return dict(zip(names, values, strict=True))


def measure(args) -> None:
    """Sentences, paragraphs and lengths in turn; prints and writes."""
    machine, rows = common.print_device(torch.device(args.device)), []
    voice = load_checkpoint(args.checkpoint, args.device)
    n = args.n_sentences + args.n_paragraphs * N_IN_PARAGRAPH
    lines = draw_texts(*TRAINED_ON[:2], n, args.seed)
    sentences, rest = lines[: args.n_sentences], lines[args.n_sentences :]
    random.Random(args.seed).shuffle(rest)
    paragraphs = [
        " ".join(rest[i : i + N_IN_PARAGRAPH]) for i in range(0, len(rest), N_IN_PARAGRAPH)
    ]
    whole = {"sentences": sentences, "paragraphs in one piece": paragraphs}
    by_length = {
        f"{shortest} to {longest} characters": draw_texts(
            shortest, longest, args.n_by_length, args.seed + 1
        )
        for shortest, longest in LENGTHS
    }
    cut = {
        kind: [[Piece(text, "sentence")] for text in texts]
        for kind, texts in (whole | by_length).items()
    }
    cut["paragraphs in pieces"] = [
        split_text(text, voice.tokenizer, args.max_characters) for text in paragraphs
    ]
    seconds = {kind: true_seconds(texts) for kind, texts in (whole | by_length).items()}
    seconds["paragraphs in pieces"] = seconds["paragraphs in one piece"]
    in_one_piece = {"paragraphs in one piece", *by_length}  # long texts take long
    of_long_texts = ("first stop token", "careful stop", "all of these")
    manners = make_manners(args.n_candidates, args.seed)
    for kind, texts in cut.items():
        for name, manner in manners.items():
            if kind in in_one_piece and name not in of_long_texts:
                continue
            spoken = speak_texts(texts, voice, manner, args.batch_size)
            row = {"texts": kind, "manner": name, "n": len(texts)}
            rows.append(row | judge(texts, spoken, seconds[kind], voice))
            print(rows[-1], file=sys.stderr, flush=True)
    common.report(args.output_dir / "speaking.csv", rows, machine)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs with these flags (default: the command line's)."""
    parser = common.make_parser(__doc__)
    add = parser.add_argument
    checkpoint = "demo/work_dir/demo/final_checkpoint"
    add("--checkpoint", type=path_argument, default=checkpoint, help=f"folder ({checkpoint})")
    add("--n_sentences", type=count_argument, default=200, help="sentences (default: 200)")
    add("--n_paragraphs", type=count_argument, default=20, help="paragraphs (default: 20)")
    add("--n_by_length", type=count_argument, default=12, help="texts of a length (default: 12)")
    add("--n_candidates", type=count_argument, default=3, help="tries of each (default: 3)")
    length_help = "of a piece of a paragraph (default: 150)"
    add("--max_characters", type=count_argument, default=150, help=length_help)
    add("--batch_size", type=count_argument, default=32, help="texts at once (default: 32)")
    add("--seed", type=seed_argument, default=777, help="of texts and dropout (default: 777)")
    add("--device", type=device_argument, default="cpu", help="where it speaks (default: cpu)")
    measure(parser.parse_args(argv))


if __name__ == "__main__":
    main()
