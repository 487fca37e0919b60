"""Answers read back: what a trend text claims, and which activity an answer names."""
import re
from dataclasses import dataclass, field

from .wording import ACTIVITY, DIRECTION_OF_WORD, SINGLE

NUMBER = re.compile(r"\d+(?:\.\d+)?")
WORD = re.compile("|".join(DIRECTION_OF_WORD))
TOTAL = re.compile(f"({WORD.pattern}) for ({NUMBER.pattern}) seconds")
KINDS = re.compile(r"(\d+) kinds? of trend")
CHANGES = re.compile(r"(no|\d+) changes? of direction")


def whole_number(digits):
    """"12" -> 12, "no" -> 0. A model may write any number of digits, so it is at most 1e9."""
    return 0 if digits == "no" else int(min(float(digits), 1e9))


def split_claims(text):
    """Yields (sentence or line, its numbers, its direction words), one after another."""
    for claim in re.split(r"\n|(?<=\.) ", text.strip()):
        directions = [DIRECTION_OF_WORD[word] for word in WORD.findall(claim.lower())]
        yield claim, NUMBER.findall(claim), directions


def parse_segments(text):
    """The (start, end, direction) that a trend text claims, times in seconds.

    A segment is a line or sentence of the first paragraph with two numbers and one direction word.
    Count lines and summaries hold no such thing; whatever else a model writes is ignored.
    """
    first_paragraph = text.strip().split("\n\n")[0]
    return [(float(numbers[0]), float(numbers[1]), directions[0])
            for _, numbers, directions in split_claims(first_paragraph)
            if len(numbers) == 2 and len(directions) == 1]


@dataclass
class Claims:
    """What a trend text says of a series; None, or an empty collection, where it is silent."""
    segments: list                                  # (start, end, direction), seconds
    counts: dict = field(default_factory=dict)      # direction -> how many segments
    span: tuple | None = None                       # (first, last), seconds
    kinds: int | None = None                        # how many directions occur
    changes: int | None = None                      # how often the direction changes
    totals: dict = field(default_factory=dict)      # direction -> seconds
    overall: int | None = None                      # direction, last sample against first
    unread: int = 0                                 # lines or sentences that claim none of this


def parse_claims(text) -> Claims:
    """Everything that a text of any of `texts.ANSWER_KINDS` claims, in any wording.

    The numbers n and direction words d of a line or sentence tell what it is: a segment has n = 2,
    d = 1; a span n = 2, d = 0; an overall trend n = 0, d = 1; a count n = 1, d = 1.
    """
    claims = Claims(parse_segments(text))
    for claim, numbers, directions in split_claims(text):
        size = len(numbers), len(directions)
        totals = TOTAL.findall(claim.lower())
        kinds, changes = KINDS.search(claim), CHANGES.search(claim)
        if size == (2, 1) or claim in ("", SINGLE):
            continue                                # read by parse_segments, or claims nothing
        if totals:
            claims.totals = {DIRECTION_OF_WORD[word]: float(seconds) for word, seconds in totals}
        elif kinds or changes:
            claims.kinds = whole_number(kinds[1]) if kinds else None
            claims.changes = whole_number(changes[1]) if changes else None
        elif size == (2, 0):
            claims.span = float(numbers[0]), float(numbers[1])
        elif size == (0, 1):
            claims.overall = directions[0]
        elif size == (1, 1) and numbers[0].isdigit():
            claims.counts[directions[0]] = whole_number(numbers[0])
        else:
            claims.unread += 1
    return claims


def in_samples(segments, n_intervals, rate):
    """Segments in seconds -> in samples (start, end, direction), none beyond the window's end."""
    def index(seconds):
        return round(min(seconds * rate, n_intervals))

    return [(index(start), index(end), direction) for start, end, direction in segments]


def parse_activity(text, classes):
    """The label that an answer in words names, or None.

    Strict: the last line, and no other, is "Activity: NAME", with NAME exactly as in classes.
    """
    lines = text.split("\n")
    name = lines[-1].removeprefix(ACTIVITY)
    named = [line for line in lines if line.startswith(ACTIVITY)]
    return classes.index(name) if named == lines[-1:] and name in classes else None
