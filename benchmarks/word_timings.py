"""Compare the words' times of a voice's alignments with forced alignment of the same sounds.

    python benchmarks/word_timings.py --checkpoint demo/work_dir/demo/final_checkpoint \
        --path_to_manifest demo/test_metadata.csv

It speaks the texts of a manifest, and PocketSphinx (requirements/align.txt) aligns each sound with
its text. Clips that it cannot align are left out. Its own errors are part of the measured ones.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import make_parser, print_device, report
from command_line.files import path_argument
from command_line.main import script
from dataset import read_manifest
from extras.align_words import align_all
from speech.speaking import SpeakingOptions, speak
from speech.timings import time_words
from speech.vocoder import choose_vocoder
from speech.voice import add_device_flag, load_checkpoint


@script
def main(argv: Sequence[str] | None = None) -> None:
    """Measure the starts and the ends of the words."""
    parser = make_parser(__doc__, n_clips=(24, "clips of the manifest, from its beginning"))
    parser.add("--checkpoint", "checkpoint folder", type=path_argument, required=True)
    parser.add("--path_to_manifest", "CSV of prep_splits.py", type=path_argument, required=True)
    vocoder = "HiFi-GAN for the sounds, as synthesize.py takes it"
    parser.add("--vocoder", vocoder, type=path_argument, metavar="NAME")
    add_device_flag(parser)
    args = parser.parse_args(argv)
    voice = load_checkpoint(args.checkpoint, args.device)
    audio = voice.audio_config
    texts = list(read_manifest(args.path_to_manifest)["normalized_transcript"])[: args.n_clips]
    vocoder = choose_vocoder(args.vocoder, audio, args.device)
    timed, errors = {}, {"start": [], "end": []}
    with tempfile.TemporaryDirectory() as folder:
        spoken = speak(texts, voice, SpeakingOptions(seed=42, vocoder=vocoder))
        for number, (text, result) in enumerate(zip(texts, spoken, strict=True)):
            soundfile.write(f"{folder}/{number}.wav", result.wav.numpy(), audio.sampling_rate)
            timed[str(number)] = time_words(text, result, voice)
        aligned, _ = align_all([(f"{folder}/{i}.wav", text) for i, text in enumerate(texts)])
    same = [(timed[i], words) for i, words in aligned.items() if len(timed[i]) == len(words)]
    for ours, words in same:
        for word, reference in zip(ours, words, strict=True):
            errors["start"].append(word.start - reference["start"])
            errors["end"].append(word.end - reference["end"])
    rows = []
    for name, seconds in errors.items():
        ms = 1000 * np.array(seconds)
        median, high = np.percentile(abs(ms), (50, 90))
        counts = {"clips": len(same), "words": len(ms)}
        rows.append({"of a word": name, **counts, "median_ms": median, "p90_ms": high})
    report(args.output_dir / "word_timings.csv", rows, print_device(torch.device(args.device)))


if __name__ == "__main__":
    main()
