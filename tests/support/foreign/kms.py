"""AWS KMS as moto plays it, a server that others wrote, in a process of its own."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.foreign.process import free_port, run_program

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",
}
REGION = "eu-central-1"


@contextmanager
def kms_server(log: Path) -> Iterator[str]:
    """The address of the service."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    with run_program(command, log=log, port=port):
        yield f"http://127.0.0.1:{port}"
