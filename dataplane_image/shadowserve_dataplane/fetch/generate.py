"""Generates the gRPC code from `dataplane.proto`: `python -m shadowserve_dataplane.fetch.generate [--check]`."""

import filecmp
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

_HERE = Path(__file__).parent
_GENERATED = _HERE / "generated"
_NAMES = ("dataplane_pb2.py", "dataplane_pb2.pyi", "dataplane_pb2_grpc.py")


def generate(folder: Path) -> None:
    """Write the generated modules to `folder`. Raises `RuntimeError` when protoc refuses."""
    arguments = ["protoc", f"-I{_HERE}", f"--python_out={folder}", f"--pyi_out={folder}", f"--grpc_python_out={folder}"]
    if protoc.main([*arguments, str(_HERE / "dataplane.proto")]):
        raise RuntimeError("protoc failed, see above")
    stub = folder / "dataplane_pb2_grpc.py"
    absolute = "import shadowserve_dataplane.fetch.generated.dataplane_pb2 as dataplane__pb2"
    stub.write_text(stub.read_text().replace("import dataplane_pb2 as dataplane__pb2", absolute))


def main() -> int:
    """Write the code, or with `--check` say whether it is what the proto makes."""
    if "--check" not in sys.argv[1:]:
        generate(_GENERATED)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        stale = [name for name in _NAMES if not filecmp.cmp(Path(folder) / name, _GENERATED / name, shallow=False)]
    if stale:
        sys.stderr.write(f"{', '.join(stale)} do not match dataplane.proto: run `make generate`\n")
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
