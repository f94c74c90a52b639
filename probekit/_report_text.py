"""Values and text that nobody has checked, made safe to show. Private to `report`, `widgets` and `doctor`."""

from __future__ import annotations

import html
import json
import math
import re
import unicodedata


def value_html(value: object, *, percent: bool = False, decimals: int = 2) -> str:
    """A cell's value as HTML."""
    match value:
        case None:
            return '<span aria-hidden="true">–</span><span class="unseen">none</span>'
        case bool():
            return "yes" if value else "no"
        case int() | float():
            return format_number(value, percent=percent, decimals=decimals)
        case str():
            return clipped(value, 300)
        case list() if value and all(
            isinstance(one, dict) and {"role", "content"} <= one.keys() for one in value
        ):
            return clipped("\n".join(f"{one['role']}: {one['content']}" for one in value), 300)
        case list() | dict():
            return clipped(json.dumps(value, ensure_ascii=False, default=str), 300)
        case _:
            return text_html(str(value))


def format_number(value: float, *, percent: bool = False, decimals: int = 2) -> str:
    """A number as the report's tables show it: 1,234 and 0.12 and 12.5% and 4.0e−4, with a true minus sign.

    percent: value is a share and is shown with one digit. Values too small for `decimals` digits keep two
    figures.

    >>> format_number(1234), format_number(-0.5), format_number(0.125, percent=True), format_number(0.0004)
    ('1,234', '−0.50', '12.5%', '4.0e−4')
    """
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if isinstance(value, int) and not percent:
        text = f"{value:,}"
    elif percent:
        text = f"{100 * value:,.1f}%"
    elif value and abs(value) < 0.5 * 10**-decimals:
        mantissa, exponent = f"{value:.1e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    else:
        text = f"{value:,.{decimals}f}"
    if not any(digit in text for digit in "123456789"):
        text = text.lstrip("-")
    return text.replace("-", "−")


def clipped(text: str, limit: int) -> str:
    """The text as HTML; what exceeds the limit can be unfolded, so that nothing is lost."""
    if len(text) <= limit * 1.2:
        return text_html(text)
    label = f"the other {len(text) - limit:,} characters"
    return f"{text_html(text[:limit])}<details><summary>{label}</summary>{text_html(text[limit:])}</details>"


def inline(text: str) -> str:
    """Prose as HTML: escaped, with what stands between backticks set as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text_html(text))


def text_html(text: str) -> str:
    """Any text as HTML: escaped, characters that would vanish or reorder the line shown by their number."""
    lines = text.replace("\r\n", "\n")
    return "".join(_mark(one) if is_unseen(one) else html.escape(one) for one in lines)


def is_unseen(character: str) -> bool:
    """Would this character vanish from a page, or reorder the line that it is in?"""
    kind = unicodedata.category(character)
    if kind == "Cf":  # joiners are part of how emoji and several scripts are written
        return character not in "\u200c\u200d"
    return kind in ("Cc", "Cs", "Co", "Cn") and character not in "\n\t"


def plain(text: str) -> str:
    """Any text for where HTML knows no markup, such as titles and attributes, as `text_html` otherwise."""
    return html.escape(plain_text(text))


def plain_text(text: str) -> str:
    """Any text for where nothing is markup; characters that would not be seen stand by their number."""
    return "".join(f"U+{ord(one):04X}" if is_unseen(one) else one for one in text)


def _mark(character: str) -> str:
    return f'<span class="control">U+{ord(character):04X}</span>'
