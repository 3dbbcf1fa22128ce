"""What the simulation peers share: Fashion-MNIST dealt out evenly, the benchmark CNN, and what a process used."""

import gzip
import os
import resource

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

torch.set_num_threads(1)

MEAN, STD = 0.2860, 0.3530
BATCH = 32
LEARNING_RATE = 0.1


def load(folder, part):
    """(images [n, 1, 28, 28], labels [n]) of `part`, "train" or "t10k"."""
    with gzip.open(f"{folder}/{part}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(f"{folder}/{part}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
    return images, labels


def batch(images, labels):
    """Images as the network reads them, with their labels."""
    images = torch.from_numpy(images.astype(np.float32) / 255.0)
    return (images - MEAN) / STD, torch.from_numpy(labels)


def rows_of(n_rows, n_clients, client):
    """Which rows are one client's."""
    order = np.random.default_rng(1).permutation(n_rows)
    return np.sort(order[client::n_clients])


class Network(nn.Sequential):
    """The benchmark CNN, 56,714 parameters."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(800, 64), nn.ReLU(), nn.Linear(64, 10),
        )


def train(model, images, labels):
    """One epoch of SGD over a client's rows."""
    sgd = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    order = torch.randperm(len(labels))
    for first in range(0, len(labels), BATCH):
        rows = order[first : first + BATCH]
        sgd.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        sgd.step()


def accuracy(model, images, labels):
    """Share of the test set that is classified correctly."""
    with torch.no_grad():
        n_correct = 0
        for first in range(0, len(labels), 500):
            features, truth = batch(images[first : first + 500], labels[first : first + 500])
            n_correct += int((model(features).argmax(1) == truth).sum())
    return n_correct / len(labels)


def cpu_seconds():
    """Processor time of this process and of its children that have ended."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
