"""The flags: TrainConfig, and the one function that turns the three configs into flags.

AudioConfig stands in dataset.py and Tacotron2Config in model.py, beside what they describe.
"""

import argparse
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

from dataset import AudioConfig
from files import path_argument
from model import Tacotron2Config
from tokenizer import Tokenizer

MAX_INT = 2**31 - 1  # numpy takes no seed above twice this
MAX_WORKERS = 1024  # loader processes; more are a slip of the finger, and a machine that hangs
PATHS = (
    "working_directory", "save_audio_gen", "path_to_train_manifest", "path_to_val_manifest",
    "path_to_symbols", "warm_start", "resume_from_checkpoint",
)  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """The run. Raises ValueError naming the flag that is off."""

    working_directory: Annotated[str, "checkpoints go to a folder in here"]
    save_audio_gen: Annotated[str, "folder for the pictures and wavs of each validation"]
    path_to_train_manifest: Annotated[str, "train_metadata.csv of prep_splits.py"]
    path_to_val_manifest: Annotated[str, "test_metadata.csv of prep_splits.py"]
    experiment_name: Annotated[
        str, "folder in working_directory; wandb project, unless WANDB_PROJECT names one"
    ] = "tacotron2"
    run_name: Annotated[str, "wandb's name of the run, unless WANDB_NAME gives one"] = (
        "tacotron2_trainer"
    )
    training_epochs: Annotated[int, "passes over the training manifest"] = 250
    batch_size: Annotated[int, "clips per device and step"] = 64
    gradient_accumulation_steps: Annotated[int, "batches added up to one optimizer step"] = 1
    sync_batch_norm: Annotated[bool, "batch norm over the batches of all GPUs together"] = False
    learning_rate: Annotated[float, "Adam's learning rate until the decay begins"] = 1e-3
    min_learning_rate: Annotated[float, "learning rate that the decay ends at"] = 1e-5
    start_decay_epochs: Annotated[int | None, "epoch the decay begins; half of all if unset"] = None
    warmup_steps: Annotated[int, "steps in which the rate rises from 0; 0 is off"] = 100
    weight_decay: Annotated[float, "Adam's L2 penalty"] = 1e-6
    adam_eps: Annotated[float, "Adam's epsilon"] = 1e-6
    max_grad_norm: Annotated[float, "gradients are scaled down to this norm"] = 1.0
    guided_attention_weight: Annotated[float, "guided attention's weight at step 0; 0 is off"] = 5.0
    guided_attention_sigma: Annotated[float, "width of its diagonal, share of the clip"] = 0.2
    guided_attention_steps: Annotated[int, "step at which its weight has fallen to 0"] = 300
    drop_frame_rate: Annotated[float, "share of teacher frames replaced by their mean"] = 0.0
    stop_positive_weight: Annotated[float, "weight of the frames at which to stop"] = 1.0
    short_first_epochs: Annotated[int, "first epochs whose batches go from short to long"] = 1
    alignment_warning_steps: Annotated[
        int, "steps without guided attention after which a missing alignment is said; 0 is off"
    ] = 2000
    console_out_iters: Annotated[int, "steps between two lines of losses"] = 5
    wandb_log_iters: Annotated[int, "steps between two points in wandb and TensorBoard"] = 5
    validation_epochs: Annotated[int, "validate after every so many epochs, and the last"] = 1
    checkpoint_epochs: Annotated[int, "epochs between two checkpoints"] = 25
    checkpoint_minutes: Annotated[float | None, "minutes between two more, also mid-epoch"] = None
    keep_checkpoints: Annotated[int | None, "checkpoints written last to keep; all if unset"] = None
    keep_pictures: Annotated[int, "epochs whose pictures and sounds to keep, more early ones"] = 30
    skip_nonfinite: Annotated[bool, "skip steps with a non-finite loss instead of ending"] = False
    free_running_clips: Annotated[
        int | None, "validation clips spoken freely; as many as take a tenth of an epoch if unset"
    ] = None
    max_decoder_steps: Annotated[int, "frames after which free running is cut"] = 2000
    fast_decoder: Annotated[bool, "train with fast_decoder.py, not model.py's plain loops"] = True
    num_workers: Annotated[int, "processes that load data, per device"] = 2
    log_wandb: Annotated[bool, "log to Weights & Biases"] = False
    log_tensorboard: Annotated[bool, "log to the folder tensorboard beside the checkpoints"] = False
    path_to_symbols: Annotated[str | None, "JSON list of symbols, padding first; built in"] = None
    phonemes: Annotated[bool, "half the words of half the clips as CMUdict's phonemes"] = False
    warm_start: Annotated[str | None, "checkpoint to take weights from; all else is new"] = None
    warm_start_allow_mismatch: Annotated[bool, "warm-start what fits, list what does not"] = False
    resume_from_checkpoint: Annotated[str | None, "name, path, latest or latest_or_new"] = None
    overwrite: Annotated[bool, "start anew in a folder that holds checkpoints"] = False
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


def add_config_arguments(parser: argparse.ArgumentParser, config_class: type) -> None:
    """One flag for each field of a config, with its type, default and help line."""
    group = parser.add_argument_group(config_class.__name__)
    hints = get_type_hints(config_class, include_extras=True)
    taken = {action.dest for action in parser._actions}
    for field in fields(config_class):
        if field.name in FROM_TOKENIZER or field.name in taken:
            continue
        kind, help_line = hints[field.name].__args__[0], hints[field.name].__metadata__[0]
        kind = getattr(kind, "__args__", (kind,))[0]  # int | None is an int
        convert = path_argument if field.name in PATHS else kind
        required = field.default is MISSING
        options: dict[str, Any] = {"required": required, "help": help_line.replace("%", "%%")}
        if not required:
            options |= {"default": field.default}
            options["help"] += " (default: %(default)s)"
        if kind is bool:
            group.add_argument(f"--{field.name}", action=argparse.BooleanOptionalAction, **options)
        else:
            group.add_argument(f"--{field.name}", type=convert, metavar=kind.__name__, **options)


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
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    for config_class in CONFIG_CLASSES:
        add_config_arguments(parser, config_class)
    given = find_given(parser, argv)
    configs = make_configs(parser, vars(parser.parse_args(argv)), CONFIG_CLASSES)
    return Configs(*configs, given)
