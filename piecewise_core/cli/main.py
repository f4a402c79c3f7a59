"""The command group. A new subcommand is one module and one line here."""

from __future__ import annotations

import click

from piecewise_core.cli.doctor import doctor

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="piecewise-core", prog_name="piecewise")
def main() -> None:
    """Run PyTorch models whose input sizes vary at static-graph speed."""


main.add_command(doctor)

if __name__ == "__main__":
    main(prog_name="piecewise")
