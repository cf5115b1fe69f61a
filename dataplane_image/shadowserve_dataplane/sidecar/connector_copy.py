"""`shadowserve-copy-connector FOLDER`: puts the connector where an engine's PYTHONPATH finds it.

An init container of every injected pod runs it, so that any stock vLLM image can be used. What is copied is pure
Python and imports nothing of ours besides (an import contract and a test hold that).
"""

import shutil
from pathlib import Path
from typing import Annotated

import typer

import shadowserve_dataplane

_PACKAGE = "shadowserve_dataplane"
_PARTS = ("__init__.py", "chunks.py", "errors.py", "connector")

application = typer.Typer(add_completion=False)


@application.command()
def copy_connector(
    folder: Annotated[Path, typer.Argument(help="Where to; put it on the engine's PYTHONPATH.")],
) -> None:
    """Copy the connector, ready to be imported by vLLM."""
    copied = copied_to(folder)
    typer.echo(f"connector {shadowserve_dataplane.__version__}: {copied} files in {folder}")


def copied_to(folder: Path) -> int:
    """Copy the connector's files under `folder`, replacing older ones; return how many there are."""
    source = Path(shadowserve_dataplane.__file__).parent
    target = folder / _PACKAGE
    target.mkdir(parents=True, exist_ok=True)
    leave_out = shutil.ignore_patterns("__pycache__")
    for part in _PARTS:
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, dirs_exist_ok=True, ignore=leave_out)
        else:
            shutil.copy2(source / part, target / part)
    return sum(1 for _ in target.rglob("*.py"))


def main() -> None:
    """Run the command line."""
    application()


if __name__ == "__main__":
    main()
