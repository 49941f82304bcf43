"""Not a test: one training step as `train_taco.py` takes it, its gradients written to a file.

    python tests/one_step.py OUTPUT.pt FLAGS_OF_TRAIN_TACO...

Batch norm is frozen, because its statistics are each process's own. Run by test_processes.py,
in its own process and through accelerate's launcher.
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator

sys.path.insert(0, str(Path(__file__).parent.parent))

import train_taco
from training.config import parse_args
from training.processes import end_group, read_groups
from training.setup import make_loader
from training.validation import validate


class Recorder:
    """In the optimizer's place: keeps the gradients instead of using them."""

    def __init__(self, model):
        self.model, self.gradients = model, {}

    def step(self):
        for name, parameter in self.model.named_parameters():
            self.gradients[name.removeprefix("module.")] = parameter.grad.clone()

    def zero_grad(self):
        pass


def main(output, *flags):
    configs = parse_args(list(flags), "")
    accelerator = Accelerator()
    run, state = train_taco.prepare(configs, accelerator)
    for module in run.model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.eval()
    recorder = Recorder(run.model)
    run = run._replace(optimizer=recorder)
    loader = make_loader(run, run.train_set, seed=0, epoch=0)
    groups = read_groups(loader, run.config.gradient_accumulation_steps)
    losses, n_frames, grad_norm = train_taco.train_step(run, next(groups), state.step)
    means = accelerator.reduce(torch.tensor(list(losses.values())), "mean")
    validation = validate(accelerator, run.model, run.val_loader)
    if accelerator.is_main_process:
        torch.save(
            {
                "gradients": recorder.gradients,
                "losses": dict(zip(losses, means.tolist(), strict=True)),
                "n_frames": float(n_frames),
                "grad_norm": grad_norm,
                "validation": validation,
            },
            output,
        )
    end_group(accelerator)


if __name__ == "__main__":
    main(*sys.argv[1:])
