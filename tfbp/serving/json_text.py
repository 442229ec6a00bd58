"""JSON as TensorFlow Serving writes it: the layout of rapidjson's `PrettyWriter`.

Objects have a line for each member, and each level is indented by four blanks. The functions
write texts, not trees: a value that has been written is never looked at again.
"""

import decimal
import json
import re
from collections.abc import Iterator
from typing import Any

_INDENT = "    "
# Where a value in an error message ends (kMaxJsonDebugStringBytes in json_tensor.cc).
_SHOWN = 256
_CONTROL = re.compile(r"\\u00[0-9a-f]{2}")
# From which magnitude on a double is written with an exponent (rapidjson's `Prettify`).
_MOST_DIGITS, _MOST_ZEROS = 21, 6


def string(text: str) -> str:
    """Returns a text in quotes, escaped."""
    quoted = json.dumps(text, ensure_ascii=False)
    if "\\u00" in quoted:
        quoted = _CONTROL.sub(lambda match: "\\u00" + match[0][4:].upper(), quoted)
    return quoted


def member(key: str, value: str, level: int = 0) -> str:
    """Returns an object of one member, `level` containers deep, whose value is written already."""
    return members([(key, value)], level)


def members(pairs: list[tuple[str, str]], level: int = 0) -> str:
    """Returns an object, `level` containers deep, of values that are written already."""
    inner, outer = "\n" + _INDENT * (level + 1), "\n" + _INDENT * level
    return "{" + ",".join(f"{inner}{string(key)}: {value}" for key, value in pairs) + outer + "}"


def lines(values: list[str], level: int) -> str:
    """Returns an array, `level` containers deep, with a line for each of its values."""
    if not values:
        return "[]"
    inner, outer = "\n" + _INDENT * (level + 1), "\n" + _INDENT * level
    return "[" + ",".join(inner + value for value in values) + outer + "]"


def line(values: list[str]) -> str:
    """Returns an array in one line."""
    return f"[{', '.join(values)}]"


def rows(values: list[str], level: int) -> str:
    """Returns an array in one line whose bracket ends on the next, as rows are answered."""
    if not values:
        return "[]"
    return f"[{', '.join(values)}\n{_INDENT * level}]"


def shown(value: Any) -> str:
    """Returns a value to show in an error message, cut off where it is long."""
    text = ""
    for part in _parts(value, 0, ""):
        if len(text) >= _SHOWN:
            break
        text += part
    return text


def _parts(value: Any, level: int, before: str) -> Iterator[str]:
    """Yields a value in parts, each of which is written whole or not at all."""
    if isinstance(value, dict) and value:
        yield before + "{"
        comma = ""
        for key, one in value.items():
            yield f"{comma}\n{_INDENT * (level + 1)}{string(key)}"
            yield from _parts(one, level + 1, ": ")
            comma = ","
        yield f"\n{_INDENT * level}}}"
    elif isinstance(value, list) and value:
        yield before + "["
        comma = ""
        for one in value:
            yield from _parts(one, level + 1, comma)
            comma = ", "
        yield "]"
    elif isinstance(value, str):
        yield before + string(value)
    elif value is None or isinstance(value, bool | dict | list):
        yield before + json.dumps(value)
    else:
        yield before + _number(value)


def _number(value: int | float) -> str:
    if isinstance(value, int) and -(2**63) <= value < 2**64:
        return str(value)
    value = float(value)
    if value - value != 0:  # `PrettyWriter` writes no number that is not finite.
        return ""
    sign = "-" if repr(value).startswith("-") else ""
    _, numerals, exponent = decimal.Decimal(repr(abs(value))).normalize().as_tuple()
    digits = "".join(map(str, numerals))
    point = len(digits) + int(exponent)  # digits before the decimal point
    if value == 0:
        return f"{sign}0.0"
    if 0 < point <= _MOST_DIGITS:
        whole = digits[:point].ljust(point, "0")
        return f"{sign}{whole}.{digits[point:] or '0'}"
    if -_MOST_ZEROS < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    fraction = f".{digits[1:]}" if digits[1:] else ""
    return f"{sign}{digits[0]}{fraction}e{point - 1}"
