"""Train a classifier on a Dask DataFrame with two workers, then with one, and compare the bits.

The data are scikit-learn's 1,797 handwritten digits, 8 x 8 pixels each, written to Parquet in partitions of very
different sizes, one of them empty. Writes the model, its history and a learning curve to demo-output/.
"""

import shutil
from functools import partial
from pathlib import Path

import dask.dataframe as dd
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import torch
from dask.distributed import Client, LocalCluster
from sklearn.datasets import load_digits
from torch import nn

import dasktrain as dt

OUTPUT = Path("demo-output")
CUTS = [0, 5, 700, 700, 900, 901, 1400]  # uneven partitions of the training rows; the third one is empty


def write_digits(where: Path) -> None:
    """Write training rows in uneven partitions, and every fifth row apart for validation."""
    digits = load_digits(as_frame=True).frame
    held_out = digits.index % 5 == 0
    train, valid = digits[~held_out], digits[held_out]
    for name, frame, cuts in (("train", train, CUTS), ("valid", valid, [0])):
        folder = where / name
        folder.mkdir(parents=True)
        for number, (start, stop) in enumerate(zip(cuts, [*cuts[1:], None], strict=True)):
            frame.iloc[start:stop].to_parquet(folder / f"part-{number:02d}.parquet")


def build(schema: dt.Schema) -> nn.Module:
    """Return a small network for the data's features and classes."""
    return nn.Sequential(
        nn.Linear(schema.num_features, 128),
        nn.BatchNorm1d(128),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(128, schema.num_outputs),
    )


def train(workers: int, observers: list[dt.Observer]) -> tuple[dt.Result, pd.Series, dd.DataFrame]:
    """Train on a cluster of our own and predict the held-out rows there."""
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        train_frame = dd.read_parquet(OUTPUT / "data" / "train")
        valid_frame = dd.read_parquet(OUTPUT / "data" / "valid")
        trainer = dt.Trainer(
            build,
            loss=nn.CrossEntropyLoss(),
            optimizer=partial(torch.optim.AdamW, lr=5e-3),
            metrics={"accuracy": dt.accuracy},
            observers=observers,
        )
        result = trainer.fit(
            dt.Table(train_frame, target="target"),
            validation=dt.Table(valid_frame, target="target"),
            epochs=15,
            batch_size=128,
            client=client,
        )
        predicted = result.predict(valid_frame)  # a lazy Dask Series with the index of valid_frame
        print(f"predicted: {type(predicted).__name__} of {predicted.npartitions} partitions")
        return result, predicted.compute(), valid_frame.compute()


def draw(history: dt.History, path: Path) -> None:
    """Draw loss and accuracy by epoch."""
    epochs = history.to_frame()
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for panel, name in zip(panels, ("loss", "accuracy"), strict=True):
        panel.plot(epochs.epoch + 1, epochs[name], label="training, as seen")
        panel.plot(epochs.epoch + 1, epochs[f"valid_{name}"], label="validation")
        panel.set(xlabel="epoch", title=name)
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Run the demonstration."""
    shutil.rmtree(OUTPUT, ignore_errors=True)
    write_digits(OUTPUT / "data")
    result, predicted, valid = train(workers=2, observers=[dt.Progress(), dt.Log(OUTPUT / "history.csv")])
    accuracy = (predicted == valid["target"]).mean()
    print(f"held-out accuracy of the predictions: {accuracy:.4f}")
    result.save(str(OUTPUT / "model"))
    draw(result.history, OUTPUT / "learning-curve.png")
    print(f"wrote {OUTPUT}/model, history.csv and learning-curve.png")
    alone, _, _ = train(workers=1, observers=[])
    print(f"digest with 2 workers  {result.digest}")
    print(f"digest with 1 worker   {alone.digest}")
    assert accuracy >= 0.95, accuracy
    assert result.digest == alone.digest, "the digests differ"
    assert dt.load(str(OUTPUT / "model"), build).digest == result.digest
    print("equal, bit for bit")


if __name__ == "__main__":
    main()
