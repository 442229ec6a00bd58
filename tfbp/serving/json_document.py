"""The JSON of a request, read as TensorFlow Serving reads it with rapidjson.

Beyond JSON proper that takes NaN, Inf and Infinity with a sign, any bytes in strings, and whatever
follows the document. Of duplicate keys the first one counts.
"""

import json
import math
import re
from typing import Any

import numpy as np

from tfbp.serving import json_text
from tfbp.serving.status import StatusError, invalid

# A whole string, or what is left of one that does not end. Bytes and text alike.
_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_TOKENS = re.compile(r'("(?:[^"\\]++|\\.)*+"?)|-NaN|-?Inf(?!inity)', re.DOTALL)
_NUMBERS = re.compile(r'"(?:[^"\\]++|\\.)*+"?|(-?\d[\d.eE+-]*)', re.DOTALL)
# An escaped half of a surrogate pair without the other half, in group 1.
_SURROGATE, _LOW = r"u[dD][89a-bA-B][0-9a-fA-F]{2}", r"u[dD][c-fC-F][0-9a-fA-F]{2}"
_ESCAPES = re.compile(rf"\\(?:{_SURROGATE}\\{_LOW}|({_SURROGATE}|{_LOW})|.)", re.DOTALL)
# What a number too large for a double has: an exponent of three digits, or very many digits. They
# are looked for among zeros, which takes a twentieth of the time of a regular expression.
_HUGE = (b"e000", b"e+000", b"0" * 200)
_ZEROS = bytes.maketrans(b"123456789E", b"000000000e")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_BLANKS = " \t\r\n"
_LITERALS = ("null", "true", "false", "NaN", "Infinity", "-Infinity", "-NaN")
# What rapidjson reads beside NaN, Infinity and -Infinity, as Python's parser reads it.
_LENIENT = {"-NaN": "NaN", "Inf": "Infinity", "-Inf": "-Infinity"}
_TOO_BIG = "Number too big to be stored in double."


def parse(body: bytes, max_depth: int, *, last: bool = False) -> dict[str, Any]:
    """Returns the JSON object of a body.

    Strings hold bytes that are no UTF-8 as `surrogateescape` does.

    Args:
        body: the document, and what may follow it.
        max_depth: how deep lists and objects may nest.
        last: whether the last of duplicate keys counts within the members of the document, as it
            does for the features of an `Example`.

    Raises:
        StatusError: it is no JSON object, or nests deeper than `max_depth` (INVALID_ARGUMENT).
    """
    if not body:
        raise _error("The document is empty")
    depth = _depth(body)
    if depth > max_depth:
        raise _error(f"nested {depth} deep, over the limit of {max_depth}")
    text = body.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    if "\\ud" in text or "\\uD" in text:
        _check_surrogates(text)
    zeros = body.translate(_ZEROS)
    # A parser of numbers of our own takes several times as long.
    exact = any(mark in zeros for mark in _HUGE)
    try:
        try:
            document = _read(text, exact, last)
        except json.JSONDecodeError:
            lenient = _TOKENS.sub(lambda match: match[1] or _LENIENT[match[0]], text)
            if lenient == text:
                raise
            text = lenient
            document = _read(text, exact, last)
    except json.JSONDecodeError as error:
        raise _explained(error) from None
    except ValueError:  # from `_finite`, or an integer of thousands of digits
        raise _too_big(text) from None
    if type(document) is not dict:
        raise invalid(f"JSON Value: {json_text.shown(document)} Is not object")
    return document


def _read(text: str, exact: bool, last: bool) -> Any:
    """Returns the value that a text begins with."""
    start = len(text) - len(text.lstrip(_BLANKS))
    if start == len(text) or text[start] == "\0":
        raise _error(f"The document is empty. at offset: {_offset(text, start)}")
    pairs_of_root: list[tuple[str, Any]] = []

    def last_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        pairs_of_root[:] = pairs  # The document is the last object that ends.
        return dict(pairs)

    decoder = json.JSONDecoder(
        object_pairs_hook=last_members if last else _first_members,
        parse_float=_finite if exact else None,
        parse_int=_whole if exact else None,
    )
    document, _ = decoder.raw_decode(text, start)
    return _first_members(pairs_of_root) if last and type(document) is dict else document


def _first_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    return members if len(members) == len(pairs) else dict(reversed(pairs))


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(text)
    return number


def _whole(text: str) -> int:
    number = int(text)
    try:
        float(number)
    except OverflowError:
        raise ValueError(text) from None
    return number


def _depth(body: bytes) -> int:
    """Returns how deep the lists and objects of the document nest, in linear time.

    What follows the document does not count.
    """
    brackets = np.frombuffer(_STRINGS.sub(b"", body).translate(None, _NO_BRACKETS), np.uint8)
    # Of "[", "{", "]" and "}" in ASCII, the opening ones have bit 1.
    depths = np.cumsum((brackets & 2).astype(np.int32) - 1)
    ends = np.flatnonzero(depths <= 0)
    return int(depths[: ends[0] if ends.size else None].max(initial=0))


def _check_surrogates(text: str) -> None:
    """Refuses an escaped half of a surrogate pair, which no bytes stand for."""
    for match in _ESCAPES.finditer(text):
        if match[1]:
            offset = _offset(text, match.start())
            raise _error(f"The surrogate pair in string is invalid. at offset: {offset}")


def _explained(error: json.JSONDecodeError) -> StatusError:
    """Returns rapidjson's message for what Python's parser has found, and the byte it is at."""
    text, position = error.doc, error.pos
    here, before = text[position : position + 1], text[position - 1 : position]
    message = "Invalid value."
    if error.msg.startswith("Expecting property name") or (here == "}" and "comma" in error.msg):
        message = "Missing a name for object member."
    elif error.msg.startswith("Expecting ':'"):
        message = "Missing a colon after a name of object member."
    elif error.msg.startswith("Unterminated string"):
        message, position = "Missing a closing quotation mark in string.", len(text)
    elif error.msg.startswith("Invalid \\u"):
        message = "Incorrect hex digit after \\u escape in string."
        position = text.rfind("\\u", 0, position + 2)
    elif error.msg.startswith("Invalid \\"):
        message = "Invalid escape character in string."
    elif error.msg.startswith("Invalid control"):
        message = "Invalid encoding in string."
    elif error.msg.startswith("Expecting ','") and before.isdigit() and here == ".":
        message, position = "Miss fraction part in number.", position + 1
    elif error.msg.startswith("Expecting ','") and before.isdigit() and here in ("e", "E"):
        message = "Miss exponent in number."
        position += 1 + (text[position + 1 : position + 2] in ("+", "-"))
    elif error.msg.startswith("Expecting ','"):
        message = f"Missing a comma or {_closing(text[:position])}"
    else:
        position += _literal(text[position : position + 10])
    return _error(f"{message} at offset: {_offset(text, position)}")


def _closing(text: str) -> str:
    """Returns what the container that is open at the end of a text lacks."""
    open_brackets = []
    content = _STRINGS.sub(b"", text.encode("utf-8", "surrogateescape"))
    for bracket in content.translate(None, _NO_BRACKETS):
        if bracket in b"[{":
            open_brackets.append(bracket)
        else:
            open_brackets.pop()
    in_object = open_brackets[-1:] == [ord("{")]
    return "} after an object member." if in_object else "] after an array element."


def _literal(text: str) -> int:
    """Returns how many characters of a misspelt literal or number are right."""
    if text.startswith("-") and text[1:2] not in ("N", "I"):
        return 1
    lengths = range(len(text) + 1)
    return max(end for end in lengths for word in _LITERALS if word.startswith(text[:end]))


def _too_big(text: str) -> StatusError:
    for match in _NUMBERS.finditer(text):
        if match[1] and _is_too_big(match[1]):
            return _error(f"{_TOO_BIG} at offset: {_offset(text, match.start())}")
    return _error(_TOO_BIG)


def _is_too_big(text: str) -> bool:
    try:
        return math.isinf(float(text))
    except ValueError:  # a date or the like, behind the document
        return False


def _offset(text: str, position: int) -> int:
    return len(text[:position].encode("utf-8", "surrogateescape"))


def _error(message: str) -> StatusError:
    return invalid(f"JSON Parse error: {message}")
