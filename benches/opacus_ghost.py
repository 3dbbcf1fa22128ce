"""Samples a second, on one thread, of PyTorch's ordinary step and of Opacus' ways of clipping.

The network and batch are those of `dp_step/small_cnn`: conv 3x3 16, relu, pool 2, conv 3x3 32, relu,
pool 2, linear 64, relu, linear 10, without padding (56,714 parameters), 128 images of 28 x 28. A step
is gradients and clipping; noise and the optimizer are left out, as in `dp_step/small_cnn/clipped`.
Figures are of processor time of this process; the smallest of `--repeats` counts, because neighbours
only ever add to it.

    python3 -m venv venv && venv/bin/pip install torch opacus
    OMP_NUM_THREADS=1 venv/bin/python benches/opacus_ghost.py
"""

import argparse
import time

import opacus
import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (
    GradSampleModuleFastGradientClipping,
)
from torch import nn

BATCH = 128
CLIP_NORM_L2 = 0.1


def network():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(800, 64), nn.ReLU(), nn.Linear(64, 10),
    )


def ordinary(images, labels):
    model = network()
    loss = nn.CrossEntropyLoss(reduction="sum")

    def step():
        model.zero_grad(set_to_none=True)
        loss(model(images), labels).backward()

    return step


def hooks(images, labels):
    model = GradSampleModule(network(), loss_reduction="sum")
    loss = nn.CrossEntropyLoss(reduction="sum")

    def step():
        model.zero_grad(set_to_none=True)
        loss(model(images), labels).backward()
        samples = [p.grad_sample for p in model.parameters()]
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in samples], 1).norm(dim=1)
        factors = (CLIP_NORM_L2 / (norms + 1e-6)).clamp(max=1.0)
        for p in model.parameters():
            p.grad = torch.einsum("i,i...", factors, p.grad_sample)
            p.grad_sample = None

    return step


def ghost(images, labels):
    model = GradSampleModuleFastGradientClipping(
        network(), max_grad_norm=CLIP_NORM_L2, use_ghost_clipping=True, loss_reduction="sum"
    )
    loss = nn.CrossEntropyLoss(reduction="none")

    def step():
        model.zero_grad(set_to_none=True)
        each = loss(model(images), labels)
        each.sum().backward(retain_graph=True)
        factors = model.get_clipping_coef()
        model.zero_grad(set_to_none=True)
        model.disable_hooks()
        (factors * each).sum().backward()
        model.enable_hooks()

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=60)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    torch.manual_seed(1)
    images = torch.rand(BATCH, 1, 28, 28) * 2 - 1
    labels = torch.randint(10, (BATCH,))
    assert sum(p.numel() for p in network().parameters()) == 56_714
    steps = {f.__name__: f(images, labels) for f in (ordinary, hooks, ghost)}
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(repeats):
        # One after the other, so that a busy moment meets all of them.
        for name, step in steps.items():
            start = time.process_time()
            step()
            best[name] = min(best[name], time.process_time() - start)
    print(f"torch {torch.__version__}, opacus {opacus.__version__}")
    for name, seconds in best.items():
        print(f"{name:10} {1e3 * seconds:8.2f} ms  {BATCH / seconds:8.0f} samples per core-second")


if __name__ == "__main__":
    main()
