"""The copied connector stands alone: an engine's image has nothing else of ours."""

import os
import subprocess
import sys
from pathlib import Path

import shadowserve_dataplane
from shadowserve_dataplane.sidecar.connector_copy import copied_to

_IMPORT_ALL = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
package = Path(sys.argv[1]) / "shadowserve_dataplane"
engine_only = {"torch", "triton", "vllm", "numba"}
for path in sorted(package.rglob("*.py")):
    name = ".".join(path.relative_to(sys.argv[1]).with_suffix("").parts).removesuffix(".__init__")
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] not in engine_only:
            raise
ours = {m.__file__ for n, m in sys.modules.items() if n.startswith("shadowserve") and m.__file__}
assert all(f.startswith(sys.argv[1]) for f in ours), ours
print(len(ours))
"""


def test_the_copy_imports_nothing_of_ours_besides(tmp_path: Path) -> None:
    files = copied_to(tmp_path)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_ALL, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    assert 10 < int(done.stdout) <= files


def test_copying_again_replaces_what_is_there(tmp_path: Path) -> None:
    first = copied_to(tmp_path)
    stale = tmp_path / "shadowserve_dataplane" / "chunks.py"
    stale.write_text("broken")
    assert copied_to(tmp_path) == first
    assert stale.read_text() == (Path(shadowserve_dataplane.__file__).parent / "chunks.py").read_text()
