"""compare-runs: one table and one page of existing runs."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import ConfigError
from pipeline.storage.address import check_path
from stages.console import cli_errors, counted, run_command


def compare_runs(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    out: Annotated[Path, typer.Option(help="Folder that gets index.html, table.md and table.json.")],
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Compared runs",
) -> None:
    """Compare runs: the settings that differ, scores with their spread over seeds, and what training cost.

    Runs that differ only in train.seed make one line. Scores are those that evaluate-student has added to the
    runs.
    """
    with cli_errors(lambda: "run the same command again"):
        if len(runs) < 2:
            raise ConfigError("compare-runs needs at least two runs: give the folder of each")
        for option, path in (("--out", out), *(("run", run) for run in runs)):
            check_path(option, path)
        if out.exists() and not out.is_dir():
            raise ConfigError(f"--out {str(out)!r} is a file: give a folder")
        if twice := [str(run) for run in runs if [each.resolve() for each in runs].count(run.resolve()) > 1]:
            raise ConfigError(f"run {twice[0]!r} is given twice: give each run once")
        from pipeline.report.compared import Comparison, lines_of, read_compared, remarks_on_runs
        from pipeline.report.comparison import write_comparison

        found = [read_compared(run) for run in runs]
        comparison = Comparison(title, lines_of(found), remarks_on_runs(found))
        page = write_comparison(out, comparison, counted(len(found), "run"))
        typer.echo((out / "table.md").read_text(encoding="utf-8"), nl=False)
        typer.echo(f"page: {page}")


main = partial(run_command, compare_runs)


if __name__ == "__main__":
    main()
