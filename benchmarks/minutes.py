"""Ask how many minutes of recordings make a voice that is understood.

    python benchmarks/minutes.py --recordings recordings --minutes 3 6 12 25 \
        --epochs 160 120 100 80 --checkpoint demo/work_dir/demo/final_checkpoint \
        --asr openai/whisper-tiny.en --vocoder universal --mos --output_dir minutes

It holds out the same sentences from all voices: recordings that follow each other by name, so by
story if they are named in order, from --n_places of the corpus, half of them to choose a checkpoint
by and half to measure with. my_voice.sh makes each voice from some of the others, drawn at random,
and a smaller set is part of each larger one. minutes.csv gets a row for each voice; one that is
made already is not made again, and one that is half made goes on, but then its minutes_taken are
those of the last call alone. With --from_nothing, the voices take sizes and symbols from the
checkpoint, but no weights, and the table is minutes_from_nothing.csv.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import safetensors.torch
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import evaluate
import prep_splits
from benchmarks.common import Row, make_parser, print_device, report
from command_line.files import DataError, count_argument, path_argument
from command_line.main import script
from dataset import read_manifest
from model import Tacotron2
from speech.hub import WEIGHTS_FILE
from speech.voice import read_config, write_config

MY_VOICE = Path(prep_splits.__file__).with_name("my_voice.sh")
IN_A_ROW = 14  # recordings held out at each place
GUIDE = "--guided_attention_weight 1 --guided_attention_sigma 0.4"  # of `make demo`
REPORTED = (
    "text_match",
    "stopped_by_itself",
    "length_within_15_percent",
    "free_running_wer",
    "recording_wer",
    "free_running_mos",
)


def hold_out(clips: pd.DataFrame, n_places: int) -> dict[str, pd.DataFrame]:
    """Split the rows of a manifest, sorted by recording, into "train", "val" and "test"."""
    starts = [round((k + 0.5) * len(clips) / n_places) for k in range(n_places)]
    held = {start + i for start in starts for i in range(IN_A_ROW) if start + i < len(clips)}
    train = clips.iloc[[i for i in range(len(clips)) if i not in held]]
    words = clips["normalized_transcript"].map(prep_splits.spoken_words)
    known = {*words[train.index]}
    new = [i for i in sorted(held) if words[i] not in known]
    return {"train": train, "val": clips.iloc[new[::2]], "test": clips.iloc[new[1::2]]}


def take_minutes(clips: pd.DataFrame, minutes: float) -> pd.DataFrame:
    """Take clips at random, always in the same order, until they last so long."""
    shuffled = clips.sample(frac=1, random_state=0)
    ends = shuffled["duration"].cumsum()
    if ends.iloc[-1] < 60 * minutes:
        have = f"there are {ends.iloc[-1] / 60:.1f} minutes to train on"
        raise DataError(f"--minutes {minutes:g}: {have}")
    return shuffled[ends <= 60 * minutes].sort_values("duration", ascending=False)


def save_untrained(checkpoint: str, folder: Path) -> Path:
    """Save a voice that has the checkpoint's sizes and symbols, and new weights."""
    model_config, audio_config, tokenizer, *_ = read_config(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    weights = Tacotron2(model_config).state_dict()
    safetensors.torch.save_file(weights, folder / WEIGHTS_FILE)
    write_config(folder, model_config, audio_config, tokenizer)
    return folder


def make_voice(args: argparse.Namespace, splits: dict[str, pd.DataFrame], run: int) -> Row:
    """Train a voice on so many minutes, measure it on the sentences held out, and make its row."""
    minutes, epochs = args.minutes[run], args.epochs[run]
    kind = "nothing" if args.from_nothing else "voice"
    folder = args.output_dir.absolute() / f"{kind}_{minutes:g}"
    folder.mkdir(parents=True, exist_ok=True)
    train = take_minutes(splits["train"], minutes)
    for name, clips in (("train", train), ("test", splits["val"]), ("held_out", splits["test"])):
        path = folder / f"{name}_metadata.csv"
        if not path.exists():  # my_voice.sh keeps a split that it finds
            clips.to_csv(path, index=False)
    start = time.perf_counter()
    flags = {"RECORDINGS": args.recordings, "VOICE": folder, "CHECKPOINT": args.checkpoint}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "EPOCHS": str(epochs)}
    environment |= {name: os.path.abspath(value) for name, value in flags.items()}
    if args.from_nothing:
        environment["TRAIN_FLAGS"] = f"{GUIDE} {os.environ.get('TRAIN_FLAGS', '')}"
    if subprocess.run(["bash", MY_VOICE], env=environment).returncode:
        raise DataError(f"{folder}: my_voice.sh failed, as it says above")
    taken = (time.perf_counter() - start) / 60
    argv = ["--checkpoint", folder / "work_dir/voice/final_checkpoint", "--asr", args.asr]
    argv += ["--path_to_manifest", folder / "held_out_metadata.csv"]
    argv += ["--vocoder", args.vocoder] if args.vocoder else []
    found = evaluate.run(evaluate.parse_args([*map(str, argv), *["--mos"][: args.mos]]))
    head = {"minutes": minutes, "clips": len(train), "epochs": epochs, "steps": found["step"]}
    return head | {"minutes_taken": taken} | {k: found[k] for k in REPORTED if k in found}


@script
def main(argv: Sequence[str] | None = None) -> None:
    """Make the voices one after the other, and write the table after each."""
    parser = make_parser(__doc__, n_places=(10, "places of the corpus to hold sentences out from"))
    recordings = "folder of recordings that prep_splits.py reads"
    parser.add("--recordings", recordings, type=path_argument, required=True)
    parser.add("--checkpoint", "voice to begin with", type=path_argument, required=True)
    parser.add_argument("--from_nothing", action="store_true", help="begin with new weights")
    minutes = "minutes of recordings of each voice"
    parser.add_argument("--minutes", type=float, nargs="+", required=True, help=minutes)
    epochs = "epochs of each voice"
    parser.add_argument("--epochs", type=count_argument, nargs="+", required=True, help=epochs)
    parser.add("--asr", "speech recognizer of transformers", required=True)
    parser.add("--vocoder", "HiFi-GAN, as synthesize.py takes it")
    parser.add_argument("--mos", action="store_true", help="predict opinion scores")
    args = parser.parse_args(argv)
    if len(args.epochs) != len(args.minutes):
        parser.error("--epochs and --minutes: expected as many of one as of the other")
    name = "minutes_from_nothing.csv" if args.from_nothing else "minutes.csv"
    machine, table = print_device(torch.device("cpu")), args.output_dir / name
    flags = ["--path_to_ljspech", args.recordings, "--path_to_save", args.output_dir / "all"]
    prep_splits.main([*map(str, flags)])
    parts = [read_manifest(path) for path in sorted((args.output_dir / "all").glob("*.csv"))]
    clips = pd.concat(parts).sort_values("file_path", ignore_index=True)
    clips["duration"] = clips["duration"].astype(float)
    splits = hold_out(clips, args.n_places)
    print(", ".join(f"{len(part)} clips for {name}" for name, part in splits.items()))
    rows = pd.read_csv(table).drop(columns="machine").to_dict("records") if table.exists() else []
    if args.from_nothing:
        args.checkpoint = save_untrained(args.checkpoint, args.output_dir / "untrained")
    made = {row["minutes"] for row in rows}
    for run in (run for run, minutes in enumerate(args.minutes) if minutes not in made):
        rows.append(make_voice(args, splits, run))
        report(table, rows, machine)


if __name__ == "__main__":
    main()
