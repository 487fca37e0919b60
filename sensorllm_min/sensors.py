"""What each dataset is: one table, and everything about a dataset that is not in its files comes from here.

To add a dataset: a row here, and a reader in `recordings.py`.
"""
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Channel:
    token: str                          # its marker tokens are <token_start> and <token_end>
    spoken: str                         # what texts call it
    unit: str

    @property
    def start(self):
        return f"<{self.token}_start>"

    @property
    def end(self):
        return f"<{self.token}_end>"


KINDS = {"acc": "accelerometer", "gyro": "gyroscope", "mag": "magnetometer"}


def triaxial(kind, unit, place=("", "")):
    """The x, y and z channels of one sensor; place is (token prefix, spoken prefix) of where it is worn."""
    return tuple(Channel(f"{place[0]}{axis}_{kind}", f"{place[1]}{axis}-axis {KINDS[kind]}", unit) for axis in "xyz")


@dataclass(frozen=True)
class Dataset:
    rate: int                           # Hz
    channels: tuple
    classes: tuple                      # activity names; a label is an index into them
    subjects: int                       # how many there are
    test_subjects: tuple
    val_subjects: tuple                 # held out of the training subjects: every choice is made on them
    align_lengths: tuple                # samples of a stage-1 window: shortest, longest
    window: int                         # samples of a stage-2 window
    stride: int
    source: str                         # where the recordings come from, and how to cite them
    answer: tuple = ("simple_trend", "summary")     # kinds of text in a stage-1 answer, of trend_text.ANSWER_KINDS
    paraphrase: bool = True             # False: texts always take the first wording of each pool
    splits: tuple = field(default=("train", "val", "test"), init=False)

    def split_of(self, subject):
        return "test" if subject in self.test_subjects else "val" if subject in self.val_subjects else "train"


WRIST = triaxial("acc", "g") + triaxial("gyro", "deg/s")

DATASETS = {
    "demo": Dataset(
        rate=20, channels=WRIST,
        classes=("Walking", "Running", "Turning", "Sitting", "Lying"),
        subjects=10, test_subjects=(9, 10), val_subjects=(8,),
        align_lengths=(4, 16), window=24, stride=12,
        source="simulated by recordings.py: no real person",
        answer=("simple_trend",), paraphrase=False),   # short answers in one wording: to learn in three minutes
    "usc-had": Dataset(
        rate=100, channels=WRIST,
        classes=("Walking Forward", "Walking Left", "Walking Right", "Walking Upstairs", "Walking Downstairs",
                 "Running Forward", "Jumping", "Sitting", "Standing", "Sleeping", "Elevator Up", "Elevator Down"),
        subjects=14, test_subjects=(13, 14), val_subjects=(3, 7),
        align_lengths=(5, 200), window=200, stride=100,
        source="https://sipi.usc.edu/had/USC-HAD.zip; Zhang and Sawchuk 2012, free for research with citation"),
    "uci-har": Dataset(
        rate=50, channels=triaxial("acc", "g") + triaxial("gyro", "rad/s"),
        classes=("Walking", "Walking Upstairs", "Walking Downstairs", "Sitting", "Standing", "Laying"),
        subjects=30, test_subjects=(2, 4, 9, 10, 12, 13, 18, 20, 24), val_subjects=(5, 8, 22, 28),
        align_lengths=(5, 200), window=128, stride=64,
        source="https://archive.ics.uci.edu/static/public/240/human+activity+recognition+using+smartphones.zip; "
               "Anguita et al. 2013, cite, no commercial use"),
}
