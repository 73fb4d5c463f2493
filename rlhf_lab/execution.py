"""Execute one notebook in a kernel of its own, and show how it gets on: a bar on a terminal, plain lines in a log."""

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import papermill
import psutil
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from rlhf_lab.errors import NotebookFailed
from rlhf_lab.files import write
from rlhf_lab.notebook_files import as_typed, ipynb, read

# Sockets in a private folder where there are such: TCP ports can be taken by another kernel between choice and use, and
# IPC without a private path makes kernels share theirs.
TRANSPORT = "ipc" if os.name == "posix" else "tcp"
TRAINING = re.compile(r"(training \w+ \(.*\) \.\.\.|waiting for another .+|\w+ \(.*\): done in \d+ s)$")  # checkpoints
# Where ipywidgets is installed, tqdm draws its bars in a kernel as widgets, which nobody could read here.
PLAIN_BARS = "--IPKernelApp.exec_lines=__import__('tqdm.auto').auto.tqdm = __import__('tqdm').tqdm"
BAR = re.compile(r"\s*([\w -]+):\s+(\d+)%\|")  # of tqdm


def execute(
    nb: NotebookNode,
    executed: Path,
    folder: Path,
    parameters: dict[str, object],
    environment: dict[str, str],
    limit_seconds: int,
    root: Path,
) -> float:
    """Execute `nb` in `folder`, with these parameters and additional environment variables, into the file `executed`.

    Returns the most memory that the kernel and its own processes held together, in MB. While it runs, the notebook is
    <name>.running.ipynb. Raises NotebookFailed where a parameter is missing, a cell raises, the
    kernel dies or the limit is over; the message names the cell and, as seen from `root`, the notebook so far.
    """
    running = executed.with_suffix(".running.ipynb")
    nb.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    write(running, ipynb(nb))
    known = papermill.inspect_notebook(running)
    if unknown := sorted(set(parameters) - set(known)):
        raise NotebookFailed(
            f"its cell tagged 'parameters' has no {' and no '.join(unknown)} (only: {', '.join(known) or 'nothing'})."
        )
    deadline = time.monotonic() + limit_seconds
    memory = _Memory()
    cells = sum(cell.cell_type == "code" for cell in nb.cells) + 1  # that of the parameters, which papermill adds
    try:
        with _progress(executed.stem, cells) as view, _kernels(environment | view.environment, memory) as manager:

            def begin(cell: NotebookNode) -> int:
                view.next_cell()
                return max(1, int(deadline - time.monotonic()))

            papermill.execute_notebook(
                running,
                running,
                parameters=parameters,
                progress_bar=False,
                kernel_manager_class=manager,
                timeout_func=begin,
                resources={"metadata": {"path": str(folder)}},  # cwd=, but for this kernel alone
                stderr_file=view,
            )
    except PapermillExecutionError as error:
        reason = f"{error.ename}: {error.evalue}"
        raise NotebookFailed(_failure(running, root, error.exec_count, error.source, reason)) from None
    except (CellTimeoutError, DeadKernelError) as error:
        stuck = isinstance(error, CellTimeoutError)
        reason = f"the limit of {limit_seconds} s (book.toml) is over" if stuck else "its kernel died"
        raise NotebookFailed(_failure(running, root, *_last_started(running), reason)) from None
    except RuntimeError as error:  # of nbclient, before the first cell
        raise NotebookFailed(f"its kernel did not start: {error}") from None
    write(executed, ipynb(_without_bars(read(running))))
    running.unlink()
    return memory.peak_mb


@contextmanager
def _kernels(environment: dict[str, str], memory: "_Memory") -> Iterator[type]:
    """A class of kernels that run this very Python, with some more environment variables."""
    with tempfile.TemporaryDirectory(prefix="nb-", ignore_cleanup_errors=True) as private:

        class Manager(AsyncKernelManager):
            def __init__(self, **settings):
                if TRANSPORT == "ipc":
                    settings |= {"transport": "ipc", "ip": str(Path(private) / "s")}
                super().__init__(connection_file=str(Path(private) / "kernel.json"), **settings)
                self._kernel_spec = KernelSpec(
                    argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", PLAIN_BARS],
                    display_name="Python 3",
                    language="python",
                    env=environment,
                )

            async def _async_launch_kernel(self, kernel_cmd, **settings):
                # What matters of it arrives as messages, see _Progress; the raw stream would say it all twice.
                await super()._async_launch_kernel(kernel_cmd, stderr=subprocess.DEVNULL, **settings)
                threading.Thread(target=memory.watch, args=(self.provisioner.pid,), daemon=True).start()

        yield Manager


class _Memory:
    """The most memory that a process and its descendants held together."""

    peak_mb = 0.0

    def watch(self, pid: int) -> None:
        """Look twice a second, until the process has ended."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            while process.status() != psutil.STATUS_ZOMBIE:
                family = [process, *process.children(recursive=True)]
                self.peak_mb = max(self.peak_mb, sum(map(_held, family)) / 1e6)
                time.sleep(0.5)


def _held(process: psutil.Process) -> int:
    """Bytes; of what several processes share, libraries for example, each has a part where the system tells (Linux)."""
    with suppress(psutil.Error):  # it has ended meanwhile
        return process.memory_full_info().pss if psutil.LINUX else process.memory_info().rss
    return 0


class _Progress:
    """Takes what a kernel writes to stderr: says what it trains, and shows on a terminal how far it has come."""

    def __init__(self, bar: tqdm):
        self.bar, self.line = bar, ""
        # Nobody watches the bars of a kernel that writes to a log; on a terminal one a second will do.
        self.environment = {"TQDM_DISABLE": "1"} if bar.disable else {"TQDM_MININTERVAL": "1"}

    def next_cell(self) -> None:
        self.bar.set_postfix_str("", refresh=False)
        self.bar.update()

    def write(self, text: str) -> None:
        *lines, self.line = re.split(r"[\r\n]", self.line + text)  # a line may come in pieces, and behind a bar
        for line in lines:
            if said := TRAINING.search(line):
                say(f"    {said[1]}")
        if bars := list(filter(None, map(BAR.match, [*lines, self.line]))):
            self.bar.set_postfix_str(f"{bars[-1][1]} {bars[-1][2]} %")

    def flush(self) -> None:
        pass


@contextmanager
def _progress(name: str, cells: int) -> Iterator[_Progress]:
    layout = "{desc}: cell {n_fmt} of {total_fmt} |{bar:20}| {elapsed}{postfix}"
    with tqdm(desc=name, total=cells, bar_format=layout, leave=False, disable=not sys.stderr.isatty()) as bar:
        yield _Progress(bar)


def _without_bars(nb: NotebookNode) -> NotebookNode:
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                kept = filter(str.strip, map(_without_bar, re.split(r"[\r\n]", output.text)))
                output.text = "".join(f"{line}\n" for line in kept)
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr" or output.text]
    return nb


def _without_bar(line: str) -> str:
    said = TRAINING.search(line)
    return said[1] if said else "" if BAR.match(line) else line


def _last_started(running: Path) -> tuple[int, str]:
    """(number in brackets, source) of the code cell that was running when the kernel was lost."""
    started = [cell for cell in read(running).cells if cell.metadata.get("papermill", {}).get("start_time")]
    code = [cell.source for cell in started if cell.cell_type == "code"]
    return len(code), code[-1]


def _failure(running: Path, root: Path, number: int, source: str, reason: str) -> str:
    lines = "".join(f"    {line}\n" for line in source.splitlines())
    return f"cell [{number}] failed: {reason}\n{lines}The run so far: {as_typed(running, root)}"


def say(line: str) -> None:
    """Print a line, above the bars where there are some."""
    with tqdm.external_write_mode():
        print(line, flush=True)
