"""The processes that train together, and the little they must tell one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Crew:
    """This process's place among `world` processes. Alone, every method is what it says for one."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def wait(self) -> None:
        """Returns once every process has come here."""
        if self.world > 1:
            import torch.distributed as dist

            dist.barrier()

    def most(self, number: int) -> int:
        """The largest `number` that any process named."""
        return int(self._reduced([float(number)], "MAX")[0])

    def total(self, values: Sequence[float]) -> list[float]:
        """The sums of every process's values, place by place (float64)."""
        return self._reduced(values, "SUM")

    def told(self, text: str) -> str:
        """The text that the leader named, on every process."""
        if self.world == 1:
            return text
        import torch.distributed as dist

        box = [text]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def _reduced(self, values: Sequence[float], how: str) -> list[float]:
        if self.world == 1:
            return [float(value) for value in values]
        import torch
        import torch.distributed as dist

        on_gpu = dist.get_backend() == "nccl"
        tensor = torch.tensor(values, dtype=torch.float64, device="cuda" if on_gpu else "cpu")
        dist.all_reduce(tensor, op=getattr(dist.ReduceOp, how))
        return [float(value) for value in tensor]
