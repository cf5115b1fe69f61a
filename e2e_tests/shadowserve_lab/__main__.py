"""`python3 -m shadowserve_lab`: set up, run something in an environment, show the demo."""

import argparse
import os
import sys

from shadowserve_lab.home import REPOSITORY, default_home
from shadowserve_lab.setup import RIVALS, Setup, SetupError, bench_parts, parts


def main(arguments: list[str]) -> int:
    """Do what the command line says; returns the exit code."""
    options = _parser().parse_args(arguments)
    home = default_home()
    setup = Setup(home)
    try:
        with home.locked():
            known = {**parts(setup), **bench_parts(setup)}
            wanted = {name: known[name] for name in options.parts} if options.parts else parts(setup)
            made = {name: str(make()) for name, make in wanted.items()}
    except SetupError as error:
        home.say(f"set-up stopped: {error}")
        return 3
    except KeyboardInterrupt:
        home.say("interrupted; the next set-up goes on from here")
        return 130
    if options.action == "setup":
        home.say(f"all there, in {home.root}. Next: make demo-local, or make test")
        return 0
    return _become([f"{made['dev']}/bin/python" if part == "python" else part for part in options.command], made)


def _become(command: list[str], made: dict[str, str]) -> int:
    """Replace this process by `command`, with the environments in its environment."""
    paths = [str(REPOSITORY / folder) for folder in ("crds", "dataplane_image", "e2e_tests", "operator")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])]),
        **{f"SHADOWSERVE_LAB_{name.upper()}": path for name, path in made.items()},
    }
    if "dev" in made:
        environment["PATH"] = f"{made['dev']}/bin{os.pathsep}{os.environ.get('PATH', '')}"
    sys.stderr.flush()
    os.execvpe(command[0], command, environment)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="shadowserve_lab", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    setup = actions.add_parser("setup", help="make the environments, the model, and a store server")
    names = f"dev, engine, model, store; for benchmarks kv, {', '.join(RIVALS)}"
    setup.add_argument("parts", nargs="*", help=f"{names}; without, what is not only for benchmarks")
    run = actions.add_parser("run", help="run a command with parts set up")
    run.add_argument("--with", dest="parts", action="append", default=[], help=names)
    run.add_argument("command", nargs=argparse.REMAINDER)
    return parser


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
