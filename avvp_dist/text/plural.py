"""Singular and plural in messages."""


def plural(count: int, one: str, many: str = "") -> str:
    """Return the form of a word that agrees with a number.

    Args:
        count: the number.
        one: the form for 1, such as ``video`` or ``has``.
        many: the form for any other number, such as ``have``; by default ``one`` with an "s".
    """
    return one if count == 1 else many or f"{one}s"
