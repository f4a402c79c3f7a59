"""The command group. A new subcommand is one module and one line here."""

from __future__ import annotations

from piecewise_core.interpreter import leave_directory

if __name__ == "__main__":
    leave_directory()  # before anything else is imported

import click

from piecewise_core.cli.ahead import compile_
from piecewise_core.cli.bench import bench
from piecewise_core.cli.bisection import bisect
from piecewise_core.cli.bundle import bundle
from piecewise_core.cli.cache import cache
from piecewise_core.cli.conformance import conformance
from piecewise_core.cli.doctor import doctor
from piecewise_core.cli.new_compiler import new_compiler
from piecewise_core.cli.new_platform import new_platform
from piecewise_core.cli.planning import plan
from piecewise_core.cli.signing import keygen, sign, sign_bundle, verify, verify_bundle

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="piecewise-core", prog_name="piecewise")
def main() -> None:
    """Run PyTorch models whose input sizes vary at static-graph speed."""


main.add_command(bench)
main.add_command(bisect)
main.add_command(bundle)
main.add_command(cache)
main.add_command(compile_)
main.add_command(conformance)
main.add_command(doctor)
main.add_command(new_compiler)
main.add_command(new_platform)
main.add_command(plan)
for _command in (keygen, sign, verify):
    cache.add_command(_command)
for _command in (sign_bundle, verify_bundle):
    bundle.add_command(_command)

if __name__ == "__main__":
    main(prog_name="piecewise")
