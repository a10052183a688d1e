"""Azure's blobs by azurite, where `PREFETCHD_AZURITE` names its `azurite-blob` (`npm install azurite`)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tests.servers.process import ServerProcess, free_port
from tests.servers.s3 import files_of

AZURITE = os.environ.get("PREFETCHD_AZURITE", "")
MISSING = "" if AZURITE else "PREFETCHD_AZURITE names no azurite-blob"
# What every azurite has, and its documentation says.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class Azurite(ServerProcess):
    """An empty store of blobs, started."""

    def __init__(self) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="test-azurite-")
        port = free_port()
        words = ("--silent", "--skipApiVersionCheck", "--disableTelemetry")
        command = [AZURITE, "--blobPort", str(port), "--location", self._home.name, *words]
        try:
            super().__init__(command, port, is_told=False)
        except BaseException:
            self._home.cleanup()
            raise

    @property
    def url(self) -> str:
        """Its endpoint, with the account."""
        return f"http://127.0.0.1:{self.port}/{ACCOUNT}"

    @property
    def environment(self) -> dict[str, str]:
        """What Azure's clients take from the environment to use it."""
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": self.url,
            "AZURE_ALLOW_HTTP": "true",
        }

    def fill(self, container: str, folder: Path) -> None:
        """Make a container of the files in `folder`."""
        import base64
        import hashlib
        import hmac
        import urllib.request
        from email.utils import formatdate

        import obstore
        from obstore.store import AzureStore

        # obstore makes no containers: one request, signed with the shared key.
        when, version = formatdate(usegmt=True), "2021-08-06"
        path = f"/{ACCOUNT}/{ACCOUNT}/{container}"
        text = f"PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{when}\nx-ms-version:{version}\n{path}\nrestype:container"
        digest = hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()
        headers = {
            "x-ms-date": when,
            "x-ms-version": version,
            "Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}",
        }
        request = urllib.request.Request(f"{self.url}/{container}?restype=container", None, headers, method="PUT")
        urllib.request.urlopen(request, timeout=30).close()
        store = AzureStore(
            container,
            account_name=ACCOUNT,
            account_key=KEY,
            endpoint=self.url,
            client_options={"allow_http": True},
        )
        for each in files_of(folder):
            obstore.put(store, str(each.relative_to(folder)), each.read_bytes())

    def close(self) -> None:
        """End it and remove its folder; may be called twice."""
        super().close()
        self._home.cleanup()
