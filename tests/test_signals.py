"""Signals that wait while processes are started."""

import os
import signal
import subprocess
import threading

import pytest

from pipeline.base.signals import restore_signals, signals_wait


@pytest.fixture
def alarms():
    came = []
    before = signal.signal(signal.SIGALRM, lambda number, _: came.append(number))
    yield came
    signal.signal(signal.SIGALRM, before)


def test_a_signal_waits_for_the_end_of_the_block_and_is_lost_by_nobody(alarms):
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    with signals_wait():
        signal.raise_signal(signal.SIGALRM)
        assert alarms == []
        with signals_wait():  # within another one
            signal.raise_signal(signal.SIGALRM)
        assert alarms == []
    assert alarms == [signal.SIGALRM] * 2
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == handlers


def test_ctrl_c_is_raised_behind_the_block_and_handlers_come_back_after_any_error():
    handler = signal.getsignal(signal.SIGINT)
    done = []
    with pytest.raises(KeyboardInterrupt), signals_wait():
        signal.raise_signal(signal.SIGINT)
        done.append(True)
    assert done == [True]
    with pytest.raises(ValueError, match="invalid literal"), signals_wait():
        int("")
    assert signal.getsignal(signal.SIGINT) is handler


def test_other_threads_start_processes_as_before():
    codes = []

    def start():
        with signals_wait():
            codes.append(subprocess.run(["true"], check=False).returncode)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert codes == [0]


def test_a_forked_process_gets_its_handlers_back(alarms):
    with signals_wait():
        child = os.fork()
        if not child:
            restore_signals()
            signal.raise_signal(signal.SIGALRM)
            os._exit(len(alarms))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert alarms == []
