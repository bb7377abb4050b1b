"""The command line: `hf-longctx`, also `python -m hf_longctx`. One file a command; each is a plain function.

A user's mistake ends in one sentence on stderr and exit code 2, never a traceback.
"""

from __future__ import annotations

import logging
import signal
import sys


def main() -> None:
    """Run the command line."""
    import typer

    from hf_longctx.cli.convert import convert
    from hf_longctx.cli.cost import cost
    from hf_longctx.cli.describe import describe
    from hf_longctx.cli.distill import distill
    from hf_longctx.cli.effective import effective
    from hf_longctx.cli.env import env
    from hf_longctx.cli.eval import eval_
    from hf_longctx.cli.extend import extend
    from hf_longctx.cli.models import models
    from hf_longctx.cli.needle import needle
    from hf_longctx.cli.patterns import patterns
    from hf_longctx.cli.plan import plan
    from hf_longctx.cli.report import report
    from hf_longctx.cli.rope import rope
    from hf_longctx.cli.tasks import tasks
    from hf_longctx.cli.wall import wall

    app = typer.Typer(
        name="hf-longctx",
        help="Change how far a Hugging Face model sees, and measure what is left.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for command in (
        needle,
        effective,
        tasks,
        cost,
        wall,
        convert,
        distill,
        extend,
        plan,
        report,
        rope,
        describe,
        patterns,
        models,
        env,
    ):
        app.command()(command)
    app.command("eval")(eval_)
    # Whoever is told to stop, by Ctrl-C or by a scheduler, leaves a valid run behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        app()
    except (ValueError, TypeError, ImportError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
