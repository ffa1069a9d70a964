"""Numbers as text. An imperfect score is not rounded to a perfect one."""

MAX_DECIMALS = 16  # a double below 1 differs from 1 in one of these


def format_share(value: float, decimals: int) -> str:
    """Return a share with enough decimals that only 0 and 1 read as 0 and 1.

    Args:
        value: Share in [0, 1].
        decimals: Number of decimals, unless the share would round to 0 or 1.

    Example:
        >>> format_share(0.5, 4), format_share(1.0, 4), format_share(0.9999998, 4)
        ('0.5000', '1.0000', '0.9999998')
    """
    return _format(value, decimals, whole=1)


def format_percentage(value: float, decimals: int) -> str:
    """Return a share as a percentage, as :func:`format_share` does.

    Args:
        value: Share in [0, 1].
        decimals: Number of decimals, unless the share would round to 0% or 100%.

    Example:
        >>> format_percentage(0.5, 1), format_percentage(0.9999998, 1)
        ('50.0%', '99.99998%')
    """
    return f"{_format(100 * value, decimals, whole=100)}%"


def _format(value: float, decimals: int, *, whole: int) -> str:
    if value in (0, whole):
        return f"{value:.{decimals}f}"
    for digits in range(decimals, MAX_DECIMALS + 1):
        text = f"{value:.{digits}f}"
        if float(text) not in (0, whole):
            return text
    return f"{value:.1e}"


def count_of(number: int, noun: str) -> str:
    """Return a number and a noun in the singular or the plural.

    Example:
        >>> count_of(1, "epoch"), count_of(1200, "epoch")
        ('1 epoch', '1,200 epochs')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
