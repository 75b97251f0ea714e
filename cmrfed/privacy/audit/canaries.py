"""Records whose gradients are known, and a module of several tensors that they pull at."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cmrfed.core.device import HOST, to_host

CLIP_GUARD = 1e-6
"""Added to norms by Opacus before it divides by them."""
DRAWS = 4
"""K of every canary."""
_ONES = (1.0,) * DRAWS
_SHAPES: dict[str, tuple[int, ...]] = {
    "vector": (600,),
    "matrix": (24, 24),
    "kernel": (8, 8, 3, 3),
    "gain_0": (1,),
    "gain_1": (1,),
    "gain_2": (1,),
}


class Tensors(nn.Module):
    """Trained: a vector, a matrix, a convolution kernel and three numbers, all 0; and what has to stay as it is."""

    kept: Tensor
    frozen: nn.Parameter

    def __init__(self) -> None:
        super().__init__()
        for name, shape in _SHAPES.items():
            setattr(self, name, nn.Parameter(torch.zeros(shape, device=HOST)))
        self.frozen = nn.Parameter(torch.linspace(-1, 1, 16, device=HOST), requires_grad=False)
        self.register_buffer("kept", torch.linspace(-1, 1, 16, device=HOST))

    @property
    def trained(self) -> list[nn.Parameter]:
        """Tensor names in the order of `flat`."""
        return [getattr(self, name) for name in _SHAPES]

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.frozen.device

    def flat(self) -> np.ndarray:
        """All trained numbers, float64 (D,)."""
        return flatten(self.trained)

    @staticmethod
    def places() -> dict[str, np.ndarray]:
        """Which of the D numbers belong to each kind of tensor."""
        out: dict[str, list[int]] = {"vector": [], "matrix": [], "kernel": [], "single numbers": []}
        first = 0
        for name, shape in _SHAPES.items():
            count = math.prod(shape)
            out[name if name in out else "single numbers"] += range(first, first + count)
            first += count
        return {name: np.array(indices) for name, indices in out.items()}


def flatten(tensors: list[nn.Parameter] | list[Tensor]) -> np.ndarray:
    """Tensors as one float64 vector."""
    return np.concatenate([to_host(t).double().numpy().ravel() for t in tensors])


@dataclass(frozen=True)
class Canary:
    """A record with a known gradient."""

    name: str
    gradient: np.ndarray
    """Gradient of the mean loss in units of C, float64 (D,)."""
    scales: tuple[float, ...] = _ONES
    """Factors of the losses of its draws; their mean is 1 where the gradient is finite."""
    depends: bool = True
    """False: its losses do not depend on the weights."""
    edge: bool = False
    """True: its losses are finite, and their gradient is not."""

    @property
    def norm(self) -> float:
        """Norm of its gradient in units of C."""
        return float(np.linalg.norm(self.gradient))

    def contribution(self, clip_norm: float) -> np.ndarray:
        """What may reach the sum, in units of C: the gradient, clipped; nothing where it is not finite."""
        if self.edge or not self.depends or not np.isfinite(self.scales).all():
            return np.zeros_like(self.gradient)
        return self.gradient * min(1.0, 1.0 / (self.norm + CLIP_GUARD / clip_norm))


def make_canaries(seed: int = 0) -> list[Canary]:
    """One of each kind: loud and quiet, just above the bound and below, in all tensors or in one, and broken ones."""
    rng = np.random.default_rng(seed)
    places = Tensors.places()
    total = sum(len(indices) for indices in places.values())

    def along(norm: float, indices: np.ndarray | None = None) -> np.ndarray:
        vector, indices = np.zeros(total), np.arange(total) if indices is None else indices
        vector[indices] = rng.normal(size=len(indices))
        return vector * (norm / np.linalg.norm(vector))

    loud = along(1000)
    made = [Canary("1000 C in all tensors", loud), Canary("1000 C, opposite", -loud)]
    made += [Canary(f"1000 C in the {name}", along(1000, indices)) for name, indices in places.items()]
    made.append(Canary("1000 C in one number", along(1000, places["matrix"][7:8])))
    made += [Canary(f"{norm:g} C in all tensors", along(norm)) for norm in (30, 3, 1.5, 1.05, 0.95, 0.3)]
    made += [Canary(f"0.3 C in the {name}", along(0.3, indices)) for name, indices in places.items()]
    made.append(Canary("0.03 C in all tensors", along(0.03)))
    made.append(Canary("0.3 C, all of it in one draw", along(0.3), (4.0, 0.0, 0.0, 0.0)))
    made.append(Canary("0.3 C, the rest of two opposite loud draws", along(0.3), (4000.0, -3996.0, 0.0, 0.0)))
    made.append(Canary("1000 C, all of it in one draw", along(1000), (0.0, 0.0, 4.0, 0.0)))
    made.append(Canary("no gradient", np.zeros(total)))
    made.append(Canary("no dependence on the weights", along(1000), depends=False))
    made.append(Canary("NaN in all draws", along(1), (math.nan,) * DRAWS))
    made.append(Canary("NaN in one draw", along(1), (1.0, math.nan, 1.0, 1.0)))
    made.append(Canary("infinite in one draw", along(1), (1.0, 1.0, math.inf, 1.0)))
    made.append(Canary("finite losses without a finite gradient", along(1), edge=True))
    return made


class Records:
    """R records on a module: record i is a canary of kind i modulo the number of kinds.

    Args:
        module: What they pull at.
        canaries: The kinds.
        count: R.
        clip_norm: C.
    """

    def __init__(self, module: Tensors, canaries: list[Canary], count: int, clip_norm: float) -> None:
        self.module, self.canaries, self.count = module, canaries, count
        device = module.device
        sizes = [p.numel() for p in module.trained]
        self._parts = [
            [
                part.view_as(p)
                for part, p in zip(
                    torch.tensor(c.gradient * clip_norm, dtype=torch.float32, device=device).split(sizes),
                    module.trained,
                    strict=True,
                )
            ]
            for c in canaries
        ]
        self._scales = [torch.tensor(c.scales, device=device) for c in canaries]
        self.seen: list[int] = []
        self.watch: Callable[[], None] = lambda: None

    def kind(self, record: int) -> int:
        """Number of a record's kind."""
        return record % len(self.canaries)

    def losses(self, record: int) -> Tensor:
        """Losses of the K draws of a record, (K,); notes that it was asked for."""
        self.seen.append(record)
        self.watch()
        kind = self.kind(record)
        canary = self.canaries[kind]
        if not canary.depends:
            return torch.full((DRAWS,), 0.5, device=self._scales[kind].device)
        pull = torch.stack([(w * g).sum() for w, g in zip(self.module.trained, self._parts[kind], strict=True)]).sum()
        losses = 0.5 + pull * self._scales[kind]
        return losses + (pull * 0).sqrt() if canary.edge else losses
