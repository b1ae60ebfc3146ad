"""Counts, sizes, rates and durations as messages and reports show them."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Format a count with its noun, singular after 1: '1 batch', '1,024 batches'."""
    if number != 1:
        noun += "es" if noun.endswith(("ch", "sh", "s", "x")) else "s"
    return f"{number:,} {noun}"


def size(count: float) -> str:
    """Bytes in powers of ten: '20.5 kB'."""
    return f"{_scaled(count)}B"


def rate(count: float, duration: float, unit: str) -> str:
    """Units per second: '45 MB/s', '36 M tokens/s'."""
    number = _scaled(count / max(duration, 1e-9))
    return f"{number}B/s" if unit == "B" else f"{number.rstrip()} {unit}/s"


def seconds(duration: float) -> str:
    """Format a duration with three digits."""
    return f"{duration:.3g} s" if duration < 100 else f"{duration:,.0f} s"


def percent(part: float, total: float) -> str:
    """Format a share with two decimals: '33.33 %'."""
    return f"{100 * part / max(total, 1e-9):.2f} %"


def visible(text: str) -> str:
    r"""Replace control characters and marks of writing direction by escapes such as \x1b; line feeds stay."""
    return "".join(
        letter if letter == "\n" or letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def _scaled(value: float) -> str:
    for unit in ("", "k", "M", "G"):
        if value < 999.5:  # above it three digits would be 1e+03
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} T"
