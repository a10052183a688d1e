"""Put into the daemon's interpreter as `sitecustomize` by the `sabotage` fixture: makes decoding go wrong on purpose.

Works in the zygote, and so in the readers that it forks, and nowhere else. A file whose last bytes are
`\\nSABOTAGE word` (padded to 32 bytes) does what the word says when it is decoded:

- `segv`: the decoder crashes; `exit`: it ends the process with status 0; `kill`: SIGKILL, as the kernel's killer does;
- `once-X`, `leave-X`: SIGSEGV, or an exit with status 0, the first time only;
- `gate-X`: the first reader that comes here writes its pid to the file `gate-X` and waits for the file `go`; others
  pass by.
"""

import os
import sys

MARK = b"\nSABOTAGE "
MARK_BYTES = 32

if "prefetchd.zygote" in sys.orig_argv:
    import signal
    import time

    import cv2

    _imdecode = cv2.imdecode
    _folder = os.environ["SABOTAGE_FOLDER"]

    def _first(word):
        try:
            fd = os.open(f"{_folder}/{word}.taken", os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return False
        os.close(fd)
        return True

    def _saboteur(encoded, flags):
        tail = bytes(encoded[-MARK_BYTES:])
        if tail.startswith(MARK):
            word = tail[len(MARK) :].rstrip().decode()
            if word == "segv" or (word.startswith("once-") and _first(word)):
                os.kill(os.getpid(), signal.SIGSEGV)
            elif word == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif word == "exit" or (word.startswith("leave-") and _first(word)):
                os._exit(0)
            elif word.startswith("gate-") and _first(word):
                with open(f"{_folder}/{word}.part", "w") as file:
                    file.write(str(os.getpid()))
                os.rename(f"{_folder}/{word}.part", f"{_folder}/{word}")
                while not os.path.exists(f"{_folder}/go"):
                    time.sleep(0.005)
        return _imdecode(encoded, flags)

    cv2.imdecode = _saboteur
