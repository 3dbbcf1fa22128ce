"""PyTorch's local training of the benchmark CNN on one core, in samples a core-second.

usage: torch_cnn.py [EXAMPLES] [REPEATS]

A plain loop: batches of 32, SGD 0.1, examples in memory. Each setting is warmed by an epoch and then measured by
the time of its thread on a processor. `channels_last` is the memory layout that PyTorch recommends for
convolutions on CPUs; `foreach` and `fused` are the two faster forms of its optimiser.
Prints JSON: {"torch": version, "SETTING": [samples a core-second, ...]}.
"""

import json
import os
import sys
import time

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import torch  # noqa: E402
from torch import nn  # noqa: E402

BATCH = 32
SETTINGS = {
    "plain": {},
    "channels_last": {"channels_last": True},
    "channels_last, foreach": {"channels_last": True, "foreach": True},
    "channels_last, fused": {"channels_last": True, "fused": True},
}


def network():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(800, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def rates(n, repeats, channels_last=False, **optimiser):
    torch.manual_seed(0)
    model = network()
    assert sum(p.numel() for p in model.parameters()) == 56_714
    features = torch.rand(n, 1, 28, 28)
    labels = torch.randint(0, 10, (n,))
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        features = features.contiguous(memory_format=torch.channels_last)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, **optimiser)

    def epoch():
        for first in range(0, n, BATCH):
            sgd.zero_grad(set_to_none=True)
            scores = model(features[first : first + BATCH])
            loss = nn.functional.cross_entropy(scores, labels[first : first + BATCH])
            loss.backward()
            sgd.step()

    epoch()
    measured = []
    for _ in range(repeats):
        # Autograd goes back on the calling thread where there is no other device.
        began = time.process_time()
        epoch()
        measured.append(n / (time.process_time() - began))
    return measured


def main():
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 6_400
    repeats = int(sys.argv[2]) if len(sys.argv) > 2 else 7
    torch.set_num_threads(1)
    figures = {"torch": torch.__version__}
    for name, setting in SETTINGS.items():
        figures[name] = [round(rate) for rate in rates(n, repeats, **setting)]
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
