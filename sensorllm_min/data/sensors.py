"""The table of datasets: all that is known of each besides its files.

A new public dataset needs an entry here and a reader in `recordings.py`. Your own recordings need
no code: a `dataset.json` beside them takes the place of the entry (see `own.py`).
"""
import re
from dataclasses import dataclass, replace

from ..files import InputError, as_input_error, as_tuples


@dataclass(frozen=True)
class Channel:
    token: str                          # its marker tokens are <token_start> and <token_end>
    spoken: str                         # its name in texts
    unit: str = ""
    column: str | None = None           # its name in a CSV; None: the token

    @property
    def heading(self):
        return self.column or self.token

    @property
    def titled(self):
        if not self.unit:
            return self.spoken
        return f"{self.spoken} ({self.unit})"

    @property
    def start(self):
        return f"<{self.token}_start>"

    @property
    def end(self):
        return f"<{self.token}_end>"


KINDS = {"acc": "accelerometer", "gyro": "gyroscope", "mag": "magnetometer"}


def triaxial(kind, unit, token="", spoken=""):
    """The x, y and z channels of one sensor; the prefixes token and spoken say where it is worn."""
    channels = []
    for axis in "xyz":
        name = f"{spoken}{axis}-axis {KINDS[kind]}"
        channels.append(Channel(f"{token}{axis}_{kind}", name, unit))
    return tuple(channels)


# How data is split, and who or what the test then consists of.
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
    align_lengths: tuple[int, ...]      # samples of a stage-1 window: shortest, longest
    window: float                       # samples of a stage-2 window; a fraction is rounded
    stride: float                       # samples from one stage-2 window to the next; likewise
    test_subjects: tuple[int | str, ...] = ()
    val_subjects: tuple[int | str, ...] = ()    # held out of training, for every choice
    citation: str = ""
    licence: str = ""
    url: str | None = None              # of the official archive
    sha256: str | None = None           # of the archive, where known
    raw_rate: float | None = None       # Hz, of the raw samples if they are resampled
    share: float = 1.0                  # fraction of the windows that are kept, drawn by the seed
    answer: tuple[str, ...] = ("simple_trend", "summary")     # of texts.ANSWER_KINDS, for stage 1
    paraphrase: bool = True             # False: texts always take the first wording of each pool
    smooth: float = 0.0                 # seconds of the moving average of stage-1 trends
    band: float = 0.0                   # a change below this fraction of the range is no trend
    # of your own recordings, as dataset.json says (see own.py):
    rotation_groups: tuple | None = None    # tokens of channels that turn together, for `rotations`
    time_column: str | tuple | None = None      # None: found, see clocks.find_clock
    time_format: str | None = None      # of dates, as for strptime; None: found
    header: tuple | None = None         # names of the columns of files that do not name them
    time_unit: str | None = None        # of own.UNITS; None: found by the rate
    label_column: str | None = None     # None: the folder names the activity
    label_values: dict | None = None    # {value in that column: class}; None: the class itself
    split: str | None = None            # one of SPLITS; None: by subjects
    splits = ("train", "val", "test")   # the same for all datasets: not a field

    @classmethod
    def from_json(cls, values):
        channels = tuple(Channel(**channel) for channel in values["channels"])
        fields = {key: as_tuples(value) for key, value in values.items()}
        return cls(**fields | {"channels": channels})

    def split_of(self, subject):
        if self.split:                                            # as own.split_recordings names it
            return subject.rpartition("-")[2]
        if subject in self.test_subjects:
            return "test"
        return "val" if subject in self.val_subjects else "train"

    @property
    def n_window(self):
        return round(self.window)

    @property
    def file_rate(self):
        return self.raw_rate or self.rate

    @property
    def held_out(self):
        return SPLITS[self.split]

    @property
    def source(self):
        return "; ".join(part for part in (self.url, self.citation, self.licence) if part)


UCI, OXFORD = "https://archive.ics.uci.edu/static/public", "https://ora.ox.ac.uk/objects"
WRIST = triaxial("acc", "g") + triaxial("gyro", "deg/s")


def pamap2_unit(body_part):
    prefixes = f"{body_part}_", f"{body_part} "
    return (triaxial("acc", "m/s^2", *prefixes) + triaxial("gyro", "rad/s", *prefixes)
            + triaxial("mag", "uT", *prefixes))


DATASETS = {
    "demo": DatasetInfo(
        rate=20, channels=WRIST,
        classes=("Walking", "Running", "Turning", "Sitting", "Lying"),
        test_subjects=(9, 10), val_subjects=(8,),
        align_lengths=(4, 16), window=24, stride=12,
        citation="simulated: no real person",
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

# What --rate sets besides the rate, for networks that learn from scratch on two cores: trends that
# a person sees in a plot (seconds), described in few words.
VISIBLE_TRENDS = {
    "smooth": 0.25, "band": 0.25, "answer": ("simple_trend",), "paraphrase": False}
ALIGN_SECONDS = 1, 4                    # stage-1 windows: shortest, longest


def at_rate(name, dataset, rate):
    """(name, DatasetInfo) of a dataset at another rate, Hz; stage-2 windows keep their seconds."""
    ratio = rate / dataset.rate
    window = dataset.window * ratio
    stride = dataset.stride * ratio
    if rate > dataset.file_rate or window < 2 or stride < 1:
        raise InputError(f"--rate {rate:g}: the recordings of {name} have {dataset.file_rate:g} Hz "
                         f"and their windows would hold {window:g} samples, {stride:g} apart; give "
                         "another rate")
    shortest, longest = (max(2, round(seconds * rate)) for seconds in ALIGN_SECONDS)
    align_lengths = min(shortest, round(window)), longest
    if rate == int(rate):
        rate = int(rate)                                          # "demo-10hz"
    return f"{name}-{rate}hz", replace(
        dataset, rate=rate, raw_rate=dataset.file_rate, window=window, stride=stride,
        align_lengths=align_lengths, **VISIBLE_TRENDS)


KIND_WORDS = re.compile("a|g|m|acc|accel|accelerometer|gyr|gyro|gyroscope|mag|magnetometer")


def rotations(dataset):
    """The channels that turn together: for each body part a list of (3,) column indices.

    Channels whose tokens differ only by x, y and z are one sensor. Sensors turn together if the
    rest of their tokens names the same body part. dataset.json may list the groups instead
    ("places"): the tokens of x, y, z of one sensor after another."""
    column = {channel.token: i for i, channel in enumerate(dataset.channels)}
    groups = {}
    if dataset.rotation_groups is not None:
        for tokens in dataset.rotation_groups:
            sensors = zip(tokens[::3], tokens[1::3], tokens[2::3])
            groups[tokens] = [[column[token] for token in sensor] for sensor in sensors]
        return list(groups.values())
    for token in column:
        for at in [i for i, letter in enumerate(token) if letter == "x"]:
            before = token[:at]
            after = token[at + 1:]
            sensor = [before + axis + after for axis in "xyz"]
            if all(name in column for name in sensor):
                words = filter(None, (before + after).split("_"))
                body_part = tuple(word for word in words if not KIND_WORDS.fullmatch(word))
                columns = [column[name] for name in sensor]
                groups.setdefault(body_part, []).append(columns)
                break
    return list(groups.values())


def dataset_of(recipe):
    """The DatasetInfo of a model's training data. recipe: a recipe.Recipe."""
    with as_input_error("the checkpoint's recipe"):
        return DatasetInfo.from_json(recipe.dataset_info)
