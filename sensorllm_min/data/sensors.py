"""What each dataset is: one table, with all that is known of a dataset besides its files.

A new public dataset needs an entry here and a reader in `recordings.py`. Recordings of your own
need no code: a `dataset.json` beside them takes the place of the entry (`own_dataset`).
"""
import re
import unicodedata
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..files import InputError, brief, check_types, is_a, read_json, understanding
from .wording import DIRECTION_OF_WORD


@dataclass(frozen=True)
class Channel:
    token: str                          # its marker tokens are <token_start> and <token_end>
    spoken: str                         # its name in texts
    unit: str = ""
    column: str | None = None           # its name in a CSV; None: the token

    @property
    def heading(self):
        """The name of its column in a CSV."""
        return self.column or self.token

    @property
    def titled(self):
        """Its name with its unit, as pictures and reports show it."""
        return f"{self.spoken} ({self.unit})" if self.unit else self.spoken

    @property
    def start(self):
        return f"<{self.token}_start>"

    @property
    def end(self):
        return f"<{self.token}_end>"


KINDS = {"acc": "accelerometer", "gyro": "gyroscope", "mag": "magnetometer"}


def triaxial(kind, unit, token="", spoken=""):
    """The x, y and z channels of one sensor; the prefixes token and spoken say where it is worn."""
    return tuple(Channel(f"{token}{axis}_{kind}", f"{spoken}{axis}-axis {KINDS[kind]}", unit)
                 for axis in "xyz")


# How training, validation and test differ; what that leaves to be tested.
SPLITS = {
    None: "people who were not trained on",
    "recordings": "other recordings of the people who were trained on: it says nothing about other "
                  "people",
    "time": "later stretches of recordings that were trained on, a window apart: it says nothing "
            "about other people, and little about other days"}


@dataclass(frozen=True)
class DatasetInfo:
    rate: float                         # Hz, of the prepared samples
    channels: tuple[Channel, ...]
    classes: tuple[str, ...]            # activity names; a label is an index into them
    test_subjects: tuple[int | str, ...]
    val_subjects: tuple[int | str, ...]  # held out of the training subjects, for every choice
    align_lengths: tuple[int, ...]      # samples of a stage-1 window: shortest, longest
    window: float                       # samples of a stage-2 window; a fraction is rounded
    stride: float                       # samples from one stage-2 window to the next; likewise
    citation: str
    licence: str
    url: str | None = None              # where the official archive is
    sha256: str | None = None           # checksum of the archive, where known
    raw_rate: float | None = None       # Hz, of the raw samples where they are resampled
    share: float = 1.0                  # fraction of the windows that is kept, drawn by the seed
    answer: tuple[str, ...] = ("simple_trend", "summary")     # of texts.ANSWER_KINDS, for stage 1
    paraphrase: bool = True             # False: texts always take the first wording of each pool
    smooth: float = 0.0                 # seconds of the moving average of stage-1 trends
    band: float = 0.0                   # a change below this share of a window's range is no trend
    places: tuple | None = None         # of own recordings: channels worn together (see rotations)
    # of own recordings, as dataset.json says (see own.py):
    time_column: str | None = None      # of a CSV; None: "time", where there is one
    time_unit: str | None = None        # of own.UNITS; None: told from the rate
    label_column: str | None = None     # None: the folder names the activity
    label_values: dict | None = None    # {value in that column: class}; None: the class itself
    split: str | None = None            # one of SPLITS; None: by subjects
    splits = ("train", "val", "test")   # the same for all datasets: not a field

    def split_of(self, subject):
        if self.split:                                            # as own.split_recordings names it
            return subject.rpartition("-")[2]
        if subject in self.test_subjects:
            return "test"
        return "val" if subject in self.val_subjects else "train"

    @property
    def n_window(self):
        """Samples of a stage-2 window."""
        return round(self.window)

    @property
    def held_out(self):
        """What the test is made of, for reports."""
        return SPLITS[self.split]

    @property
    def source(self):
        return "; ".join(part for part in (self.url, self.citation, self.licence) if part)


UCI, OXFORD = "https://archive.ics.uci.edu/static/public", "https://ora.ox.ac.uk/objects"
WRIST = triaxial("acc", "g") + triaxial("gyro", "deg/s")


def pamap2_unit(place):
    """The nine channels of the sensor unit that is worn at `place`."""
    prefixes = f"{place}_", f"{place} "
    return (triaxial("acc", "m/s^2", *prefixes) + triaxial("gyro", "rad/s", *prefixes)
            + triaxial("mag", "uT", *prefixes))


DATASETS = {
    "demo": DatasetInfo(
        rate=20, channels=WRIST,
        classes=("Walking", "Running", "Turning", "Sitting", "Lying"),
        test_subjects=(9, 10), val_subjects=(8,),
        align_lengths=(4, 16), window=24, stride=12,
        citation="simulated: no real person", licence="",
        # short answers in one wording, which can be learned in minutes
        answer=("simple_trend",), paraphrase=False),
    "usc-had": DatasetInfo(
        rate=100, channels=WRIST,
        classes=("Walking Forward", "Walking Left", "Walking Right", "Walking Upstairs",
                 "Walking Downstairs", "Running Forward", "Jumping", "Sitting", "Standing",
                 "Sleeping", "Elevator Up", "Elevator Down"),
        test_subjects=(13, 14), val_subjects=(3, 7),
        align_lengths=(5, 200), window=200, stride=100,
        citation="Zhang and Sawchuk, USC-HAD: A Daily Activity Dataset for Ubiquitous Activity "
                 "Recognition Using Wearable Sensors, UbiComp SAGAware 2012",
        licence="free for research with citation",
        url="https://sipi.usc.edu/had/USC-HAD.zip"),
    "uci-har": DatasetInfo(
        rate=50, channels=triaxial("acc", "g") + triaxial("gyro", "rad/s"),
        classes=("Walking", "Walking Upstairs", "Walking Downstairs", "Sitting", "Standing",
                 "Laying"),
        test_subjects=(2, 4, 9, 10, 12, 13, 18, 20, 24), val_subjects=(5, 8, 22, 28),
        align_lengths=(5, 200), window=128, stride=64,
        citation="Anguita et al., A Public Domain Dataset for Human Activity Recognition Using "
                 "Smartphones, ESANN 2013",
        licence="cite, no commercial use",
        url=f"{UCI}/240/human+activity+recognition+using+smartphones.zip",
        sha256="c00b803081a5c797cd5e4b83700a9810b38d53d9d84e01917e090e1fdbc81031"),
    "mhealth": DatasetInfo(
        rate=50,
        channels=triaxial("acc", "m/s^2", "chest_", "chest ")
        + triaxial("acc", "m/s^2", "la_", "left-ankle ")
        + triaxial("gyro", "deg/s", "la_", "left-ankle ")
        + triaxial("acc", "m/s^2", "rla_", "right-lower-arm ")
        + triaxial("gyro", "deg/s", "rla_", "right-lower-arm "),
        classes=("Standing still", "Sitting and relaxing", "Lying down", "Walking",
                 "Climbing stairs", "Waist bends forward", "Frontal elevation of arms",
                 "Knees bending (crouching)", "Cycling", "Jogging", "Running", "Jump front & back"),
        test_subjects=(1, 3, 6), val_subjects=(2, 8),
        align_lengths=(5, 100), window=100, stride=50,
        citation="Banos et al., mHealthDroid: A Novel Framework for Agile Development of Mobile "
                 "Health Applications, IWAAL 2014, and Banos et al., BioMedical Engineering OnLine "
                 "14 (S2), 2015",
        licence="CC BY 4.0, cite",
        url=f"{UCI}/319/mhealth+dataset.zip",
        sha256="16ad0ce709f3f00df18f348610d15bce0884b79e2143f57f446493673f02b8e0"),
    "pamap2": DatasetInfo(
        rate=50, raw_rate=100,
        channels=pamap2_unit("hand") + pamap2_unit("chest") + pamap2_unit("ankle"),
        classes=("lying", "sitting", "standing", "walking", "running", "cycling", "Nordic walking",
                 "ascending stairs", "descending stairs", "vacuum cleaning", "ironing",
                 "rope jumping"),
        test_subjects=(105, 106), val_subjects=(108,),
        align_lengths=(5, 100), window=100, stride=50,
        citation="Reiss and Stricker, Introducing a New Benchmarked Dataset for Activity "
                 "Monitoring, ISWC 2012",
        licence="CC BY 4.0, cite",
        url=f"{UCI}/231/pamap2+physical+activity+monitoring.zip",
        sha256="76b3580bd5a804121f507717cb498c66a312ef5c774f4a78ac470e6558add352"),
    "capture24": DatasetInfo(
        rate=50, raw_rate=100, channels=triaxial("acc", "g"),
        classes=("sleep", "sitting", "household-chores", "walking", "vehicle", "bicycling",
                 "mixed-activity", "standing", "manual-work", "sports"),
        test_subjects=tuple(range(101, 152)), val_subjects=tuple(range(91, 101)),
        align_lengths=(10, 500), window=500, stride=250, share=0.05,
        citation="Chan et al., CAPTURE-24: A large dataset of wrist-worn activity tracker data "
                 "collected in the wild for human activity recognition, Scientific Data 2024",
        licence="CC BY 4.0",
        url=f"{OXFORD}/uuid:99d7c092-d865-4a19-b096-cc16440cd001/files/rpr76f381b",
        sha256="69740c22d3e000367988373336dc6486c10fe3f3f929811fd66e4d84861e40e2"),
}
DATASETS["pamap2-100hz"] = replace(                               # as many seconds, at the raw rate
    DATASETS["pamap2"], rate=100, raw_rate=None, align_lengths=(5, 200), window=200, stride=100)


# ---- other rates, and what goes with them ----

# What --rate sets besides the rate, for networks that learn from scratch on two cores: trends that
# a person sees in a plot (seconds), few words for them.
SEEN = {"smooth": 0.25, "band": 0.25, "answer": ("simple_trend",), "paraphrase": False}
ALIGN_SECONDS = 1, 4                    # stage-1 windows: shortest, longest


def at_rate(name, dataset, rate):
    """(name, DatasetInfo) of a dataset at another rate in Hz; windows keep their seconds.

    Stage-1 windows are of ALIGN_SECONDS, and their trends those of SEEN. InputError for a rate
    above that of the recordings, or too low for a window.
    """
    raw_rate = dataset.raw_rate or dataset.rate
    if not 0 < rate <= raw_rate:
        raise InputError(f"--rate {rate:g}: the recordings of {name} have {raw_rate:g} Hz; give a "
                         "rate above 0, at most theirs")
    ratio = rate / dataset.rate
    window, stride = dataset.window * ratio, dataset.stride * ratio
    if window < 2 or stride < 1:
        raise InputError(f"--rate {rate:g}: windows of {window / rate:g} s would hold {window:g} "
                         f"samples, {stride:g} apart; give a higher rate")
    shortest, longest = (max(2, round(seconds * rate)) for seconds in ALIGN_SECONDS)
    shortest = min(shortest, round(window))
    rate = int(rate) if rate == int(rate) else rate
    return f"{name}-{rate}hz", replace(
        dataset, rate=rate, raw_rate=raw_rate, window=window, stride=stride,
        align_lengths=(shortest, longest), **SEEN)


KIND_WORDS = re.compile("a|g|m|acc|accel|accelerometer|gyr|gyro|gyroscope|mag|magnetometer")


def rotations(dataset):
    """The channels that turn together: a list for each place, of (3,) column indices each.

    Three channels turn where their tokens differ by x, y and z alone; those of one place, which
    the rest of the token names, turn by the same rotation. dataset.json may say it instead:
    "places", a list of channel tokens for each, x, y, z of one sensor after another.
    """
    column = {channel.token: i for i, channel in enumerate(dataset.channels)}
    places = {}
    if dataset.places is not None:
        for place in dataset.places:
            columns = [column[token] for token in place]
            places[place] = [columns[i:i + 3] for i in range(0, len(columns), 3)]
        return list(places.values())
    for token in column:
        for at in (i for i, letter in enumerate(token) if letter == "x"):
            triple = [token[:at] + axis + token[at + 1:] for axis in "xyz"]
            if all(name in column for name in triple):
                words = (token[:at] + token[at + 1:]).split("_")
                place = tuple(word for word in words if word and not KIND_WORDS.fullmatch(word))
                places.setdefault(place, []).append([column[name] for name in triple])
                break
    return list(places.values())


# ---- recordings of your own ----

OWN_KEYS = ("name", "rate", "channels", "classes", "test_subjects", "val_subjects", "split", "time",
            "label", "window", "stride", "align_lengths", "share", "places", "citation", "licence")
UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}            # of a time column, in seconds


def normalised(name):
    """A name in Unicode's composed form: a Mac's folders have the decomposed one."""
    return unicodedata.normalize("NFC", name)


def own_dataset(raw):
    """(name, DatasetInfo) from RAW/dataset.json; README.md shows one and explains its keys.

    Raises InputError, which names the key, where a value does not fit.
    """
    path = Path(raw) / "dataset.json"
    if not Path(raw).is_dir():
        raise InputError(f"{raw} is not a directory; --raw takes the folder of dataset.json")
    given = read_json(path)
    unknown = sorted(given.keys() - set(OWN_KEYS))
    if unknown:
        raise InputError(f"{path}: unknown keys {brief(', '.join(unknown))}; the keys are "
                         f"{', '.join(OWN_KEYS)}")
    with understanding(path):
        name, rate, window = given["name"], given["rate"], given.get("window")
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name) or name in (*DATASETS, "own"):
            raise InputError(f"{path}: name '{brief(name)}' must be of a-z, 0-9, - and _, and none "
                             f"of {', '.join(DATASETS)}")
        window = max(2, round(2 * rate)) if window is None else window
        stride = given["stride"] if "stride" in given else max(1, window // 2)
        for key, value in (("window", window), ("stride", stride)):
            if not is_a(value, int):
                raise InputError(f"{path}: {key} {brief(value)} must be a whole number of samples")
        places = given.get("places")
        if places is not None:
            places = tuple(tuple(map(str, texts(place))) for place in texts(places))
        subjects = {key: tuple(normalised(str(name)) for name in texts(given.get(key, [])))
                    for key in ("test_subjects", "val_subjects")}
        return name, check_dataset(name, DatasetInfo(
            rate=rate, window=window, stride=stride, split=given.get("split"),
            **subjects, classes=tuple(map(str, texts(given["classes"]))),
            **named_columns("time", given.get("time", {}), ("column", "unit")),
            **named_columns("label", given.get("label", {}), ("column", "values")),
            channels=tuple(Channel(**channel) for channel in given["channels"]),
            align_lengths=tuple(given.get("align_lengths", (min(5, window), window))),
            share=given.get("share", 1), citation=given.get("citation", ""),
            licence=given.get("licence", ""), places=places), path)


def named_columns(what, given, keys):
    """{"column": "t"} of JSON -> {"time_column": "t"}, fields of DatasetInfo."""
    if not isinstance(given, dict) or given and "column" not in given or set(given) - set(keys):
        raise ValueError(f"{what} must be an object of {' and '.join(keys)}, not {given!r}")
    return {f"{what}_{key}": value for key, value in given.items()}


def texts(given):
    """A list of JSON. ValueError for a text, which would pass for the list of its letters."""
    if not isinstance(given, list):
        raise ValueError(f"{given!r} must be a list")
    return given


def check_dataset(name, dataset, where):
    """A DatasetInfo that is not of the table. InputError, which names what is wrong with it."""
    def require(good, message):
        if not good:
            raise InputError(f"{where}: {message}")

    check_types(dataset, where)
    require(re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name), f"name '{brief(name)}' is none")
    require(dataset.rate > 0, f"rate {dataset.rate} must be a number of Hz above 0")
    reserved = re.compile(r"\d|[.\n]|" + "|".join(DIRECTION_OF_WORD))
    for channel in dataset.channels:
        check_types(channel, where)
        require(channel.spoken.strip(), f"the spoken name of {brief(channel.token)} is empty")
        require(re.fullmatch("[a-z0-9_]+", channel.token),
                f"token '{brief(channel.token)}' must consist of a-z, 0-9 and _")
        require(not reserved.search(channel.spoken),
                f"spoken name '{brief(channel.spoken)}' contains a digit, a dot or a trend word "
                f"({', '.join(DIRECTION_OF_WORD)}), which would be read as a claim of the text")
    tests, vals = map(list, (dataset.test_subjects, dataset.val_subjects))
    require(dataset.split in SPLITS, f"split '{brief(dataset.split)}' must be recordings or time")
    require(bool(tests) == bool(vals) == (dataset.split is None),
            "give either split, or test_subjects and val_subjects, at least one each; "
            '"split": "recordings" or "time" is for a single person')
    tokens = [channel.token for channel in dataset.channels]
    headings = [channel.heading for channel in dataset.channels]
    for what, values in (("channel tokens", tokens), ("columns", headings),
                         ("classes", list(dataset.classes)),
                         ("test and val subjects", [*tests, *vals])):
        require((values or dataset.split) and len(set(values)) == len(values),
                f"{what} {brief(values)} must neither be empty nor repeat a value")
    for text in (*dataset.classes, *(channel.unit for channel in dataset.channels)):
        require(text.isprintable(), f"{brief(repr(text))} must be text of one line")
    require(dataset.time_unit in (None, *UNITS),
            f"the unit of time '{brief(dataset.time_unit)}' must be one of {', '.join(UNITS)}")
    values = dataset.label_values
    require(values is None or set(values.values()) == set(dataset.classes),
            f"the values of label {brief(values)} must name each of the classes, and no other")
    require(dataset.window >= 2 and dataset.stride >= 1,
            f"window {dataset.window} and stride {dataset.stride} must be at least 2 and 1")
    lengths = dataset.align_lengths
    require(len(lengths) == 2 and 2 <= lengths[0] <= lengths[1],
            f"align_lengths {brief(lengths)} must be two, ascend and be at least 2")
    places = dataset.places or ()
    placed = [token for place in places for token in place]
    require(set(placed) <= set(tokens) and len(set(placed)) == len(placed)
            and all(len(place) % 3 == 0 for place in places),
            f"places {brief(places)} must name channels once each, x, y and z of each sensor")
    require(dataset.smooth >= 0 and 0 <= dataset.band < 1,
            f"smooth {dataset.smooth} must be seconds, band {dataset.band} a share below 1")
    require(0 < dataset.share <= 1, f"share {dataset.share} must be above 0 and at most 1")
    return dataset


def own_description(name, dataset):
    """What must be stored to know a dataset again: None for one of the table, else all of it."""
    return None if DATASETS.get(name) == dataset else asdict(dataset)


def known_dataset(name, description, where):
    """The DatasetInfo of an own_description, or of the table. InputError where there is neither."""
    if description is None:
        if name not in DATASETS:
            raise InputError(f"{where}: unknown dataset '{brief(name)}'; known are "
                             f"{', '.join(DATASETS)}")
        return DATASETS[name]
    with understanding(where):
        values = {key: tuple(value) if isinstance(value, list) else value
                  for key, value in description.items()}
        values["channels"] = tuple(Channel(**channel) for channel in description["channels"])
        if values.get("places") is not None:
            values["places"] = tuple(map(tuple, values["places"]))
        return check_dataset(name, DatasetInfo(**values), where)
