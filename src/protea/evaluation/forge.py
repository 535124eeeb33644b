"""A warm interpreter from which fits are forked, so that none pays again for importing torch.

    python -m protea.evaluation.forge

reads one JSON line a job, {"arguments": [...], "log": path}, and writes {"pid": n} when it runs and {"status": s,
"peak_kb": k} when it has ended.

Each job is a process of its own all the same, forked before any thread was started and before any data were read: a
crash, a leak or an out-of-memory kill costs one row of a comparison and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any


class Forge:
    """The caller's side: starts the warm interpreter at once and forks jobs from it, one at a time."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        if hasattr(os, "fork"):
            self.process = subprocess.Popen(
                [sys.executable, "-m", "protea.evaluation.forge"], text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip

    def start(self, arguments: Sequence[str], log: Path) -> Job:
        """Run `protea ARGUMENTS`, its words in `log`; in an interpreter of its own where nothing can be forked."""
        if self.process is None or self.process.poll() is not None:
            return Job(log, arguments, None)
        return Job(log, arguments, self.process)

    def close(self) -> None:
        """End the warm interpreter; it ends by itself when this process does."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            self.process.wait(10)


class Job:
    """One running command: `poll` gives None, or (exit status, negative for a signal; peak memory in MB or None)."""

    def __init__(self, log: Path, arguments: Sequence[str], forge: subprocess.Popen[str] | None) -> None:
        self.forge, self.ended = forge, None
        self.words: IO[str] | None = None
        if forge is None:
            self.words = open(log, "w", encoding="utf-8")  # noqa: SIM115 (closed when the job ends)
            self.child = subprocess.Popen(
                [sys.executable, "-m", "protea.cli", *arguments],
                stdin=subprocess.DEVNULL, stdout=self.words, stderr=self.words,
            )  # fmt: skip
            self.pid = self.child.pid
            return
        assert forge.stdin is not None and forge.stdout is not None
        forge.stdin.write(json.dumps({"arguments": list(arguments), "log": str(log)}) + "\n")
        forge.stdin.flush()
        self.pid = int(json.loads(forge.stdout.readline())["pid"])

    def poll(self, seconds: float) -> tuple[int, float | None] | None:
        """Wait so long at most."""
        if self.forge is None:
            try:
                status = self.child.wait(seconds)
            except subprocess.TimeoutExpired:
                return None
            assert self.words is not None
            self.words.close()
            return status, None
        import select

        assert self.forge.stdout is not None
        if not select.select([self.forge.stdout], [], [], seconds)[0]:
            return None
        line = self.forge.stdout.readline()
        if not line:  # the forge itself was killed
            return -int(signal.SIGKILL), None
        told: dict[str, Any] = json.loads(line)
        return int(told["status"]), told["peak_kb"] / 1024

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, getattr(signal, "SIGKILL", signal.SIGTERM))


def _serve() -> None:
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
