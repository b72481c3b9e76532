"""Training for as long as the clock allows: steps, learning rate, averages, and steps replayed as CUDA graphs."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn


def clock(name: str, minutes: float, optimizer: torch.optim.Optimizer, rate: float, hold: float) -> Iterator[float]:
    """Yields the share of ``minutes`` gone before each step, sets the learning rate, and reports the speed.

    The rate rises over 200 steps, holds until the share ``hold``, then falls to zero in a straight line.
    """
    start, steps, share = time.monotonic(), 0, 0.0
    while share < 1 and minutes > 0:
        warm, fall = min(1.0, (steps + 1) / 200), min(1.0, (1 - share) / (1 - hold))
        for group in optimizer.param_groups:
            group["lr"].fill_(rate * min(warm, fall))
        yield share
        steps += 1
        if steps % 10 == 0 and torch.cuda.is_available():
            torch.cuda.synchronize()
        share = (time.monotonic() - start) / (60 * minutes)
    print(f"{name}: {steps} steps in {time.monotonic() - start:.0f} s", flush=True)


class Report:
    """Prints the mean of the losses every ``every`` seconds, so that the device rarely waits for the host."""

    def __init__(self, name: str, every: float = 10.0) -> None:
        self.name, self.every, self.last, self.losses = name, every, time.monotonic(), []

    def __call__(self, loss: Tensor) -> None:
        self.losses.append(loss.detach().clone())  # a replayed step writes into the same tensor
        if time.monotonic() - self.last > self.every:
            print(f"{self.name}: loss {torch.stack(self.losses).mean():.5f} over {len(self.losses)} steps", flush=True)
            self.last, self.losses = time.monotonic(), []


class Average:
    """Exponential moving average of the parameters of ``modules``."""

    def __init__(self, modules: list[nn.Module], decay: float = 0.999) -> None:
        self.live = [p for module in modules for p in module.parameters()]
        self.mean = [p.detach().clone() for p in self.live]
        self.decay = decay

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(self.mean, self.live, 1 - self.decay)

    @torch.no_grad()
    def put_in_place(self) -> None:
        torch._foreach_copy_(self.live, self.mean)


def descend(loss: Tensor, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    on_gpu = parameters[0].is_cuda
    rate = torch.zeros((), device=parameters[0].device)  # a tensor, so that a replayed step sees it change
    return torch.optim.AdamW(
        parameters, rate, betas=(0.9, 0.98), weight_decay=0.01, fused=on_gpu or None, capturable=on_gpu
    )


def replayed(step: Callable[[], Tensor], args: argparse.Namespace) -> Callable[[], Tensor]:
    """``step`` recorded as a CUDA graph: of a model this small, launching the kernels takes longer than running them.

    Whatever ``step`` reads must stay where it is, and whatever it gives back is overwritten by the next call.
    """
    if args.eager or not args.device.startswith("cuda"):
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(5):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay
