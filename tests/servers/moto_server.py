"""The program behind `s3.S3Server`: moto until the standard input ends. Prints its port."""

from __future__ import annotations

import logging
import os
import signal
import sys


def main() -> None:
    from moto.server import ThreadedMotoServer

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    print(server.get_host_and_port()[1], flush=True)
    sys.stdin.buffer.read()
    os._exit(0)  # its threads serve connections that are kept open


if __name__ == "__main__":
    main()
