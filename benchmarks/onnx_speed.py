"""Time a text by PyTorch and onnxruntime in turn, and score how the quantised LSTMs speak.

    python benchmarks/onnx_speed.py --checkpoint demo/work_dir/demo/final_checkpoint --threads 1
    python benchmarks/onnx_speed.py --checkpoint demo/work_dir/demo/final_checkpoint \
        --path_to_manifest demo/test_metadata.csv --word_times demo/corpus/word_times.json

It times text to mel, batch 1, in float32, with the graphs of extras/export_onnx.py. All make as
many frames as PyTorch does with --seed, and ignore the stop token. With a manifest both kinds of
graphs also speak every clip freely, for the share that stops by itself, and teacher forced, for the
errors of word starts, as in evaluate.py.

Writes onnx_speed.csv to --output_dir.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from benchmarks.common import OURS
from command_line.files import import_extra, path_argument, read_json, seed_argument
from command_line.main import script
from dataset import TTSDataset
from extras.export_onnx import fill_folder
from scoring.scores import free_running_limit, place_words, word_start_errors
from speech.voice import Voice, load_checkpoint
from text.tokenizer import Tokenizer

MAX_FRAMES = 2000
FLOAT32, INT8 = "onnxruntime float32", "onnxruntime int8"


def make_speakers(voice: Voice, threads: int) -> dict[str, Any]:
    """Export both kinds of graphs to a temporary folder, and load them."""
    from extras.run_onnx import Speaker

    with tempfile.TemporaryDirectory() as folder:
        fill_folder(voice, Path(folder), int8=True, stop_threshold=0.5)
        return {FLOAT32: Speaker(folder, False, threads), INT8: Speaker(folder, True, threads)}


def time_text(
    voice: Voice, speakers: dict[str, Any], args: argparse.Namespace
) -> tuple[int, dict[str, list[float]]]:
    """Return the frames of the text, and by name the seconds of each repeat."""
    tokens = voice.tokenizer.encode(args.text)[None]
    torch.manual_seed(args.seed)
    n_frames = int(voice.model.infer(tokens, None, MAX_FRAMES).mel_lengths)
    array, rng = tokens.numpy(), np.random.default_rng(args.seed)
    runs: dict[str, Callable[[], Any]] = {
        OURS: lambda: voice.model.infer(tokens, None, n_frames, stop_threshold=1.0)
    }
    for name, speaker in speakers.items():
        runs[name] = lambda speaker=speaker: speaker.speak(array, rng, n_frames, 1.0)
    for run in runs.values():
        run()  # warms up
    cpu = torch.device("cpu")
    timed = {name: lambda run=run: common.timed(run, cpu) for name, run in runs.items()}
    return n_frames, common.in_turn(timed, args.repeats)


def score(
    speaker: Any, clips: TTSDataset, tokenizer: Tokenizer, word_times: dict[str, list], seed: int
) -> str:
    """Describe how the clips of a manifest are spoken."""
    rng, errors, n_stopped = np.random.default_rng(seed), [], 0
    for clip in clips:
        tokens, mel = clip.tokens[None].numpy(), clip.mel.numpy()
        limit = free_running_limit(len(mel), MAX_FRAMES)
        stop_logits = speaker.speak(tokens, rng, limit, 0.5)[1]
        n_stopped += bool(stop_logits[-1] > 0)
        words = word_times.get(Path(clip.path).stem, [])
        words = place_words(words, clip.text, clip.tokens, tokenizer)
        alignment = torch.from_numpy(speaker.speak(tokens, rng, mels=mel)[2])
        errors += word_start_errors(alignment, words, clips.audio_config.hop_seconds)[0]
    milliseconds = 1000 * np.abs(errors) if errors else np.array([np.nan])
    median, most = np.median(milliseconds), np.percentile(milliseconds, 90)
    starts = f"{len(errors)} words, median / 90th percentile: {median:.1f} / {most:.1f} ms"
    return f"{n_stopped} of {len(clips)} clips stop by themselves, word start error of {starts}"


def measure(args: argparse.Namespace) -> None:
    """Time the text, score the manifest; print and write."""
    for package in ("onnx", "onnxruntime"):
        import_extra(package, "this benchmark", "requirements/onnx.txt")
    torch.set_num_threads(args.threads)
    voice = load_checkpoint(args.checkpoint)
    machine = common.print_device(torch.device("cpu"))
    speakers = make_speakers(voice, args.threads)
    n_frames, seconds = time_text(voice, speakers, args)
    rows = [
        {"model": name, "threads": args.threads, "n_frames": n_frames}
        | common.step_columns([1e3 * time / n_frames for time in times])
        | {"text_s": float(np.median(times))}
        for name, times in seconds.items()
    ]
    common.report(args.output_dir / "onnx_speed.csv", rows, machine)
    for name in speakers:
        print(common.ratio_line(f"{OURS} / {name}", seconds[OURS], seconds[name]))
    if args.path_to_manifest:
        word_times = read_json(args.word_times, args.word_times) if args.word_times else {}
        clips = TTSDataset(args.path_to_manifest, voice.audio_config, voice.tokenizer)
        for name, speaker in speakers.items():
            print(f"{name}: {score(speaker, clips, voice.tokenizer, word_times, args.seed)}")


@script
def main(argv: Sequence[str] | None = None) -> None:
    """Measure with these flags."""
    threads = (2, "threads of each runtime")
    parser = common.make_parser(__doc__, threads=threads, repeats=(9, "timed runs"))
    add = parser.add_argument
    add("--checkpoint", type=path_argument, required=True, help="checkpoint folder")
    add("--text", default="Hello world!", help="text that is timed (default: %(default)s)")
    add("--path_to_manifest", type=path_argument, help="clips on which the graphs are scored")
    add("--word_times", type=path_argument, help="word_times.json of corpora/make_demo_corpus.py")
    add("--seed", type=seed_argument, default=0, help="seed of dropout (default: %(default)s)")
    measure(parser.parse_args(argv))


if __name__ == "__main__":
    main()
