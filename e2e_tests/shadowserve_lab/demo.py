"""`make demo-local`: one long prompt to engine A, then to engine B, which answers it from what A computed."""

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console

from shadowserve_dataplane.chunks import CHUNK_TOKENS
from shadowserve_lab.engine_client import Ask, EngineClient
from shadowserve_lab.home import REPOSITORY, say
from shadowserve_lab.processes import ProcessFailed, wait_until
from shadowserve_lab.report import Figures, Hit, render
from shadowserve_lab.stack import Environments, Stack, StackOptions

ANSWER_TOKENS = 24
MAX_PROMPT_TOKENS = 3584
QUESTION = "\n\nQuestion: how does the text above go on after these words?\n\n"
_HINT = slice(100, 196)
"""Tokens of the text that follow the question: what comes next stands in the text, so the answer hangs on the cache."""
EQUAL_ON_DEMO_TEXT = ("High", "Balanced")
_STORED_SECONDS = 30.0


class PromptError(ValueError):
    """The prompt file cannot be used; the message says why."""


@dataclass(frozen=True)
class Prompts:
    """`whole` is `chunks` chunks and a question; `partial` is longer, and shares only the first half of the chunks."""

    whole: list[int]
    partial: list[int]
    chunks: int


def make_prompts(tokens: Sequence[int], question: Sequence[int]) -> Prompts:
    """Cut the prompts from a text's tokens. Raises `PromptError` when the text is too short."""
    chunks = min(len(tokens), MAX_PROMPT_TOKENS) // CHUNK_TOKENS
    if chunks < 2:
        raise PromptError(f"the file has {len(tokens)} tokens; two chunks of {CHUNK_TOKENS} are the least")
    text = list(tokens[: chunks * CHUNK_TOKENS])
    shared = chunks // 2 * CHUNK_TOKENS
    asked = [*question, *text[_HINT]]
    continued = [*text[:shared], *text[shared + CHUNK_TOKENS // 2 :], *text[shared : shared + CHUNK_TOKENS]]
    return Prompts([*text, *asked], [*continued, *asked], chunks)


def run(stack: Stack, text: str) -> Figures:
    """Send the prompts and return what was seen."""
    a, b = stack.engines["a"].client, stack.engines["b"].client
    prompts = make_prompts(a.tokenize(text), a.tokenize(QUESTION))
    warm_up([a, b], len(prompts.partial))
    say(f"prompt of {len(prompts.whole)} tokens: cold at A")
    cold = a.complete(Ask(prompts.whole, ANSWER_TOKENS))
    local = a.complete(Ask(prompts.whole, ANSWER_TOKENS))
    _wait_stored(stack, prompts.chunks)
    say("the same prompt at B, then one that shares only its first half")
    wire = _wire_bytes(stack)
    remote, external = b.counted(Ask(prompts.whole, ANSWER_TOKENS))
    wire = _wire_bytes(stack) - wire
    b.reset_prefix_cache()  # else B finds the shared half in its own memory
    partial, partial_external = b.counted(Ask(prompts.partial, ANSWER_TOKENS))
    reference = a.complete(Ask(prompts.partial, ANSWER_TOKENS))
    return Figures(
        prompt_tokens=len(prompts.whole),
        tier=stack.options.tier,
        cold=cold.ttft,
        local_hit=local.ttft,
        remote_hit=Hit(remote.ttft, external, remote.tokens == cold.tokens),
        partial_hit=Hit(partial.ttft, partial_external, partial.tokens == reference.tokens),
        wire_bytes=wire,
        kv_bytes=external * _kv_bytes_per_token(stack),
        answer=remote.text,
    )


def warm_up(engines: Sequence[EngineClient], longest: int) -> None:
    """Let both engines meet short and long shapes first, so that first-use costs do not blur the figures."""
    say("warming the engines up")
    for engine in engines:
        for length in (32, 300, longest):
            unrelated = [1000 + (7 * i) % 20000 for i in range(length)]
            engine.complete(Ask(unrelated, 2))
            engine.complete(Ask(unrelated, 2))


def _wait_stored(stack: Stack, chunks: int) -> None:
    """Wait until nothing more is on its way from A to the store."""
    wait_until(lambda: stack.store.size() >= chunks, _STORED_SECONDS, "A's chunks to be in the store")
    sidecar = stack.sidecars["a"]
    seen = -1.0
    while seen != (now := sidecar.metrics().total("shadowserve_stored_bytes_total")):
        seen = now
        time.sleep(0.5)


def _wire_bytes(stack: Stack) -> int:
    return round(stack.sidecars["b"].metrics().total("shadowserve_fetched_bytes_total", kind="encoded"))


def _kv_bytes_per_token(stack: Stack) -> int:
    config = json.loads((stack.model / "config.json").read_text())
    item = 4 if stack.options.dtype == "float32" else 2
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head * item)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='make demo-local ARGS="..."', description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    parser.add_argument(
        "--tier",
        choices=["Lossless", "High", "Balanced", "Compact"],
        default="Balanced",
        help="how chunks are compressed (default Balanced)",
    )
    parser.add_argument("--landing", choices=["Codes", "Values"], default="Codes", help="what lands (default Codes)")
    parser.add_argument("--prompt-file", type=Path, metavar="FILE", help="any text file (default: LICENSE)")
    parser.add_argument("--keep", action="store_true", help="leave it running and print the endpoints")
    return parser.parse_args(arguments)


def _text(file: Path) -> str:
    """Return what is in a file. Raises `PromptError`, also when it is sure to be too short, before anything starts."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise PromptError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PromptError(f"{file}: no UTF-8 text (byte {error.start})") from error
    if (size := file.stat().st_size) < 2 * CHUNK_TOKENS:  # no token is shorter than a byte
        raise PromptError(f"{file}: {size} bytes; two chunks of {CHUNK_TOKENS} tokens are the least")
    return text


def main(arguments: Sequence[str]) -> int:
    """Run the demo; returns the exit code."""
    options = _options(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a shell that runs us in the background has it ignored
        signal.signal(number, _interrupt)
    try:
        text = _text(options.prompt_file or REPOSITORY / "LICENSE")
        if options.json:
            options.json.touch()
    except PromptError as error:
        say(f"--prompt-file: {error}")
        return 2
    except OSError as error:
        say(f"--json: {options.json}: {error.strerror}")
        return 2
    try:
        return _shown(options, text)
    except KeyboardInterrupt:
        say("interrupted; nothing is left running")
        return 130
    except PromptError as error:
        say(f"--prompt-file: {error}")
        return 2
    except (ProcessFailed, OSError) as error:  # an engine that refuses or takes too long is an OSError too
        say(f"the demo failed: {error}")
        return 1


def _shown(options: argparse.Namespace, text: str) -> int:
    """Run, print and write the figures; 1 when they are not what the demo is to show."""
    choice = StackOptions(tier=options.tier, landing=options.landing)
    with Stack(choice, Environments.from_environment(), say) as stack:
        figures = run(stack, text)
        Console().print(render(figures))
        if options.json:
            options.json.write_text(json.dumps(figures.as_json(), indent=2) + "\n")
        exact = options.tier == "Lossless" or (options.tier in EQUAL_ON_DEMO_TEXT and options.prompt_file is None)
        if wrong := figures.disappointment(exact):
            say(wrong)
        if options.keep:
            _keep(stack)
    return 1 if wrong else 0


def _keep(stack: Stack) -> None:
    for name, engine in stack.engines.items():
        say(f"engine {name}: {engine.client.base} (model {engine.client.model})")
    for name, sidecar in stack.sidecars.items():
        say(f"sidecar {name}: {sidecar.socket}, metrics {sidecar.metrics_url}")
    if stack.data_plane is not None:
        say(f"data plane: {stack.data_plane.endpoint}, metrics {stack.data_plane.metrics_url}")
    say(f"store: {stack.store.url}; logs: {stack.folder}")
    say("running until Ctrl-C")
    signal.pause()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
