"""pfl-research's simulation of the benchmark: FedAvg, all clients in every round, one epoch each.

usage: torchrun --nproc-per-node 2 pfl_simulation.py FOLDER CLIENTS ROUNDS
Prints JSON: seconds until the first round, seconds of each round, accuracy after the last.
"""

import json
import sys
import time

STARTED = time.time()

import fashion  # noqa: E402
import torch  # noqa: E402
from pfl.aggregate.simulate import SimulatedBackend  # noqa: E402
from pfl.algorithm.base import NNAlgorithmParams  # noqa: E402
from pfl.algorithm.federated_averaging import FederatedAveraging  # noqa: E402
from pfl.callback.base import TrainingProcessCallback  # noqa: E402
from pfl.data.dataset import Dataset  # noqa: E402
from pfl.data.federated_dataset import FederatedDataset  # noqa: E402
from pfl.data.sampling import get_user_sampler  # noqa: E402
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams  # noqa: E402
from pfl.internal.ops.selector import get_default_framework_module  # noqa: E402
from pfl.metrics import Metrics, Weighted  # noqa: E402
from pfl.model.pytorch import PyTorchModel  # noqa: E402

FOLDER, N_CLIENTS, N_ROUNDS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


class Network(fashion.Network):
    def loss(self, features, labels, is_eval=False):
        self.eval() if is_eval else self.train()
        return torch.nn.functional.cross_entropy(self(features), labels)

    def metrics(self, features, labels, is_eval=False):
        return {"loss": Weighted(float(self.loss(features, labels, True)) * len(labels), len(labels))}


class Clock(TrainingProcessCallback):
    def __init__(self):
        self.at = [time.time()]

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        self.at.append(time.time())
        return False, Metrics()


def main():
    torch.manual_seed(1)
    images, labels = fashion.load(FOLDER, "train")
    features, labels = fashion.batch(images, labels)

    def dataset(client):
        rows = torch.from_numpy(fashion.rows_of(len(labels), N_CLIENTS, client))
        return Dataset((features[rows], labels[rows]), user_id=client)

    sampler = get_user_sampler("minimize_reuse", list(range(N_CLIENTS)))
    network = Network()
    model = PyTorchModel(
        network,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
    )
    backend = SimulatedBackend(FederatedDataset(dataset, sampler), val_data=None)
    clock = Clock()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=N_ROUNDS,
            evaluation_frequency=N_ROUNDS + 1,
            train_cohort_size=N_CLIENTS,
            val_cohort_size=None,
        ),
        backend,
        model,
        NNTrainHyperParams(
            local_batch_size=fashion.BATCH, local_num_epochs=1, local_learning_rate=fashion.LEARNING_RATE
        ),
        NNEvalHyperParams(local_batch_size=500),
        [clock],
    )
    if get_default_framework_module().distributed.global_rank == 0:
        seconds = [after - before for before, after in zip(clock.at, clock.at[1:])]
        score = fashion.accuracy(network, *fashion.load(FOLDER, "t10k"))
        print(json.dumps({"started_s": clock.at[0] - STARTED, "round_s": seconds, "accuracy": score}))


main()
