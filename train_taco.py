"""Trains Tacotron 2 by teacher forcing, on one or many GPUs or on a CPU.

    accelerate launch train_taco.py --experiment_name tacotron2 --run_name first \
        --working_directory work_dir --save_audio_gen work_dir/samples \
        --path_to_train_manifest data/train_metadata.csv \
        --path_to_val_manifest data/test_metadata.csv

`train_taco.sh` shows every flag. Checkpoints go to WORKING_DIRECTORY/EXPERIMENT_NAME, pictures
and sounds of every validation to SAVE_AUDIO_GEN. The file reads in the order things happen:
flags, learning rate, one step, validation, the run.
"""

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from torch.utils.data import DataLoader

from checkpoints import (
    TrainerState,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint_state,
    save_checkpoint,
    warm_start,
)
from config import TrainConfig, parse_args
from dataset import AudioConfig, Batch, BatchSampler, DataError, TTSCollator, TTSDataset, Utterance
from evaluate import alignment_scores
from model import Tacotron2, Tacotron2Config, tacotron2_loss
from reporting import Console, draw_sample, log_validation, make_film, start_wandb
from synthesize import read_config
from tokenizer import Tokenizer

LOSSES = ("loss", "mel_before_loss", "mel_after_loss", "stop_loss", "guided_attention_loss")


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
    def sample(self) -> Utterance:
        """The validation clip that the pictures show: of middling length, longest come first."""
        return self.val_set[len(self.val_set) // 2]

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


def train_step(run: Run, batches: list, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """One optimizer step on all of `batches`: losses (5,) as LOSSES, frames, gradient norm.

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
    grad_norm = run.accelerator.clip_grad_norm_(run.model.parameters(), run.config.max_grad_norm)
    run.optimizer.step()
    run.scheduler.step()
    run.optimizer.zero_grad()
    return totals, n_frames, grad_norm


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
    console = Console(
        run.accelerator.is_main_process, state.epoch, config.training_epochs, state.epoch_step,
        run.steps_per_epoch,
    )  # fmt: skip
    device = run.accelerator.device
    recent, of_epoch = torch.zeros(2, len(LOSSES), device=device)
    recent_frames = torch.zeros((), device=device)
    clock, shown_step, first_step = time.perf_counter(), state.step, state.step
    for batches in groups(iter(loader), config.gradient_accumulation_steps):
        losses, n_frames, grad_norm = train_step(run, batches, state.step)
        recent += losses
        of_epoch += losses
        recent_frames += n_frames
        state = state._replace(epoch_step=state.epoch_step + 1, step=state.step + 1)
        console.bar.update()
        to_console = state.step % config.console_out_iters == 0
        to_wandb = config.log_wandb and state.step % config.wandb_log_iters == 0
        if to_console or to_wandb:  # the only place where the host waits for the device
            means = run.accelerator.reduce(recent, "mean") / (state.step - shown_step)
            values = dict(zip(LOSSES, means.tolist(), strict=True))
            frames_per_second = recent_frames.item() / (time.perf_counter() - clock)
            if to_console:
                console.show(state.epoch_step, values, frames_per_second)
            if to_wandb and run.wandb:
                values["learning_rate"] = run.scheduler.get_last_lr()[0]
                values["frames_per_second"] = frames_per_second
                values["grad_norm"] = grad_norm.item()
                run.wandb.log({f"train/{k}": v for k, v in values.items()}, step=state.step)
            recent.zero_(), recent_frames.zero_()
            clock, shown_step = time.perf_counter(), state.step
    console.bar.close()
    means = run.accelerator.reduce(of_epoch, "mean") / (state.step - first_step)
    return state, dict(zip([f"train_{name}" for name in LOSSES], means.tolist(), strict=True))


def finish_epoch(run: Run, state: TrainerState, train_means: dict) -> TrainerState:
    """Validation, pictures and logs after the last step of an epoch."""
    epoch = state.epoch + 1
    # Validation draws the same dropout every time and leaves training's random numbers alone.
    devices = [run.accelerator.device] if run.accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        set_seed(run.config.seed)
        row = {"epoch": epoch, "step": state.step, **train_means, **validate(run)}
        if run.accelerator.is_main_process:
            model = run.accelerator.unwrap_model(run.model).eval()
            files = draw_sample(
                model, run.sample, run.audio_config, run.tokenizer, run.config.max_decoder_steps,
                run.config.save_audio_gen, epoch,
            )  # fmt: skip
            model.train()
    row["learning_rate"] = run.scheduler.get_last_lr()[0]
    if run.accelerator.is_main_process:
        shown = "  ".join(
            f"{name} {row[name]:.3f}" for name in ("train_loss", *row) if name.startswith("val_")
        )
        print(f"epoch {epoch} done  train_loss {row['train_loss']:.3f}  {shown}", flush=True)
        if run.wandb:
            log_validation(run.wandb, row, files, run.audio_config.sampling_rate)
    return state._replace(epoch=epoch, epoch_step=0, history=[*state.history, row])


def choose_tokenizer(config: TrainConfig, resumed: Path | None) -> Tokenizer:
    """The symbols of the run resumed, of --path_to_symbols, of the warm start, or the built-in.

    Raises:
        DataError: when a file cannot be used.
    """
    if resumed:
        return read_config(resumed)[2]
    if config.path_to_symbols:
        try:
            return Tokenizer(json.loads(Path(config.path_to_symbols).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"--path_to_symbols {config.path_to_symbols}: {error}") from None
    return read_config(config.warm_start)[2] if config.warm_start else Tokenizer()


def prepare(configs: tuple, accelerator: Accelerator) -> tuple[Run, TrainerState]:
    """Everything a run needs, new or resumed.

    Raises:
        DataError: when a manifest or checkpoint cannot be used, or the folder is taken.
    """
    config, audio_config, model_config = configs
    folder = Path(config.working_directory) / config.experiment_name
    resumed = None
    if config.resume_from_checkpoint:
        resumed = find_checkpoint(folder, config.resume_from_checkpoint)
    elif list_checkpoints(folder) and not config.overwrite:
        raise DataError(
            f"{folder} holds checkpoints already: --resume_from_checkpoint latest goes on with "
            "them, --overwrite removes them"
        )
    tokenizer = choose_tokenizer(config, resumed)
    model_config = replace(model_config, vocab_size=tokenizer.vocab_size)
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
    if config.warm_start and not resumed:
        allow = config.warm_start_allow_mismatch
        skipped = warm_start(model, Path(config.warm_start), audio_config, tokenizer, allow)
        accelerator.print(f"weights of {config.warm_start}", *skipped, sep="\n  left out: ")
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
        wandb_run = start_wandb(config.experiment_name, config.run_name, flags, state.wandb_run_id)
        run = run._replace(wandb=wandb_run)
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
        text = run.tokenizer.decode(run.sample.tokens)
        make_film(config.save_audio_gen, state.history, text, run.audio_config.hop_seconds)
        print(f"checkpoint: {run.folder / 'final_checkpoint'}")
        print(f"pictures and wavs: {config.save_audio_gen}")
    if run.wandb:
        run.wandb.finish()
    accelerator.end_training()


def main(argv: list[str] | None = None) -> None:
    configs = parse_args(argv, __doc__.split("\n")[0])
    try:
        train(configs)
    except DataError as error:
        sys.exit(f"train_taco.py: {error}")


if __name__ == "__main__":
    main()
