"""`shadowserve capacity`: what a pool can do, and the sampler that finds it out."""

import typer

from shadowserve_cli import capacity_model, capacity_sample

application = typer.Typer(no_args_is_help=True)


@application.callback()
def capacity() -> None:
    """Learn from metrics what a pool can do, and how many replicas a load needs."""


COMMANDS = (
    capacity_model.fit,
    capacity_model.plan,
    capacity_model.predict,
    capacity_sample.sample,
    capacity_sample.simulate,
    capacity_sample.worker,
)
for command in COMMANDS:
    application.command()(command)
