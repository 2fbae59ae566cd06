"""Ray Train: a TorchTrainer on gloo whose workers read their rows, and a DataLoader that Ray prepares.

``ray.data`` with ``iter_torch_batches``, which then shuffles nothing, takes as long.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, prepare_data_loader, prepare_model
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.training import SHARE, WORKERS, model, rows_of, seconds_of_epoch


def seconds(folder: Path, warm: int) -> float:
    """Return the seconds of an epoch, of the first worker: they go at one pace."""
    with tempfile.TemporaryDirectory() as scratch:
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "HOME": scratch}  # where Ray would leave a token
        ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, _temp_dir=scratch)
        trainer = TorchTrainer(
            train,
            train_loop_config={"folder": folder, "warm": warm},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=WORKERS, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(storage_path=scratch),
        )
        try:
            found: float = trainer.fit().return_value
        finally:
            ray.shutdown()
    return found


def train(config: dict[str, Any]) -> float:
    """Be one of the workers; Ray has told torch to use one thread."""
    # all rows: the sampler that Ray adds deals them out
    rows = TensorDataset(*rows_of(config["folder"]))
    batches = prepare_data_loader(DataLoader(rows, batch_size=SHARE, shuffle=True))
    return seconds_of_epoch(prepare_model(model()), batches, config["warm"])
