"""A worker whose accelerate takes FSDP2 on a CPU. It patches a private method, so it is for tests only: accelerate
itself turns FSDP on a CPU into plain DDP, and zephyrctl refuses it there."""

from __future__ import annotations

import sys
from typing import Any


def patch() -> None:
    """Has accelerate take a CPU process group for a GPU's."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    def prepare(self: Any, cpu: bool, sagemaker_dp: bool = False, backend: str | None = None) -> Any:
        return "gloo", DistributedType.MULTI_GPU

    PartialState._prepare_backend = prepare  # type: ignore[method-assign]


if __name__ == "__main__":
    from zephyrctl.training import worker

    patch()
    sys.exit(worker.main())
