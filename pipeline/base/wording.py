"""Counts, sizes, rates and durations as messages and reports show them."""

from __future__ import annotations

PREFIXES = ("", "k", "M", "G", "T")


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


def duration(length: float) -> str:
    """Format a time that someone waits: '4.2 s', '12 min', '3 h 20 min'."""
    if length < 100:
        return seconds(length)
    minutes = round(length / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60:,} h {minutes % 60} min"


def out_of(done: float, total: float, unit: str) -> str:
    """Say how much of a total is done, both in one unit: '41.2 of 66.1 MB (62 %)', '512 of 4,096 windows (12 %)'."""
    share = f" ({100 * done / total:.0f} %)" if total else ""
    if unit != "B" and total < 1e6:
        return f"{done:,} of {total:,} {unit.removesuffix('s') if total == 1 else unit}{share}"
    largest, power = max(done, total), 0
    while largest >= 999.5 and power < len(PREFIXES) - 1:
        largest, power = largest / 1000, power + 1
    digits = 2 if largest < 9.995 else 1 if largest < 99.95 else 0
    amount, whole = (f"{round(value / 1000**power, digits):.12g}" for value in (done, total))
    return f"{amount} of {whole} {PREFIXES[power]}{'' if unit == 'B' or not PREFIXES[power] else ' '}{unit}{share}"


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
    for unit in PREFIXES[:-1]:
        if value < 999.5:  # above it three digits would be 1e+03
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} {PREFIXES[-1]}"
