"""Puts a voice on the Hugging Face Hub, with a model card that says what it is and how good.

    python -m extras.publish --checkpoint work_dir/tacotron2/final_checkpoint \
        --repo_id USER/NAME --data LJSpeech --license mit --dry_run --output_dir to_publish

Up go config.json and model.safetensors, nothing else of the checkpoint, and README.md, the card:
language, data, the numbers of evaluate.py's report.json (also as the metadata that the Hub makes
its tables from), the last picture of the alignment, the loss curve, two sounds, and how to load
it. What is not found is left out of the card, and said. Without --dry_run the folder goes up; who
you are is known from `hf auth login` or from HF_TOKEN.
"""

import argparse
import math
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from command_line.files import (
    DataError,
    check_writable,
    file_errors,
    path_argument,
    read_json,
    write_whole,
)
from command_line.flags import FlagParser
from speech.hub import HUB_NAME
from speech.voice import CONFIG_FILE, WEIGHTS_FILE, Voice, load_checkpoint

N_SOUNDS = 2
N_PARENTS = 3  # folders above the checkpoint that report, pictures and sounds are looked for in
MEASURED = {  # numbers of report.json that the card has: name, label, format
    "stopped_by_itself": ("stops by itself", "{:.1%}"),
    "length_within_15_percent": ("length within 15 % of the recording", "{:.1%}"),
    "free_running_score": ("free-running score", "{:.3f}"),
    "focus": ("focus, teacher forced", "{:.3f}"),
    "coverage": ("coverage, teacher forced", "{:.3f}"),
    "monotonicity": ("monotonicity, teacher forced", "{:.3f}"),
    "mcd_db_median": ("mel-cepstral distortion, median (dB)", "{:.2f}"),
    "word_start_median_ms": ("word start error, median (ms)", "{:.0f}"),
    "word_start_p90_ms": ("word start error, 90th percentile (ms)", "{:.0f}"),
    "free_running_wer": ("word error rate", "{:.1%}"),
    "free_running_cer": ("character error rate", "{:.1%}"),
    "vocoded_wer": ("word error rate of the recordings through the same vocoder", "{:.1%}"),
    "recording_wer": ("word error rate of the recordings themselves", "{:.1%}"),
    "recording_cer": ("character error rate of the recordings themselves", "{:.1%}"),
}
LOADING = """```python
from speech.voice import load_checkpoint
from synthesize import synthesize
result = synthesize("Hello there.", load_checkpoint("{repo_id}"), seed=0)  # mel, alignment, wav
```"""


class Material(NamedTuple):
    """What a card is made from; what is missing is None or empty."""

    report: dict[str, Any] | None
    alignment: Path | None
    loss: Path | None
    sounds: list[Path]
    step: int | None


def find_default(checkpoint: Path, names: tuple[str, ...], holds: str) -> Path | None:
    """The first of `names` in the folders around a checkpoint, nearest first, in which is `holds`.

    `holds` is a pattern of files in it, or "" where the name itself is a file's.
    """
    for folder in checkpoint.absolute().parents[:N_PARENTS]:
        for path in (folder / name for name in names):
            if path.is_file() if not holds else any(path.glob(holds)):
                return path
    return None


def check_report(path: Path, step: int | None) -> dict[str, Any]:
    """report.json of evaluate.py.

    Raises:
        DataError: when it is not one, or is of another step than the checkpoint's.
    """
    report = read_json(path, f"--report {path}")
    if not isinstance(report, dict) or not isinstance(report.get("clips"), int):
        raise DataError(f"--report {path}: is not a report of evaluate.py --output_json")
    if step is not None and report.get("step") not in (None, step):
        raise DataError(
            f"--report {path}: is of step {report['step']!r:.20}, the checkpoint of step {step}"
        )
    return report


def collect(args: argparse.Namespace) -> tuple[Material, list[str]]:
    """The material of a card by the flags, and a phrase for each part that is missing.

    Raises:
        DataError: when a file that a flag names cannot be used.
    """
    checkpoint = Path(args.checkpoint)
    state_path = checkpoint / "trainer_state.json"
    state = read_json(state_path, str(state_path)) if state_path.is_file() else {}
    step = state.get("step") if isinstance(state, dict) else None
    report = args.report or find_default(checkpoint, ("report.json",), "")
    samples = args.samples or find_default(checkpoint, ("validation", "samples"), "epoch_*.png")
    spoken = args.sounds or find_default(checkpoint, ("spoken",), "*.wav")
    pictures = sorted(Path(samples).glob("epoch_*_free_running.png")) if samples else []
    loss = Path(samples, "loss.png") if samples else None
    numbers = None
    try:
        numbers = check_report(Path(report), step) if report else None
    except DataError as error:
        if args.report:
            raise
        print(f"left out of the card: {error}", file=sys.stderr)
    material = Material(
        numbers,
        pictures[-1] if pictures else None,
        loss if loss and loss.is_file() else None,
        sorted(Path(spoken).glob("*.wav"))[:N_SOUNDS] if spoken else [],
        step,
    )
    missing = [
        f"no {what} (--{flag})"
        for what, flag, found in (
            ("numbers", "report", material.report),
            ("picture of the alignment", "samples", material.alignment),
            ("loss curve", "samples", material.loss),
            ("sounds", "sounds", material.sounds),
            ("name of the data", "data", args.data),
            ("licence", "license", args.license),
        )
        if not found
    ]
    return material, missing


def measured(report: dict[str, Any] | None) -> dict[str, float]:
    """The numbers of a report that the card shows, by name."""
    found = {name: (report or {}).get(name) for name in MEASURED}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def describe_numbers(report: dict[str, Any]) -> str:
    """The card's table of the numbers, with their 95 % intervals where there are some."""
    lines = ["| | | 95 % interval |", "|---|---|---|"]
    intervals = report.get("intervals")
    for name, value in measured(report).items():
        label, form = MEASURED[name]
        interval = (intervals if isinstance(intervals, dict) else {}).get(name)
        between = " to ".join(form.format(x) for x in interval) if interval else ""
        lines.append(f"| {label} | {form.format(value)} | {between} |")
    manifest = Path(str(report.get("manifest", ""))).name
    judged = f"`evaluate.py` on {report['clips']} clips of `{manifest}`"
    if report.get("asr"):
        recognizer = str(report["asr"])  # a name of the Hub, or a folder of this machine
        recognizer = recognizer if HUB_NAME.fullmatch(recognizer) else Path(recognizer).name
        judged += f"; {recognizer} counted the word and character errors"
    return "\n".join([f"{judged}:", "", *lines])


def make_card(args: argparse.Namespace, voice: Voice, material: Material) -> str:
    """README.md: the Hub's metadata, and the card for people."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData, constants

    name = args.repo_id.split("/")[1]
    data = args.data or "its own test set"
    results = [
        EvalResult(
            task_type="text-to-speech",
            task_name="Text-to-Speech",
            dataset_type=re.sub(r"\W+", "-", data.lower()),
            dataset_name=data,
            metric_type=number,
            metric_name=MEASURED[number][0],
            metric_value=round(value, 4),
        )
        for number, value in measured(material.report).items()
    ]
    metadata = ModelCardData(
        language=args.language,
        license=args.license,
        pipeline_tag="text-to-speech",
        tags=["tacotron2", "text-to-speech"],
        model_name=name,
        eval_results=results or None,
    )
    audio, n_parameters = voice.audio_config, sum(p.numel() for p in voice.model.parameters())
    trained = f" trained on {args.data}" if args.data else ""
    steps = f", {material.step:,} steps" if material.step else ""
    code = f" from [this repository]({args.code})" if args.code else ""
    parts = [
        f"# {name}",
        f"A Tacotron 2 (text to mel spectrogram){trained}{steps}. Language: {args.language}. "
        f"{n_parameters:,} parameters, {audio.num_mels} mels at {audio.sampling_rate:,} Hz, a "
        f"frame every {audio.hop_size} samples, {voice.tokenizer.vocab_size} symbols.",
        "## How to load it",
        f"In the folder of the training code{code}:",
        LOADING.format(repo_id=args.repo_id),
    ]
    if material.sounds:
        parts.append("## Sounds\n\nThe sound is Griffin-Lim's, which is metallic.")
    for i, path in enumerate(material.sounds, start=1):
        url = f"{constants.ENDPOINT}/{args.repo_id}/resolve/main/sound_{i}.wav"
        text = path.with_suffix(".txt")
        said = text.read_text(encoding="utf-8").strip() if text.is_file() else path.name
        parts.append(f'{said}\n\n<audio controls src="{url}"></audio>')
    if material.alignment:
        parts.append(
            "## Alignment\n\nHow much attention each character gets at each frame, for a "
            "sentence that it did not train on, spoken freely.\n\n![alignment](alignment.png)"
        )
    if measured(material.report):
        parts.append(f"## Numbers\n\n{describe_numbers(material.report)}")
    if material.loss:
        parts.append("## Training\n\n![losses](loss.png)")
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"))


def write_folder(folder: Path, args: argparse.Namespace, voice: Voice, material: Material) -> None:
    """All that goes up, in a folder that is not there yet."""
    folder.mkdir(parents=True)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copyfile(Path(args.checkpoint) / name, folder / name)
    for name, path in (("alignment.png", material.alignment), ("loss.png", material.loss)):
        if path:
            shutil.copyfile(path, folder / name)
    for i, path in enumerate(material.sounds, start=1):
        shutil.copyfile(path, folder / f"sound_{i}.wav")
    (folder / "README.md").write_text(make_card(args, voice, material), encoding="utf-8")


def upload(folder: Path, repo_id: str, private: bool) -> str:
    """Makes the repository where it is missing, and uploads the folder; returns its address.

    Raises:
        DataError: when nobody is logged in, or the Hub refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi, errors, get_token

    if not get_token():
        raise DataError("not logged in: `hf auth login` or HF_TOKEN says who publishes")
    api = HfApi()
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message="A voice, by extras/publish.py"
        )
    except errors.HfHubHTTPError as error:
        reason = " ".join((error.server_message or str(error)).split())[:300]
        raise DataError(f"--repo_id {repo_id}: the Hub refused it ({reason})") from None
    except (errors.HTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"--repo_id {repo_id}: cannot be uploaded ({reason})") from None
    return str(url)


def run(args: argparse.Namespace) -> str:
    """Publishes, or writes the folder that would be; returns a sentence about it.

    Raises:
        DataError: when a file cannot be used, or the Hub does not take it.
    """
    if not os.path.isdir(args.checkpoint):
        raise DataError(f"--checkpoint {args.checkpoint}: no such checkpoint folder")
    if args.dry_run:
        if os.path.exists(args.output_dir):
            raise DataError(f"--output_dir {args.output_dir}: is already there, choose another")
        check_writable("--output_dir", Path(args.output_dir).absolute().parent)
    voice = load_checkpoint(args.checkpoint)
    material, missing = collect(args)
    if missing:
        print(f"left out of the card: {', '.join(missing)}", file=sys.stderr)
    with file_errors():
        if args.dry_run:
            write_whole(args.output_dir, lambda path: write_folder(path, args, voice, material))
            return f"{args.output_dir}: what would go up to {args.repo_id}"
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "voice"
            write_folder(folder, args, voice, material)
            return f"published: {upload(folder, args.repo_id, args.private)}"


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The flags; argparse ends the program on a mistake."""
    parser = FlagParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--checkpoint", type=path_argument, required=True, help="checkpoint folder")
    add("--repo_id", required=True, metavar="USER/NAME", help="where on the Hub")
    add("--private", action="store_true", help="make the repository a private one")
    add("--dry_run", action="store_true", help="write the folder that would go up, upload nothing")
    add("--output_dir", type=path_argument, help="that folder, for --dry_run; must be new")
    near = f"default: looked for in the {N_PARENTS} folders above the checkpoint"
    add("--report", type=path_argument, help=f"report.json of evaluate.py ({near})")
    samples_help = "folder that training drew to, --save_audio_gen"
    add("--samples", type=path_argument, metavar="DIR", help=f"{samples_help} ({near})")
    sounds_help = f"folder that synthesize.py spoke to; its first {N_SOUNDS} wavs go up"
    add("--sounds", type=path_argument, metavar="DIR", help=f"{sounds_help} ({near})")
    add("--language", default="en", help="of the voice, ISO 639-1 (default: %(default)s)")
    add("--data", help="name of the recordings, such as LJSpeech")
    add("--license", help="the Hub's name of the voice's licence, such as cc-by-4.0")
    add("--code", metavar="URL", help="where the training code is, for the card")
    args = parser.parse_args(argv)
    found = HUB_NAME.fullmatch(args.repo_id)
    if not found or found["revision"]:
        parser.error(f"--repo_id must be USER/NAME, found {args.repo_id}")
    if args.dry_run != bool(args.output_dir):
        parser.error("--dry_run and --output_dir go together")
    return args


def main(argv: list[str] | None = None) -> None:
    """Runs with these flags (default: the command line's); bad input ends in one sentence."""
    args = parse_args(argv)
    try:
        print(run(args))
    except DataError as error:
        sys.exit(f"extras/publish.py: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
