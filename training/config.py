"""The flags: TrainConfig, and the one function that turns the three configs into flags.

AudioConfig stands in dataset.py and Tacotron2Config in model.py, beside what they describe.
"""

import argparse
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

from command_line.files import path_argument
from command_line.flags import FlagParser
from dataset import MEL_SCALINGS, AudioConfig
from model import Tacotron2Config
from text.tokenizer import CLEANERS, Tokenizer

MAX_INT = 2**31 - 1  # numpy takes no seed above twice this
MAX_WORKERS = 1024  # loader processes; more are a slip of the finger, and a machine that hangs
PATHS = (
    "working_directory", "save_audio_gen", "path_to_train_manifest", "path_to_val_manifest",
    "path_to_symbols", "warm_start", "resume_from_checkpoint", "vocoder",
)  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """The run. Raises ValueError naming the flag that is off."""

    working_directory: Annotated[str, "folder in which every experiment has its own"]
    save_audio_gen: Annotated[str, "folder for the pictures and wavs of each validation"]
    path_to_train_manifest: Annotated[str, "train_metadata.csv of prep_splits.py"]
    path_to_val_manifest: Annotated[str, "test_metadata.csv of prep_splits.py"]
    experiment_name: Annotated[
        str,
        "folder of checkpoints in working_directory, another one for each run that you want to "
        "keep; wandb project, unless WANDB_PROJECT names one",
    ] = "tacotron2"
    run_name: Annotated[
        str, "wandb's name of the run, unless WANDB_NAME gives one; says nothing about checkpoints"
    ] = "tacotron2_trainer"
    training_epochs: Annotated[
        int, "passes over the training manifest; fewer also make the rate decay sooner"
    ] = 250
    batch_size: Annotated[
        int,
        "clips per device and step; where memory is short, halve it and double "
        "--gradient_accumulation_steps, because small batches align later",
    ] = 64
    gradient_accumulation_steps: Annotated[int, "batches added up to one optimizer step"] = 1
    sync_batch_norm: Annotated[bool, "batch norm over the batches of all GPUs together"] = False
    learning_rate: Annotated[
        float, "Adam's learning rate until the decay begins; far from 1e-3 attention may not align"
    ] = 1e-3
    min_learning_rate: Annotated[float, "learning rate that the decay ends at"] = 1e-5
    start_decay_epochs: Annotated[int | None, "epoch the decay begins; half of all if unset"] = None
    warmup_steps: Annotated[int, "steps in which the rate rises from 0; 0 is off"] = 100
    weight_decay: Annotated[float, "Adam's L2 penalty"] = 1e-6
    adam_eps: Annotated[float, "Adam's epsilon"] = 1e-6
    max_grad_norm: Annotated[float, "gradients are scaled down to this norm"] = 1.0
    guided_attention_weight: Annotated[float, "guided attention's weight at step 0; 0 is off"] = 5.0
    guided_attention_sigma: Annotated[float, "width of its diagonal, share of the clip"] = 0.2
    guided_attention_steps: Annotated[
        int,
        "step at which its weight has fallen to 0; held on for long it draws a straight line that "
        "does not follow the speech",
    ] = 300
    drop_frame_rate: Annotated[
        float,
        "share of teacher frames replaced by their mean, 0 to 1; 0.1 to 0.2 where attention does "
        "not align",
    ] = 0.0
    stop_positive_weight: Annotated[
        float, "weight of the frames at which to stop; 5 to 10 where free running does not stop"
    ] = 1.0
    short_first_epochs: Annotated[int, "first epochs whose batches go from short to long"] = 1
    alignment_warning_steps: Annotated[
        int, "steps without guided attention after which a missing alignment is said; 0 is off"
    ] = 2000
    console_out_iters: Annotated[int, "steps between two lines of losses"] = 5
    wandb_log_iters: Annotated[int, "steps between two points in wandb and TensorBoard"] = 5
    validation_epochs: Annotated[int, "validate after every so many epochs, and the last"] = 1
    checkpoint_epochs: Annotated[int, "epochs between two checkpoints"] = 25
    checkpoint_minutes: Annotated[
        float | None, "minutes between two more, also mid-epoch; none if unset"
    ] = None
    keep_checkpoints: Annotated[
        int | None,
        "checkpoints written last to keep; all if unset, which at the default sizes are 340 MB "
        "each",
    ] = None
    keep_pictures: Annotated[int, "epochs whose pictures and sounds to keep, more early ones"] = 30
    skip_nonfinite: Annotated[bool, "skip steps with a non-finite loss instead of ending"] = False
    vocoder: Annotated[
        str | None, "folder of a HiFi-GAN for the sounds of validations; Griffin-Lim if unset"
    ] = None
    free_running_clips: Annotated[
        int | None, "validation clips spoken freely; as many as take a tenth of an epoch if unset"
    ] = None
    max_decoder_steps: Annotated[
        int, "frames after which free running is cut (86 are 1 s at the default audio settings)"
    ] = 2000
    fast_decoder: Annotated[bool, "train with fast/decoder.py, not model.py's plain loops"] = True
    num_workers: Annotated[
        int, "processes that load data, per device; with 0, the training itself does"
    ] = 2
    log_wandb: Annotated[bool, "log to Weights & Biases"] = False
    log_tensorboard: Annotated[bool, "log to the folder tensorboard beside the checkpoints"] = False
    path_to_symbols: Annotated[
        str | None, "JSON list of symbols, padding first; English letters if unset"
    ] = None
    extra_symbols: Annotated[
        str | None, "characters to add to the table of symbols, such as \u00e4\u00f6\u00fc\u00df"
    ] = None
    cleaner: Annotated[
        str,
        "english reads numbers and abbreviations as English words, basic leaves them alone; with "
        "--warm_start the checkpoint's, unless given",
    ] = "english"
    phonemes: Annotated[bool, "half the words of half the clips as CMUdict's phonemes"] = False
    warm_start: Annotated[
        str | None, "checkpoint to take weights from, for another voice; all else is new"
    ] = None
    warm_start_allow_mismatch: Annotated[bool, "warm-start what fits, list what does not"] = False
    resume_from_checkpoint: Annotated[
        str | None, "checkpoint to go on from: a name, a path, latest or latest_or_new"
    ] = None
    overwrite: Annotated[
        bool, "start anew in a folder that holds checkpoints, which are deleted"
    ] = False
    seed: Annotated[int, "seed of weights, order and dropout"] = 42

    def __post_init__(self) -> None:
        least = {
            **dict.fromkeys(
                ("training_epochs", "batch_size", "gradient_accumulation_steps",
                 "console_out_iters", "wandb_log_iters", "validation_epochs", "checkpoint_epochs",
                 "max_decoder_steps", "keep_checkpoints", "free_running_clips"), 1
            ),
            "keep_pictures": 2,
            **dict.fromkeys(
                ("weight_decay", "guided_attention_weight", "guided_attention_steps",
                 "alignment_warning_steps", "num_workers", "seed", "start_decay_epochs",
                 "warmup_steps", "short_first_epochs"), 0
            ),
        }  # fmt: skip
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and not bound <= value <= MAX_INT:
                bounds = f"at most {MAX_INT}" if value > MAX_INT else f"at least {bound}"
                raise ValueError(f"--{name} must be {bounds}, found {value}")
        extra = self.extra_symbols
        if extra is not None and not (extra.strip() and extra.isprintable()):
            raise ValueError(f"--extra_symbols must be visible characters, found {extra!r:.40}")
        if self.cleaner not in CLEANERS:
            raise ValueError(
                f"--cleaner must be {' or '.join(CLEANERS)}, found {self.cleaner!r:.40}"
            )
        if self.num_workers > MAX_WORKERS:
            raise ValueError(
                f"--num_workers must be at most {MAX_WORKERS}, found {self.num_workers}"
            )
        for name in ("learning_rate", "min_learning_rate", "adam_eps", "max_grad_norm",
                     "guided_attention_sigma", "stop_positive_weight"):  # fmt: skip
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"--{name} must be above 0, found {getattr(self, name)}")
        if not 0 <= self.drop_frame_rate < 1:
            raise ValueError(f"--drop_frame_rate must be in [0, 1), found {self.drop_frame_rate}")
        if self.warm_start_allow_mismatch and not self.warm_start:
            raise ValueError("--warm_start_allow_mismatch is for --warm_start, which is not given")
        if self.checkpoint_minutes is not None and not self.checkpoint_minutes > 0:
            raise ValueError(
                f"--checkpoint_minutes must be above 0, found {self.checkpoint_minutes}"
            )
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"--min_learning_rate must not exceed --learning_rate, found "
                f"{self.min_learning_rate} > {self.learning_rate}"
            )
        for name in ("experiment_name", "run_name"):
            value = getattr(self, name)
            plain = value.isprintable() and "/" not in value and "\\" not in value
            if not value or not plain or value in (".", "..") or len(value.encode()) > 200:
                raise ValueError(f"--{name} must be a plain name, found {value!r}")

    @property
    def folder(self) -> Path:
        """Of the run's checkpoints."""
        return Path(self.working_directory) / self.experiment_name


class Configs(NamedTuple):
    """What the flags say."""

    train: TrainConfig
    audio: AudioConfig
    model: Tacotron2Config
    given: frozenset[str] = frozenset()  # the flags that the command line names


CONFIG_CLASSES = (TrainConfig, AudioConfig, Tacotron2Config)
FROM_TOKENIZER = ("vocab_size", "pad_token_id")  # fields that are no flags
CHOICES = {"mel_scaling": MEL_SCALINGS, "cleaner": CLEANERS}
TRAIN_GROUPS = {  # as --help shows the fields of TrainConfig
    "data": (
        "path_to_train_manifest", "path_to_val_manifest", "path_to_symbols", "extra_symbols",
        "cleaner", "phonemes", "batch_size", "short_first_epochs", "num_workers",
    ),
    "optimiser": (
        "training_epochs", "learning_rate", "min_learning_rate", "start_decay_epochs",
        "warmup_steps", "gradient_accumulation_steps", "max_grad_norm", "weight_decay", "adam_eps",
        "stop_positive_weight", "sync_batch_norm", "skip_nonfinite", "fast_decoder", "seed",
    ),
    "attention": (
        "guided_attention_weight", "guided_attention_sigma", "guided_attention_steps",
        "drop_frame_rate", "alignment_warning_steps",
    ),
    "checkpoints and resume": (
        "working_directory", "experiment_name", "checkpoint_epochs", "checkpoint_minutes",
        "keep_checkpoints", "resume_from_checkpoint", "overwrite", "warm_start",
        "warm_start_allow_mismatch",
    ),
    "validation and logging": (
        "save_audio_gen", "keep_pictures", "vocoder", "validation_epochs",
        "free_running_clips", "max_decoder_steps", "console_out_iters", "log_wandb",
        "log_tensorboard", "wandb_log_iters", "run_name",
    ),
}  # fmt: skip
TITLES = {AudioConfig: "audio", Tacotron2Config: "model"}


def add_config_arguments(parser: argparse.ArgumentParser, config_class: type) -> None:
    """One flag for each field of a config, with its type, default and help line."""
    by_name = {field.name: field for field in fields(config_class)}
    taken = {action.dest for action in parser._actions}.union(FROM_TOKENIZER)
    groups = {TITLES[config_class]: by_name} if config_class in TITLES else TRAIN_GROUPS
    for title, names in groups.items():
        group = parser.add_argument_group(title)
        for name in names:
            if name not in taken:
                add_field(group, by_name[name], get_hint(config_class, name))


def get_hint(config_class: type, name: str) -> tuple[type, str]:
    """A field's type, of int | None the int, and its help line."""
    hint = get_type_hints(config_class, include_extras=True)[name]
    kind = hint.__args__[0]
    return getattr(kind, "__args__", (kind,))[0], hint.__metadata__[0]


def add_field(group: Any, field: Field, hint: tuple[type, str]) -> None:
    """A field's flag; what it is unset or by default stands at the end of its help line."""
    kind, help_line = hint
    required, default = field.default is MISSING, field.default
    if required:
        help_line += " (required)"
    elif default is not None:
        shown = {True: "on", False: "off"}[default] if kind is bool else default
        help_line += f" (default: {shown})"
    options: dict[str, Any] = {"required": required, "help": help_line.replace("%", "%%")}
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif field.name in CHOICES:
        options["choices"] = CHOICES[field.name]
    else:
        is_path = field.name in PATHS
        options["type"] = path_argument if is_path else kind
        options["metavar"] = "path" if is_path else kind.__name__
    action = group.add_argument(f"--{field.name}", **options)
    if not required:  # set here, because BooleanOptionalAction would add it to the help line
        action.default = default


def find_given(parser: argparse.ArgumentParser, argv: list[str] | None) -> frozenset[str]:
    """The flags that the command line names, also where it repeats a default."""
    unset = object()
    names = [action.dest for action in parser._actions]
    values = vars(parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(names, unset))))
    return frozenset(name for name in names if values[name] is not unset)


def make_configs(
    parser: argparse.ArgumentParser, values: dict[str, Any], classes: Sequence[type]
) -> tuple:
    """Configs out of the flags' values, or of the default where a config's field was no flag.

    A mistake ends the program with one sentence.
    """
    tokenizer = Tokenizer()
    values |= {"vocab_size": tokenizer.vocab_size, "pad_token_id": tokenizer.pad_token_id}
    try:
        return tuple(
            kind(
                **{field.name: values[field.name] for field in fields(kind) if field.name in values}
            )
            for kind in classes
        )
    except ValueError as error:
        parser.error(str(error))


def parse_args(argv: list[str] | None, description: str) -> Configs:
    """Flags to the three configs; a mistake ends the program with one sentence."""
    usage = "%(prog)s --flag value --flag value ..."  # argparse's own would be 40 lines
    parser = FlagParser(description=description, usage=usage)
    for config_class in CONFIG_CLASSES:
        add_config_arguments(parser, config_class)
    given = find_given(parser, argv)
    configs = make_configs(parser, vars(parser.parse_args(argv)), CONFIG_CLASSES)
    return Configs(*configs, given)
