"""The two editions of LLP's AVVP_eval_audio.csv, and the corrections between them.

LLP's authors corrected three rows on 2024-04-16 (github.com/YapengTian/AVVP-ECCV20). Copies in the repositories of MA,
JoMoLD and most later methods still have the older file, in which three rows name no video, so that evaluation misses their
events.
"""

from __future__ import annotations

OLDER = "older-edition"
MENDED = "mended"
DATE = "2024-04-16"
SOURCE = "github.com/YapengTian/AVVP-ECCV20"

_FILE = "AVVP_eval_audio.csv"

_CORRECTIONS = {
    (_FILE, "Baby_cry_infant_cry", 0, 4, "Speech"): "JfZEqeLZqWk_30_40",
    (_FILE, "Baby_cry_infant_cry", 7, 10, "Speech"): "JfZEqeLZqWk_30_40",
    (_FILE, "KvIjsmANkxI_10_20`", 0, 1, "Cat"): "KvIjsmANkxI_10_20",
}
"""(file, filename, onset, offset, label) of a row of the older edition -> its filename in the corrected edition."""


def correction(file: str, name: str, onset: int, offset: int, label: str) -> str | None:
    """The correct video of a row of the older edition; None for any other row."""
    return _CORRECTIONS.get((file, name, onset, offset, label))
