"""The wide style of composed songs: more tempos, metres, grooves, articulations and dynamics.

Patterns are strings with a character per sixteenth, one set per metre. Drums: a voice and its
pattern in turn. Bass: scale degrees and articulations over the chord's root.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pretty_midi

from data.parts import Bar, Hit, Song, fill, nearest, once, strokes

Metre = tuple[int, int]

_METRES: dict[Metre, float] = {(4, 4): 0.68, (3, 4): 0.08, (6, 8): 0.1, (5, 4): 0.07, (7, 8): 0.07}
_TEMPOS = (60.0, 190.0)  # quarters a minute

_LEVELS = {"intro": 0.8, "verse": 0.86, "chorus": 1.06, "bridge": 0.9, "break": 0.72}

# Voices: K kick, S snare, R cross-stick, H closed hi-hat, O open hi-hat, P pedal hi-hat, D ride,
# B bell, T M F high, middle and floor tom. Strokes: X accent, x normal, o ghost.
_VOICES = {"R": 37, "H": 42, "O": 46, "P": 44, "D": 51, "B": 53, "T": 48, "M": 45, "F": 43}
_CRASHES = (49, 57, 55, 52)
_GROOVES: dict[Metre, tuple[str, ...]] = {
    (4, 4): (
        "K X.......X.x..... S ....X.......X... H X.x.X.x.X.x.X.x.",  # rock
        "K X.....x.X.x..... S ....X.......X..o H XoxoXoxoXoxoXoxo",  # sixteenths
        "K X..x..x...X..x.. S ....X..o.o..X..o H x.x.x.x.x.x.x.x.",  # funk
        "K X.x...x...xx.... S .o..X..o.o.oX..o H xoxoxoxoxoxoxo.. O ..............X.",
        "K X...X...X...X... S ....X.......X... H x...x...x...x... O ..X...X...X...X.",  # disco
        "K X.........x.x... S ........X....... H X.x.x.x.X.x.x.x.",  # half-time
        "K X..x.....x...... S .o.o.o.oX..o.o.o H X..xX..xX..xX..x",  # half-time shuffle
        "K X.X...X.X.X...X. S ..X...X...X...X. H X.X.X.X.X.X.X.X.",  # double-time
        "K X...X...X...X... S oooxooxooooxooxo P ....x.......x...",  # train
        "K x.....x.x.....x. R x..x..x...x..x.. H x.x.x.x.x.x.x.x. P ....x.......x...",  # bossa
        "K x..xx..xx..xx..x S ..o..o....o.o.o. D x.xxx.xxx.xxx.xx P ....x.......x...",  # samba
        "K ........X....... R ........X....... H x.x.x.x.x.x.x.x. O ......x.........",  # one drop
        "K X...X...X...X... R ........X....... H ..x...x...x...x.",  # steppers
        "K o...o...o...o... S ......o.......o. D X...X.x.X...X.x. P ....X.......X...",  # jazz ride
        "K o.......o....... S o.xoo.xoo.xoo.xo P ....x.......x...",  # brushes
        "K X.......x..x.... R ....x.......x... H x.x.x.x.x.x.x.x.",  # ballad
        "K X..x..X.X..x..X. F x.xxx.xxx.xxx.xx M ......x.......x. S ....X.......X...",  # toms
        "K X.......X....... T x..x..x......... M ......x..x..x... F ............x.xx",  # tribal
        "K X..x....X..x.... B x.x.x.xx.x.x.x.x S ....X..o.o..X... P x...x...x...x...",  # bell
        "K X......x..X..... S ....X.......X..o H x.xxx.x.x.xxx.x.",  # hip-hop
        "K X.........X..... S ....X..o.o..X..o D X.x.X.x.X.x.X.x.",  # drum and bass
        "K X..X..X.X..X..X. S ..o.X.oo.o.oX.oo H x...x...x...x...",  # second line
        "K X.X.x.X.X.X.x.X. S ....X..oo.oo.oX. D x...x...x...x...",  # linear
        "K X............... H x...x...x...x...",  # sparse
    ),
    (3, 4): (
        "K X........... S ....x...x... H x...x...x...",  # waltz
        "K X.....x..... S ........X... H X.x.x.x.x.x.",
        "K o........... S ..o...o...o. D X...X.x.X... P ....x.......",  # jazz waltz
        "K X..x..x..... R ....x...x... D x.x.x.x.x.x.",
    ),
    (6, 8): (
        "K X.....x.x... S ......X..... H X.x.x.X.x.x.",  # ballad
        "K X...x.....x. S ......X..o.o D X.x.x.X.x.x.",
        "K X.....X..... R ......x..... B x.x.xx.x.x.x P ......x.....",  # bell
        "K x..x..x..x.. S o.oXo.o.oXoo H x...........",  # march
    ),
    (5, 4): (
        "K X.......x...x....... S ....o.......X....... D X...X.x.X...X...X.x.",
        "K X.....x.....X....... S ....X.......X...X... H X.x.X.x.X.x.X.x.X.x.",
        "K X..x......X...x..... R ........x.......x... H xoxoxoxoxoxoxoxoxoxo",
    ),
    (7, 8): (
        "K X.......x..... S ....X.....X... H X.x.X.x.X.x.x.",
        "K X.....x..x.... S ......X...X.o. D X.x.x.X.x.X.x.",
        "K X..x..X....... F x.x.x.x.x.xxxx S ........X.....",
    ),
}
_KIT: dict[str, Sequence[int]] = {"K": (35, 36), "S": (38, 38, 40)}  # drawn for each song
_SWAPS = {"H": ("D", "D", "B", "F"), "D": ("H", "H", "B"), "S": ("R",)}  # drawn for each section
_EXTRAS = {54: "x.o.", 70: "xoxo", 39: "....X...", 56: "x...", 63: "..xx..x.", 64: "x.....x."}

# Bass: 1 to 8 scale degrees, h the tenth, n a note next to the following root, / a slide to the
# root, S and P slap and pop, x a dead note, g a ghost note, - hold, . rest.
_LINES: dict[Metre, tuple[str, ...]] = {
    (4, 4): (
        "1-1-1-1-1-1-1-n-",  # pump
        "1.1.1.1.1.1.1.1.",
        "1-x-1-x-1-x-5-n-",
        "1---------------",  # sustained
        "/---------------",
        "1-------5-------",
        "1---..1-1---5-n-",
        "1.8.1.8.1.8.1.8.",  # octaves
        "1-..1-8-..8-1-n-",
        "S.xPg.S.x.P.S.gP",  # slap
        "S..P.xS...xPg.P.",
        "S...x.P.S.S.x.P.",
        "1--1-15-3-5-6-5-",  # motown
        "1-1-3-4-5-6-5-3-",
        "....1---..1-3-5-",  # reggae
        "..1-..1-5---....",
        "1-----5-5-----1-",  # bossa
        "......5-----1---",  # tumbao
        "1---3---5---n---",  # walking
        "1---2---3---n---",
        "8---7---6---5-n-",
        "1-x-3-x-5-g-n---",
        "/-----5-6---/---",  # slides
        "1-----/-----5-6-",
        "1-2-3-5-6-5-3-2-",  # legato
        "1.gx..1.g.5.x.7.",  # funk
        "1.x.g.8.x.1.g.7.",
        "1..1..1...1..n..",
        "1-----1-----..n-",
        "1---------..1-1-",  # hip-hop
        "1-3-5-8-5-3-5-3-",  # arpeggio
        "h---5---8-5-3---",
        "8-h-8-5-8-h-7-5-",
        "1.11.11.1.11.1n.",  # gallop
        "1-----5-8-------",
        "1---............",
        "1.....x.......n.",
    ),
    (3, 4): (
        "1---5---5---",
        "1-----------",
        "1---3---n---",
        "1-----5---n-",
        "1-1-1-1-1-n-",
        "/-------5-8-",
        "1.x.5.x.3.n.",
    ),
    (6, 8): (
        "1-----5-----",
        "1---1-5---n-",
        "1-3-5-8-5-3-",
        "1.1.1.5.5.5.",
        "/-------..n-",
        "S..xP.S.x.Pg",
    ),
    (5, 4): (
        "1-----1-----5---5-n-",
        "1---3---5---6---n---",
        "1.....1.....5...g.x.",
        "/-----------8---5---",
        "S..P..S..xP.S.g.P...",
    ),
    (7, 8): (
        "1---5---1-5-n-",
        "1-1-1-1-1-1-n-",
        "1.x.1.x.8.g.5.",
        "/-------5-----",
        "S..P..S.x.P.S.",
    ),
}
_BASS = range(24, 68)  # playable pitches
_CENTERS = {33: 0.6, 38: 0.25, 45: 0.15}  # of a song's roots
_STACCATO, _LEGATO = (0.25, 0.45), (1.1, 1.2)
# (least, most) share of a note's length that sounds; in legato, until the next note begins
_TOUCHES = (_STACCATO, (0.6, 0.95), (0.6, 0.95), _LEGATO, _LEGATO)

_GLIDE_SECONDS = 0.12
_GLIDE_EVENTS = 8
_BEND_RANGE = 2  # semitones of General MIDI's pitch bend


def time(rng: np.random.Generator) -> tuple[float, Metre, float]:
    """Draw a tempo in quarters a minute, a metre and a swing in beats."""
    metre = list(_METRES)[int(rng.choice(len(_METRES), p=list(_METRES.values())))]
    tempo = float(rng.uniform(*_TEMPOS))
    swing = float(rng.uniform(0.05, 0.18))
    return tempo, metre, swing if metre[1] == 4 and rng.random() < 0.4 else 0.0


def sections(
    rng: np.random.Generator, kinds: Iterator[str]
) -> Iterator[tuple[str, list[frozenset[str]], list[float]]]:
    """Yield sections without end: the kind, the parts that rest in each bar, a level per bar.

    Bass or drums drop out of some sections for a bar or more, but not of the first. What comes
    earlier does not depend on the song's length.
    """
    first = True
    for kind in kinds:
        long = kind in ("verse", "chorus") or first
        length = int(rng.choice([4, 4, 8] if long else [2, 4]))
        quiet = [set[str]() for _ in range(length)]
        if not first and rng.random() < (0.6 if kind == "break" else 0.2):
            part, bars = str(rng.choice(["bass", "drums"])), int(rng.integers(1, length + 1))
            for silent in quiet[:bars] if rng.random() < 0.5 else quiet[-bars:]:
                silent.add(part)
        for part in ("piano", "guitar", "strings"):
            if not first and rng.random() < 0.25:
                for silent in quiet:
                    silent.add(part)
        level = _LEVELS[kind] * rng.uniform(0.85, 1.1)
        rising = rng.random() < 0.2
        levels = level * (np.linspace(0.75, 1.1, length) if rising else np.ones(length))
        yield kind, [frozenset(silent) for silent in quiet], levels.tolist()
        first = False


def _drums(song: Song, rng: np.random.Generator) -> list[list[Hit]]:
    """A groove for each section in its own feel; ghost notes, flams, fills, crashes."""
    grooves = _GROOVES[song.metre]
    main = str(rng.choice(grooves))
    kit = _VOICES | {voice: int(rng.choice(pitches)) for voice, pitches in _KIT.items()}
    touch = float(rng.choice([0.45, 0.75, 1.0, 1.0, 1.1]))
    ghosts = float(rng.choice([0, 0, 0.06, 0.2]))
    flams, fills = rng.uniform(0, 0.2), rng.uniform(0.3, 1)
    extra = int(rng.choice(list(_EXTRAS)))
    grace = rng.uniform(0.024, 0.036) * song.tempo / 15  # a sixteenth has 15 / tempo seconds
    bars: list[list[Hit]] = []
    for bar in song.bars:
        if bar.opens:
            words = (main if rng.random() < 0.55 else str(rng.choice(grooves))).split()
            voices = dict(zip(words[::2], words[1::2], strict=True))
            for voice, others in _SWAPS.items():
                other = str(rng.choice(others))
                if rng.random() < 0.15 and voice in voices and other not in voices:
                    voices[other] = voices.pop(voice)
            feel = str(rng.choice(["plain", "half", "double"], p=[0.84, 0.08, 0.08]))
            with_extra, crash = rng.random() < 0.2, rng.random() < 0.6
        hits = []
        for voice, pattern in voices.items():
            if voice in "KSRTMF":
                pattern = _in_feel(pattern, feel, bar.number)
            hits += strokes(pattern, kit[voice], song.steps, touch)
        if with_extra:
            hits += strokes(_EXTRAS[extra], extra, song.steps, 0.7 * touch)
        hits = [hit for hit in hits if hit.velocity > 85 * touch or rng.random() > 0.06]
        hits += [
            Hit(step, 1, kit["S"], rng.uniform(24, 46) * touch)
            for step in range(song.steps)
            if rng.random() < ghosts
        ]
        if bar.closes and rng.random() < fills:
            length = int(rng.choice([2, 4, 4, 8, song.steps]))
            hits = [hit for hit in hits if hit.step < song.steps - length]
            if rng.random() < 0.85:  # otherwise a stop
                hits += fill(rng, song.steps - length, length, kit["K"], kit["S"])
        if bar.opens and crash:
            hits.append(Hit(0, 4, int(rng.choice(_CRASHES)), 112 * touch))
        hits = once(hits)
        hits += [
            Hit(hit.step - grace, 1, hit.pitch, hit.velocity * 0.6)
            for hit in hits
            if hit.pitch == kit["S"] and hit.velocity > 85 * touch and rng.random() < flams
        ]
        bars.append(hits)
    return bars


def _in_feel(pattern: str, feel: str, number: int) -> str:
    """Stretch a pattern over two bars, or play it twice in one."""
    if feel == "double":
        return pattern[::2] * 2
    if feel == "half":
        half = len(pattern) // 2
        return "".join(f"{stroke}." for stroke in pattern[number % 2 * half :][:half])
    return pattern


def limbs(rng: np.random.Generator, lag: float) -> dict[int, float]:
    """Draw the lag of each limb in seconds, by drum: both feet, the snare's hand and the other."""
    kick, pedal, snare = (lag + rng.normal(0, 0.006) for _ in range(3))
    return {35: kick, 36: kick, 44: pedal, **dict.fromkeys((37, 38, 40), snare)}


def _bass(song: Song, rng: np.random.Generator) -> list[list[Hit]]:
    """A line and a touch for each section, varied from bar to bar; fills at the ends."""
    lines = _LINES.get(song.metre, (("1-5-8-5-" * song.steps)[: song.steps],))
    main, usual = str(rng.choice(lines)), int(rng.integers(len(_TOUCHES)))
    center = int(rng.choice(list(_CENTERS), p=list(_CENTERS.values())))
    fills = rng.uniform(0.1, 0.6)
    root = center
    bars: list[list[Hit]] = []
    for bar in song.bars:
        if bar.opens:
            line = main if rng.random() < 0.4 else str(rng.choice(lines))
            shares = _TOUCHES[usual if rng.random() < 0.6 else int(rng.integers(len(_TOUCHES)))]
            touch = float(rng.uniform(*shares))
            raised = 12 * int(rng.random() < 0.1)
        root = nearest(bar.root, (root + center) // 2, center - 6, center + 7)
        tokens = list(line.replace(".", "-") if shares is _LEGATO else line)
        if bar.closes and rng.random() < fills:
            length = int(rng.choice([4, 8]))
            run = rng.choice(list("1235678"), size=length // 2)
            tokens[-length:] = [token for degree in run for token in (str(degree), "-")]
            tokens[-2] = "n"
        for step, token in enumerate(tokens):
            if token == "." and rng.random() < 0.03:
                tokens[step] = str(rng.choice(["x", "g"]))
            elif token == "1" and step and rng.random() < 0.06:
                tokens[step] = str(rng.choice(["8", "/", "."]))
        hits = _line(tokens, song, bar, root + raised, rng)
        bars.append(
            [
                hit._replace(length=hit.length * touch if hit.length > 0.8 else hit.length)
                for hit in hits
            ]
        )
    return bars


def _line(
    tokens: Sequence[str], song: Song, bar: Bar, root: int, rng: np.random.Generator
) -> list[Hit]:
    """Return the notes of a bar."""
    degrees = [(tone - root) % 12 for tone in song.scale]
    tonic = degrees.index(0) if 0 in degrees else 0
    above = [degrees[(tonic + degree) % 7] for degree in range(7)]
    pitches = {str(degree + 1): root + step for degree, step in enumerate(above)}
    pitches |= {"8": root + 12, "h": root + 12 + above[2], "P": root + 12}
    following = nearest(bar.next_root, root, root - 6, root + 6)
    hits: list[Hit] = []
    for step, token in enumerate(tokens):
        if token == "-" and hits and hits[-1].length > 0.8:
            hits[-1] = hits[-1]._replace(length=step + 1 - hits[-1].step)
        if token in "-.":
            continue
        pitch, length, velocity, slide = pitches.get(token, root), 1.0, 92.0, 0.0
        if step % 4 == 0:
            velocity = 104.0
        if token == "n":
            pitch = following + int(rng.choice([-2, -1, 1, 2]))
        elif token == "/":
            slide = float(rng.choice([-2, -2, -1, 2]))
        elif token in "SP":
            length, velocity = 0.7, 122.0
        elif token == "x":
            length, velocity = 0.3, 44.0
        elif token == "g":
            length, velocity = 0.5, 38.0
        while pitch not in _BASS:
            pitch += 12 if pitch < _BASS.start else -12
        hits.append(Hit(step, length, pitch, velocity, slide))
    return hits


def glides(played: Sequence[tuple[pretty_midi.Note, float]]) -> list[pretty_midi.PitchBend]:
    """Return the pitch bends of notes that slide to their pitch from some semitones away."""
    bends = []
    for note, slide in played:
        if slide:
            seconds = min(_GLIDE_SECONDS, (note.end - note.start) / 2)
            for event in range(_GLIDE_EVENTS + 1):
                value = round(8192 * slide / _BEND_RANGE * (1 - event / _GLIDE_EVENTS))
                at = note.start + seconds * event / _GLIDE_EVENTS
                bends.append(pretty_midi.PitchBend(min(8191, max(-8192, value)), at))
    return bends


WRITERS = {"bass": _bass, "drums": _drums}
