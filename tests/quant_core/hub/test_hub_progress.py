"""The progress of a download, and stopping it."""

import inspect
import os
import threading
import time
from types import SimpleNamespace

import hub_server
import huggingface_hub
import pytest
from hub_server import file_of, folder_of
from quantflux.quant_core.hub import HubError, hub_path
from quantflux.quant_core.hub import listing as hub_listing
from quantflux.quant_core.hub.progress import Tally, run_watched
from quantflux.quant_core.identify import FLUX

TRANSFORMER = folder_of(
    {"_class_name": "FluxTransformer2DModel"}, "diffusion_pytorch_model.safetensors", 3, 250_000, "transformer"
)
FOLDER_SIZE = sum(map(len, TRANSFORMER.values()))

needs_bar = pytest.mark.skipif(
    "tqdm_class" not in inspect.signature(huggingface_hub.hf_hub_download).parameters,
    reason="needs a huggingface_hub that takes a bar",
)


@pytest.fixture
def hub(monkeypatch):
    hub_server.forget_this_machines_settings(monkeypatch)
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    with hub_server.running_hub() as running:
        yield running


@pytest.fixture
def fetch(hub, tmp_path):
    def call(hub_repo, progress=None):
        return hub_path(hub_repo, FLUX, progress, endpoint=hub.url, cache_dir=str(tmp_path / "cache"))

    return call


@pytest.fixture(params=["file", "folder"])
def model(request, hub):
    """(repository, bytes in all)"""
    files = {"model.safetensors": file_of(FLUX.marker, size=1_000_000)} if request.param == "file" else TRANSFORMER
    hub.add("owner/name", files)
    return "owner/name", sum(map(len, files.values()))


LOOKING = (0, 1)  # what is told while the repository is looked at


class Cancelling:
    """Raises ``error`` as soon as ``after`` bytes are done, or told to by ``now``."""

    def __init__(self, error: BaseException, after: float = float("inf")):
        self.error = error
        self.after = after
        self.now = threading.Event()
        self.raised_at = 0.0

    def __call__(self, done: int, total: int):
        if done >= self.after or self.now.is_set():
            self.raised_at = time.monotonic()
            raise self.error


@needs_bar
@pytest.mark.parametrize("lists_sizes", [True, False])
def test_it_moves_steadily_from_nothing_to_all_bytes_of_all_files(hub, fetch, model, lists_sizes):
    hub.lists_sizes = lists_sizes
    hub.pause = 0.05
    repo, size = model
    calls, threads = [], set()

    def progress(done, total):
        calls.append((done, total))
        threads.add(threading.get_ident())

    fetch(repo, progress)
    assert calls[0] == LOOKING
    calls = [call for call in calls if call != LOOKING]
    steps = [done for done, _ in calls]
    assert calls[0] == (0, size) and calls[-1] == (size, size)
    assert len(set(steps)) > 3 and steps == sorted(steps) and {total for _, total in calls} == {size}
    assert threads == {threading.get_ident()}


def test_files_in_the_cache_count_as_done(fetch, model):
    repo, size = model
    fetch(repo)
    calls = []
    fetch(repo, lambda done, total: calls.append((done, total)))
    assert calls[-1] == (size, size)


@pytest.mark.parametrize("kind", [RuntimeError, OSError, KeyboardInterrupt])
def test_what_it_raises_at_once_is_raised_and_nothing_is_downloaded(hub, fetch, tmp_path, model, kind):
    cancel = Cancelling(kind("cancelled"), after=0)
    with pytest.raises(kind) as error:
        fetch(model[0], cancel)
    assert error.value is cancel.error
    assert not [path for path in tmp_path.rglob("*.safetensors") if path.is_file()]


@needs_bar
@pytest.mark.parametrize("kind", [RuntimeError, OSError, KeyboardInterrupt])
def test_what_it_raises_midway_stops_the_traffic_and_a_later_call_completes(hub, fetch, model, kind):
    hub.pause = 0.1
    repo, size = model
    cancel = Cancelling(kind("cancelled"), after=size // 2)
    with pytest.raises(kind) as error:
        fetch(repo, cancel)
    assert error.value is cancel.error
    assert time.monotonic() - cancel.raised_at < 2
    time.sleep(0.3)
    sent = hub.bytes_sent
    time.sleep(0.5)
    assert hub.bytes_sent == sent
    hub.pause = 0
    path = fetch(repo)
    found = [path] if os.path.isfile(path) else [entry.path for entry in os.scandir(path)]
    assert sum(map(os.path.getsize, found)) == size


@needs_bar
def test_files_that_were_complete_are_not_downloaded_again(hub, fetch):
    hub.add("owner/name", TRANSFORMER)
    hub.pause = 0.02
    with pytest.raises(RuntimeError):
        fetch("owner/name", Cancelling(RuntimeError("cancelled"), after=FOLDER_SIZE * 3 // 4))
    hub.requests.clear()
    fetch("owner/name")
    assert hub.downloads() == ["transformer/diffusion_pytorch_model-00003-of-00003.safetensors"]


@needs_bar
def test_a_download_that_waits_for_the_network_can_be_stopped(hub, fetch, model):
    hub.stall_after = 1 << 18
    repo, _ = model
    cancel = Cancelling(RuntimeError("cancelled"))
    threading.Timer(0.7, cancel.now.set).start()
    with pytest.raises(RuntimeError, match="cancelled"):
        fetch(repo, cancel)
    assert time.monotonic() - cancel.raised_at < 2
    hub.resumed.set()
    assert os.path.exists(fetch(repo, lambda done, total: None))


def test_looking_at_a_repository_that_does_not_answer_can_be_stopped(hub, fetch, model):
    hub.on_request = lambda path: hub.resumed.wait()
    repo, _ = model
    cancel = Cancelling(RuntimeError("cancelled"))
    threading.Timer(0.3, cancel.now.set).start()
    with pytest.raises(RuntimeError, match="cancelled"):
        fetch(repo, cancel)
    assert time.monotonic() - cancel.raised_at < 2
    hub.resumed.set()
    assert os.path.exists(fetch(repo, lambda done, total: None))


def test_a_failure_is_told_as_without_progress(hub, fetch):
    hub.add("owner/name", TRANSFORMER)
    last = "transformer/diffusion_pytorch_model-00003-of-00003.safetensors"
    hub.refused = {last: 404}
    for progress in (None, lambda done, total: None):
        with pytest.raises(HubError, match=f"^owner/name: {last} could not be downloaded"):
            fetch("owner/name", progress)


def test_a_library_that_takes_no_bar_is_told_of_between_files(hub, fetch, monkeypatch):
    def older(repo_id, filename, *, revision, endpoint, cache_dir):
        return huggingface_hub.hf_hub_download(
            repo_id, filename, revision=revision, endpoint=endpoint, cache_dir=cache_dir
        )

    monkeypatch.setattr(hub_listing, "hf_hub_download", older)
    hub.add("owner/name", TRANSFORMER)
    with pytest.raises(RuntimeError, match="cancelled"):
        fetch("owner/name", Cancelling(RuntimeError("cancelled"), after=FOLDER_SIZE // 4))
    assert not any(name.endswith("3-of-00003.safetensors") for name in hub.downloads())
    calls = []
    fetch("owner/name", lambda done, total: calls.append((done, total)))
    assert calls[0] == LOOKING
    calls = [call for call in calls if call != LOOKING]
    # config.json, the index and three shards
    assert len(calls) == 6 and calls == sorted(calls)
    assert calls[0] == (0, FOLDER_SIZE) and calls[-1] == (FOLDER_SIZE, FOLDER_SIZE)


def test_the_xet_librarys_reports_from_its_own_thread_count_and_never_raise_there():
    reporting = pytest.importorskip("huggingface_hub.utils._xet_progress_reporting")
    tally = Tally(300)
    tally.finish_file(100)
    counts, raised = [], []

    def report(reporter):
        for written, received in ((0, 40), (60, 90), (200, 250)):
            state = SimpleNamespace(
                total_bytes=200,
                total_bytes_completed=written,
                total_bytes_completion_rate=1.0,
                total_transfer_bytes_completed=received,
                total_transfer_bytes_completion_rate=1.0,
            )
            try:
                reporter.update_progress(state)
            except BaseException as error:
                raised.append(error)
            counts.append(tally.done)
            tally.stop()

    with reporting.XetDownloadProgressReporter(
        reconstruction_desc="", total=200, log_level=20, tqdm_class=tally.bar()
    ) as reporter:
        thread = threading.Thread(target=report, args=(reporter,))
        thread.start()
        thread.join()
    assert counts == [140, 190, 300] and raised == []


def test_a_download_that_does_not_end_by_itself_is_left_behind_within_two_seconds():
    release = threading.Event()
    cancel = Cancelling(RuntimeError("cancelled"))
    threading.Timer(0.3, cancel.now.set).start()
    with pytest.raises(RuntimeError, match="cancelled"):
        run_watched(release.wait, Tally(1), cancel)
    assert time.monotonic() - cancel.raised_at < 2
    release.set()
