"""Alternatives in the patterns that name layers: each must name one, as the whole pattern must.

`head|vgg16/block5_.*` on a model without `vgg16` would train the head alone, without a word.
"""

import itertools
import re
from collections.abc import Iterable

# What may follow the "(?" of a group that consumes what it matches.
_CONSUMING = re.compile(r"\(\?(?::|P<\w+>|[aiLmsux-]+:)")


def unmatched(pattern: re.Pattern[str], paths: Iterable[str]) -> list[str]:
    """Returns the alternatives of a pattern that no path needs.

    Args:
        pattern: any regular expression. Alternatives are looked for at its top level and in groups;
            those inside of what is repeated or only looks around are passed over.
        paths: what the whole pattern is matched against.
    """
    text, paths = pattern.pattern, list(paths)
    alternations = _alternations(text)
    useless = []
    for alternation in alternations:
        for alternative in alternation:
            # Of the alternations around this one, too, only the branch that holds it is kept.
            left_out: set[int] = set()
            for around in alternations:
                for branch in around:
                    if branch.start <= alternative.start and alternative.stop <= branch.stop:
                        left_out.update(range(around[0].start, around[-1].stop))
                        left_out.difference_update(branch)
            kept = [text[at] for at in range(len(text)) if at not in left_out]
            try:
                # Global flags stand at the front of the first alternative alone.
                expression = re.compile("".join(kept), pattern.flags)
            except re.error:  # It refers to a group that another alternative holds.
                continue
            if not any(expression.fullmatch(path) for path in paths):
                useless.append(text[alternative.start : alternative.stop])
    return useless


def _alternations(text: str) -> list[list[range]]:
    """Returns where the alternatives of each alternation stand, the outer ones first."""
    # Of each open group: where its content begins, its bars, whether alternatives in it count.
    groups: list[tuple[int, list[int], bool]] = [(0, [], True)]
    result: list[list[range]] = []
    position = 0
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1
        elif character == "[":
            position = _end_of_class(text, position)
        elif character == "(":
            consuming = _CONSUMING.match(text, position)
            begin = consuming.end() if consuming else position + 1
            counts = consuming is not None or text[begin : begin + 1] != "?"
            groups.append((begin, [], counts and groups[-1][2]))
        elif character == "|":
            groups[-1][1].append(position)
        elif character == ")" and len(groups) > 1:
            begin, bars, counts = groups.pop()
            if text[position + 1 : position + 2] in ("*", "+", "{"):
                result = [each for each in result if each[0].start < begin]
            elif counts and bars:
                result.append(_between(begin, bars, position))
        position += 1
    if groups[0][1]:
        result.append(_between(0, groups[0][1], len(text)))
    return sorted(result, key=lambda each: (each[0].start, -each[-1].stop))


def _between(begin: int, bars: list[int], end: int) -> list[range]:
    edges = [begin - 1, *bars, end]
    return [range(left + 1, right) for left, right in itertools.pairwise(edges)]


def _end_of_class(text: str, position: int) -> int:
    """Returns where the set of characters that begins at `position` ends."""
    position += 1
    position += text[position : position + 1] == "^"
    position += text[position : position + 1] == "]"  # as the first one it is itself
    while position < len(text) and text[position] != "]":
        position += 1 + (text[position] == "\\")
    return position
