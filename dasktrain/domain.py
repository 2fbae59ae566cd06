"""The determinism domain: what torch keeps for a whole process and that changes bits, and how it is recognised."""

import hashlib
import math
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

#: torch's thread count and random generator belong to the process: whoever computes with them takes a turn
_TURN = threading.RLock()


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Compute with so many torch threads, and leave torch's thread count and random generator as they were.

    Kernels split their sums by threads: another number gives other bits (LayerNorm and matrix products
    among them). Threads of one process that enter this take turns.
    """
    with _TURN:
        before, random = torch.get_num_threads(), torch.random.get_rng_state()
        if threads != before:
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.random.set_rng_state(random)
            if threads != before:
                torch.set_num_threads(before)


def facts() -> dict[str, str | int]:
    """Return what is known to change bits, for a message; call it pinned."""
    return {
        "torch": torch.__version__,
        "kernel path": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def canary(device: torch.device | None = None) -> list[Tensor]:
    """Compute a little of what is known to differ between kernel paths and thread counts; call it pinned.

    Products, normalisation, attention's softmax, long sums, convolution and their gradients, on fixed numbers.
    """
    x = made_up(64, 96).to(device).requires_grad_()
    weight = made_up(96, 96, salt=1).to(device).requires_grad_()
    hidden = F.layer_norm(F.gelu(x @ weight), (96,))
    mixed = F.softmax(hidden @ hidden.T / 10, dim=-1) @ hidden
    output = F.conv1d(mixed[:, None], made_up(4, 1, 5, salt=2).to(device)).tanh()
    loss = torch.logsumexp(output.flatten(1), dim=1).exp().log1p().sum() + made_up(40_000, salt=3).to(device).sum()
    return [loss.detach(), output.detach(), *torch.autograd.grad(loss, [x, weight])]


def made_up(*shape: int, salt: int = 0) -> Tensor:
    """Return normal numbers that are the same on every machine."""
    values = np.random.Generator(np.random.Philox(salt)).standard_normal(shape)
    return torch.from_numpy(values.astype(np.float32))


@torch.no_grad()
def make_up(tensors: Iterable[Tensor]) -> None:
    """Put values into parameters and buffers that are the same at a run's start and when it is resumed."""
    block = made_up(4099)
    for tensor in tensors:
        if tensor.is_floating_point():
            numbers = block.repeat(tensor.numel() // len(block) + 1)[: tensor.numel()].reshape(tensor.shape)
            # Matrices keep the scale of what goes through them; vectors may be variances or temperatures.
            tensor.copy_(numbers / math.sqrt(tensor[:1].numel()) if tensor.dim() > 1 else 1 + numbers / 10)


def digest_of_bits(tensors: list[Tensor]) -> str:
    """Return the hex sha256 of the bytes of tensors."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
