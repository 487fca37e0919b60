"""Sensors that turn in training: which channels turn together, by what, and what does not turn."""
from dataclasses import fields, replace

import numpy as np
import pytest
from helpers import run
from raw_files import OWN, write_small_own
from scipy.spatial.transform import Rotation
from untrained import small_dataset

from sensorllm_min.data.examples import (
    AlignExamples, HarExamples, PromptFormat, sample_texts, resize_movement, rotate_sensors)
from sensorllm_min.data.prepare import prepare
from sensorllm_min.data.prepared import PreparedData
from sensorllm_min.data.own import own_dataset
from sensorllm_min.data.sensors import DATASETS, Channel, rotations
from sensorllm_min.data.texts import har_text
from sensorllm_min.files import InputError
from sensorllm_min.text_tokenizer import built_tokenizer, new_tokens, train_backend
from sensorllm_min.training.options import RunSettings

# ---- which channels turn together ----

SENSORS = {                             # first columns of the sensors at each place
    "demo": [[0, 3]], "usc-had": [[0, 3]], "uci-har": [[0, 3]], "mhealth": [[0], [3, 6], [9, 12]],
    "pamap2": [[0, 3, 6], [9, 12, 15], [18, 21, 24]], "capture24": [[0]],
}


@pytest.mark.parametrize("name", DATASETS)
def test_sensors_of_one_place_turn_together(name):
    expected = [[[first, first + 1, first + 2] for first in place] for place in SENSORS[name]]
    assert rotations(DATASETS[name]) == expected


def of_tokens(*tokens, places=None):
    channels = tuple(Channel(token, f"sensor {index}", "1") for index, token in enumerate(tokens))
    return rotations(replace(DATASETS["demo"], channels=channels, rotation_groups=places))


def test_channels_whose_tokens_differ_by_x_y_and_z_alone_are_one_sensor():
    assert of_tokens("acc_x", "acc_y", "acc_z") == [[[0, 1, 2]]]
    assert of_tokens("temp", "z", "accx", "x", "accz", "y", "accy") == [[[2, 6, 4], [3, 5, 1]]]
    assert of_tokens("ax", "ay", "az", "gx", "gy", "gz") == [[[0, 1, 2], [3, 4, 5]]]
    assert of_tokens("flex_x", "flex_y", "flex_z", "max") == [[[0, 1, 2]]]    # x in the word
    wrists = [f"{side}_{kind}_{axis}" for side in ("left", "right") for kind in ("gyr", "acc")
              for axis in "xyz"]
    assert of_tokens(*wrists) == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]


def test_where_no_tokens_say_so_nothing_turns():
    assert of_tokens("x_acc", "y_acc", "z_gyro") == []            # two of three
    assert of_tokens("max", "may", "maz_2") == []
    assert of_tokens("acc_x", "acc_y", "acc_z", places=()) == []  # dataset.json says: none


def test_dataset_json_may_say_what_is_worn_together(tmp_path):
    """Against what the tokens would say; the order within a sensor is its x, y, z."""
    names = ("up", "ahead", "aside", "x_acc", "y_acc", "z_acc", "roll", "pitch", "yaw")
    channels = [{"token": name, "spoken": f"{name.replace('_', ' ')} sensor", "unit": "1"}
                for name in names]
    places = [["ahead", "aside", "up", "roll", "pitch", "yaw"]]
    write_small_own(tmp_path, channels=channels, places=places)
    _, dataset = own_dataset(tmp_path)
    assert rotations(dataset) == [[[1, 2, 0], [6, 7, 8]]]
    for wrong in ([["up", "ahead"]], [["up", "ahead", "up"]], [["up", "ahead", "down"]],
                  [["up", "ahead", "aside"], ["up", "roll", "yaw"]], ["up"], "up"):
        write_small_own(tmp_path, channels=channels, places=wrong)
        with pytest.raises(InputError, match="places|must be a list"):
            own_dataset(tmp_path)


# ---- by what ----

PLACES = [[[0, 1, 2], [3, 4, 5]], [[7, 8, 6]]]                    # channel 9 is of no sensor


@pytest.fixture(scope="module")
def windows():
    """A window of ten channels, and 400 of what turning it by up to 20 degrees makes of it."""
    window = np.random.default_rng(0).normal(size=(40, 10)).astype(np.float32)
    before = window.copy()
    made = [rotate_sensors(window, PLACES, 20.0, np.random.default_rng(i)) for i in range(400)]
    np.testing.assert_array_equal(window, before)                 # what was passed in stays
    return window, made


def rotation_of(before, after, columns):
    """The matrix (3, 3) that turns each sample of a sensor; it must be the same for all of them."""
    x, y = before[:, columns].astype(float), after[:, columns]
    matrix = np.linalg.lstsq(x, y, rcond=None)[0].T
    np.testing.assert_allclose(y, x @ matrix.T, atol=1e-12)
    return matrix


def test_all_samples_of_a_place_turn_by_one_rotation_that_keeps_lengths_and_hands(windows):
    window, made = windows
    for after in made[:50]:
        first, second = (rotation_of(window, after, columns) for columns in PLACES[0])
        np.testing.assert_allclose(first, second, atol=1e-12)     # accelerometer and gyroscope
        other = rotation_of(window, after, PLACES[1][0])
        assert abs(first - other).max() > 1e-3                    # another place, another rotation
        for matrix in (first, other):
            np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
            assert np.linalg.det(matrix) == pytest.approx(1)
        np.testing.assert_array_equal(after[:, 9], window[:, 9])


def test_angles_are_uniform_up_to_the_given_one_and_axes_point_everywhere(windows):
    """Of 400: a mean is within four standard errors of that of the distribution."""
    window, made = windows
    vectors = np.array([Rotation.from_matrix(rotation_of(window, after, PLACES[0][0])).as_rotvec(degrees=True) for after in made])
    angles = np.linalg.norm(vectors, axis=1)
    assert angles.max() <= 20 + 1e-9
    assert abs(angles.mean() - 10) < 4 * 20 / np.sqrt(12 * 400)
    assert np.histogram(angles, 4, (0, 20))[0].min() > 60         # of 100 on average
    axes = vectors / angles[:, None]
    assert abs(axes.mean(0)).max() < 4 / np.sqrt(3 * 400)
    np.testing.assert_allclose((axes ** 2).mean(0), 1 / 3, atol=0.06)


def test_a_movement_is_resized_around_the_mean_by_a_factor_of_its_own():
    """Of 400: log-uniform between the inverse and the factor, so half of them are below 1; all channels alike."""
    window = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32) + 7
    factors = []
    for seed in range(400):
        made = resize_movement(window, 1.4, np.random.default_rng(seed))
        np.testing.assert_allclose(made.mean(0), window.mean(0, dtype=float), rtol=1e-12)
        ratio = (made - made.mean(0)) / (window - window.mean(0, dtype=float))
        np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-9)
        factors.append(ratio[0, 0])
    assert 1 / 1.4 <= min(factors) < 0.75 and 1.35 < max(factors) <= 1.4
    assert abs(np.mean(np.array(factors) < 1) - 0.5) < 4 * 0.5 / np.sqrt(400)


# ---- in training ----

@pytest.fixture(scope="module")
def data(demo, tmp_path_factory):
    return PreparedData(small_dataset(demo, tmp_path_factory.mktemp("turned") / "demo"))


@pytest.fixture(scope="module")
def prompts(data):
    tokenizer = built_tokenizer(train_backend(sample_texts(data), 600), new_tokens(data.dataset.channels), 600)
    return PromptFormat(tokenizer, 512, 4096, text=("smry", "trend"))


def window_of(examples, i, epoch=0):
    examples.epoch = epoch
    return np.stack(examples[i].series, 1)


def test_each_window_turns_anew_in_each_epoch_and_by_the_seed(data, prompts):
    """Asked for again, or by another process, it is the same; the samples on disk stay."""
    examples = HarExamples(data, "train", prompts)
    still = window_of(examples, 3)
    np.testing.assert_array_equal(still, data.window(examples[3].record))
    examples.degrees = 20.0
    again = HarExamples(data, "train", prompts)
    again.degrees = 20.0
    seen = []
    for seed, epoch, i in ((0, 0, 3), (0, 1, 3), (0, 0, 4), (1, 0, 3)):
        examples.seed = again.seed = seed
        window = window_of(examples, i, epoch)
        np.testing.assert_array_equal(window, window_of(again, i, epoch))
        original = data.window(examples[i].record)
        seen.append(rotation_of(original, window, [0, 1, 2]))
        np.testing.assert_allclose(seen[-1], rotation_of(original, window, [3, 4, 5]), atol=1e-6)
    for i, one in enumerate(seen):
        assert all(abs(one - other).max() > 1e-3 for other in seen[:i])


def test_each_window_is_resized_anew_in_each_epoch(data, prompts):
    examples = HarExamples(data, "train", prompts)
    still = window_of(examples, 3)
    examples.factor = 1.4
    spread = [window_of(examples, 3, epoch).std() for epoch in (0, 1, 0)]
    assert spread[0] == spread[2] != spread[1] and still.std() not in spread


def test_a_limited_sample_turns_each_window_as_the_whole_does(data, prompts):
    """The record's place in the file counts, not that in the sample."""
    whole, part = (HarExamples(data, "train", prompts, limit) for limit in (None, 5))
    whole.degrees = part.degrees = 20.0
    for i, index in enumerate(part.index):
        np.testing.assert_array_equal(window_of(part, i), window_of(whole, index))


def test_the_text_tells_of_the_turned_sensors(data, prompts):
    examples = HarExamples(data, "train", prompts)
    examples.degrees = 20.0
    example = examples[0]
    window, still = np.stack(example.series, 1), data.window(example.record)
    text = prompts.tokenizer.decode(example.prompt)
    assert har_text(window, data.dataset, prompts.text) in text
    assert har_text(still, data.dataset, ("smry",)) not in text


def test_nothing_turns_that_is_not_told_to(data, prompts):
    """Validation and test of stage 2, and stage 1, whose trends a turn would make untrue."""
    for split in ("train", "val", "test"):
        examples = HarExamples(data, split, prompts)
        np.testing.assert_array_equal(window_of(examples, 0, epoch=1), data.window(examples[0].record))
    assert "rotate" not in {field.name for field in fields(RunSettings)}
    assert AlignExamples.degrees == 0 and AlignExamples.factor == 1


@pytest.mark.parametrize("n_channels,said", [(3, True), (2, False)])
def test_training_says_where_no_sensor_turns(tmp_path, n_channels, said):
    """Of fewer than three channels, none could."""
    write_small_own(tmp_path / "raw", n_recordings=1, channels=OWN["channels"][:n_channels])
    for path in (tmp_path / "raw").rglob("*.npy"):
        np.save(path, np.load(path)[:, :n_channels])
    prepare("own", tmp_path / "raw", tmp_path / "data", say=lambda line: None)
    options = ("--data", "data", "--align", "none", "--train-limit", 8, "--eval-limit", 4, "--test-limit", 4, "--epochs", 1)
    assert ('"places" in dataset.json can say so' in run("train_har.py", *options, cwd=tmp_path)) == said
