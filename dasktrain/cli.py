"""``dasktrain ...``, also as ``dask train ...``."""

from importlib import import_module

import click

import dasktrain


class Lazy(click.Group):
    """Has its commands loaded when it is asked for them.

    ``dask`` loads this module whatever it is to do: a scheduler and a nanny would take seconds, and memory, for torch.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        import_module("dasktrain.commands")
        return super().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, if there is one of this name."""
        import_module("dasktrain.commands")
        return super().get_command(ctx, cmd_name)


@click.group(name="train", cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(dasktrain.__version__, prog_name="dasktrain")
def main() -> None:
    """Train torch models on a Dask cluster: the same bits on any number of workers.

    Exit codes: 0 done; 1 the run failed, or the check found what will make one fail; 2 bad input; 130 interrupted or
    stopped, with the result so far.
    """
