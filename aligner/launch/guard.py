"""Ends a session whose launch script is gone, from its first moment on: `python guard.py SESSION`, with a pipe as standard input.

Ranks notice by themselves that they are orphans, but only once they have imported what they need. This process imports
nothing: it waits for the other end of the pipe to be closed, and a line in the pipe says that all went well.
"""

import os
import signal
import sys
import time

PATIENCE = 10.0  # seconds between the request to end and the end

if __name__ == "__main__":
    session = int(sys.argv[1])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it outlives who is meant by them
    if not os.read(0, 1):
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(session, number)
            except ProcessLookupError:
                break
            time.sleep(PATIENCE)
