"""Flower's simulation of the benchmark: FedAvg, all clients in every round, one epoch each, two workers.

usage: flower_simulation.py FOLDER CLIENTS ROUNDS
Prints JSON: seconds until the first round, seconds of each round, accuracy after the last.
"""

import json
import sys
import time

STARTED = time.time()

import fashion  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from flwr.client import ClientApp, NumPyClient  # noqa: E402
from flwr.common import Context, ndarrays_to_parameters  # noqa: E402
from flwr.server import ServerApp, ServerAppComponents, ServerConfig  # noqa: E402
from flwr.server.strategy import FedAvg  # noqa: E402
from flwr.simulation import run_simulation  # noqa: E402

FOLDER, N_CLIENTS, N_ROUNDS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
# A worker's own copy, read once.
DATA = {}


def values(model):
    return [value.detach().numpy() for value in model.state_dict().values()]


def load(model, arrays):
    names = model.state_dict().keys()
    model.load_state_dict({name: torch.from_numpy(np.copy(array)) for name, array in zip(names, arrays)})


class Client(NumPyClient):
    def __init__(self, client):
        self.client = client

    def fit(self, arrays, config):
        if "train" not in DATA:
            DATA["train"] = fashion.batch(*fashion.load(FOLDER, "train"))
            DATA["model"] = fashion.Network()
        features, labels = DATA["train"]
        rows = torch.from_numpy(fashion.rows_of(len(labels), N_CLIENTS, self.client))
        model = DATA["model"]
        load(model, arrays)
        fashion.train(model, features[rows], labels[rows])
        return values(model), len(rows), {}


AT = []


def evaluate(round_number, arrays, config):
    AT.append(time.time())
    if round_number < N_ROUNDS:
        return None
    model = fashion.Network()
    load(model, arrays)
    score = fashion.accuracy(model, *fashion.load(FOLDER, "t10k"))
    seconds = [after - before for before, after in zip(AT, AT[1:])]
    print(json.dumps({"started_s": AT[0] - STARTED, "round_s": seconds, "accuracy": score}))
    return None


def server(context: Context):
    torch.manual_seed(1)
    strategy = FedAvg(
        fraction_fit=1.0,
        fraction_evaluate=0.0,
        min_fit_clients=N_CLIENTS,
        min_available_clients=N_CLIENTS,
        initial_parameters=ndarrays_to_parameters(values(fashion.Network())),
        evaluate_fn=evaluate,
    )
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=N_ROUNDS))


run_simulation(
    server_app=ServerApp(server_fn=server),
    client_app=ClientApp(client_fn=lambda context: Client(int(context.node_config["partition-id"])).to_client()),
    num_supernodes=N_CLIENTS,
    backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 2}},
)
