"""`make demo-local` as a user runs it: two engines of its own, the figures under the names that scripts rely on."""

import json
import subprocess
import sys
from pathlib import Path

from shadowserve_dataplane.chunks import CHUNK_TOKENS

_SECONDS = 400.0


def test_the_second_engine_answers_from_what_the_first_computed(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "shadowserve_lab.demo", "--json", str(figures)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(figures.read_text())
    chunks = found["remote_hit"]["external_tokens"] // CHUNK_TOKENS
    assert found["prompt_tokens"] >= 2000
    assert chunks >= 7, "every whole chunk of the text"
    assert found["partial_hit"]["external_tokens"] == chunks // 2 * CHUNK_TOKENS, "the half that both prompts share"
    assert found["remote_hit"]["tokens_equal"]
    assert found["partial_hit"]["tokens_equal"]
    assert found["tier"] == "Balanced"
    assert found["kv_bytes"] / found["wire_bytes"] == found["ratio"] > 4
    assert min(found[case]["ttft_seconds"] for case in ("cold", "local_hit", "remote_hit", "partial_hit")) > 0
