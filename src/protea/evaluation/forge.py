"""The caller's side of a warm interpreter from which fits are forked, so that none pays again for importing torch.

Each job is a process of its own all the same, forked before any thread was started and before any data were read: a
crash, a leak or an out-of-memory kill costs one row of a comparison and nothing else. The other side is `cli/forge.py`.
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
    """Starts the warm interpreter and forks jobs from it, one at a time."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def warm(self) -> None:
        """Begin to warm up, in the background."""
        if self.process is None and hasattr(os, "fork"):
            self.process = subprocess.Popen(
                [sys.executable, "-m", "protea.cli.forge"], text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip

    def start(self, arguments: Sequence[str], log: Path) -> Job:
        """Run `protea ARGUMENTS`, its words in `log`; in an interpreter of its own where nothing can be forked."""
        self.warm()
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
