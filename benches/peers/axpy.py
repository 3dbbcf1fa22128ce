"""numpy's rate of y += a * x over arrays larger than any cache, one thread.

usage: axpy.py N REPEATS

Prints JSON: {"axpy": [GB/s, ...]}, in bytes of x a second, as the fold's rate is in bytes of updates.
"""

import json
import os
import sys
import time

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import numpy  # noqa: E402


def main():
    n, repeats = map(int, sys.argv[1:])
    x = numpy.ones(n, numpy.float32)
    y = numpy.zeros(n, numpy.float32)
    rates = []
    for repeat in range(repeats):
        began = time.perf_counter()
        y += numpy.float32(repeat + 0.5) * x
        rates.append(x.nbytes / (time.perf_counter() - began) / 1e9)
    print(json.dumps({"axpy": rates}))


if __name__ == "__main__":
    main()
