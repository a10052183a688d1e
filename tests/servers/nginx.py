"""nginx over TLS with a certificate of the test's own, where it is installed (`apt install nginx-light`)."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.servers.process import ServerProcess, free_port

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
OPENSSL = shutil.which("openssl")
MISSING = "nginx or openssl is not installed" if NGINX is None or OPENSSL is None else ""
_CONFIG = """
daemon off; master_process off; pid {home}/pid; error_log {home}/error.log;
events {{ worker_connections 512; }}
http {{
    access_log {home}/access.log;
    client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {home}/server.pem; ssl_certificate_key {home}/server.key;
        root {folder};
    }}
}}
"""


class Nginx(ServerProcess):
    """nginx serving `folder` at `https://localhost:PORT`.

    Attributes:
        ca_path: the certificate that signed its own, for `SSL_CERT_FILE`.
    """

    def __init__(self, folder: Path) -> None:
        assert NGINX is not None
        self._home = tempfile.TemporaryDirectory(prefix="test-nginx-")
        home = Path(self._home.name)
        self.ca_path = home / "ca.pem"
        try:
            make_certificates(home)
            port = free_port()
            (home / "nginx.conf").write_text(_CONFIG.format(home=home, port=port, folder=folder))
            command = [NGINX, "-c", str(home / "nginx.conf"), "-p", str(home), "-e", str(home / "error.log")]
            super().__init__(command, port, is_told=False)
        except BaseException:
            self._home.cleanup()
            raise

    @property
    def url(self) -> str:
        """Where it is, without a slash at the end."""
        return f"https://localhost:{self.port}"

    def requests(self) -> list[str]:
        """Return the lines of its log."""
        return (Path(self._home.name) / "access.log").read_text().splitlines()

    def close(self) -> None:
        """End it and remove its folder; may be called twice."""
        super().close()
        self._home.cleanup()


def make_certificates(home: Path) -> None:
    """Write `ca.pem`, and `server.pem` and `server.key` for localhost, which it signed."""

    def openssl(*words: str) -> None:
        assert OPENSSL is not None
        subprocess.run([OPENSSL, *words], cwd=home, check=True, capture_output=True)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    ca = "-addext", "keyUsage=critical,keyCertSign,cRLSign"  # Python 3.13 asks for it
    openssl(*new, "-x509", "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=prefetchd tests", *ca)
    openssl(*new, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost")
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n"
    (home / "names").write_text(f"{names}subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
    openssl("x509", "-req", "-in", "server.csr", *signed, "-out", "server.pem")
