"""Two experts of half the digits each, fine-tuned from one base, merged into one model that reads them all.

    python examples/merge_digits.py            (about ten seconds; needs scikit-learn for its handwritten digits)

Everything but the call of `merge` is plain PyTorch: any weights saved as safetensors, with the same names and shapes,
merge the same way.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

from paramsmith.merge import merge


def train(network: nn.Module, images: Tensor, labels: Tensor, epochs: int, rate: float) -> None:
    """Fit a network to labelled images, in place."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            loss = nn.functional.cross_entropy(network(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def main() -> None:
    """Train, merge in two ways, and print the accuracy of every model on digits that none of them has seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="train for less long")
    epochs = 5 if parser.parse_args().quick else 25

    torch.manual_seed(0)
    torch.set_num_threads(1)
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    seen, unseen = slice(0, 1200), slice(1200, None)

    base = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 10))
    train(base, images[:150], labels[:150], epochs=20, rate=1e-3)
    experts = {"low": copy.deepcopy(base), "high": copy.deepcopy(base)}
    for name, half in (("low", labels[seen] < 5), ("high", labels[seen] >= 5)):
        train(experts[name], images[seen][half], labels[seen][half], epochs, rate=3e-4)

    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder, f"{name}.safetensors") for name in ("base", "low", "high", "average", "ties")}
        for name, network in {"base": base, **experts}.items():
            save_file(network.state_dict(), files[name])

        models = [files["low"], files["high"]]
        merge(models, files["average"], method="linear")
        merge(models, files["ties"], base=files["base"], method="ties", density=0.2, **{"lambda": 0.7})

        print(f"{'':8} {'0 to 4':>7} {'5 to 9':>7} {'all':>7}")
        for name, file in files.items():
            base.load_state_dict(load_file(file))
            right = base(images[unseen]).argmax(1) == labels[unseen]
            low = labels[unseen] < 5
            shares = [100 * part.float().mean().item() for part in (right[low], right[~low], right)]
            print(f"{name:8} " + " ".join(f"{share:6.1f}%" for share in shares))


if __name__ == "__main__":
    main()
