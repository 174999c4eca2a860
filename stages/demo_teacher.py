"""Trains the demo's teacher, a small CLIP on generated images, and measures it. Its result is kept in pipeline/demo/teacher."""

from pathlib import Path
from typing import Annotated

import typer

from stages.console import cli_errors, run_command


def demo_teacher(
    out: Annotated[
        Path, typer.Option(help="Folder for open_clip_config.json and open_clip_model.safetensors.")
    ],
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 5_000,
    images: Annotated[int, typer.Option(min=1, help="Training images.")] = 80_000,
    measure: Annotated[
        bool, typer.Option("--measure", help="Train nothing: measure the CLIP that is in --out.")
    ] = False,
) -> None:
    """Train a small CLIP on generated images and their captions, and print its zero-shot accuracy on unseen ones."""
    with cli_errors():
        from pipeline.demo.clip import ClipRecipe, load_clip, train_clip, zero_shot_accuracy

        recipe = ClipRecipe(steps=steps, images=images)
        accuracy = zero_shot_accuracy(load_clip(out)) if measure else train_clip(recipe, out, typer.echo)
    typer.echo(f"zero-shot accuracy on 1,000 unseen images: {accuracy:.1%}")


def main() -> None:
    """Entry point."""
    run_command(demo_teacher)


if __name__ == "__main__":
    main()
