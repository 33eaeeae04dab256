"""A trainer that fits: the fastest way to the clipped gradient sum in the memory that there is."""

from __future__ import annotations

from torch import nn

from he_client.training.batches import Batch, records_in
from he_client.training.gradients import Loss, Way, check_clip_norm, fastest, sum_by
from he_client.training.modules import Arrays
from he_client.training.plans import choose, over_budget, parse_size


class Trainer:
    """DP-FedSGD's sum for one module, within a budget of memory.

    `budget` is in bytes, or a text such as "128 KiB"; None takes the fastest way. It is for torch's allocations, the
    module's own parameters and buffers included, as `measure` counts them: Python itself needs tens of MB more. The way
    is measured with the records of the first sum, once, and is `way` from then on; later records should have the same
    shapes. Freeze tensors, as `propose` says, before that.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        clip_norm: float,
        budget: int | str | None = None,
        *,
        raise_errors: bool = False,
    ) -> None:
        """Raises `bad-settings` for a `clip_norm` or `budget` that is none."""
        check_clip_norm(clip_norm)
        self.budget = parse_size(budget) if isinstance(budget, str) else budget
        self.way: Way | None = None
        self._module, self._loss, self._clip_norm, self._raise_errors = module, loss, clip_norm, raise_errors

    def gradient_sum(self, inputs: Batch, targets: Batch) -> Arrays:
        """Sum over records of the clipped gradient of each, as `clipped_gradient_sum` has it: float32 arrays by name.

        Raises as that does, and `bad-settings` where no way fits in the budget, which says what the smallest needs.
        """
        way = self.way or self._choose(inputs, targets)
        return sum_by(way, self._module, self._loss, inputs, targets, self._clip_norm, raise_errors=self._raise_errors)

    def _choose(self, inputs: Batch, targets: Batch) -> Way:
        if self.budget is None or not records_in(inputs, targets):
            return fastest(self._module)
        how = choose(self._module, self._loss, inputs, targets, self.budget, raise_errors=self._raise_errors)
        if how[1].peak_bytes > self.budget:
            raise over_budget(self.budget, how[1].peak_bytes)
        self.way = how[0]
        return self.way
