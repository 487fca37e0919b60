"""The words that describe trends: pools of sentences from which the texts draw.

`claims.py` reads sentences back by their numbers and direction words, so a sentence contains only
those of its slots. Texts without paraphrasing use the first entry of each pool.
"""
from itertools import product

FALLING, STEADY, RISING = -1, 0, 1
DIRECTIONS = (RISING, FALLING, STEADY)                            # in the order of texts

# Words for (rising, falling) and for steady, drawn once per window.
WORD_PAIRS = (("rising", "falling"), ("upward", "downward"), ("ascending", "descending"),
              ("increasing", "decreasing"), ("growing", "declining"))
STEADY_WORDS = ("steady", "constant", "stable", "consistent")
DIRECTION_OF_WORD = ({up: RISING for up, _ in WORD_PAIRS}
                     | {down: FALLING for _, down in WORD_PAIRS}
                     | {word: STEADY for word in STEADY_WORDS})


def combine(openings, endings):
    """(a, b), (c, d) -> "a c", "a d", "b c", "b d"."""
    return tuple(" ".join(parts) for parts in product(openings, endings))


# ---- the question, 40 ----
QUESTIONS = tuple(request.format(subject) for request, subject in product(
    ("Please describe {}.", "Could you describe {}?", "Can you explain {}?", "Please report {}.",
     "Please summarize {}.", "Please analyse {}.", "Walk me through {}.", "Tell me about {}."),
    ("the trends in the {sensor} readings above",
     "the changes in the {sensor} signal over time",
     "the rises, falls and steady stretches of the {sensor} data",
     "the behaviour of this {sensor} segment",
     "how the {sensor} values develop")))

# ---- one segment: a line (simple trend) or a sentence (detailed trend, 32) ----
LINE_FORMATS = (
    "{start}s to {end}s: {word}",
    "{start}s - {end}s: {word}",
    "{start} to {end} seconds: {word}",
    "from {start}s to {end}s: {word}",
    "{word} from {start}s to {end}s",
    "{word}: {start}s to {end}s",
)
SENTENCES = combine(
    ("From {start}s to {end}s", "Between {start}s and {end}s",
     "In the interval from {start}s to {end}s", "Starting at {start}s and ending at {end}s,"),
    ("the trend is {word}.", "there is {a_word} trend.", "the signal follows {a_word} trend.",
     "the values show {a_word} pattern."),
) + combine(
    ("The trend is {word}", "We see {a_word} trend", "There is {a_word} segment",
     "The readings show {a_word} tendency"),
    ("from {start}s to {end}s.", "between {start}s and {end}s.", "from {start}s until {end}s.",
     "in the interval from {start}s to {end}s."),
)

# ---- how many segments of a direction: a line of the simple trend ----
COUNT_FORMATS = (
    "Number of {word} trends: {count}",
    "Total {word} segments: {count}",
    "Count of {word} trends: {count}",
    "{word} segments in total: {count}",
    "{word} stretches: {count}",
    "Occurrences of {word} trends: {count}",
)

# ---- the summary: sensor and time span (40); kinds, changes, totals, overall trend (30 each) ----
COVERS = combine(
    ("The {sensor} data", "This {sensor} segment", "The {sensor} signal",
     "This window of {sensor} readings"),
    ("covers {first} to {last} seconds.", "runs from {first} to {last} seconds.",
     "spans the time from {first} to {last} seconds.",
     "begins at {first} and ends at {last} seconds.",
     "was recorded between {first} and {last} seconds."),
) + combine(
    ("From {first} to {last} seconds,", "Between {first} and {last} seconds,",
     "In the interval from {first} to {last} seconds,",
     "Over the period from {first} to {last} seconds,"),
    ("we see the {sensor} signal.", "the {sensor} data was recorded.",
     "the {sensor} values were measured.", "the readings come from the {sensor}.",
     "we look at the {sensor}."),
)
CHANGES = combine(
    ("It", "The signal", "The series", "The data"),
    ("shows {kinds} and {changes}.", "contains {kinds} and {changes}.",
     "has {kinds}, with {changes}.", "exhibits {kinds} along with {changes}.",
     "consists of {kinds}, with {changes}."),
) + combine(
    ("We find", "We count", "We observe", "We can identify", "The analysis finds"),
    ("{kinds} and {changes}.", "{kinds} in it, with {changes}."),
)
TOTAL = "{word} for {seconds} seconds"
TOTALS = combine(
    ("In total", "Altogether,", "Over the whole window,", "Across all segments,",
     "In terms of duration,"),
    ("the trend is {totals}.", "the tendency is {totals}.", "the movement is {totals}.",
     "the pattern is {totals}.", "we find that the trend is {totals}.",
     "the time divides as follows: {totals}."),
)
OVERALL = combine(
    ("The overall", "The general", "The net", "The resulting", "The end-to-end"),
    ("trend is {word}.", "tendency is {word}.", "movement is {word}."),
) + combine(
    ("Overall,", "On the whole,", "In general,", "From the first sample to the last,",
     "From beginning to end,"),
    ("the trend is {word}.", "the series shows {a_word} trend.", "we see {a_word} trend."),
)
SINGLE = "It is a single sample, which has no trend."             # the whole text about one sample

# ---- facts: a number about the whole series, in the sensor's unit or in Hz ----
FACTS = ("level", "range", "deviation", "rhythm")
FACT_QUESTIONS = combine(
    ("What is", "Tell me", "Please give", "Can you estimate"),
    ("the {fact} of the {sensor} readings above?", "the {fact} of this {sensor} segment?"))
FACT_FORMATS = ("{fact}: {value}", "{fact} {value}", "{fact} of {value}", "the {fact} is {value}")

ACTIVITY = "Activity: "                 # begins the line that names the class
