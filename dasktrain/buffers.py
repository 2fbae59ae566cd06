"""A module's buffers (running statistics, counters, constants): bytes on the way out, changes on the way back.

Every shard starts a round from the same buffers. What it changes comes back as change x rows, in float64, and the
driver adds the mean change over rows. A buffer that no shard changes thus keeps its bits, whatever it holds:
masks of minus infinity, 64-bit counts, complex rotations.
"""

import math
from itertools import accumulate

import torch
from torch import Tensor, nn

from dasktrain.vector import Layout, Memory, plain_memory, tensor_in

#: byte boundary at which each buffer begins, enough for a view of any dtype
ALIGNMENT = 16


class FlatBuffers:
    """The buffers of a module as one vector of bytes.

    Attributes
    ----------
    layout : Layout
        Of changes: for each real element of a buffer (a complex one has two) the change, and whether there was one.
    vector : Tensor
        (bytes,), uint8: the buffers as a round starts from them.
    """

    def __init__(self, module: nn.Module, memory: Memory = plain_memory) -> None:
        # By name and owner, since forward() may put another tensor where a buffer was.
        self._owners: dict[str, list[tuple[nn.Module, str]]] = {}
        names: dict[int, str] = {}
        for prefix, owner in module.named_modules():
            for key, buffer in owner._buffers.items():
                if buffer is not None:
                    name = names.setdefault(id(buffer), f"{prefix}.{key}" if prefix else key)
                    self._owners.setdefault(name, []).append((owner, key))
        current = {name: self._current(name) for name in self._owners}
        self.layout = Layout({name: (2, *_real(buffer).shape) for name, buffer in current.items()})
        sizes = [math.ceil(buffer.nbytes / ALIGNMENT) * ALIGNMENT for buffer in current.values()]
        device = next((buffer.device for buffer in current.values()), None)
        vector = tensor_in(memory, sum(sizes), torch.uint8).zero_()
        self.vector = vector if device is None or device.type == "cpu" else vector.to(device)
        starts = [0, *accumulate(sizes)]
        self._starts = {
            name: self.vector[start : start + buffer.nbytes].view(buffer.dtype).view(buffer.shape)
            for start, (name, buffer) in zip(starts, current.items(), strict=False)
        }
        self.store()

    def _current(self, name: str) -> Tensor:
        owner, key = self._owners[name][0]
        buffer = owner._buffers[key]
        assert buffer is not None
        return buffer.detach()

    def load(self) -> None:
        """Put copies of the vector's values into the module."""
        for name, owners in self._owners.items():
            value = self._starts[name].clone()
            for owner, key in owners:
                owner._buffers[key] = value

    def store(self) -> None:
        """Take the module's values into the vector."""
        for name, start in self._starts.items():
            start.copy_(self._current(name))

    def changes(self, out: Tensor, rows: int) -> None:
        """Write (module's values - vector's values) x rows, and rows x (1 where they differ), to `out`.

        `out` is (layout.size,) float64. A value that was not finite counts as 0.
        """
        for name, (change, changed) in self.layout.views(out).items():
            after, before = _real(self._current(name)), _real(self._starts[name])
            differs = (after != before) & ~(after.isnan() & before.isnan())
            changed.copy_(differs)
            if after.is_floating_point():
                change.copy_((after.double() - _finite(before)).masked_fill(~differs, 0.0))
            else:
                change.copy_(after.long() - before.long())
        out.mul_(rows)

    def add(self, changes: Tensor) -> None:
        """Add mean changes, (layout.size,) float64, to vector and module; whole numbers where they are counts."""
        for name, (change, changed) in self.layout.views(changes).items():
            start = _real(self._starts[name])
            if start.is_floating_point():
                # Where it was not finite, the mean of the shards that changed it.
                change = torch.where(start.isfinite(), change, change / changed)
                start.copy_(torch.where(changed == 0, start, _finite(start) + change))
            elif start.dtype == torch.bool:
                start.copy_(start.double() + change > 0.5)
            else:
                start.add_(change.round().to(start.dtype))
        self.load()


def _real(buffer: Tensor) -> Tensor:
    return torch.view_as_real(buffer) if buffer.is_complex() else buffer


def _finite(values: Tensor) -> Tensor:
    return values.double().nan_to_num(0.0, 0.0, 0.0)
