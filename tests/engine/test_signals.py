"""Signals: noted once, then the handlers of before are back."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from kmrcnn.engine.signals import StopSignals

pytestmark = pytest.mark.once


@pytest.mark.parametrize(("number", "error", "code"), [(signal.SIGTERM, SystemExit, 143),
                                                       (signal.SIGINT, KeyboardInterrupt, None),
                                                       (signal.SIGHUP, SystemExit, 129)])
def test_the_first_is_noted_and_a_later_one_is_not_ours(number, error, code, capsys, monkeypatch):
    seen = []
    before = signal.signal(number, lambda *_: seen.append("own"))
    monkeypatch.setattr("kmrcnn.engine.signals._SAME", 1000.0)
    try:
        with pytest.raises(error) as caught, StopSignals() as signals:
            assert signals.received is None
            os.kill(os.getpid(), number)
            assert signals.received == number and not seen
            assert f"{number.name}: stopping behind this step" in capsys.readouterr().out
            os.kill(os.getpid(), number)
            assert not seen and not capsys.readouterr().out  # a batch system's beside a launcher's
            monkeypatch.setattr("kmrcnn.engine.signals._SAME", 0.0)
            os.kill(os.getpid(), number)
            assert seen == ["own"]
            signals.leave()
        assert getattr(caught.value, "code", None) == code
        os.kill(os.getpid(), number)
        assert seen == ["own"] * 2
    finally:
        signal.signal(number, before)


def test_handlers_come_back_and_other_threads_have_none():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
    found = []

    def work():
        with StopSignals():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_one_that_nobody_acted_on_is_not_lost_and_hides_no_error(number, error):
    with pytest.raises(error), StopSignals():
        os.kill(os.getpid(), number)
    with pytest.raises(ZeroDivisionError), StopSignals():
        os.kill(os.getpid(), number)
        raise ZeroDivisionError


def test_one_that_nohup_set_to_be_ignored_is():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_one_is_noted_where_nothing_can_be_printed(monkeypatch):
    class Gone:
        def write(self, text):
            raise BrokenPipeError

        flush = write

    monkeypatch.setattr("sys.stdout", Gone())
    with pytest.raises(KeyboardInterrupt), StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
