"""The few pieces of markup that the page's sections are made of; everything put in is escaped."""

from html import escape

from unit_fast.evaluation.metrics import Rate


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: object) -> Markup:
    """An element; children that are no :class:`Markup` are escaped. ``class_`` is class, ``_`` in names is ``-``."""
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = "".join(child if isinstance(child, Markup) else escape(child, quote=False) for child in children)
    return Markup(f"<{name}{shown}>" if name in _EMPTY else f"<{name}{shown}>{inner}</{name}>")


def join(*pieces: str) -> Markup:
    """Pieces of markup after each other."""
    return Markup("".join(piece if isinstance(piece, Markup) else escape(piece, quote=False) for piece in pieces))


def drawing(width: float, height: float, *children: Markup, label: str, class_: str | None = None) -> Markup:
    """An inline SVG that a screen reader reads as ``label``."""
    return tag(
        "svg", *children, viewBox=f"0 0 {_plain(width)} {_plain(height)}", role="img", aria_label=label, class_=class_
    )


def scrolling(content: Markup) -> Markup:
    """Something wide, which scrolls on a narrow screen."""
    return tag("div", content, class_="scroll", tabindex=0)


def percent(share: float) -> str:
    """A share in [0, 1] as per cent, one decimal, two where that would show 0 or 100 for what is neither."""
    text = f"{100 * share:.1f}"
    if text in {"0.0", "100.0"} and share not in {0.0, 1.0}:
        text = f"{100 * share:.2f}"
    return f"{text}\N{NO-BREAK SPACE}%"


def rate_text(rate: Rate | None, confidence: float) -> str:
    """A rate with its counts and interval, in words."""
    if rate is None:
        return "no samples"
    low, high = rate.interval(confidence)
    interval = f"{confidence:.0%} interval {percent(low)} to {percent(high)}"
    return f"{percent(rate.value)} ({rate.hits:,} of {rate.total:,}; {interval})"


_EMPTY = {"img", "meta", "br"}


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)
