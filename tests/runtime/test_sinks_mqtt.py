"""Results to a real Mosquitto: delivery, status, last will, restarts, buffer, passwords, TLS."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from edgeferry_runtime.errors import DependencyError, SinkError, UsageError
from edgeferry_runtime.results import Result
from edgeferry_runtime.sinks import open_sink
from edgeferry_runtime.sinks.mqtt import MqttSink
from edgeferry_runtime.sinks.outbox import Outbox
from edgeferry_runtime.sources.base import Frame
from edgeferry_runtime.tasks.classify import Classification, ClassScore

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
needs_broker = pytest.mark.skipif(MOSQUITTO is None, reason="no mosquitto: apt install mosquitto")
FRAME = Frame(np.zeros((2, 2, 3), np.uint8), "bgr", 0, 0)
ANSWER = Classification((ClassScore(3, "cat", 0.75),))


def result(number):
    return Result(number, "", "pets-01234567", "int8", "fake", 0, 1e9, 2500.0, (1.0,) * 6, 0, ANSWER)


def wait_until(true, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


class Broker:
    """A Mosquitto of our own on a free port, with more lines for its configuration."""

    def __init__(self, folder, *lines, anonymous=True):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.config = folder / "mosquitto.conf"
        access = f"allow_anonymous {str(anonymous).lower()}"
        user = "user root\n" if os.name == "posix" and os.geteuid() == 0 else ""
        self.config.write_text(f"{user}listener {self.port} 127.0.0.1\n{access}\n" + "\n".join(lines) + "\n")
        self.process = None
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [MOSQUITTO, "-c", str(self.config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

        def answers():
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        wait_until(answers)

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture
def broker(tmp_path):
    broker = Broker(tmp_path)
    yield broker
    broker.stop()


@pytest.fixture
def lasting_broker(tmp_path):
    """One that keeps what it has over a restart."""
    broker = Broker(tmp_path, "persistence true", f"persistence_location {tmp_path}/", "max_queued_messages 0")
    yield broker
    broker.stop()


class Listener:
    """A subscriber that keeps (topic, parsed payload, retained) in the order they came.

    With a name the broker keeps what comes while it is away, also over a restart.
    """

    def __init__(self, port, name=""):
        mqtt = pytest.importorskip("paho.mqtt.client", reason="no paho-mqtt")
        self.got = []
        self.ready = threading.Event()
        versions = getattr(mqtt, "CallbackAPIVersion", None)  # not before paho-mqtt 2
        version = (versions.VERSION2,) if versions else ()
        self.client = mqtt.Client(*version, client_id=name, clean_session=not name)
        self.client.on_connect = lambda client, *_: client.subscribe("#", qos=2)
        self.client.on_subscribe = lambda *_: self.ready.set()
        self.client.on_message = lambda _c, _d, m: self.got.append((m.topic, json.loads(m.payload), m.retain))
        self.client.reconnect_delay_set(1, 1)
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert self.ready.wait(30)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.disconnect()
        self.client.loop_stop()

    def frames(self, topic="cam/door"):
        return [payload["frame"] for name, payload, _ in self.got if name == topic]

    def states(self, topic="cam/door/status"):
        return [payload["state"] for name, payload, _ in self.got if name == topic]


@needs_broker
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_results_and_status_arrive_in_order(broker, qos):
    with Listener(broker.port) as listener:
        with open_sink(f"mqtt://127.0.0.1:{broker.port}/cam/door?qos={qos}&client_id=door") as sink:
            for number in range(200):
                sink.write(FRAME, result(number))
            wait_until(lambda: len(listener.frames()) == 200)
            assert sink.state() == {"connected": True, "waiting": 0, "dropped": 0}
            assert listener.states() == ["online"]
        wait_until(lambda: listener.states() == ["online", "offline"])
        assert listener.frames() == list(range(200))
        assert listener.got[1][1]["classes"] == [{"index": 3, "label": "cat", "score": 0.75}]
        sink.close()
    assert sink.state() == {"connected": False, "waiting": 0, "dropped": 0}


@needs_broker
def test_close_delivers_what_waits(broker):
    with Listener(broker.port) as listener:
        with open_sink(f"mqtt://127.0.0.1:{broker.port}/cam/door?qos=1") as sink:
            wait_until(lambda: sink.state()["connected"])
            for number in range(500):
                sink.write(FRAME, result(number))
        wait_until(lambda: listener.states()[-1:] == ["offline"])
        assert listener.frames() == list(range(500))


@needs_broker
def test_retained_results_and_another_status_topic(broker):
    uri = f"mqtt://127.0.0.1:{broker.port}/cam/front%20door?qos=1&retain=1&status_topic=health/door"
    with open_sink(uri) as sink:
        sink.write(FRAME, result(7))
        wait_until(lambda: sink.state()["connected"])
    with Listener(broker.port) as listener:
        wait_until(lambda: len(listener.got) == 2)
        by_topic = {topic: (payload, retained) for topic, payload, retained in listener.got}
        assert by_topic["health/door"] == ({"state": "offline"}, True)
        assert by_topic["cam/front door"][0]["frame"] == 7
        assert by_topic["cam/front door"][1]


@needs_broker
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_killed_process_leaves_its_last_will(broker):
    code = (
        "import sys, time; from edgeferry_runtime.sinks import open_sink\n"
        "sink = open_sink(sys.argv[1]); time.sleep(60)"
    )
    with Listener(broker.port) as listener:
        process = subprocess.Popen([sys.executable, "-c", code, f"mqtt://127.0.0.1:{broker.port}/cam/door"])
        wait_until(lambda: listener.states() == ["online"])
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        wait_until(lambda: listener.states() == ["online", "offline"])
    with Listener(broker.port) as late:
        wait_until(lambda: late.got == [("cam/door/status", {"state": "offline"}, True)])


@needs_broker
def test_a_broker_that_restarts_gets_all_in_order(lasting_broker):
    broker = lasting_broker
    with open_sink(f"mqtt://127.0.0.1:{broker.port}/cam/door?qos=1") as sink:
        with Listener(broker.port, "reader") as listener:
            for number in range(10):
                sink.write(FRAME, result(number))
            wait_until(lambda: len(listener.frames()) == 10)
        broker.stop()
        wait_until(lambda: not sink.state()["connected"])
        for number in range(10, 60):
            sink.write(FRAME, result(number))
        assert sink.state()["waiting"] >= 49  # one may be in the sender's hand
        broker.start()
        with Listener(broker.port, "reader") as listener:
            wait_until(lambda: listener.frames()[-1:] == [59])
            # Those whose receipt the broker did not hear of before it ended come again, as qos=1 promises.
            assert [number for number in listener.frames() if number >= 10] == list(range(10, 60))
        assert sink.state() == {"connected": True, "waiting": 0, "dropped": 0}


@needs_broker
@pytest.mark.skipif(os.name != "posix", reason="SIGSTOP")
def test_a_broker_that_restarts_under_load_loses_nothing(lasting_broker):
    """It goes while results are under way: each arrives at least once, first arrivals in order."""
    broker = lasting_broker
    stop = threading.Event()
    count = 0

    def feed():
        nonlocal count
        while not stop.is_set():
            if sink.state()["waiting"] < 450:
                sink.write(FRAME, result(count))
                count += 1

    with open_sink(f"mqtt://127.0.0.1:{broker.port}/cam/door?qos=1&buffer=500") as sink:
        feeder = threading.Thread(target=feed, daemon=True)
        with Listener(broker.port, "reader") as listener:
            feeder.start()
            wait_until(lambda: len(listener.frames()) > 300)
            os.kill(broker.process.pid, signal.SIGSTOP)  # so that what is under way stays so
            wait_until(lambda: sink.state()["waiting"] >= 450)
            stop.set()
            feeder.join(30)
            os.kill(broker.process.pid, signal.SIGCONT)
            broker.stop()
        broker.start()
        with Listener(broker.port, "reader") as late:
            wait_until(lambda: late.frames()[-1:] == [count - 1])
            arrived = listener.frames() + late.frames()
        assert list(dict.fromkeys(arrived)) == list(range(count))
        assert sink.state() == {"connected": True, "waiting": 0, "dropped": 0}


@needs_broker
@pytest.mark.skipif(os.name != "posix", reason="SIGSTOP")
def test_what_was_under_way_comes_before_what_is_newer(lasting_broker, monkeypatch):
    broker, on_connect = lasting_broker, MqttSink._on_connect

    def slow(*arguments):
        """paho sends again what was under way when this returns: leave newer results time to be first."""
        on_connect(*arguments)
        time.sleep(0.5)

    monkeypatch.setattr(MqttSink, "_on_connect", slow)
    with Listener(broker.port, "reader"):
        """From here on the broker keeps what comes for it; on disk, once it was stopped."""
    broker.stop()
    broker.start()
    with open_sink(f"mqtt://127.0.0.1:{broker.port}/cam/door?qos=1") as sink:
        wait_until(lambda: sink.state()["connected"])
        time.sleep(0.6)
        os.kill(broker.process.pid, signal.SIGSTOP)
        for number in range(8):
            sink.write(FRAME, result(number))
        wait_until(lambda: sink.state()["waiting"] == 0)
        broker.process.kill()  # it has read none of them
        broker.process.wait(30)
        wait_until(lambda: not sink.state()["connected"])
        for number in range(8, 30):
            sink.write(FRAME, result(number))
        broker.start()
        with Listener(broker.port, "reader") as listener:
            wait_until(lambda: len(listener.frames()) >= 30)
            assert listener.frames() == list(range(30))


@needs_broker
def test_a_broker_that_is_away_at_start(lasting_broker, caplog, monkeypatch):
    # Results go when the broker is there, not when some pause is over.
    monkeypatch.setattr(
        "edgeferry_runtime.sinks.mqtt.Outbox", functools.partial(Outbox, first_s=600, longest_s=600)
    )
    broker = lasting_broker
    with Listener(broker.port, "reader"):
        """From here on the broker keeps what comes for it."""
    broker.stop()
    with open_sink(f"mqtt://127.0.0.1:{broker.port}/cam/door?qos=1&buffer=5") as sink:
        wait_until(lambda: "error" in sink.state())
        for number in range(20):
            sink.write(FRAME, result(number))
        wait_until(lambda: sink.state()["waiting"] == 5)
        state = sink.state()
        assert not state["connected"]
        assert state["dropped"] == 15
        assert "refused" in state["error"]
        broker.start()
        with Listener(broker.port, "reader") as listener:
            wait_until(lambda: len(listener.frames()) == 5)
            assert listener.frames() == [15, 16, 17, 18, 19]
        assert sink.state() == {"connected": True, "waiting": 0, "dropped": 15}
    named = [record.message for record in caplog.records if "cannot be reached" in record.message]
    assert len(named) == 1
    assert "is connected again" in caplog.text


def test_without_a_broker_closing_is_quick_and_counts():
    pytest.importorskip("paho.mqtt.client", reason="no paho-mqtt")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # bound, not listening: refused
        sink = open_sink(f"mqtt://127.0.0.1:{probe.getsockname()[1]}/cam?buffer=3")
        for number in range(5):
            sink.write(FRAME, result(number))
        started = time.monotonic()
        sink.close()
        assert time.monotonic() - started < 10
    wait_until(lambda: sink.state()["dropped"] == 5)


@needs_broker
def test_user_and_password_from_a_file(tmp_path, caplog):
    tool = shutil.which("mosquitto_passwd")
    if tool is None:
        pytest.skip("no mosquitto_passwd")
    subprocess.run([tool, "-b", "-c", str(tmp_path / "users"), "board", "s3cret"], check=True)
    broker = Broker(tmp_path, f"password_file {tmp_path / 'users'}", anonymous=False)
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("s3cret\n")
    wrong.write_text("guess")
    address = f"mqtt://127.0.0.1:{broker.port}/cam/door?username=board&password_file="
    with open_sink(f"{address}{wrong}") as sink:
        wait_until(lambda: "error" in sink.state())
        wait_until(lambda: "refuses the connection" in sink.state()["error"])
        assert not sink.state()["connected"]
    with open_sink(f"{address}{right}") as sink:
        wait_until(lambda: sink.state()["connected"])
    broker.stop()
    assert re.search("refuses the connection: .*not authori[sz]ed", caplog.text, re.IGNORECASE)
    assert "guess" not in caplog.text


@needs_broker
# paho leaves the socket of a failed handshake to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_tls_with_a_certificate_of_our_own(tmp_path):
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(cert), "-days",
         "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True,
    )  # fmt: skip
    broker = Broker(tmp_path, f"certfile {cert}", f"keyfile {key}")
    try:
        with open_sink(f"mqtts://127.0.0.1:{broker.port}/cam/door?ca={cert}") as sink:
            wait_until(lambda: sink.state()["connected"])
        with open_sink(f"mqtt://127.0.0.1:{broker.port}/cam/door?tls=1") as sink:  # nobody knows that certificate
            wait_until(lambda: "error" in sink.state())
            assert "CERTIFICATE_VERIFY_FAILED" in sink.state()["error"]
    finally:
        broker.stop()


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("mqtt://", "no host"),
        ("mqtt:///topic", "no host"),
        ("mqtt:host/topic", "no host"),
        ("mqtt://host:0/topic", "no port from 1"),
        ("mqtt://host:70000/topic", "no port from 1"),
        ("mqtt://" + "a" * 70 + "/topic", "no host"),
        ("mqtt://host", "the MQTT topic is ''"),
        ("mqtt://host/", "the MQTT topic is ''"),
        ("mqtt://host/a/%23", "the MQTT topic is 'a/#'"),
        ("mqtt://host/a/+/b", "the MQTT topic"),
        ("mqtt://host/a#b", "the MQTT topic"),
        ("mqtt://host/a?status_topic=x/%2B", "the MQTT topic"),
        ("mqtt://host/a?qos=3", "qos must be at most 2"),
        ("mqtt://host/a?retain=yes", "retain must be 1 or 0"),
        ("mqtt://host/a?buffer=0", "buffer must be at least 1"),
        ("mqtt://host/a?ca=x.pem", "ca means nothing without TLS"),
        ("mqtt://host/a?password_file=x", "password_file needs username"),
        ("mqtt://host/a?pasword_file=x", "did you mean 'password_file'"),
        ("mqtr://host/a", "did you mean 'mqtt'"),
    ],
)
def test_addresses_that_are_wrong(uri, words):
    with pytest.raises(UsageError, match=words):
        open_sink(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "mqtt://board:hunter2@host/topic",
        "mqtts://board:hunter2@host:1883/topic?qos=1",
        "mqtt://board:hunter2/x@host/topic",
        "mqtt://board:hunter2?x@host/topic",
        "mqtt://host/topic?password=hunter2",
        "mqtt://host/topic?hunter2",
        "mqqt://board:hunter2@host/topic",
    ],
)
def test_no_message_repeats_a_password(uri):
    with pytest.raises(UsageError) as caught:
        open_sink(uri)
    assert "hunter2" not in str(caught.value)


def test_the_remedy_for_a_password_in_the_address():
    with pytest.raises(UsageError, match="holds a user or a password") as caught:
        open_sink("mqtt://board:hunter2@host/topic")
    assert "password_file=FILE" in caught.value.remedy


def test_files_that_cannot_be_read(tmp_path):
    pytest.importorskip("paho.mqtt.client", reason="no paho-mqtt")
    for name, data in (("empty", b""), ("two", b"one\ntwo\n"), ("binary", b"\xff\xfe")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SinkError, match="password") as caught:
            open_sink(f"mqtt://host/a?username=me&password_file={tmp_path / name}")
        assert "one" not in str(caught.value).replace("none", "")
    with pytest.raises(SinkError, match="No such file"):
        open_sink(f"mqtt://host/a?username=me&password_file={tmp_path / 'absent'}")
    for name in ("absent", "two"):
        with pytest.raises(SinkError, match="no certificates can be read"):
            open_sink(f"mqtts://host/a?ca={tmp_path / name}")


def test_without_paho(monkeypatch):
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    with pytest.raises(DependencyError, match="needs paho-mqtt") as caught:
        open_sink("mqtt://host/topic")
    assert "pip install paho-mqtt" in caught.value.remedy
