"""Put into the daemon's interpreter as `sitecustomize` by the `sabotage` fixture: makes decoding go wrong on purpose.

Works in the fork server, and so in the readers that it forks, and nowhere else. A file whose last bytes are
`\\nSABOTAGE word` (padded to 32 bytes) does what the word says when it is decoded:

- `segv`: the decoder crashes; `exit`: it ends the process with status 0; `kill`: SIGKILL, as the kernel's killer does;
- `once-X`, `leave-X`: SIGSEGV, or an exit with status 0, the first time only;
- `raise-X`, `memory-X`, `close-X`: an exception of no known kind, a `MemoryError`, or all descriptors closed, the first
  time only;
- `gate-X`: the first reader that comes here writes its pid to the file `gate-X` and waits for the file `go`; others
  pass by;
- `stand`: every reader that comes here writes its pid to the file `stand-PID` and waits for the file `go`.

With `SABOTAGE_READ_S` every read of a file takes so much longer, and the first read of the file that `SABOTAGE_HANG`
names never ends. With `SABOTAGE_MEET=16 050.jpg` no read of a file of that name, or of one that sorts behind it, ends
before so many of them are under way in one reader; then the file `met` is there. Nor do they wait for ever.
"""

import os
import sys

MARK = b"\nSABOTAGE "
MARK_BYTES = 32

if "prefetchd.reader.fork_server" in sys.orig_argv:
    import signal
    import threading
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

    def _tell(name):
        with open(f"{_folder}/{name}.part", "w") as file:
            file.write(str(os.getpid()))
        os.rename(f"{_folder}/{name}.part", f"{_folder}/{name}")

    def _wait_at(name):
        _tell(name)
        while not os.path.exists(f"{_folder}/go"):
            time.sleep(0.005)

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
            elif word.startswith("raise-") and _first(word):
                raise RuntimeError("sabotage")
            elif word.startswith("memory-") and _first(word):
                raise MemoryError("sabotage")
            elif word.startswith("close-") and _first(word):
                os.closerange(3, 4096)
            elif word.startswith("gate-") and _first(word):
                if os.environ.get("SABOTAGE_UNKILLABLE"):
                    _tell("stuck")
                _wait_at(word)
            elif word == "stand":
                _wait_at(f"stand-{os.getpid()}")
        return _imdecode(encoded, flags)

    cv2.imdecode = _saboteur

    if os.environ.get("SABOTAGE_READ_S"):
        from prefetchd.data import files

        _read_file = files.read_file
        _n_to_meet, _, _first_to_meet = os.environ.get("SABOTAGE_MEET", "0 ~").partition(" ")
        _meeting = threading.Barrier(
            int(_n_to_meet) or 1, action=lambda: os.close(os.open(f"{_folder}/met", os.O_CREAT)), timeout=4
        )

        def _meet():
            if not os.path.exists(f"{_folder}/met"):
                try:
                    _meeting.wait()
                except threading.BrokenBarrierError:
                    _meeting.reset()  # fewer were under way: on a busy machine the daemon may hand out less at a time

        def _read_late(path, buffer, **options):
            time.sleep(float(os.environ["SABOTAGE_READ_S"]))
            if os.path.basename(path) == os.environ.get("SABOTAGE_HANG") and _first("hang"):
                time.sleep(1e6)
            if os.path.basename(path) >= _first_to_meet:
                _meet()
            return _read_file(path, buffer, **options)

        files.read_file = _read_late

    if os.environ.get("SABOTAGE_FORK"):
        # As where the user has no more processes.

        def _no_fork():
            raise BlockingIOError(11, os.strerror(11))

        os.fork = _no_fork

if os.environ.get("SABOTAGE_CLOCK"):
    # The wall clock jumps by a day, back and forth, at every look.
    import itertools
    import time

    _time, _time_ns, _jumps = time.time, time.time_ns, itertools.cycle((86400, -86400))
    time.time = lambda: _time() + next(_jumps)
    time.time_ns = lambda: _time_ns() + next(_jumps) * 10**9

if os.environ.get("SABOTAGE_UNKILLABLE") and "serve" in sys.orig_argv:
    # Stands in for a process that the kernel does not let go: the one at the gate, which says so before it is there.
    import signal

    from prefetchd.daemon.readers import reader_handle

    reader_handle._STUCK_S = 0.3
    _send = signal.pidfd_send_signal

    def _send_unless_stuck(pidfd, number):
        with open(f"/proc/self/fdinfo/{pidfd}") as file:
            pid = next(line.split()[1] for line in file if line.startswith("Pid:"))
        try:
            with open(os.environ["SABOTAGE_FOLDER"] + "/stuck") as file:
                stuck = file.read()
        except FileNotFoundError:
            stuck = ""
        if number != signal.SIGKILL or stuck != pid:
            _send(pidfd, number)

    signal.pidfd_send_signal = _send_unless_stuck
