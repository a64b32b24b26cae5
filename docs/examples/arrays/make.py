"""Write example.npz: 600 noisy squares, whose label is their brightness."""

import numpy as np

random = np.random.default_rng(0)
labels = np.arange(600) % 3
images = random.integers(0, 60, (600, 32, 32, 3)) + 90 * labels[:, None, None, None]
np.savez_compressed("example.npz", images=images.astype(np.uint8), labels=labels)
