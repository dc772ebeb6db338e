"""Soundfonts and drum kits: where they are found, what a song draws, what records say."""

import json
import shutil
from pathlib import Path

import drumkits
import numpy as np
import pretty_midi
import pytest
import yaml
from contents import contents
from drumkits import archive, layer, noise, write_basic_kit, write_kit
from test_synthetic import RATE, SMALL, write_midi

from data import sounds
from data.composer import compose
from data.drumkit import Drumkit
from data.midi import HELD_OUT_BASS, HELD_OUT_KITS, stem_groups
from data.render import EMBEDDED_SOUNDFONT, Renderer
from data.sounds import (
    DRUMKIT_PACKAGE,
    SOUNDFONT_PACKAGES,
    Sources,
    find_drumkits,
    find_soundfonts,
)
from data.synthetic import make_synthetic
from jukebox_core.files import sha256
from scripts.make_synthetic import main


@pytest.fixture(scope="module")
def fonts(tmp_path_factory):
    """Three soundfonts with the same sounds: names tell them apart."""
    folder = tmp_path_factory.mktemp("fonts")
    for name in "abc":
        shutil.copy(EMBEDDED_SOUNDFONT, folder / f"{name}.sf2")
    return [str(folder / f"{name}.sf2") for name in "abc"]


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kits")
    write_basic_kit(folder / "one", 1)
    archive(write_basic_kit(folder / "source", 2), folder / "two.h2drumkit")
    shutil.rmtree(folder / "source")
    return folder


def stems(track):
    """{class of the stem: its entry in metadata.yaml}."""
    entries = yaml.safe_load((track / "metadata.yaml").read_text())["stems"].values()
    return {entry["inst_class"]: entry for entry in entries}


def names_of(sources, number, parts=("bass", "drums", "piano")):
    """{family: name of its sound} that song `number` draws."""
    groups = stem_groups(compose(number, 2.0, parts=parts))
    drawn = sources.draw(groups, [0, number])
    return {family: sound.name for family, sound in drawn.by_family.items()}


# Several soundfonts


def test_a_song_draws_a_soundfont_for_every_family(fonts):
    sources = Sources(RATE, tuple(fonts))
    drawn = [names_of(sources, number) for number in range(40)]
    for family in ("bass", "drums", "others"):
        assert {names[family] for names in drawn} == {"a.sf2", "b.sf2", "c.sf2"}
    assert len({tuple(sorted(names.items())) for names in drawn}) > 15  # independent
    # a part that is left out changes no other
    alone = [names_of(sources, number, parts=("bass",)) for number in range(40)]
    assert [names["bass"] for names in alone] == [names["bass"] for names in drawn]


def test_the_soundfont_that_is_drawn_plays(monkeypatch):
    """Where each soundfont has a sound of its own."""
    waves = {name: np.random.default_rng(index).random(100) for index, name in enumerate("xyz")}

    class Constant:
        presets = {(0, program): "" for program in range(128)} | {(128, 0): ""}

        def __init__(self, rate, path):
            self.soundfont = Path(path)

        def __call__(self, instruments, samples, bank=0):
            return waves[self.soundfont.name][:samples]

    monkeypatch.setattr(sounds, "_renderer", Constant)
    sources = Sources(RATE, tuple("xyz"))
    for number in range(10):
        groups = stem_groups(compose(number, 2.0))
        drawn = sources.draw(groups, [0, number])
        for group in groups:
            assert np.array_equal(drawn(group, 50), waves[drawn.name(group)][:50])


@pytest.fixture
def unchecked(monkeypatch):
    """Skip the check of soundfonts in another process, which takes seconds."""
    monkeypatch.setattr(Sources, "check", lambda self: None)


def test_one_soundfont_or_none_gives_the_same_bytes_as_before(fonts, tmp_path, unchecked):
    """Copies of the embedded soundfont: the same audio, and one of them has the old record."""
    options = {"tracks": 2, "seed": 3, **SMALL}
    tracks = {}
    for name, soundfont in (("none", None), ("one", fonts[0]), ("list", fonts[:1]), ("all", fonts)):
        tracks[name] = make_synthetic(tmp_path / name, soundfont=soundfont, **options).tracks
    for others in zip(*tracks.values(), strict=True):
        assert len({sha256(track / "mix.flac") for track in others}) == 1
    record = json.loads((tmp_path / "none/synthetic.json").read_text())
    assert list(record) == [
        *("version", "seed", "seconds", "sample_rate", "split", "parts", "reprogram", "soundfont"),
        "midi",
    ]
    assert record["soundfont"] is None
    digest = sha256(EMBEDDED_SOUNDFONT)
    for name in ("one", "list"):
        assert json.loads((tmp_path / f"{name}/synthetic.json").read_text())["soundfont"] == digest
    assert contents(tmp_path / "one") == contents(tmp_path / "list")
    record = json.loads((tmp_path / "all/synthetic.json").read_text())
    assert record["soundfont"] == [[f"{name}.sf2", digest] for name in "abc"]
    assert {stem["plugin_name"] for track in tracks["one"] for stem in stems(track).values()} == {
        "a.sf2"
    }


def test_a_folder_continues_only_with_its_own_sounds(fonts, kits, tmp_path, unchecked):
    """Folders that were made before these settings existed continue without them."""
    options = {"tracks": 2, "soundfont": fonts[:2], "drumkit": kits, "programs": "all", **SMALL}
    make_synthetic(tmp_path, **{**options, "tracks": 1})
    made = make_synthetic(tmp_path, **options)
    before = contents(tmp_path)
    for change in ({"soundfont": fonts}, {"soundfont": None}, {"drumkit": None},
                   {"drumkit": kits / "one"}, {"programs": "song"}):  # fmt: skip
        with pytest.raises(ValueError, match=f"another {next(iter(change))}"):
            make_synthetic(tmp_path, **{**options, **change})
    assert contents(tmp_path) == before and len(made.tracks) == 2


# All programs


@pytest.mark.parametrize("soundfont", [(), "copy"])
def test_all_programs_are_those_of_the_soundfont_less_the_held_out(soundfont, fonts):
    """Held out in the embedded soundfont, under any name: in the second test set they are new."""
    presets = Renderer(RATE).presets
    kits = {program for bank, program in presets if bank == 128}
    basses = {program for bank, program in presets if bank < 128 and 32 <= program < 40}
    assert basses == set(range(32, 40)) and kits > set(HELD_OUT_KITS)
    sources = Sources(RATE, (fonts[0],) if soundfont else (), any_program=True)
    drawn = {"bass": set(), "drums": set()}
    for number in range(150):
        midi = compose(number, 1.0)
        notes = [len(instrument.notes) for instrument in midi.instruments]
        groups = stem_groups(midi)
        sounds_of_song = sources.draw(groups, [5, number])
        assert [len(instrument.notes) for instrument in midi.instruments] == notes
        for instrument in midi.instruments:
            if instrument.name in drawn:
                drawn[instrument.name].add(instrument.program)
                bank = 128 if instrument.is_drum else 0
                preset = f" {bank}:{instrument.program} {presets[bank, instrument.program]}"
                assert sounds_of_song.name([instrument]).endswith(preset)
    assert drawn["drums"] == kits - set(HELD_OUT_KITS)
    assert drawn["bass"] == basses - set(HELD_OUT_BASS)


def test_other_soundfonts_have_no_held_out_programs(tmp_path):
    """Their sounds are others. A byte in the soundfont's name makes it another one."""
    content = bytearray(EMBEDDED_SOUNDFONT.read_bytes())
    at = content.index(b"INAM") + 8
    content[at] = ord("X")
    (tmp_path / "x.sf2").write_bytes(content)
    sources = Sources(RATE, (str(tmp_path / "x.sf2"),), any_program=True)
    programs = set()
    for number in range(150):
        midi = compose(number, 1.0, parts=("bass", "drums"))
        sources.draw(stem_groups(midi), [0, number])
        programs |= {(i.name, i.program) for i in midi.instruments}
    assert {program for name, program in programs if name == "bass"} == set(range(32, 40))
    assert set(HELD_OUT_KITS) < {program for name, program in programs if name == "drums"}


def test_all_programs_apply_to_midi_songs_too(tmp_path):
    for index in range(6):
        write_midi(
            tmp_path / f"midi/{index}.mid",
            (33, False, [(40, 0, 0.5)]),
            (0, True, [(36, 0, 0.1)]),
            (20, False, [(60, 0, 0.5)]),
        )
    options = {"midi_dir": tmp_path / "midi", "sample_rate": RATE, "programs": "all"}
    made, _ = make_synthetic(tmp_path / "out", **options)
    assert len({stems(track)["Bass"]["program_num"] for track in made}) > 1
    assert {stems(track)["Organ"]["program_num"] for track in made} == {20}
    for track in made:
        midi = pretty_midi.PrettyMIDI(str(track / "all_src.mid"))
        bass = next(i for i in midi.instruments if 32 <= i.program < 40 and not i.is_drum)
        assert bass.program == stems(track)["Bass"]["program_num"]
        assert f" 0:{bass.program} " in stems(track)["Bass"]["plugin_name"]


def test_a_bank_of_variations_is_played():
    instrument = pretty_midi.Instrument(38)
    instrument.notes = [pretty_midi.Note(100, 40, 0.0, 0.5)]
    render = Renderer(RATE)
    banks = sorted({bank for bank, program in render.presets if program == 38 and bank < 128})
    if banks == [0]:
        render._synth = None  # nothing else to compare: the bank must be asked for
        with pytest.raises(AttributeError):
            render([instrument], RATE, 1)
        return
    first, second = (render([instrument], RATE, bank) for bank in banks[:2])
    assert not np.array_equal(first, second)


def test_a_family_that_no_soundfont_has_is_played_by_the_embedded_one(monkeypatch, tmp_path):
    class Drums:
        presets = {(128, 0): "Kit"}
        kits = [0]
        soundfont = tmp_path / "drums.sf2"

        def __call__(self, instruments, samples, bank):
            return np.ones(samples)

    Drums.soundfont.write_bytes(b"RIFF")

    load = sounds._renderer
    fake = lambda rate, font: Drums() if font else load(rate, None)  # noqa: E731
    monkeypatch.setattr(sounds, "_renderer", fake)
    for sources in (Sources(RATE, ("x",)), Sources(RATE, ("x", "y"), any_program=True)):
        names = names_of(sources, 1)
        assert names["drums"].startswith("drums.sf2")
        assert names["bass"].startswith("TimGM6mb.sf2") and names["others"] == "TimGM6mb.sf2"


# Drum kits


def test_half_of_the_songs_have_a_sample_kit(fonts, kits):
    sources = Sources(RATE, tuple(fonts), find_drumkits([kits]))
    drawn = [names_of(sources, number)["drums"] for number in range(60)]
    assert set(drawn) == {"a.sf2", "b.sf2", "c.sf2", "one", "two.h2drumkit"}
    assert 20 <= sum(name in ("one", "two.h2drumkit") for name in drawn) <= 40
    without = Sources(RATE, tuple(fonts))
    for number in range(10):
        names = names_of(sources, number)
        assert names["bass"] == names_of(without, number)["bass"]


def test_a_data_set_with_sample_kits(kits, tmp_path):
    options = {"tracks": 6, "drumkit": [kits], **SMALL}
    made, _ = make_synthetic(tmp_path / "a", **options)
    make_synthetic(tmp_path / "b", **options)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    plain, _ = make_synthetic(tmp_path / "plain", tracks=6, **SMALL)
    record = json.loads((tmp_path / "a/synthetic.json").read_text())
    expected = [[path.name, Drumkit(path).digest] for path in sorted(kits.iterdir())]
    assert record["drumkit"] == expected and record["soundfont"] is None
    names = [stems(track)["Drums"]["plugin_name"] for track in made]
    assert {"TimGM6mb.sf2"} < set(names) and {"one", "two.h2drumkit"} & set(names)
    for track, other, name in zip(made, plain, names, strict=True):
        assert (track / "all_src.mid").read_bytes() == (other / "all_src.mid").read_bytes()
        same = (track / "stems/S01.flac").read_bytes() == (other / "stems/S01.flac").read_bytes()
        assert same or name != "TimGM6mb.sf2"


# Where they are found


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A file system with some of the packages."""
    monkeypatch.setattr(sounds, "_ROOT", tmp_path)
    return tmp_path


def install(root, package, *names, content=b"font"):
    pattern = root / SOUNDFONT_PACKAGES[package]
    for name in names or (pattern.name,):
        path = pattern.with_name(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def test_packages_are_found_where_they_are_installed(root):
    with pytest.raises(FileNotFoundError, match="fluidr3mono.*apt install fluidr3mono"):
        find_soundfonts(["installed"])
    with pytest.raises(FileNotFoundError, match="apt install fluid-soundfont-gm"):
        find_soundfonts(["embedded", "fluid-soundfont-gm"])
    install(root, "fluidr3mono-gm-soundfont")
    install(root, "timgm6mb-soundfont", content=EMBEDDED_SOUNDFONT.read_bytes())
    mono = str(root / SOUNDFONT_PACKAGES["fluidr3mono-gm-soundfont"])
    embedded = str(EMBEDDED_SOUNDFONT)
    assert find_soundfonts(["installed"]) == (embedded, mono)  # the same font only once
    assert find_soundfonts(["fluidr3mono-gm-soundfont", "embedded", "x.sf2"]) == (
        *(mono, embedded, "x.sf2"),
    )
    assert find_soundfonts([Path("x.sf2"), "x.sf2"]) == ("x.sf2",)


def test_kits_are_found(root, kits, tmp_path):
    with pytest.raises(FileNotFoundError, match="apt install hydrogen-drumkits"):
        find_drumkits(["installed"])
    folder = root / DRUMKIT_PACKAGE[1]
    folder.mkdir(parents=True)
    with pytest.raises(ValueError, match="has no kits"):
        find_drumkits([folder])
    write_basic_kit(folder / "b")
    write_basic_kit(folder / "deep/a")
    installed = (str(folder / "b"), str(folder / "deep/a"))
    assert find_drumkits(["installed"]) == installed
    assert find_drumkits([folder / "b", kits, "installed"]) == (
        *(str(folder / "b"), str(kits / "one"), str(kits / "two.h2drumkit"), installed[1]),
    )


@pytest.mark.parametrize("kind", ["broken", "kick only", "none", "empty"])
def test_broken_kits_end_the_program_before_it_writes(tmp_path, kits, capsys, kind):
    kit = tmp_path / "kits/broken"
    if kind == "broken":
        write_basic_kit(kit)
        (kit / "Snare.wav").write_bytes(b"no audio")
    elif kind == "kick only":
        write_kit(kit, drumkits.instrument("Kick", layer("k.wav")), samples={"k.wav": noise(1)})
    elif kind == "empty":
        kit.mkdir(parents=True)
    flags = ["--output", str(tmp_path / "out"), "--tracks", "1", "--seconds", "1"]
    assert main([*flags, "--drumkit", str(kits), str(kit)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and str(kit) in line
    assert not (tmp_path / "out").exists()


# Debian's packages


@pytest.mark.parametrize("package", SOUNDFONT_PACKAGES)
def test_debians_soundfonts_have_basses_or_kits(package):
    paths = sounds._package_files(package)
    if not paths:
        pytest.skip(f"{package} is not installed")
    for path in paths:
        font = Renderer(RATE, path)
        assert 0 in font.kits and not {56, 57, 58, 59} & set(font.kits)  # marching kits
        if package == "avldrums.lv2-soundfont":
            assert list(font.presets) == [(128, 0)]
        else:
            assert {(0, program) for program in range(128)} <= font.presets.keys()
        drums = compose(1, 4.0, parts=["drums"]).instruments
        assert 0.01 < np.abs(font(drums, 4 * RATE)).max() < 10
