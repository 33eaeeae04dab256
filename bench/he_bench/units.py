"""How figures are written for people."""

from __future__ import annotations


def figure(value: float) -> str:
    """Three significant digits, without an exponent: 0.00123, 16.2, 1,340."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 2
    while abs(value) < 10 ** (2 - digits) and digits < 12:
        digits += 1
    return f"{value:.{digits - 1}f}" if abs(value) >= 10 else f"{value:.{digits}f}"


def seconds(value: float) -> str:
    """Seconds, milliseconds or microseconds, whichever is readable."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if value * factor >= 1:
            return f"{figure(value * factor)} {unit}"
    return f"{figure(value * 1e9)} ns"


def size(count: float | None) -> str:
    """Bytes in binary units."""
    if count is None:
        return "?"
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{figure(count)} {unit}"
        count /= 1024
    return f"{figure(count)} GiB"


def number(count: int) -> str:
    """A count, with powers of ten as such: 10^6."""
    text = str(count)
    return f"10^{len(text) - 1}" if count >= 1000 and text.strip("0") == "1" else f"{count:,}"
