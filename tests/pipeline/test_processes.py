"""Two processes agree on errors and wait for each other."""

import os
import signal
import socket
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch.distributed as dist
from image_files import write_random_images

from pipeline import network_choice
from pipeline.commands.embed import embed
from pipeline.commands.folds import run_folds
from pipeline.commands.inputs import load_data
from pipeline.commands.run import run
from pipeline.context import RunContext
from pipeline.failures import failure_of_another_rank, is_lost_process, report_failure
from pipeline.network_choice import choose_network
from pipeline.processes import (
    any_rank,
    assert_equal_across_ranks,
    main_process_first,
    main_process_only,
)
from stages.errors import PipelineError, SettingsError
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings

QUIET = RunContext(device="cpu", threads=1, quiet=True)


def run_rank(rank: int, port: int, folder: Path) -> None:
    """Run all checks in one of two processes, since starting processes takes seconds."""
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
    os.environ["WORLD_SIZE"] = "2"
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", str(port)
    QUIET.start()
    check_errors(rank)
    check_network_choice(rank)
    check_failure_reports(rank)
    check_different_states(rank, folder)
    check_decoding(rank, folder)
    check_waiting(rank)


def check_errors(rank: int) -> None:
    """Check that an error of any rank is raised on all ranks."""
    for failing in (0, 1):

        def fail(failing: int = failing) -> None:
            if rank == failing:
                raise SettingsError("dim", 0, "out of range")

        with pytest.raises(SettingsError) as raised:
            main_process_first(fail)
        assert raised.value.field == "dim" and str(raised.value) == "dim 0: out of range"
    with pytest.raises(ZeroDivisionError if rank == 0 else PipelineError, match="division by zero"):
        main_process_only(lambda: 1 / 0)
    with pytest.raises(PipelineError, match=r"^images: .*process 0: a.*process 1: b.*copy"):
        assert_equal_across_ranks("images", "ab"[rank], "copy them")
    assert_equal_across_ranks("images", "a", "copy them")


def check_network_choice(rank: int) -> None:
    """Check that machines with other packages do not train different networks."""
    photos = np.zeros((4, 72, 72, 3), np.uint8)
    photos[0, 0, 0, 0] = 1  # not grey
    chosen = choose_network(photos, ReadSettings(), EmbedSettings(), QUIET)
    assert chosen.settings.network == network_choice.TRUNK
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr(network_choice, "PACKAGES", ("no_such_package",))
        with pytest.raises(PipelineError, match=r"process 1: conv.*install the same packages"):
            choose_network(photos, ReadSettings(), EmbedSettings(), QUIET)


def check_failure_reports(rank: int) -> None:
    """Check that a rank reads why another one stops."""
    assert failure_of_another_rank() is None
    any_rank(True)  # a barrier
    if rank == 1:
        report_failure("no space left for caf\udce9.png")
    any_rank(True)
    assert failure_of_another_rank() == "no space left for caf\\udce9.png"


def check_different_states(rank: int, folder: Path) -> None:
    """Check that all ranks stop if only one has a training state to resume from."""
    out = folder / f"machine-{rank}" / "embedding.safetensors"
    state = SimpleNamespace(step=20, steps=100) if rank == 0 else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.commands.embed.load_saved_state", lambda *_, **__: (state, []))
        patch.setattr("pipeline.commands.embed.train_embedding", lambda *_, **__: pytest.fail())
        settings = EmbedSettings(images_per_class=4)
        with pytest.raises(PipelineError, match=r"embedding.state: .*0: step 20.*1: step 0"):
            embed("digits", ReadSettings(), settings, out=out, context=QUIET, resume=True)


def check_decoding(rank: int, folder: Path) -> None:
    """Check that only the main process of a machine decodes."""
    context = RunContext(quiet=True, cache=folder / "cache")
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr("pipeline.data.decoding_pool.decode_files", lambda *_, **__: 1 / 0)
        data = load_data(str(folder / "photos"), ReadSettings(), context)
    assert len(data.origin.images) == 12


def check_waiting(rank: int) -> None:
    """Check that a wait for the main process has no time limit, and ends if that process dies."""
    dist.distributed_c10d._set_pg_timeout(timedelta(milliseconds=200))
    main_process_only(lambda: time.sleep(0.6))
    with pytest.raises(RuntimeError) as lost:
        main_process_only(lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert rank == 1 and is_lost_process(lost.value), lost.value
    assert failure_of_another_rank() is None  # the store was that of the main process


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills a process")
def test_two_processes(warm_processes, tmp_path):
    for name in ("a", "b"):
        write_random_images(tmp_path / "photos" / name, 6)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        warm_processes.Process(target=run_rank, args=(rank, port, tmp_path)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [-signal.SIGKILL, 0]


@pytest.mark.parametrize("command", ["embed", "run", "run_folds"])
def test_process_group_exists_before_the_source_is_read(command, monkeypatch, tmp_path):
    """Otherwise every process decodes all images and prints all notes."""

    class Started(Exception):
        pass

    def start(_: RunContext) -> None:
        raise Started

    monkeypatch.setattr(RunContext, "start", start)
    source, out = str(tmp_path / "missing"), tmp_path / "out"
    settings = (ReadSettings(), EmbedSettings(), ClassifySettings())
    checkpoints = {"embedding": tmp_path / "e", "classifier": tmp_path / "c"}
    with pytest.raises(Started):
        if command == "embed":
            embed(source, *settings[:2], out=out, context=QUIET)
        elif command == "run":
            run(source, *settings, out=out, context=QUIET, **checkpoints)
        else:
            run_folds(source, *settings, folds=3, out=out, context=QUIET)
