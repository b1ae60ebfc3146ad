"""A headless Chromium that a test drives: it types, drags and reads, by the DevTools protocol over a pipe."""

import json
import os
import subprocess
import threading


class Page:
    """One page. Use it as a context manager."""

    def __init__(self, browser, folder):
        # The browser reads commands from its file 3 and writes answers to its file 4, each ended by a NUL.
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        command += [f"--user-data-dir={folder}", "--host-resolver-rules=MAP * ~NOTFOUND"]
        theirs, ours = os.pipe(), os.pipe()
        script = f'exec "$@" 3<&{theirs[0]} 4>&{ours[1]}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", *command], pass_fds=(theirs[0], ours[1]), stderr=subprocess.DEVNULL
        )
        os.close(theirs[0])
        os.close(ours[1])
        self._write, self._read = os.fdopen(theirs[1], "wb"), os.fdopen(ours[0], "rb")
        self._number, self._session, self._rest = 0, None, b""
        self.events = []
        self._watch_again()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)

    def _watch_again(self):
        self._watch = threading.Timer(300, self._process.kill)  # then a read meets the end of the pipe
        self._watch.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._watch.cancel()
        self._write.close()
        self._read.close()
        self._process.kill()
        self._process.wait()

    def _next(self):
        while b"\0" not in self._rest:
            more = self._read.read1(1 << 16)
            assert more, "the browser has ended"
            self._rest += more
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, **parameters):
        """Call a method of the protocol, and return its result; events go to `events`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        self._write.flush()
        while (answer := self._next()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, address):
        """Open an address, and wait until it is loaded."""
        self._load("about:blank")  # else another anchor on the same page would load nothing
        self._load(address)

    def _load(self, address):
        self.events.clear()
        document = self.call("Page.navigate", url=address)["loaderId"]  # events of the one before may still come
        while not any(
            event.get("method") == "Page.lifecycleEvent"
            and (event["params"]["loaderId"], event["params"]["name"]) == (document, "load")
            for event in self.events
        ):
            self.events.append(self._next())

    def reset(self):
        """Forget what one test has set, for the next."""
        self._watch.cancel()
        self._watch_again()
        self._load("about:blank")
        self.call("Emulation.clearDeviceMetricsOverride")
        self.call("Emulation.setEmulatedMedia", features=[])

    def run(self, expression):
        """Return the value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def press(self, key):
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def complaints(self):
        """What the page logged or refused, and dialogs that it opened."""
        kinds = (
            "Runtime.exceptionThrown",
            "Log.entryAdded",
            "Runtime.consoleAPICalled",
            "Page.javascriptDialogOpening",
        )
        return [event for event in self.events if event.get("method") in kinds]
