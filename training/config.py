"""Define the flags of training: TrainConfig, and the parser that turns three configs into flags.

AudioConfig is in dataset.py and Tacotron2Config in model.py, beside the code that they configure.
"""

import argparse
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

from command_line.files import path_argument
from command_line.flags import FlagParser
from dataset import MEL_SCALINGS, AudioConfig
from model import Tacotron2Config
from text.tokenizer import CLEANERS

MAX_INT = 2**31 - 1  # numpy takes no seed above twice this
PHONEMES = ("cmudict", "espeak", "none")  # where those of training come from
MAX_WORKERS = 1024  # loader processes; more are a typo that would hang the machine


def name_argument(value: str) -> str:
    """Parse a plain name, which becomes the name of a folder (an argparse type)."""
    plain = value.isprintable() and "/" not in value and "\\" not in value
    if not value or not plain or value in (".", "..") or len(value.encode()) > 200:
        raise argparse.ArgumentTypeError(f"must be a plain name, found {value!r:.60}")
    return value


@dataclass(frozen=True)
class TrainConfig:
    """The flags of a run. A wrong value raises a ValueError that names its flag."""

    working_directory: Annotated[str, "folder that holds a folder for each experiment"]
    save_audio_gen: Annotated[str, "folder for the pictures and wavs of each validation"]
    path_to_train_manifest: Annotated[str, "train_metadata.csv of prep_splits.py"]
    path_to_val_manifest: Annotated[str, "test_metadata.csv of prep_splits.py"]
    experiment_name: Annotated[
        str,
        "folder of checkpoints in working_directory, a new one for each run that you want to "
        "keep; also the wandb project, unless WANDB_PROJECT names one",
    ] = "tacotron2"
    run_name: Annotated[
        str, "name of the run in wandb, unless WANDB_NAME gives one; not used for checkpoints"
    ] = "tacotron2_trainer"
    training_epochs: Annotated[
        int, "passes over the training manifest; fewer also make the rate decay sooner"
    ] = 250
    batch_size: Annotated[
        int,
        "clips per device and step; where memory is short, halve it and double "
        "--gradient_accumulation_steps, because small batches align later",
    ] = 64
    gradient_accumulation_steps: Annotated[int, "batches accumulated for one optimizer step"] = 1
    sync_batch_norm: Annotated[bool, "batch norm over the batches of all GPUs together"] = False
    learning_rate: Annotated[
        float, "Adam's learning rate until the decay begins; far from 1e-3 attention may not align"
    ] = 1e-3
    min_learning_rate: Annotated[float, "learning rate at which the decay ends"] = 1e-5
    start_decay_epochs: Annotated[
        int | None, "epoch at which the decay begins; half of all if unset"
    ] = None
    warmup_steps: Annotated[int, "steps in which the rate rises from 0; 0 is off"] = 100
    weight_decay: Annotated[float, "Adam's L2 penalty"] = 1e-6
    adam_eps: Annotated[float, "Adam's epsilon"] = 1e-6
    max_grad_norm: Annotated[float, "norm to which larger gradients are clipped"] = 1.0
    guided_attention_weight: Annotated[float, "guided attention's weight at step 0; 0 is off"] = 5.0
    guided_attention_sigma: Annotated[float, "width of its diagonal, share of the clip"] = 0.2
    guided_attention_steps: Annotated[
        int,
        "step at which its weight has fallen to 0; a later one forces a straight line that "
        "does not follow the speech",
    ] = 300
    drop_frame_rate: Annotated[
        float,
        "share of teacher frames replaced by their mean, below 1; 0.5 where free running does not "
        "say its texts",
    ] = 0.0
    stop_positive_weight: Annotated[
        float, "weight of the frames at which to stop; 5 to 10 where free running does not stop"
    ] = 1.0
    stop_tail_frames: Annotated[
        int, "frames after a clip's end at which the stop token is trained too"
    ] = 8
    l1_weight: Annotated[
        float, "weight of the mels' absolute error beside the squared; 0 is the paper's, and blurs"
    ] = 1.0
    short_first_epochs: Annotated[int, "epochs at the start that go from short to long clips"] = 1
    alignment_warning_steps: Annotated[
        int, "steps without guided attention until a warning if the voice says nothing; 0 is off"
    ] = 2000
    console_out_iters: Annotated[int, "steps between two lines of losses"] = 5
    wandb_log_iters: Annotated[int, "steps between two points in wandb and TensorBoard"] = 5
    validation_epochs: Annotated[int, "epochs between two validations; the last has one too"] = 1
    checkpoint_epochs: Annotated[int, "epochs between two checkpoints"] = 25
    checkpoint_minutes: Annotated[
        float, "minutes between two checkpoints within an epoch; only the last is kept; 0 is off"
    ] = 30.0
    keep_checkpoints: Annotated[
        int | None,
        "number of the latest numbered checkpoints to keep; all if unset, 340 MB each at the "
        "default sizes",
    ] = None
    keep_pictures: Annotated[
        int, "number of epochs whose pictures and sounds are kept, more of them early ones"
    ] = 30
    vocoder: Annotated[
        str | None,
        "HiFi-GAN for the sounds of validations, as synthesize.py takes it; Griffin-Lim if unset",
    ] = None
    free_running_clips: Annotated[
        int | None, "validation clips spoken freely; if unset, as many as take a tenth of an epoch"
    ] = None
    max_decoder_steps: Annotated[
        int, "frames after which free running is cut (86 are 1 s at the default audio settings)"
    ] = 2000
    fast_decoder: Annotated[bool, "train with the decoder of fast/, not model.py's plain loops"] = (
        True
    )
    num_workers: Annotated[
        int, "processes that load data, per device; 0 loads it in the training process"
    ] = 2
    cache_mels: Annotated[
        str | None,
        "folder that keeps the recordings' mels, which only the first epoch then computes",
    ] = None
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
        "english writes numbers and abbreviations as English words, basic leaves them alone; "
        "--warm_start uses the checkpoint's unless this is passed",
    ] = "english"
    phonemes: Annotated[
        str | None,
        "cmudict (also a bare --phonemes): half the words of half the clips as CMUdict's phonemes; "
        "espeak: all words as espeak-ng's, in --language; none (also unset): all in letters",
    ] = None
    language: Annotated[
        str | None, "espeak-ng's name of the language of --phonemes espeak, such as de"
    ] = None
    lexicon: Annotated[
        str | None,
        "UTF-8 file of words that are spoken otherwise, word<TAB>respelling or phonemes in braces; "
        "kept in the checkpoint",
    ] = None
    warm_start: Annotated[
        str | None, "checkpoint to take only the weights from, for another voice"
    ] = None
    warm_start_allow_mismatch: Annotated[bool, "warm-start what fits, list what does not"] = False
    resume_from_checkpoint: Annotated[
        str | None, "checkpoint to continue from: a name, a path, latest or latest_or_new"
    ] = None
    overwrite: Annotated[
        bool, "delete the checkpoints in the run's folder and start from the beginning"
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
                 "warmup_steps", "short_first_epochs", "l1_weight", "stop_tail_frames"), 0
            ),
        }  # fmt: skip
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and not bound <= value <= MAX_INT:
                bounds = f"at most {MAX_INT}" if value > MAX_INT else f"at least {bound}"
                raise ValueError(f"--{name} must be {bounds}, found {value}")
        self._check_text_flags()
        if self.num_workers > MAX_WORKERS:
            raise ValueError(
                f"--num_workers must be at most {MAX_WORKERS}, found {self.num_workers}"
            )
        positive = (
            "learning_rate",
            "min_learning_rate",
            "adam_eps",
            "max_grad_norm",
            "guided_attention_sigma",
            "stop_positive_weight",
        )
        for name in positive:
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"--{name} must be above 0, found {getattr(self, name)}")
        if not 0 <= self.drop_frame_rate < 1:
            raise ValueError(f"--drop_frame_rate must be in [0, 1), found {self.drop_frame_rate}")
        if self.warm_start_allow_mismatch and not self.warm_start:
            raise ValueError("--warm_start_allow_mismatch is for --warm_start, which is not given")
        if not self.checkpoint_minutes >= 0:
            raise ValueError(
                f"--checkpoint_minutes must be at least 0, found {self.checkpoint_minutes}"
            )
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"--min_learning_rate must not exceed --learning_rate, found "
                f"{self.min_learning_rate} > {self.learning_rate}"
            )

    def _check_text_flags(self) -> None:
        extra = self.extra_symbols
        if extra is not None and not (extra.strip() and extra.isprintable()):
            raise ValueError(f"--extra_symbols must be visible characters, found {extra!r:.40}")
        if self.cleaner not in CLEANERS:
            raise ValueError(
                f"--cleaner must be {' or '.join(CLEANERS)}, found {self.cleaner!r:.40}"
            )
        if (self.phonemes == "espeak") != bool(self.language):
            raise ValueError(
                "--phonemes espeak and --language, such as de, go together, found "
                f"--phonemes {self.phonemes or 'none'} and --language {self.language or 'unset'}"
            )
        if self.language and (given := self.extra_symbols or self.path_to_symbols):
            raise ValueError(
                f"--phonemes espeak has its own symbols, found {given!r:.40} beside it"
            )

    @property
    def folder(self) -> Path:
        """The folder of the run's checkpoints."""
        return Path(self.working_directory) / self.experiment_name


class Configs(NamedTuple):
    """The three configs that the flags of training fill."""

    train: TrainConfig
    audio: AudioConfig
    model: Tacotron2Config


CONFIG_CLASSES = {"training": TrainConfig, "audio": AudioConfig, "model": Tacotron2Config}
FROM_TOKENIZER = ("vocab_size", "pad_token_id")  # fields that are no flags
CHOICES = {"mel_scaling": MEL_SCALINGS, "cleaner": CLEANERS, "phonemes": PHONEMES}
PATHS = (
    "working_directory",
    "save_audio_gen",
    "path_to_train_manifest",
    "path_to_val_manifest",
    "path_to_symbols",
    "lexicon",
    "warm_start",
    "resume_from_checkpoint",
    "vocoder",
    "cache_mels",
)


def make_parser(description: str) -> FlagParser:
    """Make the parser of training: one flag for each field of the three configs."""
    usage = "%(prog)s --flag value --flag value ..."  # argparse's own would be 40 lines
    parser = FlagParser(description=description, usage=usage)
    for title, config_class in CONFIG_CLASSES.items():
        add_config_flags(parser, title, config_class)
    return parser


def add_config_flags(parser: argparse.ArgumentParser, title: str, config_class: type) -> None:
    """Add a group of flags, one for each field of a config that the parser does not have yet."""
    taken = {action.dest for action in parser._actions}.union(FROM_TOKENIZER)
    group = parser.add_argument_group(title)
    hints = get_type_hints(config_class, include_extras=True)
    for field in fields(config_class):
        if field.name not in taken:
            kind, help_line = hints[field.name].__args__[0], hints[field.name].__metadata__[0]
            add_field(group, field, getattr(kind, "__args__", (kind,))[0], help_line)


def add_field(group: Any, field: Field, kind: type, help_line: str) -> None:
    """Add the flag of a field, with its default at the end of the help line."""
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
        if field.name == "phonemes":
            options |= {"nargs": "?", "const": PHONEMES[0]}
    else:
        is_path = field.name in PATHS
        is_name = field.name in ("experiment_name", "run_name")
        options["type"] = path_argument if is_path else name_argument if is_name else kind
        options["metavar"] = "path" if is_path else kind.__name__
    action = group.add_argument(f"--{field.name}", **options)
    if not required:  # set here, because BooleanOptionalAction would add it to the help line
        action.default = default


def make_config(parser: argparse.ArgumentParser, args: argparse.Namespace, kind: type) -> Any:
    """Make a config out of the flags' values; a mistake ends the program with one sentence."""
    names = [field.name for field in fields(kind) if hasattr(args, field.name)]
    try:
        return kind(**{name: getattr(args, name) for name in names})
    except ValueError as error:
        parser.error(str(error))


def make_configs(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Configs:
    """Make the three configs out of the flags' values."""
    return Configs(*(make_config(parser, args, kind) for kind in CONFIG_CLASSES.values()))
