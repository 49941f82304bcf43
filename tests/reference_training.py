"""Not a test: training written once more, as plainly as possible, to hold train_taco.py against.

Its own order of the clips, losses, accumulation, clipping, Adam, learning rate and guided
attention's decay, in one process also where it plays several. Of the repo it uses the model, the
text and the mels, which have oracles of their own.
"""

import math

import numpy as np
import torch

from dataset import AudioConfig, TTSCollator, TTSDataset
from fast.decoder import speed_up
from model import Tacotron2, Tacotron2Config
from text.tokenizer import Tokenizer

DEFAULTS = {
    "training_epochs": 2, "batch_size": 2, "gradient_accumulation_steps": 1, "seed": 42,
    "learning_rate": 1e-3, "min_learning_rate": 1e-5, "start_decay_epochs": None,
    "weight_decay": 1e-6, "adam_eps": 1e-6, "max_grad_norm": 1.0, "guided_attention_weight": 5.0,
    "guided_attention_sigma": 0.2, "guided_attention_steps": 300, "warmup_steps": 100,
    "drop_frame_rate": 0.0, "stop_positive_weight": 1.0, "short_first_epochs": 1,
    "l1_weight": 1.0, "stop_tail_frames": 8,
}  # fmt: skip


def order_of_clips(dataset: TTSDataset, flags: dict, epoch: int, n_clips: int) -> list[list[int]]:
    """An epoch's batches, of all processes together: clips of like lengths, shuffled batches."""
    generator = np.random.Generator(np.random.PCG64([flags["seed"], epoch]))
    blur = generator.uniform(0.97, 1.03, size=len(dataset))
    lengths = [n * factor for n, factor in zip(dataset.n_frames, blur, strict=True)]
    longest_first = sorted(range(len(dataset)), key=lambda clip: -lengths[clip])
    n_batches = math.ceil(len(dataset) / n_clips)
    batches = cut(longest_first, n_batches)
    if epoch + 1 <= flags["short_first_epochs"]:
        return list(reversed(batches))
    return [batches[i] for i in generator.permutation(n_batches)]


def cut(items: list[int], n_parts: int) -> list[list[int]]:
    """Parts whose sizes differ by one at most, the larger ones first."""
    sizes = [len(items) // n_parts + (i < len(items) % n_parts) for i in range(n_parts)]
    ends = np.cumsum(sizes)
    return [items[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def drop_frames(batch, rate: float) -> torch.Tensor:
    """What the decoder is given for the true frames; draws a number for each frame of the batch."""
    if not rate:
        return batch.mels
    frames = torch.cat([mel[:n] for mel, n in zip(batch.mels, batch.mel_lengths, strict=True)])
    given = batch.mels.clone()
    for clip, numbers in enumerate(torch.rand(batch.mels.shape[:2])):
        for frame, number in enumerate(numbers):
            if number < rate:
                given[clip, frame] = frames.mean(dim=0)
    return given


def sum_of_losses(output, batch, guided_weight: float, flags: dict):
    """Each frame's losses, added up clip by clip over the frames that are not padding."""
    total = 0.0
    for i, (n, t) in enumerate(zip(batch.token_lengths, batch.mel_lengths, strict=True)):
        n, t = int(n), int(t)
        mel, end = batch.mels[i, :t], t + flags["stop_tail_frames"]
        for mels in (output.mels_before, output.mels_after):
            total += ((mels[i, :t] - mel) ** 2).mean(dim=1).sum()
            total += flags["l1_weight"] * abs(mels[i, :t] - mel).mean(dim=1).sum()
        probability = torch.sigmoid(output.stop_logits[i, :end])
        total -= torch.log(1 - probability[: t - 1]).sum()
        total -= flags["stop_positive_weight"] * torch.log(probability[t - 1 :]).sum()
        diagonal = torch.arange(n)[None, :] / n - torch.arange(t)[:, None] / t  # (t, n)
        penalty = 1 - torch.exp(-(diagonal**2) / (2 * flags["guided_attention_sigma"] ** 2))
        total += guided_weight * (penalty * output.alignments[i, :t, :n]).sum()
    return total


def learning_rate(step: int, epoch: float, flags: dict) -> float:
    """Rises by equal parts, is constant, falls exponentially from start_decay_epochs to the end."""
    if step < flags["warmup_steps"]:
        return flags["learning_rate"] * step / flags["warmup_steps"]
    start = flags["start_decay_epochs"]
    start = flags["training_epochs"] / 2 if start is None else start
    if epoch <= start:
        return flags["learning_rate"]
    share = (epoch - start) / (flags["training_epochs"] - start)
    high, low = math.log(flags["learning_rate"]), math.log(flags["min_learning_rate"])
    return math.exp(high + share * (low - high))


def adam(parameters, moments, step: int, rate: float, flags: dict) -> None:
    """Kingma & Ba 2015, algorithm 1, after an L2 penalty and clipping by the norm of all."""
    norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in parameters))
    scale = min(1.0, flags["max_grad_norm"] / (norm + 1e-6))
    for p, (first, second) in zip(parameters, moments, strict=True):
        gradient = p.grad * scale + flags["weight_decay"] * p.data
        first.mul_(0.9).add_(0.1 * gradient)
        second.mul_(0.999).add_(0.001 * gradient**2)
        unbiased = first / (1 - 0.9**step), second / (1 - 0.999**step)
        p.data -= rate * unbiased[0] / (unbiased[1].sqrt() + flags["adam_eps"])


def train(manifest, model_sizes: dict, n_processes: int = 1, **changes) -> dict[str, torch.Tensor]:
    """The weights after `training_epochs`; `changes` are flags of train_taco.py."""
    flags = {**DEFAULTS, **changes}
    tokenizer, audio = Tokenizer(), AudioConfig()
    dataset = TTSDataset(manifest, audio, tokenizer)
    collate = TTSCollator(audio, tokenizer, flags["stop_tail_frames"])
    torch.manual_seed(flags["seed"])
    # The fast decoder, held to the plain one elsewhere: the two draw dropout in another order.
    model = speed_up(Tacotron2(Tacotron2Config(vocab_size=tokenizer.vocab_size, **model_sizes)))
    parameters = list(model.parameters())
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
    random_states = []  # each process draws its own dropout
    for process in range(n_processes):
        torch.manual_seed(flags["seed"] + process)
        random_states.append(torch.get_rng_state())

    step, size = 0, flags["gradient_accumulation_steps"]
    for epoch in range(flags["training_epochs"]):
        n_clips = flags["batch_size"] * n_processes
        batches = order_of_clips(dataset, flags, epoch, n_clips)
        n_steps = math.ceil(len(batches) / size)
        for epoch_step in range(n_steps):
            first = epoch_step * size
            group = batches[first : first + size]
            decay = max(1 - step / flags["guided_attention_steps"], 0.0)
            weight = flags["guided_attention_weight"] * decay
            shares = [  # who gets the longest clips rotates from batch to batch
                [
                    cut(clips, n_processes)[(p + first + i) % n_processes]
                    for i, clips in enumerate(group)
                ]
                for p in range(n_processes)
            ]
            batches_of = [[collate([dataset[i] for i in s]) for s in share] for share in shares]
            n_frames = sum(int(b.mel_lengths.sum()) for some in batches_of for b in some)
            model.zero_grad()
            # Running means are those of the first process, which therefore comes last here.
            for process in reversed(range(n_processes)):
                before = {name: buffer.clone() for name, buffer in model.named_buffers()}
                torch.set_rng_state(random_states[process])
                for batch in batches_of[process]:
                    teacher = drop_frames(batch, flags["drop_frame_rate"])
                    output = model(batch.tokens, batch.token_lengths, teacher, batch.mel_lengths)
                    (sum_of_losses(output, batch, weight, flags) / n_frames).backward()
                random_states[process] = torch.get_rng_state()
                if process:
                    for name, buffer in model.named_buffers():
                        buffer.copy_(before[name])
            step += 1
            rate = learning_rate(step, epoch + epoch_step / n_steps, flags)
            adam(parameters, moments, step, rate, flags)
    return model.state_dict()
