"""The notebook runs from top to bottom at tiny size, and names only flags that exist."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "LQVAE_LASS_hybrid.ipynb"


def commands():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = "\n".join(c.source for c in notebook.cells if c.cell_type == "code")
    return re.findall(r"^\s*!\{PY\} -m scripts\.(\w+) (.*)$", code, re.MULTILINE)


def test_it_is_stored_without_output():
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


@pytest.mark.parametrize("script", sorted({name for name, _ in commands()}))
def test_every_flag_exists(script):
    shown = subprocess.run(
        [sys.executable, "-m", f"scripts.{script}", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name, line in commands():
        if name == script:
            for flag in re.findall(r"(--[\w.-]+)", line):
                assert flag in shown, f"scripts.{script} has no {flag}"


@pytest.mark.slow
def test_it_runs_headless_at_tiny_size(tmp_path, monkeypatch):
    from nbclient import NotebookClient

    run = tmp_path / "run_é"
    for name, value in {
        "NOTEBOOK_PRESET": "tiny",
        "NOTEBOOK_RUN": str(run),
        "NOTEBOOK_TRACKS": "6",
        "NOTEBOOK_CHUNKS": "2",
        "NOTEBOOK_COUNTS": "2",
        "OMP_NUM_THREADS": "2",
        "WANDB_MODE": "disabled",
    }.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    printed = "".join(
        output.get("text", "")
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
    assert "error:" not in printed, printed
    assert (run / "results.json").is_file() and (run / "report.html").is_file()
    assert len(list((run / "separated" / "mixture").glob("*.wav"))) == 2
