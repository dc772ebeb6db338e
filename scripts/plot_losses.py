"""Draw the loss curves of trained models over epochs.

    python -m scripts.plot_losses --models runs/models --output plots

It reads metrics.csv of MODELS/{reconstruction,linearisation}/{vqvae,prior_SOURCE,neural_likelihood}
and writes vqvae_loss_train, vqvae_loss_test and the same for priors and neural likelihoods; the
test curves are on the validation songs.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matplotlib.figure import Figure

from jukebox_core.evaluation.figures import is_figure_of, save_figure
from jukebox_core.files import check_replaceable
from jukebox_core.training.tracking import METRICS, Row, read_metrics
from scripts._cli import program

FAMILIES = {"reconstruction": "LASS", "linearisation": "LQ-VAE and hybrid"}
SPLITS = {"train": "train", "test": "validation"}
KINDS = {
    "vqvae": ("Codec", "loss"),
    "prior": ("Prior", "bits per code"),
    "neural_likelihood": ("Neural likelihood", "bits per code"),
}
"""{kind of model: (title, unit)}."""


@dataclass(frozen=True)
class Args:
    """Flags of scripts.plot_losses."""

    models: Path
    """Models folder."""
    output: Path = Path("images")
    """Folder to write the figures to."""
    format: Literal["png", "svg"] = "png"
    """File format of the figures."""


@program
def main(args: Args) -> None:
    """Draw a figure for every kind of model that has runs."""
    curves = find_curves(args.models)
    if not curves:
        raise FileNotFoundError(
            f"{args.models} has no {METRICS} in FAMILY/vqvae or FAMILY/prior_SOURCE; train first"
        )
    kinds = [kind for kind in KINDS if any(of == kind for of, _ in curves)]
    paths = {
        (kind, name): args.output / f"{kind}_loss_{name}.{args.format}"
        for kind in kinds
        for name in SPLITS
    }
    for path in paths.values():
        check_replaceable(path, is_figure_of("plot_losses"), "a figure of losses")
    for (kind, name), path in paths.items():
        title, unit = KINDS[kind]
        runs = {label: rows for (of, label), rows in curves.items() if of == kind}
        draw(path, f"{title}, {name}", unit, losses(runs, SPLITS[name]))
        print(path)


def find_curves(models: Path) -> dict[tuple[str, str], list[Row]]:
    """{(kind of model, label): rows of its metrics.csv} of a models folder."""
    curves = {}
    for family, methods in FAMILIES.items():
        for path in sorted((models / family).glob(f"*/{METRICS}")):
            name = path.parent.name
            kind, _, source = (name, "", "") if name in KINDS else name.partition("_")
            if kind in KINDS:
                label = f"{methods}: {source}" if source else methods
                curves[kind, label] = read_metrics(path)
    return curves


def losses(runs: dict[str, list[Row]], split: str) -> dict[str, list[tuple[float, float]]]:
    """{label: [(epoch, loss)]} of one split."""
    return {
        label: [
            (row.epoch, row.value) for row in rows if (row.split, row.metric) == (split, "loss")
        ]
        for label, rows in runs.items()
    }


def draw(path: Path, title: str, unit: str, curves: dict[str, list[tuple[float, float]]]) -> None:
    """One figure: a line per run, with marks where its points are few."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for label, points in curves.items():
        epochs, values = zip(*points, strict=True) if points else ((), ())
        axes.plot(epochs, values, label=label, marker="o" if len(points) < 20 else None, ms=3)
    axes.set(title=title, xlabel="epoch", ylabel=unit)
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path, "plot_losses")


if __name__ == "__main__":
    sys.exit(main())
