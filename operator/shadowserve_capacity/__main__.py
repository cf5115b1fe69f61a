"""`shadowserve-capacity worker`: a worker on another machine, with nothing but numpy and the standard library."""

import argparse
import os
import sys
from pathlib import Path


def address(text: str) -> tuple[str, int]:
    """Parse HOST:PORT; raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isdigit() and int(port) < 65536):
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="shadowserve-capacity", description=__doc__)
    worker = parser.add_subparsers(required=True).add_parser("worker", help="help a `capacity sample --listen`")
    worker.add_argument("--connect", required=True, type=address, metavar="HOST:PORT", help="where the master listens")
    worker.add_argument("--secret-file", required=True, type=Path, help="file with the secret that the master has too")
    worker.add_argument("--patience", type=float, default=30.0, metavar="SECONDS", help="how long to try (30)")
    arguments = parser.parse_args()
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")  # before numpy is loaded: processes are the parallelism
    from shadowserve_capacity.errors import CapacityError
    from shadowserve_capacity.remote import serve_master

    try:
        serve_master(arguments.connect, arguments.secret_file.read_bytes().strip(), arguments.patience)
    except (CapacityError, OSError) as error:
        sys.exit(f"shadowserve-capacity: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
