"""The notebook: what is stored, its commands, and all of it run headless at tiny size."""

import ast
import html
import json
import os
import re
import shutil
import subprocess
import sys
import time
import types
from importlib import import_module
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from test_count_ranks import needs_mpi

from jukebox_core import audio
from jukebox_core.machine import share_of_cores
from jukebox_core.presets import PRESETS
from scripts import _notebook as helper
from scripts import count_sums, demo, evaluate, separate, train_mask_network
from scripts._training import FirstFlags
from scripts.report.page import SCRIPT, STYLE, document

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "LQVAE_LASS_hybrid.ipynb"
PACKAGES = ("jukebox_core", "lqvae", "lass", "hybrid", "data", "scripts")
TINY = {"PRESET": "tiny", "RUNS": "runs é"}


def read():
    return nbformat.read(NOTEBOOK, as_version=4)


def tagged(notebook, tag):
    return next(c for c in notebook.cells if tag in c.metadata.get("tags", ()))


def commands(sources=("bass", "drums")):
    """[(script, flags)] as they stand in the cells; those of every source, one after the other."""
    code = "\n".join(c.source for c in read().cells if c.cell_type == "code")
    found = re.findall(r"^\s*!(?:python|\{\w+\}) -m scripts\.(\w+) (.*)$", code, re.M)
    return [
        (script, flags.replace("{SOURCE}", source))
        for script, flags in found
        for source in (sources if "{SOURCE}" in flags else sources[:1])
    ]


def inject(notebook, values):
    """Other parameters, in a cell after the first one, as papermill has it."""
    source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    first = notebook.cells.index(tagged(notebook, "parameters"))
    notebook.cells.insert(first + 1, nbformat.v4.new_code_cell(source))


def execute(notebook, folder):
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()


def shown(notebook, kind):
    """All outputs of a MIME type."""
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    return [o.data[kind] for o in outputs if kind in o.get("data", {})]


def printed(notebook):
    code = [c for c in notebook.cells if c.cell_type == "code"]
    return "".join(o.get("text", "") for c in code for o in c.outputs)


@pytest.fixture
def checkout(tmp_path_factory):
    """A copy of the project, one per test: the notebook writes below the folder it runs in."""
    folder = tmp_path_factory.mktemp("a checkout") / "é"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("requirements.txt", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("WANDB_MODE", "disabled")


def test_it_is_stored_without_output_and_valid():
    notebook = read()
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


def test_the_presets_to_choose_from_exist():
    source = tagged(read(), "parameters").source
    choices = ast.literal_eval(re.search(r'PRESET = "demo"\s+#@param (\[.*\])', source)[1])
    assert choices == ["demo", "small", "t4"]
    assert set(choices) <= set(PRESETS) and set(choices) <= set(helper.SIZES)
    for name, size in helper.SIZES.items():
        preset = PRESETS[name]
        longest = max(preset.prior_train.crop, preset.vqvae_train.crop)
        assert size.seconds * preset.vqvae.sample_rate >= longest, f"{name}: no crop fits a song"
        assert size.chunks <= 0.2 * size.tracks + 1, f"{name}: more chunks than test songs"


def test_the_badge_opens_the_repository_that_is_cloned():
    notebook = read()
    badge = re.search(
        r"colab/?\S*\.com/github/([\w-]+/[\w-]+)/blob/main/(\S+\.ipynb)\)", str(notebook)
    )
    assert badge[2] == NOTEBOOK.name
    source = tagged(notebook, "parameters").source
    assert f'REPOSITORY = "https://github.com/{badge[1]}"' in source


@pytest.mark.parametrize("script", sorted({name for name, _ in commands()}))
def test_every_flag_exists(script, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    extra = helper.prior_flags("t4")
    monkeypatch.undo()
    assert import_module(f"scripts.{script}").main(["--help"]) == 0
    known = set(re.findall(r"--[\w.-]+", capsys.readouterr().out))
    for name, line in commands():
        if name == script:
            used = set(re.findall(r"--[\w.-]+", line.replace("{PRIOR_FLAGS}", extra)))
            assert used and used <= known, f"scripts.{script} has no {used - known}"


def flags_of(words):
    """{flag: values}, paths written one way."""
    found, flag = {}, ""
    for word in words:
        if word.startswith("--"):
            flag = word
        found.setdefault(flag, []).extend([] if word.startswith("--") else [Path(word).as_posix()])
    return found


@pytest.mark.parametrize("sources", ("bass drums", "bass drums other", "bass guitar piano"))
def test_the_demo_preset_is_that_of_make_demo(monkeypatch, sources):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    names = {"PRESET": "demo", "DATA": "synthetic", "RUNS": "runs/notebook", "SOURCES": sources}
    names |= {"Path": Path, "notebook": helper}
    exec(tagged(read(), "settings").source, names)
    mine = []
    for script, line in commands(sources.split()):
        if script == "separate":  # the demo's stages separate in scripts.evaluate alone
            continue
        line = re.sub(r"\{(.*?)\}", lambda field: str(eval(field[1], names)), line)
        mine.append((script, flags_of(line.replace('"', "").split())))
    suffix = "" if sources == "bass drums" else "_" + sources.replace(" ", "_")
    output = Path(f"runs/notebook/demo_synthetic{suffix}")
    for stage in demo.stages(demo.Args(output=output, sources=tuple(sources.split()))):
        script, *words = stage.command
        wanted = flags_of(words)
        assert wanted.pop("--seed", ["0"]) == ["0"]  # every script's default
        wanted.pop("--threads", None)  # has no part in what comes out
        assert (script, wanted) in mine, f"not in the notebook: {script} {wanted}"


@pytest.mark.slow
def test_it_runs_headless_at_tiny_size(checkout, quiet):
    notebook = read()
    inject(notebook, TINY)
    began = time.monotonic()
    execute(notebook, checkout)
    assert time.monotonic() - began < 360
    assert "error:" not in printed(notebook)
    run = checkout / "runs é" / "tiny_synthetic"
    assert (run / "results.json").is_file() and (run / "report.html").is_file()
    mixture, rate = audio.load(checkout / "runs/notebook/tiny_synthetic/example.wav")
    names = ("lqvae", "lass", "hybrid", "hybrid-neural")
    for folder in (*(f"separated/{name}" for name in names), "mine/hybrid-neural"):
        stems = [audio.load(run / folder / "example" / f"{s}.wav")[0] for s in ("bass", "drums")]
        torch.testing.assert_close(sum(stems), mixture, atol=1e-5, rtol=0)
    pages = shown(notebook, "text/html")
    assert sum(page.count("<audio") for page in pages) >= 10
    frames = [html.unescape(page) for page in pages if "srcdoc" in page]
    names = [re.findall('<section id="(.*?)"', frame) for frame in frames]
    assert names == [["answer", "scores"], ["plots"], ["listen"]] and "<svg" in frames[1]
    assert "not scores on Slakh" in frames[0] and "4.72" in frames[0] and "254.8" in frames[0]
    assert len(shown(notebook, "image/png")) == 6


SHARED = {"train_prior", "train_likelihood", "train_mask", "train_mask_network"}
SHARED |= {"count_sums", "separate", "evaluate"}


def test_the_launchers_start_the_programs_that_share_their_work_and_no_others():
    code = "\n".join(c.source for c in read().cells if c.cell_type == "code")
    started = set(re.findall(r"^\s*!(\S+) -m scripts\.(\w+) ", code, re.MULTILINE))
    expected = {("{LAUNCHER}", name) for name in SHARED} | {("{CODEC_LAUNCHER}", "train_vqvae")}
    assert {(word, name) for word, name in started if word != "python"} == expected
    assert not {name for word, name in started if word == "python"} & {*SHARED, "train_vqvae"}


def test_the_set_up_cell_installs_the_extra_mpi_where_it_is_chosen():
    extra = re.search(r"^mpi = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.M)[1]
    source = next(c.source for c in read().cells if "lacks" in c.source)
    chosen = 'if LAUNCH.startswith("mpiexec") and lacks("mpi4py"):'
    assert re.search(re.escape(chosen) + r".*\n.*pip install .* " + extra.replace(",", ""), source)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("mpiexec", marks=needs_mpi)])
def test_two_processes_run_its_commands(
    quiet, checkout, tmp_path, tiny_data, tiny_models, launcher
):
    """They train, count, separate and score the hybrid; then one process repeats all but training.

    The stems, counts and scores are the same. mpiexec trains nothing here: it does in
    test_train_scripts.
    """
    notebook = read()
    inject(notebook, TINY | {"LAUNCH": f"{launcher} 2", "RUNS": str(tmp_path / "runs")})
    copy = f"""import shutil
shutil.copytree({str(tiny_data)!r}, PREPARED)
EXAMPLE = write_excerpt(PREPARED, HERE / "example.wav")"""
    begins = [i for i, c in enumerate(notebook.cells) if c.source.startswith("## ")] + [None]
    lqvae, hybrid = (notebook.cells[begins[n - 1] : begins[n]] for n in (4, 6))
    trained = [c for c in lqvae if not re.search(r"--methods? lqvae", c.source)]
    if launcher == "mpiexec":
        trained = []
        copy += f"""
shutil.copytree({str(tiny_models)!r}, MODELS, dirs_exist_ok=True)
(MODELS / "linearisation/counts.safetensors").unlink()"""
    settings = notebook.cells.index(tagged(notebook, "settings"))
    notebook.cells[settings + 1 :] = [nbformat.v4.new_code_cell(copy), *trained, *hybrid]
    execute(notebook, checkout)
    said, here = printed(notebook), checkout / "runs/notebook/tiny_synthetic"
    assert f"evaluation: 2 processes, on the CPU ({launcher} " in said and "error:" not in said

    run, size = tmp_path / "runs/tiny_synthetic", helper.SIZES["tiny"]
    family = run / "models/linearisation"
    threads = ["--device", "cpu", "--threads", share_of_cores(2)]

    def alone(program, *flags):
        assert program.main([str(word) for word in (*flags, *threads)]) == 0

    counted = ["--iterations", size.count_iterations, "--shifts", size.count_shifts]
    counted += ["--vqvae", family / "vqvae", "--data", here / "data"]
    alone(count_sums, *counted, "--output", tmp_path / "counts")
    assert (family / "counts.safetensors").read_bytes() == (tmp_path / "counts").read_bytes()

    models, example = ["--models", run / "models"], here / "example.wav"
    alone(separate, *models, "--method", "hybrid", "--output", tmp_path / "stems", example)
    for name in ("bass.wav", "drums.wav"):
        stem = run / "separated/hybrid/example" / name
        assert stem.read_bytes() == (tmp_path / "stems/example" / name).read_bytes()

    scored = ["--methods", "hybrid", "--parts-only", "--chunks", size.chunks]
    scored += ["--data", here / "data", "--output", tmp_path / "results.json"]
    alone(evaluate, *models, *scored)
    files = (folder / "results.json.parts/hybrid.json" for folder in (run, tmp_path))
    mine, theirs = (json.loads(file.read_text()) for file in files)
    assert mine["result"]["chunks"] == theirs["result"]["chunks"]


@pytest.mark.slow
def test_on_colab_it_clones_mounts_and_uploads(
    checkout, quiet, monkeypatch, tmp_path, tiny_neural_models
):
    colab = tmp_path / "site" / "google" / "colab"
    colab.mkdir(parents=True)
    (colab / "__init__.py").touch()
    (colab / "drive.py").write_text(
        "from pathlib import Path\n"
        "def mount(point):\n    Path(point, 'MyDrive').mkdir(parents=True)\n"
    )
    song = tmp_path / "song.wav"
    audio.save(song, 0.1 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(0)), 16_000)
    (colab / "files.py").write_text(
        "from pathlib import Path\ndef upload():\n"
        f"    content = Path({str(song)!r}).read_bytes()\n"
        "    Path('my $ong (1).wav').write_bytes(content)\n"
        "    return {'my $ong (1).wav': content}\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    git = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "all"]):
        subprocess.run([*git, *words], check=True)

    drive, content = tmp_path / "drive", tmp_path / "content"
    content.mkdir()
    run = drive / "MyDrive/latent-separation/tiny_synthetic"
    notebook = read()
    inject(
        notebook,
        {"PRESET": "tiny", "DRIVE": True, "MOUNT": str(drive), "REPOSITORY": checkout.as_uri()},
    )
    put = f"import shutil\nshutil.copytree({str(tiny_neural_models)!r}, MODELS)\nEXAMPLE = None"
    settings = notebook.cells.index(tagged(notebook, "settings"))
    upload = notebook.cells.index(tagged(notebook, "upload"))
    notebook.cells[settings + 1 : upload] = [nbformat.v4.new_code_cell(put)]
    execute(notebook, content)
    assert (content / "project" / "scripts").is_dir()
    stems = sorted((run / "mine/hybrid-neural/my_ong_1_").glob("*.wav"))
    assert [audio.info(path)[:2] for path in stems] == [(8000, 16_000)] * 2
    assert not (content / "project" / "my $ong (1).wav").exists()
    assert shown(notebook, "text/html")[-1].count("<audio") == 3


@pytest.fixture
def shell():
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    shell = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))
    helper.use_shell(shell)
    helper.use_shell(shell)  # the cell run twice
    return shell


def test_a_failing_command_stops_the_notebook(shell):
    error = shell.run_cell('!python -c "raise SystemExit(3)"').error_in_exec
    assert isinstance(error, helper.CommandError) and "status 3" in str(error)
    assert error._render_traceback_() == [f"CommandError: {error}"]
    assert shell.run_cell('!python -c "pass"').success


def test_python_is_the_kernels_and_sees_the_callers_variables(shell, tmp_path):
    found = tmp_path / "found it"
    script = tmp_path / "say.py"
    script.write_text("import sys; open(sys.argv[1], 'w').write(sys.executable + sys.argv[2])")
    cell = f'def say(command):\n    !python "{script}" "{found}" {{command}}\nsay("!")'
    assert shell.run_cell(cell).success
    assert found.read_text() == f"{sys.executable}!"


def test_launchers_are_the_kernels(monkeypatch):
    monkeypatch.setattr(helper, "_mpiexec", lambda: "/a b/mpiexec")
    python = f'"{sys.executable}"'
    expected = {
        "python -m a": f"{python} -m a",
        f"{TWO} -m a": f"{python} -m torch.distributed.run --standalone --nproc-per-node 2 -m a",
        "mpiexec -n 2 python -m a": f'"/a b/mpiexec" -n 2 {python} -m a',
        "echo python -m a": "echo python -m a",
    }
    assert {command: helper._ours(command) for command in expected} == expected


EVIL = ["$(touch made)", "`touch made`", '"; touch made; "', "'; touch made; '", "; touch made"]
EVIL += ["{open('made', 'w')}", "$HOME {{script}} $script", "a\\", "a b\nc", "*", "-rf", "é ~"]


@pytest.mark.skipif(os.name == "nt", reason="quoted for a POSIX shell")
def test_values_in_commands_are_text(shell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("say.py").write_text("import json, sys; json.dump(sys.argv[1:], open('said', 'w'))")
    shell.user_ns.update(EVIL=EVIL, FLAGS=helper.Words("--a 1"), script="no")
    for number, value in enumerate(EVIL):
        cell = f'x = EVIL[{number}]\n!python say.py "{{x}}" {{x}} "a/{{x}}/b" {{FLAGS}} {{3}}'
        assert shell.run_cell(cell).success
        assert json.loads(Path("said").read_text()) == [
            value,
            value,
            f"a/{value}/b",
            *"--a 1 3".split(),
        ]
    assert {path.name for path in tmp_path.iterdir()} == {"say.py", "said"}


def test_no_text_field_reaches_a_shell_before_values_are_quoted():
    code = [c.source for c in read().cells if c.cell_type == "code"]
    first = next(i for i, source in enumerate(code) if "use_shell" in source)
    fields = re.findall(r"^(\w+) = .*", code[0], re.MULTILINE)
    for source in code[:first]:
        for command in re.findall(r"^\s*!(.*)$", source, re.MULTILINE):
            assert not set(re.findall(r"\w+", command)) & set(fields)


def test_what_cannot_run_here_is_said_before_anything_runs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "15 to 70 minutes" in helper.forecast("demo")
    assert helper.prior_flags("t4") == ""
    with pytest.raises(ValueError, match="'t4' needs a GPU.*Change runtime type.*'demo'"):
        helper.forecast("t4")
    with pytest.raises(ValueError, match="'huge', expected one of"):
        helper.forecast("huge")
    with pytest.raises(ValueError, match="Colab"):
        helper.mount_drive("/nowhere")


def pretend_gpus(monkeypatch, *memories):
    cards = [types.SimpleNamespace(total_memory=gigabytes * 2**30) for gigabytes in memories]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cards))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_properties", cards.__getitem__)


ONE, TWO = "python", "torchrun --standalone --nproc-per-node 2"
FOUR = "torchrun --standalone --nproc-per-node 4"


@pytest.mark.parametrize(
    "gpus, chosen, preset, codecs, others",
    [
        (0, "auto", "demo", ONE, ONE),
        (1, "auto", "demo", ONE, ONE),
        (2, "auto", "small", TWO, TWO),
        (2, "auto", "t4", ONE, TWO),  # a codec's batch is one pair of crops
        (3, "auto", "demo", TWO, TWO),  # a batch of 4 does not divide by 3
        (4, "auto", "demo", FOUR, FOUR),
        (8, "auto", "t4", ONE, TWO),
        (4, "one process", "demo", ONE, ONE),
        (4, "torchrun", "demo", FOUR, FOUR),
        (4, "torchrun 2", "demo", TWO, TWO),
        (0, "torchrun", "demo", ONE, ONE),
        (0, "torchrun 2", "tiny", TWO, TWO),
        (2, "mpiexec", "t4", ONE, "mpiexec -n 2 python"),
    ],
)
def test_the_launchers(monkeypatch, gpus, chosen, preset, codecs, others):
    pretend_gpus(monkeypatch, *[15] * gpus)
    monkeypatch.setattr(helper, "_check_mpi", lambda processes: None)
    launchers = helper.launchers(chosen, preset)
    assert launchers == (codecs, others)
    assert all(isinstance(words, helper.Words) for words in launchers)


@pytest.mark.parametrize(
    "chosen, words",
    [
        ("torchrun; touch made", "'torchrun; touch made', expected 'auto', 'one process'"),
        ("srun", "'srun', expected 'auto'"),
        ("auto 2", "'auto 2', expected"),
        ("torchrun 0", "'torchrun 0', expected 1, 2, 4 processes: .* each GPU"),
        ("torchrun 3", "'torchrun 3', expected 1, 2, 4 processes: .* preset demo"),
        ("mpiexec 1000000", "'mpiexec 1000000', expected 1, 2, 4 processes"),
    ],
)
def test_launchers_that_cannot_be_are_refused(monkeypatch, chosen, words):
    pretend_gpus(monkeypatch, 15, 15, 15, 15)
    with pytest.raises(ValueError, match=words) as caught:
        helper.launchers(chosen, "demo")
    assert "\n" not in str(caught.value)


def test_mpiexec_that_is_missing_or_not_that_of_mpi4py_is_refused(monkeypatch, tmp_path):
    pretend_gpus(monkeypatch)
    monkeypatch.setattr(helper, "_mpiexec", lambda: None)
    with pytest.raises(ValueError, match="no mpiexec on this machine: install the extra mpi"):
        helper.launchers("mpiexec 2", "tiny")
    other = tmp_path / "mpiexec"  # starts processes of which each is alone
    other.write_text("#!/bin/sh\necho 1\necho 1\n")
    other.chmod(0o755)
    monkeypatch.setattr(helper, "_mpiexec", lambda: str(other))
    with pytest.raises(ValueError, match="did not start 2 processes that find each other"):
        helper.launchers("mpiexec 2", "tiny")


@pytest.mark.parametrize("preset", helper.SIZES)
def test_the_batches_of_a_preset_divide_among_the_processes(preset):
    sizes = PRESETS[preset]
    pairs = ("mask_train", "neural_train")
    rows = {"prior_train": 1, "mask_network_train": 10} | dict.fromkeys(pairs, 2)
    codecs, others = helper.items_per_step(preset)
    assert sizes.vqvae_train.batch_size == 2 * codecs
    for name, own in rows.items():
        assert getattr(sizes, name).batch_size % (own * others) == 0
    assert train_mask_network.defaults(FirstFlags()).candidates == 4  # and 1 mixture: 5 rows each


def test_what_will_run_where_is_said(monkeypatch):
    pretend_gpus(monkeypatch, 15, 15)
    monkeypatch.setattr(helper, "_mpiexec", lambda: None)
    text = helper.forecast("t4", helper.launchers("auto", "t4"))
    for words in ("GPU 0: Tesla T4, 15 GiB\nGPU 1", "CUDA: ", "mpiexec: not found", "CPU cores, "):
        assert words in text
    assert "training of codecs: one process\n" in text
    assert f"evaluation: 2 processes, one per GPU ({TWO})\nall other commands: one" in text


def test_large_priors_train_in_the_half_precision_of_the_gpu(monkeypatch):
    pretend_gpus(monkeypatch, 15)
    assert "Tesla T4, 15 GiB" in helper.forecast("t4") and "thirty hours" in helper.forecast("t4")
    for capability, precision in (((7, 5), "16-mixed"), ((8, 0), "bf16-mixed")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda c=capability: c)
        assert helper.prior_flags("t4") == f"--batch auto --precision {precision}"
        assert helper.prior_flags("demo") == ""  # the demo is that of make demo


@pytest.mark.parametrize("version", [7, 8])
def test_the_upload_button(tmp_path, monkeypatch, version):
    button = types.SimpleNamespace(value=() if version == 8 else {})
    fake = types.ModuleType("ipywidgets")
    fake.FileUpload = lambda accept, multiple: button
    monkeypatch.setitem(sys.modules, "ipywidgets", fake)
    upload = helper.Upload(tmp_path / "uploads")
    assert upload.ask() is button and upload.file() is None
    entry = {"name": "a b.wav", "content": memoryview(b"RIFF")}
    button.value = (entry,) if version == 8 else {"a b.wav": {"content": b"RIFF"}}
    assert upload.file() == tmp_path / "uploads" / "a_b.wav"
    assert upload.file().read_bytes() == b"RIFF"


def test_no_upload_where_a_file_is_named_or_no_widget_is_installed(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)  # import fails
    named = helper.Upload(tmp_path, "song.mp3")
    assert named.ask() is None and named.file() == Path("song.mp3")
    assert capsys.readouterr().out == ""
    upload = helper.Upload(tmp_path)
    assert upload.ask() is None and upload.file() is None
    assert "MY_FILE" in capsys.readouterr().out


def test_sums_are_made_again_for_another_codec_alone(tmp_path, tiny_models):
    family = tmp_path / "linearisation"
    shutil.copytree(tiny_models / "linearisation", family)
    assert helper.has_sums(family)
    shutil.rmtree(family / "vqvae")
    assert not helper.has_sums(family)
    shutil.copytree(tiny_models / "reconstruction" / "vqvae", family / "vqvae")
    assert not helper.has_sums(family)


@pytest.mark.parametrize(("rate", "channels"), [(22_050, 1), (96_000, 2), (44_100, 6)])
def test_players_take_any_rate_and_channels(tmp_path, rate, channels):
    audio.save(tmp_path / "a.wav", torch.zeros(channels, rate // 2), rate)
    page = helper.players({"<one>": tmp_path / "a.wav"})
    assert "&lt;one&gt;" in page and "data:audio/mpeg;base64,//" in page
    assert "data:image/png;base64," in page and "five minutes" not in page


def test_sections_of_a_report_keep_its_style_and_script(tmp_path):
    parts = '<section id="a">&amp;</section><section id="b"></section>'
    path = tmp_path / "report.html"
    path.write_text(document("t", f"<nav></nav><main>{parts}</main>"), encoding="utf-8")
    frame = html.unescape(re.search('(?s)srcdoc="(.*?)"', helper.sections(path, "a"))[1])
    assert '<main><section id="a">&amp;</section></main>' in frame and "<nav>" not in frame
    assert STYLE in frame and SCRIPT in frame
    with pytest.raises(ValueError, match="'c'"):
        helper.sections(path, "a", "c")


def test_a_notebook_with_a_failing_cell_stops_there(checkout, quiet):
    notebook = read()
    inject(notebook, TINY | {"DATA": str(checkout / "not there")})
    with pytest.raises(CellExecutionError, match="CommandError: the command ended with status 1"):
        execute(notebook, checkout)
    assert "there is no folder" in printed(notebook)
    assert "train_vqvae" not in printed(notebook)
