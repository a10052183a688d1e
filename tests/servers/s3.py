"""An S3 server: moto, which checks signatures' keys as far as asked, knows ranges, If-Match, listings and ACLs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.servers.process import ServerProcess
from tests.servers.web import s3_environment


class S3Server(ServerProcess):
    """An empty S3, started."""

    def __init__(self) -> None:
        super().__init__([sys.executable, "-m", "tests.servers.moto_server"])

    @property
    def url(self) -> str:
        """Its endpoint."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What S3's clients take from the environment to use it."""
        return s3_environment(self.url)

    def client(self) -> Any:
        """Return a boto3 client of it; the caller closes it."""
        import boto3

        given = self.environment
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name=given["AWS_REGION"],
            aws_access_key_id=given["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=given["AWS_SECRET_ACCESS_KEY"],
        )

    def fill(self, bucket: str, folder: Path, *, is_public: bool = False) -> None:
        """Make a bucket of the files in `folder`."""
        client = self.client()
        try:
            client.create_bucket(Bucket=bucket)
            for path in files_of(folder):
                client.put_object(
                    Bucket=bucket,
                    Key=str(path.relative_to(folder)),
                    Body=path.read_bytes(),
                    **({"ACL": "public-read"} if is_public else {}),
                )
        finally:
            client.close()

    def put(self, bucket: str, key: str, content: bytes) -> None:
        """Write or replace an object."""
        client = self.client()
        try:
            client.put_object(Bucket=bucket, Key=key, Body=content)
        finally:
            client.close()


def files_of(folder: Path) -> Iterable[Path]:
    """Return all files below `folder`."""
    for parent, _, names in os.walk(folder):
        for name in names:
            yield Path(parent) / name
