"""Publish a voice on the Hugging Face Hub, with a model card that shows how good it is.

    python -m extras.publish --checkpoint work_dir/tacotron2/final_checkpoint \
        --repo_id USER/NAME --data LJSpeech --license mit --dry_run --output_dir to_publish

It uploads config.json, model.safetensors and README.md, the model card: language, data, the numbers
of evaluate.py's report.json, the last picture of the alignment, the loss curve, two sounds, and how
to load the voice. Parts that it does not find are left out of the card with a warning. --dry_run
writes the folder instead of uploading it. Log in with `hf auth login` or HF_TOKEN.
"""

import argparse
import math
import re
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData, errors, get_token

from command_line.files import (
    DataError,
    check_writable,
    file_errors,
    path_argument,
    read_json,
    write_whole,
)
from command_line.flags import FlagParser
from command_line.main import say, script, warn
from speech.hub import HUB_NAME
from speech.voice import CONFIG_FILE, WEIGHTS_FILE, Voice, load_checkpoint

N_SOUNDS = 2
N_PARENTS = 3  # folders above the checkpoint in which report, pictures and sounds are looked for
METRICS = {  # numbers of report.json that the card shows: name, label, format
    "stopped_by_itself": ("stops by itself", "{:.1%}"),
    "length_within_15_percent": ("length within 15 % of the recording", "{:.1%}"),
    "text_match": ("text match", "{:.3f}"),
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
    "free_running_mos": ("predicted opinion score, 1 to 5", "{:.2f}"),
    "vocoded_mos": ("predicted opinion score of the recordings through the same vocoder", "{:.2f}"),
    "recording_mos": ("predicted opinion score of the recordings themselves", "{:.2f}"),
}
CARD = """---
{{ card_data }}
---

# {{ name }}

A Tacotron 2 (text to mel spectrogram){% if data %} trained on {{ data }}{% endif %}
{%- if step %}, {{ "{:,}".format(step) }} steps{% endif %}. Language: {{ language }}.
{{ "{:,}".format(n_parameters) }} parameters, {{ audio.num_mels }} mels at
{{ "{:,}".format(audio.sampling_rate) }} Hz, a frame every {{ audio.hop_size }} samples,
{{ n_symbols }} symbols.

## How to load it

In the folder of the training code:

```python
from speech.speaking import synthesize
from speech.voice import load_checkpoint
result = synthesize("Hello there.", load_checkpoint("{{ repo_id }}"), seed=0)  # mel, alignment, wav
```
{% if sounds %}
## Sounds

The model made the mels, and a vocoder, such as Griffin-Lim or HiFi-GAN, made the sounds of them.
{% for text in texts %}
{{ text }}

<audio controls src="{{ endpoint }}/{{ repo_id }}/resolve/main/sound_{{ loop.index }}.wav"></audio>
{% endfor %}{% endif %}{% if alignment %}
## Alignment

The attention that each character gets at each frame, for a sentence that the model was not trained
on, spoken freely.

![alignment](alignment.png)
{% endif %}{% if numbers %}
## Numbers

`evaluate.py` on {{ report.clips }} clips of `{{ manifest }}`
{%- if recognizer %}; {{ recognizer }} counted the word and character errors{% endif %}:

| | | 95 % interval |
|---|---|---|
{% for number in numbers %}| {{ number.label }} | {{ number.shown }} | {{ number.interval }} |
{% endfor %}{% endif %}{% if loss %}
## Training

![losses](loss.png)
{% endif %}"""


class Material(NamedTuple):
    """The parts of the card; a missing part is empty."""

    report: dict[str, Any]
    step: int | None
    alignment: list[Path]
    loss: list[Path]
    sounds: list[Path]


def find_files(checkpoint: Path, given: str | None, names: tuple[str, ...], pattern: str) -> list:
    """List files in the given folder, or in the nearest one of these names above the checkpoint."""
    near = checkpoint.absolute().parents[:N_PARENTS]
    folders = [Path(given)] if given else [parent / name for parent in near for name in names]
    found = (
        sorted(folder.glob(pattern), key=lambda path: (len(path.name), path.name))
        for folder in folders
    )  # epoch_1000 comes after epoch_999
    return next(filter(None, found), [])


def read_report(path: Path, step: int | None, experiment: str | None) -> dict[str, Any]:
    """Read report.json, which must be evaluate.py's, and of the checkpoint's step, experiment."""
    report = read_json(path, f"--report {path}")
    if not isinstance(report, dict) or not isinstance(report.get("clips"), int):
        raise DataError(f"--report {path}: is not a report of evaluate.py --output_json")
    if step is not None and report.get("step") not in (None, step):
        problem = f"is of step {report['step']!r:.20}, the checkpoint of step {step}"
        raise DataError(f"--report {path}: {problem}")
    measured = str(report.get("checkpoint", ""))
    if experiment and measured and Path(measured).parent.name != experiment:
        raise DataError(f"--report {path}: is of another checkpoint, {measured}")
    return report


def collect(args: argparse.Namespace) -> Material:
    """Find the material of the card, and warn of each part that is missing."""
    checkpoint = Path(args.checkpoint)
    find, report = partial(find_files, checkpoint), {}
    state = find(args.checkpoint, (), "trainer_state.json")
    experiment = checkpoint.absolute().parent.name
    step = read_json(state[0]).get("step") if state else None
    found = [Path(args.report)] if args.report else find(None, ("",), "report.json")
    try:
        report = read_report(found[0], step, None if args.report else experiment) if found else {}
    except DataError as error:
        if args.report:
            raise
        warn(f"left out of the card: {error}")
    samples = f"validation/{experiment}", f"samples/{experiment}"
    written = (checkpoint / WEIGHTS_FILE).stat().st_mtime
    sounds = find(args.sounds, ("spoken",), "*.wav")
    if not args.sounds:  # an older sound is of another voice
        sounds = [path for path in sounds if path.stat().st_mtime >= written]
    material = Material(
        report,
        step,
        find(args.samples, samples, "epoch_*_free_running.png")[-1:],
        find(args.samples, samples, "loss.png"),
        sounds[:N_SOUNDS],
    )
    parts = {
        "numbers (--report)": report,
        "picture of the alignment (--samples)": material.alignment,
        "loss curve (--samples)": material.loss,
        "sounds (--sounds)": material.sounds,
        "name of the data (--data)": args.data,
        "licence (--license)": args.license,
    }
    if missing := [f"no {name}" for name, part in parts.items() if not part]:
        warn(f"left out of the card: {', '.join(missing)}")
    return material


def list_numbers(report: dict[str, Any]) -> list[dict[str, Any]]:
    """List the finite numbers of a report that the card shows, and how it shows them."""
    numbers = []
    for name, (label, form) in METRICS.items():
        value = report.get(name)
        if isinstance(value, int | float) and math.isfinite(value):
            interval = report.get("intervals", {}).get(name) or ()
            number = {"name": name, "label": label, "value": value, "shown": form.format(value)}
            numbers.append(number | {"interval": " to ".join(map(form.format, interval))})
    return numbers


def make_card(args: argparse.Namespace, voice: Voice, material: Material) -> ModelCard:
    """Make README.md: the Hub's metadata, and the card for people."""
    name, data, report = args.repo_id.split("/")[1], args.data or "own test set", material.report
    numbers = list_numbers(report)
    results = [
        EvalResult(
            task_type="text-to-speech",
            dataset_type=re.sub(r"\W+", "-", data.lower()),
            dataset_name=data,
            metric_type=number["name"],
            metric_name=number["label"],
            metric_value=round(number["value"], 4),
        )
        for number in numbers
    ]
    metadata = ModelCardData(
        language=args.language,
        license=args.license,
        pipeline_tag="text-to-speech",
        tags=["tacotron2", "text-to-speech"],
        model_name=name,
        eval_results=results or None,
    )
    # The recognizer is a name of the Hub or a folder of this machine, whose path stays private.
    recognizer = str(report.get("asr") or "")
    texts = [path.with_suffix(".txt") for path in material.sounds]
    return ModelCard.from_template(
        metadata,
        template_str=CARD,
        **vars(args) | material._asdict(),
        name=name,
        endpoint=HfApi().endpoint,
        audio=voice.audio_config,
        n_parameters=sum(p.numel() for p in voice.model.parameters()),
        n_symbols=voice.tokenizer.vocab_size,
        numbers=numbers,
        manifest=Path(str(report.get("manifest"))).name,
        recognizer=recognizer if HUB_NAME.fullmatch(recognizer) else Path(recognizer).name,
        texts=[p.read_text(encoding="utf-8").strip() if p.is_file() else p.stem for p in texts],
    )


def write_folder(args: argparse.Namespace, voice: Voice, material: Material, folder: Path) -> None:
    """Write the files to publish into a new folder."""
    folder.mkdir(parents=True)
    copies = [(Path(args.checkpoint, name), name) for name in (CONFIG_FILE, WEIGHTS_FILE)]
    copies += [(path, "alignment.png") for path in material.alignment]
    copies += [(path, "loss.png") for path in material.loss]
    copies += [(path, f"sound_{i}.wav") for i, path in enumerate(material.sounds, start=1)]
    for path, name in copies:
        shutil.copyfile(path, folder / name)
    make_card(args, voice, material).save(folder / "README.md")


def upload(folder: Path, repo_id: str, private: bool) -> str:
    """Upload a folder to a repository, which is made if it is missing; return its address."""
    if not get_token():
        raise DataError("not logged in: run `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload a voice")
    except (errors.HTTPError, OSError, ValueError) as error:
        reason = getattr(error, "server_message", None) or str(error)
        raise DataError(f"--repo_id {repo_id}: cannot be uploaded ({reason[:300]})") from None
    return str(url)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the flags; argparse ends the program on a mistake."""
    parser = FlagParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--checkpoint", type=path_argument, required=True, help="checkpoint folder")
    add("--repo_id", required=True, metavar="USER/NAME", help="name on the Hub")
    add("--private", action="store_true", help="make the repository a private one")
    add("--dry_run", action="store_true", help="write the folder, upload nothing")
    add("--output_dir", type=path_argument, help="folder that --dry_run writes; must be new")
    near = f"(default: in the {N_PARENTS} folders above the checkpoint)"
    add("--report", type=path_argument, help=f"report.json of evaluate.py {near}")
    add("--samples", type=path_argument, metavar="DIR", help=f"training's pictures {near}")
    add("--sounds", type=path_argument, metavar="DIR", help=f"wavs of synthesize.py {near}")
    add("--language", help="the voice's, by ISO 639-1 (default: that of --phonemes espeak, or en)")
    add("--data", help="name of the recordings, such as LJSpeech")
    add("--license", help="the Hub's name of the voice's licence, such as cc-by-4.0")
    args = parser.parse_args(argv)
    found = HUB_NAME.fullmatch(args.repo_id)
    if not found or found["revision"]:
        parser.error(f"--repo_id must be USER/NAME, found {args.repo_id}")
    if args.dry_run != bool(args.output_dir):
        parser.error("--dry_run and --output_dir go together")
    return args


@script
@file_errors()
def main(argv: list[str] | None = None) -> None:
    """Publish a voice, or write the folder that would be published."""
    args = parse_args(argv)
    if not Path(args.checkpoint).is_dir():
        raise DataError(f"--checkpoint {args.checkpoint}: no such checkpoint folder")
    if args.dry_run:
        if Path(args.output_dir).exists():
            raise DataError(f"--output_dir {args.output_dir}: is already there, choose another")
        check_writable("--output_dir", args.output_dir)
    voice = load_checkpoint(args.checkpoint)
    args.language = args.language or voice.tokenizer.language.split("-")[0] or "en"
    write = partial(write_folder, args, voice, collect(args))
    if args.dry_run:
        write_whole(args.output_dir, write)
        say(f"{args.output_dir}: what would be published as {args.repo_id}")
        return
    with tempfile.TemporaryDirectory() as scratch:
        write(Path(scratch, "voice"))
        say(f"published: {upload(Path(scratch, 'voice'), args.repo_id, args.private)}")


if __name__ == "__main__":
    main()
