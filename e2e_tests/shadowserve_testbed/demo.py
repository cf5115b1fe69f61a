"""`make demo`: a Kubernetes on this machine, a cache, two engines. B answers from what A computed, restored on a card;
then the card's node dies, and nothing happens but that the host restores.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType

from rich.console import Console

from shadowserve_lab.demo import EQUAL_ON_DEMO_TEXT, PromptError
from shadowserve_lab.home import REPOSITORY, default_home, say
from shadowserve_lab.processes import ProcessFailed
from shadowserve_lab.setup import SetupError
from shadowserve_testbed import scenario
from shadowserve_testbed.binaries import BuildError
from shadowserve_testbed.choosing import Choice, chosen, remove_all_beds
from shadowserve_testbed.demo_report import DemoFigures, render, render_goals
from shadowserve_testbed.demo_story import REMOVE_SECONDS, DemoStory
from shadowserve_testbed.errors import TestbedError
from shadowserve_testbed.images.errors import ImageError
from shadowserve_testbed.installation import remove
from shadowserve_testbed.kubectl import KubectlError
from shadowserve_testbed.provider import Provider, Shape
from shadowserve_testbed.providers import PROVIDERS

_FAILURES = (TestbedError, BuildError, ImageError, SetupError, KubectlError, ProcessFailed, OSError)


def main(arguments: Sequence[str]) -> int:
    """Run the demo; returns the exit code."""
    options = _options(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a shell that runs us in the background has it ignored
        signal.signal(number, _interrupt)
    home = default_home()
    try:
        if options.clean:
            remove_all_beds(home)
            say("nothing of the demo is left")
            return 0
        provider, choice = chosen(home, options.provider)
        say(f"the test bed is made by {choice.name}: {choice.reason}")
        return _shown(options, provider, choice)
    except KeyboardInterrupt:
        say("interrupted; make demo-clean removes what is left")
        return 130
    except PromptError as error:
        say(f"--prompt-file: {error}")
        return 2
    except _FAILURES as error:
        say(f"the demo failed: {error}")
        say("to look around: shadowserve testbed status, shadowserve testbed kubectl; make demo-clean removes it all")
        return 1


def _shown(options: argparse.Namespace, provider: Provider, choice: Choice) -> int:
    """Run, print and write the figures; 1 when they are not what the demo is to show."""
    try:
        text = (options.prompt_file or REPOSITORY / "LICENSE").read_text()
        if options.json:
            options.json.touch()
    except (OSError, UnicodeDecodeError) as error:
        say(f"--prompt-file or --json: {error}")
        return 2
    kubectl = provider.up(Shape())
    figures = _run(provider, choice, text)
    for table in (render(figures), render_goals(figures.goals())):
        Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(figures.as_json(), indent=2) + "\n")
    exact = options.prompt_file is None and scenario.TIER in EQUAL_ON_DEMO_TEXT
    wrong = figures.disappointment(exact)
    if wrong:
        say(wrong)
    if options.keep:
        say("it is left running. To look further:")
        print(f"export KUBECONFIG={kubectl.kubeconfig}\nkubectl get shadowserve,pods -o wide\nshadowserve status")
    else:
        say("removing cache and pool; the test bed stays (make demo-clean removes it). To look further: ARGS=--keep")
        remove(kubectl, scenario.NAMESPACE, REMOVE_SECONDS, say)
    return 1 if wrong else 0


def _run(provider: Provider, choice: Choice, text: str) -> DemoFigures:
    story = DemoStory(provider, default_home(), choice.name)
    story.install()
    ready = story.apply_and_wait(datetime.now().astimezone())
    with story.talking():
        prompts, cold, remote = story.remote_hit(text)
        lost = story.lose_card(prompts, cold)
    return DemoFigures(
        provider=choice.name,
        prompt_tokens=len(prompts.whole),
        ready_seconds=ready.seconds,
        engine_seconds=ready.engine_seconds,
        timeline=ready.timeline,
        cold_ttft=cold.ttft,
        remote=remote,
        lost=lost,
    )


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='make demo ARGS="..."', description=__doc__)
    parser.add_argument(
        "--provider",
        choices=sorted(PROVIDERS),
        default=os.environ.get("PROVIDER", ""),
        help="what makes the test bed (default: PROVIDER, else kind if Docker runs, else native)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write timeline and figures here as well")
    parser.add_argument("--prompt-file", type=Path, metavar="FILE", help="any text file (default: LICENSE)")
    parser.add_argument("--keep", action="store_true", help="leave cache and engines running, to look further")
    parser.add_argument("--clean", action="store_true", help="remove the test bed with all that runs on it, and end")
    return parser.parse_args(arguments)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
