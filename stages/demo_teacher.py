"""Trains the demo's teacher, a small CLIP on generated pictures, and measures it. Its result is kept in pipeline/demo/teacher."""

from pathlib import Path
from typing import Annotated

import typer

from stages.console import run_command, told_in_one_sentence


def demo_teacher(
    out: Annotated[Path, typer.Option(help="Folder for open_clip_config.json and open_clip_model.safetensors.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 5_000,
    pictures: Annotated[int, typer.Option(min=1, help="Training pictures.")] = 80_000,
    measure: Annotated[bool, typer.Option("--measure", help="Train nothing: measure the CLIP that is in --out.")] = False,
) -> None:
    """Train a small CLIP on generated pictures and their captions, and print its zero-shot accuracy on unseen ones."""
    with told_in_one_sentence():
        from pipeline.demo.clip import ClipRecipe, load_clip, train_clip, zero_shot_accuracy

        recipe = ClipRecipe(steps=steps, pictures=pictures)
        accuracy = zero_shot_accuracy(load_clip(out)) if measure else train_clip(recipe, out, typer.echo)
    typer.echo(f"zero-shot accuracy on 1,000 unseen pictures: {accuracy:.1%}")


def main() -> None:
    """Entry point."""
    run_command(demo_teacher)


if __name__ == "__main__":
    main()
