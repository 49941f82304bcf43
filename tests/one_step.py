"""Not a test: one training step as `train_taco.py` takes it, its gradients written to a file.

    python tests/one_step.py OUTPUT.pt FLAGS_OF_TRAIN_TACO...

Batch norm is frozen, because its statistics are each process's own. Run by test_processes.py,
in its own process and through accelerate's launcher.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import train_taco
from runs import set_up
from training.processes import end_processes
from training.set_up import group_batches
from training.validation import score_teacher_forced


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
    run, state = set_up(list(flags))
    for module in run.model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.eval()
    run.optimizer = Recorder(run.model)
    groups = group_batches(run.train_loader, run.config.gradient_accumulation_steps)
    step = train_taco.train_step(run, next(groups), state.step)
    with run.evaluation():
        validation = score_teacher_forced(run)
    if run.is_main:
        gradients = run.optimizer.gradients
        torch.save({"gradients": gradients, "step": step, "validation": validation}, output)
    end_processes(run.accelerator)


if __name__ == "__main__":
    main(*sys.argv[1:])
