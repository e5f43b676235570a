"""Batches with a changed second, which show what a network's outputs depend on."""

from avvp_dist.types import Batch


def changed_at_second_4(batch, *streams):
    """The batch with second 4 of these streams changed (of visual: its first frame)."""
    changed = dict(batch.streams)
    for name in streams:
        changed[name] = changed[name].clone()
        changed[name][:, 4 * changed[name].shape[1] // 10] += 1
    return Batch(changed, batch.weak, batch.index, batch.total)
