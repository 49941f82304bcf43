"""The state of a training run."""

from dataclasses import dataclass, field

LOSSES = ("loss", "mel_before_loss", "mel_after_loss", "stop_loss", "guided_attention_loss")


@dataclass
class TrainerState:
    """The state of a run; trainer_state.json of a checkpoint holds these fields."""

    epoch: int = 0  # completed epochs
    epoch_step: int = 0  # optimizer steps done in the current epoch
    step: int = 0  # optimizer steps in all
    learning_rate: float = 0.0  # of the last step
    epoch_losses: list[float] = field(default_factory=lambda: [0.0] * len(LOSSES))  # sums
    history: list[dict] = field(default_factory=list)  # losses and scores of completed epochs
    best_epoch: int = 0  # the epoch whose weights best_checkpoint holds; 0 for none
    val_clips: int = 0  # Run.val_clips, on which best_epoch was the best; 0 if nobody has noted it
    speech_checked: bool = False  # True once the run has looked whether the voice says its texts
    wandb_run_id: str | None = None
    layout: dict[str, int] = field(default_factory=dict)  # Run.layout of the current epoch

    def count_step(self, losses: dict[str, float], learning_rate: float) -> None:
        """Count a step and add up its losses."""
        self.epoch_losses = [
            total + losses[name] for total, name in zip(self.epoch_losses, LOSSES, strict=True)
        ]
        self.epoch_step += 1
        self.step += 1
        self.learning_rate = learning_rate

    def mean_losses(self) -> dict[str, float]:
        """Average the training losses over the steps of this epoch."""
        means = [total / max(self.epoch_step, 1) for total in self.epoch_losses]
        return {f"train_{name}": mean for name, mean in zip(LOSSES, means, strict=True)}

    def finish_epoch(self, row: dict[str, float]) -> None:
        """Count a completed epoch, whose losses and scores are `row`."""
        self.history.append(row)
        self.epoch += 1
        self.restart_epoch()

    def restart_epoch(self) -> None:
        """Go to the first step of the epoch."""
        self.epoch_step, self.epoch_losses = 0, [0.0] * len(LOSSES)
