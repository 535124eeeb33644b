"""A warm interpreter from which `compare` forks its fits; see `evaluation/forge.py`, which starts it.

    python -m protea.cli.forge

reads one JSON line a job, {"arguments": [...], "log": path}, and writes {"pid": n} when it runs and {"status": s,
"peak_kb": k} when it has ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence


def _serve() -> None:
    """Fork one job after another until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the fit, which keeps its checkpoint
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import protea.api
    import protea.cli.fit
    import protea.data.open
    import protea.training.runs  # noqa: F401

    replies = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _run(job["arguments"], job["log"])
        print(json.dumps({"pid": pid}), file=replies, flush=True)
        _, status, usage = os.wait4(pid, 0)
        peak_kb = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status), "peak_kb": peak_kb}), file=replies, flush=True)


def _run(arguments: Sequence[str], log: str) -> None:
    """In the forked process: the command as a user types it, then the end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    words = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for place, stream in ((0, nothing), (1, words), (2, words)):
        os.dup2(stream, place)
    sys.argv = ["protea", *arguments]
    status = 1
    try:
        from protea.cli import main

        main()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        status = 130
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
