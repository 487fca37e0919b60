"""Simulated people with a sensor on the wrist, for the demo."""
import numpy as np

RESOLUTION = np.array([0.005] * 3 + [0.5] * 3)                    # g and deg/s, of the sensor
NOISE = 0.05                            # in steps of RESOLUTION: seldom changes a resting reading


# gravity's direction (x, y, z), strides a second, swing of acc (g) and gyro (deg/s), turns (deg/s)
MOTIONS = {
    "Walking": "0 1 0  0.9  0.5 0.8 0.4  80 30 60  0",
    "Running": "0 1 0  1.5  1.6 2.4 1.0  250 100 180  0",
    "Turning": "0 1 0  0.5  0.3 0.4 0.3  40 60 40  220",
    "Sitting": "0 0.3 0.95  0.25  0.3 0.2 0.3  30 20 30  0",
    "Lying": "0.95 0 0.3  0.15  0.2 0.2 0.2  20 20 20  0"}


def simulate(subject, activity, n_samples, rate, rng):
    """Samples (N, 6) of one simulated wrist: gravity, gait harmonics, turns, noise.
    A limb moves, then rests at the end of its swing (a clipped sine)."""
    person = np.random.default_rng(subject)
    tilt = person.normal(0, 0.1, 3)
    pace = person.normal(1, 0.05)
    vigour = person.normal(1, 0.1)
    seconds = np.arange(n_samples) / rate
    numbers = np.array(MOTIONS[activity].split(), float)
    gravity, strides, swing, turn = np.split(numbers, [3, 4, 10])
    today = 1 + 0.02 * rng.normal()
    angle = 2 * np.pi * strides * pace * seconds[:, None] * today  # (N, 1)
    phase = rng.uniform(0, 2 * np.pi, 6)
    harmonic = 0.1 * np.sin(2 * angle + phase[::-1])
    wave = 1.3 * np.sin(angle + phase) + harmonic                 # (N, 6)
    samples = swing * vigour * rng.uniform(0.8, 1.2, 6) * wave.clip(-1, 1)
    samples[:, :3] += gravity + tilt
    turning = 1.3 * np.sin(angle[:, 0] + phase[5])
    samples[:, 5] += turn * vigour * turning.clip(-1, 1)          # z-axis gyroscope
    samples += NOISE * RESOLUTION * rng.normal(size=samples.shape)
    return (np.round(samples / RESOLUTION) * RESOLUTION).astype(np.float32)
