"""Trains Tacotron 2 by teacher forcing, on one or many GPUs or on a CPU.

    accelerate launch train_taco.py --experiment_name tacotron2 --run_name first \
        --working_directory work_dir --save_audio_gen work_dir/samples \
        --path_to_train_manifest data/train_metadata.csv \
        --path_to_val_manifest data/test_metadata.csv

`train_taco.sh` shows every flag. Checkpoints go to WORKING_DIRECTORY/EXPERIMENT_NAME, pictures
and sounds of every validation to SAVE_AUDIO_GEN. The file reads in the order things happen:
flags, learning rate, one step, validation, the run.
"""

import argparse
import contextlib
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from checkpoints import (
    TrainerState,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint_state,
    save_checkpoint,
)
from dataset import (
    AudioConfig,
    Batch,
    BatchSampler,
    DataError,
    TTSCollator,
    TTSDataset,
    mel_to_audio,
)
from evaluate import alignment_scores
from model import Tacotron2, Tacotron2Config, tacotron2_loss
from plotting import alignment_film, loss_figure, save_figure, summary_figure
from synthesize import write_wav
from tokenizer import Tokenizer

LOSSES = ("loss", "mel_before_loss", "mel_after_loss", "stop_loss", "guided_attention_loss")
FILM_FRAMES = 40  # at most, in alignment.gif


@dataclass(frozen=True)
class TrainConfig:
    """The run. Raises ValueError naming the flag that is off."""

    working_directory: Annotated[str, "checkpoints go to a folder in here"]
    save_audio_gen: Annotated[str, "folder for the pictures and wavs of each validation"]
    path_to_train_manifest: Annotated[str, "train_metadata.csv of prep_splits.py"]
    path_to_val_manifest: Annotated[str, "test_metadata.csv of prep_splits.py"]
    experiment_name: Annotated[str, "folder in working_directory; wandb project"] = "tacotron2"
    run_name: Annotated[str, "name of the wandb run"] = "tacotron2_trainer"
    training_epochs: Annotated[int, "passes over the training manifest"] = 250
    batch_size: Annotated[int, "clips per device and step"] = 64
    gradient_accumulation_steps: Annotated[int, "batches added up to one optimizer step"] = 1
    learning_rate: Annotated[float, "Adam's learning rate until the decay begins"] = 1e-3
    min_learning_rate: Annotated[float, "learning rate that the decay ends at"] = 1e-5
    start_decay_epochs: Annotated[int | None, "epoch the decay begins; half of all if unset"] = None
    weight_decay: Annotated[float, "Adam's L2 penalty"] = 1e-6
    adam_eps: Annotated[float, "Adam's epsilon"] = 1e-6
    max_grad_norm: Annotated[float, "gradients are scaled down to this norm"] = 1.0
    guided_attention_weight: Annotated[float, "guided attention's weight at step 0; 0 is off"] = 1.0
    guided_attention_sigma: Annotated[float, "width of its diagonal, share of the clip"] = 0.4
    guided_attention_steps: Annotated[int, "step at which its weight has fallen to 0"] = 300
    console_out_iters: Annotated[int, "steps between two lines of losses"] = 5
    wandb_log_iters: Annotated[int, "steps between two points in wandb"] = 5
    checkpoint_epochs: Annotated[int, "epochs between two checkpoints"] = 25
    max_decoder_steps: Annotated[int, "frames after which free running is cut"] = 2000
    num_workers: Annotated[int, "processes that load data, per device"] = 2
    log_wandb: Annotated[bool, "log to Weights & Biases"] = False
    resume_from_checkpoint: Annotated[str | None, "folder name, path, or latest"] = None
    overwrite: Annotated[bool, "start anew in a folder that holds checkpoints"] = False
    seed: Annotated[int, "seed of weights, order and dropout"] = 42

    def __post_init__(self) -> None:
        least = {
            **dict.fromkeys(
                ("training_epochs", "batch_size", "gradient_accumulation_steps",
                 "console_out_iters", "wandb_log_iters", "checkpoint_epochs",
                 "max_decoder_steps"), 1
            ),
            **dict.fromkeys(
                ("weight_decay", "guided_attention_weight", "guided_attention_steps",
                 "num_workers", "seed", "start_decay_epochs"), 0
            ),
        }  # fmt: skip
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and not bound <= value < float("inf"):
                raise ValueError(f"--{name} must be at least {bound}, found {value}")
        for name in ("learning_rate", "min_learning_rate", "adam_eps", "max_grad_norm",
                     "guided_attention_sigma"):  # fmt: skip
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"--{name} must be above 0, found {getattr(self, name)}")
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"--min_learning_rate must not exceed --learning_rate, found "
                f"{self.min_learning_rate} > {self.learning_rate}"
            )
        for name in ("experiment_name", "run_name"):
            value = getattr(self, name)
            if not value or "/" in value or "\\" in value or value in (".", ".."):
                raise ValueError(f"--{name} must be a plain name, found {value!r}")


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
        required = field.default is MISSING
        options: dict[str, Any] = {"required": required, "help": help_line.replace("%", "%%")}
        if not required:
            options |= {"default": field.default}
            options["help"] += " (default: %(default)s)"
        if kind is bool:
            group.add_argument(f"--{field.name}", action=argparse.BooleanOptionalAction, **options)
        else:
            group.add_argument(f"--{field.name}", type=kind, metavar=kind.__name__, **options)


def parse_args(argv: list[str] | None) -> tuple[TrainConfig, AudioConfig, Tacotron2Config]:
    """Flags to the three configs; a mistake ends the program with one sentence."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    for config_class in CONFIG_CLASSES:
        add_config_arguments(parser, config_class)
    values = vars(parser.parse_args(argv))
    tokenizer = Tokenizer()
    values |= {"vocab_size": tokenizer.vocab_size, "pad_token_id": tokenizer.pad_token_id}
    try:
        return tuple(
            config_class(**{field.name: values[field.name] for field in fields(config_class)})
            for config_class in CONFIG_CLASSES
        )
    except ValueError as error:
        parser.error(str(error))


def learning_rate_factor(epoch: float, config: TrainConfig) -> float:
    """Share of learning_rate at a (fractional) epoch: constant, then exponential decay."""
    start = config.start_decay_epochs
    start = config.training_epochs / 2 if start is None else start
    progress = (epoch - start) / max(config.training_epochs - start, 1e-9)
    return (config.min_learning_rate / config.learning_rate) ** min(max(progress, 0.0), 1.0)


class Run(NamedTuple):
    """What stays the same from the first step to the last."""

    config: TrainConfig
    audio_config: AudioConfig
    model_config: Tacotron2Config
    tokenizer: Tokenizer
    accelerator: Accelerator
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    train_set: TTSDataset
    val_set: TTSDataset
    folder: Path  # of the checkpoints
    wandb: Any  # wandb's run on the main process with --log_wandb, else None

    @property
    def steps_per_epoch(self) -> int:
        clips = self.config.batch_size * self.accelerator.num_processes
        n_batches = -(-len(self.train_set) // clips)
        return -(-n_batches // self.config.gradient_accumulation_steps)


def make_loader(run: Run, dataset: TTSDataset, **order: Any) -> DataLoader:
    """Batches of this process, in the order that BatchSampler draws from `order`."""
    sampler = BatchSampler(
        dataset.n_frames,
        run.config.batch_size,
        num_processes=run.accelerator.num_processes,
        process_index=run.accelerator.process_index,
        **order,
    )
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=TTSCollator(run.audio_config, run.tokenizer),
        num_workers=run.config.num_workers,
        pin_memory=run.accelerator.device.type == "cuda",
        # Its own generator: making a loader must not move the random numbers of training.
        generator=torch.Generator(),
    )


def groups(batches: Iterator, size: int) -> Iterator[list]:
    """Lists of `size` batches, the last one perhaps shorter: one optimizer step each."""
    group = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def forward_losses(run: Run, batch: Batch, n_frames: Tensor, guided_weight: float) -> dict:
    """Teacher-forced losses of a batch, and its output under "output"."""
    device = run.accelerator.device
    mels = batch.mels.to(device, non_blocking=True)
    output = run.model(
        batch.tokens.to(device, non_blocking=True), batch.token_lengths, mels, batch.mel_lengths
    )
    losses = tacotron2_loss(
        output,
        mels,
        batch.token_lengths,
        batch.mel_lengths,
        batch.stop_targets.to(device, non_blocking=True),
        guided_weight,
        run.config.guided_attention_sigma,
        n_frames,
    )
    return {"output": output, **losses}


def count_frames(run: Run, batches: list) -> Tensor:
    """Valid frames in these batches on all processes together; a tensor, so no wait."""
    count = torch.tensor(float(sum(int(b.mel_lengths.sum()) for b in batches)))
    return run.accelerator.reduce(count.to(run.accelerator.device), "sum")


def train_step(run: Run, batches: list, step: int) -> tuple[Tensor, Tensor]:
    """One optimizer step on all of `batches`; returns losses (5,), as LOSSES, and a frame count.

    The losses are means over the valid frames of all batches on all processes, so that neither
    how many processes there are nor how a batch is cut up changes the gradient.
    """
    n_frames = count_frames(run, batches)
    decay = 1.0 - step / max(run.config.guided_attention_steps, 1)
    guided_weight = run.config.guided_attention_weight * max(decay, 0.0)
    totals = torch.zeros(len(LOSSES), device=run.accelerator.device)
    for i, batch in enumerate(batches):
        last = i == len(batches) - 1
        with contextlib.nullcontext() if last else run.accelerator.no_sync(run.model):
            # Processes average their gradients: each divides by its share of the frames.
            share = n_frames / run.accelerator.num_processes
            losses = forward_losses(run, batch, share, guided_weight)
            run.accelerator.backward(losses["loss"])
        totals += torch.stack([losses[name].detach() for name in LOSSES])
    run.accelerator.clip_grad_norm_(run.model.parameters(), run.config.max_grad_norm)
    run.optimizer.step()
    run.scheduler.step()
    run.optimizer.zero_grad()
    return totals, n_frames


@torch.no_grad()
def validate(run: Run) -> dict[str, float]:
    """Losses and alignment scores over the whole validation set, each clip counted once."""
    run.model.eval()
    sums = torch.zeros(len(LOSSES) + 3, device=run.accelerator.device)
    weights = torch.zeros(2, device=run.accelerator.device)  # frames, clips
    one = torch.ones((), device=run.accelerator.device)
    for batch in make_loader(run, run.val_set, shuffle=False):
        losses = forward_losses(run, batch, one, guided_weight=0.0)  # sums over frames
        scores = alignment_scores(
            losses["output"].alignments, batch.token_lengths, batch.mel_lengths
        )
        sums += torch.stack(
            [losses[name] for name in LOSSES] + [score.sum() for score in scores.values()]
        )
        weights += torch.tensor([batch.mel_lengths.sum(), len(batch.mel_lengths)]).to(weights)
    sums, weights = (run.accelerator.reduce(x, "sum") for x in (sums, weights))
    sums[: len(LOSSES)] /= weights[0]
    sums[len(LOSSES) :] /= weights[1]
    run.model.train()
    names = [*LOSSES, *scores]
    values = dict(zip(names, sums.tolist(), strict=True))
    return {f"val_{name}": v for name, v in values.items() if name != "guided_attention_loss"}


@torch.no_grad()
def draw_sample(run: Run, epoch: int) -> dict[str, Any]:
    """Pictures and wav of one validation clip, teacher forced and free running, in save_audio_gen.

    Returns what wandb shows: paths by name.
    """
    model = run.accelerator.unwrap_model(run.model).eval()
    utterance = run.val_set[len(run.val_set) // 2]  # of middling length: longest come first
    device, hop_seconds = run.accelerator.device, run.audio_config.hop_seconds
    tokens, mel = utterance.tokens[None].to(device), utterance.mel[None].to(device)
    lengths = torch.tensor([tokens.shape[1]]), torch.tensor([mel.shape[1]])
    forced = model(tokens, lengths[0], mel, lengths[1])
    limit = min(run.config.max_decoder_steps, 2 * mel.shape[1] + 100)
    free = model.infer(tokens, lengths[0], limit)
    model.train()
    text, stem = run.tokenizer.decode(utterance.tokens), Path(run.config.save_audio_gen)
    stem = stem / f"epoch_{epoch}"
    predicted, alignment = forced.mels_after[0].float().cpu(), forced.alignments[0].float().cpu()
    ending = "reached the limit" if free.reached_limit else "stopped by itself"
    save_figure(
        summary_figure(
            utterance.mel, predicted, alignment, text, hop_seconds,
            title=f"epoch {epoch}, teacher forced",
        ),
        f"{stem}_teacher_forced.png",
    )  # fmt: skip
    save_figure(
        summary_figure(
            utterance.mel, free.mels[0].float().cpu(), free.alignments[0].float().cpu(), text,
            hop_seconds, title=f"epoch {epoch}, free running, {ending}",
        ),
        f"{stem}_free_running.png",
    )  # fmt: skip
    wav = mel_to_audio(free.mels[0].float(), run.audio_config, n_iter=30).cpu()
    write_wav(f"{stem}_free_running.wav", wav, run.audio_config.sampling_rate)
    np.savez_compressed(
        f"{stem}.npz",
        alignment=alignment.numpy().astype(np.float16),
        mel=predicted.numpy().astype(np.float16),
    )
    return {
        "teacher_forced": f"{stem}_teacher_forced.png",
        "free_running": f"{stem}_free_running.png",
        "audio": f"{stem}_free_running.wav",
    }


def make_film(run: Run, history: list[dict]) -> None:
    """alignment.gif, one validation sentence's alignment over the epochs, and loss.png."""
    folder = Path(run.config.save_audio_gen)
    epochs = [row["epoch"] for row in history]
    epochs = [epoch for epoch in epochs if (folder / f"epoch_{epoch}.npz").is_file()]
    if len(epochs) > FILM_FRAMES:  # alignment appears early: more frames there
        picked = (len(epochs) - 1) * np.linspace(0, 1, FILM_FRAMES) ** 2
        epochs = [epochs[i] for i in sorted(set(picked.round().astype(int)))]
    frames = [np.load(folder / f"epoch_{epoch}.npz") for epoch in epochs]
    text = run.tokenizer.decode(run.tokenizer.encode(run.val_set.texts[len(run.val_set) // 2]))
    if frames:
        alignment_film(
            [frame["alignment"].astype(np.float32) for frame in frames],
            folder / "alignment.gif",
            text=text,
            titles=[f"epoch {epoch}" for epoch in epochs],
            hop_seconds=run.audio_config.hop_seconds,
            mels=[frame["mel"].astype(np.float32) for frame in frames],
        )
    save_figure(loss_figure(history), folder / "loss.png")


class Console:
    """Progress on the main process: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, run: Run, epoch: int, done: int, step: int) -> None:
        total = run.steps_per_epoch
        self.run, self.epoch, self.begun, self.seconds = run, epoch, done, time.perf_counter()
        self.last_step_of_run = step - done + (run.config.training_epochs - epoch) * total
        self.bar = tqdm(
            total=total,
            initial=done,
            desc=f"epoch {epoch + 1}/{run.config.training_epochs}",
            disable=not (run.accelerator.is_main_process and sys.stderr.isatty()),
        )

    def show(self, done: int, step: int, values: dict[str, float]) -> None:
        """After step `done` of this epoch, with the means since the last call."""
        per_step = (time.perf_counter() - self.seconds) / (done - self.begun)
        left = timedelta(seconds=round(per_step * (self.last_step_of_run - step)))
        shown = {name.replace("_loss", ""): f"{value:.3f}" for name, value in values.items()
                 if name in LOSSES}  # fmt: skip
        shown |= {"frames/s": f"{values['frames_per_second']:,.0f}", "left": str(left)}
        self.bar.set_postfix(shown, refresh=False)
        if self.bar.disable and self.run.accelerator.is_main_process:
            line = "  ".join(f"{name} {value}" for name, value in shown.items())
            total = self.run.steps_per_epoch
            print(f"epoch {self.epoch + 1}  step {done}/{total}  {line}", flush=True)


def train_epoch(run: Run, state: TrainerState) -> tuple[TrainerState, dict[str, float]]:
    """What is left of an epoch; returns the state at its end and the means over these steps."""
    config = run.config
    loader = make_loader(
        run,
        run.train_set,
        seed=config.seed,
        epoch=state.epoch,
        start_batch=state.epoch_step * config.gradient_accumulation_steps,
    )
    console = Console(run, state.epoch, state.epoch_step, state.step)
    device = run.accelerator.device
    recent, of_epoch = torch.zeros(2, len(LOSSES), device=device)
    recent_frames = torch.zeros((), device=device)
    clock, shown_step, first_step = time.perf_counter(), state.step, state.step
    for batches in groups(iter(loader), config.gradient_accumulation_steps):
        losses, n_frames = train_step(run, batches, state.step)
        recent += losses
        of_epoch += losses
        recent_frames += n_frames
        state = state._replace(epoch_step=state.epoch_step + 1, step=state.step + 1)
        console.bar.update()
        to_console = state.step % config.console_out_iters == 0
        to_wandb = run.wandb and state.step % config.wandb_log_iters == 0
        if to_console or (config.log_wandb and state.step % config.wandb_log_iters == 0):
            # The only place where the host waits for the device.
            means = run.accelerator.reduce(recent, "mean") / (state.step - shown_step)
            values = dict(zip(LOSSES, means.tolist(), strict=True))
            values["learning_rate"] = run.scheduler.get_last_lr()[0]
            values["frames_per_second"] = recent_frames.item() / (time.perf_counter() - clock)
            if to_console:
                console.show(state.epoch_step, state.step, values)
            if to_wandb:
                run.wandb.log({f"train/{k}": v for k, v in values.items()}, step=state.step)
            recent.zero_(), recent_frames.zero_()
            clock, shown_step = time.perf_counter(), state.step
    console.bar.close()
    means = run.accelerator.reduce(of_epoch, "mean") / (state.step - first_step)
    return state, dict(zip([f"train_{name}" for name in LOSSES], means.tolist(), strict=True))


def start_wandb(config: TrainConfig, flags: dict, resumed_id: str | None) -> Any:
    """wandb's run, or None with a line on stderr where it cannot be had: training goes on."""
    try:
        import wandb

        return wandb.init(
            project=config.experiment_name,
            name=config.run_name,
            config=flags,
            id=resumed_id,
            resume="allow" if resumed_id else None,
        )
    except Exception as error:
        print(f"train_taco.py: going on without wandb ({error})", file=sys.stderr)
        return None


def log_validation(run: Run, row: dict, media: dict[str, str], step: int) -> None:
    """One epoch's scores, pictures and sound to wandb."""
    import wandb

    rate = run.audio_config.sampling_rate
    run.wandb.log(
        {
            **{f"epoch/{name}": value for name, value in row.items()},
            "teacher_forced": wandb.Image(media["teacher_forced"]),
            "free_running": wandb.Image(media["free_running"]),
            "audio": wandb.Audio(media["audio"], sample_rate=rate),
        },
        step=step,
    )


def finish_epoch(run: Run, state: TrainerState, train_means: dict) -> TrainerState:
    """Validation, pictures and logs after the last step of an epoch."""
    epoch = state.epoch + 1
    # Validation draws the same dropout every time and leaves training's random numbers alone.
    devices = [run.accelerator.device] if run.accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        set_seed(run.config.seed)
        row = {"epoch": epoch, "step": state.step, **train_means, **validate(run)}
        if run.accelerator.is_main_process:
            media = draw_sample(run, epoch)
    row["learning_rate"] = run.scheduler.get_last_lr()[0]
    if run.accelerator.is_main_process:
        shown = "  ".join(
            f"{name} {row[name]:.3f}" for name in ("train_loss", *row) if name.startswith("val_")
        )
        print(f"epoch {epoch} done  train_loss {row['train_loss']:.3f}  {shown}", flush=True)
        if run.wandb:
            log_validation(run, row, media, state.step)
    return state._replace(epoch=epoch, epoch_step=0, history=[*state.history, row])


def prepare(configs: tuple, accelerator: Accelerator) -> tuple[Run, TrainerState]:
    """Everything a run needs, new or resumed.

    Raises:
        DataError: when a manifest or checkpoint cannot be used, or the folder is taken.
    """
    config, audio_config, model_config = configs
    tokenizer = Tokenizer()
    folder = Path(config.working_directory) / config.experiment_name
    resumed = None
    if config.resume_from_checkpoint:
        resumed = find_checkpoint(folder, config.resume_from_checkpoint)
    elif list_checkpoints(folder) and not config.overwrite:
        raise DataError(
            f"{folder} holds checkpoints already: --resume_from_checkpoint latest goes on with "
            "them, --overwrite removes them"
        )
    train_set = TTSDataset(config.path_to_train_manifest, audio_config, tokenizer)
    val_set = TTSDataset(config.path_to_val_manifest, audio_config, tokenizer)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if not resumed:
            for path in list_checkpoints(folder):
                shutil.rmtree(path)
        folder.mkdir(parents=True, exist_ok=True)
        Path(config.save_audio_gen).mkdir(parents=True, exist_ok=True)

    set_seed(config.seed)
    model = Tacotron2(model_config)
    optimizer = torch.optim.Adam(
        model.parameters(),
        lr=config.learning_rate,
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
    )
    run = Run(
        *(config, audio_config, model_config, tokenizer, accelerator),
        *(model, optimizer, None, train_set, val_set, folder, None),
    )
    steps_per_epoch = run.steps_per_epoch
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step / steps_per_epoch, config)
    )
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    run = run._replace(model=model, optimizer=optimizer, scheduler=scheduler)
    set_seed(config.seed, device_specific=True)  # each process draws its own dropout
    state = TrainerState(epoch=0, epoch_step=0, step=0, history=[])
    if resumed:
        state = load_checkpoint_state(accelerator, resumed, audio_config, model_config, tokenizer)
        accelerator.print(f"resumed from {resumed}: epoch {state.epoch}, step {state.step}")
    if config.log_wandb and accelerator.is_main_process:
        flags = {name: value for part in configs for name, value in asdict(part).items()}
        run = run._replace(wandb=start_wandb(config, flags, state.wandb_run_id))
        state = state._replace(wandb_run_id=run.wandb and run.wandb.id)
    return run, state


def train(configs: tuple) -> None:
    """The run from its first step, or from a checkpoint, to `final_checkpoint`.

    Raises:
        DataError: for what the user can mend.
    """
    accelerator = Accelerator(step_scheduler_with_optimizer=False)
    run, state = prepare(configs, accelerator)
    config = run.config
    n_parameters = sum(p.numel() for p in run.model.parameters())
    accelerator.print(
        f"{n_parameters / 1e6:.1f} M parameters, {len(run.train_set):,} clips to train on, "
        f"{len(run.val_set):,} to validate on, {run.steps_per_epoch:,} steps an epoch, "
        f"{accelerator.num_processes} x {accelerator.device.type}, {accelerator.mixed_precision}"
    )

    def save(name: str) -> None:
        save_checkpoint(
            accelerator, run.folder / name, state, asdict(config),
            run.audio_config, run.model_config, run.tokenizer,
        )  # fmt: skip

    while state.epoch < config.training_epochs:
        state, train_means = train_epoch(run, state)
        state = finish_epoch(run, state, train_means)
        if state.epoch % config.checkpoint_epochs == 0:
            save(f"checkpoint_{state.epoch}")
    save("final_checkpoint")
    if accelerator.is_main_process:
        make_film(run, state.history)
        print(f"checkpoint: {run.folder / 'final_checkpoint'}")
        print(f"pictures and wavs: {config.save_audio_gen}")
    if run.wandb:
        run.wandb.finish()
    accelerator.end_training()


def main(argv: list[str] | None = None) -> None:
    configs = parse_args(argv)
    try:
        train(configs)
    except DataError as error:
        sys.exit(f"train_taco.py: {error}")


if __name__ == "__main__":
    main()
