"""A run that is killed at a chosen checkpoint."""

from avvp_dist.dist.runtime import LocalRuntime


class Killed(BaseException):
    """Represents a process killed right after a checkpoint was committed."""


class DyingRuntime(LocalRuntime):
    """Raise `Killed` when the n-th checkpoint has been committed."""

    def __init__(self, output: str, after: int) -> None:
        super().__init__(output, "cpu")
        self._left = after

    def report(self, metrics, checkpoint):
        super().report(metrics, checkpoint)
        self._left -= 1
        if not self._left:
            raise Killed
