"""Answers read back: what a trend text claims, and which activity an answer names."""
import re
from dataclasses import dataclass, field

from .wording import ACTIVITY, DIRECTION_OF_WORD, FACTS, SINGLE

NUMBER = re.compile(r"\d+(?:\.\d+)?")
WORD = re.compile("|".join(DIRECTION_OF_WORD))
TOTAL = re.compile(f"({WORD.pattern}) for {NUMBER.pattern} seconds")
CHANGES = re.compile(r"\d+ kinds? of trend|(no|\d+) changes? of direction")
FACT = re.compile(rf"\b({'|'.join(FACTS)})\b\D*?(-?{NUMBER.pattern})")
# How many numbers and direction words claim something: a segment, a time span, an overall trend.
SEGMENT, SPAN, OVERALL, COUNT = (2, 1), (2, 0), (0, 1), (1, 1)


@dataclass(frozen=True)
class Claims:
    segments: list                      # (start, end, direction), times in seconds
    unread: int = 0                     # lines or sentences that claim nothing
    facts: dict = field(default_factory=dict)   # {one of wording.FACTS: number}


def split_claims(text):
    """Yields (sentence or line, its numbers, its direction words)."""
    for claim in re.split(r"\n|(?<=\.) ", text.strip()):
        directions = [DIRECTION_OF_WORD[word] for word in WORD.findall(claim.lower())]
        yield claim, NUMBER.findall(claim), directions


def parse_segments(text):
    """The (start, end, direction) that a trend text claims in its first paragraph, in seconds."""
    first_paragraph = text.strip().split("\n\n")[0]
    segments = []
    for _, numbers, directions in split_claims(first_paragraph):
        if (len(numbers), len(directions)) == SEGMENT:
            start, end = map(float, numbers)
            segments.append((start, end, directions[0]))
    return segments


def parse_claims(text):
    """The Claims of a text of any of `texts.ANSWER_KINDS`, in any wording."""
    unread = 0
    facts = {}
    for claim, numbers, directions in split_claims(text):
        size = len(numbers), len(directions)
        fact = FACT.search(claim)
        if fact:
            facts[fact[1]] = float(fact[2])
        is_read = (
            fact or size in (SEGMENT, SPAN, OVERALL)
            or size == COUNT and numbers[0].isdigit()
            or TOTAL.search(claim.lower())
            or CHANGES.search(claim)
            or claim in ("", SINGLE))
        if not is_read:
            unread += 1
    return Claims(parse_segments(text), unread, facts)


def in_samples(segments, n_intervals, rate):
    """Segments in seconds -> in samples (start, end, direction), none beyond the window's end."""
    found = []
    for start, end, direction in segments:
        first = round(min(start * rate, n_intervals))
        last = round(min(end * rate, n_intervals))
        found.append((first, last, direction))
    return found


def parse_activity(text, classes):
    """The label that an answer names: its last line, and no other, is "Activity: NAME"; or None."""
    lines = text.split("\n")
    name = lines[-1].removeprefix(ACTIVITY)
    named = [line for line in lines if line.startswith(ACTIVITY)]
    if named != lines[-1:] or name not in classes:
        return None
    return classes.index(name)
