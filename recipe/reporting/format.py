"""Formats learning rates, numbers, times and shares."""

from typing import List, Optional, Tuple

Rows = List[Tuple[str, str]]


def rate(value: Optional[float]) -> str:
    """A learning rate: 2e-9, 0.0002."""
    return "—" if value is None else f"{value:.4g}".replace("e-0", "e-")


def number(value: Optional[float], form: str = ",") -> str:
    return "—" if value is None else format(value, form)


def seconds(value: Optional[float]) -> str:
    """A duration: 0.01 s, 6.1 s, 62 s, 3 min 20 s, 2 h 5 min."""
    if value is None:
        return "—"
    if value < 10:
        return f"{value:.2g} s"
    whole = round(value)
    if whole < 120:
        return f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"


def percent(share: float) -> str:
    """A relative change, which may be tiny or far above 100 %."""
    return f"{100 * share:,.0f} %" if share >= 10 else f"{100 * share:.3g} %"
