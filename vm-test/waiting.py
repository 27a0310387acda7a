"""The one vocabulary of waiting: poll a condition, wait for a line of a stream.

Nothing here sleeps for luck: every wait ends with the event, or fails at its deadline and says what it
waited for and what it saw instead. Used by the namespace tests, the Docker tests and the QEMU harness.
"""

import codecs
import os
import re
import select
import time

POLL_SECONDS = 0.01         # between two looks at a condition that cannot wake us


def poll(condition, seconds, what):
    """Call condition() until it is true and return its value; AssertionError naming `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError("waited %g s in vain: %s" % (seconds, what))
        time.sleep(POLL_SECONDS)


class Lines:
    """The lines that a descriptor yields: a pipe, a socket, a pty's master side or a serial console.

    `descriptor` is an integer or anything with fileno(); it is not closed here. Lines end with LF, CR LF or
    CR CR LF (a guest's console over QEMU's). `text` is everything read so far, each line end as one LF.
    wait_for() never gives the same place twice: it goes on behind the last match, so a second "ready" is a new
    one. Not for two threads.
    """

    def __init__(self, descriptor, name="stream"):
        self.descriptor = descriptor
        self.name = name
        self.text = ""
        self.position = 0       # in text: what wait_for() has consumed
        self.ended = False      # end of file seen (a pty's master says EIO instead)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""         # CRs at the end of what was read: a LF may follow

    @property
    def lines(self):
        """The lines read so far; the last may still be incomplete."""
        return self.text.splitlines()

    def read(self, seconds=0.0):
        """Read once, as soon as something comes within `seconds`. False at the end of the stream."""
        if not self.ended and select.select([self.descriptor], [], [], max(0.0, seconds))[0]:
            descriptor = self.descriptor if isinstance(self.descriptor, int) else self.descriptor.fileno()
            try:
                data = os.read(descriptor, 65536)
            except BlockingIOError:
                return True
            except OSError:
                data = b""
            self.ended = not data
            self._take(data)
        return not self.ended

    def _take(self, data):
        """Append `data` to text, line ends made equal; what may be half a line end or character is held back."""
        new = self._held + self._decoder.decode(data, final=self.ended)
        self._held = "" if self.ended else new[len(new.rstrip("\r")):]
        self.text += re.sub("\r+\n", "\n", new[:len(new) - len(self._held)])

    def find(self, pattern, partial=False):
        """The next match of `pattern` (re.MULTILINE) behind the last one, in what was read; None if there is none.

        Only complete lines count, else "pid (\\d+)" would take half a number; partial=True is for prompts.
        """
        end = len(self.text) if partial or self.ended else self.text.rfind("\n") + 1
        match = re.compile(pattern, re.MULTILINE).search(self.text, self.position, max(end, self.position))
        if match:
            self.position = match.end()
        return match

    def wait_for(self, pattern, seconds, partial=False):
        """Read until `pattern` matches behind the last match, see find(); return the match.

        AssertionError with everything read when `seconds` are over or the stream has ended.
        """
        deadline = time.monotonic() + seconds
        while True:
            match = self.find(pattern, partial)
            if match:
                return match
            left = deadline - time.monotonic()
            if self.ended or left <= 0:
                raise AssertionError(self.failure(pattern, seconds))
            self.read(left)

    def wait_end(self, seconds):
        """Read until the stream ends; return all its text. AssertionError when `seconds` are over first."""
        deadline = time.monotonic() + seconds
        while self.read(deadline - time.monotonic()):
            if time.monotonic() >= deadline:
                raise AssertionError(self.failure("end of stream", seconds))
        return self.text

    def drain(self):
        """Read all that is there now, without waiting; return all the text so far."""
        while not self.ended and select.select([self.descriptor], [], [], 0)[0]:
            self.read()
        return self.text

    def failure(self, pattern, seconds):
        """What a failed wait says: what was expected, why it ended, and everything that was read."""
        why = "ended before" if self.ended else "no match within %g s for" % seconds
        return "%s: %s %r; read from it (%d characters, searched from %d on):\n%s" % (
            self.name, why, pattern, len(self.text), self.position, self.text + self._held or "(nothing)")
